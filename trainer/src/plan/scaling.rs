//! How a run would scale to many GPUs, from the time of a step, the bytes that it moves, and the speed of
//! links that the user states. Nothing here measures anything.

use serde::Serialize;

/// GPUs of the table.
const SIZES: [usize; 8] = [8, 16, 32, 64, 128, 256, 512, 1024];

/// What the simulation assumes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Links {
    /// GPUs of a node.
    pub per_node: usize,
    /// Bytes per second of a GPU to the others of its node.
    pub node_bytes_per_second: f64,
    /// Bytes per second of a node to the other nodes, shared by its GPUs.
    pub network_bytes_per_second: f64,
    /// Seconds of one hop within a node.
    pub node_latency: f64,
    /// Seconds of one hop between nodes.
    pub network_latency: f64,
}

/// What a step needs of a rank, at any number of ranks with as many cells each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Load {
    /// Seconds of a step without communication.
    pub step_seconds: f64,
    /// Bytes of the gradient buffer.
    pub all_reduce_bytes: f64,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// GPUs.
    pub gpus: usize,
    /// Seconds of the all-reduce.
    pub communication_seconds: f64,
    /// Share of the speed of as many GPUs that need not communicate.
    pub efficiency: f64,
}

/// The formula, as it is printed.
pub const FORMULA: &str = "\
efficiency = step / (step + all-reduce), nothing overlapped, with as many cells on each GPU at any number
all-reduce = 2 (g-1)/g B/b_node + 2 (g-1) a_node + 2 (n-1)/n B/b_net + 2 ceil(log2 n) a_net
  (sum and spread within each of n nodes of g GPUs in a ring, between nodes in a tree; B bytes of the buffer,
  b bandwidths, a latencies)";

/// Seconds that an all-reduce of `bytes` takes on `gpus` GPUs.
pub fn all_reduce_seconds(bytes: f64, gpus: usize, links: &Links) -> f64 {
    let inside = gpus.min(links.per_node).max(1);
    let nodes = gpus.div_ceil(inside);
    let ring = |members: usize| 2.0 * (members - 1) as f64 / members as f64;
    let hops = usize::BITS - (nodes - 1).leading_zeros();
    ring(inside) * bytes / links.node_bytes_per_second
        + 2.0 * (inside - 1) as f64 * links.node_latency
        + ring(nodes) * bytes / links.network_bytes_per_second
        + 2.0 * f64::from(hops) * links.network_latency
}

/// The table from 8 to 1,024 GPUs.
pub fn simulate(load: &Load, links: &Links) -> Vec<Row> {
    SIZES
        .into_iter()
        .map(|gpus| {
            let seconds = all_reduce_seconds(load.all_reduce_bytes, gpus, links);
            Row {
                gpus,
                communication_seconds: seconds,
                efficiency: load.step_seconds / (load.step_seconds + seconds),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINKS: Links = Links {
        per_node: 8,
        node_bytes_per_second: 200e9,
        network_bytes_per_second: 25e9,
        node_latency: 5e-6,
        network_latency: 15e-6,
    };

    #[test]
    fn an_all_reduce_costs_what_the_formula_says() {
        // 2 x 7/8 x 8 GB / 200 GB/s, and fourteen hops.
        let one_node = all_reduce_seconds(8e9, 8, &LINKS);
        assert!((one_node - (0.07 + 70e-6)).abs() < 1e-12, "{one_node}");
        // Between two nodes 2 x 1/2 x 8 GB / 25 GB/s and two hops more.
        let two = all_reduce_seconds(8e9, 16, &LINKS);
        assert!((two - one_node - (0.32 + 30e-6)).abs() < 1e-12, "{two}");
        // Five nodes are three levels of a tree.
        let five = all_reduce_seconds(0.0, 40, &LINKS);
        assert!((five - (70e-6 + 90e-6)).abs() < 1e-12, "{five}");
        assert_eq!(all_reduce_seconds(8e9, 1, &LINKS), 0.0);
    }

    #[test]
    fn efficiency_falls_with_gpus_and_bytes() {
        let load = |bytes| Load {
            step_seconds: 0.1,
            all_reduce_bytes: bytes,
        };
        let (lora, full) = (
            simulate(&load(2.6e6), &LINKS),
            simulate(&load(205e6), &LINKS),
        );
        assert_eq!(lora.first().map(|r| r.gpus), Some(8));
        assert_eq!(lora.last().map(|r| r.gpus), Some(1024));
        for rows in [&lora, &full] {
            assert!(
                rows.is_sorted_by(|a, b| a.efficiency >= b.efficiency),
                "{rows:?}"
            );
        }
        assert!(
            lora.iter()
                .zip(&full)
                .all(|(a, b)| a.efficiency > b.efficiency)
        );
        assert!(
            lora[7].efficiency > 0.99 && full[7].efficiency < 0.9,
            "{lora:?} {full:?}"
        );
    }
}

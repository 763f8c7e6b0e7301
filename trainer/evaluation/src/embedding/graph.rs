//! The weighted graph of neighbours that scanpy clusters and UMAP draws: memberships of a fuzzy set
//! (McInnes, Healy and Melville 2018), as umap-learn computes them.

use super::neighbors::Neighbors;

/// Bisections for the width of a cell's neighbourhood, and how near they must come.
const BISECTIONS: usize = 64;
const TOLERANCE: f64 = 1e-5;
/// A width is at least this part of the mean distance.
const LEAST_WIDTH: f64 = 1e-3;

/// Undirected weights, stored from both sides, without loops.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    starts: Vec<usize>,
    ends: Vec<u32>,
    weights: Vec<f32>,
}

impl Graph {
    /// Connectivities of neighbours as `scanpy.pp.neighbors` makes them. scanpy counts the cell among
    /// its own neighbours: its `n_neighbors` is one more than [`Neighbors::k`].
    #[must_use]
    pub fn of_neighbors(neighbors: &Neighbors) -> Self {
        let n = neighbors.len();
        let all: f64 = (0..n)
            .flat_map(|c| neighbors.distances(c))
            .map(|&d| f64::from(d))
            .sum();
        // The cell itself, at distance 0, counts in means.
        let columns = (neighbors.k() + 1) as f64;
        let mean = all / (n as f64 * columns);
        let mut edges = Vec::with_capacity(2 * n * neighbors.k());
        for cell in 0..n {
            for (&other, weight) in neighbors
                .of(cell)
                .iter()
                .zip(memberships(neighbors.distances(cell), mean))
            {
                edges.push((cell as u32, other, weight));
            }
        }
        Self::union(n, &edges)
    }

    /// From undirected edges, each given once; those of weight 0 are left out.
    ///
    /// # Panics
    /// When an edge leads out of `0..n` or from a node to itself.
    #[must_use]
    pub fn from_edges(n: usize, edges: &[(u32, u32, f32)]) -> Self {
        let turned = |&(a, b, w): &(u32, u32, f32)| [(a, b, w), (b, a, w)];
        let mut both: Vec<_> = edges.iter().flat_map(turned).collect();
        for &(a, b, _) in edges {
            assert!(
                a != b && (a.max(b) as usize) < n,
                "an edge between two nodes"
            );
        }
        both.retain(|edge| edge.2 != 0.0);
        both.sort_unstable_by_key(|&(a, b, _)| (a, b));
        Self::of_sorted(n, &both)
    }

    /// Of directed memberships p and q, `p + q - p q`.
    fn union(n: usize, edges: &[(u32, u32, f32)]) -> Self {
        let mut both: Vec<(u32, u32, f32, f32)> = Vec::with_capacity(2 * edges.len());
        for &(a, b, weight) in edges {
            both.push((a, b, weight, 0.0));
            both.push((b, a, 0.0, weight));
        }
        both.sort_unstable_by_key(|&(a, b, ..)| (a, b));
        let sorted: Vec<(u32, u32, f32)> = both
            .chunk_by(|x, y| (x.0, x.1) == (y.0, y.1))
            .map(|same| {
                let p: f32 = same.iter().map(|e| e.2).sum();
                let q: f32 = same.iter().map(|e| e.3).sum();
                (same[0].0, same[0].1, p + q - p * q)
            })
            .filter(|edge| edge.2 > 0.0)
            .collect();
        Self::of_sorted(n, &sorted)
    }

    fn of_sorted(n: usize, edges: &[(u32, u32, f32)]) -> Self {
        let mut starts = vec![0; n + 1];
        for &(a, ..) in edges {
            starts[a as usize + 1] += 1;
        }
        for node in 0..n {
            starts[node + 1] += starts[node];
        }
        Self {
            starts,
            ends: edges.iter().map(|e| e.1).collect(),
            weights: edges.iter().map(|e| e.2).collect(),
        }
    }

    /// Number of nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether there are no nodes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of stored weights, two for each edge.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.ends.len()
    }

    /// Neighbours of a node with their weights, ascending by number.
    pub fn of(&self, node: usize) -> impl Iterator<Item = (usize, f32)> {
        let range = self.starts[node]..self.starts[node + 1];
        let ends = self.ends[range.clone()].iter().map(|&end| end as usize);
        ends.zip(self.weights[range].iter().copied())
    }

    /// Sizes of the connected components of the subgraph of `nodes`, largest first.
    #[must_use]
    pub fn components(&self, nodes: &[usize]) -> Vec<usize> {
        let mut open = vec![false; self.len()];
        for &node in nodes {
            open[node] = true;
        }
        let mut sizes = Vec::new();
        let mut stack = Vec::new();
        for &start in nodes {
            if !std::mem::take(&mut open[start]) {
                continue;
            }
            let mut size = 0;
            stack.push(start);
            while let Some(node) = stack.pop() {
                size += 1;
                for (next, _) in self.of(node) {
                    if std::mem::take(&mut open[next]) {
                        stack.push(next);
                    }
                }
            }
            sizes.push(size);
        }
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes
    }
}

/// Memberships of a cell's neighbours: 1 up to the nearest at a distance, then falling so that all of
/// them sum to log2 of their number, the cell itself counted. `mean` is that of all distances.
fn memberships(distances: &[f32], mean: f64) -> Vec<f32> {
    let distances: Vec<f64> = distances.iter().map(|&d| f64::from(d)).collect();
    let nearest = distances.iter().copied().find(|d| *d > 0.0).unwrap_or(0.0);
    let wanted = ((distances.len() + 1) as f64).log2();
    let (mut low, mut high, mut width) = (0.0f64, f64::INFINITY, 1.0f64);
    for _ in 0..BISECTIONS {
        let term = |d: &f64| {
            let beyond = d - nearest;
            if beyond > 0.0 {
                (-beyond / width).exp()
            } else {
                1.0
            }
        };
        let sum: f64 = distances.iter().map(term).sum();
        if (sum - wanted).abs() < TOLERANCE {
            break;
        }
        if sum > wanted {
            high = width;
            width = f64::midpoint(low, high);
        } else {
            low = width;
            width = if high.is_infinite() {
                width * 2.0
            } else {
                f64::midpoint(low, high)
            };
        }
    }
    let own = distances.iter().sum::<f64>() / (distances.len() + 1) as f64;
    width = width.max(LEAST_WIDTH * if nearest > 0.0 { own } else { mean });
    let weight = |d: &f64| {
        let beyond = d - nearest;
        if beyond <= 0.0 || width == 0.0 {
            1.0
        } else {
            (-beyond / width).exp() as f32
        }
    };
    distances.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_those_of_the_chosen_nodes() {
        let graph = Graph::from_edges(5, &[(0, 1, 1.0), (1, 2, 1.0), (3, 4, 0.5)]);
        assert_eq!(graph.components(&[0, 1, 2, 3, 4]), [3, 2]);
        assert_eq!(graph.components(&[0, 2, 4]), [1, 1, 1]);
        assert_eq!(graph.of(1).collect::<Vec<_>>(), [(0, 1.0), (2, 1.0)]);
    }

    /// Cells on one spot: every neighbour is a full member, and nothing is NaN.
    #[test]
    fn equal_cells_are_full_neighbours() {
        let near = Neighbors::from_rows(2, vec![1, 2, 0, 2, 0, 1], vec![0.0; 6]);
        let graph = Graph::of_neighbors(&near);
        assert_eq!(graph.stored(), 6);
        assert!(graph.of(0).all(|(_, w)| w == 1.0));
    }
}

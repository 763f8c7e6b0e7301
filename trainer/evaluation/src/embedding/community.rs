//! Communities of a weighted graph by modularity with a resolution (Reichardt and Bornholdt 2006),
//! the partitions that scanpy's `leiden` and `louvain` look for.

use std::collections::VecDeque;

use super::graph::Graph;
use crate::rng::Rng;
use crate::{Score, Undefined, parallel};

/// Passes of Leiden over the whole graph, each from the last one's partition; it stops before when
/// nothing changes.
const PASSES: usize = 10;
/// Gains below this are rounding.
const LEAST_GAIN: f64 = 1e-10;

/// How communities are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Traag, Waltman and van Eck 2019: communities are connected.
    Leiden,
    /// Blondel and others 2008.
    Louvain,
}

/// A graph whose nodes may stand for several cells.
struct Level {
    starts: Vec<usize>,
    ends: Vec<u32>,
    weights: Vec<f64>,
    /// Sum of weights of a node, those inside it counted from both sides.
    degrees: Vec<f64>,
}

/// Communities of the nodes of a level.
struct Partition {
    of: Vec<usize>,
    degrees: Vec<f64>,
    nodes: Vec<usize>,
}

/// What a search needs at each level.
struct Search {
    /// Resolution over the sum of all degrees.
    penalty: f64,
    rng: Rng,
}

/// Communities of each node, numbered from the largest. The result depends on the seed alone.
#[must_use]
pub fn communities(graph: &Graph, method: Method, resolution: f64, seed: u64) -> Vec<usize> {
    let base = Level::of_graph(graph);
    let total: f64 = base.degrees.iter().sum();
    if total <= 0.0 {
        return (0..graph.len()).collect();
    }
    let mut search = Search {
        penalty: resolution / total,
        rng: Rng::new(seed, "communities"),
    };
    let mut found: Vec<usize> = (0..graph.len()).collect();
    for _ in 0..PASSES {
        let new = search.pass(&base, method, &found);
        let same = numbered(&new) == numbered(&found);
        found = new;
        if same || method == Method::Louvain {
            break;
        }
    }
    by_size(&found)
}

/// [`communities`] for each resolution, side by side on all cores.
#[must_use]
pub fn over_resolutions(
    graph: &Graph,
    method: Method,
    resolutions: &[f64],
    seed: u64,
) -> Vec<Vec<usize>> {
    let find = |at: usize| communities(graph, method, resolutions[at], seed);
    parallel::map(resolutions.len(), parallel::cores(), find)
}

/// Modularity of a partition: share of weight inside communities, less `resolution` times the share
/// that chance would put there.
///
/// # Errors
/// The graph has no edge.
///
/// # Panics
/// When there is not one group for each node.
pub fn modularity(graph: &Graph, groups: &[usize], resolution: f64) -> Score {
    assert_eq!(graph.len(), groups.len(), "one group for each node");
    let level = Level::of_graph(graph);
    let total: f64 = level.degrees.iter().sum();
    if total <= 0.0 {
        return Err(Undefined::Constant {
            what: "the graph has no edge: its weight",
        });
    }
    let mut degrees = vec![0.0; super::pairs::groups_of(groups)];
    let mut inside = 0.0;
    for (node, &group) in groups.iter().enumerate() {
        degrees[group] += level.degrees[node];
        inside += level
            .of(node)
            .filter(|(end, _)| groups[*end] == group)
            .map(|(_, w)| w)
            .sum::<f64>();
    }
    let chance: f64 = degrees.iter().map(|d| (d / total).powi(2)).sum();
    Ok(inside / total - resolution * chance)
}

/// Groups numbered in the order in which they appear.
fn numbered(groups: &[usize]) -> Vec<usize> {
    let mut number = vec![usize::MAX; super::pairs::groups_of(groups)];
    let mut next = 0;
    let mut renumber = |group: usize| {
        if number[group] == usize::MAX {
            number[group] = next;
            next += 1;
        }
        number[group]
    };
    groups.iter().map(|&group| renumber(group)).collect()
}

/// Groups numbered from the largest; equal ones in the order in which they appear.
fn by_size(groups: &[usize]) -> Vec<usize> {
    let groups = numbered(groups);
    let mut sizes = vec![0usize; super::pairs::groups_of(&groups)];
    for &g in &groups {
        sizes[g] += 1;
    }
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&g| std::cmp::Reverse(sizes[g]));
    let mut place = vec![0; sizes.len()];
    for (at, &g) in order.iter().enumerate() {
        place[g] = at;
    }
    groups.iter().map(|&g| place[g]).collect()
}

impl Level {
    fn of_graph(graph: &Graph) -> Self {
        let n = graph.len();
        let mut level = Self {
            starts: Vec::with_capacity(n + 1),
            ends: Vec::with_capacity(graph.stored()),
            weights: Vec::with_capacity(graph.stored()),
            degrees: Vec::with_capacity(n),
        };
        level.starts.push(0);
        for node in 0..n {
            for (end, weight) in graph.of(node) {
                level.ends.push(end as u32);
                level.weights.push(f64::from(weight));
            }
            let from = level.starts[node];
            level.degrees.push(level.weights[from..].iter().sum());
            level.starts.push(level.ends.len());
        }
        level
    }

    fn len(&self) -> usize {
        self.degrees.len()
    }

    fn of(&self, node: usize) -> impl Iterator<Item = (usize, f64)> {
        let range = self.starts[node]..self.starts[node + 1];
        let ends = self.ends[range.clone()].iter().map(|&end| end as usize);
        ends.zip(self.weights[range].iter().copied())
    }

    /// Each group of `groups`, numbered without gaps, becomes a node.
    fn aggregate(&self, groups: &[usize]) -> Self {
        let n = super::pairs::groups_of(groups);
        let mut members = vec![Vec::new(); n];
        let mut degrees = vec![0.0; n];
        for (node, &group) in groups.iter().enumerate() {
            members[group].push(node);
            degrees[group] += self.degrees[node];
        }
        let mut level = Self {
            starts: vec![0],
            ends: Vec::new(),
            weights: Vec::new(),
            degrees,
        };
        let mut links = Links::new(n);
        for (group, members) in members.iter().enumerate() {
            for &node in members {
                self.of(node)
                    .for_each(|(end, weight)| links.add(groups[end], weight));
            }
            for &other in links.touched.iter().filter(|&&other| other != group) {
                level.ends.push(other as u32);
                level.weights.push(links.weight[other]);
            }
            links.clear();
            level.starts.push(level.ends.len());
        }
        level
    }
}

/// Weights of a node's links to groups.
struct Links {
    weight: Vec<f64>,
    touched: Vec<usize>,
    seen: Vec<bool>,
}

impl Links {
    fn new(groups: usize) -> Self {
        Self {
            weight: vec![0.0; groups],
            touched: Vec::new(),
            seen: vec![false; groups],
        }
    }

    fn add(&mut self, group: usize, weight: f64) {
        if !std::mem::replace(&mut self.seen[group], true) {
            self.touched.push(group);
        }
        self.weight[group] += weight;
    }

    fn clear(&mut self) {
        for &group in &self.touched {
            self.weight[group] = 0.0;
            self.seen[group] = false;
        }
        self.touched.clear();
    }
}

impl Partition {
    /// `groups` number communities below the number of nodes.
    fn new(level: &Level, groups: Vec<usize>) -> Self {
        let mut partition = Self {
            degrees: vec![0.0; level.len()],
            nodes: vec![0; level.len()],
            of: groups,
        };
        for (node, &group) in partition.of.iter().enumerate() {
            partition.degrees[group] += level.degrees[node];
            partition.nodes[group] += 1;
        }
        partition
    }

    fn put(&mut self, level: &Level, node: usize, group: usize) {
        let old = std::mem::replace(&mut self.of[node], group);
        self.degrees[old] -= level.degrees[node];
        self.nodes[old] -= 1;
        self.degrees[group] += level.degrees[node];
        self.nodes[group] += 1;
    }
}

impl Search {
    /// From a partition of the nodes of `base` to one that is no worse.
    fn pass(&mut self, base: &Level, method: Method, start: &[usize]) -> Vec<usize> {
        // Node of the present level that each node of `base` belongs to.
        let mut at: Vec<usize> = (0..base.len()).collect();
        let mut groups = numbered(start);
        let mut owned: Option<Level> = None;
        loop {
            let level = owned.as_ref().unwrap_or(base);
            let mut partition = Partition::new(level, groups);
            self.move_nodes(level, &mut partition);
            let found = numbered(&partition.of);
            if super::pairs::groups_of(&found) == level.len() {
                return at.iter().map(|&node| found[node]).collect();
            }
            let fine = match method {
                Method::Louvain => found.clone(),
                Method::Leiden => self.refine(level, &found),
            };
            if super::pairs::groups_of(&fine) == level.len() {
                return at.iter().map(|&node| found[node]).collect();
            }
            let next = level.aggregate(&fine);
            // A refined group lies in one community, in which its node starts.
            groups = vec![0; next.len()];
            for (node, &group) in fine.iter().enumerate() {
                groups[group] = found[node];
            }
            for node in &mut at {
                *node = fine[*node];
            }
            owned = Some(next);
        }
    }

    /// Moves nodes to the community where they gain most until none gains.
    fn move_nodes(&mut self, level: &Level, partition: &mut Partition) {
        let mut queue: VecDeque<usize> = self.rng.permutation(level.len()).into();
        let mut waits = vec![true; level.len()];
        let mut links = Links::new(level.len());
        let mut empty: Vec<usize> = (0..level.len())
            .filter(|&g| partition.nodes[g] == 0)
            .collect();
        while let Some(node) = queue.pop_front() {
            waits[node] = false;
            level
                .of(node)
                .for_each(|(end, weight)| links.add(partition.of[end], weight));
            let (own, degree) = (partition.of[node], level.degrees[node]);
            let gain = |group: usize, weight: f64| {
                let rest = partition.degrees[group] - if group == own { degree } else { 0.0 };
                weight - self.penalty * degree * rest
            };
            let stay = gain(own, links.weight[own]);
            let (mut best, mut most) = (own, stay);
            for &group in &links.touched {
                let gain = gain(group, links.weight[group]);
                if gain > most + LEAST_GAIN {
                    (best, most) = (group, gain);
                }
            }
            links.clear();
            // A community of its own gains nothing and pays nothing.
            if most < -LEAST_GAIN && partition.nodes[own] > 1 {
                best = empty.pop().unwrap_or(own);
            }
            if best == own {
                continue;
            }
            partition.put(level, node, best);
            if partition.nodes[own] == 0 {
                empty.push(own);
            }
            for (end, _) in level.of(node) {
                if partition.of[end] != best && !std::mem::replace(&mut waits[end], true) {
                    queue.push_back(end);
                }
            }
        }
    }

    /// Parts of communities that hang together: nodes start alone and each that still is alone joins
    /// the part of its community where it gains most, if both are well linked to the community.
    fn refine(&mut self, level: &Level, communities: &[usize]) -> Vec<usize> {
        let n = level.len();
        let mut whole = vec![0.0; super::pairs::groups_of(communities)];
        // Links of a part with the rest of its community.
        let mut cut = vec![0.0; n];
        for (node, &community) in communities.iter().enumerate() {
            whole[community] += level.degrees[node];
            let inside = level
                .of(node)
                .filter(|(end, _)| communities[*end] == community);
            cut[node] = inside.map(|(_, weight)| weight).sum();
        }
        let mut parts = Partition::new(level, (0..n).collect());
        let mut links = Links::new(n);
        for node in self.rng.permutation(n) {
            let (own, degree) = (parts.of[node], level.degrees[node]);
            let whole = whole[communities[node]];
            let linked = |cut: f64, degree: f64| cut >= self.penalty * degree * (whole - degree);
            if parts.nodes[own] != 1 || !linked(cut[own], degree) {
                continue;
            }
            for (end, weight) in level.of(node) {
                if communities[end] == communities[node] {
                    links.add(parts.of[end], weight);
                }
            }
            let (mut best, mut most) = (own, 0.0);
            for &part in links.touched.iter().filter(|&&part| part != own) {
                let gain = links.weight[part] - self.penalty * degree * parts.degrees[part];
                if gain > most + LEAST_GAIN && linked(cut[part], parts.degrees[part]) {
                    (best, most) = (part, gain);
                }
            }
            if best != own {
                cut[best] += cut[own] - 2.0 * links.weight[best];
                parts.put(level, node, best);
            }
            links.clear();
        }
        numbered(&parts.of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rings of cliques (Fortunato and Barthelemy 2007) have their cliques as communities.
    fn ring_of_cliques(cliques: u32, size: u32) -> Graph {
        let mut edges = Vec::new();
        for c in 0..cliques {
            for i in 0..size {
                for j in 0..i {
                    edges.push((c * size + j, c * size + i, 1.0));
                }
            }
            edges.push((c * size, ((c + 1) % cliques) * size + 1, 1.0));
        }
        Graph::from_edges((cliques * size) as usize, &edges)
    }

    #[test]
    fn cliques_of_a_ring_are_communities() {
        let graph = ring_of_cliques(8, 6);
        for method in [Method::Leiden, Method::Louvain] {
            let found = communities(&graph, method, 1.0, 3);
            let expected: Vec<usize> = (0..48).map(|node| node / 6).collect();
            let agreement = crate::clustering::adjusted_rand_index(&found, &expected);
            assert_eq!(agreement, Ok(1.0), "{found:?}");
            assert_eq!(found, communities(&graph, method, 1.0, 3));
        }
        // 15 of 16 edges lie inside, and chance would put an eighth there.
        let groups: Vec<usize> = (0..48).map(|node| node / 6).collect();
        let found = modularity(&graph, &groups, 1.0).unwrap();
        assert!((found - (15.0 / 16.0 - 0.125)).abs() < 1e-12, "{found}");
    }

    #[test]
    fn resolutions_part_more_or_less_and_no_edge_is_no_community() {
        let graph = ring_of_cliques(8, 6);
        let counts: Vec<usize> = over_resolutions(&graph, Method::Leiden, &[0.05, 1.0, 9.0], 0)
            .iter()
            .map(|groups| groups.iter().max().unwrap() + 1)
            .collect();
        assert!(
            counts[0] < 8 && counts[1] == 8 && counts[2] > 8,
            "{counts:?}"
        );
        let bare = Graph::from_edges(3, &[]);
        assert_eq!(communities(&bare, Method::Leiden, 1.0, 0), [0, 1, 2]);
        assert!(modularity(&bare, &[0, 0, 0], 1.0).is_err());
    }
}

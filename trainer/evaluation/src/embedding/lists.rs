//! An inverted file: cells are kept in lists around centres, and a cell's neighbours are looked for
//! in the lists whose centres lie nearest.

// As in `pairs`.
#![allow(clippy::inline_always)]

use super::neighbors::{Neighbors, Recall, Search};
use crate::cells::Cells;
use crate::rng::Rng;
use crate::{parallel, wide};

/// Rounds in which centres move to the mean of their cells.
const ROUNDS: usize = 8;
/// Cells that centres are found from, for each of them.
const CELLS_OF_CENTER: usize = 50;
/// Cells that are searched exactly.
const SAMPLE: usize = 500;
/// Cells of one item of work.
const CHUNK: usize = 256;

/// Squared distances and numbers of cells, nearest first.
type Near = Vec<(f32, u32)>;

struct Lists {
    width: usize,
    /// `[lists, width]`.
    centers: Vec<f32>,
    members: Vec<Vec<u32>>,
}

pub(super) fn search(
    cells: Cells<'_>,
    k: usize,
    search: Search,
    threads: usize,
) -> (Neighbors, Recall) {
    let n = cells.len();
    let lists = Lists::new(cells, search.seed, threads);
    let count = lists.members.len();
    let sample: Vec<u32> = Rng::new(search.seed, "cells searched exactly")
        .permutation(n)
        .into_iter()
        .take(SAMPLE)
        .map(|cell| cell as u32)
        .collect();
    let look = |of: &[u32], probes: usize| {
        let chunks: Vec<&[u32]> = of.chunks(CHUNK).collect();
        let work = |at: usize| {
            wide::run(
                #[inline(always)]
                || {
                    let mut near = Vec::with_capacity(chunks[at].len());
                    for &cell in chunks[at] {
                        near.push(lists.nearest(cells, cell, k, probes));
                    }
                    near
                },
            )
        };
        parallel::map(chunks.len(), threads, work).concat()
    };
    let truth = look(&sample, count);
    let mut probes = 1;
    let share = loop {
        let share = shared(&look(&sample, probes), &truth);
        if share >= search.recall || probes >= count {
            break share;
        }
        probes = (probes + probes.div_ceil(4)).min(count);
    };
    let all: Vec<u32> = (0..n as u32).collect();
    // A list may be short: what few probes left open is looked for everywhere.
    let mut found = look(&all, probes);
    for (cell, near) in found.iter_mut().enumerate() {
        if near.len() < k {
            *near = lists.nearest(cells, cell as u32, k, count);
        }
    }
    let near = found.into_iter().flatten();
    let (distances, indices) = near.map(|(d, cell)| (d.sqrt(), cell)).unzip();
    let recall = Recall {
        share,
        cells: sample.len(),
        lists: count,
        probes,
    };
    (Neighbors::new(k, indices, distances), recall)
}

/// Share of the neighbours of `truth` that `found` has.
fn shared(found: &[Near], truth: &[Near]) -> f64 {
    let hits =
        |(found, truth): (&Near, &Near)| truth.iter().filter(|near| found.contains(near)).count();
    let all: usize = truth.iter().map(Vec::len).sum();
    found.iter().zip(truth).map(hits).sum::<usize>() as f64 / all as f64
}

/// Squared distance, in eight lanes.
#[inline(always)]
fn square(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(x, y)| (x - y) * (x - y)).sum();
    for (a, b) in a.zip(b) {
        for (sum, (x, y)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += (x - y) * (x - y);
        }
    }
    sums.iter().sum::<f32>() + rest
}

impl Lists {
    /// About the square root of the number of cells, around centres found by Lloyd's rounds on a
    /// sample.
    fn new(cells: Cells<'_>, seed: u64, threads: usize) -> Self {
        let (n, width) = (cells.len(), cells.genes());
        let count = (n as f64).sqrt().round().max(1.0) as usize;
        let order = Rng::new(seed, "centres of lists").permutation(n);
        let sample: Vec<usize> = order.into_iter().take(count * CELLS_OF_CENTER).collect();
        let mut lists = Self {
            width,
            centers: sample[..count]
                .iter()
                .flat_map(|&c| cells.row(c))
                .copied()
                .collect(),
            members: Vec::new(),
        };
        for _ in 0..ROUNDS {
            lists.move_centers(cells, &sample, threads);
        }
        lists.members = vec![Vec::new(); count];
        let all: Vec<usize> = (0..n).collect();
        for (cell, list) in lists.assign(cells, &all, threads).into_iter().enumerate() {
            lists.members[list].push(cell as u32);
        }
        lists
    }

    fn center(&self, list: usize) -> &[f32] {
        &self.centers[list * self.width..(list + 1) * self.width]
    }

    fn lists(&self) -> usize {
        self.centers.len() / self.width
    }

    /// The nearest list of each of `of`.
    fn assign(&self, cells: Cells<'_>, of: &[usize], threads: usize) -> Vec<usize> {
        let chunks: Vec<&[usize]> = of.chunks(CHUNK).collect();
        let work = |at: usize| {
            wide::run(
                #[inline(always)]
                || {
                    let mut own = Vec::with_capacity(chunks[at].len());
                    for &cell in chunks[at] {
                        let row = cells.row(cell);
                        let (mut best, mut least) = (0, f32::INFINITY);
                        for list in 0..self.lists() {
                            let square = square(row, self.center(list));
                            if square < least {
                                (best, least) = (list, square);
                            }
                        }
                        own.push(best);
                    }
                    own
                },
            )
        };
        parallel::map(chunks.len(), threads, work).concat()
    }

    /// Centres go to the mean of their cells; one without cells stays.
    fn move_centers(&mut self, cells: Cells<'_>, sample: &[usize], threads: usize) {
        let own = self.assign(cells, sample, threads);
        let mut sums = vec![0f64; self.centers.len()];
        let mut sizes = vec![0f64; self.lists()];
        for (&cell, &list) in sample.iter().zip(&own) {
            sizes[list] += 1.0;
            let sums = &mut sums[list * self.width..(list + 1) * self.width];
            sums.iter_mut()
                .zip(cells.row(cell))
                .for_each(|(s, &x)| *s += f64::from(x));
        }
        for (list, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0.0) {
            let range = list * self.width..(list + 1) * self.width;
            let centers = self.centers[range.clone()].iter_mut();
            centers
                .zip(&sums[range])
                .for_each(|(c, sum)| *c = (sum / size) as f32);
        }
    }

    /// The `k` nearest cells of those in the `probes` nearest lists, with squared distances.
    #[inline(always)]
    fn nearest(&self, cells: Cells<'_>, cell: u32, k: usize, probes: usize) -> Near {
        let row = cells.row(cell as usize);
        let mut order: Vec<(f32, usize)> = Vec::with_capacity(self.lists());
        for list in 0..self.lists() {
            order.push((square(row, self.center(list)), list));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut near: Near = Vec::with_capacity(k + 1);
        for &(_, list) in &order[..probes] {
            for &other in &self.members[list] {
                let new = (square(row, cells.row(other as usize)), other);
                if other == cell || (near.len() == k && new >= near[k - 1]) {
                    continue;
                }
                let at = near.partition_point(|old| *old < new);
                near.truncate(k - 1);
                near.insert(at, new);
            }
        }
        near
    }
}

//! Distances of all pairs of cells in one pass: the nearest neighbours of each cell, and the sums of
//! its distances to every label and, within its label, to every batch, from which silhouettes follow.
//!
//! A pair is computed once, in f32 by direct differences (no cancellation), in blocks that both
//! cores share. Sums are kept in fixed point, so that they do not depend on the order of blocks.

// Functions of the inner loop are compiled anew for processors with wide vectors, which takes
// inlining.
#![allow(clippy::inline_always)]

use std::sync::Mutex;

use crate::cells::Cells;
use crate::{parallel, wide};

/// Cells whose coordinates lie side by side: as many f32 as two vector registers hold.
const LANES: usize = 16;
/// Rows of a tile: with [`LANES`] columns its sums stay in registers.
const ROWS: usize = 4;
/// Cells of a block: two blocks of 512 dimensions and their distances fit the second cache.
const BLOCK: usize = 256;

/// What is wanted of the pairs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Neighbours of each cell.
    pub(super) neighbors: usize,
    /// Label and batch of each cell.
    pub(super) groups: Option<(&'a [usize], &'a [usize])>,
}

/// What the pass found, cells in their own order.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The nearest cells, `neighbors` each, ascending by distance and then by number.
    pub(super) nearest: Vec<u32>,
    /// Their distances.
    pub(super) distances: Vec<f32>,
    /// Sums of distances to the cells of each label, `[cells, labels]`.
    pub(super) to_labels: Vec<f64>,
    /// Sums of distances to the cells of each batch among those of the own label, `[cells, batches]`.
    pub(super) to_batches: Vec<f64>,
}

/// Coordinates in panels of [`LANES`] cells, dimension by dimension; cells of one label and batch
/// lie together.
struct Panels {
    values: Vec<f32>,
    width: usize,
    cells: usize,
    /// Place to cell.
    order: Vec<u32>,
    /// Power of two by which coordinates were multiplied.
    scale: f64,
}

/// Cells of one label and batch: places `start..end`.
struct Segment {
    start: usize,
    end: usize,
    label: usize,
    batch: usize,
}

/// Results of the cells of one block.
struct Rows {
    first: usize,
    near: Vec<Vec<(f32, u32)>>,
    /// Fixed point, `[rows, labels + batches]`.
    sums: Vec<i64>,
}

/// What blocks have in common.
struct Task<'a> {
    panels: &'a Panels,
    segments: Vec<Segment>,
    neighbors: usize,
    labels: usize,
    batches: usize,
    /// Units of fixed point in a distance of 1.
    fixed: f64,
}

pub(super) fn groups_of(codes: &[usize]) -> usize {
    codes.iter().max().map_or(0, |max| max + 1)
}

impl Panels {
    fn new(cells: Cells<'_>, order: Vec<u32>) -> Self {
        let (n, width) = (cells.len(), cells.genes());
        let most = cells.rows().flatten().fold(0f32, |m, x| m.max(x.abs()));
        // Exact, and keeps squares far from the ends of f32.
        let scale = if most > 0.0 {
            (-f64::from(most).log2().ceil()).exp2()
        } else {
            1.0
        };
        let mut values = vec![0f32; n.div_ceil(LANES) * LANES * width];
        for (place, &cell) in order.iter().enumerate() {
            let panel = &mut values[place / LANES * LANES * width..];
            for (d, &x) in cells.row(cell as usize).iter().enumerate() {
                panel[d * LANES + place % LANES] = (f64::from(x) * scale) as f32;
            }
        }
        Self {
            values,
            width,
            cells: n,
            order,
            scale,
        }
    }

    fn panel(&self, place: usize) -> &[f32] {
        let size = LANES * self.width;
        &self.values[place / LANES * size..][..size]
    }
}

/// Squared distances of [`ROWS`] cells of panel `a`, from lane `from`, to all cells of panel `b`.
#[inline(always)]
fn tile<const FUSED: bool>(a: &[f32], from: usize, b: &[f32]) -> [[f32; LANES]; ROWS] {
    let mut sums = [[0f32; LANES]; ROWS];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for (sums, x) in sums.iter_mut().zip(&a[from..from + ROWS]) {
            for (sum, y) in sums.iter_mut().zip(b) {
                let d = y - x;
                *sum = if FUSED {
                    d.mul_add(d, *sum)
                } else {
                    d * d + *sum
                };
            }
        }
    }
    sums
}

/// Sum of the square roots, in eight lanes of f64.
#[inline(always)]
fn sum_of_roots(squares: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let chunks = squares.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(x.sqrt());
        }
    }
    let rest: f64 = rest.iter().map(|x| f64::from(x.sqrt())).sum();
    sums.iter().sum::<f64>() + rest
}

impl Task<'_> {
    /// Places of block `block`.
    fn places(&self, block: usize) -> std::ops::Range<usize> {
        block * BLOCK..((block + 1) * BLOCK).min(self.panels.cells)
    }

    /// Distances of two blocks, `[BLOCK, BLOCK]`, and what they mean for the cells of both.
    #[inline(always)]
    fn meet<const FUSED: bool>(&self, (i, j): (usize, usize), rows: &[Mutex<Rows>]) {
        let (a, b) = (self.places(i), self.places(j));
        let mut squares = vec![0f32; BLOCK * BLOCK];
        for row in a.clone().step_by(ROWS) {
            for column in b.clone().step_by(LANES) {
                let (left, right) = (self.panels.panel(row), self.panels.panel(column));
                let tile = tile::<FUSED>(left, row % LANES, right);
                for (k, line) in tile.iter().enumerate() {
                    let at = (row - a.start + k) * BLOCK + (column - b.start);
                    squares[at..at + LANES].copy_from_slice(line);
                }
            }
        }
        self.absorb(&rows[i], &squares, b);
        if i != j {
            let mut turned = vec![0f32; BLOCK * BLOCK];
            for (row, line) in squares.chunks_exact(BLOCK).enumerate().take(a.len()) {
                for (column, &x) in line.iter().enumerate() {
                    turned[column * BLOCK + row] = x;
                }
            }
            self.absorb(&rows[j], &turned, a);
        }
    }

    #[inline(always)]
    fn absorb(&self, rows: &Mutex<Rows>, squares: &[f32], others: std::ops::Range<usize>) {
        let mut rows = match rows.lock() {
            Ok(rows) => rows,
            // A thread that panicked takes the whole pass down when it is joined.
            Err(poisoned) => poisoned.into_inner(),
        };
        let Rows { first, near, sums } = &mut *rows;
        let first_segment = self.segments.partition_point(|s| s.end <= others.start);
        let columns = self.labels + self.batches;
        for (row, near) in near.iter_mut().enumerate() {
            let line = &squares[row * BLOCK..][..others.len()];
            if self.neighbors > 0 {
                self.nearer(near, *first + row, line, others.start);
            }
            if columns == 0 {
                continue;
            }
            let own = self.segments.partition_point(|s| s.end <= *first + row);
            let own = self.segments[own].label;
            let sums = &mut sums[row * columns..(row + 1) * columns];
            for segment in &self.segments[first_segment..] {
                if segment.start >= others.end {
                    break;
                }
                let from = segment.start.max(others.start) - others.start;
                let to = segment.end.min(others.end) - others.start;
                let sum = (sum_of_roots(&line[from..to]) * self.fixed).round() as i64;
                sums[segment.label] += sum;
                if segment.label == own && self.batches > 0 {
                    sums[self.labels + segment.batch] += sum;
                }
            }
        }
    }

    /// Keeps the nearest cells of one, ordered by distance and then by number.
    #[inline(always)]
    fn nearer(&self, near: &mut Vec<(f32, u32)>, place: usize, line: &[f32], first: usize) {
        let bound = |near: &[(f32, u32)]| {
            let last = near.get(self.neighbors - 1);
            last.map_or(f32::INFINITY, |last| last.0)
        };
        let mut most = bound(near);
        for (column, &square) in line.iter().enumerate() {
            if square > most || first + column == place {
                continue;
            }
            let new = (square, self.panels.order[first + column]);
            let at = near.partition_point(|old| *old < new);
            if at < self.neighbors {
                near.truncate(self.neighbors - 1);
                near.insert(at, new);
                most = bound(near);
            }
        }
    }

    fn work(&self, pair: (usize, usize), rows: &[Mutex<Rows>]) {
        if wide::available() {
            wide::run(
                #[inline(always)]
                || self.meet::<true>(pair, rows),
            );
        } else {
            self.meet::<false>(pair, rows);
        }
    }
}

/// One pass over all pairs.
pub(super) fn sweep(cells: Cells<'_>, wanted: Wanted<'_>, threads: usize) -> Found {
    let n = cells.len();
    let mut order: Vec<u32> = (0..n as u32).collect();
    let key = |cell: u32| {
        let cell = cell as usize;
        wanted
            .groups
            .map(|(labels, batches)| (labels[cell], batches[cell]))
    };
    order.sort_by_key(|&cell| key(cell));
    let mut segments: Vec<Segment> = Vec::new();
    for run in order.chunk_by(|&a, &b| key(a) == key(b)) {
        let start = segments.last().map_or(0, |s| s.end);
        let (label, batch) = key(run[0]).unwrap_or((0, 0));
        segments.push(Segment {
            start,
            end: start + run.len(),
            label,
            batch,
        });
    }
    let (labels, batches) = wanted
        .groups
        .map_or((0, 0), |(l, b)| (groups_of(l), groups_of(b)));
    let panels = Panels::new(cells, order);
    // Scaled coordinates are at most 1 in size.
    let farthest = 2.0 * (panels.width as f64).sqrt();
    let task = Task {
        segments,
        neighbors: wanted.neighbors,
        labels,
        batches,
        fixed: (61.0 - (n as f64 * farthest).log2().ceil()).exp2(),
        panels: &panels,
    };
    let blocks = n.div_ceil(BLOCK);
    let rows: Vec<Mutex<Rows>> = (0..blocks)
        .map(|block| {
            let places = task.places(block);
            Mutex::new(Rows {
                first: places.start,
                near: vec![Vec::with_capacity(wanted.neighbors); places.len()],
                sums: vec![0; places.len() * (labels + batches)],
            })
        })
        .collect();
    let pairs: Vec<(usize, usize)> = (0..blocks)
        .flat_map(|i| (i..blocks).map(move |j| (i, j)))
        .collect();
    parallel::map(pairs.len(), threads, |at| task.work(pairs[at], &rows));
    collect(&task, rows)
}

/// Results in the order of the cells.
fn collect(task: &Task<'_>, rows: Vec<Mutex<Rows>>) -> Found {
    let (n, k) = (task.panels.cells, task.neighbors);
    let (labels, batches) = (task.labels, task.batches);
    let mut found = Found {
        nearest: vec![0; n * k],
        distances: vec![0.0; n * k],
        to_labels: vec![0.0; n * labels],
        to_batches: vec![0.0; n * batches],
    };
    let distance = 1.0 / (task.fixed * task.panels.scale);
    for rows in rows {
        let Rows { first, near, sums } = match rows.into_inner() {
            Ok(rows) => rows,
            Err(poisoned) => poisoned.into_inner(),
        };
        for (row, near) in near.into_iter().enumerate() {
            let cell = task.panels.order[first + row] as usize;
            for (at, (square, other)) in near.into_iter().enumerate() {
                found.nearest[cell * k + at] = other;
                let root = f64::from(square).sqrt() / task.panels.scale;
                found.distances[cell * k + at] = root as f32;
            }
            let sums = &sums[row * (labels + batches)..(row + 1) * (labels + batches)];
            for (label, &sum) in sums[..labels].iter().enumerate() {
                found.to_labels[cell * labels + label] = sum as f64 * distance;
            }
            for (batch, &sum) in sums[labels..].iter().enumerate() {
                found.to_batches[cell * batches + batch] = sum as f64 * distance;
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// More cells than a block, odd numbers everywhere, several labels and batches: the definition.
    #[test]
    fn a_pass_is_the_definition_whatever_the_threads() {
        let (n, width, k) = (2 * BLOCK + 37, 5, 7);
        let mut rng = Rng::new(3, "pairs");
        let values: Vec<f32> = (0..n * width).map(|_| rng.below(41) as f32 / 8.0).collect();
        let cells = Cells::new("cells", &values, width).unwrap();
        let labels: Vec<usize> = (0..n).map(|_| rng.below(3)).collect();
        let batches: Vec<usize> = (0..n).map(|_| rng.below(4)).collect();
        let wanted = Wanted {
            neighbors: k,
            groups: Some((&labels, &batches)),
        };
        let found = sweep(cells, wanted, 2);
        let alone = sweep(cells, wanted, 1);
        assert_eq!(found.nearest, alone.nearest);
        assert_eq!(found.to_labels, alone.to_labels);
        for cell in 0..n {
            let distance = |other: usize| {
                let (a, b) = (cells.row(cell), cells.row(other));
                let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
                squares.sum::<f64>().sqrt()
            };
            let mut others: Vec<(f64, usize)> = (0..n)
                .filter(|&o| o != cell)
                .map(|o| (distance(o), o))
                .collect();
            others.sort_by(|a, b| a.partial_cmp(b).unwrap());
            for (at, (distance, other)) in others[..k].iter().enumerate() {
                assert_eq!(found.nearest[cell * k + at] as usize, *other, "cell {cell}");
                assert!((f64::from(found.distances[cell * k + at]) - distance).abs() < 1e-6);
            }
            for label in 0..3 {
                let of = others.iter().filter(|(_, o)| labels[*o] == label);
                let sum: f64 = of.map(|(d, _)| d).sum();
                assert!((found.to_labels[cell * 3 + label] - sum).abs() < 1e-6 * sum);
            }
            for batch in 0..4 {
                let own = |o: usize| labels[o] == labels[cell] && batches[o] == batch;
                let sum: f64 = others.iter().filter(|(_, o)| own(*o)).map(|(d, _)| d).sum();
                assert!((found.to_batches[cell * 4 + batch] - sum).abs() < 1e-6 * (1.0 + sum));
            }
        }
    }
}

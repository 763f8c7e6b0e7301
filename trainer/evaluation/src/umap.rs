//! UMAP (McInnes, Healy and Melville 2018): a picture of a neighbour graph in the plane, with the
//! forces and the sampling of umap-learn. Drawn by one thread from a seed, so that the same graph
//! gives the same picture.

use crate::embedding::graph::Graph;
use crate::rng::Rng;
use crate::stats::enough;
use crate::{Error, Result, Undefined};

/// Coordinates of a cell.
const PLANE: usize = 2;
/// Largest move along an axis for one force, at full rate.
const LARGEST: f32 = 4.0;
/// Added to squared distances of cells that push each other away.
const APART: f32 = 1e-3;
/// Extent of the start along each axis, and the jitter that parts equal cells.
const EXTENT: f32 = 10.0;
const JITTER: f64 = 1e-4;
/// Cells up to which more epochs are run.
const FEW_CELLS: usize = 10_000;

/// How a picture is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Distance below which neighbours are not drawn nearer to each other.
    pub min_dist: f64,
    /// Scale of the picture.
    pub spread: f64,
    /// Rounds over the edges; 500 for up to 10,000 cells and 200 above when not given.
    pub epochs: Option<usize>,
    /// Cells that are pushed away for each edge that pulls.
    pub negatives: usize,
    /// Seed.
    pub seed: u64,
}

impl Default for Settings {
    /// Those of scanpy.
    fn default() -> Self {
        Self {
            min_dist: 0.5,
            spread: 1.0,
            epochs: None,
            negatives: 5,
            seed: 0,
        }
    }
}

/// Curve `1 / (1 + a d^2b)` of how near two cells are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Curve {
    a: f64,
    b: f64,
}

/// An edge in one direction, with the epochs at which it pulls and pushes.
struct Edge {
    from: u32,
    to: u32,
    every: f32,
    next: f32,
    next_negative: f32,
}

/// Places of all cells, `[cells, 2]`. `start` gives each cell at least two coordinates, of which
/// the first two are taken: principal components, as a rule.
///
/// # Errors
/// Another number of rows in `start`, rows of fewer than two coordinates, or settings out of range.
pub fn umap(graph: &Graph, start: &[f32], width: usize, settings: &Settings) -> Result<Vec<f32>> {
    let n = graph.len();
    if width < PLANE || start.len() != n * width {
        return Err(Error::Length {
            what: format!("coordinates of the start of {n} cells, {width} each"),
            found: start.len(),
            expected: n * width.max(PLANE),
        });
    }
    if !(settings.spread > 0.0 && (0.0..=settings.spread).contains(&settings.min_dist)) {
        return Err(Error::Setting {
            setting: "min_dist",
            found: format!("{} with a spread of {}", settings.min_dist, settings.spread),
            expected: "at least 0 and at most the spread",
        });
    }
    let epochs = settings
        .epochs
        .unwrap_or(if n <= FEW_CELLS { 500 } else { 200 });
    let curve = Curve::fit(settings.min_dist, settings.spread);
    let mut places = placed(start, width, settings.seed);
    let mut edges = edges(graph, epochs, settings.negatives);
    let mut rng = Rng::new(settings.seed, "umap");
    for epoch in 0..epochs {
        let rate = 1.0 - epoch as f32 / epochs as f32;
        let mut forces = Forces {
            curve: (curve.a as f32, curve.b as f32),
            rate,
            places: &mut places,
        };
        for edge in &mut edges {
            if edge.next <= epoch as f32 {
                forces.pull(edge.from as usize, edge.to as usize);
                edge.next += edge.every;
                let every = edge.every / settings.negatives.max(1) as f32;
                let due = ((epoch as f32 - edge.next_negative) / every).max(0.0) as usize;
                for _ in 0..due.min(settings.negatives * epochs) {
                    forces.push(edge.from as usize, rng.below(n));
                }
                edge.next_negative += due as f32 * every;
            }
        }
    }
    Ok(places)
}

/// The start on a square of [`EXTENT`], slightly jittered.
fn placed(start: &[f32], width: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, "start of umap");
    let first: Vec<f32> = start
        .chunks_exact(width)
        .flat_map(|row| [row[0], row[1]])
        .collect();
    let most = first.iter().fold(0f32, |m, x| m.max(x.abs()));
    let scale = if most > 0.0 { EXTENT / most } else { 0.0 };
    let jittered = first
        .iter()
        .map(|x| x * scale + (rng.normal() * JITTER) as f32);
    let mut places: Vec<f32> = jittered.collect();
    for axis in 0..PLANE {
        let along = || places.iter().skip(axis).step_by(PLANE).copied();
        let (low, high) = (
            along().fold(f32::MAX, f32::min),
            along().fold(f32::MIN, f32::max),
        );
        let extent = if high > low { high - low } else { 1.0 };
        for x in places.iter_mut().skip(axis).step_by(PLANE) {
            *x = EXTENT * (*x - low) / extent;
        }
    }
    places
}

/// Edges that pull at least once, in both directions; the heaviest pull in every epoch.
fn edges(graph: &Graph, epochs: usize, negatives: usize) -> Vec<Edge> {
    let heaviest = (0..graph.len())
        .flat_map(|node| graph.of(node))
        .map(|(_, w)| w);
    let heaviest = heaviest.fold(0f32, f32::max);
    let mut edges = Vec::with_capacity(graph.stored());
    for node in 0..graph.len() {
        for (end, weight) in graph.of(node) {
            if weight * epochs as f32 >= heaviest {
                let every = heaviest / weight;
                edges.push(Edge {
                    from: node as u32,
                    to: end as u32,
                    every,
                    next: every,
                    next_negative: every / negatives.max(1) as f32,
                });
            }
        }
    }
    edges
}

/// Forces of one epoch.
struct Forces<'a> {
    curve: (f32, f32),
    rate: f32,
    places: &'a mut [f32],
}

impl Forces<'_> {
    fn between(&self, i: usize, j: usize) -> ([f32; PLANE], f32) {
        let at = |cell: usize, axis: usize| self.places[cell * PLANE + axis];
        let offset = std::array::from_fn(|axis| at(i, axis) - at(j, axis));
        (offset, offset.iter().map(|x: &f32| x * x).sum())
    }

    fn pull(&mut self, i: usize, j: usize) {
        let (offset, square) = self.between(i, j);
        if square <= 0.0 {
            return;
        }
        let (a, b) = self.curve;
        let power = square.powf(b);
        let size = -2.0 * a * b * power / square / (a * power + 1.0);
        for (axis, x) in offset.iter().enumerate() {
            let step = (size * x).clamp(-LARGEST, LARGEST) * self.rate;
            self.places[i * PLANE + axis] += step;
            self.places[j * PLANE + axis] -= step;
        }
    }

    fn push(&mut self, i: usize, j: usize) {
        let (offset, square) = self.between(i, j);
        if square <= 0.0 {
            return;
        }
        let (a, b) = self.curve;
        let size = 2.0 * b / ((APART + square) * (a * square.powf(b) + 1.0));
        for (axis, x) in offset.iter().enumerate() {
            let step = (size * x).clamp(-LARGEST, LARGEST) * self.rate;
            self.places[i * PLANE + axis] += step;
        }
    }
}

impl Curve {
    /// Least squares fit to 1 below `min_dist` and an exponential decay of scale `spread` beyond, on
    /// 300 distances up to three spreads (Gauss and Newton, damped).
    fn fit(min_dist: f64, spread: f64) -> Self {
        const POINTS: usize = 300;
        const STEPS: usize = 200;
        let points: Vec<(f64, f64)> = (0..POINTS)
            .map(|i| {
                let x = 3.0 * spread * i as f64 / (POINTS - 1) as f64;
                (
                    x,
                    if x < min_dist {
                        1.0
                    } else {
                        (-(x - min_dist) / spread).exp()
                    },
                )
            })
            .collect();
        let off = |c: Curve| {
            let off = |(x, y): &(f64, f64)| (1.0 / (1.0 + c.a * x.powf(2.0 * c.b)) - y).powi(2);
            points.iter().map(off).sum::<f64>()
        };
        let (mut best, mut damping) = (Curve { a: 1.0, b: 1.0 }, 1e-3);
        for _ in 0..STEPS {
            let (mut aa, mut ab, mut bb, mut ga, mut gb) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (x, y) in points.iter().filter(|(x, _)| *x > 0.0) {
                let power = x.powf(2.0 * best.b);
                let value = 1.0 / (1.0 + best.a * power);
                let by_a = -power * value * value;
                let by_b = -2.0 * best.a * power * x.ln() * value * value;
                (aa, ab, bb) = (aa + by_a * by_a, ab + by_a * by_b, bb + by_b * by_b);
                (ga, gb) = (ga + by_a * (value - y), gb + by_b * (value - y));
            }
            let (p, q) = (aa * (1.0 + damping), bb * (1.0 + damping));
            let determinant = p * q - ab * ab;
            let next = Curve {
                a: best.a - (q * ga - ab * gb) / determinant,
                b: best.b - (p * gb - ab * ga) / determinant,
            };
            if next.a > 0.0 && next.b > 0.0 && off(next) <= off(best) {
                (best, damping) = (next, damping / 3.0);
            } else {
                damping *= 4.0;
            }
        }
        best
    }
}

/// How far the nearest neighbours in a picture are near in the embedding (Venna and Kaski 2001), as
/// scikit-learn computes it: 1 when no far cell is drawn near. Needs the ranks of all cells, so the
/// time grows with the square of their number.
///
/// # Errors
/// As many neighbours as half of the cells, or more.
pub fn trustworthiness(
    embedding: crate::cells::Cells<'_>,
    picture: crate::cells::Cells<'_>,
    k: usize,
) -> std::result::Result<f64, Undefined> {
    let n = embedding.len();
    enough("cells for so many neighbours", n, 2 * k + 1)?;
    let near = crate::embedding::neighbors::exact(picture, k)?;
    let of_cell = |cell: usize| {
        let own = embedding.row(cell);
        let distance = |other: usize| {
            let pairs = own.iter().zip(embedding.row(other));
            pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        let all: Vec<f64> = (0..n).map(distance).collect();
        let rank = |other: u32| {
            let far = all[other as usize];
            // The cell itself is at distance 0 and has rank 0.
            let nearer = (0..n).filter(|&o| o != cell && all[o] < far).count();
            (nearer + 1).saturating_sub(k)
        };
        near.of(cell)
            .iter()
            .map(|&other| rank(other))
            .sum::<usize>()
    };
    let sums = crate::parallel::map(n, crate::parallel::cores(), of_cell);
    let total: usize = sums.iter().sum();
    let (n, k) = (n as f64, k as f64);
    Ok(1.0 - total as f64 * 2.0 / (n * k * (2.0 * n - 3.0 * k - 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::Cells;
    use crate::embedding::neighbors::exact;

    /// Values of umap-learn's `find_ab_params`.
    #[test]
    fn the_curve_is_umap_learns() {
        for (min_dist, a, b) in [(0.5, 0.583_030, 1.334_167), (0.1, 1.576_943, 0.895_061)] {
            let curve = Curve::fit(min_dist, 1.0);
            assert!(
                (curve.a - a).abs() < 1e-4 && (curve.b - b).abs() < 1e-4,
                "{curve:?}"
            );
        }
    }

    #[test]
    fn far_clouds_stay_apart_and_the_picture_depends_on_the_seed_alone() {
        let mut rng = Rng::new(8, "clouds");
        let values: Vec<f32> = (0..200 * 6)
            .map(|i| (rng.normal() + if i / 6 % 2 == 0 { 0.0 } else { 12.0 }) as f32)
            .collect();
        let cells = Cells::new("cells", &values, 6).unwrap();
        let graph = Graph::of_neighbors(&exact(cells, 14).unwrap());
        let settings = Settings {
            epochs: Some(100),
            ..Settings::default()
        };
        let picture = umap(&graph, &values, 6, &settings).unwrap();
        assert_eq!(picture, umap(&graph, &values, 6, &settings).unwrap());
        let other = Settings {
            seed: 1,
            ..settings
        };
        assert_ne!(picture, umap(&graph, &values, 6, &other).unwrap());
        let plane = Cells::new("picture", &picture, 2).unwrap();
        let near = exact(plane, 5).unwrap();
        let apart = (0..200).all(|c| near.of(c).iter().all(|&o| o as usize % 2 == c % 2));
        assert!(apart, "clouds mix");
        assert!(trustworthiness(cells, plane, 10).unwrap() > 0.9);
        assert!(umap(&graph, &values[..12], 6, &settings).is_err());
        let wide = Settings {
            min_dist: 2.0,
            ..settings
        };
        assert!(umap(&graph, &values, 6, &wide).is_err());
    }
}

//! Local quadratic regression of one variable on another, as Cleveland and Grosse's dloess computes it
//! with its default surface: exact fits at the vertices of a k-d tree, cubic Hermite interpolation
//! between them (Cleveland and Grosse, "Computational methods for local regression", 1991). The
//! difference to fitting at each point is larger than rounding, so it matters for the ranks of genes.

/// Share of the points that a leaf of the tree may hold, of those that a fit uses.
const CELL: f64 = 0.2;
/// By how much of its length the range of the points is widened on either side.
const MARGIN: f64 = 0.005;
/// Terms of a quadratic.
const TERMS: usize = 3;

/// A smoothed curve at the points it was fitted to.
#[derive(Debug, Clone, PartialEq)]
pub struct Loess {
    /// The value of the curve at each point.
    pub fitted: Vec<f64>,
    /// Vertices whose neighbours have too few different abscissae for a quadratic. There the smallest of
    /// all equally good fits is used.
    pub singular: usize,
}

/// Why there is no curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LoessError {
    /// A fit would use fewer points than it has to have.
    TooFewPoints {
        /// Points given.
        points: usize,
        /// Points needed with this span.
        needed: usize,
    },
    /// All neighbours of a vertex lie exactly on it.
    ZeroWidth {
        /// Where.
        at: f64,
        /// How many they are.
        neighbours: usize,
    },
}

/// Fits `y` on `x` by local quadratics over the nearest `span` of the points.
///
/// # Errors
/// When there are too few points, or too many of them coincide.
pub fn loess(x: &[f64], y: &[f64], span: f64) -> Result<Loess, LoessError> {
    let n = x.len();
    let neighbours = n.min((n as f64 * span + 1e-5).floor() as usize);
    if neighbours < TERMS + 1 {
        let needed = ((TERMS + 1) as f64 / span).ceil() as usize;
        return Err(LoessError::TooFewPoints { points: n, needed });
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| x[a].total_cmp(&x[b]));
    let points = Points {
        x: order.iter().map(|&i| x[i]).collect(),
        y: order.iter().map(|&i| y[i]).collect(),
        neighbours,
    };
    let leaf = (n as f64 * (span * CELL)).floor() as usize;
    let mut singular = 0;
    let mut vertices = Vec::new();
    for at in tree_vertices(&points.x, leaf) {
        let fit = points.fit(at)?;
        singular += usize::from(fit.singular);
        vertices.push((at, fit));
    }
    let fitted = x.iter().map(|&x| interpolate(&vertices, x)).collect();
    Ok(Loess { fitted, singular })
}

/// The vertices of the tree over sorted points, ascending: both ends of the widened range, and each
/// place where a range of more than `leaf` points is cut.
fn tree_vertices(x: &[f64], leaf: usize) -> Vec<f64> {
    let (low, high) = (x[0], x[x.len() - 1]);
    let least = 1e-10 * low.abs().max(high.abs()) + 1e-30;
    let margin = MARGIN * (high - low).max(least);
    let mut vertices = vec![low - margin, high + margin];
    // Ranges of points, half-open, with the vertices on either side of them.
    let mut open = vec![(0, x.len(), low - margin, high + margin)];
    while let Some((first, end, left, right)) = open.pop() {
        if end - first <= leaf || end - first < 2 {
            continue;
        }
        let last_below = cut_place(x, first, end);
        let cut = x[last_below];
        if cut == left || cut == right {
            continue;
        }
        vertices.push(cut);
        open.push((first, last_below + 1, left, cut));
        open.push((last_below + 1, end, cut, right));
    }
    vertices.sort_by(f64::total_cmp);
    vertices
}

/// The last point below the cut: the median, or the nearest place to it where the points on either side
/// differ; later ones first. The median again when an end of the range is reached first.
fn cut_place(x: &[f64], first: usize, end: usize) -> usize {
    // Counted from one, as the median of dloess is.
    let median = usize::midpoint(first + 1, end) - 1;
    let mut offset = 0_isize;
    loop {
        let place = median.wrapping_add_signed(offset);
        if place < first || place + 1 >= end || median as isize + offset < 0 {
            return median;
        }
        if x[place] != x[place + 1] {
            return place;
        }
        offset = if offset > 0 { -offset } else { 1 - offset };
    }
}

/// Value and slope of the curve at a vertex.
#[derive(Debug, Clone, Copy)]
struct Fit {
    value: f64,
    slope: f64,
    singular: bool,
}

/// Points sorted by abscissa.
struct Points {
    x: Vec<f64>,
    y: Vec<f64>,
    neighbours: usize,
}

impl Points {
    /// The quadratic around `at`, weighted by the tricube of the distance. The farthest neighbour has
    /// weight zero, so that it does not matter which of several equally far ones is counted.
    fn fit(&self, at: f64) -> Result<Fit, LoessError> {
        let (first, end) = self.nearest(at);
        let squared = |i: usize| (self.x[i] - at) * (self.x[i] - at);
        let radius = squared(first).max(squared(end - 1));
        if radius <= 0.0 {
            return Err(LoessError::ZeroWidth {
                at,
                neighbours: self.neighbours,
            });
        }
        let mut columns = [const { Vec::new() }; TERMS];
        let mut target = Vec::with_capacity(self.neighbours);
        for i in first..end {
            let distance = (squared(i) / radius).sqrt();
            let weight = (1.0 - distance.powi(3)).powi(3).sqrt();
            let from = self.x[i] - at;
            columns[0].push(weight);
            columns[1].push(weight * from);
            columns[2].push(weight * from * from);
            target.push(weight * self.y[i]);
        }
        let (terms, singular) = least_squares(columns, &target);
        Ok(Fit {
            value: terms[0],
            slope: terms[1],
            singular,
        })
    }

    /// The range of the nearest points.
    fn nearest(&self, at: f64) -> (usize, usize) {
        let middle = self.x.partition_point(|&x| x < at);
        let (mut first, mut end) = (middle, middle);
        while end - first < self.neighbours {
            let before = (first > 0).then(|| at - self.x[first - 1]);
            let after = (end < self.x.len()).then(|| self.x[end] - at);
            match (before, after) {
                (Some(b), Some(a)) if b <= a => first -= 1,
                (Some(_), None) => first -= 1,
                _ => end += 1,
            }
        }
        (first, end)
    }
}

/// The coefficients that bring the columns nearest to the target, by singular value decomposition
/// (one-sided Jacobi) of the columns scaled to length one; also whether a singular value was too small
/// to divide by.
fn least_squares(mut columns: [Vec<f64>; TERMS], target: &[f64]) -> ([f64; TERMS], bool) {
    let mut lengths = [1.0; TERMS];
    for (column, length) in columns.iter_mut().zip(&mut lengths) {
        let norm = dot(column, column).sqrt();
        if norm > 0.0 {
            *length = norm;
            for value in column {
                *value /= norm;
            }
        }
    }
    let mut turned = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
    orthogonalise(&mut columns, &mut turned);
    let sizes: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
    let largest = sizes.iter().copied().fold(0.0, f64::max);
    let tolerance = largest * 100.0 * f64::EPSILON;
    let mut terms = [0.0; TERMS];
    let mut singular = false;
    for (j, &size) in sizes.iter().enumerate() {
        if size <= tolerance {
            singular = true;
            continue;
        }
        let share = dot(&columns[j], target) / (size * size);
        for (term, turn) in terms.iter_mut().zip(&turned) {
            *term += turn[j] * share;
        }
    }
    for (term, length) in terms.iter_mut().zip(lengths) {
        *term /= length;
    }
    (terms, singular)
}

/// Turns pairs of columns until all are orthogonal; `turned` takes part in each turn.
fn orthogonalise(columns: &mut [Vec<f64>; TERMS], turned: &mut [[f64; TERMS]; TERMS]) {
    /// Jacobi sweeps converge quadratically: five or six are enough for three columns.
    const SWEEPS: usize = 60;
    for _ in 0..SWEEPS {
        let mut done = true;
        for (p, q) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b) = (dot(&columns[p], &columns[p]), dot(&columns[q], &columns[q]));
            let c = dot(&columns[p], &columns[q]);
            if c.abs() <= f64::EPSILON * (a * b).sqrt() || c == 0.0 {
                continue;
            }
            done = false;
            let zeta = (b - a) / (2.0 * c);
            let tangent = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
            let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
            let sine = cosine * tangent;
            let turn = |u: &mut f64, v: &mut f64| {
                (*u, *v) = (cosine * *u - sine * *v, sine * *u + cosine * *v);
            };
            let [left, right] = columns
                .get_disjoint_mut([p, q])
                .expect("p and q are different columns");
            for (u, v) in left.iter_mut().zip(right) {
                turn(u, v);
            }
            for row in turned.iter_mut() {
                let (mut u, mut v) = (row[p], row[q]);
                turn(&mut u, &mut v);
                (row[p], row[q]) = (u, v);
            }
        }
        if done {
            return;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The cubic through values and slopes of the vertices on either side.
fn interpolate(vertices: &[(f64, Fit)], x: f64) -> f64 {
    let after = vertices
        .partition_point(|(at, _)| *at < x)
        .clamp(1, vertices.len() - 1);
    let ((left, a), (right, b)) = (vertices[after - 1], vertices[after]);
    let width = right - left;
    let h = (x - left) / width;
    let rest = 1.0 - h;
    rest * rest * (1.0 + 2.0 * h) * a.value
        + h * h * (3.0 - 2.0 * h) * b.value
        + (h * rest * rest * a.slope - h * h * rest * b.slope) * width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quadratic_is_met_exactly_at_the_vertices_and_by_the_cubics_between() {
        let x: Vec<f64> = (0..60).map(|i| (f64::from(i) * 0.37).sin() * 3.0).collect();
        let y: Vec<f64> = x.iter().map(|x| 1.0 - 2.0 * x + 0.5 * x * x).collect();
        let fit = loess(&x, &y, 0.3).unwrap();
        assert_eq!(fit.singular, 0);
        for (found, wanted) in fit.fitted.iter().zip(&y) {
            assert!((found - wanted).abs() < 1e-9, "{found} {wanted}");
        }
    }

    /// Fitted values of scikit-misc 0.5.3 (dloess) for the same points.
    #[test]
    fn fits_agree_with_dloess() {
        let x: Vec<f64> = (0..40).map(|i| f64::from(i * i % 83) / 10.0).collect();
        let y: Vec<f64> = (0..40).map(|i| f64::from(i * 7 % 19) / 3.0).collect();
        let fit = loess(&x, &y, 0.3).unwrap();
        for (place, wanted) in DLOESS {
            let found = fit.fitted[place];
            assert!(
                (found - wanted).abs() < 1e-9 * wanted.abs(),
                "{place}: {found} {wanted}"
            );
        }
    }

    const DLOESS: [(usize, f64); 4] = [
        (0, 2.010_090_988_175_416),
        (7, 2.570_645_315_178_89),
        (20, 2.483_614_084_160_133_4),
        (39, 3.461_106_626_464_202_3),
    ];

    #[test]
    fn ties_take_the_smallest_fit_or_are_refused() {
        // Two abscissae carry no quadratic.
        let x: Vec<f64> = (0..40).map(|i| f64::from(i % 2)).collect();
        let y: Vec<f64> = x.iter().map(|x| 1.0 + x).collect();
        let error = loess(&x, &y, 0.3).unwrap_err();
        assert!(
            matches!(error, LoessError::ZeroWidth { neighbours: 12, .. }),
            "{error:?}"
        );
        let x: Vec<f64> = (0..40).map(|i| f64::from(i / 8)).collect();
        let fit = loess(&x, &x, 0.3).unwrap();
        assert!(fit.singular > 0);
        assert!(fit.fitted.iter().all(|v| v.is_finite()));
        let error = loess(&x[..13], &x[..13], 0.3).unwrap_err();
        let wanted = LoessError::TooFewPoints {
            points: 13,
            needed: 14,
        };
        assert_eq!(error, wanted);
    }
}

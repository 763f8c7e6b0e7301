//! The largest eigenvalues of a symmetric matrix with their vectors, at the cost of reducing it to a
//! tridiagonal one: about 4/3 n^3 operations whatever the spectrum, and n^2 for each vector.
//!
//! Householder's reduction, bisection with Sturm's count, inverse iteration (Golub and Van Loan, 8.3 to
//! 8.5; Parlett, The Symmetric Eigenvalue Problem, 4 and 7).

use crate::linalg::{Matrix, dot};
use crate::rng::Rng;

/// Inverse iteration converges in one or two steps; the rest is for clusters.
const ITERATIONS: usize = 4;
/// Matrices smaller than this count as zero; a quotient by its rounding is still finite.
const SMALLEST: f64 = 1e-200;
/// Halvings of an interval; 53 bits and the exponents between norm and rounding.
const HALVINGS: usize = 120;

/// The `k` largest eigenvalues of the symmetric `a`, descending, and their vectors as rows `[k, n]`.
///
/// Vectors of equal eigenvalues are some orthonormal basis, always the same one for the same matrix.
pub(crate) fn largest(a: Matrix, k: usize) -> (Vec<f64>, Matrix) {
    let n = a.rows;
    let k = k.min(n);
    let reduced = Tridiagonal::of(a);
    let bounds = reduced.bounds();
    let values: Vec<f64> = (0..k).map(|j| reduced.eigenvalue(j, bounds)).collect();
    let scale = bounds.0.abs().max(bounds.1.abs()).max(SMALLEST);
    let mut rng = Rng::new(0, "eigenvectors");
    let mut vectors = Matrix::zeros(k, n);
    for (j, &value) in values.iter().enumerate() {
        let mut x: Vec<f64> = (0..n).map(|_| rng.below(1 << 20) as f64 + 0.5).collect();
        for _ in 0..ITERATIONS {
            reduced.solve_shifted(value, scale, &mut x);
            // Twice is enough (Kahan): what rounding left of the others is gone after the second time.
            for _ in 0..2 {
                for other in vectors.values[..j * n].chunks_exact(n) {
                    let shared = dot(other, &x);
                    subtract(&mut x, shared, other);
                }
            }
            let norm = dot(&x, &x).sqrt();
            for x in &mut x {
                *x /= norm;
            }
        }
        vectors.values[j * n..(j + 1) * n].copy_from_slice(&x);
    }
    for vector in vectors.values.chunks_exact_mut(n) {
        reduced.back(vector);
    }
    (values, vectors)
}

fn subtract(row: &mut [f64], factor: f64, other: &[f64]) {
    let pairs = row.iter_mut().zip(other);
    pairs.for_each(|(x, y)| *x -= factor * y);
}

/// `Q^T A Q` with the reflections that make up `Q`.
struct Tridiagonal {
    diagonal: Vec<f64>,
    /// Entry i couples i and i + 1.
    off: Vec<f64>,
    /// Row i holds reflection i in its columns from i + 1 on: `1 - beta v v^T`.
    reflections: Matrix,
    betas: Vec<f64>,
}

impl Tridiagonal {
    /// Reads the upper triangle alone.
    fn of(mut a: Matrix) -> Self {
        let n = a.rows;
        let mut betas = vec![0.0; n];
        let mut off = vec![0.0; n.saturating_sub(1)];
        let (mut v, mut p) = (vec![0.0; n], vec![0.0; n]);
        for i in 0..n.saturating_sub(1) {
            let first = i + 1;
            let (v, p) = (&mut v[first..], &mut p[first..]);
            v.copy_from_slice(&a.values[i * n + first..(i + 1) * n]);
            let norm = dot(v, v).sqrt();
            off[i] = if v[0] > 0.0 { -norm } else { norm };
            v[0] -= off[i];
            let square = dot(v, v);
            if square == 0.0 {
                continue;
            }
            betas[i] = 2.0 / square;
            a.values[i * n + first..(i + 1) * n].copy_from_slice(v);
            reflect(&mut a, first, v, p, betas[i]);
        }
        Self {
            diagonal: (0..n).map(|i| a.values[i * n + i]).collect(),
            off,
            reflections: a,
            betas,
        }
    }

    /// An interval that holds all eigenvalues (Gershgorin).
    fn bounds(&self) -> (f64, f64) {
        let radius = |i: usize| {
            let before = i.checked_sub(1).map_or(0.0, |j| self.off[j].abs());
            before + self.off.get(i).map_or(0.0, |x| x.abs())
        };
        let of = |sign: f64| {
            let ends = (self.diagonal.iter().enumerate()).map(move |(i, d)| d + sign * radius(i));
            ends.collect::<Vec<f64>>()
        };
        let low = of(-1.0).into_iter().fold(f64::INFINITY, f64::min);
        let high = of(1.0).into_iter().fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    }

    /// How many eigenvalues are above `x`: positive pivots of the shifted matrix.
    fn above(&self, x: f64, tiny: f64) -> usize {
        let mut count = 0;
        let mut pivot = 1.0;
        for (i, d) in self.diagonal.iter().enumerate() {
            let coupled = i.checked_sub(1).map_or(0.0, |j| self.off[j].powi(2));
            pivot = d - x - coupled / pivot;
            if pivot.abs() < tiny {
                pivot = -tiny;
            }
            count += usize::from(pivot > 0.0);
        }
        count
    }

    /// The eigenvalue with `j` above it.
    fn eigenvalue(&self, j: usize, (mut low, mut high): (f64, f64)) -> f64 {
        let tiny = (high.abs().max(low.abs()) * f64::EPSILON).max(f64::MIN_POSITIVE);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if middle <= low || middle >= high {
                break;
            }
            if self.above(middle, tiny * f64::EPSILON) > j {
                low = middle;
            } else {
                high = middle;
            }
        }
        f64::midpoint(low, high)
    }

    /// `x` becomes a multiple of `(T - value)^-1 x`: elimination with partial pivoting, where a pivot of
    /// zero counts as rounding of `scale`.
    fn solve_shifted(&self, value: f64, scale: f64, x: &mut [f64]) {
        let n = x.len();
        let tiny = scale * f64::EPSILON;
        // Row i of the upper factor: its diagonal and two entries to the right.
        let mut upper = vec![[0.0; 3]; n];
        let mut row = [
            self.diagonal[0] - value,
            self.off.first().copied().unwrap_or(0.0),
            0.0,
        ];
        for i in 0..n.saturating_sub(1) {
            let right = self.off.get(i + 1).copied().unwrap_or(0.0);
            let mut next = [self.off[i], self.diagonal[i + 1] - value, right];
            if next[0].abs() > row[0].abs() {
                std::mem::swap(&mut row, &mut next);
                x.swap(i, i + 1);
            }
            if row[0].abs() < tiny {
                row[0] = tiny;
            }
            let factor = next[0] / row[0];
            upper[i] = row;
            x[i + 1] -= factor * x[i];
            row = [next[1] - factor * row[1], next[2] - factor * row[2], 0.0];
        }
        if row[0].abs() < tiny {
            row[0] = tiny;
        }
        upper[n - 1] = row;
        for i in (0..n).rev() {
            let known: f64 = (1..3)
                .map(|k| upper[i][k] * x.get(i + k).unwrap_or(&0.0))
                .sum();
            x[i] = (x[i] - known) / upper[i][0];
        }
        // Its size says nothing; kept from overflowing.
        let peak = x.iter().fold(0.0f64, |peak, x| peak.max(x.abs()));
        for x in x.iter_mut() {
            *x /= peak;
        }
    }

    /// A vector of the tridiagonal matrix becomes one of the matrix it was made of.
    fn back(&self, x: &mut [f64]) {
        let n = x.len();
        for i in (0..n.saturating_sub(1)).rev() {
            let v = &self.reflections.values[i * n + i + 1..(i + 1) * n];
            let tail = &mut x[i + 1..];
            let shared = self.betas[i] * dot(v, tail);
            subtract(tail, shared, v);
        }
    }
}

/// The block of `a` from `first` on is reflected on both sides; its upper triangle alone is kept.
fn reflect(a: &mut Matrix, first: usize, v: &[f64], p: &mut [f64], beta: f64) {
    let n = a.rows;
    p.fill(0.0);
    for i in 0..v.len() {
        let row = &a.values[(first + i) * n + first + i..(first + i + 1) * n];
        // Entry (i, j) of the triangle is entry (j, i) too.
        p[i] += dot(row, &v[i..]);
        subtract(&mut p[i + 1..], -v[i], &row[1..]);
    }
    let half = beta * beta * dot(p, v) / 2.0;
    for (p, v) in p.iter_mut().zip(v) {
        *p = beta * *p - half * v;
    }
    for i in 0..v.len() {
        let row = &mut a.values[(first + i) * n + first + i..(first + i + 1) * n];
        let others = v[i..].iter().zip(&p[i..]);
        for (x, (v_j, p_j)) in row.iter_mut().zip(others) {
            *x -= v[i] * p_j + p[i] * v_j;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Q D Q^T` with orthonormal rows of Q made by reflections.
    fn with_spectrum(values: &[f64]) -> Matrix {
        let n = values.len();
        let mut rng = Rng::new(3, "spectrum");
        let mut a = Matrix::zeros(n, n);
        for (i, value) in values.iter().enumerate() {
            a.values[i * n + i] = *value;
        }
        for _ in 0..3 {
            let v: Vec<f64> = (0..n).map(|_| rng.below(2001) as f64 - 1000.0).collect();
            let beta = 2.0 / dot(&v, &v);
            let mut reflection = Matrix::zeros(n, n).plus_diagonal(1.0);
            for i in 0..n {
                let row = &mut reflection.values[i * n..(i + 1) * n];
                subtract(row, beta * v[i], &v);
            }
            a = reflection.times(&a).times(&reflection);
        }
        a
    }

    fn check(spectrum: &[f64], k: usize) {
        let a = with_spectrum(spectrum);
        let mut expected = spectrum.to_vec();
        expected.sort_by(|x, y| y.total_cmp(x));
        let scale = expected.iter().fold(0.0f64, |s, x| s.max(x.abs()));
        let (values, vectors) = largest(a.clone(), k);
        for (found, expected) in values.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 1e-13 * scale,
                "{found} {expected}"
            );
        }
        for (i, value) in values.iter().enumerate() {
            let x = vectors.row(i);
            for j in 0..=i {
                let product = dot(x, vectors.row(j));
                let identity = f64::from(u8::from(i == j));
                assert!((product - identity).abs() < 1e-12, "{i} {j} {product}");
            }
            let image = Matrix::from_rows([x]).times(&a);
            for (found, x) in image.values.iter().zip(x) {
                assert!((found - value * x).abs() <= 1e-12 * scale);
            }
        }
    }

    #[test]
    fn values_and_vectors_of_a_known_spectrum() {
        let spread: Vec<f64> = (0..40).map(|i| 0.8f64.powi(i)).collect();
        check(&spread, 40);
        let near: Vec<f64> = (0..60).map(|i| 1.0 + 1e-9 * f64::from(i % 7)).collect();
        check(&near, 12);
        check(&[-3.0, 5.0, 2.0], 3);
        check(&[2.0, 1.0], 2);
        check(&[7.0], 1);
    }

    #[test]
    fn equal_and_zero_eigenvalues_have_an_orthonormal_basis() {
        check(&[4.0, 4.0, 4.0, 1.0, 1.0, 0.0, 0.0, 0.0], 8);
        check(&[0.0; 5], 5);
        check(&[1.0; 30], 30);
    }

    /// A matrix that is diagonal already has nothing to be reduced.
    #[test]
    fn a_diagonal_matrix_is_its_own_answer() {
        let mut a = Matrix::zeros(4, 4);
        for (i, value) in [1.0, 3.0, 3.0, -2.0].into_iter().enumerate() {
            a.values[i * 4 + i] = value;
        }
        let (values, vectors) = largest(a, 1);
        assert_eq!(values.len(), 1);
        assert!((values[0] - 3.0).abs() < 1e-14);
        assert!(vectors.row(0)[0].abs() + vectors.row(0)[3].abs() < 1e-14);
    }
}

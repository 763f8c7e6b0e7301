//! The little dense linear algebra that the baselines need.

use crate::eigen::largest;
use crate::{Error, Result};

/// A matrix, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            values: vec![0.0; rows * columns],
        }
    }

    /// Rows of equal length.
    pub(crate) fn from_rows<'a>(rows: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let (mut n, mut columns, mut values) = (0, 0, Vec::new());
        for row in rows {
            n += 1;
            columns = row.len();
            values.extend_from_slice(row);
        }
        Self {
            rows: n,
            columns,
            values,
        }
    }

    pub(crate) fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.columns..(i + 1) * self.columns]
    }

    fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.values[i * self.columns..(i + 1) * self.columns]
    }

    pub(crate) fn transposed(&self) -> Self {
        let mut out = Self::zeros(self.columns, self.rows);
        for i in 0..self.rows {
            for (j, &x) in self.row(i).iter().enumerate() {
                out.values[j * self.rows + i] = x;
            }
        }
        out
    }

    /// `self * other`.
    pub(crate) fn times(&self, other: &Self) -> Self {
        let mut out = Self::zeros(self.rows, other.columns);
        for i in 0..self.rows {
            let target = &mut out.values[i * other.columns..(i + 1) * other.columns];
            for (&x, row) in self
                .row(i)
                .iter()
                .zip(other.values.chunks_exact(other.columns))
            {
                if x != 0.0 {
                    target.iter_mut().zip(row).for_each(|(t, r)| *t += x * r);
                }
            }
        }
        out
    }

    /// `self * self^T`, the products of all pairs of rows.
    pub(crate) fn gram(&self) -> Self {
        let mut out = Self::zeros(self.rows, self.rows);
        for i in 0..self.rows {
            for j in 0..=i {
                let dot = dot(self.row(i), self.row(j));
                out.values[i * self.rows + j] = dot;
                out.values[j * self.rows + i] = dot;
            }
        }
        out
    }

    pub(crate) fn plus_diagonal(mut self, x: f64) -> Self {
        for i in 0..self.rows.min(self.columns) {
            self.values[i * self.columns + i] += x;
        }
        self
    }

    /// Mean of each column.
    pub(crate) fn column_means(&self) -> Vec<f64> {
        let mut means = vec![0.0; self.columns];
        for i in 0..self.rows {
            means.iter_mut().zip(self.row(i)).for_each(|(m, x)| *m += x);
        }
        for m in &mut means {
            *m /= self.rows as f64;
        }
        means
    }

    /// Each row less `center`.
    pub(crate) fn centered(mut self, center: &[f64]) -> Self {
        for i in 0..self.rows {
            let row = self.row_mut(i);
            row.iter_mut().zip(center).for_each(|(x, c)| *x -= c);
        }
        self
    }
}

/// Sum of the products, eight partial sums at a time so that they fit vector registers.
pub(crate) fn dot(x: &[f64], y: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    for (x, y) in x.iter().zip(y) {
        for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
            *sum += x * y;
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// Solves `a x = b` for symmetric positive definite `a` (Cholesky).
pub(crate) fn solve(what: &'static str, mut a: Matrix, mut b: Matrix) -> Result<Matrix> {
    let n = a.rows;
    let largest = (0..n).map(|i| a.values[i * n + i]).fold(0.0, f64::max);
    for i in 0..n {
        for j in 0..=i {
            let (upper, row) = a.values.split_at(i * n);
            let own = &row[..=i];
            let other = if j == i {
                own
            } else {
                &upper[j * n..=j * n + j]
            };
            let rest = own[j] - dot(&own[..j], &other[..j]);
            let value = if i == j {
                // A pivot within rounding of zero solves nothing.
                if rest <= largest * f64::EPSILON * n as f64 {
                    return Err(Error::Singular { what });
                }
                rest.sqrt()
            } else {
                rest / other[j]
            };
            a.values[i * n + j] = value;
        }
    }
    let width = b.columns;
    for i in 0..n {
        let (before, row) = b.values.split_at_mut(i * width);
        let row = &mut row[..width];
        for (j, solved) in before.chunks_exact(width).enumerate() {
            subtract(row, a.values[i * n + j], solved);
        }
        for x in &mut *row {
            *x /= a.values[i * n + i];
        }
    }
    for i in (0..n).rev() {
        let (row, after) = b.values[i * width..].split_at_mut(width);
        for (j, solved) in after.chunks_exact(width).enumerate() {
            subtract(row, a.values[(i + 1 + j) * n + i], solved);
        }
        for x in &mut *row {
            *x /= a.values[i * n + i];
        }
    }
    Ok(b)
}

fn subtract(row: &mut [f64], factor: f64, other: &[f64]) {
    row.iter_mut()
        .zip(other)
        .for_each(|(x, y)| *x -= factor * y);
}

/// The `k` left singular vectors of largest singular value, as columns `[rows, k]`; the entry of
/// largest size of each is positive.
pub(crate) fn left_singular(what: &'static str, a: &Matrix, k: usize) -> Result<Matrix> {
    let wide = a.columns >= a.rows;
    let transposed = a.transposed();
    let gram = if wide { a } else { &transposed }.gram();
    let size = gram.rows as f64;
    let (values, vectors) = largest(gram, k);
    let peak = values.first().copied().unwrap_or(0.0);
    let mut out = Matrix::zeros(a.rows, k);
    for d in 0..k {
        let value = values.get(d).copied().unwrap_or(0.0);
        if value <= peak * f64::EPSILON * size || value <= 0.0 {
            return Err(Error::Singular { what });
        }
        let vector = vectors.row(d);
        let mut left: Vec<f64> = if wide {
            vector.to_vec()
        } else {
            (0..a.rows).map(|i| dot(a.row(i), vector)).collect()
        };
        let norm = dot(&left, &left).sqrt();
        let peak = left
            .iter()
            .copied()
            .fold(0.0, |p: f64, x| if x.abs() > p.abs() { x } else { p });
        for x in &mut left {
            *x *= peak.signum() / norm;
        }
        for (i, x) in left.iter().enumerate() {
            out.values[i * k + d] = *x;
        }
    }
    Ok(out)
}

/// An orthonormal basis of the rows, by Gram and Schmidt done twice; a row that lies in the span of
/// those before becomes zero.
pub(crate) fn orthonormal(mut a: Matrix) -> Matrix {
    let width = a.columns;
    for i in 0..a.rows {
        let (before, row) = a.values.split_at_mut(i * width);
        let row = &mut row[..width];
        let size = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(width) {
                subtract(row, dot(row, other), other);
            }
        }
        let norm = dot(row, row).sqrt();
        let inverse = if norm > size * 1e-12 { 1.0 / norm } else { 0.0 };
        for x in row {
            *x *= inverse;
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(rows: usize, columns: usize) -> Matrix {
        let mut rng = Rng::new(1, "matrix");
        let mut matrix = Matrix::zeros(rows, columns);
        for x in &mut matrix.values {
            *x = rng.below(2001) as f64 / 1000.0 - 1.0;
        }
        matrix
    }

    #[test]
    fn a_solution_solves_and_a_singular_system_is_refused() {
        let a = random(7, 9).gram();
        let b = random(7, 3);
        let x = solve("test", a.clone(), b.clone()).unwrap();
        for (found, expected) in a.times(&x).values.iter().zip(&b.values) {
            assert!((found - expected).abs() < 1e-10);
        }
        let flat = random(7, 4).gram();
        assert!(matches!(
            solve("test", flat, b),
            Err(Error::Singular { .. })
        ));
    }

    /// Tall and wide: columns are orthonormal, and the projection on all of them is the identity.
    #[test]
    fn singular_vectors_are_orthonormal_and_span() {
        for (rows, columns) in [(6, 11), (11, 6)] {
            let a = random(rows, columns);
            let rank = rows.min(columns);
            let u = left_singular("test", &a, rank).unwrap();
            let products = u.transposed().gram();
            for i in 0..rank {
                for j in 0..rank {
                    let expected = f64::from(u8::from(i == j));
                    assert!((products.values[i * rank + j] - expected).abs() < 1e-10);
                }
            }
            let again = u.times(&u.transposed().times(&a));
            for (found, expected) in again.values.iter().zip(&a.values) {
                assert!((found - expected).abs() < 1e-10);
            }
            assert!(left_singular("test", &a, 1).is_ok());
        }
        let zero = Matrix::zeros(3, 3);
        assert!(matches!(
            left_singular("test", &zero, 1),
            Err(Error::Singular { .. })
        ));
    }
}

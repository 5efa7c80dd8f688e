//! `A + λI = L Lᵀ` tile by tile, and its solutions. f64 throughout.

use rayon::prelude::*;

use crate::product::{LEAST, View, padded, product};
use crate::symmetric::{Symmetric, TILE, at, side};
use crate::{Misfit, fits};

/// A matrix that has no Cholesky factor.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a matrix is not positive definite with {ridge:e} added to its diagonal (row {row})")]
pub struct NotPositive {
    /// What was added.
    pub ridge: f64,
    /// Where it was seen.
    pub row: usize,
}

/// The factor `L` of a symmetric positive definite matrix. Diagonal tiles hold the inverse of L's.
pub struct Cholesky(pub(crate) Symmetric<f64>);

impl Cholesky {
    /// Of `A + ridge·I`; takes `A`'s memory. Right-looking: tile column `k` is solved, then taken from all behind it.
    pub fn new(mut a: Symmetric<f64>, ridge: f64) -> Result<Self, NotPositive> {
        let n = a.n();
        let tiles = n.div_ceil(TILE);
        for k in 0..tiles {
            let s = side(n, k);
            let inverse = inverse_factor(&a.tiles[at(k, k)], s, ridge).map_err(|row| {
                let row = k * TILE + row;
                NotPositive { ridge, row }
            })?;
            // L_ik = A_ik L_kk⁻ᵀ
            let column: Vec<Vec<f64>> = (k + 1..tiles)
                .into_par_iter()
                .map(|i| {
                    let rows = side(n, i);
                    let mut out = vec![0f64; rows * s];
                    let (left, right) =
                        (View::rows(&a.tiles[at(i, k)], s), View::rows(&inverse, s));
                    product((rows, s, s), 1.0, left, right.t(), &mut out);
                    out
                })
                .collect();
            a.tiles[at(k, k)] = inverse;
            let behind: Vec<(usize, usize)> = (k + 1..tiles)
                .flat_map(|i| (k + 1..=i).map(move |j| (i, j)))
                .collect();
            // Row i of tiles starts at at(i, 0), so those behind column k are not one slice.
            let mut open: Vec<(&(usize, usize), Vec<f64>)> = behind
                .iter()
                .map(|place| (place, std::mem::take(&mut a.tiles[at(place.0, place.1)])))
                .collect();
            open.par_iter_mut().for_each(|((i, j), tile)| {
                let (left, right) = (&column[i - k - 1], &column[j - k - 1]);
                let (left, right) = (View::rows(left, s), View::rows(right, s));
                product((side(n, *i), s, side(n, *j)), -1.0, left, right.t(), tile);
            });
            for ((i, j), tile) in open {
                a.tiles[at(*i, *j)] = tile;
            }
            for (i, tile) in (k + 1..).zip(column) {
                a.tiles[at(i, k)] = tile;
            }
        }
        Ok(Self(a))
    }

    /// `X` of `(A + λI) X = B` for `B (n, columns)` row by row, in place.
    pub fn solve(&self, b: &mut [f64], columns: usize) -> Result<(), Misfit> {
        let n = self.0.n();
        fits("values of a right-hand side", n * columns, b.len())?;
        if columns == 0 || n == 0 {
            return Ok(());
        }
        let mut parts: Vec<&mut [f64]> = b.chunks_mut(TILE * columns).collect();
        for k in 0..parts.len() {
            let (front, behind) = parts.split_at_mut(k + 1);
            let done = self.through_diagonal(k, front[k], columns, false);
            behind.par_iter_mut().enumerate().for_each(|(i, part)| {
                let i = k + 1 + i;
                let tile = View::rows(&self.0.tiles[at(i, k)], side(n, k));
                let size = (side(n, i), side(n, k), columns);
                product(size, -1.0, tile, View::rows(done, columns), part);
            });
        }
        for k in (0..parts.len()).rev() {
            let (front, rest) = parts.split_at_mut(k);
            let done = self.through_diagonal(k, rest[0], columns, true);
            front.par_iter_mut().enumerate().for_each(|(i, part)| {
                let tile = View::rows(&self.0.tiles[at(k, i)], side(n, i)).t();
                let size = (side(n, i), side(n, k), columns);
                product(size, -1.0, tile, View::rows(done, columns), part);
            });
        }
        Ok(())
    }

    /// A part of the right-hand side times the inverse of diagonal tile `k`, or its transpose.
    fn through_diagonal<'a>(
        &self,
        k: usize,
        part: &'a mut [f64],
        columns: usize,
        transposed: bool,
    ) -> &'a [f64] {
        let s = side(self.0.n(), k);
        let inverse = View::rows(&self.0.tiles[at(k, k)], s);
        let inverse = match transposed {
            true => inverse.t(),
            false => inverse,
        };
        let mut out = vec![0f64; part.len()];
        product(
            (s, s, columns),
            1.0,
            inverse,
            View::rows(part, columns),
            &mut out,
        );
        part.copy_from_slice(&out);
        part
    }

    /// `L⁻¹ x` for each row of `x (rows, n)`: its squared length is `xᵀ (A + λI)⁻¹ x`. A row of the result depends on its own
    /// row of `x` alone, bit for bit.
    pub fn whitened(&self, x: &[f64]) -> Vec<f64> {
        let n = self.0.n();
        let mut out = x.to_vec();
        if n > 0 {
            out.par_chunks_mut(LEAST * n).for_each(|rows| {
                let mut whole = padded(rows, n).into_owned();
                self.whiten(&mut whole);
                rows.copy_from_slice(&whole[..rows.len()]);
            });
        }
        out
    }

    fn whiten(&self, rows: &mut [f64]) {
        let n = self.0.n();
        let m = rows.len() / n;
        let mut parts: Vec<Vec<f64>> = Vec::new();
        for k in 0..n.div_ceil(TILE) {
            let s = side(n, k);
            let columns = k * TILE..k * TILE + s;
            let mut part = Vec::with_capacity(m * s);
            for row in rows.chunks_exact(n) {
                part.extend_from_slice(&row[columns.clone()]);
            }
            for (j, before) in parts.iter().enumerate() {
                let w = side(n, j);
                let tile = View::rows(&self.0.tiles[at(k, j)], w);
                product((m, w, s), -1.0, View::rows(before, w), tile.t(), &mut part);
            }
            let inverse = View::rows(&self.0.tiles[at(k, k)], s);
            let mut solved = vec![0f64; m * s];
            product(
                (m, s, s),
                1.0,
                View::rows(&part, s),
                inverse.t(),
                &mut solved,
            );
            for (row, solved) in rows.chunks_exact_mut(n).zip(solved.chunks_exact(s)) {
                row[columns.clone()].copy_from_slice(solved);
            }
            parts.push(solved);
        }
    }
}

/// The inverse of the lower factor of `a + ridge·I`, `(s, s)` with zeros above; an error is the row without a positive pivot.
fn inverse_factor(a: &[f64], s: usize, ridge: f64) -> Result<Vec<f64>, usize> {
    let mut l = a.to_vec();
    for i in 0..s {
        let (above, row) = l.split_at_mut(i * s);
        for j in 0..i {
            let other = &above[j * s..(j + 1) * s];
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
        let pivot = row[i] + ridge - dot(&row[..i], &row[..i]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return Err(i);
        }
        row[i] = pivot.sqrt();
    }
    // Row i of the inverse: (e_i − Σ_{j<i} l_ij · row j) / l_ii.
    let mut inverse = vec![0f64; s * s];
    for i in 0..s {
        let (above, row) = inverse.split_at_mut(i * s);
        let row = &mut row[..=i];
        for j in 0..i {
            let factor = l[i * s + j];
            let other = &above[j * s..j * s + j + 1];
            row.iter_mut()
                .zip(other)
                .for_each(|(r, o)| *r -= factor * o);
        }
        row[i] = 1.0;
        let pivot = l[i * s + i];
        row.iter_mut().for_each(|r| *r /= pivot);
    }
    Ok(inverse)
}

/// In eight sums, so that it vectorises, always in the same order.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a8, a1) = a.as_chunks::<8>();
    let (b8, b1) = b.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a1.iter().zip(b1).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes within a tile, at its end, and over several ragged ones.
    #[test]
    fn solutions_solve() {
        for n in [1, 7, 256, 257, 600] {
            let rows: Vec<f64> = (0..n * (n + 3))
                .map(|i| ((i * i * 31 + i * 17) % 1009) as f64 / 500.0 - 1.0)
                .collect();
            let mut a = Symmetric::zeros(n);
            a.add_rows(&rows);
            let columns = 3;
            let b: Vec<f64> = (0..n * columns).map(|i| (i % 11) as f64 - 5.0).collect();
            let factor = Cholesky::new(a.clone(), 0.5).unwrap();
            let mut x = b.clone();
            factor.solve(&mut x, columns).unwrap();
            let size = x.iter().fold(0f64, |m, v| m.max(v.abs()));
            for i in 0..n {
                for c in 0..columns {
                    let ax: f64 = (0..n).map(|j| a.get(i, j) * x[j * columns + c]).sum();
                    let got = ax + 0.5 * x[i * columns + c];
                    let scale = size * a.get(i, i) * n as f64;
                    assert!(
                        (got - b[i * columns + c]).abs() < 1e-12 * scale.max(1.0),
                        "{n}"
                    );
                }
            }
            // xᵀ A⁻¹ x against the solution.
            let row: Vec<f64> = (0..n).map(|i| b[i * columns]).collect();
            let want: f64 = (0..n).map(|i| row[i] * x[i * columns]).sum();
            let got: f64 = factor.whitened(&row).iter().map(|v| v * v).sum();
            let twice = factor.whitened(&[row.as_slice(), &row].concat());
            assert_eq!(twice[n..], factor.whitened(&row));
            assert!(
                (got - want).abs() <= 1e-9 * want.abs().max(1.0),
                "{n}: {got} {want}"
            );
        }
    }

    #[test]
    fn a_singular_matrix_is_named() {
        let mut a = Symmetric::zeros(300);
        a.add_rows(&vec![1.0; 300]);
        let Err(error) = Cholesky::new(a.clone(), 0.0) else {
            panic!("rank 1");
        };
        assert_eq!(error.row, 1);
        assert!(Cholesky::new(a, 1e-3).is_ok());
    }
}

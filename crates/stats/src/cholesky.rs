//! `A + λI = L Lᵀ` strip by strip, and its solutions.

use std::ops::Range;

use rayon::prelude::*;

use crate::product::{Real, View, block, padded, product};
use crate::symmetric::{Symmetric, side};
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

/// The factor `L` of a symmetric positive definite matrix, in its strips. Where a strip meets the diagonal it holds the inverse of
/// L's square there.
pub struct Cholesky<T: Real = f64>(pub(crate) Symmetric<T>);

impl<T: Real> Cholesky<T> {
    /// Of `A + ridge·I`; takes `A`'s memory. By halves, so that nearly all of the work is large products.
    pub fn new(mut a: Symmetric<T>, ridge: f64) -> Result<Self, NotPositive> {
        let strips = a.strips.len();
        factor(&mut a, 0..strips, ridge)?;
        Ok(Self(a))
    }

    /// `X` of `(A + λI) X = B` for `B (n, columns)` row by row, in place.
    pub fn solve(&self, b: &mut [T], columns: usize) -> Result<(), Misfit> {
        fits("values of a right-hand side", self.0.n() * columns, b.len())?;
        if b.is_empty() {
            return Ok(());
        }
        // Turned, so that the strips of L are what a product lays out, read as they lie.
        let rows = || {
            b.chunks(T::STRIP * columns)
                .map(|b| b.chunks_exact(columns))
        };
        let mut parts: Vec<Vec<T>> = rows()
            .map(|rows| {
                let turned = (0..columns).map(|c| rows.clone().map(move |row| row[c]));
                turned.flatten().collect()
            })
            .collect();
        let all = 0..parts.len();
        self.forward(all.clone(), &mut parts, columns);
        self.backward(all, &mut parts, columns);
        for (b, part) in b.chunks_mut(T::STRIP * columns).zip(parts) {
            let height = part.len() / columns;
            for (r, row) in b.chunks_exact_mut(columns).enumerate() {
                let values = part.iter().skip(r).step_by(height);
                row.iter_mut().zip(values).for_each(|(to, v)| *to = *v);
            }
        }
        Ok(())
    }

    /// `X L⁻ᵀ` for `rows` rows, in the columns of these strips, all that `parts` has: `(rows, side)` of each.
    fn forward(&self, strips: Range<usize>, parts: &mut [Vec<T>], rows: usize) {
        let Some((left, right)) = halves(&strips) else {
            let inverse = self.inverse(strips.start).t();
            return self.through_diagonal(inverse, &mut parts[0], rows);
        };
        let (before, behind) = parts.split_at_mut(left.len());
        self.forward(left.clone(), before, rows);
        let work = behind.par_iter_mut().zip(right.clone());
        work.with_max_len(1).for_each(|(part, i)| {
            let terms = left.clone().zip(&*before).map(|(k, x)| {
                let tile = at(&self.0, i * T::STRIP, k).t();
                (T::STRIP, View::rows(x, T::STRIP), tile)
            });
            T::products((rows, part.len() / rows), T::MINUS, terms, part);
        });
        self.forward(right, behind, rows);
    }

    /// `X L⁻¹` likewise.
    fn backward(&self, strips: Range<usize>, parts: &mut [Vec<T>], rows: usize) {
        let Some((left, right)) = halves(&strips) else {
            return self.through_diagonal(self.inverse(strips.start), &mut parts[0], rows);
        };
        let (before, behind) = parts.split_at_mut(left.len());
        self.backward(right.clone(), behind, rows);
        let work = before.par_iter_mut().zip(left.clone());
        work.with_max_len(1).for_each(|(part, i)| {
            let terms = right.clone().zip(&*behind).map(|(k, x)| {
                let height = x.len() / rows;
                (height, View::rows(x, height), at(&self.0, k * T::STRIP, i))
            });
            T::products((rows, T::STRIP), T::MINUS, terms, part);
        });
        self.backward(left, before, rows);
    }

    /// What the diagonal of strip `k` holds.
    fn inverse(&self, k: usize) -> View<'_, T> {
        at(&self.0, k * T::STRIP, k)
    }

    /// `part` times a square.
    fn through_diagonal(&self, square: View<'_, T>, part: &mut Vec<T>, rows: usize) {
        let s = part.len() / rows;
        let mut out = vec![T::ZERO; part.len()];
        let group = rows.div_ceil(2).next_multiple_of(32);
        let groups = out
            .par_chunks_mut(group * s)
            .zip(part.par_chunks(group * s));
        groups.for_each(|(out, part)| {
            T::set((out.len() / s, s, s), View::rows(part, s), square, out);
        });
        *part = out;
    }

    /// `L⁻¹ x` for each row of `x (rows, n)`: its squared length is `xᵀ (A + λI)⁻¹ x`. A row of the result depends on its own
    /// row of `x` alone, bit for bit.
    pub fn whitened(&self, x: &[T]) -> Vec<T> {
        const ROWS: usize = 32;
        let n = self.0.n();
        let mut out = x.to_vec();
        if n > 0 {
            out.par_chunks_mut(ROWS * n).for_each(|rows| {
                let whole = padded(rows, n).into_owned();
                let side = |k| k * T::STRIP..n.min((k + 1) * T::STRIP);
                let strips = 0..self.0.strips.len();
                let part = |k| whole.chunks_exact(n).flat_map(move |row| &row[side(k)]);
                let mut parts: Vec<Vec<T>> =
                    strips.clone().map(|k| part(k).copied().collect()).collect();
                self.forward(strips, &mut parts, whole.len() / n);
                for (k, part) in parts.iter().enumerate() {
                    let to = rows.chunks_exact_mut(n);
                    for (row, part) in to.zip(part.chunks_exact(side(k).len())) {
                        row[side(k)].copy_from_slice(part);
                    }
                }
            });
        }
        out
    }
}

/// Rows from `row` on of strip `k`.
pub(crate) fn at<T: Real>(a: &Symmetric<T>, row: usize, k: usize) -> View<'_, T> {
    let width = side::<T>(a.n(), k);
    View::rows(&a.strips[k][(row - k * T::STRIP) * width..], width)
}

/// Two halves of several strips.
fn halves(strips: &Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let middle = strips.start + strips.len() / 2;
    (strips.len() > 1).then_some((strips.start..middle, middle..strips.end))
}

/// The square of these strips becomes its factor, given that what stands left of it was taken out:
/// `[A₁₁, ·; A₂₁, A₂₂]` to `[L₁₁, ·; A₂₁ L₁₁⁻ᵀ, L₂₂]` with `L₂₂` of `A₂₂ − L₂₁ L₂₁ᵀ`.
fn factor<T: Real>(
    a: &mut Symmetric<T>,
    strips: Range<usize>,
    ridge: f64,
) -> Result<(), NotPositive> {
    let n = a.n();
    let Some((left, right)) = halves(&strips) else {
        let (top, s) = (strips.start * T::STRIP, side::<T>(n, strips.start));
        let own = &mut a.strips[strips.start][..s * s];
        let square: Vec<f64> = own.iter().map(|v| v.to_f64()).collect();
        let inverse = inverse_factor(&square, s, ridge).map_err(|row| {
            let row = top + row;
            NotPositive { ridge, row }
        })?;
        let pairs = own.iter_mut().zip(inverse);
        pairs.for_each(|(to, v)| *to = T::from_f64(v));
        return Ok(());
    };
    factor(a, left.clone(), ridge)?;
    let (top, bottom) = (right.start * T::STRIP, n.min(right.end * T::STRIP));
    below(a, left.clone(), top..bottom);
    // Blocks of rows of the second half's strips, less what the first half's give there.
    let (before, rest) = a.strips.split_at_mut(right.start);
    let from =
        |row: usize, k: usize| View::rows(&before[k][(row - k * T::STRIP) * T::STRIP..], T::STRIP);
    let mut work = Vec::new();
    let rows = ((bottom - top) * right.len() / 48).next_multiple_of(32);
    let rows = rows.clamp(256, 2048);
    for (j, strip) in right.clone().zip(rest) {
        let (first, width) = (j * T::STRIP, side::<T>(n, j));
        let parts = strip[..(bottom - first) * width].chunks_mut(rows * width);
        work.extend(
            parts
                .enumerate()
                .map(|(i, part)| (first, first + i * rows, width, part)),
        );
    }
    let work = work.into_par_iter().with_max_len(1);
    work.for_each(|(first, row, width, part)| {
        let terms = left
            .clone()
            .map(|k| (T::STRIP, from(row, k), from(first, k).t()));
        T::products((part.len() / width, width), T::MINUS, terms, part);
    });
    factor(a, right, ridge)
}

/// `A₂₁ L₁₁⁻ᵀ` for these rows of strips whose square is a factor already, each block of rows by itself.
fn below<T: Real>(a: &mut Symmetric<T>, strips: Range<usize>, rows: Range<usize>) {
    let height = block(rows.len());
    let mut squares = Vec::new();
    let mut work: Vec<Vec<&mut [T]>> = Vec::new();
    work.resize_with(rows.len().div_ceil(height), Vec::new);
    for (k, strip) in strips.clone().zip(&mut a.strips[strips.clone()]) {
        let start = (rows.start - k * T::STRIP) * T::STRIP;
        let (above, own) = strip.split_at_mut(start);
        squares.push((k, &*above));
        let parts = own[..rows.len() * T::STRIP].chunks_mut(height * T::STRIP);
        work.iter_mut()
            .zip(parts)
            .for_each(|(work, part)| work.push(part));
    }
    work.into_par_iter().with_max_len(1).for_each(|mut parts| {
        let m = parts[0].len() / T::STRIP;
        let mut solved = vec![T::ZERO; m * T::STRIP];
        for j in 0..parts.len() {
            let (done, rest) = parts.split_at_mut(j);
            let part = &mut *rest[0];
            let terms = done.iter().zip(&squares).map(|(x, (k, square))| {
                let other = View::rows(
                    &square[(squares[j].0 - k) * T::STRIP * T::STRIP..],
                    T::STRIP,
                );
                (T::STRIP, View::rows(x, T::STRIP), other.t())
            });
            T::products((m, T::STRIP), T::MINUS, terms, part);
            let inverse = View::rows(squares[j].1, T::STRIP).t();
            let size = (m, T::STRIP, T::STRIP);
            T::set(size, View::rows(part, T::STRIP), inverse, &mut solved);
            part.copy_from_slice(&solved);
        }
    });
}

/// The inverse of the lower factor of `a + ridge·I`, `(s, s)` with zeros above; an error is the row without a positive pivot.
///
/// Of halves: `L⁻¹ = [L₁₁⁻¹, 0; −L₂₂⁻¹ L₂₁ L₁₁⁻¹, L₂₂⁻¹]` with `L₂₁ = A₂₁ L₁₁⁻ᵀ`, `L₂₂` of `A₂₂ − L₂₁ L₂₁ᵀ`.
fn inverse_factor(a: &[f64], s: usize, ridge: f64) -> Result<Vec<f64>, usize> {
    if s <= 48 {
        return small_inverse_factor(a, s, ridge);
    }
    let h = (s / 2).next_multiple_of(8);
    let r = s - h;
    let part = |rows: Range<usize>, columns: Range<usize>| -> Vec<f64> {
        let rows = a[rows.start * s..rows.end * s].chunks_exact(s);
        rows.flat_map(|row| &row[columns.clone()])
            .copied()
            .collect()
    };
    let first = inverse_factor(&part(0..h, 0..h), h, ridge)?;
    let below = part(h..s, 0..h);
    let mut l21 = vec![0f64; r * h];
    let first_t = View::rows(&first, h).t();
    product((r, h, h), 1.0, View::rows(&below, h), first_t, &mut l21);
    let mut rest = part(h..s, h..s);
    let l21_rows = View::rows(&l21, h);
    product((r, h, r), -1.0, l21_rows, l21_rows.t(), &mut rest);
    let second = inverse_factor(&rest, r, ridge).map_err(|row| h + row)?;
    let (mut half, mut corner) = (vec![0f64; r * h], vec![0f64; r * h]);
    product((r, r, h), -1.0, View::rows(&second, r), l21_rows, &mut half);
    let half = View::rows(&half, h);
    product((r, h, h), 1.0, half, View::rows(&first, h), &mut corner);
    let mut inverse = vec![0f64; s * s];
    for (to, from) in inverse.chunks_exact_mut(s).zip(first.chunks_exact(h)) {
        to[..h].copy_from_slice(from);
    }
    let left = corner.chunks_exact(h).zip(second.chunks_exact(r));
    for (to, (left, right)) in inverse[h * s..].chunks_exact_mut(s).zip(left) {
        to[..h].copy_from_slice(left);
        to[h..].copy_from_slice(right);
    }
    Ok(inverse)
}

fn small_inverse_factor(a: &[f64], s: usize, ridge: f64) -> Result<Vec<f64>, usize> {
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
        for n in [1, 7, 128, 129, 600] {
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

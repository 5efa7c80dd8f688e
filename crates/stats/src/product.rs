//! Products of matrices on one thread, by the `gemm` crate.
#![allow(unsafe_code)]

use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// f32 or f64.
pub trait Real:
    Copy + Send + Sync + PartialEq + std::fmt::Debug + std::ops::AddAssign + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −1.
    const MINUS: Self;
    /// Exact for both.
    fn from_f32(value: f32) -> Self;
    /// Exact for both.
    fn to_f64(self) -> f64;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const MINUS: Self = -1.0;

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const MINUS: Self = -1.0;

    fn from_f32(value: f32) -> Self {
        Self::from(value)
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// Part of a slice seen as a matrix: the value of row `i` and column `j` is at `i·row + j·column`.
#[derive(Clone, Copy)]
pub struct View<'a, T> {
    values: &'a [T],
    row: usize,
    column: usize,
}

impl<'a, T> View<'a, T> {
    /// Rows of `width` values.
    pub fn rows(values: &'a [T], width: usize) -> Self {
        Self {
            values,
            row: width,
            column: 1,
        }
    }

    /// From column `first` on.
    pub fn from_column(self, first: usize) -> Self {
        Self {
            values: &self.values[first * self.column..],
            ..self
        }
    }

    /// From row `first` on.
    pub fn from_row(self, first: usize) -> Self {
        Self {
            values: &self.values[first * self.row..],
            ..self
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// `C ← C + sign·A B` for `A (m, k)`, `B (k, n)`, `C (m, n)` without gaps.
pub fn product<T: Real>(
    (m, k, n): (usize, usize, usize),
    sign: T,
    a: View<'_, T>,
    b: View<'_, T>,
    c: &mut [T],
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && c.len() == m * n);
    // SAFETY: every value of the three matrices is inside its slice, as asserted; `c` is borrowed alone and has no two
    // elements in one place.
    unsafe {
        gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            true,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            T::ONE,
            sign,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Rows that are multiplied together, at most and at least.
const MOST: usize = 256;
pub(crate) const LEAST: usize = 32;

/// Products that are added up at once. `gemm` cuts longer sums where their number of rows makes it convenient.
const DEPTH: usize = 512;

/// `X B`, `(rows, n)`, for rows of `k` values and `B (k, n)`, on all threads. A row of the result depends on its own row of `X`
/// alone, bit for bit, however many there are: groups are padded to whole blocks, and sums are cut at fixed places.
pub fn scores<T: Real>(x: &[T], k: usize, b: View<'_, T>, n: usize) -> Vec<T> {
    let rows = x.len() / k.max(1);
    let mut out = vec![T::ZERO; rows * n];
    if out.is_empty() || k == 0 {
        return out;
    }
    // Both cores of a small machine have something to do, large groups share the packing of B.
    let group = rows.div_ceil(8).next_multiple_of(LEAST).min(MOST);
    let groups = out.par_chunks_mut(group * n).zip(x.par_chunks(group * k));
    groups.for_each(|(out, x)| {
        let padded = padded(x, k);
        let full = padded.len() / k;
        let mut whole = vec![T::ZERO; full * n];
        for first in (0..k).step_by(DEPTH) {
            let left = View::rows(&padded, k).from_column(first);
            let size = (full, DEPTH.min(k - first), n);
            product(size, T::ONE, left, b.from_row(first), &mut whole);
        }
        out.copy_from_slice(&whole[..out.len()]);
    });
    out
}

/// Rows of `k` values with zeros behind them, so that there are a multiple of [`LEAST`].
pub(crate) fn padded<T: Real>(x: &[T], k: usize) -> std::borrow::Cow<'_, [T]> {
    let rows = x.len() / k;
    let full = rows.next_multiple_of(LEAST);
    if rows == full {
        return x.into();
    }
    let mut all = vec![T::ZERO; full * k];
    all[..x.len()].copy_from_slice(x);
    all.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        for (k, n) in [(7, 3), (768, 1100), (4000, 10), (5, 1)] {
            let b: Vec<f32> = (0..k * n)
                .map(|i| ((i * i + 3 * i) % 97) as f32 / 97.0 - 0.5)
                .collect();
            let x: Vec<f32> = (0..600 * k)
                .map(|i| ((i * 31) % 89) as f32 / 89.0 - 0.5)
                .collect();
            let all = scores(&x, k, View::rows(&b, n), n);
            for count in [1, 2, 31, 33, 64, 300] {
                for first in [0, 5, 299] {
                    let some = scores(&x[first * k..(first + count) * k], k, View::rows(&b, n), n);
                    assert_eq!(some, all[first * n..(first + count) * n], "{k} {n} {count}");
                }
            }
        }
    }
}

//! Products of matrices: of f32 by `candlewick-kernels`, of f64 by the `gemm` crate.
#![allow(unsafe_code)]

use std::cell::RefCell;

use candlewick_kernels::plain::{self, Matrix, Start};
use gemm::{Parallelism, gemm};
use rayon::prelude::*;

/// f32 or f64.
pub trait Real:
    bytemuck::Pod + Send + Sync + PartialEq + std::fmt::Debug + std::ops::AddAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −1.
    const MINUS: Self;
    /// Rows are multiplied in multiples of this, where the values of one shall not depend on their number.
    const LEAST: usize;
    /// Columns of a strip of a symmetric matrix.
    const STRIP: usize;
    /// Whether strips are too narrow for a good product.
    const PAIRS: bool;
    /// Exact for both.
    fn from_f32(value: f32) -> Self;
    /// Exact for both.
    fn to_f64(self) -> f64;
    /// Rounded.
    fn from_f64(value: f64) -> Self;

    /// `C ← C + sign·Σ A B` over `terms`, `(k, A, B)` with `A (m, k)` and `B (k, n)`, for `C (m, n)` without gaps; on this thread.
    fn products<'a>(
        size: (usize, usize),
        sign: Self,
        terms: impl Iterator<Item = (usize, View<'a, Self>, View<'a, Self>)>,
        c: &mut [Self],
    );

    /// `C ← A B` for `A (m, k)`, `B (k, n)`, `C (m, n)` without gaps; on this thread.
    fn set((m, k, n): (usize, usize, usize), a: View<'_, Self>, b: View<'_, Self>, c: &mut [Self]) {
        c.fill(Self::ZERO);
        Self::products((m, n), Self::ONE, std::iter::once((k, a, b)), c);
    }
}

/// Products that are added up from 0 before they are added to what is there already.
pub(crate) const DEPTH: usize = 1024;

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const MINUS: Self = -1.0;
    const LEAST: usize = 1;
    const STRIP: usize = 256;
    const PAIRS: bool = false;

    fn from_f32(value: f32) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        f64::from(self)
    }

    fn from_f64(value: f64) -> Self {
        value as f32
    }

    /// A row of C depends on its own row of A alone, bit for bit.
    fn products<'a>(
        (m, n): (usize, usize),
        sign: Self,
        terms: impl Iterator<Item = (usize, View<'a, Self>, View<'a, Self>)>,
        c: &mut [Self],
    ) {
        thread_local! {
            static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
        }
        assert_eq!(c.len(), m * n);
        SUMS.with_borrow_mut(|sums| {
            if sums.len() < m * n {
                sums.resize(m * n, 0.0);
            }
            let sums = &mut sums[..m * n];
            let mut flush = |sums: &[f32]| {
                let pairs = c.iter_mut().zip(sums);
                match sign < 0.0 {
                    true => pairs.for_each(|(c, s)| *c -= s),
                    false => pairs.for_each(|(c, s)| *c += s),
                }
            };
            let mut depth = 0;
            for (k, a, b) in terms {
                for first in (0..k).step_by(DEPTH) {
                    let part = DEPTH.min(k - first);
                    if depth + part > DEPTH {
                        flush(sums);
                        depth = 0;
                    }
                    let start = match depth {
                        0 => Start::Zero,
                        _ => Start::Sum,
                    };
                    let (a, b) = (a.from_column(first).matrix(), b.from_row(first).matrix());
                    plain::product((m, part, n), a, b, sums, n, start, 1);
                    depth += part;
                }
            }
            if depth > 0 {
                flush(sums);
            }
        });
    }

    fn set((m, k, n): (usize, usize, usize), a: View<'_, Self>, b: View<'_, Self>, c: &mut [Self]) {
        assert_eq!(c.len(), m * n);
        if k == 0 || k > DEPTH {
            c.fill(0.0);
            return product((m, k, n), 1.0, a, b, c);
        }
        plain::product((m, k, n), a.matrix(), b.matrix(), c, n, Start::Zero, 1);
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const MINUS: Self = -1.0;
    const LEAST: usize = 32;
    const STRIP: usize = 128;
    const PAIRS: bool = true;

    fn from_f32(value: f32) -> Self {
        Self::from(value)
    }

    fn to_f64(self) -> f64 {
        self
    }

    fn from_f64(value: f64) -> Self {
        value
    }

    fn products<'a>(
        (m, n): (usize, usize),
        sign: Self,
        terms: impl Iterator<Item = (usize, View<'a, Self>, View<'a, Self>)>,
        c: &mut [Self],
    ) {
        // `gemm` cuts longer sums where its number of rows makes it convenient.
        const DEPTH: usize = 512;
        assert_eq!(c.len(), m * n);
        if m == 0 || n == 0 {
            return;
        }
        for (k, a, b) in terms {
            for first in (0..k).step_by(DEPTH) {
                let (a, b) = (a.from_column(first), b.from_row(first));
                let k = DEPTH.min(k - first);
                assert!(a.holds(m, k) && b.holds(k, n));
                // SAFETY: every value of the three matrices is inside its slice, as asserted; `c` is borrowed alone and has
                // no two elements in one place.
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
                        1.0,
                        sign,
                        false,
                        false,
                        false,
                        Parallelism::None,
                    );
                }
            }
        }
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

impl<'a> View<'a, f32> {
    fn matrix(self) -> Matrix<'a> {
        Matrix {
            values: self.values,
            row: self.row,
            column: self.column,
        }
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
    T::products((m, n), sign, std::iter::once((k, a, b)), c);
}

/// Rows of a result that one thread computes at a time. It does not depend on the number of threads.
pub(crate) fn block(rows: usize) -> usize {
    rows.div_ceil(8).next_multiple_of(32).clamp(192, 2048)
}

/// `X B`, `(rows, n)`, for rows of `k` values and `B (k, n)`, on all threads. A row of the result depends on its own row of `X`
/// alone, bit for bit, however many there are: groups are padded to whole blocks, and sums are cut at fixed places.
pub fn scores<T: Real>(x: &[T], k: usize, b: View<'_, T>, n: usize) -> Vec<T> {
    scores_with(x, k, b, n, |_, _| {})
}

/// The same, of which `f(x, out)` changes groups of rows.
fn scores_with<T: Real>(
    x: &[T],
    k: usize,
    b: View<'_, T>,
    n: usize,
    f: impl Fn(&[T], &mut [T]) + Sync,
) -> Vec<T> {
    let rows = x.len() / k.max(1);
    let mut out = vec![T::ZERO; rows * n];
    if out.is_empty() || k == 0 {
        return out;
    }
    let group = share(rows).next_multiple_of(T::LEAST);
    let groups = out.par_chunks_mut(group * n).zip(x.par_chunks(group * k));
    groups.with_max_len(1).for_each(|(out, x)| {
        let padded = padded(x, k);
        let full = padded.len() / k;
        if full * n == out.len() {
            T::set((full, k, n), View::rows(&padded, k), b, out);
        } else {
            let mut whole = vec![T::ZERO; full * n];
            T::set((full, k, n), View::rows(&padded, k), b, &mut whole);
            out.copy_from_slice(&whole[..out.len()]);
        }
        f(x, out);
    });
    out
}

/// Rows that a thread takes at a time where a row does not depend on the others: few groups, as each lays out B anew.
pub(crate) fn share(rows: usize) -> usize {
    rows.div_ceil(2 * rayon::current_num_threads())
        .clamp(1, 1024)
}

/// `cos(x, y)`, `(rows of x, rows of y)`, for rows of `d` values in `parts` equally long parts. Products in f32, norms in f64: off by
/// at most `d·2⁻²⁴`. A row depends on its own row of `x` alone, bit for bit. Sums are means over parts, so that the cosine of rows
/// put beside themselves is theirs, bit for bit, where there are 2, 4, 8 … parts. The cosine with 0 is not a number.
pub fn cosines(x: &[f32], y: &[f32], d: usize, parts: usize) -> Vec<f32> {
    let parts = parts.max(1);
    let (width, share) = ((d / parts).max(1), 1.0 / parts as f64);
    let norm = |row: &[f32]| {
        let squares: f64 = row.chunks_exact(width).map(square).sum();
        (squares * share).sqrt().recip()
    };
    let other: Vec<f64> = y.chunks_exact(d.max(1)).map(norm).collect();
    // Of all parts but the first, whose products are added in the end.
    let part = |rows: &[f32], part: usize| -> Vec<f32> {
        let rows = rows.chunks_exact(d.max(1));
        rows.flat_map(|row| &row[part * width..(part + 1) * width])
            .copied()
            .collect()
    };
    let mut sums = Vec::new();
    for i in 1..parts {
        let (x, y) = (part(x, i), part(y, i));
        let more = scores(&x, width, View::rows(&y, width).t(), other.len());
        match sums.is_empty() {
            true => sums = more,
            false => sums.iter_mut().zip(more).for_each(|(sum, m)| *sum += m),
        }
    }
    let scaled = |x: &[f32], out: &mut [f32], sums: &[f32]| {
        let rows = x.chunks_exact(d).zip(out.chunks_exact_mut(other.len()));
        for (r, (x, out)) in rows.enumerate() {
            let own = norm(x) * share;
            if !sums.is_empty() {
                let sums = &sums[r * other.len()..];
                out.iter_mut().zip(sums).for_each(|(s, more)| *s += more);
            }
            let pairs = out.iter_mut().zip(&other);
            pairs.for_each(|(s, other)| *s = (f64::from(*s) * own * other) as f32);
        }
    };
    if parts == 1 {
        let b = View::rows(y, d).t();
        return scores_with(x, d, b, other.len(), |x, out| scaled(x, out, &[]));
    }
    let (first, b) = (part(x, 0), part(y, 0));
    let mut out = scores(&first, width, View::rows(&b, width).t(), other.len());
    scaled(x, &mut out, &sums);
    out
}

/// `|x|²` in f64, in eight sums, so that it vectorises.
fn square(x: &[f32]) -> f64 {
    let (x8, x1) = x.as_chunks::<8>();
    let mut sums = [0f64; 8];
    for x in x8 {
        for i in 0..8 {
            sums[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    let rest: f64 = x1.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    sums.iter().sum::<f64>() + rest
}

/// Rows of `k` values with zeros behind them, so that there are a multiple of [`Real::LEAST`].
pub(crate) fn padded<T: Real>(x: &[T], k: usize) -> std::borrow::Cow<'_, [T]> {
    let rows = x.len() / k;
    let full = rows.next_multiple_of(T::LEAST);
    if rows == full {
        return x.into();
    }
    let mut all = vec![T::ZERO; full * k];
    all[..x.len()].copy_from_slice(x);
    all.into()
}

/// `max(X B, 0)` to `out (rows, n)` on this thread, of sums of any length from 0. A row depends on its own alone, bit for bit.
pub(crate) fn rectified(x: &[f32], k: usize, b: View<'_, f32>, n: usize, out: &mut [f32]) {
    let size = (x.len() / k.max(1), k, n);
    plain::product(size, Matrix::rows(x, k), b.matrix(), out, n, Start::Zero, 1);
    rectify(out);
}

fn rectify(values: &mut [f32]) {
    values.iter_mut().for_each(|v| *v = v.max(0.0));
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

    #[test]
    fn cosines_are_those_in_f64() {
        let d = 771;
        let x: Vec<f32> = (0..70 * d)
            .map(|i| ((i * 31) % 89) as f32 / 89.0 - 0.4)
            .collect();
        let y = &x[5 * d..40 * d];
        let got = cosines(&x, y, d, 1);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let pairs = a.iter().zip(b);
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for (a, row) in x.chunks(d).zip(got.chunks(35)) {
            for (b, got) in y.chunks(d).zip(row) {
                let want = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
                assert!((f64::from(*got) - want).abs() < 2e-6, "{got} {want}");
            }
        }
        assert_eq!(cosines(&x[3 * d..4 * d], y, d, 1), got[3 * 35..4 * 35]);
    }
}

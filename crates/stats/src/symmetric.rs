//! A symmetric matrix of which one triangle is kept, in strips of columns.

use rayon::prelude::*;

use crate::pages::Values;
use crate::product::{DEPTH, Real, View, block, product};
use crate::{Misfit, fits};

/// A symmetric `(n, n)` matrix: strip `j` holds columns `s j..` from row `s j` down, row by row, `s`
/// being [`Real::STRIP`], less where the matrix ends; about `n²/2` values.
///
/// A sum of `m` products in f32 is off by at most `(1024 + m / 1024)·ε·Σ|h_i h_j|`, whether it was taken at once or merged.
#[derive(Debug, PartialEq)]
pub struct Symmetric<T: Real> {
    n: usize,
    pub(crate) strips: Vec<Values<T>>,
}

/// Columns of strip `j`.
pub(crate) fn side<T: Real>(n: usize, j: usize) -> usize {
    T::STRIP.min(n - j * T::STRIP)
}

impl<T: Real> Clone for Symmetric<T> {
    fn clone(&self) -> Self {
        Self {
            n: self.n,
            strips: self.strips.par_iter().with_max_len(1).cloned().collect(),
        }
    }
}

/// A block of rows in one strip or in two: first column, first row, values, those beside with their width.
type Part<'a, T> = (usize, usize, &'a mut [T], Option<(&'a mut [T], usize)>);

impl<T: Real> Symmetric<T> {
    /// All zeros.
    pub fn zeros(n: usize) -> Self {
        let strip = |j| Values::zeros((n - j * T::STRIP) * side::<T>(n, j));
        Self {
            n,
            strips: (0..n.div_ceil(T::STRIP)).map(strip).collect(),
        }
    }

    /// The value of row `i` and column `j` is `f(i, j)`, asked where `i ≥ j / s · s`.
    pub fn from_fn(n: usize, f: impl Fn(usize, usize) -> T + Sync) -> Self {
        let mut new = Self::zeros(n);
        new.each_block(|(first, j), block| {
            let width = side::<T>(n, j);
            for (r, row) in block.chunks_exact_mut(width).enumerate() {
                for (c, value) in row.iter_mut().enumerate() {
                    *value = f(first + r, j * T::STRIP + c);
                }
            }
        });
        new
    }

    /// Rows and columns.
    pub fn n(&self) -> usize {
        self.n
    }

    /// The value of row `i` and column `j`.
    pub fn get(&self, i: usize, j: usize) -> T {
        let (i, j) = (i.max(j), i.min(j));
        let strip = j / T::STRIP;
        self.strips[strip][(i - strip * T::STRIP) * side::<T>(self.n, strip) + j % T::STRIP]
    }

    /// `f((row, strip), values)` for blocks of rows of each strip, on all threads.
    fn each_block(&mut self, f: impl Fn((usize, usize), &mut [T]) + Sync) {
        let n = self.n;
        let blocks: Vec<((usize, usize), &mut [T])> = self
            .strips
            .iter_mut()
            .enumerate()
            .flat_map(|(j, strip)| {
                let rows = block(n - j * T::STRIP);
                let blocks = strip.chunks_mut(rows * side::<T>(n, j)).enumerate();
                blocks.map(move |(i, values)| ((j * T::STRIP + i * rows, j), values))
            })
            .collect();
        blocks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|(place, values)| f(place, values));
    }

    /// Adds `H Hᵀ` of `H (n, k)`, row by row: about `n² k` multiplications, half those of the whole matrix.
    pub fn add_columns(&mut self, h: &[T], k: usize) {
        let n = self.n;
        let h = View::rows(h, k);
        if T::PAIRS {
            return self.add_by_pairs(h, k);
        }
        self.each_block(|(first, j), values| {
            let width = side::<T>(n, j);
            let (left, right) = (h.from_row(first), h.from_row(j * T::STRIP).t());
            let rows = values.len() / width;
            product((rows, k, width), T::ONE, left, right, values);
        });
    }

    /// The same for narrow strips, two of them at a time below the square of the first.
    fn add_by_pairs(&mut self, h: View<'_, T>, k: usize) {
        let n = self.n;
        let rows = 2 * T::STRIP;
        let mut work = Vec::new();
        for (pair, strips) in self.strips.chunks_mut(2).enumerate() {
            let column = 2 * pair * T::STRIP;
            let (one, two) = strips.split_at_mut(1);
            let width = side::<T>(n, 2 * pair);
            let (square, below) = one[0].split_at_mut(width * width);
            work.push((column, column, square, None));
            if let [two] = two {
                let other = side::<T>(n, 2 * pair + 1);
                let parts = below.chunks_mut(rows * width).enumerate();
                let parts = parts.zip(two.chunks_mut(rows * other));
                work.extend(parts.map(|((i, a), b)| {
                    (column, column + T::STRIP + i * rows, a, Some((b, other)))
                }));
            }
        }
        let each = |sums: &mut Vec<T>, (column, row, one, two): Part<'_, T>| {
            let (left, right) = (h.from_row(row), h.from_row(column).t());
            let width = T::STRIP.min(n - column);
            let m = one.len() / width;
            let Some((two, other)) = two else {
                return product((m, k, width), T::ONE, left, right, one);
            };
            sums.clear();
            sums.resize(m * (width + other), T::ZERO);
            product((m, k, width + other), T::ONE, left, right, sums);
            let to = one.chunks_exact_mut(width).zip(two.chunks_exact_mut(other));
            for ((one, two), sums) in to.zip(sums.chunks_exact(width + other)) {
                let (a, b) = sums.split_at(width);
                one.iter_mut().zip(a).for_each(|(to, v)| *to += *v);
                two.iter_mut().zip(b).for_each(|(to, v)| *to += *v);
            }
        };
        work.into_par_iter().for_each_init(Vec::new, each);
    }

    /// Adds `Hᵀ H` of rows of `n` values.
    pub fn add_rows(&mut self, rows: &[T]) {
        let n = self.n.max(1);
        for rows in rows.chunks(DEPTH * n) {
            let k = rows.len() / n;
            let mut columns = vec![T::ZERO; rows.len()];
            for (i, row) in rows.chunks_exact(n).enumerate() {
                for (column, value) in columns.chunks_exact_mut(k).zip(row) {
                    column[i] = *value;
                }
            }
            self.add_columns(&columns, k);
        }
    }

    /// Adds another matrix of the same size.
    pub fn merge(&mut self, other: &Self) -> Result<(), Misfit> {
        fits("rows of a symmetric matrix", self.n, other.n)?;
        self.strips
            .par_iter_mut()
            .zip(&other.strips)
            .for_each(|(strip, other)| {
                strip
                    .iter_mut()
                    .zip(other.iter())
                    .for_each(|(a, b)| *a += *b)
            });
        Ok(())
    }

    /// Value by value.
    pub fn map<U: Real>(&self, f: impl Fn(T) -> U + Sync) -> Symmetric<U> {
        Symmetric::from_fn(self.n, |i, j| f(self.get(i, j)))
    }

    /// Mean of the diagonal.
    pub fn diagonal_mean(&self) -> f64 {
        let sum: f64 = (0..self.n).map(|i| self.get(i, i).to_f64()).sum();
        sum / self.n as f64
    }

    /// The lower triangle row by row, `n (n + 1) / 2` values.
    pub fn packed(&self) -> Vec<T> {
        (0..self.n)
            .flat_map(|i| (0..=i).map(move |j| self.get(i, j)))
            .collect()
    }

    /// From what [`packed`](Self::packed) gave.
    pub fn unpacked(n: usize, values: &[T]) -> Result<Self, Misfit> {
        fits("values of a triangle", n * (n + 1) / 2, values.len())?;
        Ok(Self::from_fn(n, |i, j| {
            let (i, j) = (i.max(j), i.min(j));
            values[i * (i + 1) / 2 + j]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// 300 columns reach into a second, ragged strip; 1100 rows into a second batch.
    #[test]
    fn products_are_the_plain_sums_and_shards_add_up() {
        let (n, m) = (300, 1100);
        let rows = ramp(n * m);
        let mut gram = Symmetric::<f32>::zeros(n);
        gram.add_rows(&rows);
        let mut exact = Symmetric::<f64>::zeros(n);
        exact.add_rows(&rows.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        for (i, j) in [
            (0, 0),
            (3, 299),
            (299, 3),
            (256, 255),
            (256, 256),
            (299, 299),
        ] {
            let rows = &rows;
            let column = |j| (0..m).map(move |r| f64::from(rows[r * n + j]));
            let want: f64 = column(i).zip(column(j)).map(|(a, b)| a * b).sum();
            let size: f64 = column(i).zip(column(j)).map(|(a, b)| (a * b).abs()).sum();
            assert!((exact.get(i, j) - want).abs() < 1e-12 * size);
            let bound = (1024.0 + 2.0) * f64::from(f32::EPSILON) * size;
            assert!((f64::from(gram.get(i, j)) - want).abs() < bound);
        }
        for shards in [1, 2, 5] {
            let mut merged = Symmetric::<f32>::zeros(n);
            for shard in rows.chunks(m / shards * n) {
                let mut part = Symmetric::zeros(n);
                part.add_rows(shard);
                merged.merge(&part).unwrap();
            }
            for (a, b) in merged.packed().iter().zip(exact.packed()) {
                assert!((f64::from(*a) - b).abs() < 1e-3, "{shards}: {a} {b}");
            }
        }
        assert_eq!(Symmetric::unpacked(n, &gram.packed()).unwrap(), gram);
        assert!(gram.merge(&Symmetric::zeros(n + 1)).is_err());
    }
}

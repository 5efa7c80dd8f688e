//! A symmetric matrix of which one triangle is kept, in square tiles.

use rayon::prelude::*;

use crate::product::{Real, View, product};
use crate::{Misfit, fits};

/// Rows and columns of a tile; the last ones may be smaller.
pub(crate) const TILE: usize = 256;

/// Rows of features that are added together: short enough that f32 sums stay near the pairwise ones.
const BATCH: usize = 512;

/// A symmetric `(n, n)` matrix: tiles `(i, j)` with `i ≥ j`, about `n²/2` values.
///
/// A sum of `m` products in T is off by at most `(BATCH + m / BATCH)·ε·Σ|h_i h_j|`, whether it was taken at once or merged.
#[derive(Debug, Clone, PartialEq)]
pub struct Symmetric<T> {
    n: usize,
    pub(crate) tiles: Vec<Vec<T>>,
}

/// Where tile `(i, j)`, `i ≥ j`, is.
pub(crate) fn at(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// Rows of tile row `i`.
pub(crate) fn side(n: usize, i: usize) -> usize {
    TILE.min(n - i * TILE)
}

/// The tile rows and columns, in the order of tiles.
fn places(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n.div_ceil(TILE)).flat_map(|i| (0..=i).map(move |j| (i, j)))
}

impl<T: Real> Symmetric<T> {
    /// All zeros.
    pub fn zeros(n: usize) -> Self {
        let tile = |(i, j)| vec![T::ZERO; side(n, i) * side(n, j)];
        Self {
            n,
            tiles: places(n).map(tile).collect(),
        }
    }

    /// The value of row `i` and column `j` is `f(i, j)`, asked where `i / 256 ≥ j / 256`.
    pub fn from_fn(n: usize, f: impl Fn(usize, usize) -> T + Sync) -> Self {
        let mut new = Self::zeros(n);
        new.each_tile(|(i, j), tile| {
            let width = side(n, j);
            for (r, row) in tile.chunks_exact_mut(width).enumerate() {
                for (c, value) in row.iter_mut().enumerate() {
                    *value = f(i * TILE + r, j * TILE + c);
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
        let (ti, tj) = (i / TILE, j / TILE);
        self.tiles[at(ti, tj)][(i % TILE) * side(self.n, tj) + j % TILE]
    }

    fn each_tile(&mut self, f: impl Fn((usize, usize), &mut [T]) + Sync) {
        let places: Vec<(usize, usize)> = places(self.n).collect();
        self.tiles
            .par_iter_mut()
            .zip(places)
            .for_each(|(tile, place)| f(place, tile));
    }

    /// Adds `Hᵀ H` of rows of `n` values. Twice the multiplications of one triangle, half those of the whole.
    pub fn add_rows(&mut self, rows: &[T]) {
        let n = self.n;
        for rows in rows.chunks(BATCH * n.max(1)) {
            let k = rows.len() / n;
            let h = View::rows(rows, n);
            self.each_tile(|(i, j), tile| {
                let (left, right) = (h.from_column(i * TILE).t(), h.from_column(j * TILE));
                product((side(n, i), k, side(n, j)), T::ONE, left, right, tile);
            });
        }
    }

    /// Adds another matrix of the same size.
    pub fn merge(&mut self, other: &Self) -> Result<(), Misfit> {
        fits("rows of a symmetric matrix", self.n, other.n)?;
        self.tiles
            .par_iter_mut()
            .zip(&other.tiles)
            .for_each(|(tile, other)| tile.iter_mut().zip(other).for_each(|(a, b)| *a += *b));
        Ok(())
    }

    /// Value by value.
    pub fn map<U: Real>(&self, f: impl Fn(T) -> U + Sync) -> Symmetric<U> {
        let tile = |tile: &Vec<T>| tile.iter().map(|v| f(*v)).collect();
        Symmetric {
            n: self.n,
            tiles: self.tiles.par_iter().map(tile).collect(),
        }
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
            values[at(i, j)]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// 300 columns reach into a second, ragged tile; 700 rows into a second batch.
    #[test]
    fn products_are_the_plain_sums_and_shards_add_up() {
        let (n, m) = (300, 700);
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
            let bound = (512.0 + 2.0) * f64::from(f32::EPSILON) * size;
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

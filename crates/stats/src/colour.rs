//! Rows of a given covariance.

use rayon::prelude::*;

use crate::cholesky::{Cholesky, at};
use crate::product::{Real, View, padded};
use crate::symmetric::side;

/// Rows that a thread takes at a time.
const ROWS: usize = 32;

impl Cholesky {
    /// `L z` for each row of `z (rows, n)`: of independent normal values with deviation 1, rows with covariance `A + λI`. A row of
    /// the result depends on its own row of `z` alone, bit for bit. The inverse of [`whitened`](Self::whitened).
    pub fn coloured(&self, z: &[f64]) -> Vec<f64> {
        let n = self.0.n();
        let mut out = z.to_vec();
        if n > 0 {
            out.par_chunks_mut(ROWS * n)
                .for_each(|rows| self.colour(rows));
        }
        out
    }

    fn colour(&self, rows: &mut [f64]) {
        const STRIP: usize = <f64 as Real>::STRIP;
        let n = self.0.n();
        let whole = padded(rows, n).into_owned();
        let m = whole.len() / n;
        let strips = self.0.strips.len();
        let columns = |k: usize| k * STRIP..n.min((k + 1) * STRIP);
        let part = |k: usize| whole.chunks_exact(n).flat_map(move |row| &row[columns(k)]);
        let parts: Vec<Vec<f64>> = (0..strips).map(|k| part(k).copied().collect()).collect();
        for k in 0..strips {
            let s = side::<f64>(n, k);
            let mut sums = vec![0f64; m * s];
            let terms = parts[..k].iter().enumerate().map(|(j, z)| {
                let tile = at(&self.0, k * STRIP, j).t();
                (STRIP, View::rows(z, STRIP), tile)
            });
            f64::products((m, s), 1.0, terms, &mut sums);
            // On the diagonal is the inverse of L's square: y of L⁻¹ y = z, value by value.
            let inverse = &self.0.strips[k];
            let mut own = vec![0f64; s];
            let values = parts[k].chunks_exact(s).zip(sums.chunks_exact(s));
            for (row, (z, sums)) in rows.chunks_exact_mut(n).zip(values) {
                for i in 0..s {
                    let line = &inverse[i * s..=i * s + i];
                    let before = line.iter().zip(&own[..i]).map(|(a, b)| a * b);
                    own[i] = (z[i] - before.sum::<f64>()) / line[i];
                }
                let to = row[columns(k)].iter_mut();
                to.zip(own.iter().zip(sums))
                    .for_each(|(value, (own, sum))| *value = own + sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Cholesky, Symmetric};

    /// Sizes within a tile, at its end, and over several ragged ones.
    #[test]
    fn colouring_undoes_whitening() {
        for n in [1, 7, 256, 257, 600] {
            let rows: Vec<f64> = (0..n * (n + 3))
                .map(|i| ((i * i * 31 + i * 17) % 1009) as f64 / 500.0 - 1.0)
                .collect();
            let mut a = Symmetric::zeros(n);
            a.add_rows(&rows);
            let factor = Cholesky::new(a, 0.5).unwrap();
            let z: Vec<f64> = (0..5 * n).map(|i| (i % 11) as f64 - 5.0).collect();
            let y = factor.coloured(&z);
            for (got, want) in factor.whitened(&y).iter().zip(&z) {
                assert!((got - want).abs() < 1e-8, "{n}: {got} {want}");
            }
            assert_eq!(factor.coloured(&z[n..2 * n]), y[n..2 * n], "{n}");
        }
    }

    /// `Lᵀ` of the identity's rows: `L L^T` is the matrix.
    #[test]
    fn rows_have_the_covariance() {
        let n = 300;
        let value = |i: usize, j: usize| if i == j { 2.0 } else { 0.5 };
        let a = Symmetric::from_fn(n, value);
        let factor = Cholesky::new(a, 0.25).unwrap();
        let mut identity = vec![0f64; n * n];
        identity.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
        // Row i is column i of L.
        let columns = factor.coloured(&identity);
        for (i, j) in [(0, 0), (5, 5), (299, 299), (299, 3), (257, 256), (12, 270)] {
            let sum: f64 = (0..n)
                .map(|k| columns[k * n + i] * columns[k * n + j])
                .sum();
            let want = value(i, j) + if i == j { 0.25 } else { 0.0 };
            assert!((sum - want).abs() < 1e-12, "{i} {j}: {sum}");
        }
    }
}

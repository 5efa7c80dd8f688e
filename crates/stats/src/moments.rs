//! Count, mean and scatter of rows.

use crate::symmetric::Symmetric;
use crate::{Misfit, fits, means_of};

/// `n`, `μ = Σ x / n` and `S = Σ (x − μ)(x − μ)ᵀ` of some rows, in f64. Two of them merge exactly but for rounding
/// (Chan, Golub and LeVeque 1983): `S = S₁ + S₂ + n₁n₂/(n₁+n₂) δδᵀ` with `δ = μ₂ − μ₁`.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// `n`.
    pub count: u64,
    /// `μ`.
    pub mean: Vec<f64>,
    /// `S`.
    pub scatter: Symmetric<f64>,
}

impl Moments {
    /// Of no rows of `dim` values.
    pub fn new(dim: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; dim],
            scatter: Symmetric::zeros(dim),
        }
    }

    /// Of these rows.
    pub fn of(rows: &[f32], dim: usize) -> Self {
        let Some(mean) = means_of(rows, dim) else {
            return Self::new(dim);
        };
        let centred: Vec<f64> = rows
            .chunks_exact(dim)
            .flat_map(|row| row.iter().zip(&mean).map(|(x, m)| f64::from(*x) - m))
            .collect();
        let mut scatter = Symmetric::zeros(dim);
        scatter.add_rows(&centred);
        Self {
            count: (rows.len() / dim) as u64,
            mean,
            scatter,
        }
    }

    /// Adds what was taken of other rows.
    pub fn merge(&mut self, other: &Self) -> Result<(), Misfit> {
        fits("values of a mean", self.mean.len(), other.mean.len())?;
        if other.count == 0 {
            return Ok(());
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let delta: Vec<f64> = self
            .mean
            .iter()
            .zip(&other.mean)
            .map(|(a, b)| b - a)
            .collect();
        self.scatter.merge(&other.scatter)?;
        let weight = (n * m / (n + m)).sqrt();
        self.scatter
            .add_rows(&delta.iter().map(|d| d * weight).collect::<Vec<_>>());
        let moves = self.mean.iter_mut().zip(&delta);
        moves.for_each(|(mean, d)| *mean += d * m / (n + m));
        self.count += other.count;
        Ok(())
    }

    /// The unbiased covariance, `S / (n − 1)`; `None` for fewer than two rows.
    pub fn covariance(&self) -> Option<Symmetric<f64>> {
        let n = self.count.checked_sub(1).filter(|n| *n > 0)?;
        Some(self.scatter.map(|v| v / n as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_parts_are_the_whole() {
        let dim = 5;
        let rows: Vec<f32> = (0..100 * dim)
            .map(|i| (i * i % 97) as f32 / 9.0 + 40.0)
            .collect();
        let whole = Moments::of(&rows, dim);
        let mean = |c: usize| {
            rows.iter()
                .skip(c)
                .step_by(dim)
                .map(|v| f64::from(*v))
                .sum::<f64>()
                / 100.0
        };
        let want: f64 = (0..100)
            .map(|r| {
                (f64::from(rows[r * dim + 1]) - mean(1)) * (f64::from(rows[r * dim + 3]) - mean(3))
            })
            .sum();
        let got = whole.covariance().unwrap().get(3, 1);
        assert!((got - want / 99.0).abs() < 1e-9 * want.abs(), "{got}");
        for shards in [2, 5] {
            let mut merged = Moments::new(dim);
            for shard in rows.chunks(rows.len() / shards) {
                merged.merge(&Moments::of(shard, dim)).unwrap();
            }
            assert_eq!(merged.count, 100);
            let pairs = merged
                .scatter
                .packed()
                .into_iter()
                .zip(whole.scatter.packed());
            for (a, b) in pairs.chain(merged.mean.iter().copied().zip(whole.mean.clone())) {
                assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{a} {b}");
            }
        }
        assert!(Moments::of(&rows[..dim], dim).covariance().is_none());
        assert!(Moments::new(2).merge(&Moments::new(3)).is_err());
    }
}

//! Which images a method keeps, and nearest mean of those: parts of iCaRL for methods that replay (Rebuffi et al. 2017,
//! "iCaRL: Incremental Classifier and Representation Learning").
//!
//! ```text
//! x_i = f_i / (|f_i| + 10⁻⁸),  μ = mean x_i                            not normalised again
//! p_k = argmin_i |μ − (Σ_{j<k} x_{p_j} + x_i) / k|                     each image once, in this order
//! nearest mean of exemplars: μ_c = normalised mean of x_p,  score_c(f) = −|x − μ_c|²
//! ```
//!
//! Source: `LAMDA-CL/LAMDA-PILOT:models/base.py` (5240714). A list cut to its first `m` is the list of `m`.

use candlewick_core::{Error, Result};
use candlewick_stats::means_of;

/// The first `m` images chosen from features `(n, d)` of one class, all of them where `m ≥ n`. Of equally good ones the
/// first is taken.
pub fn herd(rows: &[f32], dim: usize, m: usize) -> Vec<usize> {
    let rows: Vec<Vec<f64>> = rows.chunks_exact(dim.max(1)).map(unit).collect();
    let n = rows.len();
    let mut mean = vec![0f64; dim];
    for row in &rows {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, x)| *m += x / n as f64);
    }
    let mut left: Vec<usize> = (0..n).collect();
    let mut sum = vec![0f64; dim];
    let mut chosen = Vec::new();
    while chosen.len() < m.min(n) {
        let k = (chosen.len() + 1) as f64;
        let miss = |row: &[f64]| -> f64 {
            let parts = mean.iter().zip(&sum).zip(row);
            parts.map(|((m, s), x)| (m - (s + x) / k).powi(2)).sum()
        };
        let misses = left.iter().map(|&i| miss(&rows[i])).enumerate();
        let Some((at, _)) = misses.min_by(|a, b| a.1.total_cmp(&b.1)) else {
            break;
        };
        let best = left.remove(at);
        sum.iter_mut().zip(&rows[best]).for_each(|(s, x)| *s += x);
        chosen.push(best);
    }
    chosen
}

/// `f / (|f| + 10⁻⁸)`.
fn unit(row: &[f32]) -> Vec<f64> {
    let squares: f64 = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    let norm = squares.sqrt() + 1e-8;
    row.iter().map(|v| f64::from(*v) / norm).collect()
}

/// Nearest mean of exemplars.
#[derive(Debug, Clone, Default)]
pub struct ExemplarMeans {
    dim: usize,
    means: Vec<Vec<f64>>,
}

impl ExemplarMeans {
    /// From the features of the exemplars of each class, `(m_c, dim)`, by the network as it is now.
    pub fn new(exemplars: &[Vec<f32>], dim: usize) -> Result<Self> {
        let mean = |(class, rows): (usize, &Vec<f32>)| {
            let rows: Vec<f32> = rows
                .chunks_exact(dim.max(1))
                .flat_map(unit)
                .map(|v| v as f32)
                .collect();
            let mean = means_of(&rows, dim).ok_or_else(|| Error::State {
                problem: format!("class {} in order of arrival has no exemplar", class + 1),
            })?;
            let norm = mean.iter().map(|v| v * v).sum::<f64>().sqrt();
            Ok(mean.into_iter().map(|v| v / norm).collect())
        };
        Ok(Self {
            dim,
            means: exemplars
                .iter()
                .enumerate()
                .map(mean)
                .collect::<Result<_>>()?,
        })
    }

    /// `−|x − μ_c|²`, `(n, classes)`, for features `(n, dim)`.
    pub fn scores(&self, rows: &[f32]) -> Vec<f32> {
        let score = |row: &[f32]| -> Vec<f32> {
            let row = unit(row);
            let far = |mean: &Vec<f64>| {
                row.iter()
                    .zip(mean)
                    .map(|(x, m)| (x - m).powi(2))
                    .sum::<f64>()
            };
            self.means.iter().map(|mean| -far(mean) as f32).collect()
        };
        rows.chunks_exact(self.dim.max(1)).flat_map(score).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<f32> {
        (0..60)
            .map(|i| ((i * i * 7 + i) % 31) as f32 / 10.0 - 1.0)
            .collect()
    }

    /// Every choice against all others by the definition.
    #[test]
    fn each_choice_is_the_best_there_is() {
        let (rows, dim) = (rows(), 3);
        let chosen = herd(&rows, dim, 8);
        let units: Vec<Vec<f64>> = rows.chunks(dim).map(unit).collect();
        let mean: Vec<f64> = (0..dim)
            .map(|c| units.iter().map(|u| u[c]).sum::<f64>() / 20.0)
            .collect();
        let miss = |list: &[usize]| -> f64 {
            let far = |c: usize| {
                mean[c] - list.iter().map(|&i| units[i][c]).sum::<f64>() / list.len() as f64
            };
            (0..dim).map(|c| far(c).powi(2)).sum()
        };
        for k in 1..=8 {
            let own = miss(&chosen[..k]);
            for other in (0..20).filter(|i| !chosen[..k].contains(i)) {
                let list = [&chosen[..k - 1], &[other]].concat();
                assert!(own <= miss(&list) + 1e-12, "choice {k} against {other}");
            }
        }
        assert_eq!(herd(&rows, dim, 5), chosen[..5]);
        let mut all = herd(&rows, dim, 99);
        all.sort_unstable();
        assert_eq!(all, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn the_nearest_mean_of_exemplars_is_found() {
        let classes = [vec![1.0, 0.1, 5.0, 0.0], vec![0.0, 2.0]];
        let means = ExemplarMeans::new(&classes, 2).unwrap();
        let scores = means.scores(&[3.0, 0.2, 0.1, 0.4]);
        assert!(scores[0] > scores[1] && scores[3] > scores[2], "{scores:?}");
        // The feature's length is of no account.
        let doubled = means.scores(&[6.0, 0.4, 0.2, 0.8]);
        assert!(
            scores
                .iter()
                .zip(doubled)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        );
        assert!(ExemplarMeans::new(&[vec![]], 2).is_err());
    }
}

//! Nearest class mean by Euclidean, cosine or Mahalanobis distance.
//!
//! ```text
//! μ_c = mean_{i: y_i = c} f(x_i)                                training images, test transform, not normalised
//! euclidean:    score_c = −|f − μ_c|²
//! cosine:       score_c = cos(f, μ_c)                           SimpleCIL
//! mahalanobis:  score_c = −(f − μ_c)ᵀ ((1 − ε) Σ + ε I)⁻¹ (f − μ_c)
//!               Σ = Σ_i (f_i − μ_{y_i})(f_i − μ_{y_i})ᵀ / n     one for all classes, of all images seen
//! ```
//!
//! The last is streaming linear discriminant analysis (Hayes and Kanan 2020, "Lifelong Machine Learning with Deep Streaming
//! Linear Discriminant Analysis"; `tyler-hayes/Deep_SLDA:SLDA_Model.py`, whose scores `μᵀΛf − ½μᵀΛμ` rank alike; there Σ moves
//! image by image around a running mean, here around the class mean itself, so that the order of images is of no account).
//! Means: `LAMDA-CL/LAMDA-PILOT:models/simplecil.py`.
//!
//! A class that comes again, in another domain, has the mean and scatter of all its images: with `n, μ, S` of the old and
//! `m, ν, T` of the new ones, `μ ← μ + m/(n+m) (ν − μ)` and `S ← S + T + nm/(n+m) (ν − μ)(ν − μ)ᵀ`. Means are kept to 48
//! bits, so that those of a hundred domains are, in f32, those of one pass over all images, or their neighbour; `S` is rounded to
//! f32 once a task, by `2⁻²⁴` of itself.

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Result, State, TaskInfo};
use candlewick_stats::{Cholesky, Moments, Symmetric, View, cosines, means_of};
use serde::{Deserialize, Serialize};

use crate::classifier::{
    Classifier, OneLook, Seen, classes, kept, misfit, put, put_kept, singular, take, take_kept,
};
use crate::tuning::Look;

/// `[method] name = "nearest-mean"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearestMean {
    /// From a feature to a mean.
    pub distance: Distance,
    /// ε of the Mahalanobis distance, in (0, 1]; read by no other. Left out: 1e-4, as published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrinkage: Option<f64>,
}

/// What is near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// Straight.
    Euclidean,
    /// By the angle.
    Cosine,
    /// Straight, after the covariance within classes was taken out.
    Mahalanobis,
}

/// As in `tyler-hayes/Deep_SLDA`.
const SHRINKAGE: f64 = 1e-4;

impl NearestMean {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        match (self.distance, self.shrinkage) {
            (Distance::Mahalanobis, Some(e)) if !(e > 0.0 && e <= 1.0) => Err(Error::setting(
                "method.shrinkage",
                format!("must be greater than 0 and at most 1, found {e}"),
            )),
            (Distance::Euclidean | Distance::Cosine, Some(_)) => Err(Error::setting(
                "method.shrinkage",
                "belongs to distance = \"mahalanobis\"; remove it",
            )),
            _ => Ok(()),
        }
    }

    /// `batch` images are looked at together; it does not change the result.
    pub fn build(&self, backbone: Arc<dyn Backbone>, batch: usize) -> Result<OneLook<Nearest>> {
        self.check()?;
        let nearest = self.classifier(backbone.spec().dim, 1);
        Ok(OneLook::new(Look::frozen(backbone), nearest, batch))
    }

    /// On features of `dim` values, made of `parts` equally long ones side by side. Products are added up part by part, so that
    /// the cosine of a feature put beside itself is the cosine of the feature, bit for bit.
    pub fn classifier(&self, dim: usize, parts: usize) -> Nearest {
        Nearest {
            config: self.clone(),
            dim,
            parts,
            means: Vec::new(),
            counts: Vec::new(),
            scatter: Symmetric::zeros(match self.distance {
                Distance::Mahalanobis => dim,
                _ => 0,
            }),
            whitened: None,
        }
    }
}

/// Class means and what is shared between them.
pub struct Nearest {
    config: NearestMean,
    dim: usize,
    /// Equally long parts of a feature.
    parts: usize,
    /// To 48 bits.
    means: Vec<Vec<f64>>,
    counts: Vec<u64>,
    /// `n Σ`, in f32.
    scatter: Symmetric<f32>,
    whitened: Option<Cholesky>,
}

impl Nearest {
    /// `μ_c` by class.
    pub fn means(&self) -> Vec<Vec<f32>> {
        let narrow = |mean: &Vec<f64>| mean.iter().map(|v| *v as f32).collect();
        self.means.iter().map(narrow).collect()
    }

    /// Factors `(1 − ε) Σ + ε I`.
    fn whiten(&mut self) -> Result<()> {
        let n: u64 = self.counts.iter().sum();
        if self.config.distance != Distance::Mahalanobis || n == 0 {
            return Ok(());
        }
        let epsilon = self.config.shrinkage.unwrap_or(SHRINKAGE);
        let weight = (1.0 - epsilon) / n as f64;
        let shared = self.scatter.map(|v| f64::from(v) * weight);
        let factor = Cholesky::new(shared, epsilon);
        self.whitened = Some(factor.map_err(|e| singular("method.shrinkage", e))?);
        Ok(())
    }
}

impl Classifier for Nearest {
    fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        let all = task.classes.end.max(self.means.len());
        self.means.resize(all, vec![0.0; self.dim]);
        self.counts.resize(all, 0);
        Ok(())
    }

    fn learn(&mut self, seen: Seen<'_>) -> Result<()> {
        let mut scatter = Symmetric::<f64>::zeros(self.scatter.n());
        for class in seen.classes() {
            let rows = seen.class(class);
            let all = match self.config.distance {
                Distance::Mahalanobis => {
                    let mut all = Moments::of(&rows, self.dim);
                    if self.counts[class] > 0 {
                        all.merge(&Moments {
                            count: self.counts[class],
                            mean: self.means[class].clone(),
                            // Among the others already.
                            scatter: Symmetric::zeros(self.dim),
                        })
                        .map_err(misfit)?;
                    }
                    scatter.merge(&all.scatter).map_err(misfit)?;
                    (all.count, all.mean)
                }
                Distance::Euclidean | Distance::Cosine => {
                    let new = (rows.len() / self.dim) as u64;
                    let count = self.counts[class] + new;
                    let weight = new as f64 / count as f64;
                    let mean = means_of(&rows, self.dim).unwrap_or_default();
                    let pairs = self.means[class].iter().zip(mean);
                    (
                        count,
                        pairs.map(|(old, new)| old + weight * (new - old)).collect(),
                    )
                }
            };
            self.counts[class] = all.0;
            self.means[class] = all.1.into_iter().map(kept).collect();
        }
        self.scatter
            .merge(&scatter.map(|v| v as f32))
            .map_err(misfit)?;
        self.whiten()
    }

    fn knows(&self, class: usize) -> bool {
        self.counts.get(class).is_some_and(|count| *count > 0)
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let (d, c) = (self.dim, self.means.len());
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|v| f64::from(*v)).collect() };
        let means = self.means().concat();
        if self.config.distance == Distance::Cosine {
            let mut scores = cosines(rows, &means, d, self.parts);
            for (class, _) in self.counts.iter().enumerate().filter(|(_, n)| **n == 0) {
                let column = scores.iter_mut().skip(class).step_by(c);
                column.for_each(|score| *score = f32::NEG_INFINITY);
            }
            return Ok(scores);
        }
        let (mut rows, mut means) = (wide(rows), wide(&means));
        if let Some(factor) = &self.whitened {
            rows = factor.whitened(&rows);
            means = factor.whitened(&means);
        }
        // In f64: of near means the squares all but cancel.
        let products = candlewick_stats::scores(&rows, d, View::rows(&means, d).t(), c);
        let (rows, means) = (squares(&rows, d), squares(&means, d));
        let pairs = rows
            .iter()
            .flat_map(|row| means.iter().zip(&self.counts).map(move |m| (row, m)));
        let score = |(product, (row, (mean, count))): (f64, (&f64, (&f64, &u64)))| match *count {
            // Without images there is no mean, and nothing is near it.
            0 => f32::NEG_INFINITY,
            _ => (2.0 * product - row - mean) as f32,
        };
        Ok(products.into_iter().zip(pairs).map(score).collect())
    }

    fn save(&self, state: &mut State) -> Result<()> {
        let shape = [self.means.len(), self.dim];
        let means = self.means.iter().flatten().copied();
        put_kept(state, "prototypes", means, &shape)?;
        let counts = self.counts.iter().map(|n| *n as f32).collect();
        put(state, "counts", counts, &[shape[0]])?;
        if self.config.distance == Distance::Mahalanobis {
            let packed = self.scatter.packed();
            let n = packed.len();
            put(state, "scatter", packed, &[n])?;
        }
        Ok(())
    }

    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        let n = classes(tasks);
        let means = take_kept(state, "prototypes", &[n, self.dim])?;
        self.means = means.chunks(self.dim.max(1)).map(<[f64]>::to_vec).collect();
        let counts = take(state, "counts", &[n])?;
        self.counts = counts.into_iter().map(|n| n as u64).collect();
        if self.config.distance == Distance::Mahalanobis {
            let packed = take(state, "scatter", &[self.dim * (self.dim + 1) / 2])?;
            self.scatter = Symmetric::unpacked(self.dim, &packed).map_err(misfit)?;
            self.whiten()?;
        }
        Ok(())
    }
}

/// `|x|²` of each row.
fn squares(rows: &[f64], dim: usize) -> Vec<f64> {
    let square = |row: &[f64]| row.iter().map(|v| v * v).sum();
    rows.chunks_exact(dim.max(1)).map(square).collect()
}

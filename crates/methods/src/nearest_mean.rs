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

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Result, State, TaskInfo};
use candlewick_stats::{Cholesky, Moments, Symmetric, View, cosines};
use serde::{Deserialize, Serialize};

use crate::classifier::{Classifier, OneLook, Seen, classes, misfit, put, singular, take};
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
        let nearest = self.classifier(backbone.spec().dim);
        Ok(OneLook::new(Look::frozen(backbone), nearest, batch))
    }

    /// On features of `dim` values.
    pub fn classifier(&self, dim: usize) -> Nearest {
        Nearest {
            config: self.clone(),
            dim,
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
    means: Vec<Vec<f32>>,
    counts: Vec<u64>,
    /// `n Σ`, in f32.
    scatter: Symmetric<f32>,
    whitened: Option<Cholesky>,
}

impl Nearest {
    /// `μ_c` by class.
    pub fn means(&self) -> &[Vec<f32>] {
        &self.means
    }

    /// Factors `(1 − ε) Σ + ε I`.
    fn whiten(&mut self) -> Result<()> {
        if self.config.distance != Distance::Mahalanobis {
            return Ok(());
        }
        let n: u64 = self.counts.iter().sum();
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
        let shared = self.config.distance == Distance::Mahalanobis;
        let mut scatter = Symmetric::<f64>::zeros(self.scatter.n());
        for class in seen.task.classes.clone() {
            let rows = seen.class(class);
            // A class may come again in another domain: its parts merge.
            let mut all = Moments::new(self.dim);
            all.count = self.counts[class];
            all.mean = self.means[class].iter().map(|v| f64::from(*v)).collect();
            let new = match shared {
                true => Moments::of(&rows, self.dim),
                false => Moments {
                    count: (rows.len() / self.dim) as u64,
                    mean: candlewick_stats::means_of(&rows, self.dim).unwrap_or_default(),
                    scatter: Symmetric::zeros(self.dim),
                },
            };
            match all.count {
                0 => all = new,
                _ => all.merge(&new).map_err(misfit)?,
            }
            self.counts[class] = all.count;
            self.means[class] = all.mean.iter().map(|v| *v as f32).collect();
            if shared {
                scatter.merge(&all.scatter).map_err(misfit)?;
            }
        }
        self.scatter
            .merge(&scatter.map(|v| v as f32))
            .map_err(misfit)?;
        self.whiten()
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let (d, c) = (self.dim, self.means.len());
        if self.config.distance == Distance::Cosine {
            return Ok(cosines(rows, &self.means.concat(), d));
        }
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|v| f64::from(*v)).collect() };
        let (mut rows, mut means) = (wide(rows), wide(&self.means.concat()));
        if let Some(factor) = &self.whitened {
            rows = factor.whitened(&rows);
            means = factor.whitened(&means);
        }
        // In f64: of near means the squares all but cancel.
        let products = candlewick_stats::scores(&rows, d, View::rows(&means, d).t(), c);
        let (rows, means) = (squares(&rows, d), squares(&means, d));
        let pairs = rows
            .iter()
            .flat_map(|row| means.iter().map(move |mean| (row, mean)));
        let score =
            |(product, (row, mean)): (f64, (&f64, &f64))| (2.0 * product - row - mean) as f32;
        Ok(products.into_iter().zip(pairs).map(score).collect())
    }

    fn save(&self, state: &mut State) -> Result<()> {
        let shape = [self.means.len(), self.dim];
        put(state, "prototypes", self.means.concat(), &shape)?;
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
        let means = take(state, "prototypes", &[n, self.dim])?;
        self.means = means.chunks(self.dim.max(1)).map(<[f32]>::to_vec).collect();
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

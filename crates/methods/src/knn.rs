//! k nearest neighbours among all training features: no training, no forgetting, and memory that grows with every image.
//!
//! ```text
//! N_k(x): the k training features nearest to f(x)
//! score_c(x) = Σ_{i ∈ N_k(x), y_i = c} w(x, i) / Σ_{i ∈ N_k(x)} w(x, i)
//! w = 1                               uniform
//! w = 1 / distance                    distance, as `scikit-learn:sklearn/neighbors/_base.py`: an equal feature takes all
//! w = exp(cos / 0.07)                 softmax, as `facebookresearch/dino:eval_knn.py`
//! ```
//!
//! Its saved state holds the features of all past training images.
//!
//! The distance is Euclidean, or `1 − cos`. Equally near ones are taken in order of arrival.

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Result, State, TaskInfo};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::classifier::{Classifier, OneLook, Seen, classes, dot, in_parts, put_parts, take_parts};
use crate::tuning::Look;

/// `[method] name = "knn"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knn {
    /// Neighbours that vote; all there are while there are fewer.
    pub k: usize,
    /// From feature to feature.
    pub distance: KnnDistance,
    /// What a vote weighs.
    pub weights: Weights,
}

/// What is near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KnnDistance {
    /// Straight.
    Euclidean,
    /// By the angle.
    Cosine,
}

/// What a vote weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// 1.
    Uniform,
    /// 1 / distance.
    Distance,
    /// `exp(cos / 0.07)`; for the cosine alone.
    Softmax,
}

/// As in `facebookresearch/dino`.
const TEMPERATURE: f64 = 0.07;

impl Knn {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::setting(
                "method.k",
                "must be greater than 0, found 0",
            ));
        }
        if self.weights == Weights::Softmax && self.distance != KnnDistance::Cosine {
            let problem = "\"softmax\" weighs cosines; set distance = \"cosine\"";
            return Err(Error::setting("method.weights", problem));
        }
        Ok(())
    }

    /// `batch` images are looked at together; it does not change the result.
    pub fn build(&self, backbone: Arc<dyn Backbone>, batch: usize) -> Result<OneLook<Neighbours>> {
        self.check()?;
        let neighbours = self.classifier(backbone.spec().dim);
        Ok(OneLook::new(Look::frozen(backbone), neighbours, batch))
    }

    /// On features of `dim` values.
    pub fn classifier(&self, dim: usize) -> Neighbours {
        Neighbours {
            config: self.clone(),
            dim,
            classes: 0,
            parts: Vec::new(),
        }
    }
}

/// Every training feature, by task.
pub struct Neighbours {
    config: Knn,
    dim: usize,
    classes: usize,
    parts: Vec<(Vec<f32>, Vec<u32>)>,
}

impl Neighbours {
    /// Distance and label of every training feature, the nearest `k` first.
    fn nearest(&self, row: &[f32]) -> Vec<(f64, u32)> {
        let own = dot(row, row).sqrt();
        let distance = |other: &[f32]| match self.config.distance {
            KnnDistance::Cosine => 1.0 - dot(row, other) / (own * dot(other, other).sqrt()),
            KnnDistance::Euclidean => {
                let pairs = row.iter().zip(other);
                let squares = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
                squares.sum::<f64>().sqrt()
            }
        };
        let all = self.parts.iter().flat_map(|(rows, labels)| {
            rows.chunks_exact(self.dim.max(1))
                .zip(labels.iter().copied())
        });
        let mut all: Vec<(f64, u32)> = all.map(|(other, label)| (distance(other), label)).collect();
        // Stable: ties stay in order of arrival.
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.truncate(self.config.k);
        all
    }

    fn votes(&self, row: &[f32]) -> Vec<f32> {
        let nearest = self.nearest(row);
        let equal = nearest.iter().any(|(d, _)| *d <= 0.0);
        let weight = |d: f64| match self.config.weights {
            Weights::Uniform => 1.0,
            Weights::Distance if equal => f64::from(u8::from(d <= 0.0)),
            Weights::Distance => 1.0 / d,
            // From the nearest on, so that nothing overflows.
            Weights::Softmax => ((nearest[0].0 - d) / TEMPERATURE).exp(),
        };
        let mut votes = vec![0f64; self.classes];
        for &(d, label) in &nearest {
            votes[label as usize] += weight(d);
        }
        let sum: f64 = votes.iter().sum();
        votes.iter().map(|v| (v / sum) as f32).collect()
    }
}

impl Classifier for Neighbours {
    fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        self.classes = self.classes.max(task.classes.end);
        Ok(())
    }

    fn learn(&mut self, seen: Seen<'_>) -> Result<()> {
        self.parts.push((seen.rows.to_vec(), seen.labels.to_vec()));
        Ok(())
    }

    fn knows(&self, class: usize) -> bool {
        in_parts(&self.parts, class)
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let rows = rows.par_chunks_exact(self.dim.max(1));
        Ok(rows.flat_map_iter(|row| self.votes(row)).collect())
    }

    fn save(&self, state: &mut State) -> Result<()> {
        put_parts(state, &self.parts, self.dim)
    }

    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        self.classes = classes(tasks);
        self.parts = take_parts(tasks, self.dim, state)?;
        Ok(())
    }
}

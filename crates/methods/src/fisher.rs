//! The diagonal of the empirical Fisher information of any variables.
//!
//! ```text
//! F_w = (1/N) Σ_i (∂ loss(x_i, y_i) / ∂w)²           per sample
//! F_w = (1/B) Σ_b (∂ mean loss of batch b / ∂w)²     per batch: smaller by about the size of a batch
//! ```
//!
//! with the labels that the images have. Per sample is what regularisers are written with (EWC, Kirkpatrick et al. 2017); per batch
//! is what most public code computes (`IemProg/CoFiMA:models/cofima.py`, there cut at 10⁻⁴).

use candle_core::Tensor;
use candle_core::Var;
use candle_core::backprop::GradStore;
use candlewick_core::{Batch, Result, State};
use serde::{Deserialize, Serialize};

/// What a squared gradient is of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// A batch.
    #[default]
    Batch,
    /// An image: a backward pass for each.
    Sample,
}

impl Per {
    /// A batch as the parts whose gradients are squared.
    pub fn parts(self, batch: Batch) -> Result<Vec<Batch>> {
        match self {
            Self::Batch => Ok(vec![batch]),
            Self::Sample => (0..batch.len())
                .map(|i| {
                    Ok(Batch {
                        images: batch.images.narrow(0, i, 1)?,
                        labels: vec![batch.labels[i]],
                        ids: vec![batch.ids[i]],
                        plain: batch.plain,
                    })
                })
                .collect(),
        }
    }
}

/// Squared gradients, added up.
#[derive(Debug)]
pub struct Fisher {
    vars: Vec<(String, Var)>,
    sums: Vec<Option<Tensor>>,
    terms: usize,
}

impl Fisher {
    /// Of no gradient yet.
    pub fn new(vars: Vec<(String, Var)>) -> Self {
        Self {
            sums: vec![None; vars.len()],
            vars,
            terms: 0,
        }
    }

    /// One more gradient; a variable that has none has one of 0.
    pub fn add(&mut self, grads: &GradStore) -> Result<()> {
        for ((_, var), sum) in self.vars.iter().zip(&mut self.sums) {
            if let Some(grad) = grads.get(var) {
                let square = grad.detach().sqr()?;
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + square)?,
                    None => square,
                });
            }
        }
        self.terms += 1;
        Ok(())
    }

    /// The means by name, none above `clip`.
    pub fn mean(self, clip: Option<f64>) -> Result<State> {
        let n = self.terms.max(1) as f64;
        let means = self.vars.iter().zip(self.sums).map(|((name, var), sum)| {
            let mean = match sum {
                Some(sum) => (sum / n)?,
                None => var.zeros_like()?,
            };
            let mean = match clip {
                Some(clip) => mean.minimum(clip)?,
                None => mean,
            };
            Ok((name.clone(), mean))
        });
        means.collect()
    }
}

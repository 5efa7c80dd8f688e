//! How the trainable part is trained: the `[train]` table, the head, the loss and the optimiser.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::params::{Init, Params};

/// The `[train]` table of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Passes over each task's training images.
    pub epochs: usize,
    /// Images per step.
    pub batch: usize,
    /// The rule of a step. A fresh one is made for each task.
    pub optimizer: OptimizerKind,
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay, 0 for plain Adam.
    #[serde(default)]
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradients; left out for no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

/// PyTorch's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with betas 0.9 and 0.999, eps 1e-8.
    Adam,
    /// Adam with decoupled weight decay, the same betas and eps.
    AdamW,
}

impl Train {
    /// Checks the ranges; the error names the key.
    pub fn check(&self) -> Result<()> {
        let positive = |key: &str, ok: bool, found: String| {
            if ok {
                Ok(())
            } else {
                let problem = format!("must be greater than 0, found {found}");
                Err(Error::setting(format!("train.{key}"), problem))
            }
        };
        positive("epochs", self.epochs > 0, self.epochs.to_string())?;
        positive("batch", self.batch > 0, self.batch.to_string())?;
        let lr_ok = self.lr > 0.0 && self.lr.is_finite();
        positive("lr", lr_ok, self.lr.to_string())?;
        if let Some(clip) = self.clip {
            positive("clip", clip > 0.0, clip.to_string())?;
        }
        if self.optimizer == OptimizerKind::Adam && self.weight_decay != 0.0 {
            return Err(Error::setting(
                "train.weight_decay",
                format!(
                    "found {} with optimizer \"adam\"; use \"adamw\", whose decay is decoupled",
                    self.weight_decay
                ),
            ));
        }
        Ok(())
    }
}

/// An optimiser over a fixed set of variables.
pub struct Optimizer {
    vars: Vec<Var>,
    adam: AdamW,
    clip: Option<f64>,
}

impl Optimizer {
    /// Fresh moments for `vars`.
    pub fn new(vars: Vec<Var>, train: &Train) -> Result<Self> {
        let config = ParamsAdamW {
            lr: train.lr,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: train.weight_decay,
        };
        Ok(Self {
            adam: AdamW::new(vars.clone(), config)?,
            vars,
            clip: train.clip,
        })
    }

    /// Backward pass, clipping, update.
    pub fn step(&mut self, loss: &Tensor) -> Result<()> {
        let mut grads = loss.backward()?;
        if let Some(max) = self.clip {
            clip_by_norm(&self.vars, &mut grads, max)?;
        }
        Ok(self.adam.step(&grads)?)
    }
}

/// Scales all gradients by `min(1, max / (norm + 1e-6))`, where `norm` is the L2 norm of all of them
/// together, as `torch.nn.utils.clip_grad_norm_` does. Returns the norm before clipping.
pub fn clip_by_norm(vars: &[Var], grads: &mut GradStore, max: f64) -> Result<f64> {
    let mut sum = 0f64;
    for var in vars {
        if let Some(grad) = grads.get(var) {
            sum += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    let norm = sum.sqrt();
    let scale = max / (norm + 1e-6);
    if scale < 1.0 {
        for var in vars {
            if let Some(grad) = grads.get(var) {
                let scaled = (grad * scale)?;
                grads.insert(var, scaled);
            }
        }
    }
    Ok(norm)
}

/// A linear classifier `logits = x Wᵀ + b` that grows with the classes seen. Rows of classes that
/// have not arrived do not exist, so they can neither compete nor drift.
#[derive(Debug)]
pub struct Head {
    weight: Tensor,
    bias: Tensor,
}

impl Head {
    const WEIGHT: &'static str = "head.weight";
    const BIAS: &'static str = "head.bias";
    const INIT: Init = Init::TruncatedNormal { std: 0.02 };

    /// A head for `dim` features and no class yet; weights will be truncated normal with deviation
    /// 0.02, biases 0.
    pub fn new(dim: usize, params: &mut Params) -> Result<Self> {
        Ok(Self {
            weight: params.create(Self::WEIGHT, &[0, dim], Self::INIT)?,
            bias: params.create(Self::BIAS, &[0], Init::Zeros)?,
        })
    }

    /// Makes room for `classes` classes in all.
    pub fn grow(&mut self, classes: usize, params: &mut Params) -> Result<()> {
        self.weight = params.grow(Self::WEIGHT, classes, Self::INIT)?;
        self.bias = params.grow(Self::BIAS, classes, Init::Zeros)?;
        Ok(())
    }

    /// Logits `(B, classes)` of features `(B, D)`, of the classes in `range` alone.
    pub fn logits(&self, features: &Tensor, range: Range<usize>) -> Result<Tensor> {
        let weight = self.weight.narrow(0, range.start, range.len())?;
        let bias = self.bias.narrow(0, range.start, range.len())?;
        Ok(features.matmul(&weight.t()?)?.broadcast_add(&bias)?)
    }

    /// Classes it has room for.
    pub fn classes(&self) -> usize {
        self.bias.elem_count()
    }
}

/// Mean cross-entropy over the classes of `range` alone: the logits of old classes count as -∞, so
/// their weights receive no gradient (`google-research/l2p:train_continual.py`). `labels` are
/// labels of the stream, `logits` is `(B, range.len())`.
pub fn masked_cross_entropy(
    logits: &Tensor,
    labels: &[u32],
    range: &Range<usize>,
) -> Result<Tensor> {
    let local: Vec<u32> = labels
        .iter()
        .map(|&label| label.wrapping_sub(range.start as u32))
        .collect();
    if let Some(bad) = local.iter().position(|&l| l as usize >= range.len()) {
        return Err(Error::State {
            problem: format!(
                "label {} is not among the classes {range:?} of the current task",
                labels[bad]
            ),
        });
    }
    let target = Tensor::from_vec(local, labels.len(), logits.device())?;
    Ok(candle_nn::loss::cross_entropy(logits, &target)?)
}

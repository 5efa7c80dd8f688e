//! How the trainable part is trained: the `[train]` table, the head, the loss and the optimiser.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::params::{Init, Params};
use crate::schedule::Schedule;

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
    /// How it falls from epoch to epoch of a task; constant where left out.
    #[serde(default, skip_serializing_if = "Schedule::is_default")]
    pub schedule: Schedule,
    /// Weight decay: decoupled with `adamw`, added to the gradient with `sgd`, 0 for plain Adam.
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
    /// Stochastic gradient descent with momentum 0.9.
    Sgd,
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
                    "found {} with optimizer \"adam\"; use \"adamw\", whose decay is decoupled, or \"sgd\"",
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
    rule: Rule,
    train: Train,
}

enum Rule {
    Adam(AdamW),
    Sgd {
        lr: f64,
        /// One for each variable that has had a gradient.
        velocities: Vec<Option<Tensor>>,
    },
}

impl Optimizer {
    /// Fresh moments for `vars`.
    pub fn new(vars: Vec<Var>, train: &Train) -> Result<Self> {
        let rule = match train.optimizer {
            OptimizerKind::Sgd => Rule::Sgd {
                lr: train.lr,
                velocities: vec![None; vars.len()],
            },
            OptimizerKind::Adam | OptimizerKind::AdamW => {
                let config = ParamsAdamW {
                    lr: train.lr,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: train.weight_decay,
                };
                Rule::Adam(AdamW::new(vars.clone(), config)?)
            }
        };
        Ok(Self {
            rule,
            vars,
            train: train.clone(),
        })
    }

    /// Sets the learning rate of this pass over the task, from 0.
    pub fn begin_epoch(&mut self, epoch: usize) {
        let factor = self.train.schedule.factor(epoch, self.train.epochs);
        match &mut self.rule {
            Rule::Adam(adam) => adam.set_learning_rate(self.train.lr * factor),
            Rule::Sgd { lr, .. } => *lr = self.train.lr * factor,
        }
    }

    /// Backward pass, clipping, update.
    pub fn step(&mut self, loss: &Tensor) -> Result<()> {
        let mut grads = loss.backward()?;
        if let Some(max) = self.train.clip {
            clip_by_norm(&self.vars, &mut grads, max)?;
        }
        match &mut self.rule {
            Rule::Adam(adam) => Ok(adam.step(&grads)?),
            Rule::Sgd { lr, velocities } => {
                for (var, velocity) in self.vars.iter().zip(velocities) {
                    if let Some(grad) = grads.get(var) {
                        momentum_step(var, grad, velocity, *lr, self.train.weight_decay)?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// `v ← 0.9 v + g + wd·w`, `w ← w − lr·v`; `v` starts as the first gradient, as in `torch.optim.SGD`.
fn momentum_step(
    var: &Var,
    grad: &Tensor,
    velocity: &mut Option<Tensor>,
    lr: f64,
    weight_decay: f64,
) -> Result<()> {
    let weight = var.as_tensor().detach();
    let pull = (grad + (&weight * weight_decay)?)?;
    let next = match velocity.take() {
        Some(velocity) => ((velocity * 0.9)? + pull)?,
        None => pull,
    };
    var.set(&(weight - (&next * lr)?)?)?;
    *velocity = Some(next);
    Ok(())
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

/// A linear classifier `logits = x Wᵀ + b` with a part for each group of classes, `head.T.weight` and `head.T.bias`.
///
/// Classes that have not arrived have no weights, so they cannot compete. Parts of other classes take no part in
/// the loss, so no optimiser moves them, whatever its weight decay. Classes that come again, in another domain, have
/// their part already, and it is trained on.
#[derive(Debug)]
pub struct Head {
    dim: usize,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    classes: Range<usize>,
    weight: Tensor,
    bias: Tensor,
}

impl Head {
    /// A head for `dim` features and no class yet.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            parts: Vec::new(),
        }
    }

    /// Makes room for the classes of the next task, unless they have it: weights truncated normal with deviation 0.02,
    /// biases 0.
    pub fn grow(&mut self, classes: &Range<usize>, params: &mut Params) -> Result<()> {
        let next = self.parts.last().map_or(0, |part| part.classes.end);
        if self.parts.iter().any(|part| part.classes == *classes) {
            return Ok(());
        }
        if classes.start != next {
            return Err(Error::State {
                problem: format!(
                    "a head of {next} classes has no room for classes {classes:?}; give new ones, or those of an earlier task"
                ),
            });
        }
        let (index, n) = (self.parts.len(), classes.len());
        let init = Init::TruncatedNormal { std: 0.02 };
        self.parts.push(Part {
            classes: classes.clone(),
            weight: params.create(&format!("head.{index}.weight"), &[n, self.dim], init)?,
            bias: params.create(&format!("head.{index}.bias"), &[n], Init::Zeros)?,
        });
        Ok(())
    }

    /// Logits `(B, classes)` of features `(B, D)`, for the classes of a task.
    pub fn task_logits(&self, features: &Tensor, classes: &Range<usize>) -> Result<Tensor> {
        match self.parts.iter().find(|part| part.classes == *classes) {
            Some(part) => part.logits(features),
            None => Err(Error::State {
                problem: format!("the head has no part for classes {classes:?}"),
            }),
        }
    }

    /// Logits `(B, classes seen)`.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let logits = self.parts.iter().map(|part| part.logits(features));
        Ok(Tensor::cat(&logits.collect::<Result<Vec<_>>>()?, 1)?.contiguous()?)
    }
}

impl Part {
    fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(features
            .matmul(&self.weight.t()?)?
            .broadcast_add(&self.bias)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// `torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.5)` on `w² / 2` from 1, by hand: g = 1.5 w.
    #[test]
    fn momentum_and_decay_are_pytorchs() -> Result<()> {
        let train = Train {
            epochs: 1,
            batch: 1,
            optimizer: OptimizerKind::Sgd,
            lr: 0.1,
            schedule: Schedule::Constant,
            weight_decay: 0.5,
            clip: None,
        };
        train.check()?;
        let moved = Var::new(1f32, &Device::Cpu)?;
        // A variable without a gradient is left alone, decay or not.
        let idle = Var::new(2f32, &Device::Cpu)?;
        let mut optimizer = Optimizer::new(vec![moved.clone(), idle.clone()], &train)?;
        let (mut weight, mut velocity) = (1f64, 0f64);
        for _ in 0..3 {
            optimizer.step(&(moved.sqr()? * 0.5)?)?;
            velocity = 0.9 * velocity + 1.5 * weight;
            weight -= 0.1 * velocity;
            let got = f64::from(moved.to_scalar::<f32>()?);
            assert!((got - weight).abs() < 1e-6, "{got} {weight}");
        }
        assert_eq!(idle.to_scalar::<f32>()?, 2.0);
        Ok(())
    }
}

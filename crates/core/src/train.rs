//! How the trainable part is trained: the `[train]` table, the head and the loss. [`optim`](crate::optim) has the rules.

use std::ops::Range;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::params::{Init, Params};
use crate::schedule::{Schedule, Warmup};

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
    /// How it rises before that; at once where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// Weight decay: decoupled with `adamw`, added to the gradient with `adam` and `sgd`.
    #[serde(default)]
    pub weight_decay: f64,
    /// Of `sgd`; 0.9 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
    /// Nesterov's momentum, of `sgd`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nesterov: bool,
    /// Of `adam` and `adamw`; 0.9 and 0.999 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Of `adam` and `adamw`; 1e-8 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Largest global L2 norm of the gradients; left out for no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
    /// What the optimiser keeps its moments in; f32 where left out.
    #[serde(default, skip_serializing_if = "Moments::is_default")]
    pub state: Moments,
}

/// Numbers of an optimiser's moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Moments {
    /// As PyTorch.
    #[default]
    F32,
    /// In half the space, rounded at random from draws that the step decides: exact in the mean, and another trajectory.
    Bf16,
}

impl Moments {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// PyTorch's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam; see [`adam`](crate::optim::adam).
    Adam,
    /// Adam with decoupled weight decay.
    AdamW,
    /// Stochastic gradient descent with momentum; see [`sgd`](crate::optim::sgd).
    Sgd,
}

impl Train {
    /// A constant rate, no decay, no clipping, and the defaults of the rule.
    pub fn new(epochs: usize, batch: usize, optimizer: OptimizerKind, lr: f64) -> Self {
        Self {
            epochs,
            batch,
            optimizer,
            lr,
            schedule: Schedule::Constant,
            warmup: None,
            weight_decay: 0.0,
            momentum: None,
            nesterov: false,
            betas: None,
            eps: None,
            clip: None,
            state: Moments::F32,
        }
    }

    /// Checks the ranges; the error names the key.
    pub fn check(&self) -> Result<()> {
        let hold = |key: &str, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(Error::setting(
                format!("train.{key}"),
                format!("must be {expected}, found {found}"),
            )),
        };
        const POSITIVE: &str = "greater than 0";
        hold("epochs", self.epochs > 0, POSITIVE, self.epochs.to_string())?;
        hold("batch", self.batch > 0, POSITIVE, self.batch.to_string())?;
        let lr_ok = self.lr > 0.0 && self.lr.is_finite();
        hold("lr", lr_ok, POSITIVE, self.lr.to_string())?;
        if let Some(clip) = self.clip {
            hold("clip", clip > 0.0, POSITIVE, clip.to_string())?;
        }
        let decay = self.weight_decay;
        let decay_ok = decay >= 0.0 && decay.is_finite();
        hold("weight_decay", decay_ok, "at least 0", decay.to_string())?;
        let sgd = self.optimizer == OptimizerKind::Sgd;
        for (key, given, belongs, to) in [
            ("momentum", self.momentum.is_some(), sgd, "\"sgd\""),
            ("nesterov", self.nesterov, sgd, "\"sgd\""),
            (
                "betas",
                self.betas.is_some(),
                !sgd,
                "\"adam\" and \"adamw\"",
            ),
            ("eps", self.eps.is_some(), !sgd, "\"adam\" and \"adamw\""),
        ] {
            if given && !belongs {
                let problem = format!("belongs to optimizer {to}; remove it");
                return Err(Error::setting(format!("train.{key}"), problem));
            }
        }
        const PART: &str = "at least 0 and below 1";
        if let Some(momentum) = self.momentum {
            let ok = (0.0..1.0).contains(&momentum);
            hold("momentum", ok, PART, momentum.to_string())?;
            let ok = momentum > 0.0 || !self.nesterov;
            hold("momentum", ok, "greater than 0 with nesterov", "0".into())?;
        }
        if let Some(betas) = self.betas {
            let ok = betas.iter().all(|beta| (0.0..1.0).contains(beta));
            hold("betas", ok, PART, format!("{betas:?}"))?;
        }
        if let Some(eps) = self.eps {
            let ok = eps >= 0.0 && eps.is_finite();
            hold("eps", ok, "at least 0", eps.to_string())?;
        }
        self.schedule.check()?;
        self.warmup.map_or(Ok(()), |w| w.check(self.epochs))
    }

    /// The factor on [`lr`](Self::lr) in `epoch`, counted from 0, behind `steps` steps.
    pub fn factor(&self, epoch: usize, steps: u64) -> f64 {
        match self.warmup {
            None => self.schedule.factor(epoch, self.epochs),
            Some(warmup) => warmup.factor(&self.schedule, epoch, self.epochs, steps),
        }
    }
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
        self.grow_from(classes, Init::TruncatedNormal { std: 0.02 }, params)
    }

    /// The same with weights that start as `init`.
    pub fn grow_from(
        &mut self,
        classes: &Range<usize>,
        init: Init,
        params: &mut Params,
    ) -> Result<()> {
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

//! `torch.optim.Adam` and `torch.optim.AdamW`.
//!
//! ```text
//! Adam:  g ← g + λ w                       AdamW:  w ← w − η λ w
//! m ← β₁ m + (1 − β₁) g
//! v ← β₂ v + (1 − β₂) g²
//! w ← w − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)          t: steps in which w had a gradient
//! ```

use candle_core::Tensor;

use super::{Slot, Step};
use crate::error::Result;
use crate::train::{OptimizerKind, Train};

/// Where the recipe says nothing.
pub const BETAS: [f64; 2] = [0.9, 0.999];
/// Where the recipe says nothing.
pub const EPS: f64 = 1e-8;

pub(super) const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

pub(super) struct Adam {
    betas: [f64; 2],
    eps: f64,
    /// Whether decay is AdamW's.
    decoupled: bool,
}

impl Adam {
    pub(super) fn new(train: &Train) -> Self {
        Self {
            betas: train.betas.unwrap_or(BETAS),
            eps: train.eps.unwrap_or(EPS),
            decoupled: train.optimizer == OptimizerKind::AdamW,
        }
    }

    pub(super) fn update(&self, slot: &mut Slot, grad: &Tensor, step: &Step) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let mut weight = slot.var.as_tensor().detach();
        let mut grad = (grad * step.scale)?;
        match self.decoupled {
            true => weight = (weight * (1.0 - step.lr * slot.weight_decay))?,
            false => grad = (grad + (&weight * slot.weight_decay)?)?,
        }
        let mut next = |now: &Tensor, beta: f64| match slot.moments.is_empty() {
            true => now * (1.0 - beta),
            false => (slot.moments.remove(0) * beta)? + (now * (1.0 - beta))?,
        };
        let m = next(&grad, beta1)?;
        let v = next(&grad.sqr()?, beta2)?;
        let t = slot.steps as f64;
        let (fix1, fix2) = (1.0 - beta1.powf(t), 1.0 - beta2.powf(t));
        let below = ((v.sqrt()? / fix2.sqrt())? + self.eps)?;
        slot.var
            .set(&(weight - ((&m / below)? * (step.lr / fix1))?)?)?;
        slot.moments = vec![m, v];
        Ok(())
    }
}

//! `torch.optim.SGD`: momentum without dampening, Nesterov's, and decay added to the gradient.
//!
//! ```text
//! g ← g + λ w
//! v ← μ v + g              v starts as the first g
//! w ← w − η v              Nesterov: w ← w − η (g + μ v);  without momentum: w ← w − η g
//! ```

use candle_core::Tensor;

use super::{Slot, Step};
use crate::error::Result;
use crate::train::Train;

/// Where the recipe says nothing.
pub const MOMENTUM: f64 = 0.9;

const MOMENTS: [&str; 1] = ["momentum_buffer"];

pub(super) struct Sgd {
    momentum: f64,
    nesterov: bool,
}

impl Sgd {
    pub(super) fn new(train: &Train) -> Self {
        Self {
            momentum: train.momentum.unwrap_or(MOMENTUM),
            nesterov: train.nesterov,
        }
    }

    pub(super) fn moments(&self) -> &'static [&'static str] {
        match self.momentum > 0.0 {
            true => &MOMENTS,
            false => &[],
        }
    }

    pub(super) fn update(&self, slot: &mut Slot, grad: &Tensor, step: &Step) -> Result<()> {
        let weight = slot.var.as_tensor().detach();
        let grad = ((grad * step.scale)? + (&weight * slot.weight_decay)?)?;
        let pull = match self.momentum > 0.0 {
            false => grad,
            true => {
                let velocity = match slot.moments.pop() {
                    Some(velocity) => ((velocity * self.momentum)? + &grad)?,
                    None => grad.clone(),
                };
                slot.moments.push(velocity.clone());
                match self.nesterov {
                    true => (grad + (velocity * self.momentum)?)?,
                    false => velocity,
                }
            }
        };
        Ok(slot.var.set(&(weight - (pull * step.lr)?)?)?)
    }
}

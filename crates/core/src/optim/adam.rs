//! `torch.optim.Adam` and `torch.optim.AdamW`.
//!
//! ```text
//! Adam:  g ← g + λ w                       AdamW:  w ← w − η λ w
//! m ← β₁ m + (1 − β₁) g
//! v ← β₂ v + (1 − β₂) g²
//! w ← w − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)          t: steps in which w had a gradient
//! ```

use candle_core::Tensor;
use half::bf16;

use super::values::{Number, apart, change, noise, read};
use super::{CHUNK, Slot, Step, each};
use crate::error::Result;
use crate::train::{Moments, OptimizerKind, Train};

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

/// One step of one variable, in the numbers it is computed in.
#[derive(Clone, Copy)]
struct Rates {
    /// Factor on the gradient.
    scale: f32,
    /// Of the weight in the gradient.
    pull: f32,
    /// Factor on the weight.
    keep: f32,
    /// 1 − β₁, β₂ and 1 − β₂.
    new1: f32,
    old2: f32,
    new2: f32,
    /// √(1 − β₂ᵗ).
    fix2: f32,
    eps: f32,
    /// η / (1 − β₁ᵗ).
    size: f32,
    seed: u32,
}

impl Adam {
    pub(super) fn new(train: &Train) -> Self {
        Self {
            betas: train.betas.unwrap_or(BETAS),
            eps: train.eps.unwrap_or(EPS),
            decoupled: train.optimizer == OptimizerKind::AdamW,
        }
    }

    /// `1 − β₁ᵗ` and `1 − β₂ᵗ`.
    fn fixes(&self, slot: &Slot) -> [f64; 2] {
        self.betas.map(|beta| 1.0 - beta.powf(slot.steps as f64))
    }

    /// On the processor, in one pass over the values.
    pub(super) fn fused(&self, slot: &Slot, grad: &Tensor, step: &Step) -> Result<()> {
        match step.moments {
            Moments::F32 => self.fused_as::<f32>(slot, grad, step),
            Moments::Bf16 => self.fused_as::<bf16>(slot, grad, step),
        }
    }

    fn fused_as<T: Number>(&self, slot: &Slot, grad: &Tensor, step: &Step) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let [fix1, fix2] = self.fixes(slot);
        let decay = slot.weight_decay;
        let rates = Rates {
            scale: step.scale as f32,
            pull: if self.decoupled { 0.0 } else { decay as f32 },
            keep: if self.decoupled {
                (1.0 - step.lr * decay) as f32
            } else {
                1.0
            },
            new1: (1.0 - beta1) as f32,
            old2: beta2 as f32,
            new2: (1.0 - beta2) as f32,
            fix2: fix2.sqrt() as f32,
            eps: self.eps as f32,
            size: (step.lr / fix1) as f32,
            seed: step.seed,
        };
        let [m, v] = slot.moments.as_slice() else {
            return Ok(());
        };
        let var = slot.var.as_tensor();
        Ok(read(&apart(grad, var)?, |g| {
            change::<f32>(var, |w| {
                change::<T>(m, |m| {
                    change::<T>(v, |v| {
                        let parts = w.chunks_mut(CHUNK).zip(m.chunks_mut(CHUNK));
                        let parts = parts.zip(v.chunks_mut(CHUNK)).zip(g.chunks(CHUNK));
                        each(parts, |start, (((w, m), v), g)| {
                            pulp::Arch::new().dispatch(
                                #[inline(always)]
                                || rates.pass(start, w, m, v, g),
                            );
                        });
                        Ok(())
                    })
                })
            })
        })?)
    }

    /// On other devices, by operations of tensors.
    pub(super) fn by_tensors(&self, slot: &mut Slot, grad: &Tensor, step: &Step) -> Result<()> {
        let [beta1, beta2] = self.betas;
        let [fix1, fix2] = self.fixes(slot);
        let mut weight = slot.var.as_tensor().detach();
        let mut grad = (grad * step.scale)?;
        match (self.decoupled, slot.weight_decay) {
            (_, 0.0) => {}
            (true, decay) => weight = (weight * (1.0 - step.lr * decay))?,
            (false, decay) => grad = (grad + (&weight * decay)?)?,
        }
        let [m, v] = slot.moments.as_slice() else {
            return Ok(());
        };
        let m = ((m * beta1)? + (&grad * (1.0 - beta1))?)?;
        let v = ((v * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
        let below = ((v.sqrt()? / fix2.sqrt())? + self.eps)?;
        let next = (weight - ((&m / below)? * (step.lr / fix1))?)?;
        slot.var.set(&next)?;
        slot.moments = vec![m, v];
        Ok(())
    }
}

impl Rates {
    /// `start` is the place of the first value in its variable.
    #[inline(always)]
    fn pass<T: Number>(self, start: usize, w: &mut [f32], m: &mut [T], v: &mut [T], g: &[f32]) {
        let moments = m.iter_mut().zip(v);
        for (i, ((w, g), (m, v))) in w.iter_mut().zip(g).zip(moments).enumerate() {
            let g = g * self.scale + self.pull * *w;
            let mut first = m.wide();
            first += self.new1 * (g - first);
            let second = self.old2 * v.wide() + self.new2 * g * g;
            let below = second.sqrt() / self.fix2 + self.eps;
            *w = self.keep * *w - self.size * first / below;
            let noise = noise((start + i) as u32, self.seed);
            *m = T::narrow(first, noise);
            *v = T::narrow(second, noise >> 16);
        }
    }
}

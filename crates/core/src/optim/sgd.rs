//! `torch.optim.SGD`: momentum without dampening, Nesterov's, and decay added to the gradient.
//!
//! ```text
//! g ← g + λ w
//! v ← μ v + g              v starts at 0
//! w ← w − η v              Nesterov: w ← w − η (g + μ v);  without momentum: w ← w − η g
//! ```

use candle_core::Tensor;
use half::bf16;

use super::values::{Number, apart, change, noise, read};
use super::{CHUNK, Slot, Step, each};
use crate::error::Result;
use crate::train::{Moments, Train};

/// Where the recipe says nothing.
pub const MOMENTUM: f64 = 0.9;

const MOMENTS: [&str; 1] = ["momentum_buffer"];

pub(super) struct Sgd {
    momentum: f64,
    nesterov: bool,
}

/// One step of one variable, in the numbers it is computed in.
#[derive(Clone, Copy)]
struct Rates {
    /// Factor on the gradient.
    scale: f32,
    /// Of the weight in the gradient.
    pull: f32,
    momentum: f32,
    nesterov: bool,
    lr: f32,
    seed: u32,
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

    /// On the processor, in one pass over the values.
    pub(super) fn fused(&self, slot: &Slot, grad: &Tensor, step: &Step) -> Result<()> {
        let rates = Rates {
            scale: step.scale as f32,
            pull: slot.weight_decay as f32,
            momentum: self.momentum as f32,
            nesterov: self.nesterov,
            lr: step.lr as f32,
            seed: step.seed,
        };
        let var = slot.var.as_tensor();
        Ok(read(&apart(grad, var)?, |g| {
            change::<f32>(var, |w| match (slot.moments.first(), step.moments) {
                (None, _) => {
                    each(w.chunks_mut(CHUNK).zip(g.chunks(CHUNK)), |_, (w, g)| {
                        pulp::Arch::new().dispatch(
                            #[inline(always)]
                            || rates.plain(w, g),
                        );
                    });
                    Ok(())
                }
                (Some(v), Moments::F32) => rates.all::<f32>(w, v, g),
                (Some(v), Moments::Bf16) => rates.all::<bf16>(w, v, g),
            })
        })?)
    }

    /// On other devices, by operations of tensors.
    pub(super) fn by_tensors(&self, slot: &mut Slot, grad: &Tensor, step: &Step) -> Result<()> {
        let weight = slot.var.as_tensor().detach();
        let mut grad = (grad * step.scale)?;
        if slot.weight_decay != 0.0 {
            grad = (grad + (&weight * slot.weight_decay)?)?;
        }
        if let Some(velocity) = slot.moments.pop() {
            let velocity = ((velocity * self.momentum)? + &grad)?;
            grad = match self.nesterov {
                true => (grad + (&velocity * self.momentum)?)?,
                false => velocity.clone(),
            };
            slot.moments.push(velocity);
        }
        Ok(slot.var.set(&(weight - (grad * step.lr)?)?)?)
    }
}

impl Rates {
    fn all<T: Number>(self, w: &mut [f32], v: &Tensor, g: &[f32]) -> candle_core::Result<()> {
        change::<T>(v, |v| {
            let parts = w.chunks_mut(CHUNK).zip(v.chunks_mut(CHUNK));
            each(parts.zip(g.chunks(CHUNK)), |start, ((w, v), g)| {
                pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || self.pass(start, w, v, g),
                );
            });
            Ok(())
        })
    }

    #[inline(always)]
    fn plain(self, w: &mut [f32], g: &[f32]) {
        for (w, g) in w.iter_mut().zip(g) {
            *w -= self.lr * (g * self.scale + self.pull * *w);
        }
    }

    /// `start` is the place of the first value in its variable.
    #[inline(always)]
    fn pass<T: Number>(self, start: usize, w: &mut [f32], v: &mut [T], g: &[f32]) {
        for (i, ((w, g), v)) in w.iter_mut().zip(g).zip(v).enumerate() {
            let g = g * self.scale + self.pull * *w;
            let velocity = self.momentum * v.wide() + g;
            let by = if self.nesterov {
                g + self.momentum * velocity
            } else {
                velocity
            };
            *w -= self.lr * by;
            *v = T::narrow(velocity, noise((start + i) as u32, self.seed));
        }
    }
}

//! Optimisers by PyTorch's names and rules: [`sgd`], [`adam`] (with AdamW), parameter groups, clipping by norm.
//!
//! A step goes `backward`, clipping over all groups, then each variable by its group's rate
//! `train.lr · group.lr · schedule · warm-up`. A variable without a gradient is left alone: neither its decay nor its count
//! of steps moves, as in `torch.optim`. On the processor weights and moments are changed where they are, in one pass over
//! them; the result does not depend on the number of threads.

pub mod adam;
pub mod sgd;
#[cfg(test)]
mod torch_tests;
mod values;

use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::session::Session;
use crate::train::{Moments, OptimizerKind, Train};

use adam::Adam;
use sgd::Sgd;

/// Variables that share a rate.
#[derive(Debug, Clone)]
pub struct Group {
    /// By name, under which their moments are saved.
    pub vars: Vec<(String, Var)>,
    /// Factor on `train.lr`.
    pub lr: f64,
    /// Instead of `train.weight_decay`.
    pub weight_decay: Option<f64>,
}

/// A rule over a fixed set of variables, with their moments.
pub struct Optimizer {
    train: Train,
    rule: Rule,
    slots: Vec<Slot>,
    /// Pass over the task, from 0.
    epoch: usize,
    /// Steps so far.
    steps: u64,
    /// Whether the processor goes over values in one pass.
    fuse: bool,
}

enum Rule {
    Sgd(Sgd),
    Adam(Adam),
}

/// A variable and what its rule remembers of it.
struct Slot {
    name: String,
    var: Var,
    lr: f64,
    weight_decay: f64,
    /// Steps in which it had a gradient.
    steps: u64,
    /// In the order of [`Rule::moments`]; none before the first gradient.
    moments: Vec<Tensor>,
}

/// What a rule needs to know of a step.
struct Step {
    /// Rate of the variable.
    lr: f64,
    /// Factor on the gradient.
    scale: f64,
    /// What moments are kept in.
    moments: Moments,
    /// Of the rounding of moments.
    seed: u32,
}

/// Values that one thread goes through at a time.
const CHUNK: usize = 1 << 14;

/// Does `work` on every part, with the place of its first value, on the threads of the rayon pool where there are several.
fn each<P: Send>(
    parts: impl ExactSizeIterator<Item = P> + Send,
    work: impl Fn(usize, P) + Send + Sync,
) {
    match parts.len() {
        0 | 1 => parts.for_each(|part| work(0, part)),
        _ => {
            let parts: Vec<P> = parts.collect();
            let parts = parts.into_par_iter().enumerate();
            parts.for_each(|(i, part)| work(i * CHUNK, part));
        }
    }
}

impl Optimizer {
    /// Fresh moments for `vars`, all at `train.lr`.
    pub fn new(vars: Vec<(String, Var)>, train: &Train) -> Result<Self> {
        let group = Group {
            vars,
            lr: 1.0,
            weight_decay: None,
        };
        Self::grouped(vec![group], train)
    }

    /// Fresh moments for groups; a variable belongs to one of them.
    pub fn grouped(groups: Vec<Group>, train: &Train) -> Result<Self> {
        let rule = match train.optimizer {
            OptimizerKind::Sgd => Rule::Sgd(Sgd::new(train)),
            OptimizerKind::Adam | OptimizerKind::AdamW => Rule::Adam(Adam::new(train)),
        };
        let mut slots: Vec<Slot> = Vec::new();
        for group in groups {
            for (name, var) in group.vars {
                let same = |slot: &Slot| slot.name == name || slot.var.id() == var.id();
                if slots.iter().any(same) {
                    return Err(Error::State {
                        problem: format!("parameter `{name}` is given to the optimiser twice"),
                    });
                }
                slots.push(Slot {
                    name,
                    var,
                    lr: group.lr,
                    weight_decay: group.weight_decay.unwrap_or(train.weight_decay),
                    steps: 0,
                    moments: Vec::new(),
                });
            }
        }
        Ok(Self {
            train: train.clone(),
            rule,
            slots,
            epoch: 0,
            steps: 0,
            fuse: true,
        })
    }

    /// A pass over the task begins, counted from 0; schedules go by it.
    pub fn begin_epoch(&mut self, epoch: usize) {
        self.epoch = epoch;
    }

    /// The rate of the next step, for a group of factor 1.
    pub fn lr(&self) -> f64 {
        self.train.lr * self.train.factor(self.epoch, self.steps)
    }

    /// Backward pass, clipping, update.
    pub fn step(&mut self, loss: &Tensor) -> Result<()> {
        self.apply(&loss.backward()?)
    }

    /// Clipping and update, by gradients that are there.
    pub fn apply(&mut self, grads: &GradStore) -> Result<()> {
        let scale = match self.train.clip {
            Some(max) => (max / (self.norm(grads)? + 1e-6)).min(1.0),
            None => 1.0,
        };
        let lr = self.lr();
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let Some(grad) = grads.get(&slot.var) else {
                continue;
            };
            let fused = self.fuse && values::at_hand(&slot.var) && grad.dtype() == DType::F32;
            if slot.steps == 0 {
                slot.moments = self.rule.fresh(&slot.var, self.train.state, fused)?;
            }
            slot.steps += 1;
            let step = Step {
                lr: lr * slot.lr,
                scale,
                moments: self.train.state,
                seed: (slot.steps as u32).wrapping_mul(0x85eb_ca6b) ^ (at as u32) << 16,
            };
            match (&self.rule, fused) {
                (Rule::Sgd(sgd), true) => sgd.fused(slot, grad, &step)?,
                (Rule::Sgd(sgd), false) => sgd.by_tensors(slot, grad, &step)?,
                (Rule::Adam(adam), true) => adam.fused(slot, grad, &step)?,
                (Rule::Adam(adam), false) => adam.by_tensors(slot, grad, &step)?,
            }
        }
        self.steps += 1;
        Ok(())
    }

    /// The L2 norm of all gradients together, which `train.clip` bounds as `torch.nn.utils.clip_grad_norm_` does:
    /// all are scaled by `min(1, clip / (norm + 1e-6))`.
    pub fn norm(&self, grads: &GradStore) -> Result<f64> {
        let mut sum = 0f64;
        for slot in &self.slots {
            if let Some(grad) = grads.get(&slot.var) {
                sum += squares(grad)?;
            }
        }
        Ok(sum.sqrt())
    }

    /// Moments and counters: `NAME.MOMENT` by PyTorch's names, `NAME.step`, and the place in the schedule.
    pub fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        session.put_count("epoch", self.epoch as u64)?;
        session.put_count("steps", self.steps)?;
        for slot in self.slots.iter().filter(|slot| slot.steps > 0) {
            session.put_count(&format!("{}.step", slot.name), slot.steps)?;
            for (moment, tensor) in self.rule.moments().iter().zip(&slot.moments) {
                session.put(&format!("{}.{moment}", slot.name), tensor.clone());
            }
        }
        Ok(session)
    }

    /// Takes up where [`session`](Self::session) was taken, of an optimiser over the same variables.
    pub fn resume(&mut self, mut session: Session) -> Result<()> {
        self.epoch = session.take_count("epoch")? as usize;
        self.steps = session.take_count("steps")?;
        for slot in &mut self.slots {
            let step = format!("{}.step", slot.name);
            if !session.tensors().contains_key(&step) {
                continue;
            }
            slot.steps = session.take_count(&step)?;
            let fresh = self.rule.fresh(
                &slot.var,
                self.train.state,
                self.fuse && values::at_hand(&slot.var),
            )?;
            let take = |(moment, fresh): (&&str, &Tensor)| {
                let name = format!("{}.{moment}", slot.name);
                let tensor = session.take_shaped(&name, slot.var.dims())?;
                if tensor.dtype() != fresh.dtype() {
                    return Err(Error::State {
                        problem: format!(
                            "`{name}` is kept in {:?}, expected {:?}",
                            tensor.dtype(),
                            fresh.dtype()
                        ),
                    });
                }
                // Its own, since it is changed in place.
                Ok(tensor.to_device(slot.var.device())?.copy()?.detach())
            };
            let moments = self.rule.moments().iter().zip(&fresh);
            slot.moments = moments.map(take).collect::<Result<_>>()?;
        }
        session.end()
    }
}

impl Rule {
    /// Names of what is remembered of each variable.
    fn moments(&self) -> &'static [&'static str] {
        match self {
            Self::Sgd(sgd) => sgd.moments(),
            Self::Adam(_) => &adam::MOMENTS,
        }
    }

    /// Moments of a variable before its first gradient.
    fn fresh(&self, var: &Var, kept: Moments, fused: bool) -> Result<Vec<Tensor>> {
        let dtype = match (kept, fused) {
            (Moments::F32, _) => var.dtype(),
            (Moments::Bf16, true) => DType::BF16,
            (Moments::Bf16, false) => {
                let problem = "\"bf16\" is for contiguous f32 on the processor; leave it out";
                return Err(Error::setting("train.state", problem));
            }
        };
        let zeros = |_: &&str| Ok(Tensor::zeros(var.dims(), dtype, var.device())?);
        self.moments().iter().map(zeros).collect()
    }
}

/// Sum of squares. On the processor in f64 and chunk by chunk, so that it does not depend on threads.
fn squares(grad: &Tensor) -> Result<f64> {
    if !(grad.device().is_cpu() && grad.dtype() == DType::F32) {
        let sum = grad.sqr()?.sum_all()?.to_dtype(DType::F64)?;
        return Ok(sum.to_scalar::<f64>()?);
    }
    let mut sum = 0f64;
    values::read(grad, |values| {
        let chunk = |chunk: &[f32]| -> f64 {
            let mut lanes = [0f64; 8];
            for part in chunk.chunks(8) {
                for (lane, x) in lanes.iter_mut().zip(part) {
                    *lane += f64::from(*x) * f64::from(*x);
                }
            }
            lanes.iter().sum()
        };
        let parts: Vec<f64> = values.par_chunks(CHUNK).map(chunk).collect();
        sum = parts.iter().sum();
        Ok(())
    })?;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    /// `torch.optim.SGD(lr=0.1, momentum=0.9, weight_decay=0.5)` on `w² / 2` from 1, by hand: g = 1.5 w.
    #[test]
    fn momentum_and_decay_are_pytorchs() -> Result<()> {
        let train = Train {
            weight_decay: 0.5,
            ..Train::new(1, 1, OptimizerKind::Sgd, 0.1)
        };
        train.check()?;
        let moved = Var::new(1f32, &Device::Cpu)?;
        // A variable without a gradient is left alone, decay or not.
        let idle = Var::new(2f32, &Device::Cpu)?;
        let named = vec![
            ("moved".to_owned(), moved.clone()),
            ("idle".to_owned(), idle.clone()),
        ];
        let mut optimizer = Optimizer::new(named, &train)?;
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

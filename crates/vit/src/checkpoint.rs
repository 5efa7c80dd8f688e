//! Activation checkpointing (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost): of a block that trains, only what
//! goes in is kept for the backward pass, which runs the block again.
//!
//! candle's backward asks an operation for the gradients of its arguments, three at most, and a block has a dozen weights. So each
//! weight goes through a [`Deposit`], an operation without a value worth speaking of, and their outputs together are the second
//! argument of the [`Recompute`] of the block. The backward of `Recompute` runs the block over a graph of its own, lays
//! down the gradients of the weights, and returns that of the tokens; those of the deposits, which come behind it, pick them up.
//! So optimisers, clipping and everything else see gradients as ever.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Storage, Tensor, TensorId, Var, bail,
};

use crate::ops;

/// What a block computes of its input.
pub(crate) type Run = Arc<dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync>;

/// Gradients on their way from the block to its weights.
type Desk = Arc<Mutex<HashMap<TensorId, Tensor>>>;

fn open(desk: &Desk) -> MutexGuard<'_, HashMap<TensorId, Tensor>> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `run(x)`, of which the backward pass keeps `x` alone. `weights` are all that `run` trains.
pub(crate) fn checkpointed(x: &Tensor, weights: &[&Tensor], run: Run) -> Result<Tensor> {
    // The graph of this forward is dropped with `y`.
    let value = run(&x.detach())?.detach().contiguous()?;
    let desk = Desk::default();
    let deposits = weights
        .iter()
        .map(|weight| weight.apply_op1(Deposit(desk.clone(), weight.id())));
    let deposits: Vec<Tensor> = deposits.collect::<Result<_>>()?;
    let op = Recompute {
        run,
        desk,
        weights: weights.iter().map(|weight| (*weight).clone()).collect(),
        value: Mutex::new(Some(value)),
    };
    x.apply_op2(&Tensor::cat(&deposits, 0)?, op)
}

/// A weight to a single 0, whose gradient is what lies on the desk for it.
struct Deposit(Desk, TensorId);

impl CustomOp1 for Deposit {
    fn name(&self) -> &'static str {
        "checkpoint-weight"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(open(&self.0).remove(&self.1))
    }
}

/// The block, its value known already.
struct Recompute {
    run: Run,
    desk: Desk,
    weights: Vec<Tensor>,
    value: Mutex<Option<Tensor>>,
}

impl CustomOp2 for Recompute {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let value = self
            .value
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(value) = value else {
            bail!("a checkpoint is asked for its value twice");
        };
        let (storage, layout) = value.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            bail!("checkpoints are for the CPU");
        };
        let values = ops::slice(storage, layout)?.to_vec();
        Ok((CpuStorage::F32(values), value.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        deposits: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let x = Var::from_tensor(&x.detach())?;
        let y = (self.run)(x.as_tensor())?;
        // The gradient of this sum with respect to y is `grad`.
        let mut grads = (y * grad.detach())?.sum_all()?.backward()?;
        let mut desk = open(&self.desk);
        for weight in &self.weights {
            if let Some(grad) = grads.remove(weight) {
                desk.insert(weight.id(), grad);
            }
        }
        Ok((grads.remove(&x), Some(deposits.ones_like()?)))
    }
}

//! Weights of old and new classes in PromptFusion's loss (`HaoranChen/PromptFusion:model.py`, `train_pf.py`).
//!
//! ```text
//! L = −w_y log softmax(z)_y          w_c = (t/2) / σ(β_c) of an old class, σ(α_c) of a new one; 1 in the first task
//! ```

use candle_core::{D, Tensor};
use candle_nn::ops::{log_softmax, sigmoid};
use candlewick_core::{Error, Init, Params, Result, TaskInfo};
use serde::{Deserialize, Serialize};

/// What the weights of the loss belong to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weights {
    /// A class.
    #[default]
    Class,
    /// A place in the batch and a class.
    Slot,
}

/// `β` and `α` of a task that is not the first; both start at 1 and train.
pub struct Balance {
    kind: Weights,
    /// `t`, counted from 0.
    task: usize,
    old: Tensor,
    new: Tensor,
}

impl Balance {
    /// Creates them for a task; `slots` are the places of a batch.
    pub fn of(
        kind: Weights,
        task: &TaskInfo,
        slots: usize,
        params: &mut Params,
    ) -> Result<Option<Self>> {
        let (t, before, count) = (task.index, task.classes.start, task.classes.len());
        let (old, new) = match kind {
            Weights::Class if t == 0 => return Ok(None),
            Weights::Class => (
                params.create(&format!("beta.{t}"), &[before], Init::Ones)?,
                params.create(&format!("alpha.{t}"), &[count], Init::Ones)?,
            ),
            Weights::Slot if t == 0 => {
                params.create("alpha", &[slots, count], Init::Ones)?;
                return Ok(None);
            }
            Weights::Slot => {
                let alpha = params.get("alpha")?;
                let first = alpha.dim(1)?;
                if first != count {
                    return Err(Error::setting(
                        "method.weights",
                        format!(
                            "\"slot\" has one α for all tasks, which is of {first} classes, and task {} has {count}; take \"class\" for tasks of unequal size",
                            t + 1
                        ),
                    ));
                }
                let beta = params.create(&format!("beta.{t}"), &[slots, before], Init::Ones)?;
                (beta, alpha)
            }
        };
        Ok(Some(Self {
            kind,
            task: t,
            old,
            new,
        }))
    }
}

/// The loss of logits `(B, classes seen)`, mean over the batch.
pub fn loss(z: &Tensor, labels: &[u32], balance: Option<&Balance>) -> Result<Tensor> {
    let (n, classes) = z.dims2()?;
    if let Some(label) = labels.iter().find(|label| **label as usize >= classes) {
        return Err(Error::State {
            problem: format!("label {label} is not among the {classes} classes seen"),
        });
    }
    let target = Tensor::from_slice(labels, n, z.device())?;
    let column = target.unsqueeze(1)?;
    let log_p = log_softmax(z, D::Minus1)?.gather(&column, 1)?.squeeze(1)?;
    let Some(balance) = balance else {
        return Ok(log_p.mean_all()?.neg()?);
    };
    let old = (sigmoid(&balance.old)?.recip()? * (balance.task as f64 / 2.0))?;
    let all = Tensor::cat(&[old, sigmoid(&balance.new)?], D::Minus1)?;
    let own = match balance.kind {
        Weights::Class => all.index_select(&target, 0)?,
        Weights::Slot => all.narrow(0, 0, n)?.gather(&column, 1)?.squeeze(1)?,
    };
    Ok((log_p * own)?.mean_all()?.neg()?)
}

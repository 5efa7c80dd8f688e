//! Sequential fine-tuning: every task trains the network on and nothing is done about forgetting. The floor of methods that
//! train the backbone.
//!
//! ```text
//! L = CE(z_t, y)          over the classes of the task, by the `[train]` table
//! ```
//!
//! As `LAMDA-CL/LAMDA-PILOT:models/finetune.py` (5240714) and "Seq FT" beside SLCA have it. `backbone_lr` makes it gentle ("Seq FT
//! with SL" there), `layer_decay` is that of BEiT (Bao et al. 2022, `microsoft/unilm:beit/optim_factory.py`). See
//! [`whole`](crate::whole) for the rates.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Batch, Error, Method, Progress, Result, Session, State, Task, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::whole::{Among, Rates, Whole};

/// `[method] name = "finetune"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finetune {
    /// What trains; everything where left out.
    #[serde(default, skip_serializing_if = "Part::is_default")]
    pub part: Part,
    /// Factor on the rate of the backbone; 1 where left out.
    #[serde(default = "one")]
    pub backbone_lr: f64,
    /// Factor on the rate from each layer to the one before it; 1 where left out.
    #[serde(default = "one")]
    pub layer_decay: f64,
}

/// What trains.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Backbone and head.
    #[default]
    All,
    /// The head: the same as [`linear`](crate::linear).
    Head,
}

impl Part {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

pub(crate) fn one() -> f64 {
    1.0
}

/// That a factor on a rate is one; the error names the key.
pub(crate) fn check_factor(key: &str, factor: f64) -> Result<()> {
    match factor > 0.0 && factor <= 1.0 {
        true => Ok(()),
        false => Err(Error::setting(
            format!("method.{key}"),
            format!("must be greater than 0 and at most 1, found {factor}"),
        )),
    }
}

impl Finetune {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        check_factor("backbone_lr", self.backbone_lr)?;
        check_factor("layer_decay", self.layer_decay)?;
        match self.part == Part::Head && (self.backbone_lr, self.layer_decay) != (1.0, 1.0) {
            true => Err(Error::setting(
                "method.part",
                "\"head\" leaves the backbone as it is; remove backbone_lr and layer_decay",
            )),
            false => Ok(()),
        }
    }

    pub(crate) fn trains_backbone(&self) -> bool {
        self.part == Part::All
    }

    pub(crate) fn rates(&self) -> Rates {
        match self.part {
            Part::Head => Rates::Head,
            Part::All => Rates::All {
                backbone: self.backbone_lr,
                layer_decay: self.layer_decay,
            },
        }
    }

    /// `seed` draws the heads.
    pub fn build(&self, backbone: Arc<dyn Backbone>, train: Train, seed: u64) -> Result<Finetuned> {
        self.check()?;
        let whole = Whole::new(backbone, train, self.rates(), Among::Task, seed)?;
        Ok(Finetuned(whole))
    }
}

/// Sequential fine-tuning under way.
pub struct Finetuned(Whole);

impl Finetuned {
    /// The network.
    pub fn whole(&self) -> &Whole {
        &self.0
    }
}

impl Method for Finetuned {
    fn epochs(&self) -> usize {
        self.0.train().epochs
    }

    fn batch_size(&self) -> usize {
        self.0.train().batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.0.begin_task(task)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.0.begin_epoch(epoch);
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.0.observe(batch)
    }

    fn end_task(&mut self, _: &Task, _: Progress<'_>) -> Result<()> {
        self.0.settle();
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        self.0.logits(&self.0.features(batch)?)
    }

    fn trainable(&self) -> usize {
        self.0.trainable()
    }

    fn state(&self) -> Result<State> {
        self.0.state()
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.0.restore(tasks, state)
    }

    fn session(&self) -> Result<Session> {
        self.0.session()
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        self.0.resume(tasks, state, session)
    }
}

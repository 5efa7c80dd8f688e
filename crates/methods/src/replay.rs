//! Experience replay: images of earlier tasks are kept and trained on among the new ones.
//!
//! ```text
//! L = CE([z_0 … z_t], y)          over new images and exemplars alike, by the `[train]` table
//! ```
//!
//! The network is that of [`finetune`](crate::finetune), the whole backbone or the head alone, its optimiser fresh in every task;
//! the memory that of [`exemplars`](crate::exemplars), chosen behind each task by the features that the network then has. New
//! images and exemplars come in one shuffled order, each once in a pass, so batches hold as many of each as there are; there is
//! no second batch from the memory as in Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning".

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Batch, Exemplars, Method, Progress, Result, Session, State, Task, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::exemplars::{Kept, Memory};
use crate::finetune::{Finetune, Part, one};
use crate::whole::{Among, Whole};

/// Before the names of the network.
const NAME: &str = "replay.";

/// `[method] name = "replay"`, with the keys of [`finetune`](crate::finetune).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replay {
    /// What trains; everything where left out.
    #[serde(default, skip_serializing_if = "Part::is_default")]
    pub part: Part,
    /// Factor on the rate of the backbone; 1 where left out.
    #[serde(default = "one")]
    pub backbone_lr: f64,
    /// Factor on the rate from each layer to the one before it; 1 where left out.
    #[serde(default = "one")]
    pub layer_decay: f64,
    /// What is kept.
    pub memory: Memory,
}

impl Replay {
    pub(crate) fn network(&self) -> Finetune {
        Finetune {
            part: self.part,
            backbone_lr: self.backbone_lr,
            layer_decay: self.layer_decay,
        }
    }

    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.network().check()?;
        self.memory.check()
    }

    /// `seed` draws heads and exemplars; `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Replaying> {
        self.check()?;
        let rates = self.network().rates();
        Ok(Replaying {
            whole: Whole::new(backbone, train, rates, Among::Seen, seed)?,
            kept: self.memory.build(seed)?,
            batch,
        })
    }
}

/// Experience replay under way.
pub struct Replaying {
    whole: Whole,
    kept: Kept,
    batch: usize,
}

impl Replaying {
    /// The memory.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }
}

impl Method for Replaying {
    fn epochs(&self) -> usize {
        self.whole.train().epochs
    }

    fn batch_size(&self) -> usize {
        self.whole.train().batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.whole.begin_task(task)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.whole.begin_epoch(epoch);
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.whole.observe(batch)
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.whole.settle();
        let whole = &self.whole;
        let features = |batch: &Batch| whole.features(batch);
        self.kept.learn(task, &features, self.batch, progress)
    }

    fn exemplars(&self) -> Option<Exemplars> {
        Some(self.kept.exemplars())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        self.whole.logits(&self.whole.features(batch)?)
    }

    fn trainable(&self) -> usize {
        self.whole.trainable()
    }

    fn state(&self) -> Result<State> {
        self.kept.beside(NAME, self.whole.state()?)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        let network = self.kept.apart(NAME, state)?;
        self.whole.restore(tasks, &network)
    }

    fn session(&self) -> Result<Session> {
        self.whole.session()
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        let network = self.kept.apart(NAME, state)?;
        self.whole.resume(tasks, &network, session)
    }
}

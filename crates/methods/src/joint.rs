//! Joint training: in every task the given network is trained from scratch on all images seen. The ceiling of methods that train
//! the backbone; no continual learner, since it asks for all earlier images.
//!
//! ```text
//! L = CE([z_0 … z_t], y)          over the images of tasks 0 … t, by the `[train]` table
//! ```
//!
//! It is to be run over [`Stream::cumulative`](candlewick_core::Stream::cumulative). With `T` tasks of the same size it takes
//! `(T + 1) / 2` times the steps of sequential fine-tuning, all of which the report counts. Published as "joint" beside SLCA and
//! RanPAC, behind the last task alone.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Batch, Error, Method, Progress, Result, Session, State, Task, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::finetune::Finetune;
use crate::whole::{Among, Whole};

/// Before the names of what is learned: nothing of it outlives its task.
const NAME: &str = "joint.";

/// `[method] name = "joint"`, with the keys of [`finetune`](crate::finetune).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Joint(pub Finetune);

impl Joint {
    /// `seed` draws the heads, in each task the same ones.
    pub fn build(&self, backbone: Arc<dyn Backbone>, train: Train, seed: u64) -> Result<Jointly> {
        self.0.check()?;
        train.check()?;
        Ok(Jointly {
            config: self.clone(),
            backbone,
            train,
            seed,
            tasks: Vec::new(),
            whole: None,
        })
    }
}

/// Joint training under way.
pub struct Jointly {
    config: Joint,
    backbone: Arc<dyn Backbone>,
    train: Train,
    seed: u64,
    tasks: Vec<TaskInfo>,
    whole: Option<Whole>,
}

impl Jointly {
    fn fresh(&self) -> Result<Whole> {
        let rates = self.config.0.rates();
        Whole::new(
            self.backbone.clone(),
            self.train.clone(),
            rates,
            Among::Seen,
            self.seed,
        )
    }

    fn whole(&self) -> Result<&Whole> {
        self.whole.as_ref().ok_or_else(before)
    }

    fn saved(state: &State) -> State {
        let own = |(name, tensor): (&String, &Tensor)| {
            let name = name.strip_prefix(NAME).unwrap_or(name);
            (name.to_owned(), tensor.clone())
        };
        state.iter().map(own).collect()
    }
}

fn before() -> Error {
    Error::State {
        problem: "no task has begun; call begin_task".into(),
    }
}

impl Method for Jointly {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.tasks.push(task.clone());
        // The one before goes first, so that there are never two.
        self.whole = None;
        let mut whole = self.fresh()?;
        for task in &self.tasks {
            whole.begin_task(task)?;
        }
        self.whole = Some(whole);
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.whole.as_mut().ok_or_else(before)?.begin_epoch(epoch);
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.whole.as_mut().ok_or_else(before)?.observe(batch)
    }

    fn end_task(&mut self, _: &Task, _: Progress<'_>) -> Result<()> {
        self.whole.as_mut().ok_or_else(before)?.settle();
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let whole = self.whole()?;
        whole.logits(&whole.features(batch)?)
    }

    fn trainable(&self) -> usize {
        let whole = self.whole.as_ref();
        whole.map_or(self.backbone.spec().parameters, Whole::trainable)
    }

    fn state(&self) -> Result<State> {
        let Some(whole) = &self.whole else {
            return Ok(State::new());
        };
        let state = whole.state()?.into_iter();
        Ok(state
            .map(|(name, t)| (format!("{NAME}{name}"), t))
            .collect())
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.resume(tasks, state, Session::new())
    }

    fn session(&self) -> Result<Session> {
        self.whole
            .as_ref()
            .map_or(Ok(Session::new()), Whole::session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        self.tasks = tasks.to_vec();
        if tasks.is_empty() {
            return session.end();
        }
        let mut whole = self.fresh()?;
        whole.resume(tasks, &Self::saved(state), session)?;
        self.whole = Some(whole);
        Ok(())
    }
}

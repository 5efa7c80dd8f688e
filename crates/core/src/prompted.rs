//! The method most papers need: a prompt, a head, a masked loss, an optimiser per task.

use std::sync::Arc;

use candle_core::Tensor;

use crate::backbone::{Backbone, Features, Frozen};
use crate::error::{Error, Result};
use crate::method::{Method, Progress, State};
use crate::optim::Optimizer;
use crate::params::Params;
use crate::prompt::{Cue, Outputs, Prompt};
use crate::session::Session;
use crate::task::{Batch, Task, TaskInfo};
use crate::train::{Head, Train, masked_cross_entropy};
use crate::usage::Choice;

/// What the head reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The CLS token.
    Cls,
    /// The mean over the outputs of the prompts that stayed to the end (L2P).
    PromptMean,
}

/// A prompt on a frozen backbone, trained by cross-entropy over the current task's classes plus
/// the prompt's own auxiliary loss.
///
/// Whoever writes a [`Prompt`] gets training, prediction, saving and resuming from here.
pub struct Prompted<P> {
    frozen: Frozen,
    prompt: P,
    pool: Pool,
    head: Head,
    params: Params,
    train: Train,
    current: Option<(TaskInfo, Optimizer)>,
}

impl<P: Prompt> Prompted<P> {
    /// `prompt` is made by a closure, which draws its parameters from the seed.
    pub fn new(
        backbone: Arc<dyn Backbone>,
        pool: Pool,
        train: Train,
        seed: u64,
        prompt: impl FnOnce(&dyn Backbone, &mut Params) -> Result<P>,
    ) -> Result<Self> {
        train.check()?;
        let mut params = Params::seeded(seed, backbone.device());
        let prompt = prompt(backbone.as_ref(), &mut params)?;
        let head = Head::new(backbone.spec().dim);
        Ok(Self {
            frozen: Frozen::new(backbone),
            prompt,
            pool,
            head,
            params,
            train,
            current: None,
        })
    }

    /// The prompt.
    pub fn prompt(&self) -> &P {
        &self.prompt
    }

    /// Prompt and head parameters by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What the head reads, `(B, D)`, and the prompt's auxiliary loss.
    pub fn features(
        &self,
        batch: &Batch,
        task: Option<usize>,
        train: bool,
    ) -> Result<(Tensor, Option<Tensor>)> {
        self.look(batch, &self.cue(batch, task, train)?)
    }

    fn cue(&self, batch: &Batch, task: Option<usize>, train: bool) -> Result<Cue> {
        let query = match self.prompt.active() && self.prompt.wants_query() {
            true => Some(self.frozen.query(batch)?),
            false => None,
        };
        Ok(Cue {
            query,
            task,
            train,
            outputs: Outputs::Head,
        })
    }

    fn look(&self, batch: &Batch, cue: &Cue) -> Result<(Tensor, Option<Tensor>)> {
        if !self.prompt.active() {
            return Ok((self.frozen.query(batch)?, None));
        }
        let backbone = self.frozen.backbone();
        let features: Features = backbone.forward(&batch.images, &self.prompt, cue)?;
        let pooled = match self.pool {
            Pool::Cls => features.cls()?,
            Pool::PromptMean => features.prompt_mean()?,
        };
        Ok((pooled, features.aux_loss))
    }

    /// The training loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.current else {
            return Err(Error::no_task());
        };
        let (features, aux) = self.features(batch, Some(task.index), true)?;
        let logits = self.head.task_logits(&features, &task.classes)?;
        let loss = masked_cross_entropy(&logits, &batch.labels, &task.classes)?;
        Ok(match aux {
            Some(aux) => (loss + aux)?,
            None => loss,
        })
    }
}

impl<P: Prompt> Method for Prompted<P> {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.prompt.begin_task(task, &mut self.params)?;
        self.head.grow(&task.classes, &mut self.params)?;
        // Fresh moments: stale ones would move prompts and head rows of earlier tasks.
        let optimizer = Optimizer::new(self.params.named(), &self.train)?;
        self.current = Some((task.clone(), optimizer));
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.begin_epoch(epoch);
        }
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.step(&loss)?;
        }
        Ok(loss.detach())
    }

    /// The moments are of no more use.
    fn end_task(&mut self, _: &Task, _: Progress<'_>) -> Result<()> {
        self.current = None;
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let cue = self.cue(batch, None, false)?;
        let (features, _) = self.look(batch, &cue)?;
        self.prompt.rescore(self.head.logits(&features)?, &cue)
    }

    /// The query comes from memory: the batch was just predicted.
    fn choices(&self, batch: &Batch) -> Result<Vec<Choice>> {
        self.prompt.choices(&self.cue(batch, None, false)?)
    }

    fn trainable(&self) -> usize {
        self.params.count()
    }

    fn state(&self) -> Result<State> {
        self.params.state()
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.params.load_state(state)
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        session.put_part("prompt", self.prompt.session()?);
        if let Some((_, optimizer)) = &self.current {
            session.put_part("optimizer", optimizer.session()?);
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.params.load_state(state)?;
        self.prompt.resume(session.take_part("prompt"))?;
        match (session.take_part("optimizer"), &mut self.current) {
            (moments, Some((_, optimizer))) if !moments.is_empty() => optimizer.resume(moments)?,
            _ => self.current = None,
        }
        session.end()
    }
}

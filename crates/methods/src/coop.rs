//! Learned text context, task by task, in the manner of CoOp (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models";
//! `KaiyangZhou/CoOp:trainers/coop.py`).
//!
//! ```text
//! t_c = [start, v_1 … v_M, "c.", end]          v drawn from N(0, 0.02²)
//! z_c = exp(s) · cos(image(x), text(t_c))
//! L   = CE(z_t, y)                             over the classes of the task, by the `[train]` table
//! ```
//!
//! Both towers stand still. CoOp knows no tasks; here a context belongs to a task (`context = "task"`), to one class of it
//! (`"class"`), or to all, and is then trained on from task to task (`"shared"`).

use std::sync::{Arc, OnceLock};

use candle_core::Tensor;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Error, Frozen, Init, Language, Method, Optimizer, Params, Progress, Result,
    Session, State, Task, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::class_texts::{cosines, language};
use crate::context::Names;

/// `[method] name = "coop"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coop {
    /// Learned tokens in front of a name, `M`.
    pub length: usize,
    /// What a context belongs to.
    #[serde(default)]
    pub context: Belongs,
}

/// What a context belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Belongs {
    /// The classes of one task.
    #[default]
    Task,
    /// One class.
    Class,
    /// All classes of all tasks.
    Shared,
}

impl Coop {
    /// Checks the length.
    pub fn check(&self) -> Result<()> {
        match self.length {
            0 => Err(Error::setting(
                "method.length",
                "must be greater than 0, found 0",
            )),
            _ => Ok(()),
        }
    }

    /// `seed` draws the contexts; `backbone` needs a text tower.
    pub fn build(&self, backbone: Arc<dyn Backbone>, train: Train, seed: u64) -> Result<Contexts> {
        self.check()?;
        train.check()?;
        Ok(Contexts {
            config: self.clone(),
            language: language(backbone.as_ref())?,
            params: Params::seeded(seed, backbone.device()),
            frozen: Frozen::new(backbone),
            train,
            tasks: Vec::new(),
            rows: OnceLock::new(),
            current: None,
        })
    }
}

/// The classes of a task and their texts.
struct Part {
    names: Names,
    context: Tensor,
    /// Texts that do not change any more.
    done: OnceLock<Tensor>,
}

/// Contexts under way.
pub struct Contexts {
    config: Coop,
    language: Arc<dyn Language>,
    frozen: Frozen,
    params: Params,
    train: Train,
    tasks: Vec<Part>,
    /// Texts of all classes as they are now.
    rows: OnceLock<Tensor>,
    current: Option<(TaskInfo, Optimizer)>,
}

impl Contexts {
    /// The loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let (Some((task, _)), Some(part)) = (&self.current, self.tasks.last()) else {
            return Err(Error::no_task());
        };
        let texts = part.names.texts(self.language.as_ref(), &part.context)?;
        let features = self.frozen.query(batch)?;
        let logits = cosines(self.language.as_ref(), &features, &texts)?;
        masked_cross_entropy(&logits, &batch.labels, &task.classes)
    }

    /// Contexts by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Texts `(classes, E)`, each of length 1.
    fn rows(&self) -> Result<&Tensor> {
        if let Some(rows) = self.rows.get() {
            return Ok(rows);
        }
        let last = self.tasks.len().saturating_sub(1);
        let parts = self.tasks.iter().enumerate().map(|(i, part)| {
            let texts = || -> Result<Tensor> {
                let texts = part.names.texts(self.language.as_ref(), &part.context)?;
                Ok(texts.detach())
            };
            if i == last || self.config.context == Belongs::Shared {
                return texts();
            }
            match part.done.get() {
                Some(done) => Ok(done.clone()),
                None => {
                    let texts = texts()?;
                    Ok(part.done.get_or_init(|| texts).clone())
                }
            }
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        if parts.is_empty() {
            return Err(Error::no_task());
        }
        let rows = Tensor::cat(&parts, 0)?;
        Ok(self.rows.get_or_init(|| rows))
    }
}

impl Method for Contexts {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        let texts = task.names.iter().map(|name| format!("{name}."));
        let (n, length) = (task.classes.len(), self.config.length);
        let names = Names::new(self.language.as_ref(), texts, length)?;
        let width = self.language.spec().width;
        let init = Init::Normal { std: 0.02 };
        let own = format!("context.{}", task.index);
        let context = match self.config.context {
            Belongs::Task => self.params.create(&own, &[length, width], init)?,
            Belongs::Class => self.params.create(&own, &[n, length, width], init)?,
            Belongs::Shared if self.tasks.is_empty() => {
                self.params.create("context", &[length, width], init)?
            }
            Belongs::Shared => self.params.get("context")?,
        };
        self.tasks.push(Part {
            names,
            context,
            done: OnceLock::new(),
        });
        self.rows = OnceLock::new();
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
        self.rows = OnceLock::new();
        Ok(loss.detach())
    }

    fn end_task(&mut self, _: &Task, _: Progress<'_>) -> Result<()> {
        self.current = None;
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let features = self.frozen.query(batch)?;
        cosines(self.language.as_ref(), &features, self.rows()?)
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
        self.current = None;
        self.params.load_state(state)
    }

    fn session(&self) -> Result<Session> {
        match &self.current {
            Some((_, optimizer)) => optimizer.session(),
            None => Ok(Session::new()),
        }
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.params.load_state(state)?;
        match &mut self.current {
            Some((_, optimizer)) if !session.is_empty() => optimizer.resume(session),
            _ => {
                self.current = None;
                session.end()
            }
        }
    }
}

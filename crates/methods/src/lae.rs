//! LAE: one module learns, a slow copy of it accumulates, both predict (Gao et al. 2023, "A Unified Continual Learning Framework
//! with General Parameter-Efficient Tuning").
//!
//! ```text
//! θ_on, θ_off                               two copies of one module in the frozen backbone; a linear head for each task
//! task 0:   L = CE(head(f(x; θ_on)) over the task's classes), moves θ_on and the head
//! task 1 begins: θ_off ← θ_on
//! task t ≥ 1: the same L; in the first `freeze_epochs` epochs moves the head alone
//!             behind every step θ_off ← d θ_off + (1 − d) θ_on
//! score     = max(softmax(z(θ_on)), softmax(z(θ_off)))     class by class, over all classes seen; from task 1 on
//! ```
//!
//! Head weights start N(0, 0.001), biases at 0. Any module of [`Pet`] can learn; the paper has an adapter, LoRA and a prefix in
//! the first five blocks. A module's own loss (the pull of L2P's keys) is added where the module moves, and what it grows with a
//! task starts alike in both copies. Source: `gqk/LAE:main.py` (1680e49). `LAMDA-CL/LAMDA-PILOT:models/lae.py` (5240714) makes the slow copy
//! before the first task, so that it stays near its random start, and freezes the module in the first task too.

use std::sync::Arc;

use candle_core::{D, Tensor};
use candle_nn::ops::softmax;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Choice, Cue, Error, Frozen, Head, Init, Method, Optimizer, Outputs, Params,
    Pool, Progress, Prompt, Result, Session, State, Task, TaskInfo, Train,
};
use candlewick_merge::ema;
use serde::{Deserialize, Serialize};

use crate::classifier::values;
use crate::pet::Pet;

/// `[method] name = "lae"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lae {
    /// What learns.
    pub module: Pet,
    /// Decay of the slow copy, `d`; 0.9999 where left out, as published.
    #[serde(default = "ema_decay")]
    pub ema_decay: f64,
    /// Epochs of each task that train the head alone.
    pub freeze_epochs: usize,
    /// When the slow copy is made.
    #[serde(default)]
    pub offline_from: OfflineFrom,
    /// The tasks in which the module stands still at first.
    #[serde(default)]
    pub freeze_in: FreezeIn,
}

fn ema_decay() -> f64 {
    0.9999
}

/// When the slow copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OfflineFrom {
    /// Behind the first task, of what it learned.
    #[default]
    FirstTask,
    /// Before the first task, of the module as it was drawn: PILOT.
    Start,
}

/// The tasks in which the module stands still for `freeze_epochs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FreezeIn {
    /// All but the first.
    #[default]
    LaterTasks,
    /// All, the first too: PILOT.
    EveryTask,
}

impl Lae {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.module.check(MODULE)?;
        match (0.0..=1.0).contains(&self.ema_decay) {
            true => Ok(()),
            false => Err(Error::setting(
                "method.ema_decay",
                format!("must be between 0 and 1, found {}", self.ema_decay),
            )),
        }
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let mut compat = self.module.compat("lae.module");
        if self.freeze_in == FreezeIn::EveryTask {
            compat.push("lae.freeze_in=every-task".into());
        }
        if self.offline_from == OfflineFrom::Start {
            compat.push("lae.offline_from=start".into());
        }
        compat
    }

    /// Draws the module from `seed`.
    pub fn build(&self, backbone: Arc<dyn Backbone>, train: Train, seed: u64) -> Result<Copies> {
        self.check()?;
        train.check()?;
        // Both are drawn from one seed, so they start alike.
        let copy = || -> Result<Copy> {
            let mut params = Params::seeded(seed, backbone.device());
            let prompt = self
                .module
                .build(MODULE, backbone.spec(), seed, &mut params)?;
            Ok(Copy { prompt, params })
        };
        Ok(Copies {
            config: self.clone(),
            online: copy()?,
            offline: copy()?,
            accumulates: false,
            head: Head::new(backbone.spec().dim),
            heads: Params::seeded(seed, backbone.device()),
            frozen: Frozen::new(backbone),
            train,
            adapts: false,
            current: None,
        })
    }
}

const MODULE: &str = "method.module";

/// A module in the frozen backbone.
struct Copy {
    prompt: Box<dyn Prompt>,
    params: Params,
}

/// A module, its slow copy, and the heads they share.
pub struct Copies {
    config: Lae,
    frozen: Frozen,
    online: Copy,
    offline: Copy,
    /// Whether the slow copy is made.
    accumulates: bool,
    head: Head,
    heads: Params,
    train: Train,
    /// Whether the module moves in this epoch.
    adapts: bool,
    /// The task that is trained on.
    current: Option<(TaskInfo, Optimizer)>,
}

impl Copies {
    /// What learns.
    pub fn online(&self) -> &Params {
        &self.online.params
    }

    /// What accumulates; it takes part from the second task on.
    pub fn offline(&self) -> &Params {
        &self.offline.params
    }

    /// The heads of all tasks.
    pub fn heads(&self) -> &Params {
        &self.heads
    }

    /// The training loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.current else {
            return Err(Error::no_task());
        };
        let cue = self.cue(batch, Some(task.index), true)?;
        let (features, own) = self.features(&self.online, batch, &cue)?;
        // Standing still, the module trains nothing, but drops out what it drops out.
        let (features, own) = match self.adapts {
            true => (features, own),
            false => (features.detach(), None),
        };
        let logits = self.head.task_logits(&features, &task.classes)?;
        let loss = masked_cross_entropy(&logits, &batch.labels, &task.classes)?;
        Ok(match own {
            Some(own) => (loss + own)?,
            None => loss,
        })
    }

    /// Probabilities `(B, classes seen)` of what learns and, once it is made, of what accumulates.
    pub fn probabilities(&self, batch: &Batch) -> Result<(Tensor, Option<Tensor>)> {
        let cue = self.cue(batch, None, false)?;
        let of = |copy: &Copy| -> Result<Tensor> {
            let (features, _) = self.features(copy, batch, &cue)?;
            let scores = copy.prompt.rescore(self.head.logits(&features)?, &cue)?;
            Ok(softmax(&scores, D::Minus1)?)
        };
        let offline = self.accumulates.then(|| of(&self.offline)).transpose()?;
        Ok((of(&self.online)?, offline))
    }

    fn cue(&self, batch: &Batch, task: Option<usize>, train: bool) -> Result<Cue> {
        let query = match self.online.prompt.wants_query() {
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

    /// What the head reads, `(B, D)`, and the module's own loss.
    fn features(&self, copy: &Copy, batch: &Batch, cue: &Cue) -> Result<(Tensor, Option<Tensor>)> {
        let backbone = self.frozen.backbone();
        let found = backbone.forward(&batch.images, copy.prompt.as_ref(), cue)?;
        let pooled = match self.config.module.pool() {
            Pool::Cls => found.cls()?,
            Pool::PromptMean => found.prompt_mean()?,
        };
        Ok(match cue.train {
            true => (pooled, found.aux_loss),
            false => (pooled.detach(), None),
        })
    }

    /// `θ_off ← d θ_off + (1 − d) θ_on`.
    fn accumulate(&mut self) -> Result<()> {
        for (name, new) in self.online.params.named() {
            let kept = self.offline.params.get(&name)?;
            let mut sum = values(&kept.detach())?;
            ema(&mut sum, &values(new.as_tensor())?, self.config.ema_decay);
            let sum = Tensor::from_vec(sum, kept.dims(), kept.device())?;
            self.offline.params.set(&name, &sum)?;
        }
        Ok(())
    }

    fn optimizer(&self) -> Result<Optimizer> {
        let own = self.online.params.named().into_iter();
        let named = own.chain(self.heads.named()).collect();
        Optimizer::new(named, &self.train)
    }
}

impl Method for Copies {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        for copy in [&mut self.online, &mut self.offline] {
            copy.prompt.begin_task(task, &mut copy.params)?;
        }
        let first = match self.config.offline_from {
            OfflineFrom::FirstTask => 1,
            OfflineFrom::Start => 0,
        };
        if task.index == first {
            let learned = self.online.params.state()?;
            self.offline.params.load_state(&learned)?;
            self.accumulates = true;
        }
        let init = Init::Normal { std: 0.001 };
        self.head.grow_from(&task.classes, init, &mut self.heads)?;
        self.current = Some((task.clone(), self.optimizer()?));
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some((task, optimizer)) = &mut self.current {
            let frozen_at_first = task.index > 0 || self.config.freeze_in == FreezeIn::EveryTask;
            self.adapts = !frozen_at_first || epoch >= self.config.freeze_epochs;
            optimizer.begin_epoch(epoch);
        }
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.step(&loss)?;
        }
        if self.accumulates {
            self.accumulate()?;
        }
        Ok(loss.detach())
    }

    fn end_task(&mut self, _: &Task, _: Progress<'_>) -> Result<()> {
        self.current = None;
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let (online, offline) = self.probabilities(batch)?;
        match offline {
            Some(offline) => ensemble(&online, &offline),
            None => Ok(online),
        }
    }

    /// Of what learns.
    fn choices(&self, batch: &Batch) -> Result<Vec<Choice>> {
        self.online.prompt.choices(&self.cue(batch, None, false)?)
    }

    fn trainable(&self) -> usize {
        self.online.params.count() + self.heads.count()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.heads.state()?;
        let mut add = |of: &str, params: &Params| -> Result<()> {
            let named = params.state()?.into_iter();
            state.extend(named.map(|(name, t)| (format!("{of}{name}"), t)));
            Ok(())
        };
        add(ONLINE, &self.online.params)?;
        if self.accumulates {
            add(OFFLINE, &self.offline.params)?;
        }
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.current = None;
        let mut heads = State::new();
        let (mut online, mut offline) = (State::new(), State::new());
        for (name, tensor) in state {
            let (part, name) = match (name.strip_prefix(ONLINE), name.strip_prefix(OFFLINE)) {
                (Some(name), _) => (&mut online, name),
                (_, Some(name)) if self.accumulates => (&mut offline, name),
                _ => (&mut heads, name.as_str()),
            };
            part.insert(name.to_owned(), tensor.clone());
        }
        self.heads.load_state(&heads)?;
        self.online.params.load_state(&online)?;
        match self.accumulates {
            true => self.offline.params.load_state(&offline),
            false => Ok(()),
        }
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some((_, optimizer)) = &self.current {
            session.put_part("optimizer", optimizer.session()?);
            session.put_part("prompt", self.online.prompt.session()?);
            session.put_count("adapts", u64::from(self.adapts))?;
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        if let (false, Some(task)) = (session.is_empty(), tasks.last()) {
            let mut optimizer = self.optimizer()?;
            optimizer.resume(session.take_part("optimizer"))?;
            self.current = Some((task.clone(), optimizer));
            self.online.prompt.resume(session.take_part("prompt"))?;
            self.adapts = session.take_count("adapts")? > 0;
        }
        session.end()
    }
}

/// Before the names of the two copies' parameters.
const ONLINE: &str = "online.";
const OFFLINE: &str = "offline.";

/// The larger of two probabilities, class by class.
pub fn ensemble(online: &Tensor, offline: &Tensor) -> Result<Tensor> {
    Ok(online.maximum(offline)?)
}

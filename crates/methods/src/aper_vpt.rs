//! APER with visual prompt tuning: prompts are trained on the first task alone, then classes are means of frozen and
//! tuned features side by side (Zhou et al. 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models").
//!
//! ```text
//! first task:  g(x) = CLS with the prompts of VPT
//!              L = CE(σ · cos(g(x), v_c))                v (C, D) and σ trained with the prompts, then of no use
//! every task:  F(x) = [f(x), g(x)]                       f: the plain backbone; (2D)
//!              w_c = mean_{i: y_i = c} F(x_i)            training images, test transform, not normalised
//! score_c(x) = cos(F(x), w_c)
//! ```
//!
//! Source: `LAMDA-CL/LAMDA-PILOT:models/aper_vpt.py`, `backbone/vpt.py`, `backbone/linears.py`,
//! `utils/inc_net.py` (5240714).

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::backbone::l2_normalize;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Cue, Error, Frozen, Init, Method, Optimizer, Outputs, Params, Progress,
    Result, Session, State, Task, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::simplecil::ClassMeans;
use crate::vpt::{FreeTokens, Vpt};

/// `[method] name = "aper-vpt"`, with the keys of [`Vpt`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AperVpt(pub Vpt);

impl AperVpt {
    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        self.0.init.compat("aper-vpt")
    }

    /// Draws the prompts from `seed`. `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<FirstSession> {
        self.0.check()?;
        train.check()?;
        let mut params = Params::seeded(seed, backbone.device());
        let prompt = FreeTokens::new(&self.0, backbone.spec(), &mut params)?;
        Ok(FirstSession {
            means: ClassMeans::new(2 * backbone.spec().dim),
            branches: Branches {
                frozen: Frozen::new(backbone),
                prompt,
            },
            params,
            train,
            batch,
            session: None,
        })
    }
}

/// A prompt tuned on the first task, and class means behind it.
pub struct FirstSession {
    branches: Branches,
    params: Params,
    means: ClassMeans,
    train: Train,
    batch: usize,
    /// The first task, as long as it is trained on.
    session: Option<(TaskInfo, Optimizer)>,
}

/// The plain backbone and the one with prompts.
struct Branches {
    frozen: Frozen,
    prompt: FreeTokens,
}

impl Branches {
    /// `g(x)`, `(B, D)`.
    fn tuned(&self, batch: &Batch, train: bool) -> Result<Tensor> {
        let backbone = self.frozen.backbone();
        let cue = Cue {
            train,
            outputs: Outputs::Head,
            ..Cue::default()
        };
        let features = backbone.forward(&batch.images, &self.prompt, &cue)?;
        features.cls()
    }

    /// `F(x)`, `(B, 2D)`.
    fn both(&self, batch: &Batch) -> Result<Tensor> {
        let both = [self.frozen.query(batch)?, self.tuned(batch, false)?];
        Ok(Tensor::cat(&both, 1)?)
    }
}

const WEIGHT: &str = "head.weight";
const SIGMA: &str = "head.sigma";

impl FirstSession {
    /// Prompts and the head of the first task by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// `F(x)`, `(B, 2D)`.
    pub fn features(&self, batch: &Batch) -> Result<Tensor> {
        self.branches.both(batch)
    }

    /// The training loss of a batch of the first task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.session else {
            return Err(Error::State {
                problem: "aper-vpt trains on the first task alone; afterwards it asks for 0 epochs"
                    .into(),
            });
        };
        let weight = l2_normalize(&self.params.get(WEIGHT)?)?;
        let cosine = l2_normalize(&self.branches.tuned(batch, true)?)?.matmul(&weight.t()?)?;
        let logits = cosine.broadcast_mul(&self.params.get(SIGMA)?)?;
        masked_cross_entropy(&logits, &batch.labels, &task.classes)
    }
}

impl Method for FirstSession {
    fn epochs(&self) -> usize {
        self.session.as_ref().map_or(0, |_| self.train.epochs)
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.means.grow(task);
        self.session = None;
        if task.index == 0 {
            let dim = self.branches.frozen.backbone().spec().dim;
            let high = 1.0 / (dim as f32).sqrt();
            let init = Init::Uniform { low: -high, high };
            self.params
                .create(WEIGHT, &[task.classes.len(), dim], init)?;
            self.params.create(SIGMA, &[1], Init::Ones)?;
            let optimizer = Optimizer::new(self.params.named(), &self.train)?;
            self.session = Some((task.clone(), optimizer));
        }
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some((_, optimizer)) = &mut self.session {
            optimizer.begin_epoch(epoch);
        }
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = &mut self.session {
            optimizer.step(&loss)?;
        }
        Ok(loss.detach())
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.session = None;
        let feature = |batch: &Batch| self.branches.both(batch);
        self.means.learn(task, self.batch, progress, feature)
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        self.means.scores(&self.branches.both(batch)?)
    }

    /// What the first task trains; later tasks train nothing.
    fn trainable(&self) -> usize {
        self.params.count()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.params.state()?;
        self.means.save(&mut state)?;
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        let rest = self.means.load(tasks, state)?;
        self.params.load_state(&rest)
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        session.put_part("means", self.means.session()?);
        if let Some((_, optimizer)) = &self.session {
            session.put_part("optimizer", optimizer.session()?);
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        self.means.resume(session.take_part("means"))?;
        match (session.take_part("optimizer"), &mut self.session) {
            (moments, Some((_, optimizer))) if !moments.is_empty() => optimizer.resume(moments)?,
            _ => self.session = None,
        }
        session.end()
    }
}

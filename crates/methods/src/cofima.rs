//! CoFiMA and CoMA: SLCA whose network is averaged with that of the task before (Marouf et al. 2024, Weighted Ensemble Models Are
//! Strong Continual Learners).
//!
//! ```text
//! for each task t:
//!   stage 1   θ_t by SLCA's stage 1, from where the task before ended
//!   inform    F_t = min((1/B) Σ_b (∂ CE([z_0 … z_t], y) / ∂θ_t)², clip)         the task's images, training transform
//!   merge     for t > 0, what θ_0 has: θ = ((1−α)(F_0+ε) θ_0 + α (F_t+ε) θ_t) / ((1−α)(F_0+ε) + α (F_t+ε))
//!             the new head: θ = θ_t
//!   learn, stage 2, predict as SLCA, with θ
//! ```
//!
//! `θ_0` is the network at the end of the task before, merged, with the heads of its stage 2; `F_0` is the `F` of that task. One of
//! each is kept. CoMA is the plain average, `F = 1`. With `α = 1` nothing is merged and both are [`slca`](crate::slca).
//!
//! Source: `IemProg/CoFiMA:models/cofima.py` (dc96bf1). `compat = "reference"` is what it does: the new head becomes `F_t θ_t`,
//! all but 0, and the information on old heads is the square of gradients that an earlier step left behind, the last of stage 2
//! (behind the first task, of its last batch of `inform`). Its `ε` is 0, which divides 0 by 0 where no gradient reaches.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Batch, Error, Method, Progress, Result, Session, State, Task, TaskInfo, Train, View,
};
use candlewick_merge::Rule;
use serde::{Deserialize, Serialize};

use crate::alignment::Alignment;
use crate::fisher::{Fisher, Per};
use crate::slca::{Slca, SlowLearner};

/// `[method] name = "cofima"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoFiMa {
    /// Factor on the rate of the backbone; 0.01 as published.
    pub backbone_lr: f64,
    /// How the two networks are averaged.
    pub merge: Merge,
    /// Stage 2.
    pub alignment: Alignment,
    /// What the original code does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
}

/// The `[method.merge]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "lowercase", deny_unknown_fields)]
pub enum Merge {
    /// By Fisher information.
    Fisher {
        /// Share of the new network; 0.5 in the published logs.
        alpha: f64,
        /// The most that is taken of any information; 1e-4 as published, without bound where left out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clip: Option<f64>,
        /// `ε`; 1e-12 where left out.
        #[serde(default = "epsilon")]
        epsilon: f64,
        /// Per batch, as published, or per sample.
        #[serde(default)]
        per: Per,
    },
    /// The plain average: CoMA.
    Average {
        /// Share of the new network.
        alpha: f64,
    },
}

fn epsilon() -> f64 {
    1e-12
}

/// Published behaviour that is not the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// Of the original code.
    Reference,
}

impl Merge {
    fn rule(&self) -> Rule {
        match *self {
            Self::Fisher { alpha, epsilon, .. } => Rule::Fisher {
                weights: vec![1.0 - alpha, alpha],
                epsilon,
            },
            Self::Average { alpha } => Rule::Wise { alpha },
        }
    }

    /// The parameters of `old` merged with those of `new`; those that only `new` has are copied, or, with `reference`, multiplied
    /// by their information. `informed` are the information of both, by the names of the parameters.
    pub fn merged(
        &self,
        old: &State,
        new: &State,
        informed: [&State; 2],
        reference: bool,
    ) -> Result<State> {
        let rule = self.rule();
        let flat = |tensor: &Tensor| Ok::<_, Error>(tensor.flatten_all()?.to_vec1::<f32>()?);
        let information = |of: &State, name: &str| match of.get(name) {
            Some(tensor) => flat(tensor),
            None => Err(Error::State {
                problem: format!("there is no Fisher information on `{name}`"),
            }),
        };
        let one = |(name, theta): (&String, &Tensor)| -> Result<(String, Tensor)> {
            let value = match old.get(name) {
                None if reference && rule.wants_fisher() => {
                    let fisher = information(informed[1], name)?;
                    let product: Vec<f32> = flat(theta)?
                        .iter()
                        .zip(fisher)
                        .map(|(t, f)| t * f)
                        .collect();
                    Tensor::from_vec(product, theta.shape(), theta.device())?
                }
                None => theta.clone(),
                Some(before) => {
                    let (before, theta_t) = (flat(before)?, flat(theta)?);
                    let fishers: Vec<Vec<f32>> = match rule.wants_fisher() {
                        true => informed
                            .iter()
                            .map(|of| information(of, name))
                            .collect::<Result<_>>()?,
                        false => vec![],
                    };
                    let fishers: Vec<&[f32]> = fishers.iter().map(Vec::as_slice).collect();
                    let mut out = vec![0f32; theta_t.len()];
                    let put = |at: usize, value: f64| out[at] = value as f32;
                    rule.merge(&[&before, &theta_t], &fishers, put)
                        .map_err(|e| Error::setting("method.merge", e.to_string()))?;
                    Tensor::from_vec(out, theta.shape(), theta.device())?
                }
            };
            Ok((name.clone(), value))
        };
        new.iter().map(one).collect()
    }
}

impl CoFiMa {
    fn slca(&self) -> Slca {
        Slca {
            backbone_lr: self.backbone_lr,
            alignment: self.alignment.clone(),
        }
    }

    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.slca().check()?;
        let refuse =
            |key: &str, problem: String| Err(Error::setting(format!("method.{key}"), problem));
        match &self.merge {
            Merge::Average { .. } if self.compat.is_some() => refuse(
                "compat",
                "\"reference\" is about Fisher information; remove it with rule = \"average\""
                    .into(),
            ),
            Merge::Fisher {
                clip: Some(clip), ..
            } if !(*clip > 0.0 && clip.is_finite()) => refuse(
                "merge.clip",
                format!("must be greater than 0, found {clip}"),
            ),
            merge => match merge.rule().check(2) {
                Ok(()) => Ok(()),
                Err(e) => refuse("merge", e.to_string()),
            },
        }
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let mut all = self.slca().compat("cofima");
        if self.compat.is_some() {
            all.push("cofima.compat=reference".into());
        }
        all
    }

    /// `seed` draws heads, features and the images that information is taken of; `batch` images are looked at together.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Merging> {
        self.check()?;
        Ok(Merging {
            config: self.clone(),
            slow: self.slca().build(backbone, train, batch, seed)?,
            before: State::new(),
            fisher: State::new(),
            left: State::new(),
            seed,
        })
    }
}

/// CoFiMA under way.
pub struct Merging {
    config: CoFiMa,
    slow: SlowLearner,
    /// `θ_0`, while a task is under way.
    before: State,
    /// `F` of the last task that ended.
    fisher: State,
    /// Gradients that the last task left on its heads, for `compat`.
    left: State,
    seed: u64,
}

/// Before the names of the information on a parameter.
const FISHER: &str = "fisher.";
/// Before the names of the gradients that are left on heads.
const LEFT: &str = "left.";
/// What `head.` is called where it is saved: heads that no later task moves have that name, these are merged.
const HEAD: (&str, &str) = ("head.", "merged.");

impl Merging {
    /// SLCA, on which it rests.
    pub fn slow(&self) -> &SlowLearner {
        &self.slow
    }

    /// `F_t`, and the gradients of the last batch.
    fn information(&self, task: &Task, progress: Progress<'_>) -> Result<(State, State)> {
        let Merge::Fisher { clip, per, .. } = self.config.merge else {
            return Ok(Default::default());
        };
        let whole = &self.slow.whole;
        let mut fisher = Fisher::new(whole.named());
        let mut left = State::new();
        // A pass of its own, behind all that train.
        let view = View::Train {
            seed: self.seed,
            epoch: u64::MAX - task.info.index as u64,
        };
        for batch in task.train.batches(view, whole.train().batch) {
            for part in per.parts(batch?)? {
                let n = part.len();
                let loss = whole.loss_among_seen(&part, task.info.classes.end)?;
                let grads = loss.backward()?;
                fisher.add(&grads)?;
                left.clear();
                for (name, var) in whole.named() {
                    if let (true, Some(grad)) = (name.starts_with(HEAD.0), grads.get(&var)) {
                        left.insert(name, grad.detach());
                    }
                }
                progress(n)?;
            }
        }
        Ok((fisher.mean(clip)?, left))
    }

    /// What the original takes for the information on old heads.
    fn stale(&self, fisher: &mut State) -> Result<()> {
        let Merge::Fisher { clip, .. } = self.config.merge else {
            return Ok(());
        };
        for (name, grad) in &self.left {
            let square = grad.sqr()?;
            let square = match clip {
                Some(clip) => square.minimum(clip)?,
                None => square,
            };
            fisher.insert(name.clone(), square);
        }
        Ok(())
    }

    fn merge(&mut self, fisher: &State) -> Result<()> {
        let named = self.slow.whole.named().into_iter();
        let new: State = named
            .map(|(name, var)| (name, var.as_detached_tensor()))
            .collect();
        let reference = self.config.compat.is_some();
        let informed = [&self.fisher, fisher];
        let merged = self
            .config
            .merge
            .merged(&self.before, &new, informed, reference)?;
        for (name, value) in &merged {
            // What only the new network has is taken as it is: a variable cannot be set to its own value.
            self.slow.whole.set(name, &value.copy()?)?;
        }
        Ok(())
    }

    fn renamed(state: State, from: &str, to: &str) -> State {
        let one = |(name, tensor): (String, Tensor)| {
            let (outer, inner) = match name.strip_prefix(FISHER) {
                Some(inner) => (FISHER, inner),
                None => ("", name.as_str()),
            };
            match inner.strip_prefix(from) {
                Some(rest) => (format!("{outer}{to}{rest}"), tensor),
                None => (name, tensor),
            }
        };
        state.into_iter().map(one).collect()
    }
}

impl Method for Merging {
    fn epochs(&self) -> usize {
        self.slow.epochs()
    }

    fn batch_size(&self) -> usize {
        self.slow.batch_size()
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.before = State::new();
        if task.index > 0 {
            self.before = self.slow.whole.state()?;
            for (t, [weight, bias]) in self.slow.heads().into_iter().enumerate() {
                self.before
                    .insert(format!("head.{t}.weight"), weight.copy()?);
                self.before.insert(format!("head.{t}.bias"), bias.copy()?);
            }
        }
        self.slow.begin_task(task)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.slow.begin_epoch(epoch)
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.slow.observe(batch)
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.slow.whole.settle();
        let (mut fisher, mut left) = self.information(task, progress)?;
        if self.config.compat.is_some() {
            self.stale(&mut fisher)?;
        }
        if task.info.index > 0 {
            self.merge(&fisher)?;
        }
        (self.fisher, self.before) = (fisher, State::new());
        if let Some(last) = self.slow.consolidate(task, progress)?.and_then(|a| a.last) {
            left.clear();
            for (t, [weight, bias]) in last.into_iter().enumerate() {
                left.insert(format!("head.{t}.weight"), weight);
                left.insert(format!("head.{t}.bias"), bias);
            }
        }
        if self.config.compat.is_some() {
            self.left = left;
        }
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        self.slow.predict(batch)
    }

    fn trainable(&self) -> usize {
        self.slow.trainable()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.slow.state()?;
        for (part, of) in [(FISHER, &self.fisher), (LEFT, &self.left)] {
            let named = of
                .iter()
                .map(|(name, t)| (format!("{part}{name}"), t.clone()));
            state.extend(named);
        }
        Ok(Self::renamed(state, HEAD.0, HEAD.1))
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.resume(tasks, state, Session::new())
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        let steps = self.slow.session()?;
        if !steps.is_empty() {
            session.put_part("steps", steps);
            session.put_part("before", self.before.clone().into());
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        let state = Self::renamed(state.clone(), HEAD.1, HEAD.0);
        let part = |prefix: &str| -> State {
            let own = state.iter().filter_map(|(name, tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
            });
            own.collect()
        };
        (self.fisher, self.left) = (part(FISHER), part(LEFT));
        let rest = state
            .iter()
            .filter(|(name, _)| !name.starts_with(FISHER) && !name.starts_with(LEFT));
        let rest = rest.map(|(name, t)| (name.clone(), t.clone())).collect();
        self.before = session.take_part("before").tensors().clone();
        self.slow.resume(tasks, &rest, session.take_part("steps"))?;
        session.end()
    }
}

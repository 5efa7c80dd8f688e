//! MOS: one adapter goes on from task to task, pulled towards what it was; the copies it leaves behind answer each for its task
//! (Sun et al. 2025, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning").
//!
//! ```text
//! L  = CE(head(f) over the task's classes) + λ · CE(M Mᵀ / 0.8, i),  M = [μ of all old classes; features of the batch]
//! behind every step from task 1 on: A ← (1 − m) A + m · mean of A_0 … A_{t−1}
//! task t ends: A_t ← A; μ_c, Σ_c of f_t; from task 1 on all heads are aligned to N(μ_c, Σ_c)
//! p_c = mean of f_0 of class c
//! test: s ← task of argmax cos(f_0, p_c); then s ← task of argmax head(f_s), until it stays, at most `rounds` times
//! score = softmax(head(f_s)) + softmax((t + 1) cos(f_0, p))
//! ```
//!
//! Heads learn at a tenth of the rate; [`alignment`](crate::alignment) has how they are aligned. Source:
//! `LAMDA-CL/LAMDA-PILOT:models/mos.py`, `backbone/vit_mos.py` (5240714). There the merge stands inside the loop over the blocks
//! of every forward, at test too, so that an adapter is merged once for each block and each batch looked at, and accuracy
//! depends on how many batches were evaluated. Here it is done once a step and never at test.

use std::sync::Arc;

use candle_core::{D, Tensor};
use candle_nn::ops::softmax;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Error, Group, Head, Method, Optimizer, Params, Progress, Prompt, Result,
    Session, State, Task, TaskInfo, Train, View,
};
use candlewick_merge::ema;
use serde::{Deserialize, Serialize};

use crate::adapter::Adapters;
use crate::alignment::{Alignment, Gaussians, rows_of};
use crate::classifier::{Classifier, Seen, values};
use crate::nearest_mean::{Distance, Nearest, NearestMean};
use crate::pet::{Pet, cls, dropout};

/// `[method] name = "mos"`. In `[method.alignment]` the paper has `shrink = "none"` and no `logit_norm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mos {
    /// Inner width of an adapter.
    pub bottleneck: usize,
    /// Probability that an inner value is left out in training; 0.1 where left out, as published.
    #[serde(default = "dropout")]
    pub dropout: f32,
    /// How far a step pulls the adapter towards the earlier ones, `m`; 0.1 where left out, as published.
    #[serde(default = "tenth")]
    pub momentum: f64,
    /// Weight of the loss that keeps features apart, λ; 0.1 where left out, as published.
    #[serde(default = "tenth")]
    pub apart: f64,
    /// Factor on `train.lr` for the heads; 0.1 where left out, as published.
    #[serde(default = "tenth")]
    pub head_lr: f64,
    /// How often a test image may ask for its task; 4 where left out, as published.
    #[serde(default = "rounds")]
    pub rounds: usize,
    /// How the heads are aligned.
    pub alignment: Alignment,
}

fn tenth() -> f64 {
    0.1
}

fn rounds() -> usize {
    4
}

impl Mos {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let adapter = Pet::Adaptformer {
            bottleneck: self.bottleneck,
            dropout: self.dropout,
        };
        adapter.check("method")?;
        self.alignment.check()?;
        let hold = |key: &str, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(Error::setting(
                format!("method.{key}"),
                format!("must be {expected}, found {found}"),
            )),
        };
        let part = (0.0..=1.0).contains(&self.momentum);
        hold(
            "momentum",
            part,
            "between 0 and 1",
            self.momentum.to_string(),
        )?;
        let ok = self.apart >= 0.0 && self.apart.is_finite();
        hold("apart", ok, "0 or greater", self.apart.to_string())?;
        let ok = self.head_lr >= 0.0 && self.head_lr.is_finite();
        hold("head_lr", ok, "0 or greater", self.head_lr.to_string())?;
        let found = self.rounds.to_string();
        hold("rounds", self.rounds > 0, "greater than 0", found)
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        self.alignment.compat("mos")
    }

    /// Draws the adapter from `seed`; `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Surgery> {
        self.check()?;
        train.check()?;
        let dim = backbone.spec().dim;
        Ok(Surgery {
            adapter: Copy::new(self, "adapter", backbone.as_ref(), seed)?,
            config: self.clone(),
            head: Head::new(dim),
            heads: Params::seeded(seed, backbone.device()),
            kept: Vec::new(),
            earlier: Vec::new(),
            gaussians: Gaussians::new(dim),
            prototypes: NearestMean {
                distance: Distance::Cosine,
                shrinkage: None,
            }
            .classifier(dim, 1),
            ends: Vec::new(),
            backbone,
            train,
            batch,
            seed,
            current: None,
        })
    }
}

/// Adapters with their parameters.
struct Copy {
    prompt: Adapters,
    params: Params,
}

impl Copy {
    fn new(config: &Mos, name: &str, backbone: &dyn Backbone, seed: u64) -> Result<Self> {
        let mut params = Params::seeded(seed, backbone.device());
        let (width, spec) = (config.bottleneck, backbone.spec());
        let prompt = Adapters::named(name, width, config.dropout, seed, spec, &mut params)?;
        Ok(Self { prompt, params })
    }
}

/// The adapter, its copies, and all that is known of classes.
pub struct Surgery {
    config: Mos,
    backbone: Arc<dyn Backbone>,
    /// `A`.
    adapter: Copy,
    head: Head,
    heads: Params,
    /// `A_0 … A_{t−1}`, then `A_t` once the task is over.
    kept: Vec<Copy>,
    /// Their mean while a task is trained on, in the order of the parameters; empty in the first.
    earlier: Vec<Vec<f32>>,
    gaussians: Gaussians,
    prototypes: Nearest,
    /// Behind each task, the classes seen.
    ends: Vec<usize>,
    train: Train,
    batch: usize,
    seed: u64,
    /// The task that is trained on.
    current: Option<(TaskInfo, Optimizer)>,
}

impl Surgery {
    /// `adapter.…`: what trains.
    pub fn adapter(&self) -> &Params {
        &self.adapter.params
    }

    /// The heads of all tasks.
    pub fn heads(&self) -> &Params {
        &self.heads
    }

    /// What task `t` left, as `kept.…`.
    pub fn kept(&self, t: usize) -> Option<&Params> {
        Some(&self.kept.get(t)?.params)
    }

    /// The training loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.current else {
            return Err(Error::no_task());
        };
        let features = self.features(&self.adapter, batch, true)?;
        let logits = self.head.task_logits(&features, &task.classes)?;
        let loss = masked_cross_entropy(&logits, &batch.labels, &task.classes)?;
        let old = (0..task.classes.start).filter_map(|class| self.gaussians.mean(class));
        let old: Vec<f32> = old.flatten().copied().collect();
        let rows = old.len() / features.dim(1)?;
        let old = Tensor::from_vec(old, (rows, features.dim(1)?), features.device())?;
        Ok((loss + (apart(&old, &features)? * self.config.apart)?)?)
    }

    fn features(&self, copy: &Copy, batch: &Batch, train: bool) -> Result<Tensor> {
        cls(self.backbone.as_ref(), &batch.images, &copy.prompt, train)
    }

    /// `A ← (1 − m) A + m · mean of the earlier ones`.
    fn merge(&mut self) -> Result<()> {
        let named = self.adapter.params.named();
        for ((name, var), earlier) in named.iter().zip(&self.earlier) {
            let mut merged = values(var.as_tensor())?;
            ema(&mut merged, earlier, 1.0 - self.config.momentum);
            let merged = Tensor::from_vec(merged, var.dims(), var.device())?;
            self.adapter.params.set(name, &merged)?;
        }
        Ok(())
    }

    /// What [`merge`](Self::merge) pulls towards, while task `t` is trained on.
    fn look_back(&mut self, t: usize) -> Result<()> {
        self.earlier.clear();
        if t == 0 {
            return Ok(());
        }
        let kept: Vec<Vec<Vec<f32>>> = self
            .kept
            .iter()
            .take(t)
            .map(|copy| {
                let named = copy.params.named();
                named
                    .iter()
                    .map(|(_, var)| values(var.as_tensor()))
                    .collect()
            })
            .collect::<Result<_>>()?;
        let Some(first) = kept.first() else {
            return Ok(());
        };
        let n = kept.len() as f64;
        for (parameter, shape) in first.iter().enumerate() {
            let mean = (0..shape.len()).map(|i| {
                let sum: f64 = kept.iter().map(|copy| f64::from(copy[parameter][i])).sum();
                (sum / n) as f32
            });
            self.earlier.push(mean.collect());
        }
        Ok(())
    }

    /// `A_t ← A`.
    fn keep(&mut self) -> Result<()> {
        let copy = Copy::new(&self.config, KEPT, self.backbone.as_ref(), self.seed)?;
        self.kept.push(copy);
        if let Some(copy) = self.kept.last_mut() {
            let now = self.adapter.params.named();
            for ((name, _), (_, var)) in copy.params.named().iter().zip(now) {
                copy.params.set(name, &var.as_tensor().copy()?)?;
            }
        }
        Ok(())
    }

    fn align(&mut self, task: &TaskInfo, progress: Progress<'_>) -> Result<()> {
        let part = |t: usize, kind: &str| self.heads.get(&format!("head.{t}.{kind}"));
        let heads = (0..=task.index).map(|t| Ok([part(t, "weight")?, part(t, "bias")?]));
        let heads: Vec<[Tensor; 2]> = heads.collect::<Result<_>>()?;
        let aligned =
            self.config
                .alignment
                .align(&heads, &self.gaussians, task, self.seed, &mut || {
                    progress(0)
                })?;
        for (t, [weight, bias]) in aligned.heads.iter().enumerate() {
            self.heads.set(&format!("head.{t}.weight"), weight)?;
            self.heads.set(&format!("head.{t}.bias"), bias)?;
        }
        Ok(())
    }

    fn optimizer(&self) -> Result<Optimizer> {
        let group = |vars, lr| Group {
            vars,
            lr,
            weight_decay: None,
        };
        let groups = vec![
            group(self.adapter.params.named(), 1.0),
            group(self.heads.named(), self.config.head_lr),
        ];
        Optimizer::grouped(groups, &self.train)
    }

    /// The task that a class arrived with, of those that left an adapter.
    fn task_of(&self, class: usize) -> usize {
        let task = self.ends.partition_point(|end| *end <= class);
        task.min(self.kept.len().saturating_sub(1))
    }
}

/// What the copies' parameters are called, each in a set of its own.
const KEPT: &str = "kept";

/// Mean cross-entropy of each row of `M = [old; features]` being itself, by `M Mᵀ / 0.8`.
pub fn apart(old: &Tensor, features: &Tensor) -> Result<Tensor> {
    let all = match old.dim(0)? {
        0 => features.clone(),
        _ => Tensor::cat(&[old, features], 0)?,
    };
    let likeness = (all.matmul(&all.t()?)? * (1.0 / 0.8))?;
    let own: Vec<u32> = (0..all.dim(0)? as u32).collect();
    masked_cross_entropy(&likeness, &own, &(0..own.len()))
}

impl Method for Surgery {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.adapter
            .prompt
            .begin_task(task, &mut self.adapter.params)?;
        self.head.grow(&task.classes, &mut self.heads)?;
        self.prototypes.grow(task)?;
        self.ends.push(task.classes.end);
        self.look_back(task.index)?;
        self.current = Some((task.clone(), self.optimizer()?));
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
        self.merge()?;
        Ok(loss.detach())
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.current = None;
        self.earlier.clear();
        self.keep()?;
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            rows.extend(rows_of(&self.features(&self.adapter, &batch, false)?)?);
            labels.extend_from_slice(&batch.labels);
            progress(batch.len())?;
        }
        self.gaussians.learn(&task.info, &rows, &labels)?;
        if let Some(first) = self.kept.first() {
            let backbone = self.backbone.as_ref();
            let (mut rows, mut labels) = (Vec::new(), Vec::new());
            for batch in task.train.batches(View::Plain, self.batch) {
                let batch = batch?;
                let features = cls(backbone, &batch.images, &first.prompt, false)?;
                rows.extend(values(&features)?);
                labels.extend_from_slice(&batch.labels);
                progress(batch.len())?;
            }
            self.prototypes.learn(Seen {
                task: &task.info,
                rows: &rows,
                labels: &labels,
                dim: backbone.spec().dim,
            })?;
        }
        match task.info.index {
            0 => Ok(()),
            _ => self.align(&task.info, progress),
        }
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let Some(first) = self.kept.first() else {
            let features = self.features(&self.adapter, batch, false)?;
            return Ok(softmax(&self.head.logits(&features)?, D::Minus1)?);
        };
        let features = self.features(first, batch, false)?;
        let cosines = self.prototypes.scores(&values(&features)?)?;
        let shape = (batch.len(), cosines.len() / batch.len().max(1));
        let cosines = Tensor::from_vec(cosines, shape, features.device())?;
        let mut logits = vec![self.head.logits(&features)?];
        for copy in self.kept.iter().skip(1) {
            logits.push(self.head.logits(&self.features(copy, batch, false)?)?);
        }
        let labels: Vec<Vec<u32>> = logits
            .iter()
            .map(|z| Ok(z.argmax(D::Minus1)?.to_vec1()?))
            .collect::<Result<_>>()?;
        let guesses: Vec<u32> = cosines.argmax(D::Minus1)?.to_vec1()?;
        let mut rows = Vec::new();
        for (i, guess) in guesses.into_iter().enumerate() {
            let mut task = self.task_of(guess as usize);
            for _ in 1..self.config.rounds {
                task = match self.task_of(labels[task][i] as usize) {
                    next if next == task => break,
                    next => next,
                };
            }
            rows.push(logits[task].narrow(0, i, 1)?);
        }
        let own = softmax(&Tensor::cat(&rows, 0)?, D::Minus1)?;
        let by_mean = softmax(&(cosines * self.kept.len() as f64)?, D::Minus1)?;
        Ok((own + by_mean)?.detach())
    }

    fn trainable(&self) -> usize {
        self.adapter.params.count() + self.heads.count()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.adapter.params.state()?;
        // Alignment moves the heads of old tasks, which others keep under their plain names.
        for (name, head) in self.heads.state()? {
            state.insert(format!("{ALIGNED}{name}"), head);
        }
        for (t, copy) in self.kept.iter().enumerate() {
            for (name, tensor) in copy.params.state()? {
                state.insert(format!("{t}.{name}"), tensor);
            }
        }
        self.gaussians.save(&mut state)?;
        self.prototypes.save(&mut state)?;
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.current = None;
        let mut rest = state.clone();
        self.prototypes.load(tasks, &mut rest)?;
        let mut part = |start: &str| -> State {
            let names: Vec<String> = rest
                .keys()
                .filter(|n| n.starts_with(start))
                .cloned()
                .collect();
            let own = names.into_iter().filter_map(|name| {
                let tensor = rest.remove(&name)?;
                Some((name[start.len()..].to_owned(), tensor))
            });
            own.collect()
        };
        self.heads.load_state(&part(ALIGNED))?;
        for t in 0..tasks.len() {
            let kept = part(&format!("{t}."));
            if !kept.is_empty() {
                self.keep()?;
                if let Some(copy) = self.kept.last_mut() {
                    copy.params.load_state(&kept)?;
                }
            }
        }
        self.gaussians.load(&tasks[..self.kept.len()], &mut rest)?;
        self.adapter.params.load_state(&rest)
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some((_, optimizer)) = &self.current {
            session.put_part("optimizer", optimizer.session()?);
            session.put_part("adapter", self.adapter.prompt.session()?);
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        let moments = session.take_part("optimizer");
        if let (false, Some(task)) = (moments.is_empty(), tasks.last()) {
            let mut optimizer = self.optimizer()?;
            optimizer.resume(moments)?;
            self.current = Some((task.clone(), optimizer));
            self.adapter.prompt.resume(session.take_part("adapter"))?;
            self.look_back(task.index)?;
        }
        session.end()
    }
}

/// Before the names of the heads.
const ALIGNED: &str = "aligned.";

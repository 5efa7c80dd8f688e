//! ZSCL: a whole CLIP trained on from task to task, held to what it knew before (Zheng et al. 2023, "Preventing Zero-Shot Transfer
//! Degradation in Continual Learning of Vision-Language Models"; `Thunderbeee/ZSCL:mtil/src/models/finetune.py`, `helpers.py`).
//!
//! ```text
//! L    = CE_ε(exp(s) · v uᵀ, y)                                over the classes of the task, smoothed by ε
//!      + w_i T² CE(softmax(B/T), A/T) + w_t T² CE(softmax(Bᵀ/T), Aᵀ/T)    A = exp(s) · v u*ᵀ, B = exp(s) · v* u*ᵀ
//!      + λ Σ |θ − θ_start|²
//! θ̄   ← (n θ̄ + θ) / (n + 1)                                   every k-th step from the first, θ̄ = θ_start before
//! ```
//!
//! `v`, `u` are images and texts of the network that trains, on `A` images of a reference set; `v*`, `u*` images and sentences of that
//! set by the CLIP that was given. Both terms use the frozen `u*`, so the text tower is held by `λ` and the mean alone, as published. A
//! task ends with `θ̄`, where the next one starts. With neither distillation, consolidation nor mean it is plain fine-tuning.

use std::sync::{Arc, OnceLock};

use candle_core::{D, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use candlewick_core::language::unit;
use candlewick_core::{
    Backbone, Batch, Cue, Error, Language, Method, NoPrompt, Optimizer, Outputs, Params, Progress,
    Result, Session, Split, State, Task, TaskInfo, Train, View,
};
use serde::{Deserialize, Serialize};

use crate::class_texts::{ClassTexts, arrive, language};
use crate::templates::Templates;

/// `[method] name = "zscl"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Zscl {
    /// Sentences around the names of classes; training takes the first.
    #[serde(default)]
    pub templates: Templates,
    /// `ε`, what of a label is shared out among all classes of the task.
    #[serde(default)]
    pub label_smoothing: f64,
    /// Holding images of a reference set where they were; left out for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<Distillation>,
    /// `λ`, the pull to where the task started; 0 where left out.
    #[serde(default)]
    pub consolidation: f64,
    /// `k`, steps between the models that are averaged; left out for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_every: Option<usize>,
}

/// `[method.distillation]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distillation {
    /// `w_i`, on the share of each sentence in an image.
    pub images: f64,
    /// `w_t`, on the share of each image in a sentence.
    pub texts: f64,
    /// `T`.
    pub temperature: f64,
    /// Reference images of a step.
    pub batch: usize,
}

/// Images and sentences that belong to no task.
#[derive(Clone)]
pub struct Reference {
    /// Looked at with the training view.
    pub images: Arc<dyn Split>,
    /// About anything.
    pub sentences: Vec<String>,
}

impl Zscl {
    /// That there is a reference set where one is needed.
    pub fn has(&self, reference: Option<&Reference>) -> Result<()> {
        let empty = reference.is_none_or(|r| r.images.is_empty() || r.sentences.is_empty());
        match self.distillation.is_some() && empty {
            true => Err(no_reference()),
            false => Ok(()),
        }
    }

    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.templates.check()?;
        let hold = |key: &str, ok: bool, expected: &str, found: String| match ok {
            true => Ok(()),
            false => Err(Error::setting(
                format!("method.{key}"),
                format!("must be {expected}, found {found}"),
            )),
        };
        let part = (0.0..1.0).contains(&self.label_smoothing);
        let found = self.label_smoothing.to_string();
        hold("label_smoothing", part, "at least 0 and below 1", found)?;
        let pull = self.consolidation;
        let ok = pull >= 0.0 && pull.is_finite();
        hold("consolidation", ok, "at least 0", pull.to_string())?;
        let ok = self.average_every != Some(0);
        hold("average_every", ok, "greater than 0", "0".into())?;
        if let Some(d) = self.distillation {
            for (key, value) in [("images", d.images), ("texts", d.texts)] {
                let ok = value >= 0.0 && value.is_finite();
                let key = format!("distillation.{key}");
                hold(&key, ok, "at least 0", value.to_string())?;
            }
            let (t, found) = (d.temperature, d.temperature.to_string());
            hold("distillation.temperature", t > 0.0, "greater than 0", found)?;
            let found = d.batch.to_string();
            hold("distillation.batch", d.batch > 0, "greater than 0", found)?;
        }
        Ok(())
    }

    /// `reference` is needed to train with distillation; `seed` orders its images.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        reference: Option<Reference>,
        seed: u64,
    ) -> Result<HeldClip> {
        self.check()?;
        train.check()?;
        let teacher = language(backbone.as_ref())?;
        let anchor = match (self.distillation, reference) {
            (Some(weights), Some(reference)) => {
                let sentences = unit(&teacher.encode(&reference.sentences)?)?.detach();
                Some(Anchor {
                    weights,
                    images: reference.images,
                    sentences,
                })
            }
            _ => None,
        };
        let mut params = Params::seeded(seed, backbone.device());
        let (images, texts) = (backbone.thaw()?, teacher.thaw()?);
        for (part, weights) in [(IMAGES, images.weights), (TEXTS, texts.weights)] {
            for (name, var) in weights {
                params.adopt(&format!("{part}{name}"), var)?;
            }
        }
        Ok(HeldClip {
            config: self.clone(),
            given: backbone,
            teacher,
            student: (images.backbone, texts.language),
            anchor,
            params,
            train,
            seed,
            names: Vec::new(),
            still: OnceLock::new(),
            current: None,
        })
    }
}

/// Distillation without anything to hold on to.
fn no_reference() -> Error {
    Error::setting(
        "reference",
        "method.distillation needs images and sentences to hold on to; give [reference] with data and sentences, or remove distillation",
    )
}

/// Before the names of weights of the towers.
const IMAGES: &str = "backbone.";
const TEXTS: &str = "text.";

/// What images are held to.
struct Anchor {
    weights: Distillation,
    images: Arc<dyn Split>,
    /// `u*`, `(sentences, E)`.
    sentences: Tensor,
}

/// A task under way.
struct Current {
    task: TaskInfo,
    optimizer: Optimizer,
    /// Texts of the task's classes, first template.
    tokens: Vec<String>,
    /// `θ_start`, where something pulls to it.
    start: State,
    /// `θ̄`, and how many models it is the mean of besides the start.
    mean: State,
    merged: u64,
    steps: u64,
}

/// Both towers frozen as they are, and texts of all classes.
struct Still {
    backbone: Arc<dyn Backbone>,
    texts: ClassTexts,
}

/// A CLIP under training.
pub struct HeldClip {
    config: Zscl,
    given: Arc<dyn Backbone>,
    teacher: Arc<dyn Language>,
    student: (Arc<dyn Backbone>, Arc<dyn Language>),
    anchor: Option<Anchor>,
    params: Params,
    train: Train,
    seed: u64,
    /// Of all classes that arrived.
    names: Vec<String>,
    still: OnceLock<Still>,
    current: Option<Current>,
}

impl HeldClip {
    /// The loss of a batch of the current task, and of a batch of the reference set.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let current = self.current.as_ref().ok_or_else(Error::no_task)?;
        let texts = unit(&self.student.1.encode(&current.tokens)?)?;
        let images = self.images(&batch.images)?;
        let logits = images
            .matmul(&texts.t()?)?
            .broadcast_mul(&self.teacher.scale()?)?;
        let classes = &current.task.classes;
        let mut loss = smoothed(
            &logits,
            &batch.labels,
            classes.start,
            self.config.label_smoothing,
        )?;
        match (&self.anchor, self.config.distillation) {
            (Some(anchor), _) => loss = (loss + self.distilled(anchor, current)?)?,
            (None, None) => {}
            (None, Some(_)) => return Err(no_reference()),
        }
        if self.config.consolidation > 0.0 {
            for (name, var) in self.params.named() {
                let moved = (var.as_tensor() - &current.start[&name])?
                    .sqr()?
                    .sum_all()?;
                loss = (loss + (moved * self.config.consolidation)?)?;
            }
        }
        Ok(loss)
    }

    /// All weights of both towers by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// `v` of length 1, through which training goes.
    fn images(&self, pixels: &Tensor) -> Result<Tensor> {
        let cue = Cue {
            train: true,
            outputs: Outputs::Head,
            ..Cue::default()
        };
        let features = self.student.0.forward(pixels, &NoPrompt, &cue)?.cls()?;
        unit(&self.student.1.images(&features)?)
    }

    /// Each step of a task takes the next images of the reference set, pass after pass.
    fn distilled(&self, anchor: &Anchor, current: &Current) -> Result<Tensor> {
        let d = anchor.weights;
        let per_pass = anchor.images.len().div_ceil(d.batch) as u64;
        let view = View::Train {
            seed: self.seed,
            epoch: ((current.task.index as u64) << 32) + current.steps / per_pass,
        };
        let behind = (current.steps % per_pass) as usize;
        let mut rest = anchor.images.batches_behind(view, d.batch, behind);
        let batch = rest.next().ok_or_else(|| Error::State {
            problem: "the reference set has no image that can be read; give it some".into(),
        })??;
        let scale = self.teacher.scale()?;
        let to = |v: &Tensor| -> Result<Tensor> {
            let logits = v.matmul(&anchor.sentences.t()?)?.broadcast_mul(&scale)?;
            Ok((logits / d.temperature)?)
        };
        let known = self.teacher.images(&self.given.query_batch(&batch)?)?;
        let (own, held) = (
            to(&self.images(&batch.images)?)?,
            to(&unit(&known)?.detach())?,
        );
        let images = (cross_entropy(&own, &held)? * (d.images * d.temperature.powi(2)))?;
        let (own, held) = (own.t()?.contiguous()?, held.t()?.contiguous()?);
        let texts = (cross_entropy(&own, &held)? * (d.texts * d.temperature.powi(2)))?;
        Ok((images + texts)?)
    }

    /// A step is over.
    fn average(&mut self) -> Result<()> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let every = self.config.average_every;
        if every.is_some_and(|every| current.steps.is_multiple_of(every as u64)) {
            current.merged += 1;
            let n = current.merged as f64;
            for (name, var) in self.params.named() {
                if let Some(mean) = current.mean.get_mut(&name) {
                    *mean = (((&*mean * n)? + var.as_detached_tensor())? / (n + 1.0))?;
                }
            }
        }
        current.steps += 1;
        Ok(())
    }

    fn still(&self) -> Result<&Still> {
        if let Some(still) = self.still.get() {
            return Ok(still);
        }
        let part = |before: &str| -> State {
            let named = self.params.named().into_iter().filter_map(|(name, var)| {
                let name = name.strip_prefix(before)?.to_owned();
                // A copy: the variables go on.
                Some((name, var.as_detached_tensor()))
            });
            named.collect()
        };
        let backbone = self.given.with_weights(&part(IMAGES))?;
        let language = self.teacher.with_weights(&part(TEXTS))?;
        let mut texts = ClassTexts::new(language, self.config.templates.clone());
        texts.grow(&TaskInfo {
            index: 0,
            classes: 0..self.names.len(),
            names: self.names.clone(),
            train_len: 0,
            test_len: 0,
        })?;
        let still = Still { backbone, texts };
        Ok(self.still.get_or_init(|| still))
    }

    fn begin(&mut self, task: &TaskInfo) -> Result<()> {
        arrive(task, self.names.len())?;
        self.names.extend(task.names.iter().cloned());
        let first = self.config.templates.all().first().map(|t| (*t).to_owned());
        let first = first.unwrap_or_default();
        // Detached: a pull to what follows the weights would be none.
        let copies = |wanted: bool| -> Result<State> {
            let state = if wanted {
                self.params.state()?
            } else {
                State::new()
            };
            let detached = state.into_iter().map(|(name, t)| (name, t.detach()));
            Ok(detached.collect())
        };
        self.current = Some(Current {
            optimizer: Optimizer::new(self.params.named(), &self.train)?,
            tokens: task.names.iter().map(|n| first.replace("{}", n)).collect(),
            start: copies(self.config.consolidation > 0.0)?,
            mean: copies(self.config.average_every.is_some())?,
            task: task.clone(),
            merged: 0,
            steps: 0,
        });
        self.still = OnceLock::new();
        Ok(())
    }
}

/// `−Σ p log q` with `p` of `held` and `q` of `own`, the mean over rows.
fn cross_entropy(own: &Tensor, held: &Tensor) -> Result<Tensor> {
    let product = (softmax(held, D::Minus1)? * log_softmax(own, D::Minus1)?)?;
    Ok(product.sum(D::Minus1)?.mean_all()?.neg()?)
}

/// Cross-entropy with a label's share of `ε` for all classes: `(1 − ε)(−log p_y) + ε · mean_c(−log p_c)`.
fn smoothed(logits: &Tensor, labels: &[u32], first: usize, smoothing: f64) -> Result<Tensor> {
    let classes = first..first + logits.dim(1)?;
    let hard = candlewick_core::train::masked_cross_entropy(logits, labels, &classes)?;
    let soft = log_softmax(logits, D::Minus1)?.mean_all()?.neg()?;
    Ok(((hard * (1.0 - smoothing))? + (soft * smoothing)?)?)
}

impl Method for HeldClip {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.begin(task)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some(current) = &mut self.current {
            current.optimizer.begin_epoch(epoch);
        }
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some(current) = &mut self.current {
            current.optimizer.step(&loss)?;
        }
        self.average()?;
        self.still = OnceLock::new();
        Ok(loss.detach())
    }

    /// The mean takes the place of the last model.
    fn end_task(&mut self, _: &Task, _: Progress<'_>) -> Result<()> {
        if let Some(current) = self.current.take() {
            for (name, mean) in &current.mean {
                self.params.set(name, mean)?;
            }
        }
        self.still = OnceLock::new();
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let still = self.still()?;
        let features = still.backbone.query(&batch.images)?;
        still.texts.scores(&features)
    }

    fn predict_task(&self, batch: &Batch, task: &TaskInfo) -> Result<Option<Tensor>> {
        let still = self.still()?;
        let features = still.backbone.query(&batch.images)?;
        still.texts.task_scores(&features, task)
    }

    /// Of towers without weights, too.
    fn trainable(&self) -> usize {
        match self.params.count() {
            // All but the scale.
            0 => self.given.spec().parameters + self.teacher.spec().parameters - 1,
            n => n,
        }
    }

    fn state(&self) -> Result<State> {
        self.params.state()
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.resume(tasks, state, Session::new())
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some(current) = &self.current {
            session.put_count("merged", current.merged)?;
            session.put_count("steps", current.steps)?;
            session.put_part("optimizer", current.optimizer.session()?);
            for (part, state) in [("start", &current.start), ("mean", &current.mean)] {
                for (name, tensor) in state {
                    session.put(&format!("{part}.{name}"), tensor.clone());
                }
            }
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        for task in tasks {
            self.begin(task)?;
        }
        self.params.load_state(state)?;
        if session.is_empty() {
            self.current = None;
            return Ok(());
        }
        let moments = session.take_part("optimizer");
        match &mut self.current {
            Some(current) if !moments.is_empty() => {
                current.merged = session.take_count("merged")?;
                current.steps = session.take_count("steps")?;
                for (part, state) in [("start", &mut current.start), ("mean", &mut current.mean)] {
                    for (name, tensor) in state {
                        *tensor = session.take(&format!("{part}.{name}"))?.copy()?;
                    }
                }
                current.optimizer.resume(moments)?;
            }
            _ => self.current = None,
        }
        session.end()
    }
}

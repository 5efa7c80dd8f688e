//! PROOF: projections of both towers that grow with the tasks, and attention across what is known of all classes (Zhou et al. 2025,
//! "Learning without Forgetting for Vision-Language Models"; `LAMDA-CL/PROOF:models/proof.py`, `utils/inc_net.py`,
//! `convs/projections.py`).
//!
//! ```text
//! v   = unit(Σ_t P_v^t e_v(x))       u_c = unit(Σ_t P_u^t e_u(c))        p_c = unit(Σ_t P_v^t mean of e_v over class c)
//! S   = [v; u_1 … u_C; p_1 … p_C; contexts of all tasks]
//! S'  = LN(S + W_o softmax(W_q S (W_k S)ᵀ / √E) W_v S + b)                                  with dropout, see attend.rs
//! L   = CE(v' u'ᵀ, y) + CE(v' p'ᵀ, y) + ½ (CE(s v u_yᵀ, i) + CE(s u_y vᵀ, i))     over the classes seen, images and exemplars
//! z_c = v · ū_c + v' · u'_c + v' · p'_c                          ū: mean over the templates, at test in S as well
//! ```
//!
//! `e` are the embeddings of the frozen towers, of length 1, and `s` a scale that trains. Projections and contexts of earlier
//! tasks stand still. A sequence is of one image, so that nothing depends on the batch; the reference takes `u'` and `p'` as
//! means over the batch (`fusion = "batch"`), leaves old projections of texts training (`old_text = "trains"`), and does not
//! normalise images at test (`test_image = "raw"`).

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use candlewick_core::language::unit;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Error, Exemplars, Frozen, Init, Language, Method, Optimizer, Params, Progress,
    Result, Session, State, Task, TaskInfo, Train, View,
};
use serde::{Deserialize, Serialize};

use crate::attend::Attend;
use crate::class_texts::{arrive, language};
use crate::exemplars::{Kept, Memory};
use crate::templates::Templates;

/// `[method] name = "proof"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Sentences around the names of classes; training takes the first.
    #[serde(default)]
    pub templates: Templates,
    /// Context tokens of a task; 3 as published.
    pub contexts: usize,
    /// The part of the fusion's attention, and of what comes out of it, that is left out at random in training; 0.1 as published, 0 where
    /// left out.
    #[serde(default)]
    pub dropout: f64,
    /// Past images that come again.
    pub memory: Memory,
    /// Over what fused texts and prototypes are taken.
    #[serde(default)]
    pub fusion: Fusion,
    /// What projections of texts of earlier tasks do.
    #[serde(default)]
    pub old_text: OldText,
    /// How an image enters at test.
    #[serde(default)]
    pub test_image: TestImage,
}

/// Over what fused texts and prototypes are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// Each image has its own.
    #[default]
    Image,
    /// Their mean over the batch.
    Batch,
}

/// What projections of texts of earlier tasks do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OldText {
    /// Stand still, as those of images.
    #[default]
    Frozen,
    /// Go on.
    Trains,
}

/// How an image enters at test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestImage {
    /// Of length 1, as in training.
    #[default]
    Unit,
    /// As the projections leave it.
    Raw,
}

impl Proof {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.templates.check()?;
        if !(0.0..1.0).contains(&self.dropout) {
            let problem = format!("must be at least 0 and below 1, found {}", self.dropout);
            return Err(Error::setting("method.dropout", problem));
        }
        self.memory.check()
    }

    /// Named departures.
    pub fn compat(&self) -> Vec<String> {
        let switches = [
            (self.fusion == Fusion::Batch, "proof.fusion=batch"),
            (self.old_text == OldText::Trains, "proof.old_text=trains"),
            (self.test_image == TestImage::Raw, "proof.test_image=raw"),
        ];
        let on = switches.into_iter().filter(|(on, _)| *on);
        on.map(|(_, name)| name.to_owned()).collect()
    }

    /// `seed` draws parameters and exemplars; `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Projections> {
        self.check()?;
        train.check()?;
        let language = language(backbone.as_ref())?;
        let dim = language.spec().dim;
        let mut params = Params::seeded(seed, backbone.device());
        let fusion = Attend::new(dim, self.dropout, seed, &mut params)?;
        let scale = params.create(SCALE, &[], Init::Zeros)?;
        params.set(SCALE, &language.scale()?.log()?)?;
        Ok(Projections {
            config: self.clone(),
            kept: self.memory.build(seed)?,
            frozen: Frozen::new(backbone),
            language,
            fusion,
            scale,
            params,
            train,
            batch,
            tasks: Vec::new(),
            texts: None,
            means: None,
            classes: 0,
            steps: 0,
            current: None,
        })
    }
}

/// `log s`.
const SCALE: &str = "logit_scale";
/// Where class means are saved.
const MEANS: &str = "prototypes";

/// What a task added: weight and bias for images, the same for texts, contexts.
struct Part {
    image: [Tensor; 2],
    text: [Tensor; 2],
    context: Tensor,
}

/// PROOF under way.
pub struct Projections {
    config: Proof,
    frozen: Frozen,
    language: Arc<dyn Language>,
    fusion: Attend,
    scale: Tensor,
    params: Params,
    train: Train,
    batch: usize,
    kept: Kept,
    tasks: Vec<Part>,
    /// `e_u`, `(classes, templates, E)`.
    texts: Option<Tensor>,
    /// Means of `e_v`, `(classes, E)`.
    means: Option<Tensor>,
    classes: usize,
    /// Steps of the task.
    steps: u64,
    current: Option<(TaskInfo, Optimizer)>,
}

/// Images, texts and prototypes behind the fusion: `(B, E)`, and `(B, C, E)` or `(1, C, E)` twice.
struct Fused {
    image: Tensor,
    texts: Tensor,
    means: Tensor,
}

impl Projections {
    /// The loss of a batch of new images and exemplars.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.current else {
            return Err(Error::no_task());
        };
        let step = ((task.index as u64) << 32) + self.steps;
        let image = unit(&self.projected(&self.embedded(batch)?, true)?)?;
        let texts = self.texts.as_ref().ok_or_else(Error::no_task)?;
        let first = texts.narrow(1, 0, 1)?.squeeze(1)?;
        let texts = unit(&self.projected(&first, false)?)?;
        let fused = self.fused(&image, &texts, Some(step))?;
        let all = 0..self.classes;
        let [by_texts, by_means] = self.fused_logits(&fused)?;
        let mut loss = masked_cross_entropy(&by_texts, &batch.labels, &all)?;
        loss = (loss + masked_cross_entropy(&by_means, &batch.labels, &all)?)?;
        // Each image to the text of its own class.
        let n = batch.len();
        let own = Tensor::from_slice(&batch.labels, n, image.device())?;
        let own = texts.index_select(&own, 0)?;
        let pairs = image.matmul(&own.t()?)?.broadcast_mul(&self.scale.exp()?)?;
        let places: Vec<u32> = (0..n as u32).collect();
        for logits in [pairs.clone(), pairs.t()?.contiguous()?] {
            loss = (loss + (masked_cross_entropy(&logits, &places, &(0..n))? * 0.5)?)?;
        }
        Ok(loss)
    }

    /// Projections, contexts and fusion by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// `e_v` of length 1, `(B, E)`.
    fn embedded(&self, batch: &Batch) -> Result<Tensor> {
        let features = self.frozen.query(batch)?;
        Ok(unit(&self.language.images(&features)?)?.detach())
    }

    /// `Σ_t P^t x` of rows `(n, E)`; what stands still is detached.
    fn projected(&self, x: &Tensor, image: bool) -> Result<Tensor> {
        let last = self.tasks.len().saturating_sub(1);
        let still = image || self.config.old_text == OldText::Frozen;
        let mut sum: Option<[Tensor; 2]> = None;
        for (t, part) in self.tasks.iter().enumerate() {
            let own = if image { &part.image } else { &part.text };
            let own = match t < last && still {
                true => own.each_ref().map(Tensor::detach),
                false => own.clone(),
            };
            sum = Some(match sum {
                None => own,
                Some([weight, bias]) => [(weight + &own[0])?, (bias + &own[1])?],
            });
        }
        let [weight, bias] = sum.ok_or_else(Error::no_task)?;
        Ok(x.matmul(&weight.t()?)?.broadcast_add(&bias)?)
    }

    /// Sequences of images `(B, E)` with texts `(C, E)` through the fusion.
    fn fused(&self, image: &Tensor, texts: &Tensor, step: Option<u64>) -> Result<Fused> {
        let means = self.means.as_ref().ok_or_else(Error::no_task)?;
        let means = unit(&self.projected(means, true)?)?;
        let (last, b) = (self.tasks.len().saturating_sub(1), image.dim(0)?);
        let mut parts = vec![texts.clone(), means];
        for (t, part) in self.tasks.iter().enumerate() {
            if self.config.contexts > 0 {
                parts.push(match t < last {
                    true => part.context.detach(),
                    false => part.context.clone(),
                });
            }
        }
        let shared = Tensor::cat(&parts, 0)?.unsqueeze(0)?;
        let shared = shared.broadcast_as((b, shared.dim(1)?, shared.dim(2)?))?;
        let sequence = Tensor::cat(&[&image.unsqueeze(1)?, &shared.contiguous()?], 1)?;
        let out = self.fusion.forward(&sequence.contiguous()?, step)?;
        let of = |from: usize| -> Result<Tensor> {
            let part = out.narrow(1, from, self.classes)?;
            Ok(match self.config.fusion {
                Fusion::Image => part.contiguous()?,
                Fusion::Batch => part.mean_keepdim(0)?,
            })
        };
        Ok(Fused {
            image: out.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
            texts: of(1)?,
            means: of(1 + self.classes)?,
        })
    }

    /// `v' u'ᵀ` and `v' p'ᵀ`, `(B, C)` each.
    fn fused_logits(&self, fused: &Fused) -> Result<[Tensor; 2]> {
        let image = fused.image.unsqueeze(1)?;
        let by = |others: &Tensor| -> Result<Tensor> {
            Ok(others.broadcast_mul(&image)?.sum(D::Minus1)?)
        };
        Ok([by(&fused.texts)?, by(&fused.means)?])
    }

    /// `ū`: texts of all templates projected, of length 1, their mean of length 1.
    fn ensembled(&self) -> Result<Tensor> {
        let texts = self.texts.as_ref().ok_or_else(Error::no_task)?;
        let (classes, templates, dim) = texts.dims3()?;
        let flat = texts.reshape((classes * templates, dim))?;
        let each = unit(&self.projected(&flat, false)?)?;
        unit(&each.reshape((classes, templates, dim))?.mean(1)?)
    }
}

impl Method for Projections {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        arrive(task, self.classes)?;
        self.classes = task.classes.end;
        let (t, dim) = (task.index, self.language.spec().dim);
        // PyTorch's linear layer.
        let end = (1.0 / dim as f32).sqrt();
        let init = Init::Uniform {
            low: -end,
            high: end,
        };
        let params = &mut self.params;
        let mut linear = |of: &str| -> Result<[Tensor; 2]> {
            let weight = format!("projection.{t}.{of}.weight");
            let bias = format!("projection.{t}.{of}.bias");
            Ok([
                params.create(&weight, &[dim, dim], init)?,
                params.create(&bias, &[dim], init)?,
            ])
        };
        let (image, text) = (linear("image")?, linear("text")?);
        let shape = [self.config.contexts, dim];
        let context = match self.config.contexts {
            0 => Tensor::zeros((0, dim), DType::F32, self.params.device())?,
            _ => self
                .params
                .create(&format!("context.{t}"), &shape, Init::Normal { std: 1.0 })?,
        };
        self.tasks.push(Part {
            image,
            text,
            context,
        });
        let templates = &self.config.templates;
        let texts: Vec<String> = task.names.iter().flat_map(|n| templates.about(n)).collect();
        let new = unit(&self.language.encode(&texts)?)?.detach();
        let new = new.reshape((task.names.len(), (), dim))?;
        self.texts = Some(match &self.texts {
            Some(old) => Tensor::cat(&[old, &new], 0)?,
            None => new,
        });
        // Until the images are there.
        let new = Tensor::zeros((task.classes.len(), dim), DType::F32, self.params.device())?;
        self.means = Some(match &self.means {
            Some(old) => Tensor::cat(&[old, &new], 0)?,
            None => new,
        });
        let optimizer = Optimizer::new(self.params.named(), &self.train)?;
        self.steps = 0;
        self.current = Some((task.clone(), optimizer));
        Ok(())
    }

    /// Class means of the frozen tower, which training needs.
    fn prepare(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        let dim = self.language.spec().dim;
        let mut sums: BTreeMap<u32, (Vec<f64>, f64)> = BTreeMap::new();
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            let rows: Vec<Vec<f32>> = self.embedded(&batch)?.to_vec2()?;
            for (row, label) in rows.iter().zip(&batch.labels) {
                let (sum, n) = sums.entry(*label).or_insert_with(|| (vec![0.0; dim], 0.0));
                sum.iter_mut()
                    .zip(row)
                    .for_each(|(s, x)| *s += f64::from(*x));
                *n += 1.0;
            }
            progress(batch.len())?;
        }
        let mut means = Vec::with_capacity(task.info.classes.len() * dim);
        for class in task.info.classes.clone() {
            let Some((sum, n)) = sums.get(&(class as u32)) else {
                return Err(Error::State {
                    problem: format!(
                        "class `{}` of task {} has no readable training image; leave the class out, or mend its images",
                        task.info
                            .names
                            .get(class - task.info.classes.start)
                            .map_or("", |n| n),
                        task.info.index + 1
                    ),
                });
            };
            means.extend(sum.iter().map(|s| (s / n) as f32));
        }
        let shape = (task.info.classes.len(), dim);
        let new = Tensor::from_vec(means, shape, self.params.device())?;
        let first = task.info.classes.start;
        let old = self.means.as_ref().ok_or_else(Error::no_task)?;
        self.means = Some(Tensor::cat(&[&old.narrow(0, 0, first)?, &new], 0)?);
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
        self.steps += 1;
        Ok(loss.detach())
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.current = None;
        let mut kept = self.kept.clone();
        kept.learn(task, &|batch| self.embedded(batch), self.batch, progress)?;
        self.kept = kept;
        Ok(())
    }

    fn exemplars(&self) -> Option<Exemplars> {
        Some(self.kept.exemplars())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let image = self.projected(&self.embedded(batch)?, true)?;
        let image = match self.config.test_image {
            TestImage::Unit => unit(&image)?,
            TestImage::Raw => image,
        };
        let texts = self.ensembled()?;
        let plain = image.matmul(&texts.t()?)?;
        let [by_texts, by_means] = self.fused_logits(&self.fused(&image, &texts, None)?)?;
        Ok(((plain + by_texts)? + by_means)?.detach())
    }

    fn trainable(&self) -> usize {
        self.params.count()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.params.state()?;
        if let Some(means) = &self.means {
            state.insert(MEANS.into(), means.clone());
        }
        self.kept.save(&mut state)?;
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.resume(tasks, state, Session::new())
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some((_, optimizer)) = &self.current {
            session.put_part("optimizer", optimizer.session()?);
            session.put_count("steps", self.steps)?;
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        let mut state = state.clone();
        let shape = [self.classes, self.language.spec().dim];
        self.means = match state.remove(MEANS) {
            Some(means) if means.dims() == shape => Some(means.to_device(self.params.device())?),
            None if self.classes == 0 => None,
            found => {
                return Err(Error::State {
                    problem: format!(
                        "`{MEANS}` has shape {:?}, expected {shape:?}",
                        found.map(|t| t.dims().to_vec())
                    ),
                });
            }
        };
        self.kept.load(&mut state)?;
        self.params.load_state(&state)?;
        match &mut self.current {
            Some((_, optimizer)) if !session.is_empty() => {
                optimizer.resume(session.take_part("optimizer"))?;
                self.steps = session.take_count("steps")?;
            }
            _ => self.current = None,
        }
        session.end()
    }
}

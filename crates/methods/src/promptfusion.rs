//! PromptFusion: a CLIP that keeps, a ViT that learns, and a weight between their logits (Chen et al. 2024, "PromptFusion: Decoupling
//! Stability and Plasticity for Continual Learning"; `HaoranChen/PromptFusion:model.py`, `prompt.py`, `train_pf.py`).
//!
//! ```text
//! stabiliser  t_c = [start, v_c1 … v_cM, "c.", end]                       v_c ~ N(0, 0.01²), of one class
//!             f   = unit(images(norm(mean of the outputs of P)))          P ~ N(0, 1) behind CLS at block 0
//!             z^s = exp(s) f · unit(text(t_c))
//! booster     z^b = W mean of the normed outputs of Q + b                 Q ~ U[−1, 1) beside the patches, with CLS's position
//! fused       z   = (1 − σ(λ)) z^s + σ(λ) z^b                             λ starts at 1
//! or          z   = z^s + g z^b,  g of a gate                             with `[method.gate]`: PromptFusion-Lite
//! L = −w_y log softmax(z)_y       over all classes seen, images and exemplars
//!     w_c = (t/2) / σ(β_c) of an old class, σ(α_c) of a new one; 1 in the first task; α and β start at 1 and train
//! ```
//!
//! Both networks stand still; contexts of earlier tasks too. The reference has an `α` and a `β` for each *place in the batch* and class, and
//! never starts `α` anew (`weights = "slot"`); leaves as many embeddings of "X" behind the context as it is long (`filler = "x"`); feeds the
//! booster pixels that are prepared for the stabiliser (`pixels = "stabilizer"`); and predicts with contexts as they were before the last
//! step, which is not repeated here. What the gate departs in stands in [`gate`](crate::gate).

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Tensor};
use candle_nn::ops::sigmoid;
use candlewick_core::language::unit;
use candlewick_core::{
    Backbone, Batch, Error, Exemplars, Frozen, Head, Init, Language, Method, Optimizer, Params,
    Position, Progress, Result, Session, Site, State, Task, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::balance::{self, Balance, Weights};
use crate::booster::Booster;
use crate::class_texts::{arrive, language};
use crate::context::Names;
use crate::exemplars::{Kept, Memory};
use crate::gate::{Gate, Gating};
use crate::shared_tokens::Shared;

/// Before the names of parameters.
const NAME: &str = "fusion.";

/// `[method] name = "promptfusion"`, beside a `[booster]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptFusion {
    /// Learned tokens of a class, `M`.
    pub length: usize,
    /// Tokens `P` among the images of the stabiliser.
    pub image_prompts: usize,
    /// Tokens `Q` among those of the booster.
    pub booster_prompts: usize,
    /// Past images that come again.
    pub memory: Memory,
    /// PromptFusion-Lite: the booster looks where a gate opens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<Gating>,
    /// What `α` and `β` belong to.
    #[serde(default)]
    pub weights: Weights,
    /// What stands between context and name.
    #[serde(default)]
    pub filler: Filler,
    /// What the booster sees.
    #[serde(default)]
    pub pixels: Pixels,
}

/// What stands between context and name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filler {
    /// Nothing.
    #[default]
    None,
    /// As many times "X" as the context is long.
    X,
}

/// What the booster sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pixels {
    /// The picture with mean and deviation of its own card.
    #[default]
    Own,
    /// With those of the stabiliser.
    Stabilizer,
}

impl PromptFusion {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        for (key, n) in [
            ("length", self.length),
            ("image_prompts", self.image_prompts),
            ("booster_prompts", self.booster_prompts),
        ] {
            if n == 0 {
                let problem = "must be greater than 0, found 0";
                return Err(Error::setting(format!("method.{key}"), problem));
            }
        }
        self.gate.map_or(Ok(()), |gate| gate.check())?;
        self.memory.check()
    }

    /// Named departures.
    pub fn compat(&self) -> Vec<String> {
        let own = [
            (self.filler == Filler::X, "filler=x"),
            (self.pixels == Pixels::Stabilizer, "pixels=stabilizer"),
            (self.weights == Weights::Slot, "weights=slot"),
        ];
        let own = own.into_iter().filter(|(on, _)| *on).map(|(_, name)| name);
        let gate = self.gate.iter().flat_map(Gating::compat);
        own.chain(gate)
            .map(|name| format!("promptfusion.{name}"))
            .collect()
    }

    /// `seed` draws parameters and exemplars; `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        booster: Option<Booster>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Fusion> {
        self.check()?;
        train.check()?;
        let Some(booster) = booster else {
            return Err(Error::setting(
                "booster",
                "`promptfusion` has a second backbone; name it in a table [booster], such as name = \"vit-micro\"",
            ));
        };
        let language = language(backbone.as_ref())?;
        let mut params = Params::seeded(seed, backbone.device());
        let shape = [self.image_prompts, backbone.spec().dim];
        let image = params.create("image_prompts", &shape, Init::Normal { std: 1.0 })?;
        let dim = booster.backbone().spec().dim;
        let (low, high) = (-1.0, 1.0);
        let shape = [self.booster_prompts, dim];
        let boost = params.create("booster_prompts", &shape, Init::Uniform { low, high })?;
        let joint = language.spec().dim;
        let blend = match self.gate {
            Some(gate) => Blend::Gate(Gate::new(gate, joint, seed, &mut params)?),
            None => Blend::Weight(params.create("lambda", &[], Init::Ones)?),
        };
        Ok(Fusion {
            config: self.clone(),
            frozen: Frozen::new(backbone),
            language,
            image: Shared {
                values: image,
                site: Site::Block(0),
                position: Position::None,
                before_norm: true,
            },
            boost: Shared {
                values: boost,
                site: Site::Embed,
                position: Position::Cls,
                before_norm: false,
            },
            booster,
            blend,
            head: Head::new(dim),
            params,
            train,
            batch,
            kept: self.memory.build(seed)?,
            tasks: Vec::new(),
            classes: 0,
            balance: None,
            rows: OnceLock::new(),
            steps: 0,
            current: None,
        })
    }
}

/// How logits come together.
enum Blend {
    /// `λ`.
    Weight(Tensor),
    Gate(Gate),
}

/// The classes of a task and their texts.
struct Part {
    names: Names,
    context: Tensor,
    /// `(classes, E)`, once the context stands still.
    done: OnceLock<Tensor>,
}

/// PromptFusion under way.
pub struct Fusion {
    config: PromptFusion,
    frozen: Frozen,
    language: Arc<dyn Language>,
    image: Shared,
    booster: Booster,
    boost: Shared,
    blend: Blend,
    head: Head,
    params: Params,
    train: Train,
    batch: usize,
    kept: Kept,
    tasks: Vec<Part>,
    classes: usize,
    /// None in the first task.
    balance: Option<Balance>,
    /// Texts of all classes as they are now, for predictions.
    rows: OnceLock<Tensor>,
    /// Steps of the task.
    steps: u64,
    current: Option<(TaskInfo, Optimizer)>,
}

impl Fusion {
    /// The loss of a batch of new images and exemplars.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.current else {
            return Err(Error::no_task());
        };
        let f = self.seen(&batch.images, true)?;
        let stable = self.stable(&f, &self.texts(true)?)?;
        let boosted = self.boosted(&batch.images, true)?;
        let (z, own) = match &self.blend {
            Blend::Weight(_) => (self.weighed(&stable, &boosted)?, None),
            Blend::Gate(gate) => {
                let step = ((task.index as u64) << 32) + self.steps;
                let opened = gate.train(&f, &gate.noise(step, batch.len())?)?;
                let z = (stable + boosted.broadcast_mul(&opened.open)?)?;
                (z, Some(opened.loss))
            }
        };
        let loss = balance::loss(&z, &batch.labels, self.balance.as_ref())?;
        Ok(match own {
            Some(own) => (loss + own)?,
            None => loss,
        })
    }

    /// Prompts, contexts, head and weights by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// `f` of images, `(B, E)`.
    fn seen(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let backbone = self.frozen.backbone();
        let mean = self.image.mean(backbone, images, train)?;
        unit(&self.language.images(&backbone.norm(&mean)?)?)
    }

    /// `z^s`, `(B, C)`.
    fn stable(&self, f: &Tensor, texts: &Tensor) -> Result<Tensor> {
        let cosines = f.matmul(&texts.t()?)?;
        Ok(cosines.broadcast_mul(&self.language.scale()?)?)
    }

    /// `z^b`, `(B, C)`.
    fn boosted(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let images = match self.config.pixels {
            Pixels::Stabilizer => images.clone(),
            Pixels::Own => self.booster.pixels(images)?,
        };
        let backbone = self.booster.backbone();
        let read = self.boost.mean(backbone, &images, train)?;
        self.head.logits(&read)
    }

    /// `(1 − σ(λ)) z^s + σ(λ) z^b`.
    fn weighed(&self, stable: &Tensor, boosted: &Tensor) -> Result<Tensor> {
        let Blend::Weight(lambda) = &self.blend else {
            return Ok(stable.clone());
        };
        let part = sigmoid(lambda)?;
        let rest = part.affine(-1.0, 1.0)?;
        let sum = stable.broadcast_mul(&rest)? + boosted.broadcast_mul(&part)?;
        Ok(sum?)
    }

    /// Texts `(classes, E)`, each of length 1.
    fn texts(&self, train: bool) -> Result<Tensor> {
        let last = self.tasks.len().saturating_sub(1);
        let parts = self.tasks.iter().enumerate().map(|(i, part)| {
            let texts = || part.names.texts(self.language.as_ref(), &part.context);
            match (i == last, part.done.get()) {
                (true, _) if train => texts(),
                (true, _) => Ok(texts()?.detach()),
                (false, Some(done)) => Ok(done.clone()),
                (false, None) => {
                    let texts = texts()?.detach();
                    Ok(part.done.get_or_init(|| texts).clone())
                }
            }
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        match parts.is_empty() {
            true => Err(Error::no_task()),
            false => Ok(Tensor::cat(&parts, 0)?),
        }
    }

    /// The tokens of the classes of a task, in front of which there is room for a context.
    fn names(&self, task: &TaskInfo) -> Result<Names> {
        let length = self.config.length;
        let between = match self.config.filler {
            Filler::None => String::new(),
            Filler::X => "X ".repeat(length),
        };
        let most = self.language.spec().positions;
        if self.config.filler == Filler::X && 2 * length + 3 > most {
            return Err(Error::setting(
                "method.length",
                format!(
                    "{length} tokens of context and as many \"X\" leave no room for a name in {most} positions; give at most {}",
                    most.saturating_sub(3) / 2
                ),
            ));
        }
        let texts = task.names.iter().map(|name| format!("{between}{name}."));
        Names::new(self.language.as_ref(), texts, length)
    }

    /// `e` of the plain stabiliser, what exemplars are herded by.
    fn embedded(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.language.images(&self.frozen.query(batch)?)?.detach())
    }
}

impl Method for Fusion {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        arrive(task, self.classes)?;
        let names = self.names(task)?;
        let slots = self.train.batch;
        self.balance = Balance::of(self.config.weights, task, slots, &mut self.params)?;
        let width = self.language.spec().width;
        let shape = [task.classes.len(), self.config.length, width];
        let name = format!("context.{}", task.index);
        let context = self
            .params
            .create(&name, &shape, Init::Normal { std: 0.01 })?;
        self.tasks.push(Part {
            names,
            context,
            done: OnceLock::new(),
        });
        self.head.grow(&task.classes, &mut self.params)?;
        if let Blend::Gate(gate) = &mut self.blend {
            gate.begin_task(task.index)?;
        }
        self.classes = task.classes.end;
        self.rows = OnceLock::new();
        self.steps = 0;
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
        self.steps += 1;
        self.rows = OnceLock::new();
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
        let texts = match self.rows.get() {
            Some(rows) => rows,
            None => {
                let rows = self.texts(false)?;
                self.rows.get_or_init(|| rows)
            }
        };
        let f = self.seen(&batch.images, false)?;
        let stable = self.stable(&f, texts)?;
        let z = match &self.blend {
            Blend::Weight(_) => self.weighed(&stable, &self.boosted(&batch.images, false)?)?,
            Blend::Gate(gate) => match gate.open(&f, &batch.ids)? {
                open if open.is_empty() => stable,
                open => {
                    let open = Tensor::new(open, batch.images.device())?;
                    let images = batch.images.index_select(&open, 0)?;
                    let boosted = self.boosted(&images, false)?;
                    stable.index_add(&open, &boosted, 0)?
                }
            },
        };
        Ok(z.to_dtype(DType::F32)?.detach())
    }

    fn trainable(&self) -> usize {
        self.params.count()
    }

    fn state(&self) -> Result<State> {
        self.kept.beside(NAME, self.params.state()?)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.resume(tasks, state, Session::new())
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some((_, optimizer)) = &self.current {
            session.put_part("optimizer", optimizer.session()?);
            session.put_count("steps", self.steps)?;
            if let Blend::Gate(gate) = &self.blend {
                session.put_part("gate", gate.session());
            }
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        let params = self.kept.apart(NAME, state)?;
        self.params.load_state(&params)?;
        match &mut self.current {
            Some((_, optimizer)) if !session.is_empty() => {
                optimizer.resume(session.take_part("optimizer"))?;
                self.steps = session.take_count("steps")?;
                if let Blend::Gate(gate) = &mut self.blend {
                    gate.resume(session.take_part("gate"))?;
                }
            }
            _ => self.current = None,
        }
        session.end()
    }
}

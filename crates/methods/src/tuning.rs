//! Tuning on the first task, after which the backbone stands still: what APER, RanPAC and FeCAM begin with.
//!
//! ```text
//! g(x) = CLS of the tuned network
//! L    = CE(σ · cos(g(x), v_c))         v (C, D) and σ trained with the rest, then of no use
//! ```
//!
//! Source: `LAMDA-CL/LAMDA-PILOT:models/aper_adapter.py` and its siblings, `backbone/linears.py`, `utils/inc_net.py` (5240714).

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::backbone::l2_normalize;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Cue, Error, Frozen, Init, NoPrompt, Optimizer, Outputs, Params, Prompt,
    Result, Session, State, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::lora::Target;
use crate::pet::{Pet, dropout, yes};
use crate::vpt::Start;

/// What is tuned: the `[method.tuning]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Tuning {
    /// Every weight of the backbone.
    Finetune {},
    /// Prompt tokens at the input, see [`vpt`](crate::vpt).
    VptShallow {
        /// Tokens.
        length: usize,
        /// How they start.
        #[serde(default)]
        init: Start,
    },
    /// Prompt tokens at the input of every block.
    VptDeep {
        /// Tokens of a block.
        length: usize,
        /// How they start.
        #[serde(default)]
        init: Start,
    },
    /// Scale and shift of every operation, see [`ssf`](crate::ssf).
    Ssf {},
    /// An adapter beside every MLP, see [`adapter`](crate::adapter).
    Adapter {
        /// Its inner width.
        bottleneck: usize,
        /// Probability that an inner value is left out in training; 0.1 where left out, as published.
        #[serde(default = "dropout")]
        dropout: f32,
    },
    /// An adapter beside attention, see [`attention_adapter`](crate::attention_adapter).
    AttentionAdapter {
        /// Blocks with an adapter, counted from 0.
        blocks: Vec<usize>,
        /// Its inner width.
        bottleneck: usize,
    },
    /// Low-rank changes of weights, see [`lora`](crate::lora).
    Lora {
        /// Blocks with changes.
        blocks: Vec<usize>,
        /// Their rank.
        rank: usize,
        /// The weights that are changed; keys and values where left out.
        #[serde(default = "Target::keys_and_values")]
        on: Vec<Target>,
    },
    /// Keys and values before those of the tokens, see [`prefix`](crate::prefix).
    Prefix {
        /// Blocks with a prefix.
        blocks: Vec<usize>,
        /// Its keys, and its values.
        length: usize,
        /// Whether its weights are divided by their sum; they are where left out.
        #[serde(default = "yes")]
        compensate: bool,
    },
}

const TABLE: &str = "method.tuning";

impl Tuning {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.pet().map_or(Ok(()), |pet| pet.check(TABLE))
    }

    /// Names the departures of `method` from the default rule, for the record.
    pub fn compat(&self, method: &str) -> Vec<String> {
        let pet = self.pet();
        pet.map_or(vec![], |pet| pet.compat(&format!("{method}.tuning")))
    }

    /// As a module in the frozen backbone; `None` where all of it is tuned.
    fn pet(&self) -> Option<Pet> {
        Some(match self.clone() {
            Self::Finetune {} => return None,
            Self::VptShallow { length, init } => Pet::VptShallow { length, init },
            Self::VptDeep { length, init } => Pet::VptDeep { length, init },
            Self::Ssf {} => Pet::Ssf {},
            Self::Adapter {
                bottleneck,
                dropout,
            } => Pet::Adaptformer {
                bottleneck,
                dropout,
            },
            Self::AttentionAdapter { blocks, bottleneck } => Pet::Adapter { blocks, bottleneck },
            Self::Lora { blocks, rank, on } => Pet::Lora { blocks, rank, on },
            Self::Prefix {
                blocks,
                length,
                compensate,
            } => Pet::Prefix {
                blocks,
                length,
                compensate,
            },
        })
    }

    fn module(&self, backbone: &dyn Backbone, seed: u64, params: &mut Params) -> Result<Module> {
        if let Some(pet) = self.pet() {
            let prompt = pet.build(TABLE, backbone.spec(), seed, params)?;
            return Ok(Module::Prompt(prompt));
        }
        let thawed = backbone.thaw()?;
        for (name, var) in thawed.weights {
            params.adopt(&format!("{BACKBONE}{name}"), var)?;
        }
        Ok(Module::Whole(thawed.backbone))
    }
}

/// Before the names of a whole backbone's weights.
const BACKBONE: &str = "backbone.";
const WEIGHT: &str = "head.weight";
const SIGMA: &str = "head.sigma";

/// What looks at images for a method: the frozen backbone, or one tuned on the first task, or both.
pub struct Look {
    frozen: Frozen,
    tuned: Option<Tuned>,
    /// Whether frozen and tuned features stand side by side.
    both: bool,
}

/// The part that is trained on the first task.
struct Tuned {
    module: Module,
    params: Params,
    train: Train,
    /// Values in the head of the first task.
    head: usize,
    /// The first task, as long as it is trained on.
    session: Option<(TaskInfo, Optimizer)>,
}

enum Module {
    /// In the frozen backbone.
    Prompt(Box<dyn Prompt>),
    /// A backbone of its own: over variables while it trains, then frozen.
    Whole(Arc<dyn Backbone>),
}

impl Look {
    /// At the frozen feature alone.
    pub fn frozen(backbone: Arc<dyn Backbone>) -> Self {
        Self {
            frozen: Frozen::new(backbone),
            tuned: None,
            both: false,
        }
    }

    /// With `tuning`, which needs `train`, at the tuned feature, behind the frozen one if `both`.
    pub fn new(
        backbone: Arc<dyn Backbone>,
        tuning: Option<&Tuning>,
        train: Option<Train>,
        seed: u64,
        both: bool,
    ) -> Result<Self> {
        let Some(tuning) = tuning else {
            return Ok(Self::frozen(backbone));
        };
        let Some(train) = train else {
            return Err(Error::setting(
                "train",
                "method.tuning trains and needs this table with epochs, batch, optimizer and lr",
            ));
        };
        train.check()?;
        let mut params = Params::seeded(seed, backbone.device());
        let module = tuning.module(backbone.as_ref(), seed, &mut params)?;
        Ok(Self {
            frozen: Frozen::new(backbone),
            tuned: Some(Tuned {
                module,
                params,
                train,
                head: 0,
                session: None,
            }),
            both,
        })
    }

    /// Values of a feature.
    pub fn dim(&self) -> usize {
        let dim = self.frozen.backbone().spec().dim;
        match self.both && self.tuned.is_some() {
            true => 2 * dim,
            false => dim,
        }
    }

    /// What is trained on the first task, with its head, by name.
    pub fn params(&self) -> Option<&Params> {
        self.tuned.as_ref().map(|tuned| &tuned.params)
    }

    /// Features `(B, dim)`.
    pub fn features(&self, batch: &Batch) -> Result<Tensor> {
        let Some(tuned) = &self.tuned else {
            return self.frozen.query(batch);
        };
        let own = tuned.look(self.frozen.backbone(), batch, false)?;
        match self.both {
            true => Ok(Tensor::cat(&[self.frozen.query(batch)?, own], 1)?),
            false => Ok(own),
        }
    }

    /// The training loss of a batch of the first task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let session = self
            .tuned
            .as_ref()
            .and_then(|t| Some((t, t.session.as_ref()?)));
        let Some((tuned, (task, _))) = session else {
            return Err(Error::State {
                problem: "this method trains on the first task alone, and with method.tuning only; now it asks for 0 epochs"
                    .into(),
            });
        };
        let weight = l2_normalize(&tuned.params.get(WEIGHT)?)?;
        let features = tuned.look(self.frozen.backbone(), batch, true)?;
        let cosine = l2_normalize(&features)?.matmul(&weight.t()?)?;
        let logits = cosine.broadcast_mul(&tuned.params.get(SIGMA)?)?;
        masked_cross_entropy(&logits, &batch.labels, &task.classes)
    }

    /// Whether the first task is trained on.
    pub(crate) fn trains(&self) -> bool {
        self.tuned.as_ref().is_some_and(|t| t.session.is_some())
    }

    pub(crate) fn epochs(&self) -> usize {
        let tuned = self.tuned.as_ref();
        tuned.map_or(0, |t| t.session.as_ref().map_or(0, |_| t.train.epochs))
    }

    pub(crate) fn batch_size(&self) -> usize {
        self.tuned.as_ref().map_or(1, |tuned| tuned.train.batch)
    }

    pub(crate) fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        let dim = self.frozen.backbone().spec().dim;
        let Some(tuned) = &mut self.tuned else {
            return Ok(());
        };
        tuned.session = None;
        if task.index == 0 {
            let high = 1.0 / (dim as f32).sqrt();
            let init = Init::Uniform { low: -high, high };
            let classes = task.classes.len();
            tuned.params.create(WEIGHT, &[classes, dim], init)?;
            tuned.params.create(SIGMA, &[1], Init::Ones)?;
            tuned.head = classes * dim + 1;
            let optimizer = Optimizer::new(tuned.params.named(), &tuned.train)?;
            tuned.session = Some((task.clone(), optimizer));
        }
        Ok(())
    }

    pub(crate) fn begin_epoch(&mut self, epoch: usize) {
        if let Some((_, optimizer)) = self.tuned.as_mut().and_then(|t| t.session.as_mut()) {
            optimizer.begin_epoch(epoch);
        }
    }

    pub(crate) fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = self.tuned.as_mut().and_then(|t| t.session.as_mut()) {
            optimizer.step(&loss)?;
        }
        Ok(loss.detach())
    }

    /// No training from here on.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if let Some(tuned) = &mut self.tuned
            && tuned.session.take().is_some()
        {
            tuned.freeze(self.frozen.backbone())?;
        }
        Ok(())
    }

    /// What the first task trains; later tasks train nothing.
    pub(crate) fn trainable(&self) -> usize {
        match &self.tuned {
            None => 0,
            Some(tuned) => match tuned.module {
                // Of a backbone without weights, too.
                Module::Whole(_) => self.frozen.backbone().spec().parameters + tuned.head,
                Module::Prompt(_) => tuned.params.count(),
            },
        }
    }

    pub(crate) fn state(&self) -> Result<State> {
        self.params().map_or(Ok(State::new()), Params::state)
    }

    /// Takes all of `state`; the first task has begun.
    pub(crate) fn restore(&mut self, state: &State) -> Result<()> {
        let Some(tuned) = &mut self.tuned else {
            return match state.keys().next() {
                None => Ok(()),
                Some(name) => Err(Error::State {
                    problem: format!("`{name}` is not a parameter of this method"),
                }),
            };
        };
        tuned.params.load_state(state)?;
        tuned.session = None;
        tuned.freeze(self.frozen.backbone())
    }

    /// Empty but while the first task is trained on.
    pub(crate) fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let Some(tuned) = &self.tuned
            && let Some((_, optimizer)) = &tuned.session
        {
            session.put_part("optimizer", optimizer.session()?);
            if let Module::Prompt(prompt) = &tuned.module {
                session.put_part("prompt", prompt.session()?);
            }
        }
        Ok(session)
    }

    /// Takes up inside the first task, which has begun.
    pub(crate) fn resume(&mut self, state: &State, mut session: Session) -> Result<()> {
        if let Some(tuned) = &mut self.tuned
            && let Some((_, optimizer)) = &mut tuned.session
        {
            tuned.params.load_state(state)?;
            optimizer.resume(session.take_part("optimizer"))?;
            if let Module::Prompt(prompt) = &mut tuned.module {
                prompt.resume(session.take_part("prompt"))?;
            }
        }
        session.end()
    }
}

impl Tuned {
    /// `g(x)`, `(B, D)`.
    fn look(&self, frozen: &dyn Backbone, batch: &Batch, train: bool) -> Result<Tensor> {
        let cue = Cue {
            train,
            outputs: Outputs::Head,
            ..Cue::default()
        };
        let features = match &self.module {
            Module::Prompt(prompt) => frozen.forward(&batch.images, prompt.as_ref(), &cue)?,
            Module::Whole(own) => own.forward(&batch.images, &NoPrompt, &cue)?,
        };
        let cls = features.cls()?;
        Ok(if train { cls } else { cls.detach() })
    }

    /// A whole backbone goes back to the fast path.
    fn freeze(&mut self, frozen: &dyn Backbone) -> Result<()> {
        if let Module::Whole(own) = &mut self.module {
            let state = self.params.state()?;
            let weights = state
                .into_iter()
                .filter_map(|(name, t)| Some((name.strip_prefix(BACKBONE)?.to_owned(), t)));
            *own = frozen.with_weights(&weights.collect())?;
        }
        Ok(())
    }
}

//! A whole backbone under training, with a linear head for each task: what fine-tuning, SLCA and CoFiMA begin with.
//!
//! ```text
//! z_t  = g(x) W_tᵀ + b_t                       g: every weight of the backbone trains
//! L    = CE(z_t, y)                            over the classes of the task, or z_0 … z_t over all seen
//! rate = lr · backbone_lr · layer_decay^(L+1−l)  of layer l: 0 what stands before the blocks, i + 1 block i of L, L + 1 the last norm
//! ```
//!
//! The head trains at `lr`. The backbone that was given stays as it is.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor, Var};
use candlewick_core::optim::Group;
use candlewick_core::train::{Head, masked_cross_entropy};
use candlewick_core::{
    Backbone, Batch, Cue, Error, NoPrompt, Optimizer, Outputs, Params, Result, Session, State,
    TaskInfo, Train,
};

/// Before the names of a backbone's weights.
pub(crate) const BACKBONE: &str = "backbone.";

/// How fast which weights of the backbone learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rates {
    /// Not at all: the head alone trains.
    Head,
    /// At a factor on `train.lr`.
    All {
        /// Of the last layer.
        backbone: f64,
        /// From each layer to the one before.
        layer_decay: f64,
    },
}

/// Which classes compete in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// Those of the task.
    Task,
    /// All seen.
    Seen,
}

/// The network under training.
pub struct Whole {
    given: Arc<dyn Backbone>,
    /// Over variables, or the one given where it does not train.
    own: Arc<dyn Backbone>,
    /// The same weights on the fast path, until they change.
    still: OnceLock<Arc<dyn Backbone>>,
    rates: Rates,
    among: Among,
    head: Head,
    params: Params,
    train: Train,
    current: Option<(TaskInfo, Optimizer)>,
}

impl Whole {
    /// `seed` draws the heads.
    pub fn new(
        given: Arc<dyn Backbone>,
        train: Train,
        rates: Rates,
        among: Among,
        seed: u64,
    ) -> Result<Self> {
        train.check()?;
        let mut params = Params::seeded(seed, given.device());
        let own = match rates {
            Rates::Head => given.clone(),
            Rates::All { .. } => {
                let thawed = given.thaw()?;
                for (name, var) in thawed.weights {
                    params.adopt(&format!("{BACKBONE}{name}"), var)?;
                }
                thawed.backbone
            }
        };
        Ok(Self {
            head: Head::new(given.spec().dim),
            given,
            own,
            still: OnceLock::new(),
            rates,
            among,
            params,
            train,
            current: None,
        })
    }

    /// The `[train]` table.
    pub fn train(&self) -> &Train {
        &self.train
    }

    /// Values of a feature.
    pub fn dim(&self) -> usize {
        self.given.spec().dim
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        self.given.device()
    }

    /// Backbone and heads by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The task under way.
    pub fn current(&self) -> Option<&TaskInfo> {
        self.current.as_ref().map(|(task, _)| task)
    }

    /// Trainable values. Of a backbone without weights, too.
    pub fn trainable(&self) -> usize {
        let backbone = match self.rates {
            Rates::Head => 0,
            Rates::All { .. } => self.given.spec().parameters,
        };
        let named = self.params.named().into_iter();
        let heads = named.filter(|(name, _)| !name.starts_with(BACKBONE));
        backbone + heads.map(|(_, var)| var.elem_count()).sum::<usize>()
    }

    /// A head for the classes of `task`, and a fresh optimiser.
    pub fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.head.grow(&task.classes, &mut self.params)?;
        let optimizer = Optimizer::grouped(self.groups(), &self.train)?;
        self.current = Some((task.clone(), optimizer));
        Ok(())
    }

    fn groups(&self) -> Vec<Group> {
        let depth = self.given.spec().depth;
        let mut groups: Vec<Group> = Vec::new();
        for (name, var) in self.params.named() {
            let lr = match (name.strip_prefix(BACKBONE), self.rates) {
                (
                    Some(name),
                    Rates::All {
                        backbone,
                        layer_decay,
                    },
                ) => backbone * layer_decay.powi((depth + 1 - layer(name, depth)) as i32),
                _ => 1.0,
            };
            match groups.iter_mut().find(|group| group.lr == lr) {
                Some(group) => group.vars.push((name, var)),
                None => groups.push(Group {
                    vars: vec![(name, var)],
                    lr,
                    weight_decay: None,
                }),
            }
        }
        groups
    }

    /// A pass over the task begins.
    pub fn begin_epoch(&mut self, epoch: usize) {
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.begin_epoch(epoch);
        }
    }

    /// The training loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let Some((task, _)) = &self.current else {
            return Err(Error::no_task());
        };
        match self.among {
            Among::Task => {
                let logits = self.head.task_logits(&self.look(batch)?, &task.classes)?;
                masked_cross_entropy(&logits, &batch.labels, &task.classes)
            }
            Among::Seen => self.loss_among_seen(batch, task.classes.end),
        }
    }

    /// Cross-entropy over the first `classes` classes.
    pub fn loss_among_seen(&self, batch: &Batch, classes: usize) -> Result<Tensor> {
        let logits = self.head.logits(&self.look(batch)?)?;
        masked_cross_entropy(&logits, &batch.labels, &(0..classes))
    }

    /// The feature through which training goes, `(B, D)`.
    fn look(&self, batch: &Batch) -> Result<Tensor> {
        let cue = Cue {
            train: true,
            outputs: Outputs::Head,
            ..Cue::default()
        };
        self.own.forward(&batch.images, &NoPrompt, &cue)?.cls()
    }

    /// One step.
    pub fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.step(&loss)?;
        }
        self.moved();
        Ok(loss.detach())
    }

    /// Weights were changed from outside.
    pub fn moved(&mut self) {
        self.still = OnceLock::new();
    }

    /// No training until the next task: moments are of no more use.
    pub fn settle(&mut self) {
        self.current = None;
    }

    /// Features `(B, D)` as they are now, detached.
    pub fn features(&self, batch: &Batch) -> Result<Tensor> {
        if self.rates == Rates::Head {
            return self.given.query_batch(batch);
        }
        let still = match self.still.get() {
            Some(still) => still,
            None => {
                // The variables' own storage, so nothing is copied.
                let named = self.params.named().into_iter().filter_map(|(name, var)| {
                    let name = name.strip_prefix(BACKBONE)?;
                    Some((name.to_owned(), var.as_detached_tensor()))
                });
                let still = self.given.with_weights(&named.collect())?;
                self.still.get_or_init(|| still)
            }
        };
        still.query(&batch.images)
    }

    /// Logits `(B, classes seen)` of features.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.head.logits(features)?.detach())
    }

    /// Weight and bias of each head, sharing their values with the variables.
    pub fn heads(&self) -> Vec<[Tensor; 2]> {
        let head = |t: usize| {
            let get = |part: &str| self.params.get(&format!("head.{t}.{part}")).ok();
            Some([get("weight")?.detach(), get("bias")?.detach()])
        };
        (0..).map_while(head).collect()
    }

    /// All variables by name.
    pub fn named(&self) -> Vec<(String, Var)> {
        self.params.named()
    }

    /// Gives a parameter another value.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<()> {
        self.moved();
        self.params.set(name, value)
    }

    /// Backbone and heads.
    pub fn state(&self) -> Result<State> {
        self.params.state()
    }

    /// Takes up behind `tasks`, of which the last is over.
    pub fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.settle();
        self.moved();
        self.params.load_state(state)
    }

    /// The optimiser while a task is under way, else empty.
    pub fn session(&self) -> Result<Session> {
        match &self.current {
            Some((_, optimizer)) => optimizer.session(),
            None => Ok(Session::new()),
        }
    }

    /// Takes up inside the last of `tasks`, or behind it where `session` is empty.
    pub fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.moved();
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

/// Layers are counted from the input.
fn layer(name: &str, depth: usize) -> usize {
    let block = name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split('.').next());
    match block.and_then(|number| number.parse::<usize>().ok()) {
        Some(block) => block + 1,
        None if name.starts_with("norm.") => depth + 1,
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_from_the_input() {
        for (name, want) in [
            ("cls_token", 0),
            ("pos_embed", 0),
            ("patch_embed.proj.weight", 0),
            ("blocks.0.attn.qkv.weight", 1),
            ("blocks.11.norm1.bias", 12),
            ("norm.weight", 13),
        ] {
            assert_eq!(layer(name, 12), want, "{name}");
        }
    }
}

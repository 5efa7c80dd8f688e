//! DualPrompt: prefixes that all tasks share in the first blocks, prefixes of each task in later ones (Wang et al.
//! 2022, "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning").
//!
//! ```text
//! q    = CLS of the plain backbone                              no gradient
//! j    = t in training of task t, argmax_m cos(q, key_m) at test, per image
//! P    = g_i in the blocks of g_blocks, e_j,i in those of e_blocks              i: block
//! head(h) = softmax(Q_h [P_k,h ; K_h]ᵀ / √d) [P_v,h ; V_h]       P: (2, L, H·d), keys then values
//! z    = CLS
//! L    = CE(head(z) over the task's classes) − pull · mean_B cos(q, key_t)
//! task t > 0 begins: e_t ← e_t−1, key_t is drawn
//! ```
//!
//! Sources: `google-research/l2p:models/prompt.py`, `models/prefix_attention.py` (dd8836e) and
//! `JH-LEE-KR/dualprompt-pytorch:prompt.py`, `attention.py` (7eb457d). Key prefixes and value prefixes bypass layer norm and
//! projections. One key of a task serves all its blocks.
//!
//! The pool grows with the tasks, so their number need not be known, and keys of tasks to come cannot be chosen (in the
//! published code they can, since the pool is drawn whole).

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::backbone::l2_normalize;
use candlewick_core::{
    Backbone, Choice, Cue, Error, Injection, Params, Pool, Prefix, Prompt, Prompted, Result, Site,
    Spec, TaskInfo, Train,
};
use serde::{Deserialize, Serialize};

use crate::choice::BatchVote;
use crate::draw::Draw;

/// `[method] name = "dualprompt"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DualPrompt {
    /// Blocks with a prefix that all tasks share, counted from 0.
    pub g_blocks: Vec<usize>,
    /// Its keys, and as many values.
    pub g_length: usize,
    /// Blocks with a prefix for each task, others than those of `g_blocks`.
    pub e_blocks: Vec<usize>,
    /// Its keys, and as many values.
    pub e_length: usize,
    /// Weight of the pull of a task's key towards the queries of its images, λ.
    pub pull: f64,
    /// How prefixes start.
    pub prompt_init: Draw,
    /// How keys start.
    pub key_init: Draw,
    /// Whether the images of a test batch choose as one, as published for CIFAR-100. In training there is no choice.
    #[serde(default)]
    pub batch_vote: BatchVote,
    /// A published departure to reproduce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
}

/// Departures of the PyTorch ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    /// `(2, B, L, D)` prefixes are read as `(B, 2, L, D)` without moving them, so that an image gets the two neighbours
    /// `2b` and `2b + 1` of the list [keys of all images, values of all images]: keys and values mix, and so do
    /// images. Predictions depend on the batch.
    ReshapeBug,
}

impl DualPrompt {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let wrong = |key: &str, problem: String| Error::setting(format!("method.{key}"), problem);
        for (key, value) in [("g_length", self.g_length), ("e_length", self.e_length)] {
            if value == 0 {
                return Err(wrong(key, "must be greater than 0, found 0".into()));
            }
        }
        if self.e_blocks.is_empty() {
            return Err(wrong("e_blocks", "must name at least one block".into()));
        }
        let blocks = [&self.g_blocks[..], &self.e_blocks[..]].concat();
        for (i, block) in blocks.iter().enumerate() {
            if blocks[..i].contains(block) {
                let problem = format!("block {block} stands twice in g_blocks and e_blocks");
                return Err(wrong(
                    "e_blocks",
                    format!("{problem}; a block has one prefix"),
                ));
            }
        }
        if !self.pull.is_finite() {
            let problem = format!("must be a number, found {}", self.pull);
            return Err(wrong("pull", problem));
        }
        self.prompt_init.check("method.prompt_init")?;
        self.key_init.check("method.key_init")?;
        if self.batch_vote == BatchVote::Train {
            let problem =
                "found \"train\", but training takes the prefix of its task without a choice";
            return Err(wrong(
                "batch_vote",
                format!("{problem}; use \"never\" or \"always\""),
            ));
        }
        Ok(())
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let bug = self
            .compat
            .map(|Compat::ReshapeBug| "dualprompt.compat=reshape-bug".into());
        self.batch_vote
            .compat("dualprompt")
            .into_iter()
            .chain(bug)
            .collect()
    }

    /// Draws prefixes and keys from `seed`.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        seed: u64,
    ) -> Result<Prompted<Prefixes>> {
        self.check()?;
        Prompted::new(backbone, Pool::Cls, train, seed, |backbone, params| {
            Prefixes::new(self.clone(), backbone.spec(), params)
        })
    }
}

/// General prefixes, and what each task added: its key and its expert prefixes.
pub struct Prefixes {
    config: DualPrompt,
    dim: usize,
    heads: usize,
    /// One `(2, L, D)` for each of `g_blocks`.
    general: Vec<Tensor>,
    /// One `(2, L, D)` for each of `e_blocks`, of every task.
    expert: Vec<Vec<Tensor>>,
    /// `(1, D)` of every task.
    keys: Vec<Tensor>,
}

impl Prefixes {
    pub(crate) fn new(config: DualPrompt, spec: &Spec, params: &mut Params) -> Result<Self> {
        spec.has_blocks("method.g_blocks", &config.g_blocks)?;
        spec.has_blocks("method.e_blocks", &config.e_blocks)?;
        let shape = [2, config.g_length, spec.dim];
        let init = config.prompt_init.init();
        let general = config.g_blocks.iter();
        let general = general.map(|block| params.create(&format!("g.{block}"), &shape, init));
        Ok(Self {
            general: general.collect::<Result<_>>()?,
            expert: Vec::new(),
            keys: Vec::new(),
            dim: spec.dim,
            heads: spec.heads,
            config,
        })
    }

    /// `cos(q_b, key_m)` with the keys of the tasks seen, `(B, M)`.
    pub fn similarity(&self, query: &Tensor) -> Result<Tensor> {
        let keys = l2_normalize(&Tensor::cat(&self.keys, 0)?)?;
        Ok(l2_normalize(query)?.matmul(&keys.t()?)?)
    }

    /// The task whose prefixes each image gets.
    pub fn choose(&self, similarity: &Tensor) -> Result<Vec<u32>> {
        let chosen = self.config.batch_vote.choose(similarity, 1, false)?;
        Ok(chosen.concat())
    }

    /// `−pull · mean_B cos(q_b, key_t)`.
    fn pull(&self, query: &Tensor, task: usize) -> Result<Tensor> {
        let key = l2_normalize(self.keys.get(task).ok_or_else(|| no_task(task))?)?;
        let matched = l2_normalize(query)?.matmul(&key.t()?)?.mean_all()?;
        Ok((matched * -self.config.pull)?)
    }

    /// The prefixes `(2, B, L, D)` of the tasks that the images belong to or choose.
    fn picked(&self, at: usize, query: &Tensor, task: Option<usize>) -> Result<Tensor> {
        let b = query.dim(0)?;
        match task {
            Some(task) => {
                let own = self.expert.get(task).ok_or_else(|| no_task(task))?;
                let (pair, l, d) = own[at].dims3()?;
                Ok(own[at].unsqueeze(1)?.expand((pair, b, l, d))?)
            }
            None => {
                let chosen = self.choose(&self.similarity(query)?)?;
                let chosen = Tensor::from_vec(chosen, b, query.device())?;
                let all: Vec<&Tensor> = self.expert.iter().map(|task| &task[at]).collect();
                Ok(Tensor::stack(&all, 1)?.index_select(&chosen, 1)?)
            }
        }
    }
}

impl Prompt for Prefixes {
    fn inject(&self, site: Site, _: &Tensor, cue: &Cue) -> Result<Injection> {
        let Some(query) = &cue.query else {
            return Ok(Injection::default());
        };
        let block = match (site, cue.task) {
            (Site::Block(block), _) => block,
            (Site::Embed, Some(task)) if cue.train => {
                return Ok(Injection {
                    aux_loss: Some(self.pull(query, task)?),
                    ..Injection::default()
                });
            }
            (Site::Embed, _) => return Ok(Injection::default()),
        };
        let place = |blocks: &[usize]| blocks.iter().position(|&b| b == block);
        let pairs = if let Some(at) = place(&self.config.g_blocks) {
            let (pair, l, d) = self.general[at].dims3()?;
            let shape = (query.dim(0)?, pair, l, d);
            self.general[at].unsqueeze(0)?.expand(shape)?
        } else if let Some(at) = place(&self.config.e_blocks) {
            let picked = self.picked(at, query, cue.task)?;
            let (pair, b, l, d) = picked.dims4()?;
            match self.config.compat {
                None => picked.transpose(0, 1)?,
                Some(Compat::ReshapeBug) => picked.contiguous()?.reshape((b, pair, l, d))?,
            }
        } else {
            return Ok(Injection::default());
        };
        // Nothing is differentiated at test, and a graph would keep every activation alive.
        let pairs = match cue.train {
            true => pairs,
            false => pairs.detach(),
        };
        Ok(Injection {
            prefix: Some(Prefix::of_heads(&pairs, self.heads)?),
            ..Injection::default()
        })
    }

    fn wants_query(&self) -> bool {
        true
    }

    fn choices(&self, cue: &Cue) -> Result<Vec<Choice>> {
        let Some(query) = &cue.query else {
            return Ok(Vec::new());
        };
        let similarity = self.similarity(query)?;
        let chosen = self.config.batch_vote.choose(&similarity, 1, false)?;
        Ok(vec![Choice::of("tasks", &chosen, similarity)?])
    }

    fn begin_task(&mut self, _: &TaskInfo, params: &mut Params) -> Result<()> {
        let task = self.keys.len();
        let init = self.config.key_init.init();
        self.keys
            .push(params.create(&format!("keys.{task}"), &[1, self.dim], init)?);
        let shape = [2, self.config.e_length, self.dim];
        let init = self.config.prompt_init.init();
        let mut own = Vec::new();
        for (at, block) in self.config.e_blocks.iter().enumerate() {
            let name = format!("e.{task}.{block}");
            own.push(params.create(&name, &shape, init)?);
            if let Some(previous) = self.expert.last() {
                params.set(&name, &previous[at])?;
            }
        }
        self.expert.push(own);
        Ok(())
    }
}

fn no_task(task: usize) -> Error {
    Error::State {
        problem: format!(
            "there are no prefixes of task {}; call begin_task",
            task + 1
        ),
    }
}

//! L2P: a pool of prompts, chosen per image by matching its query feature with learned keys (Wang et
//! al. 2022, "Learning to Prompt for Continual Learning").
//!
//! ```text
//! q   = CLS of the plain backbone                          no gradient
//! s_m = cos(q, key_m)                                      m = 1..M
//! j   = the k largest s                                    per image
//! x   = [CLS, prompt_j1 .. prompt_jk, patches]             prompts carry the CLS position (v1) or none (v2)
//! z   = mean of the outputs of the k·L prompt tokens
//! L   = CE(head(z) over the task's classes) − pull · mean_B Σ_j s_j
//! ```
//!
//! Sources: `google-research/l2p:models/prompt.py` (v1 98b10ea, v2 3e102b0), `JH-LEE-KR/l2p-pytorch:prompt.py`
//! (f7bc994). Prompts and head learn from the cross-entropy alone, keys from the pull alone. The two layouts differ
//! in the position of prompts only: v2 puts them before CLS, but attention does not depend on the order of tokens.
//!
//! The penalty on prompts that were chosen often, of the paper, is in no published code; its authors name the mask
//! (`prompt_mask`) in its place.

use std::sync::Arc;

use candle_core::{D, Device, Tensor};
use candlewick_core::backbone::l2_normalize;
use candlewick_core::{
    Backbone, Choice, Cue, Error, Injection, Params, Pool, Position, Prompt, Prompted, Result,
    Site, Span, TaskInfo, Tokens, Train,
};
use serde::{Deserialize, Serialize};

use crate::choice::BatchVote;
use crate::draw::Draw;

/// `[method] name = "l2p"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct L2p {
    /// Prompts in the pool, `M`.
    pub prompts: usize,
    /// Tokens of a prompt, `L`.
    pub length: usize,
    /// Prompts chosen per image, `k`.
    pub top_k: usize,
    /// Weight of the pull of chosen keys towards the query, λ.
    pub pull: f64,
    /// How prompts start.
    pub prompt_init: Draw,
    /// How keys start.
    pub key_init: Draw,
    /// The position that prompts carry.
    #[serde(default)]
    pub layout: Layout,
    /// Task `t` trains prompts `t·k .. (t + 1)·k` without matching; at test images choose by their keys. Published for
    /// 5-datasets. A task for which none are left is refused (the published code falls back to matching unsaid).
    #[serde(default)]
    pub prompt_mask: bool,
    /// Whether a batch chooses as one.
    #[serde(default)]
    pub batch_vote: BatchVote,
}

/// The generations of the published code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Each prompt token carries the frozen position of CLS; so do the PyTorch ports.
    #[default]
    V1,
    /// Prompts carry no position.
    V2,
}

impl L2p {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        for (key, value) in [("prompts", self.prompts), ("length", self.length)] {
            if value == 0 {
                let problem = "must be greater than 0, found 0";
                return Err(Error::setting(format!("method.{key}"), problem));
            }
        }
        if self.top_k == 0 || self.top_k > self.prompts {
            let problem = format!(
                "must be between 1 and method.prompts = {}, found {}",
                self.prompts, self.top_k
            );
            return Err(Error::setting("method.top_k", problem));
        }
        if !self.pull.is_finite() {
            let problem = format!("must be a number, found {}", self.pull);
            return Err(Error::setting("method.pull", problem));
        }
        self.prompt_init.check("method.prompt_init")?;
        self.key_init.check("method.key_init")
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        self.batch_vote.compat("l2p").into_iter().collect()
    }

    /// Draws prompts and keys from `seed`.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        seed: u64,
    ) -> Result<Prompted<Pooled>> {
        self.check()?;
        Prompted::new(
            backbone,
            Pool::PromptMean,
            train,
            seed,
            |backbone, params| Pooled::new(self.clone(), backbone.spec().dim, params),
        )
    }
}

/// The prompt pool.
pub struct Pooled {
    config: L2p,
    prompts: Tensor,
    keys: Tensor,
}

impl Pooled {
    pub(crate) fn new(config: L2p, dim: usize, params: &mut Params) -> Result<Self> {
        let (m, l) = (config.prompts, config.length);
        Ok(Self {
            prompts: params.create("prompts", &[m, l, dim], config.prompt_init.init())?,
            keys: params.create("keys", &[m, dim], config.key_init.init())?,
            config,
        })
    }

    /// `cos(q_b, key_m)`, `(B, M)`.
    pub fn similarity(&self, query: &Tensor) -> Result<Tensor> {
        let keys = l2_normalize(&self.keys)?;
        Ok(l2_normalize(query)?.matmul(&keys.t()?)?)
    }

    /// The prompts each image gets, `k` numbers an image.
    pub fn choose(&self, similarity: &Tensor, cue: &Cue) -> Result<Vec<Vec<u32>>> {
        let (config, k) = (&self.config, self.config.top_k);
        if let (true, true, Some(t)) = (config.prompt_mask, cue.train, cue.task) {
            let own = (t * k..(t + 1) * k).map(|prompt| prompt as u32);
            return Ok(vec![own.collect(); similarity.dim(0)?]);
        }
        config.batch_vote.choose(similarity, k, cue.train)
    }
}

impl Prompt for Pooled {
    fn inject(&self, site: Site, _: &Tensor, cue: &Cue) -> Result<Injection> {
        let (Site::Embed, Some(query)) = (site, &cue.query) else {
            return Ok(Injection::default());
        };
        let similarity = self.similarity(query)?;
        let chosen = self.choose(&similarity, cue)?;
        let (b, k) = (chosen.len(), self.config.top_k);
        let ids = indices(chosen, (b, k), query.device())?;

        let (_, length, dim) = self.prompts.dims3()?;
        let picked = self.prompts.index_select(&ids.flatten_all()?, 0)?;
        // Nothing is differentiated at test, and a graph would keep every activation alive.
        let picked = match cue.train {
            true => picked,
            false => picked.detach(),
        };
        let tokens = Tokens {
            values: picked.reshape((b, k * length, dim))?,
            span: Span::ToTheEnd,
            position: match self.config.layout {
                Layout::V1 => Position::Cls,
                Layout::V2 => Position::None,
            },
        };
        let aux_loss = match cue.train {
            true => {
                let matched = similarity.gather(&ids, D::Minus1)?.sum_all()?;
                Some((matched * (-self.config.pull / b as f64))?)
            }
            false => None,
        };
        Ok(Injection {
            tokens: Some(tokens),
            aux_loss,
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
        let chosen = self.choose(&similarity, cue)?;
        Ok(vec![Choice::of("prompts", &chosen, similarity)?])
    }

    fn begin_task(&mut self, task: &TaskInfo, _: &mut Params) -> Result<()> {
        let (have, needed) = (self.config.prompts, (task.index + 1) * self.config.top_k);
        if self.config.prompt_mask && needed > have {
            let problem = format!(
                "found {have}, but with prompt_mask {} tasks need {needed}, top_k = {} each; set it to that for as many \
                 tasks, or prompt_mask to false",
                task.index + 1,
                self.config.top_k
            );
            return Err(Error::setting("method.prompts", problem));
        }
        Ok(())
    }
}

fn indices(rows: Vec<Vec<u32>>, shape: (usize, usize), device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_vec(rows.concat(), shape, device)?)
}

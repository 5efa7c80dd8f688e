//! DAP: prompts made for each image by a small network from the tokens that enter a block, steered by an embedding of
//! the image's task (Jung et al. 2023, "Generating Instance-level Prompts for Rehearsal-free Continual Learning").
//!
//! ```text
//! q    = CLS of the plain backbone                        no gradient
//! t    = the task trained on; at test argmax_t cos(q, key_t), per image
//! γ, β = the halves of film_i(embedding_t), each / its norm    (D), (D); norms without gradient
//! Z    = down_i · norm_i(x)                               x (N, D): CLS and patches at block i; down_i (n, N)
//! P_i  = γ ⊙ Z + β                                        (n, D)
//! x    = block_i([CLS, P_i, patches])                     outputs of P_i dropped behind block i
//! L    = CE(head(CLS) over the task's classes) − pull · mean_B cos(q, key_t)
//! ```
//!
//! `down` learns in the first task alone; `film` and `norm` are shared by all tasks and go on learning. A task brings
//! its own key and embedding, so an image can only be taken for a task that was seen (the published code has keys for
//! all tasks from the start).
//!
//! Source: `naver-ai/dap-cl:src/models/vit_dap/vit.py`, `src/models/vit_models.py`, `src/engine/trainer.py`
//! (12c012b). There one optimiser lives through all tasks, so that stale moments move what is frozen; here, as
//! everywhere in candlewick, each task has its own, and the head starts as candlewick's heads do.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Tensor};
use candlewick_core::backbone::l2_normalize;
use candlewick_core::{
    Backbone, Choice, Cue, Error, Init, Injection, Params, Pool, Position, Prompt, Prompted,
    Result, Site, Span, Spec, TaskInfo, Tokens, Train,
};
use serde::{Deserialize, Serialize};

use crate::choice::BatchVote;
use crate::vpt::Start;

/// `[method] name = "dap"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dap {
    /// Tokens made for each block, `n`.
    pub length: usize,
    /// Width of the embedding of a task.
    pub embedding: usize,
    /// Weight of the pull of a task's key towards the query, μ. The published code, by the shape of an index, adds up
    /// over the batch where the paper averages: `μ · B` here does what `μ` does there.
    pub pull: f64,
    /// Blocks with prompts, counted from the input; all where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// How `down` starts. With zeros, as published, its `n` rows stay alike for ever, so that the `n` tokens of a
    /// block act as one.
    #[serde(default)]
    pub init: Start,
    /// Whether the images of a test batch choose one task together.
    #[serde(default)]
    pub batch_vote: BatchVote,
    /// Whether classes of other tasks than the chosen one are ruled out at test.
    #[serde(default)]
    pub mask_logits: bool,
}

impl Dap {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("length", Some(self.length)),
            ("embedding", Some(self.embedding)),
            ("blocks", self.blocks),
        ];
        for (key, value) in sizes {
            if value == Some(0) {
                let problem = "must be greater than 0, found 0";
                return Err(Error::setting(format!("method.{key}"), problem));
            }
        }
        if !self.pull.is_finite() {
            let problem = format!("must be a number, found {}", self.pull);
            return Err(Error::setting("method.pull", problem));
        }
        if self.batch_vote == BatchVote::Train {
            let problem = "must be \"never\" or \"always\": in training the task is known";
            return Err(Error::setting("method.batch_vote", problem));
        }
        Ok(())
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let mut compat = self.init.compat("dap");
        compat.extend(self.batch_vote.compat("dap"));
        if self.mask_logits {
            compat.push("dap.mask_logits=true".into());
        }
        compat
    }

    /// Draws all parameters from `seed`.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        seed: u64,
    ) -> Result<Prompted<HyperPrompts>> {
        self.check()?;
        Prompted::new(backbone, Pool::Cls, train, seed, |backbone, params| {
            HyperPrompts::new(self.clone(), backbone.spec(), params)
        })
    }
}

/// The networks that make prompts, and the tasks they know.
pub struct HyperPrompts {
    config: Dap,
    blocks: Vec<Maker>,
    tasks: Vec<Known>,
    /// `sqrt(6 / (3p² + D))`, the bound of the keys.
    bound: f32,
    dim: usize,
}

/// What makes the prompts of one block.
struct Maker {
    /// `(n, N)` and `(n, 1)`.
    down: (Tensor, Tensor),
    /// `(2D, E)` and `(2D)`.
    film: (Tensor, Tensor),
    /// `(D)` twice.
    norm: (Tensor, Tensor),
}

/// A task that was seen.
struct Known {
    /// `(1, D)`.
    key: Tensor,
    /// `(1, E)`.
    embedding: Tensor,
    classes: Range<usize>,
}

impl HyperPrompts {
    pub(crate) fn new(config: Dap, spec: &Spec, params: &mut Params) -> Result<Self> {
        let (n, e, dim) = (config.length, config.embedding, spec.dim);
        let blocks = config.blocks.unwrap_or(spec.depth);
        if blocks > spec.depth {
            let problem = format!(
                "must be at most the {} blocks of the backbone, found {blocks}",
                spec.depth
            );
            return Err(Error::setting("method.blocks", problem));
        }
        let tokens = spec.tokens();
        // How `torch.nn.Linear` starts, weight and bias.
        let high = 1.0 / (e as f32).sqrt();
        let linear = Init::Uniform { low: -high, high };
        let make = |i: usize| {
            let mut create = |part: &str, shape: &[usize], init| {
                params.create(&format!("blocks.{i}.{part}"), shape, init)
            };
            Ok(Maker {
                down: (
                    create("down.weight", &[n, tokens], config.init.init(tokens, n))?,
                    create("down.bias", &[n, 1], Init::Zeros)?,
                ),
                film: (
                    create("film.weight", &[2 * dim, e], linear)?,
                    create("film.bias", &[2 * dim], linear)?,
                ),
                norm: (
                    create("norm.weight", &[dim], Init::Ones)?,
                    create("norm.bias", &[dim], Init::Zeros)?,
                ),
            })
        };
        Ok(Self {
            blocks: (0..blocks).map(make).collect::<Result<_>>()?,
            tasks: Vec::new(),
            bound: (6.0 / (3 * spec.patch_size.pow(2) + dim) as f32).sqrt(),
            config,
            dim,
        })
    }

    /// `cos(q_b, key_t)` over the tasks seen, `(B, tasks)`.
    pub fn similarity(&self, query: &Tensor) -> Result<Tensor> {
        let keys: Vec<&Tensor> = self.tasks.iter().map(|task| &task.key).collect();
        let keys = l2_normalize(&Tensor::cat(&keys, 0)?)?;
        Ok(l2_normalize(query)?.matmul(&keys.t()?)?)
    }

    /// The task each image is taken for.
    pub fn choose(&self, query: &Tensor, cue: &Cue) -> Result<Vec<u32>> {
        if let Some(task) = cue.task {
            return Ok(vec![task as u32; query.dim(0)?]);
        }
        let similarity = self.similarity(query)?;
        let chosen = self.config.batch_vote.choose(&similarity, 1, cue.train)?;
        Ok(chosen.concat())
    }

    /// `−pull · mean_B cos(q_b, key_t)`.
    fn pull(&self, query: &Tensor, task: usize) -> Result<Tensor> {
        let matched = self.similarity(query)?.narrow(1, task, 1)?;
        Ok((matched.mean_all()? * -self.config.pull)?)
    }

    /// The embeddings of the images' tasks, `(B, E)`.
    fn embeddings(&self, query: &Tensor, cue: &Cue) -> Result<Tensor> {
        let rows: Vec<&Tensor> = self.tasks.iter().map(|task| &task.embedding).collect();
        let chosen = self.choose(query, cue)?;
        let chosen = Tensor::from_vec(chosen, query.dim(0)?, query.device())?;
        Ok(Tensor::cat(&rows, 0)?.index_select(&chosen, 0)?)
    }
}

impl Maker {
    /// Prompts `(B, n, D)` from a block's input `(B, N, D)` and task embeddings `(B, E)`.
    fn prompts(&self, x: &Tensor, embeddings: &Tensor, learn_down: bool) -> Result<Tensor> {
        let (b, n_tokens, dim) = x.dims3()?;
        let (weight, bias) = match learn_down {
            true => self.down.clone(),
            false => (self.down.0.detach(), self.down.1.detach()),
        };
        let n = weight.dim(0)?;
        if weight.dim(1)? != n_tokens {
            return Err(Error::State {
                problem: format!(
                    "dap makes prompts from {} tokens, but a block received {n_tokens}",
                    weight.dim(1)?
                ),
            });
        }
        let weight = weight.expand((b, n, n_tokens))?.contiguous()?;
        let z = weight
            .matmul(&affine_norm(x, &self.norm)?.contiguous()?)?
            .broadcast_add(&bias)?;

        let film = embeddings
            .matmul(&self.film.0.t()?)?
            .broadcast_add(&self.film.1)?;
        let half = |start| -> Result<Tensor> {
            let half = film.narrow(1, start, dim)?;
            let norm = half.sqr()?.sum_keepdim(1)?.sqrt()?.detach();
            Ok(half.broadcast_div(&norm)?.unsqueeze(1)?)
        };
        let (gamma, beta) = (half(0)?, half(dim)?);
        Ok(z.broadcast_mul(&gamma)?.broadcast_add(&beta)?)
    }
}

/// Layer norm over the last dimension, step by step: candle's fused one has no backward pass.
fn affine_norm(x: &Tensor, (weight, bias): &(Tensor, Tensor)) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
    let x = x.broadcast_div(&deviation)?.broadcast_mul(weight)?;
    Ok(x.broadcast_add(bias)?)
}

impl Prompt for HyperPrompts {
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        let Some(query) = &cue.query else {
            return Ok(Injection::default());
        };
        let mut injection = Injection::default();
        match (site, cue.task) {
            (Site::Embed, Some(task)) if cue.train => {
                injection.aux_loss = Some(self.pull(query, task)?);
            }
            (Site::Block(i), task) if i < self.blocks.len() => {
                let embeddings = self.embeddings(query, cue)?;
                let learn_down = task == Some(0);
                let values = self.blocks[i].prompts(tokens, &embeddings, learn_down)?;
                // Nothing is differentiated at test, and a graph would keep every activation alive.
                let values = match cue.train {
                    true => values,
                    false => values.detach(),
                };
                injection.tokens = Some(Tokens {
                    values,
                    span: Span::ThisBlock,
                    position: Position::None,
                });
            }
            _ => {}
        }
        Ok(injection)
    }

    fn wants_query(&self) -> bool {
        true
    }

    fn choices(&self, cue: &Cue) -> Result<Vec<Choice>> {
        let Some(query) = &cue.query else {
            return Ok(Vec::new());
        };
        let similarity = self.similarity(query)?;
        let chosen = self.config.batch_vote.choose(&similarity, 1, cue.train)?;
        Ok(vec![Choice::of("tasks", &chosen, similarity)?])
    }

    fn begin_task(&mut self, task: &TaskInfo, params: &mut Params) -> Result<()> {
        let (t, high) = (task.index, self.bound);
        let (key, embedding) = (format!("keys.{t}"), format!("embeddings.{t}"));
        let uniform = Init::Uniform { low: -high, high };
        let normal = Init::Normal { std: 1.0 };
        self.tasks.push(Known {
            key: params.create(&key, &[1, self.dim], uniform)?,
            embedding: params.create(&embedding, &[1, self.config.embedding], normal)?,
            classes: task.classes.clone(),
        });
        Ok(())
    }

    /// Published for ImageNet-R: all classes outside the chosen task count as −10¹¹.
    fn rescore(&self, scores: Tensor, cue: &Cue) -> Result<Tensor> {
        let Some(query) = cue.query.as_ref().filter(|_| self.config.mask_logits) else {
            return Ok(scores);
        };
        let (b, classes) = scores.dims2()?;
        let mut mask = Vec::with_capacity(b * classes);
        for task in self.choose(query, cue)? {
            let task = self.tasks.get(task as usize);
            let inside = |class| task.is_some_and(|task| task.classes.contains(&class));
            mask.extend((0..classes).map(|class| if inside(class) { 0.0 } else { -1e11f32 }));
        }
        let mask = Tensor::from_vec(mask, (b, classes), scores.device())?;
        Ok((scores + mask)?)
    }
}

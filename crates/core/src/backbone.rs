//! What the rest of candlewick needs from a backbone.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{D, Device, Tensor, Var};

use crate::error::{Error, Result};
use crate::language::Language;
use crate::method::State;
use crate::prompt::{Cue, NoPrompt, Outputs, Prompt};
use crate::task::Batch;

/// The sizes of a vision transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Height and width of the input in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// Width `D` of a token.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads `H`; a head has `D / H` dimensions.
    pub heads: usize,
    /// Hidden width of the MLP.
    pub mlp_dim: usize,
    /// Register tokens behind CLS (DINOv2 with registers).
    pub registers: usize,
    /// Number of frozen weights.
    pub parameters: usize,
}

impl Spec {
    /// Patches of one image.
    pub fn patches(&self) -> usize {
        let side = self.image_size / self.patch_size;
        side * side
    }

    /// Tokens of one image without prompts: CLS, registers and patches.
    pub fn tokens(&self) -> usize {
        1 + self.registers + self.patches()
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.heads
    }

    /// That all of `blocks`, counted from 0, exist; the error names the `key` they come from.
    pub fn has_blocks(&self, key: &str, blocks: &[usize]) -> Result<()> {
        match blocks.iter().find(|&&block| block >= self.depth) {
            None => Ok(()),
            Some(block) => Err(Error::setting(
                key,
                format!(
                    "there is no block {block}; the backbone has {}, 0 to {}",
                    self.depth,
                    self.depth.saturating_sub(1)
                ),
            )),
        }
    }
}

/// What comes out of a backbone.
#[derive(Debug, Clone)]
pub struct Features {
    /// `(B, N, D)` after the final layer norm; with [`Outputs::Head`], as many of the first as are read.
    pub tokens: Tensor,
    /// Where the prompt tokens that stayed to the end are; empty without such prompts.
    pub prompts: Range<usize>,
    /// Sum of the auxiliary losses of all sites.
    pub aux_loss: Option<Tensor>,
}

impl Features {
    /// The CLS token, `(B, D)`.
    pub fn cls(&self) -> Result<Tensor> {
        Ok(self.tokens.narrow(1, 0, 1)?.squeeze(1)?)
    }

    /// The mean over the prompt tokens, `(B, D)`: what L2P classifies.
    pub fn prompt_mean(&self) -> Result<Tensor> {
        let prompts = self
            .tokens
            .narrow(1, self.prompts.start, self.prompts.len())?;
        Ok(prompts.mean(1)?)
    }
}

/// A pretrained network with the seams of [`Prompt`].
pub trait Backbone: Send + Sync {
    /// Its sizes.
    fn spec(&self) -> &Spec;

    /// Where its weights are.
    fn device(&self) -> &Device;

    /// Images `(B, 3, H, W)` to features, with `prompt` asked at every site.
    fn forward(&self, images: &Tensor, prompt: &dyn Prompt, cue: &Cue) -> Result<Features>;

    /// The query feature `(B, D)`: CLS of the plain network after the final layer norm, detached.
    fn query(&self, images: &Tensor) -> Result<Tensor> {
        let cue = Cue {
            outputs: Outputs::Head,
            ..Cue::default()
        };
        let features = self.forward(images, &NoPrompt, &cue)?;
        Ok(features.cls()?.detach())
    }

    /// The query features of a batch. A backbone with a store of features answers from it where the ids determine the
    /// pixels ([`Batch::plain`]), and then needs none.
    fn query_batch(&self, batch: &Batch) -> Result<Tensor> {
        self.query(&batch.images)
    }

    /// The token `(1, 1, D)` that becomes CLS, without its position: where tokens of the same kind start.
    fn cls_token(&self) -> Result<Tensor> {
        Err(Error::State {
            problem:
                "this backbone does not show its CLS token; use a method that needs none of its own"
                    .into(),
        })
    }

    /// The layer norm behind the last block, of width `D`, for whoever pools tokens before it. Tokens as they were come from a
    /// [`Prompt`] that tunes [`Op::Norm`](crate::Op::Norm).
    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        let _ = x;
        Err(Error::State {
            problem:
                "this backbone does not show its last norm; use a method that pools tokens behind it"
                    .into(),
        })
    }

    /// The text tower that it was trained with, where there is one.
    fn language(&self) -> Option<Arc<dyn Language>> {
        None
    }

    /// A copy in which every weight is a variable, for methods that train the whole network.
    fn thaw(&self) -> Result<Thawed> {
        Err(Error::State {
            problem: "this backbone cannot be trained itself; use a method that leaves it frozen"
                .into(),
        })
    }

    /// A frozen copy with `weights` in place of its own, under the names that [`thaw`](Self::thaw) gives them.
    fn with_weights(&self, weights: &State) -> Result<Arc<dyn Backbone>> {
        let _ = weights;
        Err(Error::State {
            problem: "this backbone cannot take other weights; use a method that leaves it frozen"
                .into(),
        })
    }
}

/// A backbone that trains.
pub struct Thawed {
    /// The network over the variables.
    pub backbone: Arc<dyn Backbone>,
    /// Every weight by its canonical name.
    pub weights: BTreeMap<String, Var>,
}

/// A frozen backbone that remembers the query feature of every image it saw un-augmented, so that
/// a method which looks at an image many times pays for it once. 4·D bytes an image.
pub struct Frozen {
    backbone: Arc<dyn Backbone>,
    seen: Mutex<HashMap<u64, Box<[f32]>>>,
}

impl Frozen {
    /// Starts with an empty memory.
    pub fn new(backbone: Arc<dyn Backbone>) -> Self {
        Self {
            backbone,
            seen: Mutex::new(HashMap::new()),
        }
    }

    /// The backbone itself.
    pub fn backbone(&self) -> &dyn Backbone {
        self.backbone.as_ref()
    }

    /// Query features `(B, D)` of a batch, from memory where its pixels are determined by its ids.
    pub fn query(&self, batch: &Batch) -> Result<Tensor> {
        if !batch.plain {
            return self.backbone.query_batch(batch);
        }
        let dim = self.backbone.spec().dim;
        {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let rows: Option<Vec<&[f32]>> = batch
                .ids
                .iter()
                .map(|id| seen.get(id).map(AsRef::as_ref))
                .collect();
            if let Some(rows) = rows {
                let shape = (batch.len(), dim);
                return Ok(Tensor::from_vec(
                    rows.concat(),
                    shape,
                    self.backbone.device(),
                )?);
            }
        }
        let query = self.backbone.query_batch(batch)?;
        let rows: Vec<Vec<f32>> = query.to_vec2()?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, row) in batch.ids.iter().zip(rows) {
            seen.insert(*id, row.into_boxed_slice());
        }
        Ok(query)
    }
}

/// `x / sqrt(max(sum x², 1e-12))` over the last dimension, the normalisation of L2P's and
/// DualPrompt's reference code (`google-research/l2p:models/prompt.py`).
pub fn l2_normalize(x: &Tensor) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.maximum(1e-12)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}

//! The seam through which anything enters a frozen backbone: prompts as tokens, prompts as
//! key/value prefixes, and modules (adapters, LoRA, scale-and-shift) at any operation.
//!
//! A [`Prompt`] is asked and answers with data; it never sees the backbone, so each side is
//! tested alone and a new method is written without touching either.

use candle_core::Tensor;

use crate::error::Result;
use crate::params::Params;
use crate::session::Session;
use crate::task::TaskInfo;
use crate::usage::Choice;

/// Where prompt tokens and prefixes may enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// After the patch embedding, before CLS token and position embedding.
    Embed,
    /// The input of block `i`, counted from 0.
    Block(usize),
}

/// How long prompt tokens stay in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Their outputs are dropped behind the block they entered (VPT-deep, DAP).
    ThisBlock,
    /// They go through every later block (L2P, VPT-shallow); see [`Features::prompts`].
    ///
    /// [`Features::prompts`]: crate::backbone::Features::prompts
    ToTheEnd,
}

/// Whether prompt tokens that enter at [`Site::Embed`] receive a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// None (VPT, L2P v2).
    None,
    /// The frozen position embedding of the CLS token (L2P v1).
    Cls,
}

/// Prompts as extra tokens; they are placed behind CLS. Attention does not depend on the order
/// of tokens, so the several orders found in papers are one and the same network.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `(B, P, D)`.
    pub values: Tensor,
    /// How long they stay.
    pub span: Span,
    /// Their position; read at [`Site::Embed`] only.
    pub position: Position,
}

/// Prompts as extra keys and values of one block's attention (prefix tuning). They bypass
/// layer norm and the key and value projections; queries and output length are unchanged.
#[derive(Debug, Clone)]
pub struct Prefix {
    /// `(B, H, P, D/H)`.
    pub keys: Tensor,
    /// `(B, H, P, D/H)`.
    pub values: Tensor,
    /// How much attention its values receive.
    pub share: Share,
}

/// How much of a query's attention goes to a prefix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Share {
    /// What the softmax over prefix and tokens leaves it.
    #[default]
    Softmax,
    /// LAE's compensation: behind the softmax over prefix and tokens the weights of the prefix are divided by
    /// `max(ρ, 1e-12)`, where `ρ` is their sum; those of the tokens stay, so that a row sums to `2 − ρ`
    /// (`gqk/LAE:libml/model/pet/prefix.py`).
    Whole,
}

impl Prefix {
    /// Splits `(B, 2, P, D)`, keys then values, into heads, which own contiguous slices of `D`.
    pub fn of_heads(pairs: &Tensor, heads: usize) -> Result<Self> {
        let (b, _, p, d) = pairs.dims4()?;
        let split = pairs
            .reshape((b, 2, p, heads, d / heads.max(1)))?
            .permute((1, 0, 3, 2, 4))?;
        Ok(Self {
            keys: split.get(0)?.contiguous()?,
            values: split.get(1)?.contiguous()?,
            share: Share::Softmax,
        })
    }
}

/// What a prompt puts in at one site.
#[derive(Debug, Clone, Default)]
pub struct Injection {
    /// Extra tokens.
    pub tokens: Option<Tokens>,
    /// Extra keys and values; only at [`Site::Block`].
    pub prefix: Option<Prefix>,
    /// A scalar added to the loss; the backbone adds up those of all sites.
    pub aux_loss: Option<Tensor>,
}

/// What a prompt may know about the images in front of it.
#[derive(Debug, Clone, Default)]
pub struct Cue {
    /// `(B, D)`: CLS of the un-prompted frozen backbone after the final layer norm, no gradient.
    /// Present when [`Prompt::wants_query`].
    pub query: Option<Tensor>,
    /// The task trained on; `None` at test, where the task is not known.
    pub task: Option<usize>,
    /// True while training.
    pub train: bool,
    /// Which tokens will be read of what comes out.
    pub outputs: Outputs,
}

/// Tokens that are read of a backbone's result; the others need not be computed in its last block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outputs {
    /// All of them.
    #[default]
    All,
    /// CLS and the prompts that stayed to the end: what heads classify. Others may be missing from [`Features::tokens`].
    ///
    /// [`Features::tokens`]: crate::backbone::Features::tokens
    Head,
}

/// An operation of the backbone whose output a module may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// Images to patch tokens.
    PatchEmbed,
    /// First layer norm of block `i`.
    Norm1(usize),
    /// The fused query, key, value projection; output `(B, N, 3D)` as `[Q; K; V]`.
    Qkv(usize),
    /// The output projection of attention.
    Proj(usize),
    /// All of attention: from the normed input to the projected output.
    Attention(usize),
    /// The attention branch: from the residual stream to what is added back to it.
    AttentionBranch(usize),
    /// Second layer norm.
    Norm2(usize),
    /// First layer of the MLP, before its activation.
    Fc1(usize),
    /// Second layer of the MLP.
    Fc2(usize),
    /// The MLP branch: from the residual stream to what is added back to it.
    MlpBranch(usize),
    /// The layer norm behind the last block.
    Norm,
}

impl Op {
    /// Every operation inside block `i`, so that a backbone can tell whether it may fuse the block.
    pub fn in_block(i: usize) -> [Self; 9] {
        [
            Self::Norm1(i),
            Self::Qkv(i),
            Self::Proj(i),
            Self::Attention(i),
            Self::AttentionBranch(i),
            Self::Norm2(i),
            Self::Fc1(i),
            Self::Fc2(i),
            Self::MlpBranch(i),
        ]
    }
}

/// A trained module inside a frozen backbone. Every method has a default that does nothing.
pub trait Prompt: Send + Sync {
    /// What enters at `site`, given the tokens there: patches `(B, N, D)` at [`Site::Embed`],
    /// the block's input (without prompts that left the sequence) at [`Site::Block`].
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        let _ = (site, tokens, cue);
        Ok(Injection::default())
    }

    /// Whether [`tune`](Self::tune) wants to see this operation. Blocks in which nothing is tuned
    /// run on the fast path.
    fn tunes(&self, op: Op) -> bool {
        let _ = op;
        false
    }

    /// The output that replaces `output = op(input)`: `output + adapter(input)` for a parallel
    /// adapter, `output + B A input` for LoRA, `output * scale + shift` for SSF.
    fn tune(&self, op: Op, input: &Tensor, output: Tensor, cue: &Cue) -> Result<Tensor> {
        let _ = (op, input, cue);
        Ok(output)
    }

    /// Whether [`Cue::query`] is read. `false` saves a frozen pass per image.
    fn wants_query(&self) -> bool {
        false
    }

    /// False when nothing is ever injected or tuned; features then come from the cache of plain
    /// ones.
    fn active(&self) -> bool {
        true
    }

    /// The scores `(B, classes seen)` that replace the head's at test; never asked in training.
    fn rescore(&self, scores: Tensor, cue: &Cue) -> Result<Tensor> {
        let _ = cue;
        Ok(scores)
    }

    /// What the images of `cue` take from each pool that they choose from, at test, for the report.
    fn choices(&self, cue: &Cue) -> Result<Vec<Choice>> {
        let _ = cue;
        Ok(Vec::new())
    }

    /// Called once per task before its first batch: grow, copy or re-draw parameters here. It must
    /// depend on `task` and `params` alone, since loading a saved run replays it.
    fn begin_task(&mut self, task: &TaskInfo, params: &mut Params) -> Result<()> {
        let _ = (task, params);
        Ok(())
    }

    /// What besides its parameters decides about the steps to come, such as the count of random draws; see
    /// [`Method::session`](crate::Method::session).
    fn session(&self) -> Result<Session> {
        Ok(Session::new())
    }

    /// Takes up where [`session`](Self::session) was taken; the task has begun.
    fn resume(&mut self, session: Session) -> Result<()> {
        session.end()
    }
}

/// No prompt at all: the plain frozen backbone.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPrompt;

impl Prompt for NoPrompt {
    fn active(&self) -> bool {
        false
    }
}

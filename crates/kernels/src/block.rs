//! What both ways of computing a block take and give.

/// `y = x Wᵀ + b`, `W: (out, in)` row by row.
#[derive(Debug, Clone, Copy)]
pub struct Linear<'a> {
    /// `out · in` values.
    pub weight: &'a [f32],
    /// `out` values.
    pub bias: &'a [f32],
}

/// `y = (x − mean) / sqrt(var + eps) · w + b`.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// One value a column.
    pub weight: &'a [f32],
    /// One value a column.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// What stands between the two layers of an MLP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU, `x·Φ(x)`.
    #[default]
    Gelu,
    /// OpenAI's stand-in for it, `x·σ(1.702 x)` (`openai/CLIP:clip/model.py`).
    QuickGelu,
}

/// The frozen weights of one block.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// Attention heads.
    pub heads: usize,
    /// Whether a token sees itself and those before it alone, as in a text tower. In f32.
    pub causal: bool,
    /// Of the MLP.
    pub activation: Activation,
    /// Before attention.
    pub norm1: Norm<'a>,
    /// Queries, keys and values, `(3D, D)`.
    pub qkv: Linear<'a>,
    /// Output projection, `(D, D)`.
    pub proj: Linear<'a>,
    /// Layer scale γ₁, where the model has it.
    pub scale1: Option<&'a [f32]>,
    /// Before the MLP.
    pub norm2: Norm<'a>,
    /// `(F, D)`.
    pub fc1: Linear<'a>,
    /// `(D, F)`.
    pub fc2: Linear<'a>,
    /// Layer scale γ₂.
    pub scale2: Option<&'a [f32]>,
}

impl BlockWeights<'_> {
    /// Width `D` of a token.
    pub fn dim(&self) -> usize {
        self.norm1.weight.len()
    }

    /// Hidden width `F` of the MLP.
    pub fn mlp(&self) -> usize {
        self.fc1.bias.len()
    }

    /// Checks that all sizes agree, so that the arithmetic need not.
    pub fn check(&self) -> Result<(), String> {
        let (d, f) = (self.dim(), self.mlp());
        if self.heads == 0 || d == 0 || !d.is_multiple_of(self.heads) {
            return Err(format!("{} heads do not divide a width of {d}", self.heads));
        }
        for (name, found, expected) in [
            ("norm1.bias", self.norm1.bias.len(), d),
            ("qkv.weight", self.qkv.weight.len(), 3 * d * d),
            ("qkv.bias", self.qkv.bias.len(), 3 * d),
            ("proj.weight", self.proj.weight.len(), d * d),
            ("proj.bias", self.proj.bias.len(), d),
            ("norm2.weight", self.norm2.weight.len(), d),
            ("norm2.bias", self.norm2.bias.len(), d),
            ("fc1.weight", self.fc1.weight.len(), f * d),
            ("fc2.weight", self.fc2.weight.len(), d * f),
            ("fc2.bias", self.fc2.bias.len(), d),
            ("ls1", self.scale1.map_or(d, <[f32]>::len), d),
            ("ls2", self.scale2.map_or(d, <[f32]>::len), d),
        ] {
            if found != expected {
                return Err(format!("{name} has {found} values, expected {expected}"));
            }
        }
        Ok(())
    }
}

/// Images in a batch and tokens in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Tokens of each.
    pub tokens: usize,
    /// Output tokens of each, counted from the first: the last block need not compute what nobody reads.
    pub read: usize,
}

impl Shape {
    /// All tokens are read.
    pub fn whole(batch: usize, tokens: usize) -> Self {
        Self {
            batch,
            tokens,
            read: tokens,
        }
    }

    /// Whether so few tokens are read that attention without keys and values of all tokens (`plain::few`) pays: its products are slim
    /// and its memory grows with heads and read tokens. It costs next to nothing even where bf16 has sixteen times the operations.
    pub fn reads_few(&self, dim: usize, heads: usize) -> bool {
        self.read < self.tokens && 16 * self.read * heads <= dim
    }
}

/// The first `read` of each `tokens` rows of `dim` values.
pub(crate) fn first_rows(x: &[f32], tokens: usize, read: usize, dim: usize, out: &mut [f32]) {
    let images = x.chunks_exact(tokens * dim);
    for (out, x) in out.chunks_exact_mut(read * dim).zip(images) {
        out.copy_from_slice(&x[..read * dim]);
    }
}

/// The reverse of [`first_rows`]: the other rows of `out` are zero.
pub(crate) fn rows_first(x: &[f32], tokens: usize, read: usize, dim: usize, out: &mut [f32]) {
    let images = out.chunks_exact_mut(tokens * dim);
    for (x, out) in x.chunks_exact(read * dim).zip(images) {
        out[..read * dim].copy_from_slice(x);
        out[read * dim..].fill(0.0);
    }
}

/// Extra keys and values in front of a block's own, `(B, H, P, D/H)` each.
#[derive(Debug, Clone, Copy)]
pub struct Prefix<'a> {
    /// Prompt length `P`.
    pub length: usize,
    /// `B·H·P·D/H` values.
    pub keys: &'a [f32],
    /// As many.
    pub values: &'a [f32],
}

impl<'a> Prefix<'a> {
    /// The part of images `from .. from + n`, of `per` values each.
    pub(crate) fn images(&self, from: usize, n: usize, per: usize) -> Self {
        let range = from * per..(from + n) * per;
        Self {
            length: self.length,
            keys: &self.keys[range.clone()],
            values: &self.values[range],
        }
    }
}

/// Which gradients are needed. Without that of the tokens, a block's own queries, keys and values need none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of the tokens that went in.
    pub tokens: bool,
    /// Of the prefix, where there was one.
    pub prefix: bool,
}

/// What a block's backward gives, of the shapes that went in; empty where it was not wanted.
#[derive(Debug, Clone, Default)]
pub struct Gradients {
    /// Of the tokens.
    pub tokens: Vec<f32>,
    /// Of the prefix's keys.
    pub keys: Vec<f32>,
    /// Of the prefix's values.
    pub values: Vec<f32>,
}

/// `n` parts of `per` values; the last may be shorter, and all are empty where there are none.
pub(crate) fn chunks(values: &mut [f32], per: usize, n: usize) -> Vec<&mut [f32]> {
    let mut parts: Vec<&mut [f32]> = match per {
        0 => vec![],
        per => values.chunks_mut(per).collect(),
    };
    parts.resize_with(n, Default::default);
    parts
}

//! Class attention: a token of its own reads all tokens of a frozen backbone, and a head reads the token (Touvron et al. 2021,
//! "Going deeper with Image Transformers"). What a session of [`esn`](crate::esn) learns.
//!
//! ```text
//! x = LN₁ [u, F]                                           F (N, D): tokens, u (D): trained
//! u ← u + proj(softmax(q(x_0) k(x)ᵀ / √d) v(x))            per head, heads owning contiguous slices of D
//! u ← u + fc₂ GELU(fc₁ LN₂ u)                              D to D/2 and back; exact GELU
//! z = head(u)
//! ```
//!
//! `u` starts as the pretrained CLS, weights truncated normal with deviation 0.02, biases 0; the head starts as PyTorch's
//! `nn.Linear`. Source: `iamwangyabin/ESN:models/convit.py`, `networks.py` (d163bc6).

use candle_core::{D, Tensor};
use candle_nn::ops::softmax;
use candlewick_core::{Backbone, Init, Params, Result};

use crate::pet::{affine, as_seen};

/// The start of PyTorch's `nn.Linear` of `dim` values.
pub(crate) fn as_linear(dim: usize) -> Init {
    let high = 1.0 / (dim as f32).sqrt();
    Init::Uniform { low: -high, high }
}

/// A token, an attention with an MLP, and a head.
pub struct ClassAttention {
    token: Tensor,
    norms: [[Tensor; 2]; 2],
    /// Queries, keys, values, projection.
    attention: [[Tensor; 2]; 4],
    mlp: [[Tensor; 2]; 2],
    head: [Tensor; 2],
    heads: usize,
}

impl ClassAttention {
    /// Creates `session.S.…` and `head.S.weight (K, D)`, `head.S.bias`.
    pub fn new(
        s: usize,
        classes: usize,
        backbone: &dyn Backbone,
        params: &mut Params,
    ) -> Result<Self> {
        let (dim, heads) = (backbone.spec().dim, backbone.spec().heads);
        let name = format!("session.{s}.token");
        params.create(&name, &[1, 1, dim], Init::Zeros)?;
        params.set(&name, &backbone.cls_token()?)?;
        let token = params.get(&name)?;
        let mut pair = |name: String, shape: &[usize], weight, bias| -> Result<[Tensor; 2]> {
            Ok([
                params.create(&format!("{name}.weight"), shape, weight)?,
                params.create(&format!("{name}.bias"), &shape[..1], bias)?,
            ])
        };
        let hidden = dim / 2;
        let mut linear = |of: &str, rows: usize, columns: usize| {
            let name = format!("session.{s}.{of}");
            let init = Init::TruncatedNormal { std: 0.02 };
            pair(name, &[rows, columns], init, Init::Zeros)
        };
        let attention = [
            linear("q", dim, dim)?,
            linear("k", dim, dim)?,
            linear("v", dim, dim)?,
            linear("proj", dim, dim)?,
        ];
        let mlp = [linear("fc1", hidden, dim)?, linear("fc2", dim, hidden)?];
        let mut norm = |of: &str| {
            let name = format!("session.{s}.{of}");
            pair(name, &[dim], Init::Ones, Init::Zeros)
        };
        let norms = [norm("norm1")?, norm("norm2")?];
        let init = as_linear(dim);
        let head = pair(format!("head.{s}"), &[classes, dim], init, init)?;
        Ok(Self {
            token,
            norms,
            attention,
            mlp,
            head,
            heads,
        })
    }

    /// Logits `(B, K)` of tokens `(B, N, D)`.
    pub fn logits(&self, tokens: &Tensor, train: bool) -> Result<Tensor> {
        let (b, n, dim) = tokens.dims3()?;
        let (h, width) = (self.heads, dim / self.heads);
        let token = as_seen(&self.token, train).expand((b, 1, dim))?;
        let all = Tensor::cat(&[&token, tokens], 1)?;
        let all = layer_norm(&all, &self.norms[0], train)?;
        let [q, k, v, proj] = &self.attention;
        let heads = |x: &Tensor, layer, n: usize| -> Result<Tensor> {
            let y = affine(&x.reshape((b * n, dim))?, layer, train)?;
            let y = y.reshape((b, n, h, width))?.transpose(1, 2)?;
            Ok(y.contiguous()?)
        };
        let q = (heads(&all.narrow(1, 0, 1)?.contiguous()?, q, 1)? * (width as f64).powf(-0.5))?;
        let (k, v) = (heads(&all, k, n + 1)?, heads(&all, v, n + 1)?);
        let weights = softmax(&q.matmul(&k.t()?)?, D::Minus1)?;
        // One query: `(B, H, 1, d)` is `(B, D)` as it lies.
        let mixed = weights.matmul(&v)?.reshape((b, dim))?;
        let token = (token.squeeze(1)? + affine(&mixed, proj, train)?)?;
        let normed = layer_norm(&token, &self.norms[1], train)?;
        let hidden = affine(&normed, &self.mlp[0], train)?.gelu_erf()?;
        let token = (token + affine(&hidden, &self.mlp[1], train)?)?;
        affine(&token, &self.head, train)
    }
}

/// Over the last dimension, with PyTorch's usual ε.
pub(crate) fn layer_norm(x: &Tensor, [weight, bias]: &[Tensor; 2], train: bool) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(var + 1e-5)?.sqrt()?)?;
    Ok(normed
        .broadcast_mul(&as_seen(weight, train))?
        .broadcast_add(&as_seen(bias, train))?)
}

//! Laws of the parts of a method: that its gradients are those of its loss, and of a backbone: that an empty prompt is none.

use candle_core::{DType, Tensor, Var};
use candlewick_core::{
    Backbone, Cue, Injection, NoPrompt, Outputs, Params, Position, Prefix, Prompt, Result, Share,
    Site, Span, Tokens,
};

use super::broken;

/// Holds the gradient `g` of every parameter `w` to central differences of the loss:
///
/// `⟨g, d⟩ = (L(w + s·d) − L(w − s·d)) / 2s` for `d = g/‖g‖` and for two `d` of entries `±1/√n`,
///
/// with `s = ‖w‖/20` and again with half of it, so that the error in `s²` falls out. A parameter without a gradient
/// must not move the loss. `loss` is asked again and again and must not draw anything; it should choose nothing by
/// what is moved (a pool from which all prompts are taken), since a choice has no slope. Parameters whose name
/// begins with one of `cut` are left out: what a method holds constant on purpose.
///
/// In one line, for a [`Prompted`](candlewick_core::Prompted) that has begun a task:
/// `gradients(&|| method.loss(&batch), method.params(), &[])`.
pub fn gradients(loss: &dyn Fn() -> Result<Tensor>, params: &Params, cut: &[&str]) -> Result<()> {
    let grads = loss()?.backward()?;
    let state = params.state()?;
    // Variables come in the order of their names.
    for ((name, value), var) in state.iter().zip(params.vars()) {
        if cut.iter().any(|cut| name.starts_with(cut)) {
            continue;
        }
        let grad = grads.get(&var);
        let size = grad.map(|g| dot(g, g)).transpose()?.unwrap_or(0.0).sqrt();
        let n = value.elem_count();
        let mut ways = vec![signs(value, 1)?, signs(value, 2)?];
        if let Some(grad) = grad.filter(|_| size > 0.0) {
            ways.push((grad / size)?);
        }
        let step = dot(value, value)?.sqrt().max(1.0) / 20.0;
        for way in ways {
            let claimed = grad.map(|g| dot(g, &way)).transpose()?.unwrap_or(0.0);
            let (near, far) = (
                slope(loss, &var, value, &way, step / 2.0)?,
                slope(loss, &var, value, &way, step)?,
            );
            let found = (4.0 * near - far) / 3.0;
            // What f32 leaves of a difference of two losses, and 3 % of what such a direction may be expected to have.
            let bound = NOISE / step + 0.03 * (size / (n as f64).sqrt()).max(claimed.abs());
            if (found - claimed).abs() > bound {
                return broken(&format!(
                    "the gradient of `{name}` gives a slope of {claimed:e} where the loss has {found:e}"
                ));
            }
        }
    }
    Ok(())
}

/// Rounding of a loss of a few units in f32, through a backbone.
const NOISE: f64 = 5e-6;

fn slope(
    loss: &dyn Fn() -> Result<Tensor>,
    var: &Var,
    value: &Tensor,
    way: &Tensor,
    step: f64,
) -> Result<f64> {
    let at = |s: f64| -> Result<f64> {
        var.set(&(value + (way * s)?)?)?;
        let loss = loss();
        var.set(value)?;
        Ok(f64::from(loss?.to_scalar::<f32>()?))
    };
    Ok((at(step)? - at(-step)?) / (2.0 * step))
}

/// `±1/√n`, the same for the same `seed`.
fn signs(like: &Tensor, seed: u64) -> Result<Tensor> {
    let n = like.elem_count();
    let size = 1.0 / (n as f32).sqrt();
    let sign = |i: usize| {
        // The mixing of splitmix64: neighbours get independent signs.
        let mut z = (i as u64 + seed * n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z >> 63) == 0 { size } else { -size }
    };
    let values: Vec<f32> = (0..n).map(sign).collect();
    Ok(Tensor::from_vec(values, like.shape(), like.device())?)
}

fn dot(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (a, b): (Vec<f32>, Vec<f32>) = (a.flatten_all()?.to_vec1()?, b.flatten_all()?.to_vec1()?);
    Ok(a.iter()
        .zip(&b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum())
}

/// Tokens and prefixes of length 0 at every site of a backbone leave the features of `images` as they are, bit for bit.
pub fn empty_prompt(backbone: &dyn Backbone, images: &Tensor) -> Result<()> {
    let features = |prompt: &dyn Prompt, outputs| -> Result<(Vec<u32>, Vec<usize>)> {
        let cue = Cue {
            outputs,
            ..Cue::default()
        };
        let features = backbone.forward(images, prompt, &cue)?;
        if !features.prompts.is_empty() {
            return broken("an empty prompt leaves prompt tokens");
        }
        let dims = features.tokens.dims().to_vec();
        Ok((super::values(&features.tokens)?, dims))
    };
    for outputs in [Outputs::All, Outputs::Head] {
        let plain = features(&NoPrompt, outputs)?;
        for span in [Span::ThisBlock, Span::ToTheEnd] {
            let empty = Empty {
                span,
                heads: backbone.spec().heads,
            };
            if features(&empty, outputs)? != plain {
                return broken(&format!(
                    "with an empty prompt ({span:?}) the backbone gives other features ({outputs:?})"
                ));
            }
        }
    }
    Ok(())
}

/// Nothing, everywhere.
struct Empty {
    span: Span,
    heads: usize,
}

impl Prompt for Empty {
    fn inject(&self, site: Site, tokens: &Tensor, _: &Cue) -> Result<Injection> {
        let (b, _, d) = tokens.dims3()?;
        let none = |shape: &[usize]| Tensor::zeros(shape, DType::F32, tokens.device());
        let prefix = match site {
            Site::Embed => None,
            Site::Block(_) => {
                let shape = [b, self.heads, 0, d / self.heads.max(1)];
                Some(Prefix {
                    keys: none(&shape)?,
                    values: none(&shape)?,
                    share: Share::Softmax,
                })
            }
        };
        Ok(Injection {
            tokens: Some(Tokens {
                values: none(&[b, 0, d])?,
                span: self.span,
                position: Position::Cls,
            }),
            prefix,
            aux_loss: None,
        })
    }
}

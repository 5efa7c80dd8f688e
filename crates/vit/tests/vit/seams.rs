//! Whatever a prompt may put into the backbone has a true gradient.

use candle_core::{Device, Tensor, Var};
use candlewick_core::{
    Backbone, Cue, Injection, Op, Position, Prefix, Prompt, Result, Share, Site, Span, Tokens,
};
use candlewick_vit::Vit;

use super::near::{assert_near, precisions};
use super::{Precision, assert_close, plain, timm_in};

/// Two prompt tokens at `site`, kept or dropped, with a prefix made of a copied token.
struct Inject {
    site: Site,
    span: Span,
    position: Position,
    tokens: Option<Tensor>,
    prefix: Option<(Tensor, Tensor, Share)>,
}

impl Prompt for Inject {
    fn inject(&self, site: Site, tokens: &Tensor, _: &Cue) -> Result<Injection> {
        if site != self.site {
            return Ok(Injection::default());
        }
        let b = tokens.dim(0)?;
        let batch = |t: &Tensor| {
            let mut shape = t.dims().to_vec();
            shape[0] = b;
            t.expand(shape)
        };
        let prompts = self.tokens.as_ref().map(batch).transpose()?;
        let prefix = match &self.prefix {
            Some((k, v, share)) => Some(Prefix {
                keys: batch(k)?,
                values: batch(v)?,
                share: *share,
            }),
            None => None,
        };
        Ok(Injection {
            tokens: prompts.map(|values| Tokens {
                values,
                span: self.span,
                position: self.position,
            }),
            prefix,
            aux_loss: Some(Tensor::new(0.5f32, tokens.device())?),
        })
    }
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 29 % 97) as f32 / 97.0 - 0.5).collect()
}

/// The fixture's backbone in every precision of this machine, f32 first.
struct Backbones {
    exact: Vit,
    others: Vec<Vit>,
    images: Tensor,
}

impl Backbones {
    fn new() -> Self {
        let (exact, all) = timm_in(Precision::F32);
        let others = precisions()
            .into_iter()
            .filter(|p| *p != Precision::F32)
            .map(|p| timm_in(p).0);
        Self {
            exact,
            others: others.collect(),
            images: all["in.images"].clone(),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Vit> {
        std::iter::once(&self.exact).chain(&self.others)
    }

    /// f32 against finite differences; bf16, for which those are too coarse, against f32.
    fn check(&self, what: &str, var: &Var, prompt: &dyn Prompt) {
        check_gradient(&self.exact, &self.images, var, prompt);
        let exact = gradient(&self.exact, &self.images, var, prompt);
        for vit in &self.others {
            assert_eq!(vit.precision().name(), "bf16");
            let half = gradient(vit, &self.images, var, prompt);
            assert_near(what, &half, &exact);
            // Alike to the last bit, it would be f32 under another name.
            assert!(
                (half - &exact)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap()
                    > 0.0
            );
        }
    }
}

/// A weighted sum of CLS.
fn loss(vit: &Vit, images: &Tensor, prompt: &dyn Prompt) -> Tensor {
    let features = vit.forward(images, prompt, &Cue::default()).unwrap();
    let cls = features.cls().unwrap();
    let n = cls.elem_count();
    let weights = Tensor::from_vec(values(n), cls.dims(), &Device::Cpu).unwrap();
    (cls * weights).unwrap().sum_all().unwrap()
}

fn gradient(vit: &Vit, images: &Tensor, var: &Var, prompt: &dyn Prompt) -> Tensor {
    let grads = loss(vit, images, prompt).backward().unwrap();
    let precision = vit.precision().name();
    let grad = grads.get(var);
    let grad = grad.unwrap_or_else(|| panic!("{precision}: no gradient reached the prompt"));
    assert_eq!(grad.dims(), var.dims());
    grad.clone()
}

/// Finite differences at a few coordinates of the injected variable.
fn check_gradient(vit: &Vit, images: &Tensor, var: &Var, prompt: &dyn Prompt) {
    let grad = gradient(vit, images, var, prompt);
    let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
    let start: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
    let scale = grad.iter().fold(0f32, |m, g| m.max(g.abs()));
    assert!(scale > 0.0);
    let shape = var.dims().to_vec();
    for at in (0..start.len()).step_by(start.len() / 7 + 1) {
        let value = |delta: f32| -> f32 {
            let mut moved = start.clone();
            moved[at] += delta;
            var.set(&Tensor::from_vec(moved, shape.clone(), &Device::Cpu).unwrap())
                .unwrap();
            loss(vit, images, prompt).to_scalar().unwrap()
        };
        let numeric = (value(1e-2) - value(-1e-2)) / 2e-2;
        value(0.0);
        assert!(
            (numeric - grad[at]).abs() < 0.02 * scale,
            "coordinate {at}: {numeric} by differences, {} by backward, largest {scale}",
            grad[at]
        );
    }
}

fn variable(shape: &[usize]) -> Var {
    let n = shape.iter().product();
    Var::from_tensor(&Tensor::from_vec(values(n), shape, &Device::Cpu).unwrap()).unwrap()
}

#[test]
fn tokens_at_every_site_have_a_true_gradient() {
    let backbones = Backbones::new();
    let blocks = (0..4).map(Site::Block);
    for site in std::iter::once(Site::Embed).chain(blocks) {
        for (span, position) in [
            (Span::ToTheEnd, Position::Cls),
            (Span::ThisBlock, Position::None),
        ] {
            let position = match site {
                Site::Embed => position,
                Site::Block(_) => Position::None,
            };
            let tokens = variable(&[1, 2, 48]);
            let prompt = Inject {
                site,
                span,
                position,
                tokens: Some(tokens.as_tensor().clone()),
                prefix: None,
            };
            backbones.check(&format!("{site:?} {span:?}"), &tokens, &prompt);
            for vit in backbones.all() {
                let features = vit
                    .forward(&backbones.images, &prompt, &Cue::default())
                    .unwrap();
                let stay = if span == Span::ToTheEnd { 2 } else { 0 };
                assert_eq!(features.tokens.dim(1).unwrap(), 17 + stay);
                assert_eq!(features.prompts, 1..1 + stay);
                assert_eq!(features.aux_loss.unwrap().to_scalar::<f32>().unwrap(), 0.5);
            }
        }
    }
}

#[test]
fn prefixes_in_every_block_have_a_true_gradient() {
    let backbones = Backbones::new();
    let trained = variable(&[1, 4, 3, 12]);
    let fixed = Tensor::from_vec(values(144), (1, 4, 3, 12), &Device::Cpu).unwrap();
    for (block, share) in (0..4).flat_map(|i| [(i, Share::Softmax), (i, Share::Whole)]) {
        let prefix = |k: &Tensor, v: &Tensor| Inject {
            site: Site::Block(block),
            span: Span::ThisBlock,
            position: Position::None,
            tokens: None,
            prefix: Some((k.clone(), v.clone(), share)),
        };
        let what = |of: &str| format!("{of} of block {block}, {share:?}");
        let keys = prefix(trained.as_tensor(), &fixed);
        backbones.check(&what("keys"), &trained, &keys);
        let values = prefix(&fixed, trained.as_tensor());
        backbones.check(&what("values"), &trained, &values);
    }
}

/// Scale and shift, or a parallel adapter, at one operation.
struct Tune {
    op: Op,
    scale: Tensor,
}

impl Prompt for Tune {
    fn tunes(&self, op: Op) -> bool {
        op == self.op
    }

    fn tune(&self, _: Op, _: &Tensor, output: Tensor, _: &Cue) -> Result<Tensor> {
        Ok(output.broadcast_mul(&self.scale)?)
    }
}

#[test]
fn every_operation_can_be_tuned_and_trains() {
    let backbones = Backbones::new();
    let widths = |op: Op| match op {
        Op::Qkv(_) => 144,
        Op::Fc1(_) => 192,
        _ => 48,
    };
    let ops = Op::in_block(1)
        .into_iter()
        .chain([Op::PatchEmbed, Op::Norm]);
    let images = &backbones.images;
    let untouched = plain(&backbones.exact, images);
    for op in ops {
        let n = widths(op);
        let ones = Tensor::ones(n, candle_core::DType::F32, &Device::Cpu).unwrap();
        let scale = Var::from_tensor(&ones).unwrap();
        let prompt = Tune {
            op,
            scale: scale.as_tensor().clone(),
        };
        let same = backbones
            .exact
            .forward(images, &prompt, &Cue::default())
            .unwrap();
        assert_close(
            &format!("{op:?} by one"),
            &same.tokens,
            &untouched,
            1e-5,
            0.0,
        );
        backbones.check(&format!("{op:?}"), &scale, &prompt);
    }
}

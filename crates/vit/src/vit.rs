//! The vision transformer: pre-norm blocks, CLS token, learned positions, exact GELU
//! (Dosovitskiy et al. 2021; `timm:models/vision_transformer.py`).

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candlewick_core::{
    Backbone, Cue, Features, Injection, Language, Op, Outputs, Position, Prompt,
    Result as CoreResult, Site, Span, Spec, State, Thawed,
};

use candlewick_kernels::{self as kernels, Activation};

use crate::block::{Block, Style};
use crate::error::{Error, Result};
use crate::layers::{LayerNorm, Linear};
use crate::layout::{self, Layout};
use crate::position;
use crate::weights::Weights;

/// What the tensors do not tell.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Attention heads; `None`: the file's own, else one per 64 dimensions.
    pub heads: Option<usize>,
    /// Layer-norm epsilon; `None`: the layout's.
    pub eps: Option<f64>,
    /// Activation of the MLPs; `None`: the layout's.
    pub activation: Option<Activation>,
    /// Input height and width in pixels; `None`: the size it was trained at.
    pub image_size: Option<usize>,
    /// Blocks to keep, counted from the input; `None`: all.
    pub depth: Option<usize>,
    /// The numbers that frozen weights are multiplied in.
    pub precision: Precision,
    /// Whether blocks that train are run again in the backward pass, so that only what goes into each is kept: about a quarter more
    /// time and far less memory. The gradients are the same. On the CPU.
    pub checkpoint_activations: bool,
}

/// The `precision` of a recipe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Precision {
    /// The one that [`Precision::resolve`] finds.
    #[default]
    Auto,
    /// f32 throughout.
    F32,
    /// bf16 products, summed in f32, on processors with AMX or AVX-512 BF16.
    Bf16,
}

impl Precision {
    /// What this means on this processor and device. `Auto` is f32.
    pub fn resolve(self, device: &Device) -> Result<kernels::Precision> {
        let bf16 = kernels::Precision::Bf16;
        match self {
            Self::Auto | Self::F32 => Ok(kernels::Precision::F32),
            Self::Bf16 if device.is_cpu() && bf16.available() => Ok(bf16),
            Self::Bf16 => Err(Error::Option {
                key: "precision",
                problem: format!(
                    "bf16 needs Linux on a CPU with AMX (and Linux 5.16 or later) or AVX-512 BF16, found {}; set \"f32\" or \"auto\"",
                    match device.is_cpu() {
                        true => "a CPU or a system without it",
                        false => "a GPU as the device",
                    }
                ),
            }),
        }
    }
}

/// A frozen ViT of any size.
pub struct Vit {
    spec: Spec,
    layout: Layout,
    style: Style,
    device: Device,
    patch_embed: Linear,
    cls: Tensor,
    cls_position: Option<Tensor>,
    patch_positions: Tensor,
    registers: Option<Tensor>,
    /// Before the first block, in CLIP.
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    weights: BTreeMap<String, Tensor>,
    checkpoint: bool,
    language: Option<Arc<dyn Language>>,
}

impl std::fmt::Debug for Vit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            spec,
            layout,
            style,
            ..
        } = self;
        write!(f, "Vit {{ {spec:?}, {layout:?}, {style:?} }}")
    }
}

impl Vit {
    /// Reads any of the known layouts.
    pub fn load(weights: &Weights, options: &Options, device: &Device) -> Result<Self> {
        let precision = options.precision.resolve(device)?;
        if options.checkpoint_activations && !device.is_cpu() {
            return Err(Error::Option {
                key: "checkpoint_activations",
                problem: "works on the CPU, found a GPU as the device; remove it".into(),
            });
        }
        let read = layout::read(weights, options.depth, device)?;
        let sizes = read.sizes;
        let heads = heads(options.heads.or(sizes.heads), sizes.dim)?;
        let style = Style {
            heads,
            eps: options.eps.unwrap_or(read.layout.eps()),
            causal: false,
            activation: options.activation.unwrap_or(read.layout.activation()),
            precision,
        };
        let (cls_position, trained) = position::split(&read.tensors["pos_embed"])?;
        let trained_size = position::side(trained.dim(0)?)? * sizes.patch;
        let image_size = options.image_size.unwrap_or(trained_size);
        let grid = grid(image_size, sizes.patch)?;
        let patch_positions = position::resample(&trained, grid, grid, read.resample)?;

        let spec = Spec {
            image_size,
            patch_size: sizes.patch,
            dim: sizes.dim,
            depth: sizes.depth,
            heads,
            mlp_dim: sizes.mlp,
            registers: sizes.registers,
            parameters: read.tensors.values().map(Tensor::elem_count).sum(),
        };
        let positions = (
            cls_position.map(|row| row.unsqueeze(0)).transpose()?,
            patch_positions.unsqueeze(0)?,
        );
        let vit = Self::assemble(spec, read.layout, style, device, read.tensors, positions)?;
        Ok(vit.checkpointing(options.checkpoint_activations))
    }

    /// Sets whether blocks that train are run again in the backward pass.
    fn checkpointing(mut self, on: bool) -> Self {
        self.checkpoint = on;
        self.blocks
            .iter_mut()
            .for_each(|block| block.checkpoint(on));
        self
    }

    /// From tensors by their canonical names, which must all be there, and the positions of CLS and patches.
    pub(crate) fn assemble(
        spec: Spec,
        layout: Layout,
        style: Style,
        device: &Device,
        weights: BTreeMap<String, Tensor>,
        (cls_position, patch_positions): (Option<Tensor>, Tensor),
    ) -> Result<Self> {
        let get = |name: &str| weights[name].clone();
        let blocks = (0..spec.depth)
            .map(|i| Block::new(i, style, &weights))
            .collect();
        let norm = |name: &str| {
            let get = |part: &str| weights.get(&format!("{name}.{part}")).cloned();
            let (weight, bias) = (get("weight")?, get("bias")?);
            Some(LayerNorm::new(weight, bias, style.eps))
        };
        let patch = get("patch_embed.proj.weight").flatten_from(1)?;
        let bias = match weights.get("patch_embed.proj.bias") {
            Some(bias) => bias.clone(),
            // CLIP has none.
            None => Tensor::zeros(spec.dim, DType::F32, device)?,
        };
        Ok(Self {
            layout,
            style,
            device: device.clone(),
            patch_embed: Linear::new(patch, bias, style.precision),
            cls: get("cls_token"),
            cls_position,
            patch_positions,
            registers: weights.get("reg_token").cloned(),
            blocks,
            norm_pre: norm("norm_pre"),
            norm: LayerNorm::new(get("norm.weight"), get("norm.bias"), style.eps),
            spec,
            weights,
            checkpoint: false,
            language: None,
        })
    }

    /// The same network over other tensors.
    pub(crate) fn with(
        &self,
        weights: BTreeMap<String, Tensor>,
        positions: (Option<Tensor>, Tensor),
    ) -> Result<Self> {
        let vit = Self::assemble(
            self.spec.clone(),
            self.layout,
            self.style,
            &self.device,
            weights,
            positions,
        )?;
        let vit = vit.checkpointing(self.checkpoint);
        Ok(match &self.language {
            Some(language) => vit.speaking(language.clone()),
            None => vit,
        })
    }

    /// With the text tower that it was trained with.
    pub fn speaking(mut self, language: Arc<dyn Language>) -> Self {
        self.language = Some(language);
        self
    }

    /// The layout its file had.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The numbers that its frozen weights are multiplied in.
    pub fn precision(&self) -> kernels::Precision {
        self.style.precision
    }

    /// Every frozen tensor under its canonical (timm's) name.
    pub fn weights(&self) -> &BTreeMap<String, Tensor> {
        &self.weights
    }

    /// The position table in use, `(1, 1 + patches, D)` (without the first row where the model gives CLS
    /// no position).
    pub fn position_embedding(&self) -> Result<Tensor> {
        Ok(match &self.cls_position {
            Some(cls) => Tensor::cat(&[cls, &self.patch_positions], 1)?,
            None => self.patch_positions.clone(),
        })
    }

    /// Images `(B, 3, H, W)` to patch tokens `(B, N, D)`, row by row of the image.
    pub fn patches(&self, images: &Tensor) -> Result<Tensor> {
        let (b, channels, h, w) = images.dims4()?;
        let (p, size) = (self.spec.patch_size, self.spec.image_size);
        if (channels, h, w) != (3, size, size) {
            return Err(Error::Option {
                key: "preprocess.crop",
                problem: format!(
                    "images are {channels}x{h}x{w}, the backbone was loaded for 3x{size}x{size}; set it to {size}"
                ),
            });
        }
        let g = size / p;
        // A convolution whose stride is its kernel is a product with the flattened patches.
        let flat = images
            .reshape(&[b, 3, g, p, g, p][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((b, g * g, 3 * p * p))?;
        Ok(self.patch_embed.forward(&flat)?)
    }

    /// `[CLS, prompts, registers, patches]` with positions, normed where the model does so before its first block.
    fn embed(&self, patches: &Tensor, injected: &Injection) -> Result<Tensor> {
        let b = patches.dim(0)?;
        let with = |x: &Tensor, position: &Option<Tensor>| match position {
            Some(position) => x.broadcast_add(position),
            None => Ok(x.clone()),
        };
        let cls = with(&self.cls, &self.cls_position)?;
        let rest = patches.broadcast_add(&self.patch_positions)?;
        let mut parts = vec![expand(&cls, b)?];
        if let Some(tokens) = &injected.tokens {
            parts.push(match tokens.position {
                Position::Cls => with(&tokens.values, &self.cls_position)?,
                Position::None => tokens.values.clone(),
            });
        }
        if let Some(registers) = &self.registers {
            parts.push(expand(registers, b)?);
        }
        parts.push(rest);
        let x = Tensor::cat(&parts, 1)?.contiguous()?;
        Ok(match &self.norm_pre {
            Some(norm) => norm.forward(&x)?,
            None => x,
        })
    }
}

impl Backbone for Vit {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn forward(&self, images: &Tensor, prompt: &dyn Prompt, cue: &Cue) -> CoreResult<Features> {
        let images = images.to_device(&self.device)?.to_dtype(DType::F32)?;
        let hook = |op, x: &Tensor, y: Tensor| match prompt.tunes(op) {
            true => prompt.tune(op, x, y, cue),
            false => Ok(y),
        };
        let mut aux_loss = None;
        let patches = self.patches(&images).map_err(into_core)?;
        let patches = hook(Op::PatchEmbed, &images, patches)?;
        let injected = prompt.inject(Site::Embed, &patches, cue)?;
        add_loss(&mut aux_loss, &injected)?;
        let mut x = self.embed(&patches, &injected).map_err(into_core)?;
        // Prompts stand from position 1 on; those that stay are counted here.
        let mut staying = 0;
        let mut leaving = 0;
        if let Some(tokens) = &injected.tokens {
            let n = tokens.values.dim(1)?;
            match tokens.span {
                Span::ToTheEnd => staying += n,
                Span::ThisBlock => leaving += n,
            }
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let injected = prompt.inject(Site::Block(i), &x, cue)?;
            add_loss(&mut aux_loss, &injected)?;
            if let Some(tokens) = &injected.tokens {
                x = insert(&x, &tokens.values)?;
                let n = tokens.values.dim(1)?;
                match tokens.span {
                    Span::ToTheEnd => staying += n,
                    Span::ThisBlock => leaving += n,
                }
            }
            let last = i + 1 == self.blocks.len();
            let read = (last && cue.outputs == Outputs::Head).then_some(1 + staying + leaving);
            x = block.forward(&x, injected.prefix.as_ref(), read, prompt, cue)?;
            if leaving > 0 {
                x = drop_tokens(&x, leaving)?;
                leaving = 0;
            }
        }
        let tokens = hook(Op::Norm, &x, self.norm.forward(&x)?)?;
        Ok(Features {
            tokens,
            prompts: 1..1 + staying,
            aux_loss,
        })
    }

    fn cls_token(&self) -> CoreResult<Tensor> {
        Ok(self.cls.clone())
    }

    fn norm(&self, x: &Tensor) -> CoreResult<Tensor> {
        Ok(self.norm.forward(x)?)
    }

    fn language(&self) -> Option<Arc<dyn Language>> {
        self.language.clone()
    }

    fn thaw(&self) -> CoreResult<Thawed> {
        self.thawed().map_err(into_core)
    }

    fn with_weights(&self, weights: &State) -> CoreResult<Arc<dyn Backbone>> {
        Ok(Arc::new(self.rebuilt(weights).map_err(into_core)?))
    }
}

/// Heads of a tower of width `dim`.
pub(crate) fn heads(given: Option<usize>, dim: usize) -> Result<usize> {
    let heads = given.unwrap_or(dim / 64);
    if heads == 0 || !dim.is_multiple_of(heads) {
        let problem = format!(
            "found {heads} heads for a width of {dim}; give the number the model was trained with, a divisor of {dim}"
        );
        return Err(Error::Option {
            key: "backbone.heads",
            problem,
        });
    }
    Ok(heads)
}

fn grid(image_size: usize, patch: usize) -> Result<usize> {
    if image_size == 0 || !image_size.is_multiple_of(patch) {
        return Err(Error::Option {
            key: "preprocess.crop",
            problem: format!(
                "{image_size} px is not a multiple of the patch size {patch}; set it to {} or {}",
                (image_size / patch).max(1) * patch,
                (image_size / patch + 1) * patch
            ),
        });
    }
    Ok(image_size / patch)
}

fn expand(row: &Tensor, b: usize) -> Result<Tensor> {
    let (_, n, d) = row.dims3()?;
    Ok(row.expand((b, n, d))?)
}

/// Puts tokens behind CLS.
fn insert(x: &Tensor, tokens: &Tensor) -> CoreResult<Tensor> {
    let rest = x.dim(1)? - 1;
    let (cls, rest) = (x.narrow(1, 0, 1)?, x.narrow(1, 1, rest)?);
    Ok(Tensor::cat(&[&cls, tokens, &rest], 1)?.contiguous()?)
}

/// Takes the `n` tokens behind CLS out again.
fn drop_tokens(x: &Tensor, n: usize) -> CoreResult<Tensor> {
    let rest = x.dim(1)? - 1 - n;
    let (cls, rest) = (x.narrow(1, 0, 1)?, x.narrow(1, 1 + n, rest)?);
    Ok(Tensor::cat(&[&cls, &rest], 1)?.contiguous()?)
}

fn add_loss(sum: &mut Option<Tensor>, injected: &Injection) -> CoreResult<()> {
    if let Some(loss) = &injected.aux_loss {
        *sum = Some(match sum.take() {
            Some(sum) => (sum + loss)?,
            None => loss.clone(),
        });
    }
    Ok(())
}

pub(crate) fn into_core(error: Error) -> candlewick_core::Error {
    match error {
        Error::Tensor(e) => candlewick_core::Error::Tensor(e),
        other => candlewick_core::Error::data(other),
    }
}

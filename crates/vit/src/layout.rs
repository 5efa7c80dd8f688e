//! The names under which the same ViT is found on the Hub, and the way from each to one set of
//! canonical names (timm's).

mod names;
mod sizes;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::position::Resample;
use crate::weights::Weights;
use candlewick_kernels::Activation;
use names::Convert::{
    Convolution, Optional, OutKernel, Rows, Same, Stack, StackBiases, StackKernels, Transpose,
};
use names::{
    CLIP_BLOCK, CLIP_TEXT_TOP, CLIP_TOP, Convert, DINOV2_BLOCK, HF_TOP, HF_VIT_BLOCK, NPZ_BLOCK,
    NPZ_TOP, OPEN_CLIP_BLOCK, OPEN_CLIP_TEXT_TOP, OPEN_CLIP_TOP, Row, TIMM_BLOCK, TIMM_TOP,
};
pub(crate) use sizes::Sizes;

/// A family of tensor names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `blocks.0.attn.qkv.weight` (huggingface/pytorch-image-models, facebookresearch/dinov2).
    Timm,
    /// `encoder.layer.0.attention.attention.query.weight` (transformers `ViTModel`).
    HfVit,
    /// The same with layer scale (transformers `Dinov2Model`, `Dinov2WithRegistersModel`).
    Dinov2,
    /// `Transformer/encoderblock_0/…` (google-research/vision_transformer).
    Npz,
    /// `vision_model.encoder.layers.0.self_attn.q_proj.weight` (transformers `CLIPModel`).
    Clip,
    /// `visual.transformer.resblocks.0.attn.in_proj_weight` (openai/CLIP, mlfoundations/open_clip).
    OpenClip,
}

/// One of the two towers of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tower {
    Image,
    Text,
}

impl Layout {
    /// Name in cards and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timm => "timm",
            Self::HfVit => "hf-vit",
            Self::Dinov2 => "dinov2",
            Self::Npz => "npz",
            Self::Clip => "clip",
            Self::OpenClip => "open-clip",
        }
    }

    /// Layer-norm epsilon of the code that trained it.
    pub fn eps(self) -> f64 {
        match self {
            Self::HfVit => 1e-12,
            Self::Clip | Self::OpenClip => 1e-5,
            _ => 1e-6,
        }
    }

    /// Activation of its MLPs, where neither card nor configuration says: those of the libraries' defaults.
    pub fn activation(self) -> Activation {
        match self {
            Self::Clip => Activation::QuickGelu,
            _ => Activation::Gelu,
        }
    }

    /// Whether a text tower may stand beside the image tower.
    pub fn speaks(self) -> bool {
        matches!(self, Self::Clip | Self::OpenClip)
    }

    /// What stands before the index of a block.
    fn block_prefix(self, tower: Tower) -> &'static str {
        match (self, tower) {
            (Self::Timm, _) => "blocks.",
            (Self::HfVit | Self::Dinov2, _) => "encoder.layer.",
            (Self::Npz, _) => "Transformer/encoderblock_",
            (Self::Clip, Tower::Image) => "vision_model.encoder.layers.",
            (Self::Clip, Tower::Text) => "text_model.encoder.layers.",
            (Self::OpenClip, Tower::Image) => "visual.transformer.resblocks.",
            (Self::OpenClip, Tower::Text) => "transformer.resblocks.",
        }
    }

    fn separator(self) -> char {
        if self == Self::Npz { '/' } else { '.' }
    }

    fn top_table(self, tower: Tower) -> &'static [Row] {
        match (self, tower) {
            (Self::Timm, _) => &TIMM_TOP,
            (Self::HfVit | Self::Dinov2, _) => &HF_TOP,
            (Self::Npz, _) => &NPZ_TOP,
            (Self::Clip, Tower::Image) => &CLIP_TOP,
            (Self::Clip, Tower::Text) => &CLIP_TEXT_TOP,
            (Self::OpenClip, Tower::Image) => &OPEN_CLIP_TOP,
            (Self::OpenClip, Tower::Text) => &OPEN_CLIP_TEXT_TOP,
        }
    }

    fn block_table(self) -> &'static [Row] {
        match self {
            Self::Timm => &TIMM_BLOCK,
            Self::HfVit => &HF_VIT_BLOCK,
            Self::Dinov2 => &DINOV2_BLOCK,
            Self::Npz => &NPZ_BLOCK,
            Self::Clip => &CLIP_BLOCK,
            Self::OpenClip => &OPEN_CLIP_BLOCK,
        }
    }

    /// Tensors that belong to the checkpoint but not to the tower.
    fn is_left_out(self, tower: Tower, name: &str) -> bool {
        let heads: &[&str] = match self {
            Self::Clip => match tower {
                Tower::Image => &[
                    "text_model.",
                    "text_projection.",
                    "visual_projection.",
                    "logit_scale",
                    "vision_model.embeddings.position_ids",
                ],
                Tower::Text => &["vision_model.", "text_model.embeddings.position_ids"],
            },
            Self::OpenClip => match tower {
                Tower::Image => &[
                    "transformer.",
                    "token_embedding.",
                    "positional_embedding",
                    "ln_final.",
                    "text_projection",
                    "logit_scale",
                    "visual.proj",
                    "attn_mask",
                    "input_resolution",
                    "context_length",
                    "vocab_size",
                ],
                Tower::Text => &[
                    "visual.",
                    "attn_mask",
                    "input_resolution",
                    "context_length",
                    "vocab_size",
                ],
            },
            Self::Timm => &[
                "head.",
                "head_dist.",
                "pre_logits.",
                "fc_norm.",
                "mask_token",
            ],
            Self::HfVit | Self::Dinov2 => &["pooler.", "classifier.", "embeddings.mask_token"],
            Self::Npz => &["head/", "pre_logits/"],
        };
        heads.iter().any(|head| name.starts_with(head))
    }
}

/// All canonical tensors of a file.
pub(crate) struct Canonical {
    pub layout: Layout,
    pub sizes: Sizes,
    pub resample: Resample,
    pub tensors: BTreeMap<String, Tensor>,
}

/// Recognises the layout, checks every tensor of the image tower and loads its first `depth` blocks.
pub(crate) fn read(weights: &Weights, depth: Option<usize>, device: &Device) -> Result<Canonical> {
    let file = File::recognise(weights)?;
    if file.depth() == 0 {
        return Err(Error::NoImage {
            file: weights.file().to_owned(),
        });
    }
    let sizes = file.sizes()?;
    load(file, sizes, depth, device)
}

/// The same for the text tower, with the projections of both and the scale.
pub(crate) fn read_text(weights: &Weights, device: &Device) -> Result<Canonical> {
    let mut file = File::recognise(weights)?;
    file.tower = Tower::Text;
    let sizes = file.text_sizes()?;
    load(file, sizes, None, device)
}

fn load(file: File<'_>, sizes: Sizes, depth: Option<usize>, device: &Device) -> Result<Canonical> {
    let weights = file.weights;
    file.check(&sizes)?;
    let used = depth.unwrap_or(sizes.depth);
    if used == 0 || used > sizes.depth {
        let problem = format!(
            "found {used}, but {} has {} blocks; give 1 to {1}",
            weights.file(),
            sizes.depth
        );
        return Err(Error::Option {
            key: "backbone.depth",
            problem,
        });
    }
    let mut tensors = BTreeMap::new();
    for entry in file.entries(used) {
        let sources: Vec<Tensor> = entry
            .present(weights.shapes())
            .map(|name| weights.load(name, device))
            .collect::<Result<_>>()?;
        if !sources.is_empty() {
            tensors.insert(entry.canonical, convert(entry.convert, &sources)?);
        }
    }
    // transformers interpolates Dinov2WithRegistersModel with antialiasing and the others without;
    // timm and open_clip always antialias.
    let resample = match file.layout {
        Layout::HfVit | Layout::Clip => Resample::Cubic,
        Layout::Dinov2 if sizes.registers == 0 => Resample::Cubic,
        _ => Resample::Antialiased,
    };
    Ok(Canonical {
        layout: file.layout,
        sizes: Sizes {
            depth: used,
            ..sizes
        },
        resample,
        tensors,
    })
}

/// One canonical tensor and where it comes from.
struct Entry {
    /// Name with its block.
    canonical: String,
    /// Name without its block.
    short: &'static str,
    sources: Vec<String>,
    convert: Convert,
}

impl Entry {
    /// The sources the file has; of the alternatives of an optional tensor the first.
    fn present<'a>(
        &'a self,
        shapes: &'a BTreeMap<String, Vec<usize>>,
    ) -> impl Iterator<Item = &'a str> {
        let most = match self.convert {
            Optional => 1,
            _ => self.sources.len(),
        };
        let names = self.sources.iter().map(String::as_str);
        names.filter(|name| shapes.contains_key(*name)).take(most)
    }
}

/// A weight file whose layout is known.
struct File<'a> {
    weights: &'a Weights,
    layout: Layout,
    tower: Tower,
    /// What some models put before every name, for example `vit.`.
    prefix: String,
}

impl<'a> File<'a> {
    fn recognise(weights: &'a Weights) -> Result<Self> {
        let shapes = weights.shapes();
        let prefix_of = |tail: &str| {
            let mut prefixes = shapes.keys().filter_map(|name| name.strip_suffix(tail));
            prefixes.next().map(str::to_owned)
        };
        let hf = prefix_of("encoder.layer.0.attention.attention.query.weight");
        let found = if let Some(prefix) = prefix_of("blocks.0.attn.qkv.weight") {
            Some((Layout::Timm, prefix))
        } else if let Some(prefix) = hf {
            let scale = format!("{prefix}encoder.layer.0.layer_scale1.lambda1");
            let layout = match shapes.contains_key(&scale) {
                true => Layout::Dinov2,
                false => Layout::HfVit,
            };
            Some((layout, prefix))
        } else if let Some(p) = prefix_of("vision_model.encoder.layers.0.self_attn.q_proj.weight") {
            Some((Layout::Clip, p))
        } else if let Some(p) = prefix_of("visual.transformer.resblocks.0.attn.in_proj_weight") {
            Some((Layout::OpenClip, p))
        } else if let Some(p) = prefix_of("Transformer/encoderblock_0/LayerNorm_0/scale") {
            Some((Layout::Npz, p))
        } else {
            // The text half of a CLIP whose image tower is in a file of its own.
            prefix_of("text_model.encoder.layers.0.self_attn.q_proj.weight")
                .map(|p| (Layout::Clip, p))
        };
        let Some((layout, prefix)) = found else {
            let first: Vec<String> = shapes.keys().take(4).map(|n| format!("`{n}`")).collect();
            return Err(Error::UnknownLayout {
                file: weights.file().to_owned(),
                first: first.join(", "),
            });
        };
        Ok(Self {
            weights,
            layout,
            tower: Tower::Image,
            prefix,
        })
    }

    fn entries(&self, depth: usize) -> Vec<Entry> {
        let entry = |scope: String, canonical: String, row: &Row| Entry {
            canonical,
            short: row.0,
            sources: row.1.iter().map(|name| format!("{scope}{name}")).collect(),
            convert: row.2,
        };
        let top = self.layout.top_table(self.tower).iter();
        let mut all: Vec<Entry> = top
            .map(|row| entry(self.prefix.clone(), row.0.to_owned(), row))
            .collect();
        for i in 0..depth {
            let scope = self.block_scope(i);
            for row in self.layout.block_table() {
                all.push(entry(scope.clone(), format!("blocks.{i}.{}", row.0), row));
            }
        }
        all
    }

    fn block_scope(&self, i: usize) -> String {
        let layout = self.layout;
        let (blocks, separator) = (layout.block_prefix(self.tower), layout.separator());
        format!("{}{blocks}{i}{separator}", self.prefix)
    }

    fn sizes(&self) -> Result<Sizes> {
        let npz = self.layout == Layout::Npz;
        let patch = self.shape("patch_embed.proj.weight", 4)?;
        let fc1 = self.shape("blocks.0.mlp.fc1.weight", 2)?;
        // The rank of class token and positions is the layout's own.
        let rank = if self.layout.speaks() { 2 } else { 3 };
        let position = self.shape("pos_embed", rank)?;
        let heads = match npz {
            true => Some(self.shape("blocks.0.attn.qkv.weight", 3)?[1]),
            false => None,
        };
        let registers = self.shape("reg_token", 3).map_or(0, |shape| shape[1]);
        Ok(Sizes {
            dim: if npz { patch[3] } else { patch[0] },
            patch: if npz { patch[0] } else { patch[2] },
            mlp: if npz { fc1[1] } else { fc1[0] },
            depth: self.depth(),
            positions: position[rank - 2],
            registers,
            heads,
            vocabulary: 0,
            joint: 0,
            image_dim: 0,
        })
    }

    fn text_sizes(&self) -> Result<Sizes> {
        let shapes = self.weights.shapes();
        if !self.layout.speaks() || self.shape("token_embedding.weight", 2).is_err() {
            return Err(Error::NoText {
                file: self.weights.file().to_owned(),
                layout: self.layout.name(),
                tensors: shapes.len(),
            });
        }
        let tokens = self.shape("token_embedding.weight", 2)?;
        let turned = self.layout == Layout::OpenClip;
        let joint = |shape: &[usize]| match turned {
            true => (shape[1], shape[0]),
            false => (shape[0], shape[1]),
        };
        let (joint, image_dim) = joint(self.shape("visual_projection", 2)?);
        Ok(Sizes {
            dim: tokens[1],
            patch: 0,
            mlp: self.shape("blocks.0.mlp.fc1.weight", 2)?[0],
            depth: self.depth(),
            positions: self.shape("positional_embedding", 2)?[0],
            registers: 0,
            heads: None,
            vocabulary: tokens[0],
            joint,
            image_dim,
        })
    }

    fn depth(&self) -> usize {
        let shapes = self.weights.shapes();
        let has_block = |i: &usize| {
            let scope = self.block_scope(*i);
            shapes.keys().any(|name| name.starts_with(&scope))
        };
        (0..).take_while(has_block).count()
    }

    /// The shape in the file of the first source of a canonical tensor.
    fn shape(&self, canonical: &str, rank: usize) -> Result<&'a [usize]> {
        let entries = self.entries(1);
        let shapes = self.weights.shapes();
        let entry = entries.iter().find(|e| e.canonical == canonical);
        let name = entry.and_then(|e| e.present(shapes).next());
        let problem = match name.and_then(|name| shapes.get(name).map(|s| (name, s))) {
            Some((_, shape)) if shape.len() == rank && shape.iter().all(|&n| n > 0) => {
                return Ok(shape);
            }
            Some((name, shape)) => {
                format!("`{name}` has shape {shape:?}, expected {rank} dimensions")
            }
            None => {
                let sources = entry.map_or_else(Vec::new, |e| e.sources.clone());
                format!("missing `{}`", sources.join("`, `"))
            }
        };
        Err(self.misfit(vec![problem]))
    }

    /// Every tensor must be there, of its shape, and none besides.
    fn check(&self, sizes: &Sizes) -> Result<()> {
        let shapes = self.weights.shapes();
        let mut known = BTreeSet::new();
        let mut problems = Vec::new();
        for entry in self.entries(sizes.depth) {
            let expected = sizes.source_shape(entry.short, entry.convert);
            for name in &entry.sources {
                match shapes.get(name) {
                    Some(shape) if *shape != expected => problems.push(format!(
                        "`{name}` has shape {shape:?}, expected {expected:?}"
                    )),
                    None if entry.convert != Optional => {
                        problems.push(format!("missing `{name}` of shape {expected:?}"))
                    }
                    _ => {}
                }
                known.insert(name.clone());
            }
        }
        for name in shapes.keys().filter(|name| !known.contains(*name)) {
            let own = name.strip_prefix(&self.prefix).unwrap_or(name);
            let left_out = |name| self.layout.is_left_out(self.tower, name);
            if !left_out(own) && !left_out(name) {
                problems.push(format!("surplus `{name}`"));
            }
        }
        match problems.is_empty() {
            true => Ok(()),
            false => Err(self.misfit(problems)),
        }
    }

    fn misfit(&self, problems: Vec<String>) -> Error {
        Error::Tensors {
            file: self.weights.file().to_owned(),
            layout: self.layout.name(),
            problems,
        }
    }
}

fn convert(how: Convert, sources: &[Tensor]) -> Result<Tensor> {
    let first = &sources[0];
    let tensor = match how {
        Same | Optional => first.clone(),
        Stack => Tensor::cat(sources, 0)?,
        Transpose => first.t()?.contiguous()?,
        StackKernels => {
            let rows: Vec<Tensor> = sources
                .iter()
                .map(|kernel| kernel.flatten_from(1)?.t()?.contiguous())
                .collect::<candle_core::Result<_>>()?;
            Tensor::cat(&rows, 0)?
        }
        StackBiases => {
            let rows: Vec<Tensor> = sources
                .iter()
                .map(Tensor::flatten_all)
                .collect::<candle_core::Result<_>>()?;
            Tensor::cat(&rows, 0)?
        }
        OutKernel => first.flatten_to(1)?.t()?.contiguous()?,
        Convolution => first.permute((3, 2, 0, 1))?.contiguous()?,
        Rows => {
            let mut tensor = first.clone();
            while tensor.rank() < 3 {
                tensor = tensor.unsqueeze(0)?;
            }
            tensor
        }
    };
    Ok(tensor)
}

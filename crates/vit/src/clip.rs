//! CLIP's text tower and the joint space of both towers (Radford et al. 2021; `openai/CLIP:clip/model.py`,
//! `mlfoundations/open_clip:src/open_clip/model.py`). The image tower is a [`Vit`](crate::Vit) of the same file.
//!
//! ```text
//! images: E = P_v · f(x)          f: the class token after the last layer norm
//! texts:  E = P_t · g(t)          g: the end token after the last layer norm, causal attention before it
//! ```
//!
//! Tokens behind the end of a text cannot act on it, so texts are as long as the longest of them and not the 77 tokens they
//! might be.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use candlewick_core::{Language, Result as CoreResult, State, TextSpec, ThawedLanguage};
use candlewick_kernels::Activation;

use crate::block::Style;
use crate::error::{Error, Result};
use crate::layers::Linear;
use crate::layout;
use crate::text::TextTower;
use crate::tokenizer::Tokenizer;
use crate::vit::{Precision, heads, into_core};
use crate::weights::Weights;

/// What the tensors of a text tower do not tell.
#[derive(Debug, Clone, Default)]
pub struct TextOptions {
    /// Attention heads; `None`: one per 64 dimensions.
    pub heads: Option<usize>,
    /// Layer-norm epsilon; `None`: the layout's.
    pub eps: Option<f64>,
    /// Activation of the MLPs; `None`: the layout's.
    pub activation: Option<Activation>,
    /// The numbers that frozen weights are multiplied in; attention is in f32.
    pub precision: Precision,
}

/// A text tower with both projections.
pub struct Clip {
    spec: TextSpec,
    file: String,
    tokenizer: Arc<Tokenizer>,
    text: TextTower,
    text_projection: Linear,
    visual_projection: Linear,
    scale: Tensor,
    depth: usize,
    device: Device,
    weights: BTreeMap<String, Tensor>,
}

/// The one weight that never trains.
const SCALE: &str = "logit_scale";

impl Clip {
    /// Reads the text tower of a file in the layout of Transformers or open_clip. In that of Transformers the image tower may be
    /// elsewhere.
    pub fn load(
        weights: &Weights,
        tokenizer: Tokenizer,
        options: &TextOptions,
        device: &Device,
    ) -> Result<Self> {
        let read = layout::read_text(weights, device)?;
        let sizes = read.sizes;
        let style = Style {
            heads: heads(options.heads, sizes.dim)?,
            eps: options.eps.unwrap_or(read.layout.eps()),
            causal: true,
            activation: options.activation.unwrap_or(read.layout.activation()),
            precision: options.precision.resolve(device)?,
        };
        if tokenizer.vocabulary() > sizes.vocabulary {
            return Err(Error::Tokenizer {
                file: weights.file().to_owned(),
                reason: format!(
                    "the tokenizer knows {} tokens, the text tower {}",
                    tokenizer.vocabulary(),
                    sizes.vocabulary
                ),
            });
        }
        let spec = TextSpec {
            dim: sizes.joint,
            width: sizes.dim,
            positions: sizes.positions,
            parameters: read.tensors.values().map(Tensor::elem_count).sum(),
        };
        let file = weights.file().to_owned();
        let tokenizer = Arc::new(tokenizer);
        Self::assemble(
            spec,
            file,
            tokenizer,
            sizes.depth,
            style,
            device,
            read.tensors,
        )
    }

    fn assemble(
        spec: TextSpec,
        file: String,
        tokenizer: Arc<Tokenizer>,
        depth: usize,
        style: Style,
        device: &Device,
        weights: BTreeMap<String, Tensor>,
    ) -> Result<Self> {
        let none = Tensor::zeros(spec.dim, DType::F32, device)?;
        let projection =
            |name: &str| Linear::new(weights[name].clone(), none.clone(), style.precision);
        Ok(Self {
            text: TextTower::new(depth, style, &weights),
            text_projection: projection("text_projection"),
            visual_projection: projection("visual_projection"),
            scale: weights[SCALE].exp()?,
            spec,
            file,
            tokenizer,
            depth,
            device: device.clone(),
            weights,
        })
    }

    /// The same over other tensors.
    fn over(&self, weights: BTreeMap<String, Tensor>) -> Result<Self> {
        let (spec, file) = (self.spec.clone(), self.file.clone());
        let (tokenizer, style) = (self.tokenizer.clone(), self.text.style());
        Self::assemble(
            spec,
            file,
            tokenizer,
            self.depth,
            style,
            &self.device,
            weights,
        )
    }

    /// Every tensor under its canonical name.
    pub fn weights(&self) -> &BTreeMap<String, Tensor> {
        &self.weights
    }

    fn thawed(&self) -> Result<ThawedLanguage> {
        let mut weights = BTreeMap::new();
        let mut tensors = self.weights.clone();
        for (name, tensor) in tensors.iter_mut().filter(|(name, _)| *name != SCALE) {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            weights.insert(name.clone(), var);
        }
        Ok(ThawedLanguage {
            language: Arc::new(self.over(tensors)?),
            weights,
        })
    }

    fn rebuilt(&self, given: &State) -> Result<Self> {
        let mut tensors = self.weights.clone();
        let mut problems = Vec::new();
        for (name, own) in tensors.iter_mut().filter(|(name, _)| *name != SCALE) {
            match given.get(name) {
                None => problems.push(format!("missing `{name}` of shape {:?}", own.dims())),
                Some(new) if new.shape() != own.shape() => problems.push(format!(
                    "`{name}` has shape {:?}, expected {:?}",
                    new.dims(),
                    own.dims()
                )),
                Some(new) => *own = new.detach().to_device(&self.device)?,
            }
        }
        let known = |name: &String| *name != SCALE && self.weights.contains_key(name);
        let surplus = given.keys().filter(|name| !known(name));
        problems.extend(surplus.map(|name| format!("surplus `{name}`")));
        match problems.is_empty() {
            true => self.over(tensors),
            false => Err(Error::Tensors {
                file: "the weights given".into(),
                layout: "text",
                problems,
            }),
        }
    }
}

impl Language for Clip {
    fn spec(&self) -> &TextSpec {
        &self.spec
    }

    fn tokens(&self, text: &str) -> CoreResult<Vec<u32>> {
        let tokens = self.tokenizer.encode(text, self.spec.positions);
        tokens.map_err(into_core)
    }

    fn embed(&self, tokens: &[u32]) -> CoreResult<Tensor> {
        let known = self.text.vocabulary()?;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= known) {
            return Err(into_core(Error::Tokenizer {
                file: self.file.clone(),
                reason: format!("there is a token {token}, the text tower knows {known}"),
            }));
        }
        self.text.embed(tokens, &self.device)
    }

    fn texts(&self, embedded: &Tensor, ends: &[usize]) -> CoreResult<Tensor> {
        let (n, length, width) = embedded.dims3()?;
        let fits = ends.len() == n && ends.iter().all(|end| *end < length);
        if !fits || width != self.spec.width || length > self.spec.positions {
            return Err(candlewick_core::Error::State {
                problem: format!(
                    "{n} texts of {length} tokens of width {width} with ends {ends:?} do not fit a text tower of {} positions and width {}",
                    self.spec.positions, self.spec.width
                ),
            });
        }
        let features = self.text.forward(embedded, ends)?;
        Ok(self.text_projection.forward(&features)?)
    }

    fn images(&self, features: &Tensor) -> CoreResult<Tensor> {
        Ok(self.visual_projection.forward(features)?)
    }

    fn scale(&self) -> CoreResult<Tensor> {
        Ok(self.scale.clone())
    }

    fn thaw(&self) -> CoreResult<ThawedLanguage> {
        self.thawed().map_err(into_core)
    }

    fn with_weights(&self, weights: &State) -> CoreResult<Arc<dyn Language>> {
        Ok(Arc::new(self.rebuilt(weights).map_err(into_core)?))
    }
}

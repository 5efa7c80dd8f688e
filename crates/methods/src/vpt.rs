//! Visual prompt tuning as a continual baseline: the same free tokens for every image, trained on every task (Jia et
//! al. 2022, "Visual Prompt Tuning").
//!
//! ```text
//! shallow:  x_0 = [CLS, P, patches]                    P (L, D), stays through all blocks
//! deep:     x_i = block_i([CLS, P_i, patches])         P (depth, L, D), outputs of P_i dropped behind block i
//! z = CLS after the final norm
//! L = CE(head(z) over the task's classes)
//! ```
//!
//! Prompts carry no position. Sources: `KMnP/vpt:src/models/vit_prompt/vit.py`,
//! `LAMDA-CL/LAMDA-PILOT:backbone/vpt.py` (5240714). PILOT puts the prompts last; attention does not depend on
//! the order of tokens. [`aper`](crate::aper) stops tuning after the first task.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Cue, Error, Init, Injection, Params, Pool, Position, Prompt, Prompted, Result, Site,
    Span, Spec, Tokens, Train,
};
use serde::{Deserialize, Serialize};

/// `[method] name = "vpt"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vpt {
    /// Where prompts enter.
    pub depth: Depth,
    /// Tokens of a prompt, `L`.
    pub length: usize,
    /// How prompts start.
    #[serde(default)]
    pub init: Start,
}

/// Where prompts enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// At the input alone.
    Shallow,
    /// At the input of every block, with tokens of its own.
    Deep,
}

/// How trained tokens start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Uniform within `±sqrt(6 / (fan_in + fan_out))`, as in the paper's code.
    #[default]
    XavierUniform,
    /// As in PILOT. All tokens of a block start alike, carry no position, so receive the same gradient and stay
    /// alike for ever: `L` tokens then act as one whose attention logit is raised by `log L`.
    Zeros,
}

impl Start {
    /// As something that can be drawn.
    pub fn init(self, fan_in: usize, fan_out: usize) -> Init {
        match self {
            Self::Zeros => Init::Zeros,
            Self::XavierUniform => {
                let high = (6.0 / (fan_in + fan_out) as f32).sqrt();
                Init::Uniform { low: -high, high }
            }
        }
    }

    /// The departure from the default rule, for the record.
    pub(crate) fn compat(self, method: &str) -> Vec<String> {
        match self {
            Self::XavierUniform => vec![],
            Self::Zeros => vec![format!("{method}.init=zeros")],
        }
    }
}

impl Vpt {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        if self.length == 0 {
            let problem = "must be greater than 0, found 0";
            return Err(Error::setting("method.length", problem));
        }
        Ok(())
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        self.init.compat("vpt")
    }

    /// Draws the prompts from `seed`.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        seed: u64,
    ) -> Result<Prompted<FreeTokens>> {
        self.check()?;
        Prompted::new(backbone, Pool::Cls, train, seed, |backbone, params| {
            FreeTokens::new(self, backbone.spec(), params)
        })
    }
}

/// Tokens that do not depend on the image.
pub struct FreeTokens {
    depth: Depth,
    /// `(1 or depth, L, D)`.
    prompts: Tensor,
}

impl FreeTokens {
    /// Creates the parameter `prompts`.
    pub fn new(config: &Vpt, spec: &Spec, params: &mut Params) -> Result<Self> {
        let blocks = match config.depth {
            Depth::Shallow => 1,
            Depth::Deep => spec.depth,
        };
        // A token stands where a patch of 3·p² values becomes one of D.
        let init = config.init.init(3 * spec.patch_size.pow(2), spec.dim);
        Ok(Self {
            depth: config.depth,
            prompts: params.create("prompts", &[blocks, config.length, spec.dim], init)?,
        })
    }

    /// The same tokens, never to be trained.
    pub fn fixed(self) -> Self {
        Self {
            prompts: self.prompts.detach(),
            ..self
        }
    }
}

impl Prompt for FreeTokens {
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        let (row, span) = match (self.depth, site) {
            (Depth::Shallow, Site::Embed) => (0, Span::ToTheEnd),
            (Depth::Deep, Site::Block(i)) => (i, Span::ThisBlock),
            _ => return Ok(Injection::default()),
        };
        let (_, length, dim) = self.prompts.dims3()?;
        let own = self.prompts.narrow(0, row, 1)?;
        // Nothing is differentiated at test, and a graph would keep every activation alive.
        let own = match cue.train {
            true => own,
            false => own.detach(),
        };
        let tokens = Tokens {
            values: own.expand((tokens.dim(0)?, length, dim))?,
            span,
            position: Position::None,
        };
        Ok(Injection {
            tokens: Some(tokens),
            ..Injection::default()
        })
    }
}

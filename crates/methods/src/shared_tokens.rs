//! Prompt tokens that are the same for all images, and are read at the end.

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Cue, Injection, Op, Outputs, Position, Prompt, Result, Site, Span, Tokens,
};

/// Tokens that are the same for all images and stay to the end.
pub struct Shared {
    /// `(n, D)`.
    pub values: Tensor,
    /// Where they enter.
    pub site: Site,
    /// Their position there.
    pub position: Position,
    /// Whether outputs are wanted as they are before the last norm.
    pub before_norm: bool,
}

impl Prompt for Shared {
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        if site != self.site {
            return Ok(Injection::default());
        }
        let (n, dim) = self.values.dims2()?;
        let values = match cue.train {
            true => self.values.clone(),
            false => self.values.detach(),
        };
        let tokens = Tokens {
            values: values.unsqueeze(0)?.expand((tokens.dim(0)?, n, dim))?,
            span: Span::ToTheEnd,
            position: self.position,
        };
        Ok(Injection {
            tokens: Some(tokens),
            ..Injection::default()
        })
    }

    fn tunes(&self, op: Op) -> bool {
        self.before_norm && op == Op::Norm
    }

    fn tune(&self, _: Op, input: &Tensor, _: Tensor, _: &Cue) -> Result<Tensor> {
        Ok(input.clone())
    }
}

impl Shared {
    /// The mean of their outputs, `(B, D)`.
    pub fn mean(&self, backbone: &dyn Backbone, images: &Tensor, train: bool) -> Result<Tensor> {
        let cue = Cue {
            train,
            outputs: Outputs::Head,
            ..Cue::default()
        };
        backbone.forward(images, self, &cue)?.prompt_mean()
    }
}

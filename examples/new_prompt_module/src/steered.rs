//! Steered tokens: free tokens that lean, for each image, into a few learned directions.
//!
//! ```text
//! c = S q / |q|                    S (R, D); q: CLS of the plain backbone, no gradient
//! P = base + Σ_r c_r · lean_r      (L, D), behind CLS from the input to the end
//! ```

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Cue, Init, Injection, Params, Pool, Position, Prompt, Prompted, Result, Site, Span,
    Tokens, Train, backbone::l2_normalize,
};

/// The learned tensors of the prompt.
pub struct Steered {
    base: Tensor,  // (1, L, D)
    lean: Tensor,  // (R, L·D)
    steer: Tensor, // (R, D)
}

/// Steered tokens, a head, and the training that `train` says.
pub fn method(backbone: Arc<dyn Backbone>, train: Train, seed: u64) -> Result<Prompted<Steered>> {
    let (length, directions, dim) = (4, 3, backbone.spec().dim);
    let init = Init::Normal { std: 0.1 };
    let draw = |_: &dyn Backbone, params: &mut Params| {
        Ok(Steered {
            base: params.create("base", &[1, length, dim], init)?,
            lean: params.create("lean", &[directions, length * dim], init)?,
            steer: params.create("steer", &[directions, dim], init)?,
        })
    };
    Prompted::new(backbone, Pool::Cls, train, seed, draw)
}

impl Prompt for Steered {
    fn inject(&self, site: Site, _: &Tensor, cue: &Cue) -> Result<Injection> {
        let (Site::Embed, Some(query)) = (site, &cue.query) else {
            return Ok(Injection::default());
        };
        let (_, length, dim) = self.base.dims3()?;
        let c = l2_normalize(query)?.matmul(&self.steer.t()?)?;
        let lean = c.matmul(&self.lean)?.reshape(((), length, dim))?;
        let tokens = Tokens {
            values: lean.broadcast_add(&self.base)?,
            span: Span::ToTheEnd,
            position: Position::None,
        };
        Ok(Injection {
            tokens: Some(tokens),
            ..Default::default()
        })
    }

    fn wants_query(&self) -> bool {
        true
    }
}

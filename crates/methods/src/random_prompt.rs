//! The floor of deep prompts: drawn once, never trained, only the head learns. What a prompt method has above this, it
//! owes to training its prompts; what this has above [`linear`](crate::linear), where prompts are off, any tokens give.
//!
//! ```text
//! P_i ~ U(±sqrt(6 / (3p² + D)))                        (depth, L, D), as VPT starts
//! x_i = block_i([CLS, P_i, patches])                   outputs of P_i dropped behind block i
//! L   = CE(head(CLS) over the task's classes)          moves the head alone
//! ```
//!
//! No paper of its own; insertion and draw are those of [`vpt`](crate::vpt) (`KMnP/vpt:src/models/vit_prompt/vit.py`).

use std::sync::Arc;

use candlewick_core::{Backbone, Params, Pool, Prompted, Result, Train};
use serde::{Deserialize, Serialize};

use crate::vpt::{Depth, FreeTokens, Start, Vpt};

/// `[method] name = "random-prompt"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomPrompt {
    /// Tokens at the input of each block, `L`.
    pub length: usize,
}

impl RandomPrompt {
    fn tokens(&self) -> Vpt {
        Vpt {
            depth: Depth::Deep,
            length: self.length,
            init: Start::XavierUniform,
        }
    }

    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.tokens().check()
    }

    /// Draws the prompts from `seed`. They are not among the parameters: neither counted nor saved, since the seed
    /// gives them again.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        seed: u64,
    ) -> Result<Prompted<FreeTokens>> {
        self.check()?;
        Prompted::new(backbone, Pool::Cls, train, seed, |backbone, _| {
            let mut drawn = Params::seeded(seed, backbone.device());
            Ok(FreeTokens::new(&self.tokens(), backbone.spec(), &mut drawn)?.fixed())
        })
    }
}

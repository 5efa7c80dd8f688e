//! APER: the backbone is tuned on the first task alone, then classes are means of frozen and tuned features side by side (Zhou
//! et al. 2023, "Revisiting Class-Incremental Learning with Pre-Trained Models").
//!
//! ```text
//! first task:  g is tuned, in one of five ways                      see `tuning`
//! every task:  F(x) = [f(x), g(x)]                                  f: the plain backbone; (2D)
//!              w_c = mean_{i: y_i = c} F(x_i)                       training images, test transform, not normalised
//! score_c(x) = cos(F(x), w_c)
//! ```
//!
//! Products are added up over `f` and over `g`: with `g = f` the score is that of [`simplecil`](crate::simplecil), bit for bit. An
//! adapter that was not trained changes nothing, but its block is computed in pieces to let it in, and rounds elsewhere: without
//! epochs `aper` predicts as `simplecil` does, by scores within 5e-7.
//!
//! Source: `LAMDA-CL/LAMDA-PILOT:models/aper_finetune.py`, `aper_vpt.py`, `aper_ssf.py`, `aper_adapter.py`, `utils/inc_net.py`
//! (5240714).

use std::sync::Arc;

use candlewick_core::{Backbone, Result, Train};
use serde::{Deserialize, Serialize};

use crate::classifier::OneLook;
use crate::nearest_mean::{Distance, Nearest, NearestMean};
use crate::tuning::{Look, Tuning};

/// `[method] name = "aper"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aper {
    /// What is tuned on the first task.
    pub tuning: Tuning,
}

impl Aper {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        self.tuning.check()
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        self.tuning.compat("aper")
    }

    /// Draws what is tuned from `seed`. `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<OneLook<Nearest>> {
        self.check()?;
        let look = Look::new(backbone, Some(&self.tuning), Some(train), seed, true)?;
        let means = NearestMean {
            distance: Distance::Cosine,
            shrinkage: None,
        };
        let nearest = means.classifier(look.dim(), 2);
        Ok(OneLook::new(look, nearest, batch))
    }
}

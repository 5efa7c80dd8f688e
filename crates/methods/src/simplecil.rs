//! SimpleCIL: class means of the frozen feature as a cosine classifier (Zhou et al. 2023,
//! "Revisiting Class-Incremental Learning with Pre-Trained Models"; `LAMDA-CL/LAMDA-PILOT:models/simplecil.py`).
//!
//! `w_c = mean_{i: y_i = c} f(x_i)` over the training images with the test transform, not
//! normalised; `score_c(x) = cos(f(x), w_c)`. It is [`nearest_mean`](crate::nearest_mean) by cosine.

use std::sync::Arc;

use candlewick_core::Backbone;
use serde::{Deserialize, Serialize};

use crate::classifier::OneLook;
use crate::nearest_mean::{Distance, Nearest, NearestMean};
use crate::tuning::Look;

/// `[method] name = "simplecil"` has no keys of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimpleCil {}

impl SimpleCil {
    /// `batch` images are looked at together; it does not change the result.
    pub fn build(&self, backbone: Arc<dyn Backbone>, batch: usize) -> OneLook<Nearest> {
        let means = NearestMean {
            distance: Distance::Cosine,
            shrinkage: None,
        };
        let nearest = means.classifier(backbone.spec().dim, 1);
        OneLook::new(Look::frozen(backbone), nearest, batch)
    }
}

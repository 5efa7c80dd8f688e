//! A second backbone beside the first, as in PromptFusion.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{Backbone, Result};

/// The second backbone, which looks at the pictures of the first.
#[derive(Clone)]
pub struct Booster {
    backbone: Arc<dyn Backbone>,
    /// `x · scale + shift`, channel by channel, makes its pixels of those of the first.
    scale: [f32; 3],
    shift: [f32; 3],
}

/// Mean and standard deviation of each channel.
pub type MeanStd = ([f64; 3], [f64; 3]);

impl Booster {
    /// For images of the same size as the first, whose pixels are prepared by `first`, its own by `own`.
    pub fn new(backbone: Arc<dyn Backbone>, first: MeanStd, own: MeanStd) -> Self {
        let ((m1, s1), (m2, s2)) = (first, own);
        Self {
            backbone,
            scale: std::array::from_fn(|c| (s1[c] / s2[c]) as f32),
            shift: std::array::from_fn(|c| ((m1[c] - m2[c]) / s2[c]) as f32),
        }
    }

    /// The network.
    pub fn backbone(&self) -> &dyn Backbone {
        self.backbone.as_ref()
    }

    /// Its pixels of those of the first.
    pub(crate) fn pixels(&self, images: &Tensor) -> Result<Tensor> {
        let channels = |v: &[f32; 3]| Tensor::from_slice(v, (1, 3, 1, 1), images.device());
        let scaled = images.broadcast_mul(&channels(&self.scale)?)?;
        Ok(scaled.broadcast_add(&channels(&self.shift)?)?)
    }

    /// With pixels that are prepared alike.
    pub fn same(backbone: Arc<dyn Backbone>) -> Self {
        let plain = ([0.0; 3], [1.0; 3]);
        Self::new(backbone, plain, plain)
    }
}

//! A backbone that answers queries from a store of features.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::{
    Backbone, Batch, Cue, Error, Features, Language, Prompt, Result, Spec, State, Thawed,
};
use candlewick_store::{Key, Store};

/// `keys[id]` is the content of the image with this id.
pub struct Stored {
    pub backbone: Arc<dyn Backbone>,
    pub store: Store,
    pub keys: Vec<Key>,
}

impl Stored {
    /// The rows of a batch, if all of them are there.
    fn rows(&self, batch: &Batch) -> Option<Vec<f32>> {
        let mut rows = Vec::with_capacity(batch.len() * self.spec().dim);
        let found = |id: &u64| {
            let key = self.keys.get(*id as usize);
            key.is_some_and(|key| self.store.read(key, &mut rows))
        };
        batch.ids.iter().all(found).then_some(rows)
    }
}

impl Backbone for Stored {
    fn spec(&self) -> &Spec {
        self.backbone.spec()
    }

    fn device(&self) -> &Device {
        self.backbone.device()
    }

    fn forward(&self, images: &Tensor, prompt: &dyn Prompt, cue: &Cue) -> Result<Features> {
        self.backbone.forward(images, prompt, cue)
    }

    fn cls_token(&self) -> Result<Tensor> {
        self.backbone.cls_token()
    }

    fn norm(&self, x: &Tensor) -> Result<Tensor> {
        self.backbone.norm(x)
    }

    fn language(&self) -> Option<Arc<dyn Language>> {
        self.backbone.language()
    }

    // Other weights have other features, so no copy answers from the store.
    fn thaw(&self) -> Result<Thawed> {
        self.backbone.thaw()
    }

    fn with_weights(&self, weights: &State) -> Result<Arc<dyn Backbone>> {
        self.backbone.with_weights(weights)
    }

    fn query(&self, images: &Tensor) -> Result<Tensor> {
        self.backbone.query(images)
    }

    fn query_batch(&self, batch: &Batch) -> Result<Tensor> {
        let rows = match batch.plain {
            true => self.rows(batch),
            false => None,
        };
        match rows {
            Some(rows) => {
                let shape = (batch.len(), self.spec().dim);
                Ok(Tensor::from_vec(rows, shape, self.device())?)
            }
            None if batch.images.elem_count() > 0 => self.query(&batch.images),
            None => Err(Error::State {
                problem: "an image has neither pixels nor a stored feature".into(),
            }),
        }
    }
}

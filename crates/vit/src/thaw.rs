//! A backbone whose own weights train, and back.
//!
//! Positions train as they are used: at the size of the images, after any resampling, as timm does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use candlewick_core::{Backbone as _, State, Thawed};

use crate::error::{Error, Result};
use crate::vit::Vit;

/// The one tensor that is not taken as it is in the file.
const POSITIONS: &str = "pos_embed";

impl Vit {
    /// Every weight as it is used, under its canonical name.
    fn used(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = self.weights().clone();
        weights.insert(POSITIONS.into(), self.position_embedding()?);
        Ok(weights)
    }

    /// The same network over variables, which are in f32 whatever the precision of products.
    pub(crate) fn thawed(&self) -> Result<Thawed> {
        let mut weights = BTreeMap::new();
        for (name, tensor) in self.used()? {
            weights.insert(name, Var::from_tensor(&tensor)?);
        }
        let tensors = weights
            .iter()
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()));
        Ok(Thawed {
            backbone: Arc::new(self.over(tensors.collect())?),
            weights,
        })
    }

    /// A frozen copy with other weights of the same names and shapes.
    pub(crate) fn rebuilt(&self, weights: &State) -> Result<Self> {
        let used = self.used()?;
        let mut problems = Vec::new();
        let mut own = BTreeMap::new();
        for (name, old) in &used {
            match weights.get(name) {
                None => problems.push(format!("missing `{name}` of shape {:?}", old.dims())),
                Some(new) if new.shape() != old.shape() => problems.push(format!(
                    "`{name}` has shape {:?}, expected {:?}",
                    new.dims(),
                    old.dims()
                )),
                Some(new) => {
                    own.insert(name.clone(), new.detach().to_device(self.device())?);
                }
            }
        }
        let surplus = weights.keys().filter(|name| !used.contains_key(*name));
        problems.extend(surplus.map(|name| format!("surplus `{name}`")));
        match problems.is_empty() {
            true => self.over(own),
            false => Err(Error::Tensors {
                file: "the weights given".into(),
                layout: self.layout().name(),
                problems,
            }),
        }
    }

    /// This network over `weights`, whose positions are those in use.
    fn over(&self, weights: BTreeMap<String, Tensor>) -> Result<Self> {
        let positions = &weights[POSITIONS];
        let patches = self.spec().patches();
        let first = positions.dim(1)? - patches;
        let cls = match first {
            0 => None,
            _ => Some(positions.narrow(1, 0, 1)?),
        };
        let positions = (cls, positions.narrow(1, first, patches)?);
        self.with(weights, positions)
    }
}

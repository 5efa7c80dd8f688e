//! A backbone of ViT-B/16's sizes without weights: enough to count what a method trains.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candlewick_core::{Backbone, Cue, Error, Features, Method, Prompt, Result, Spec};
use candlewick_methods::MethodConfig;

use crate::lab::{quick, task};

struct Base(Spec);

impl Backbone for Base {
    fn spec(&self) -> &Spec {
        &self.0
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn cls_token(&self) -> Result<Tensor> {
        let shape = (1, 1, self.0.dim);
        Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
    }

    fn forward(&self, _: &Tensor, _: &dyn Prompt, _: &Cue) -> Result<Features> {
        Err(Error::State {
            problem: "there are no weights here".into(),
        })
    }
}

/// The sizes of ViT-B/16.
pub fn spec() -> Spec {
    Spec {
        image_size: 224,
        patch_size: 16,
        dim: 768,
        depth: 12,
        heads: 12,
        mlp_dim: 3072,
        registers: 0,
        parameters: 0,
    }
}

/// The method on a base model, before any task.
pub fn on_base(config: &MethodConfig) -> Box<dyn Method> {
    config
        .build(Arc::new(Base(spec())), Some(&quick()), 16, 0)
        .unwrap()
}

/// Trainable values on a base model after `tasks` tasks of `classes` classes.
pub fn trainable(config: &MethodConfig, tasks: usize, classes: usize) -> usize {
    let mut method = on_base(config);
    for t in 0..tasks {
        method
            .begin_task(&task(t, t * classes..(t + 1) * classes))
            .unwrap();
    }
    method.trainable()
}

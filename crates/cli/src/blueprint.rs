//! A backbone and a text tower of known sizes without weights: enough to count what a method would train.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candlewick_core::{
    Backbone, Cue, Error, Features, Language, Prompt, Result, Spec, TextSpec, Thawed,
    ThawedLanguage,
};

/// A backbone that cannot look.
pub struct Blueprint {
    spec: Spec,
    text: Option<Arc<BlankText>>,
}

impl Blueprint {
    /// With a text tower where its sizes are given.
    pub fn new(spec: &Spec, text: Option<TextSpec>) -> Self {
        Self {
            spec: spec.clone(),
            text: text.map(|text| Arc::new(BlankText(text))),
        }
    }
}

impl Backbone for Blueprint {
    fn spec(&self) -> &Spec {
        &self.spec
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn forward(&self, _: &Tensor, _: &dyn Prompt, _: &Cue) -> Result<Features> {
        Err(Error::State {
            problem: "a blueprint of a backbone cannot look at images".into(),
        })
    }

    fn cls_token(&self) -> Result<Tensor> {
        let shape = (1, 1, self.spec.dim);
        Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
    }

    fn language(&self) -> Option<Arc<dyn Language>> {
        let text = self.text.clone()?;
        Some(text)
    }

    fn thaw(&self) -> Result<Thawed> {
        Ok(Thawed {
            backbone: Arc::new(Self {
                spec: self.spec.clone(),
                text: self.text.clone(),
            }),
            weights: BTreeMap::new(),
        })
    }
}

/// A text tower of known sizes without weights; all texts are alike to it.
struct BlankText(TextSpec);

impl BlankText {
    fn rows(n: usize, width: usize) -> Result<Tensor> {
        Ok(Tensor::ones((n, width), DType::F32, &Device::Cpu)?)
    }
}

impl Language for BlankText {
    fn spec(&self) -> &TextSpec {
        &self.0
    }

    fn tokens(&self, _: &str) -> Result<Vec<u32>> {
        Ok(vec![0; 3])
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        Self::rows(tokens.len(), self.0.width)
    }

    fn texts(&self, embedded: &Tensor, _: &[usize]) -> Result<Tensor> {
        Self::rows(embedded.dim(0)?, self.0.dim)
    }

    fn images(&self, features: &Tensor) -> Result<Tensor> {
        Self::rows(features.dim(0)?, self.0.dim)
    }

    fn encode(&self, texts: &[String]) -> Result<Tensor> {
        Self::rows(texts.len(), self.0.dim)
    }

    fn scale(&self) -> Result<Tensor> {
        Ok(Tensor::ones((), DType::F32, &Device::Cpu)?)
    }

    fn thaw(&self) -> Result<ThawedLanguage> {
        Ok(ThawedLanguage {
            language: Arc::new(Self(self.0.clone())),
            weights: BTreeMap::new(),
        })
    }
}

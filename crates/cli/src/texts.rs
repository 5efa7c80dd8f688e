//! A text tower whose embeddings of whole texts are kept on disk: eighty sentences about a thousand classes take minutes, and say the
//! same in every run.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::{Error, Language, Result, State, TextSpec, ThawedLanguage};
use candlewick_models::Located;
use candlewick_store::{Dtype, Identity, Key, Store, Writer, key};

use crate::features::{ENDING, code, folder};
use crate::prepare::Plan;

/// `inner`, asked for the texts alone that `path` has not.
struct Kept {
    inner: Arc<dyn Language>,
    path: PathBuf,
    identity: Identity,
    device: Device,
}

/// The text tower of a plan with its embeddings kept beside the features, unless the recipe keeps none.
pub fn kept(
    plan: &Plan,
    located: &Located,
    precision: &str,
    inner: Arc<dyn Language>,
) -> Arc<dyn Language> {
    let (Some(files), true) = (&located.text, plan.keeps_features()) else {
        return inner;
    };
    let identity = Identity {
        feature: "text".into(),
        weights: files.sha256.clone(),
        depth: 0,
        heads: 0,
        eps: 0.0,
        preprocess: String::new(),
        precision: precision.into(),
        device: plan.recipe.device.clone(),
        code: code(),
        dtype: Dtype::F32,
        dim: inner.spec().dim,
    };
    Arc::new(Kept {
        path: folder().join(format!("texts-{}{ENDING}", &identity.digest()[..16])),
        device: plan.device.clone(),
        inner,
        identity,
    })
}

impl Kept {
    fn store(&self) -> candlewick_store::Result<Option<Store>> {
        Store::open_as(&self.path, &self.identity)
    }

    /// Encodes those that are not there, and writes them down.
    fn fill(&self, texts: &[String], keys: &[Key]) -> Result<()> {
        let store = self.store().map_err(Error::data)?;
        let there = |key: &Key| store.as_ref().is_some_and(|store| store.contains(key));
        let missing = texts.iter().zip(keys).filter(|(_, key)| !there(key));
        let (texts, keys): (Vec<String>, Vec<Key>) =
            missing.map(|(text, key)| (text.clone(), *key)).unzip();
        drop(store);
        if texts.is_empty() {
            return Ok(());
        }
        let rows: Vec<Vec<f32>> = self.inner.encode(&texts)?.to_vec2()?;
        let mut writer = Writer::open(&self.path, &self.identity, || {}).map_err(Error::data)?;
        for (key, row) in keys.into_iter().zip(rows) {
            writer.push(key, row).map_err(Error::data)?;
        }
        writer.finish().map_err(Error::data)
    }
}

impl Language for Kept {
    fn spec(&self) -> &TextSpec {
        self.inner.spec()
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.inner.tokens(text)
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        self.inner.embed(tokens)
    }

    fn texts(&self, embedded: &Tensor, ends: &[usize]) -> Result<Tensor> {
        self.inner.texts(embedded, ends)
    }

    fn images(&self, features: &Tensor) -> Result<Tensor> {
        self.inner.images(features)
    }

    fn encode(&self, texts: &[String]) -> Result<Tensor> {
        let keys: Vec<Key> = texts.iter().map(|text| key(text.as_bytes())).collect();
        self.fill(texts, &keys)?;
        let store = self.store().map_err(Error::data)?;
        let mut rows = Vec::with_capacity(texts.len() * self.spec().dim);
        let all = store.is_some_and(|store| keys.iter().all(|key| store.read(key, &mut rows)));
        match all {
            true => {
                let shape = (texts.len(), self.spec().dim);
                Ok(Tensor::from_vec(rows, shape, &self.device)?)
            }
            // Somebody took the file away meanwhile.
            false => self.inner.encode(texts),
        }
    }

    fn scale(&self) -> Result<Tensor> {
        self.inner.scale()
    }

    // Other weights have other embeddings, so no copy answers from the file.
    fn thaw(&self) -> Result<ThawedLanguage> {
        self.inner.thaw()
    }

    fn with_weights(&self, weights: &State) -> Result<Arc<dyn Language>> {
        self.inner.with_weights(weights)
    }
}

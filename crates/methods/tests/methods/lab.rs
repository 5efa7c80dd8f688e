//! What the tests share: the fixtures' backbone, a small pretrained one, a stream that asks much.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::{
    Backbone, Cue, Features, Method, OptimizerKind, Prompt, Result, Spec, Stream, TaskInfo, Train,
};
use candlewick_data::{
    ClassIncremental, Domain, Loader, OnCorrupt, Order, Parts, Preprocess, RgbImage, Source,
    class_incremental, demo, domain_incremental,
};
use candlewick_methods::{MethodConfig, conformance};
use candlewick_vit::{Clip, Options, Precision, TextOptions, Tokenizer, Vit, Weights};

use crate::near::{assert_near, precisions};

pub type Tensors = HashMap<String, Tensor>;

pub fn tensors(path: PathBuf) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The tiny timm ViT that the fixtures were computed on.
pub fn tiny() -> Arc<Vit> {
    tiny_in(Precision::F32)
}

pub fn tiny_in(precision: Precision) -> Arc<Vit> {
    let all = tensors(here("../vit/tests/fixtures/vit_timm/data.safetensors"));
    let weights: Tensors = all
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("w.")?.to_owned(), t.clone())))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    candle_core::safetensors::save(&weights, &path).unwrap();
    let options = Options {
        heads: Some(4),
        precision,
        ..Options::default()
    };
    let weights = Weights::open(&path).unwrap();
    Arc::new(Vit::load(&weights, &options, &Device::Cpu).unwrap())
}

/// The tiny CLIP of the fixtures for images of `size` pixels, and its text tower, with token embeddings that were drawn.
pub fn clip_in(precision: Precision, size: usize) -> (Arc<Vit>, Arc<Clip>) {
    let noise = (0..49408 * 32).map(|i: u64| {
        let x = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        x as f32 / (1u64 << 24) as f32 - 0.5
    });
    clip_of(&clip_weights(noise.collect()), precision, size)
}

pub const CLIP: &str = "../vit/tests/fixtures/clip";

/// Its weights with the token embeddings of the fixture, of which all but a few are 0.
pub fn clip_fixture() -> Tensors {
    let data = tensors(here(CLIP).join("data.safetensors"));
    let mut tokens = vec![0f32; 49408 * 32];
    let ids: Vec<i64> = data["in.token_rows.ids"].to_vec1().unwrap();
    let rows: Vec<Vec<f32>> = data["in.token_rows.values"].to_vec2().unwrap();
    for (id, row) in ids.iter().zip(rows) {
        tokens[*id as usize * 32..][..32].copy_from_slice(&row);
    }
    clip_weights(tokens)
}

fn clip_weights(tokens: Vec<f32>) -> Tensors {
    let mut weights = tensors(here(CLIP).join("clip_without_token_embedding.safetensors"));
    let tokens = Tensor::from_vec(tokens, (49408, 32), &Device::Cpu).unwrap();
    let name = "text_model.embeddings.token_embedding.weight";
    weights.insert(name.into(), tokens);
    weights
}

/// Both towers of these weights.
pub fn clip_of(weights: &Tensors, precision: Precision, size: usize) -> (Arc<Vit>, Arc<Clip>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    candle_core::safetensors::save(weights, &path).unwrap();
    let weights = Weights::open(&path).unwrap();
    let options = TextOptions {
        heads: Some(4),
        precision,
        ..TextOptions::default()
    };
    let tokenizer = Tokenizer::open(&here(CLIP).join("tokenizer.json")).unwrap();
    let clip = Arc::new(Clip::load(&weights, tokenizer, &options, &Device::Cpu).unwrap());
    let options = Options {
        heads: Some(4),
        image_size: Some(size),
        precision,
        ..Options::default()
    };
    let vit = Vit::load(&weights, &options, &Device::Cpu).unwrap();
    (Arc::new(vit.speaking(clip.clone())), clip)
}

pub fn max_abs(t: &Tensor) -> f32 {
    t.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    max_abs(&(a - b).unwrap())
}

/// In f32 no value further off than `bound`; in bf16 near.
pub fn holds(precision: Precision, got: &Tensor, want: &Tensor, bound: f32, what: &str) {
    if precision == Precision::Bf16 {
        return assert_near(what, got, want);
    }
    let far = difference(got, want);
    assert!(far < bound, "{what}: {far:e}");
}

/// In f32 no value further off than 1e-4 of the largest; in bf16 near.
pub fn gradient_holds(precision: Precision, got: &Tensor, want: &Tensor, what: &str) {
    holds(precision, got, want, 1e-4 * max_abs(want), what);
}

/// A backbone whose queries are the fixture's own. Where two keys are about as near to a query, the rounding of bf16
/// may choose the other one, and nothing behind it can then be compared.
pub struct Given {
    pub vit: Arc<Vit>,
    pub query: Tensor,
}

impl Backbone for Given {
    fn spec(&self) -> &Spec {
        self.vit.spec()
    }

    fn device(&self) -> &Device {
        self.vit.device()
    }

    fn forward(&self, images: &Tensor, prompt: &dyn Prompt, cue: &Cue) -> Result<Features> {
        self.vit.forward(images, prompt, cue)
    }

    fn query(&self, images: &Tensor) -> Result<Tensor> {
        assert_eq!(images.dim(0)?, self.query.dim(0)?, "the fixture's batch");
        Ok(self.query.clone())
    }
}

/// The fixture's backbone for methods that choose by its query: with its own in f32, with the fixture's in bf16.
pub fn choosing(precision: Precision, query: &Tensor) -> Arc<dyn Backbone> {
    let vit = tiny_in(precision);
    match precision {
        Precision::Bf16 => Arc::new(Given {
            vit,
            query: query.clone(),
        }),
        _ => vit,
    }
}

pub fn task(index: usize, classes: std::ops::Range<usize>) -> TaskInfo {
    TaskInfo {
        index,
        names: classes.clone().map(|c| format!("class {c}")).collect(),
        classes,
        train_len: 0,
        test_len: 0,
    }
}

/// Thirteen classes of the demo data in tasks of 6, 1 and 4, then an odd last one of 2.
pub fn odd_stream(augmented: bool) -> Stream {
    let spec = ClassIncremental {
        sizes: Some(vec![6, 1, 4, 2]),
        order: Order::Natural,
        ..Default::default()
    };
    let parts = first_classes(demo().unwrap(), 13, false);
    class_incremental(&parts, &spec, &loader(augmented)).unwrap()
}

/// Eight of them in three domains, which are the artists. One class comes with the second.
pub fn domain_stream() -> Stream {
    let parts = first_classes(demo().unwrap(), 8, true);
    domain_incremental(&parts, Domain::Folder, &Order::Natural, &loader(false)).unwrap()
}

pub fn loader(augmented: bool) -> Loader {
    let mut text = String::from(
        r#"
        resize = 73
        crop = 64
        interpolation = "bicubic"
        mean = [0.5, 0.5, 0.5]
        std = [0.5, 0.5, 0.5]
        "#,
    );
    if augmented {
        text += r#"
        train = "random-resized-crop"
        scale = [0.5, 1.0]
        ratio = [0.75, 1.33]
        flip = true
        "#;
    }
    let preprocess: Preprocess = toml::from_str(&text).unwrap();
    Loader::new(&preprocess, 2, OnCorrupt::Stop).unwrap()
}

/// The class that the first domain lacks.
pub const LATE: usize = 2;

fn first_classes(parts: Parts, n: usize, by_artist: bool) -> Parts {
    let cut = |inner: Arc<dyn Source>, training: bool| -> Arc<dyn Source> {
        let late = |i: usize| {
            by_artist && training && inner.label(i) == LATE && artist(&inner.name(i)) == "a"
        };
        let keep = (0..inner.len()).filter(|&i| inner.label(i) < n && !late(i));
        let (keep, classes) = (keep.collect(), inner.classes()[..n].to_vec());
        Arc::new(Few {
            inner,
            keep,
            classes,
            by_artist,
        })
    };
    Parts {
        train: cut(parts.train, true),
        test: cut(parts.test, false),
    }
}

/// The domain of an image by who drew it.
fn artist(name: &str) -> &'static str {
    match name.rsplit('/').next().unwrap_or_default() {
        file if file.starts_with("fluent") => "b",
        file if file.starts_with("noto") || file.starts_with("twemoji") => "c",
        _ => "a",
    }
}

/// Some of the images of another source.
struct Few {
    inner: Arc<dyn Source>,
    keep: Vec<usize>,
    classes: Vec<String>,
    /// Whether names have the folder of their artist.
    by_artist: bool,
}

impl Source for Few {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        self.keep.len()
    }

    fn label(&self, index: usize) -> usize {
        self.inner.label(self.keep[index])
    }

    fn name(&self, index: usize) -> String {
        let name = self.inner.name(self.keep[index]);
        match (self.by_artist, name.rsplit_once('/')) {
            (true, Some((folder, file))) => format!("{folder}/{}/{file}", artist(file)),
            _ => name,
        }
    }

    fn rgb(&self, index: usize) -> candlewick_data::Result<RgbImage> {
        self.inner.rgb(self.keep[index])
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

pub fn micro() -> Arc<Vit> {
    micro_in(Precision::F32)
}

pub fn micro_in(precision: Precision) -> Arc<Vit> {
    let located = candlewick_models::resolve(
        "vit-micro",
        &candlewick_models::Options::new(candlewick_models::HubConfig::at("nowhere")),
    )
    .unwrap();
    let candlewick_models::Weights::Embedded(bytes) = located.weights else {
        panic!("vit-micro is embedded");
    };
    let options = Options {
        heads: Some(4),
        depth: Some(2),
        precision,
        ..Options::default()
    };
    let weights = Weights::embedded("vit-micro", bytes).unwrap();
    Arc::new(Vit::load(&weights, &options, &Device::Cpu).unwrap())
}

pub fn quick() -> Train {
    Train::new(2, 16, OptimizerKind::Adam, 0.01)
}

/// In every precision of this machine; on a stream of domains in f32, where the method takes one.
pub fn conforms(config: MethodConfig, augmented: bool) -> Result<()> {
    for precision in precisions() {
        conforms_in(precision, &config, &odd_stream(augmented))?;
    }
    match config.takes_classes_again() {
        true => conforms_in(Precision::F32, &config, &domain_stream()),
        false => Ok(()),
    }
}

fn conforms_in(precision: Precision, config: &MethodConfig, stream: &Stream) -> Result<()> {
    let backbone = match config.reads_texts() {
        true => clip_in(precision, 64).0,
        false => micro_in(precision),
    };
    let weights = backbone.weights().clone();
    let train_table = config.trains().then(quick);
    let build = || -> Result<Box<dyn Method>> {
        config.build(backbone.clone(), train_table.as_ref(), 16, 5)
    };
    conformance::check(&build, stream, &weights)
}

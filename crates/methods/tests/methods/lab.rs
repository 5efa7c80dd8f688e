//! What the tests share: the fixtures' backbone, a small pretrained one, a stream that asks much.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::{Method, OptimizerKind, Result, Schedule, Stream, TaskInfo, Train};
use candlewick_data::{
    ClassIncremental, Loader, OnCorrupt, Order, Parts, Preprocess, RgbImage, Source,
    class_incremental, demo,
};
use candlewick_methods::{MethodConfig, conformance};
use candlewick_vit::{Options, Vit, Weights};

pub type Tensors = HashMap<String, Tensor>;

pub fn tensors(path: PathBuf) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The tiny timm ViT that the fixtures were computed on.
pub fn tiny() -> Arc<Vit> {
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
        ..Options::default()
    };
    let weights = Weights::open(&path).unwrap();
    Arc::new(Vit::load(&weights, &options, &Device::Cpu).unwrap())
}

pub fn max_abs(t: &Tensor) -> f32 {
    t.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

pub fn difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    max_abs(&(a - b).unwrap())
}

pub fn task(index: usize, classes: std::ops::Range<usize>) -> TaskInfo {
    TaskInfo {
        index,
        classes,
        train_len: 0,
        test_len: 0,
    }
}

/// Thirteen classes of the demo data in tasks of 6, 1 and 4, then an odd last one of 2.
pub fn odd_stream(augmented: bool) -> Stream {
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
    let loader = Loader::new(&preprocess, 2, OnCorrupt::Stop).unwrap();
    let parts = demo().unwrap();
    let spec = ClassIncremental {
        sizes: Some(vec![6, 1, 4, 2]),
        order: Order::Natural,
        ..Default::default()
    };
    class_incremental(&first_classes(parts, 13), &spec, &loader).unwrap()
}

fn first_classes(parts: Parts, n: usize) -> Parts {
    let cut = |inner: Arc<dyn Source>| -> Arc<dyn Source> {
        let keep = (0..inner.len()).filter(|&i| inner.label(i) < n).collect();
        let classes = inner.classes()[..n].to_vec();
        Arc::new(Few {
            inner,
            keep,
            classes,
        })
    };
    Parts {
        train: cut(parts.train),
        test: cut(parts.test),
    }
}

/// Some of the images of another source.
struct Few {
    inner: Arc<dyn Source>,
    keep: Vec<usize>,
    classes: Vec<String>,
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
        self.inner.name(self.keep[index])
    }

    fn rgb(&self, index: usize) -> candlewick_data::Result<RgbImage> {
        self.inner.rgb(self.keep[index])
    }

    fn fingerprint(&self) -> String {
        self.inner.fingerprint()
    }
}

pub fn micro() -> Arc<Vit> {
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
        ..Options::default()
    };
    let weights = Weights::embedded("vit-micro", bytes).unwrap();
    Arc::new(Vit::load(&weights, &options, &Device::Cpu).unwrap())
}

pub fn quick() -> Train {
    Train {
        epochs: 2,
        batch: 16,
        optimizer: OptimizerKind::Adam,
        lr: 0.01,
        schedule: Schedule::Constant,
        weight_decay: 0.0,
        clip: None,
    }
}

pub fn conforms(config: MethodConfig, augmented: bool) -> Result<()> {
    let backbone = micro();
    let weights = backbone.weights().clone();
    let train_table = config.about().trains.then(quick);
    let build = || -> Result<Box<dyn Method>> {
        config.build(backbone.clone(), train_table.as_ref(), 16, 5)
    };
    conformance::check(&build, &odd_stream(augmented), &weights)
}

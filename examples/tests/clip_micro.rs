//! The shipped `clip-micro` with the embedded backbone and images.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use candle_core::Device;
use candlewick_core::language::unit;
use candlewick_core::{Backbone as _, Language, View};
use candlewick_examples::{tasks, vit_micro};
use candlewick_vit::{Clip, TextOptions, Tokenizer, Weights};

fn shipped() -> Clip {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/clip-micro");
    let weights = Weights::open(&folder.join("model.safetensors")).unwrap();
    let tokenizer = Tokenizer::open(&folder.join("tokenizer.json")).unwrap();
    Clip::load(&weights, tokenizer, &TextOptions::default(), &Device::Cpu).unwrap()
}

/// None of the 50 classes was seen in training; by chance 2 of the 100 images are right.
#[test]
fn classes_are_found_by_their_names() {
    let clip = shipped();
    let (vit, preprocess) = vit_micro().unwrap();
    assert_eq!(clip.spec().positions, 32);
    let stream = tasks(&candlewick_data::demo().unwrap(), 50, &preprocess).unwrap();
    let task = &stream.tasks[0];
    let names = task.info.names.iter();
    let prompts: Vec<String> = names.map(|name| format!("a photo of a {name}")).collect();
    let texts = unit(&clip.encode(&prompts).unwrap()).unwrap();
    let mut right = 0;
    for batch in task.test.batches(View::Plain, 32) {
        let batch = batch.unwrap();
        let images = clip.images(&vit.query(&batch.images).unwrap()).unwrap();
        let cosines = unit(&images).unwrap().matmul(&texts.t().unwrap()).unwrap();
        let found: Vec<u32> = cosines.argmax(1).unwrap().to_vec1().unwrap();
        right += found
            .iter()
            .zip(&batch.labels)
            .filter(|(a, b)| a == b)
            .count();
    }
    assert!(right >= 8, "{right} of {} images", task.test.len());
}

/// Names of folders are words, and any text has tokens.
#[test]
fn any_text_is_read() {
    let clip = shipped();
    let tokens = |text: &str| clip.tokens(text).unwrap();
    assert_eq!(tokens("hot-air_balloon"), tokens("Hot  air balloon"));
    for text in ["", "Ωμέγα", "🦆", "\u{0}\u{1}"] {
        let tokens = tokens(text);
        assert_eq!((tokens[0], tokens[tokens.len() - 1]), (0, 1), "{text}");
    }
    assert_eq!(tokens(&"cat ".repeat(100)).len(), 32);
}

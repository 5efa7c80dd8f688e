//! Whole passes of the embedded ViT: plain forward, and training steps of three prompt methods.
//!
//! `cargo bench -p candlewick-bench`

#![allow(clippy::expect_used)] // a benchmark without its model has nothing better to do than stop

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use candle_core::Device;
use candlewick_bench::{Kind, Step, inputs, machine};
use candlewick_core::Backbone;
use candlewick_vit::{Options, Vit, Weights};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn vit() -> Vit {
    machine::keep_freed_blocks();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/vit-micro/model.safetensors");
    let options = Options {
        heads: Some(4),
        ..Options::default()
    };
    let weights = Weights::open(&file).expect("the embedded model");
    Vit::load(&weights, &options, &Device::Cpu).expect("the embedded model")
}

fn forward(criterion: &mut Criterion) {
    let vit = vit();
    let mut group = criterion.benchmark_group("vit-micro forward");
    for batch in [1, 16, 64] {
        let given = inputs::draw(Kind::L2p, vit.spec(), batch, 0).expect("inputs");
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("batch {batch}"), |b| {
            b.iter(|| vit.query(black_box(&given["images"])));
        });
    }
    group.finish();
}

fn steps(criterion: &mut Criterion) {
    const BATCH: usize = 16;
    let vit = vit();
    let mut group = criterion.benchmark_group("vit-micro step");
    group.throughput(Throughput::Elements(BATCH as u64));
    for (name, kind) in [
        ("l2p", Kind::L2p),
        ("l2p-full", Kind::L2pFull),
        ("dualprompt", Kind::DualPrompt),
        ("coda", Kind::Coda),
    ] {
        let given = inputs::draw(kind, vit.spec(), BATCH, 0).expect("inputs");
        let mut step = Step::new(&vit, kind, &given).expect("a step");
        group.bench_function(name, |b| b.iter(|| step.step().expect("a step")));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(Duration::from_secs(3));
    targets = forward, steps
}
criterion_main!(benches);

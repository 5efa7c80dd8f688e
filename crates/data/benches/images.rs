//! Images per second in one thread: decode, resize to 256, crop 224, normalise.
//!
//! `cargo bench -p candlewick-data`

#![allow(clippy::expect_used)] // a benchmark without its pictures has nothing better to do than stop

use std::hint::black_box;
use std::path::Path;

use candlewick_data::{CropOffset, Interpolation, Preprocess, Resize, Train, decode_rgb};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn images(criterion: &mut Criterion) {
    let settings = Preprocess {
        resize: Some(Resize::Short(256)),
        crop: Some(224),
        crop_offset: CropOffset::Round,
        interpolation: Interpolation::Bicubic,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        train: Train::Plain,
        scale: None,
        ratio: None,
        flip: false,
        brightness: None,
        train_interpolation: None,
    };
    let transform = settings.check().expect("settings that hold");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = [
        (
            "jpeg 500x375",
            "tests/fixtures/preprocess/d_exif6_500x375.jpg",
        ),
        ("png 112x112", "emoji-r-mini/train/avocado/fluent-emoji.png"),
    ];
    for (name, file) in files {
        let bytes = std::fs::read(root.join(file)).expect("a picture");
        let image = decode_rgb(&bytes, name).expect("a picture");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        group.bench_function("decode", |b| b.iter(|| decode_rgb(black_box(&bytes), name)));
        group.bench_function("resize and crop", |b| {
            b.iter(|| transform.plain_pixels(black_box(&image)))
        });
        group.bench_function("normalise", |b| {
            let pixels = transform.plain_pixels(&image);
            b.iter(|| transform.normalised(black_box(&pixels)));
        });
        group.bench_function("all", |b| {
            b.iter(|| decode_rgb(black_box(&bytes), name).map(|image| transform.plain(&image)));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(std::time::Duration::from_secs(2));
    targets = images
}
criterion_main!(benches);

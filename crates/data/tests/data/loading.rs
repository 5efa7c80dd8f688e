//! The loader: the same batches for any number of threads, and an end whatever happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use candlewick_core::{Batch, Split, View};
use candlewick_data::{
    CropOffset, Error, ImageSplit, Interpolation, Loader, OnCorrupt, Preprocess, Source, Train,
    decode_rgb,
};
use image::RgbImage;

pub fn settings() -> Preprocess {
    Preprocess {
        resize: None,
        crop: Some(4),
        crop_offset: CropOffset::Round,
        interpolation: Interpolation::Bilinear,
        mean: [0.0; 3],
        std: [1.0; 3],
        train: Train::Plain,
        scale: None,
        ratio: None,
        flip: false,
        brightness: None,
        train_interpolation: None,
    }
}

fn random() -> Preprocess {
    Preprocess {
        train: Train::RandomResizedCrop,
        scale: Some([0.2, 1.0]),
        ratio: Some([0.75, 1.3]),
        flip: true,
        ..settings()
    }
}

/// Pictures made on demand; some are damaged, make the decoder panic, or take their time.
#[derive(Default)]
pub struct Made {
    pub len: usize,
    pub corrupt: Vec<usize>,
    pub unreadable: Option<usize>,
    pub panics: Option<usize>,
    pub pause: Duration,
    pub read: AtomicUsize,
    /// Pictures being made at this moment, and the most there were.
    pub busy: AtomicUsize,
    pub most: AtomicUsize,
    pub classes: Vec<String>,
}

impl Source for Made {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        self.len
    }

    fn label(&self, index: usize) -> usize {
        index % 7
    }

    fn name(&self, index: usize) -> String {
        format!("made/{index:03}")
    }

    fn rgb(&self, index: usize) -> candlewick_data::Result<RgbImage> {
        self.read.fetch_add(1, Ordering::SeqCst);
        let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(busy, Ordering::SeqCst);
        // Uneven work, so that threads finish out of order.
        std::thread::sleep(self.pause * (index * 7 % 5) as u32);
        self.busy.fetch_sub(1, Ordering::SeqCst);
        assert_ne!(self.panics, Some(index), "picture {index} is cursed");
        if self.corrupt.contains(&index) {
            return decode_rgb(b"junk", &self.name(index));
        }
        if self.unreadable == Some(index) {
            let source = std::io::Error::other("the disk is on fire");
            return Err(Error::Read {
                path: self.name(index).into(),
                source,
            });
        }
        Ok(RgbImage::from_fn(9, 6, |x, y| {
            image::Rgb([index as u8, x as u8 * 20, y as u8 * 30])
        }))
    }

    fn fingerprint(&self) -> String {
        "made".into()
    }
}

pub fn split_of(source: Arc<Made>, loader: &Loader) -> ImageSplit {
    // Every image but the first two, backwards: members need not be in order.
    let members: Vec<usize> = (2..source.len).rev().collect();
    let labels = members.iter().map(|m| (m % 7) as u32).collect();
    loader.split(source, members, labels, 1000, 3).unwrap()
}

fn split(source: Made, preprocess: &Preprocess, threads: usize) -> ImageSplit {
    split_of(
        Arc::new(source),
        &Loader::new(preprocess, threads, OnCorrupt::Stop).unwrap(),
    )
}

pub fn made(len: usize) -> Made {
    Made {
        len,
        pause: Duration::from_micros(300),
        ..Default::default()
    }
}

type Row = (u64, u32, Vec<f32>);

fn rows(batch: &Batch) -> Vec<Row> {
    let pixels: Vec<Vec<f32>> = batch.images.flatten_from(1).unwrap().to_vec2().unwrap();
    batch
        .ids
        .iter()
        .zip(&batch.labels)
        .zip(pixels)
        .map(|((id, label), p)| (*id, *label, p))
        .collect()
}

fn pass(split: &ImageSplit, view: View, batch: usize) -> Vec<Row> {
    split
        .batches(view, batch)
        .flat_map(|batch| rows(&batch.unwrap()))
        .collect()
}

const TRAIN: View = View::Train { seed: 5, epoch: 2 };

#[test]
fn a_pass_does_not_depend_on_threads_or_batch_size() {
    for view in [View::Plain, TRAIN] {
        let alone = pass(&split(made(60), &random(), 1), view, 7);
        assert_eq!(alone.len(), 58);
        for (threads, batch) in [(1, 16), (2, 7), (4, 16), (7, 1), (3, 100)] {
            assert_eq!(
                pass(&split(made(60), &random(), threads), view, batch),
                alone,
                "{threads} threads"
            );
        }
    }
    let sizes: Vec<usize> = split(made(60), &random(), 3)
        .batches(TRAIN, 16)
        .map(|b| b.unwrap().len())
        .collect();
    assert_eq!(sizes, [16, 16, 16, 10]);
}

#[test]
fn passes_over_many_batches_never_stall() {
    // Far more images than the window of two batches, in threads that outnumber it.
    let ids: Vec<u64> = pass(
        &split(
            Made {
                len: 3002,
                ..Default::default()
            },
            &settings(),
            8,
        ),
        View::Plain,
        2,
    )
    .into_iter()
    .map(|row| row.0)
    .collect();
    assert_eq!(ids, (1002..4002).rev().collect::<Vec<u64>>());
}

#[test]
fn the_plain_view_keeps_the_order_and_training_shuffles_by_seed_and_epoch() {
    let split = split(made(60), &random(), 2);
    let order = |view| -> Vec<u64> {
        pass(&split, view, 10)
            .into_iter()
            .map(|row| row.0)
            .collect()
    };
    assert_eq!(order(View::Plain), (1002..1060).rev().collect::<Vec<u64>>());
    let first = order(TRAIN);
    assert_eq!(first, order(TRAIN));
    let mut sorted = first.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (1002..1060).collect::<Vec<u64>>());
    assert_ne!(first, order(View::Train { seed: 6, epoch: 2 }));
    assert_ne!(first, order(View::Train { seed: 5, epoch: 3 }));
}

#[test]
fn batches_say_whether_their_pixels_are_plain() {
    let plain = |preprocess: &Preprocess, view| {
        let split = split(made(6), preprocess, 1);
        let batch = split.batches(view, 4).next().unwrap().unwrap();
        assert_eq!(batch.images.dims(), [4, 3, 4, 4]);
        batch.plain
    };
    assert!(plain(&random(), View::Plain));
    assert!(!plain(&random(), TRAIN));
    assert!(plain(&settings(), TRAIN));
    assert!(!plain(
        &Preprocess {
            flip: true,
            ..settings()
        },
        TRAIN
    ));
}

#[test]
fn a_damaged_image_ends_the_pass_with_its_name() {
    for threads in [1, 4] {
        let split = split(
            Made {
                corrupt: vec![30],
                ..made(60)
            },
            &settings(),
            threads,
        );
        let mut batches = split.batches(View::Plain, 10);
        // Images come backwards from 59: the third batch holds number 30... of 58, that is position 29.
        assert_eq!(batches.by_ref().take_while(Result::is_ok).count(), 2);
        assert!(batches.next().is_none(), "a pass ends with its first error");
        drop(batches);
        let error = split
            .batches(View::Plain, 10)
            .find_map(Result::err)
            .unwrap()
            .to_string();
        assert!(
            error.starts_with("made/030: not an image: it begins with `junk`"),
            "{error}"
        );
    }
}

#[test]
fn damaged_images_can_be_skipped_and_are_counted_once() {
    for threads in [1, 4] {
        let loader = Loader::new(&settings(), threads, OnCorrupt::Skip).unwrap();
        let source = Made {
            corrupt: vec![30, 59, 31],
            ..made(60)
        };
        let split = split_of(Arc::new(source), &loader);
        for view in [View::Plain, TRAIN] {
            let sizes: Vec<usize> = split
                .batches(view, 10)
                .map(|batch| batch.unwrap().len())
                .collect();
            assert_eq!(sizes, [10, 10, 10, 10, 10, 5]);
        }
        assert_eq!(loader.skipped(), ["made/030", "made/031", "made/059"]);
    }
    let loader = Loader::new(&settings(), 2, OnCorrupt::Skip).unwrap();
    let all = split_of(
        Arc::new(Made {
            corrupt: (0..9).collect(),
            ..made(9)
        }),
        &loader,
    );
    assert!(all.batches(View::Plain, 4).next().is_none());
}

/// As another process goes on, which knows the damaged images that the first one has met.
#[test]
fn a_pass_goes_on_behind_any_batch_and_makes_no_picture_twice() {
    let opened = |threads| {
        let loader = Loader::new(&random(), threads, OnCorrupt::Skip).unwrap();
        let source = Arc::new(Made {
            corrupt: vec![3, 30, 59, 31],
            ..made(60)
        });
        let split = split_of(source.clone(), &loader);
        (loader, source, split)
    };
    for threads in [1, 4] {
        for done in 0..=7 {
            let (loader, source, split) = opened(threads);
            let mut first = split.batches(TRAIN, 10);
            for _ in 0..done {
                first.next();
            }
            let (other, again, rest) = opened(threads);
            for name in loader.skipped() {
                other.leave_out(&name);
            }
            let going: Vec<Row> = first.flat_map(|batch| rows(&batch.unwrap())).collect();
            let behind = rest.batches_behind(TRAIN, 10, done);
            let behind: Vec<Row> = behind.flat_map(|batch| rows(&batch.unwrap())).collect();
            assert!(going == behind, "{threads} threads, behind {done}");
            assert_eq!(loader.skipped(), other.skipped());
            let made = |source: &Made| source.read.load(Ordering::SeqCst);
            assert!(made(&again) + 10 * done.min(5) <= made(&source), "{done}");
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_never_skipped() {
    let loader = Loader::new(&settings(), 2, OnCorrupt::Skip).unwrap();
    let split = split_of(
        Arc::new(Made {
            unreadable: Some(5),
            ..made(10)
        }),
        &loader,
    );
    let error = split
        .batches(View::Plain, 4)
        .find_map(Result::err)
        .unwrap()
        .to_string();
    assert_eq!(error, "made/005: the disk is on fire");
}

#[test]
fn a_panic_in_a_thread_is_an_error_with_the_name() {
    for threads in [1, 4] {
        let split = split(
            Made {
                panics: Some(20),
                ..made(60)
            },
            &settings(),
            threads,
        );
        let error = split
            .batches(View::Plain, 10)
            .find_map(Result::err)
            .unwrap()
            .to_string();
        assert!(
            error.contains("made/020: the decoder failed inside: "),
            "{error}"
        );
        assert!(error.contains("picture 20 is cursed"), "{error}");
    }
}

#[test]
fn settings_of_the_loader_are_checked() {
    let error = Loader::new(&settings(), 0, OnCorrupt::Stop)
        .err()
        .unwrap()
        .to_string();
    assert_eq!(error, "setting `threads`: expected at least 1, found 0");
    assert!(
        Loader::new(
            &Preprocess {
                crop: None,
                ..settings()
            },
            1,
            OnCorrupt::Stop
        )
        .is_err()
    );
    let loader = Loader::new(&settings(), 1, OnCorrupt::Stop).unwrap();
    let source = Arc::new(made(5));
    let error = loader
        .split(source.clone(), vec![0, 5], vec![0, 0], 0, 0)
        .err()
        .unwrap()
        .to_string();
    assert_eq!(
        error,
        "setting `members`: image 5 of a source of 5 (they count from 0)"
    );
    let error = loader
        .split(source.clone(), vec![0], vec![], 0, 0)
        .err()
        .unwrap()
        .to_string();
    assert_eq!(error, "setting `members`: 1 images, but 0 labels");
    let split = split_of(source, &loader);
    let error = split
        .batches(View::Plain, 0)
        .next()
        .unwrap()
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "setting `batch`: expected at least 1 image in a batch, found 0"
    );
}

#[test]
fn an_empty_split_has_no_batches() {
    let loader = Loader::new(&settings(), 3, OnCorrupt::Stop).unwrap();
    let split = loader
        .split(Arc::new(made(5)), vec![], vec![], 0, 0)
        .unwrap();
    assert!(split.is_empty());
    assert!(split.batches(TRAIN, 4).next().is_none());
}

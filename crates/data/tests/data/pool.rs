//! The loader in a rayon pool: within its size, ahead of the caller, and never waiting for itself.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candlewick_core::{Split, View};
use candlewick_data::{ImageSplit, Loader, OnCorrupt};
use rayon::prelude::*;

use crate::loading::{Made, made, settings, split_of};

const TRAIN: View = View::Train { seed: 5, epoch: 2 };

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
}

fn split(source: &Arc<Made>, threads: usize) -> ImageSplit {
    let loader = Loader::new(&settings(), threads, OnCorrupt::Stop).unwrap();
    split_of(Arc::clone(source), &loader)
}

/// A pass whose batches are worked on by the pool, as a model would; the ids in the order they came.
fn pass(split: &ImageSplit, batch: usize) -> Vec<u64> {
    let batches = split.batches(View::Plain, batch).map(Result::unwrap);
    let ids = batches.flat_map(|batch| {
        let work = |i: u64| (0..2000).fold(i, |a, b| a.wrapping_mul(31) ^ b);
        let values = (0..64u64).into_par_iter().map(work);
        std::hint::black_box(values.reduce(|| 0, |a, b| a ^ b));
        batch.ids
    });
    ids.collect()
}

#[test]
fn no_more_images_are_decoded_at_once_than_pool_and_setting_allow() {
    for (size, threads) in [(1, 4), (2, 2), (4, 2), (3, 8)] {
        let pool = pool(size);
        let source = Arc::new(made(200));
        let ids = pool.install(|| pass(&split(&source, threads), 5));
        assert_eq!(ids, (1002..1200).rev().collect::<Vec<u64>>());
        let most = source.most.load(Ordering::SeqCst);
        assert!(most <= size.min(threads), "{most} of {size}, {threads}");
    }
    // A caller that is no thread of the pool decodes in the place of one.
    let source = Arc::new(made(200));
    assert_eq!(pass(&split(&source, 2), 5).len(), 198);
    let most = source.most.load(Ordering::SeqCst);
    assert!(most <= 2, "{most}");
}

#[test]
fn passes_that_share_a_pool_all_come_to_their_end() {
    for size in [1, 2, 3] {
        let lengths: Vec<usize> = pool(size).install(|| {
            let passes = (0..6usize).into_par_iter().map(|k| {
                let source = Arc::new(made(60 + k));
                pass(&split(&source, 2 + k % 3), 1 + k).len()
            });
            passes.collect()
        });
        assert_eq!(lengths, [58, 59, 60, 61, 62, 63]);
    }
}

#[test]
fn a_pool_that_is_busy_for_good_stops_no_one() {
    let pool = pool(2);
    let free = AtomicBool::new(false);
    pool.in_place_scope(|scope| {
        scope.spawn(|_| {
            while !free.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let source = Arc::new(made(60));
        // Caught, so that a failure does not leave the thread busy.
        let ids = catch_unwind(AssertUnwindSafe(|| {
            pool.install(|| pass(&split(&source, 2), 7))
        }));
        free.store(true, Ordering::SeqCst);
        assert_eq!(ids.unwrap().len(), 58);
    });
}

#[test]
fn dropping_half_way_stops_the_work_and_work_ahead_is_bounded() {
    let source = Arc::new(Made {
        len: 5000,
        pause: Duration::from_millis(1),
        ..Default::default()
    });
    pool(4).install(|| {
        let split = split(&source, 4);
        let mut batches = split.batches(TRAIN, 8);
        batches.next().unwrap().unwrap();
        // One batch taken, two batches ahead; they come while this thread does something else.
        let patience = Instant::now() + Duration::from_secs(60);
        while source.read.load(Ordering::SeqCst) < 24 && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(source.read.load(Ordering::SeqCst), 24);
        batches.next().unwrap().unwrap();
        drop(batches);
        let read = source.read.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(source.read.load(Ordering::SeqCst), read);
        assert_eq!(Arc::strong_count(&source), 2, "no job holds it");
    });
}

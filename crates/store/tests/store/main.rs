//! The file itself: what is found again, what is refused, what a writer that died leaves.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use candlewick_store::{
    CHUNK, Dtype, Error, Identity, Key, Store, Writer, glance, key, merge, remove,
};

const DIM: usize = 3;

fn identity(dtype: Dtype) -> Identity {
    Identity {
        feature: "cls".into(),
        weights: "ab".repeat(32),
        depth: 2,
        heads: 4,
        eps: 1e-6,
        preprocess: "{\"resize\":8}".into(),
        precision: "f32".into(),
        device: "cpu".into(),
        code: "1".into(),
        dtype,
        dim: DIM,
    }
}

fn image(i: usize) -> (Key, Vec<f32>) {
    let row = (0..DIM).map(|d| (i * DIM + d) as f32 / 7.0).collect();
    (key(&i.to_le_bytes()), row)
}

/// In the order of their keys, as an extraction has them.
fn images(range: std::ops::Range<usize>) -> Vec<(Key, Vec<f32>)> {
    let mut images: Vec<_> = range.map(image).collect();
    images.sort_by_key(|(key, _)| *key);
    images
}

fn fill(path: &Path, images: &[(Key, Vec<f32>)]) {
    let mut writer = Writer::open(path, &identity(Dtype::F32), || panic!("locked")).unwrap();
    for (key, row) in images {
        writer.push(*key, row.clone()).unwrap();
    }
    writer.finish().unwrap();
}

fn open(path: &Path) -> Store {
    Store::open(path).unwrap().unwrap()
}

fn row(store: &Store, key: &Key) -> Option<Vec<f32>> {
    let mut row = Vec::new();
    store.read(key, &mut row).then_some(row)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/folder/a.features");
    (dir, path)
}

#[test]
fn rows_come_back_bit_for_bit_under_their_keys() {
    let (_dir, path) = place();
    assert!(Store::open(&path).unwrap().is_none());
    let all = images(0..150);
    fill(&path, &all[..100]);
    fill(&path, &all);
    let store = open(&path);
    assert_eq!(store.len(), 150);
    for (key, values) in &all {
        assert_eq!(row(&store, key).as_ref(), Some(values));
    }
    assert_eq!(row(&store, &image(150).0), None);
    assert_eq!(store.identity(), &identity(Dtype::F32));
    // Nothing else is left in the folder.
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn f16_rounds_to_nearest_and_refuses_what_it_cannot_hold() {
    let (_dir, path) = place();
    let identity = identity(Dtype::F16);
    let mut writer = Writer::open(&path, &identity, || ()).unwrap();
    writer
        .push(key(b"a"), vec![1.0, 1.0 + 1.0 / 4096.0, -0.1])
        .unwrap();
    writer.finish().unwrap();
    let found = row(&open(&path), &key(b"a"));
    assert_eq!(found, Some(vec![1.0, 1.0, -0.099_975_586]));
    for bad in [1e6, f32::NAN] {
        let mut writer = Writer::open(&path, &identity, || ()).unwrap();
        writer.push(key(b"b"), vec![0.0, bad, 0.0]).unwrap();
        let text = writer.finish().unwrap_err().to_string();
        assert!(
            text.contains("a.features") && text.contains("F16 cannot hold"),
            "{text}"
        );
    }
    assert_eq!(open(&path).len(), 1);
}

#[test]
fn features_of_anything_else_are_refused_by_field() {
    let (_dir, path) = place();
    fill(&path, &images(0..3));
    let expected = identity(Dtype::F32);
    let others = [
        (
            "weights",
            Identity {
                weights: "cd".repeat(32),
                ..expected.clone()
            },
        ),
        (
            "depth",
            Identity {
                depth: 3,
                ..expected.clone()
            },
        ),
        (
            "preprocess",
            Identity {
                preprocess: String::new(),
                ..expected.clone()
            },
        ),
        (
            "precision",
            Identity {
                precision: "bf16".into(),
                ..expected.clone()
            },
        ),
        (
            "code",
            Identity {
                code: "2".into(),
                ..expected.clone()
            },
        ),
        ("dtype", identity(Dtype::F16)),
    ];
    for (field, other) in others {
        assert_ne!(other.digest(), expected.digest());
        for error in [
            Store::open_as(&path, &other).err().unwrap(),
            Writer::open(&path, &other, || ()).err().unwrap(),
        ] {
            let text = error.to_string();
            assert!(
                text.contains("a.features") && text.contains(field),
                "{text}"
            );
        }
    }
    fs::write(&path, b"\x89PNG").unwrap();
    assert!(matches!(Store::open(&path), Err(Error::Foreign { .. })));
}

/// Every byte of a file of three chunks, with each of its bits that is looked at turned.
#[test]
fn any_changed_byte_is_found_and_named() {
    let (_dir, path) = place();
    fill(&path, &images(0..2 * CHUNK + 5));
    let good = fs::read(&path).unwrap();
    let mut parts = std::collections::BTreeSet::new();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        match Store::open(&path).err() {
            Some(Error::Damaged {
                path: named,
                part,
                from,
                to,
            }) => {
                assert_eq!(named, path);
                // The length in the header says itself where the header ends.
                assert!(
                    part == "the header" || (from..to).contains(&(at as u64)),
                    "{at}: {part}"
                );
                parts.insert(part);
            }
            Some(Error::Foreign { .. }) => assert!(at < 16, "{at}"),
            other => panic!("byte {at}: {other:?}"),
        }
        assert!(Writer::open(&path, &identity(Dtype::F32), || ()).is_err());
    }
    assert_eq!(parts.len(), 1 + 2 * 3, "{parts:?}");
}

/// Killed between any two bytes, a writer leaves a file that holds whole chunks, and is taken up to the same bytes.
#[test]
fn a_file_cut_anywhere_keeps_its_whole_chunks_and_grows_to_the_same() {
    let (_dir, path) = place();
    let all = images(0..2 * CHUNK + 5);
    fill(&path, &[]);
    let header = fs::metadata(&path).unwrap().len() as usize;
    fill(&path, &all);
    let whole = fs::read(&path).unwrap();
    let mut sizes = std::collections::BTreeSet::new();
    for length in (header..whole.len()).step_by(7).chain([whole.len() - 1]) {
        fs::write(&path, &whole[..length]).unwrap();
        let store = open(&path);
        sizes.insert(store.len());
        for key in store.keys() {
            let (_, values) = all.iter().find(|(k, _)| k == key).unwrap();
            assert_eq!(row(&store, key).as_ref(), Some(values));
        }
        fill(&path, &all);
        assert_eq!(fs::read(&path).unwrap(), whole, "cut to {length}");
    }
    assert_eq!(Vec::from_iter(sizes), [0, CHUNK, 2 * CHUNK]);
    // A file that had grown before its content came, as a loss of power may leave it.
    let mut hollow = whole[..header].to_vec();
    hollow.resize(whole.len(), 0);
    fs::write(&path, &hollow).unwrap();
    assert!(open(&path).is_empty());
    fill(&path, &all);
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn shards_merge_to_the_very_file_of_one_machine() {
    let dir = tempfile::tempdir().unwrap();
    let all = images(0..200);
    let one = dir.path().join("one");
    fill(&one, &all);
    for n in [1, 2, 5] {
        let parts: Vec<Store> = (0..n)
            .map(|i| {
                let path = dir.path().join(format!("{i}-of-{n}"));
                let own: Vec<_> = all.iter().skip(i).step_by(n).cloned().collect();
                fill(&path, &own);
                open(&path)
            })
            .collect();
        let into = dir.path().join(format!("merged-{n}"));
        assert_eq!(merge(&parts, &into).unwrap(), 200);
        assert!(fs::read(&into).unwrap() == fs::read(&one).unwrap(), "{n}");
        // Again, into what is there already.
        assert_eq!(merge(&parts[..1], &into).unwrap(), 200);
        assert!(fs::read(&into).unwrap() == fs::read(&one).unwrap(), "{n}");
    }
    // Two that saw one image differently.
    let odd = dir.path().join("odd");
    fill(&odd, &[(all[3].0, vec![0.0; DIM])]);
    let before = fs::read(&one).unwrap();
    let error = merge(&[open(&odd)], &one).unwrap_err();
    assert!(matches!(error, Error::Disagree { .. }), "{error}");
    assert!(fs::read(&one).unwrap() == before);
}

#[test]
fn one_writes_and_others_read_meanwhile() {
    let (_dir, path) = place();
    let all = images(0..3 * CHUNK);
    let mut writer = Writer::open(&path, &identity(Dtype::F32), || ()).unwrap();
    let early = open(&path);
    for (i, (key, row)) in all.iter().enumerate() {
        writer.push(*key, row.clone()).unwrap();
        if i % 40 == 0 {
            assert_eq!(open(&path).len(), (i + 1) / CHUNK * CHUNK);
        }
    }
    let waited = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let wait = || waited.store(true, std::sync::atomic::Ordering::SeqCst);
            Writer::open(&path, &identity(Dtype::F32), wait)
                .unwrap()
                .len()
        });
        while !waited.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::yield_now();
        }
        writer.finish().unwrap();
        assert_eq!(second.join().unwrap(), 3 * CHUNK);
    });
    assert!(
        early.is_empty(),
        "a store is what it was when it was opened"
    );
}

/// A glance counts what a reader finds, over chunks of any size, and sees a writer at work.
#[test]
fn a_glance_tells_what_a_file_holds() {
    let (_dir, path) = place();
    let images = images(0..CHUNK + 30);
    fill(&path, &images[..10]);
    fill(&path, &images);
    let seen = glance(&path).unwrap();
    assert_eq!(seen.images, images.len() as u64);
    assert_eq!(seen.bytes, fs::metadata(&path).unwrap().len());
    assert_eq!(seen.identity, identity(Dtype::F32));
    assert!(seen.modified.is_some() && !seen.busy);
    let writer = Writer::open(&path, &identity(Dtype::F32), || ()).unwrap();
    assert!(glance(&path).unwrap().busy);
    drop(writer);
    // What a writer that died left is not counted.
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(glance(&path).unwrap().images, open(&path).len() as u64);
    fs::write(&path, "something else").unwrap();
    assert!(matches!(glance(&path), Err(Error::Foreign { .. })));
}

#[test]
fn only_a_store_that_nobody_writes_is_removed() {
    let (_dir, path) = place();
    let images = images(0..5);
    fill(&path, &images);
    let writer = Writer::open(&path, &identity(Dtype::F32), || ()).unwrap();
    assert!(!remove(&path).unwrap());
    // A writer that waits finds it gone, and makes a new one.
    std::thread::scope(|scope| {
        let (told, waits) = std::sync::mpsc::channel();
        let waiting = scope.spawn(|| {
            let wait = move || told.send(()).unwrap();
            let mut writer = Writer::open(&path, &identity(Dtype::F32), wait).unwrap();
            assert_eq!(writer.len(), 0);
            writer.push(images[0].0, images[0].1.clone()).unwrap();
            writer.finish().unwrap();
        });
        waits.recv().unwrap();
        // As it goes under its name while one writer ends and the next begins.
        fs::remove_file(&path).unwrap();
        drop(writer);
        waiting.join().unwrap();
    });
    assert_eq!(open(&path).len(), 1);
    assert!(remove(&path).unwrap());
    assert!(!path.exists());
    assert!(matches!(remove(&path), Err(Error::Io { .. })));
    // Damage is no reason to keep it; being something else is.
    fill(&path, &images);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(remove(&path).unwrap());
    fs::write(&path, "a letter").unwrap();
    assert!(matches!(remove(&path), Err(Error::Foreign { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"a letter");
}

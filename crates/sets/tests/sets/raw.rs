//! CIFAR's binary files and IDX.

use std::path::Path;

use candlewick_data::Parts;
use candlewick_sets::open_path;
use tempfile::TempDir;

use crate::pack;

/// A record of CIFAR: red counts up, green is the class, blue is 7.
fn record(labels: &[u8], first: u8) -> Vec<u8> {
    let mut bytes = labels.to_vec();
    bytes.extend((0..1024u32).map(|i| first.wrapping_add(i as u8)));
    bytes.extend([*labels.last().unwrap(); 1024]);
    bytes.extend([7; 1024]);
    bytes
}

fn files(list: &[(&str, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    list.iter()
        .map(|(name, bytes)| ((*name).to_owned(), bytes.clone()))
        .collect()
}

fn cifar100() -> Vec<(String, Vec<u8>)> {
    files(&[
        ("cifar-100-binary/coarse_label_names.txt", b"all\n".to_vec()),
        (
            "cifar-100-binary/fine_label_names.txt",
            b"apple\nbear\n".to_vec(),
        ),
        (
            "cifar-100-binary/train.bin",
            [record(&[0, 1], 1), record(&[0, 0], 2), record(&[0, 1], 3)].concat(),
        ),
        (
            "cifar-100-binary/test.bin",
            [record(&[0, 0], 4), record(&[0, 1], 5)].concat(),
        ),
    ])
}

fn described(parts: &Parts) -> Vec<(String, usize, [u8; 3], [u8; 3])> {
    let all = parts.joined();
    let image = |i| {
        let rgb = all.rgb(i).unwrap();
        assert_eq!(rgb.dimensions(), (32, 32));
        (
            all.name(i),
            all.label(i),
            rgb.get_pixel(0, 0).0,
            rgb.get_pixel(1, 1).0,
        )
    };
    (0..all.len()).map(image).collect()
}

#[test]
fn cifar_100_is_read_from_a_folder_and_from_its_archive() {
    let dir = TempDir::new().unwrap();
    let files = cifar100();
    pack::folder(&dir.path().join("folder"), &files);
    let tar = pack::tar(&files);
    pack::write(
        &dir.path().join("cifar-100-binary.tar.gz"),
        &pack::gzip(&tar),
    );
    pack::write(&dir.path().join("a.zip"), &pack::zip(&files));
    let expected = [
        ("train/apple/000001", 0, [2, 0, 7], [35, 0, 7]),
        ("train/bear/000000", 1, [1, 1, 7], [34, 1, 7]),
        ("train/bear/000002", 1, [3, 1, 7], [36, 1, 7]),
        ("test/apple/000000", 0, [4, 0, 7], [37, 0, 7]),
        ("test/bear/000001", 1, [5, 1, 7], [38, 1, 7]),
    ]
    .map(|(name, label, a, b)| (name.to_owned(), label, a, b));
    for path in ["folder", "cifar-100-binary.tar.gz", "a.zip"] {
        let parts = open_path(&dir.path().join(path), None).unwrap();
        assert_eq!(described(&parts), expected, "{path}");
        assert_eq!(parts.train.classes(), ["apple", "bear"]);
    }
}

#[test]
fn cifar_10_comes_in_batches() {
    let dir = TempDir::new().unwrap();
    let folder = files(&[
        (
            "cifar-10-batches-bin/batches.meta.txt",
            b"airplane\nbird\n\n".to_vec(),
        ),
        ("cifar-10-batches-bin/data_batch_2.bin", record(&[1], 2)),
        ("cifar-10-batches-bin/data_batch_1.bin", record(&[0], 1)),
        (
            "cifar-10-batches-bin/test_batch.bin",
            [record(&[1], 3), record(&[0], 4)].concat(),
        ),
        ("cifar-10-batches-bin/readme.html", b"<html>".to_vec()),
    ]);
    pack::folder(dir.path(), &folder);
    let parts = open_path(dir.path(), None).unwrap();
    let names: Vec<_> = described(&parts).into_iter().map(|image| image.0).collect();
    let expected = [
        "train/airplane/000000",
        "train/bird/000001",
        "test/airplane/000001",
        "test/bird/000000",
    ];
    assert_eq!(names, expected);
}

fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(data);
    bytes
}

fn mnist(gz: bool) -> Vec<(String, Vec<u8>)> {
    let list = [
        (
            "train-images-idx3-ubyte",
            idx(&[2, 2, 3], &[1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 60]),
        ),
        ("train-labels-idx1-ubyte", idx(&[2], &[1, 0])),
        (
            "t10k-images-idx3-ubyte",
            idx(&[2, 2, 3], &[6, 5, 4, 3, 2, 1, 9, 9, 9, 9, 9, 9]),
        ),
        ("t10k-labels-idx1-ubyte", idx(&[2], &[0, 1])),
    ];
    list.into_iter()
        .map(|(name, bytes)| match gz {
            true => (format!("raw/{name}.gz"), pack::gzip(&bytes)),
            false => (name.to_owned(), bytes),
        })
        .collect()
}

#[test]
fn idx_is_read_gzipped_or_not() {
    let dir = TempDir::new().unwrap();
    let mut fingerprints = Vec::new();
    for gz in [false, true] {
        let path = dir.path().join(format!("{gz}"));
        pack::folder(&path, &mnist(gz));
        let parts = open_path(&path, None).unwrap();
        assert_eq!(parts.train.classes(), ["0", "1"]);
        assert_eq!(parts.train.name(0), "train/0/000001");
        let image = parts.train.rgb(1).unwrap();
        assert_eq!(image.dimensions(), (3, 2));
        assert_eq!(image.get_pixel(2, 1).0, [6, 6, 6]);
        assert_eq!(image.get_pixel(1, 0).0, [2, 2, 2]);
        fingerprints.push(parts.test.fingerprint());
    }
    assert_eq!(fingerprints[0], fingerprints[1]);

    let card = candlewick_sets::find("fashion-mnist").unwrap();
    let parts = candlewick_sets::open_card(card, &dir.path().join("true"), None, false).unwrap();
    assert_eq!(parts.train.classes(), ["T-shirt/top", "Trouser"]);
    assert_eq!(parts.train.name(0), "train/T-shirt-top/000001");
}

fn said(path: &Path) -> String {
    open_path(path, None).err().expect("an error").to_string()
}

#[test]
fn records_that_are_cut_off_or_of_another_set_are_refused() {
    for (name, bytes, parts) in [
        (
            "cifar-100-binary/test.bin",
            record(&[0, 0], 1)[..3000].to_vec(),
            &["test.bin", "3000 bytes", "a multiple of 3074"][..],
        ),
        (
            "cifar-100-binary/test.bin",
            record(&[0, 9], 1),
            &["record 0 of", "class 9", "only 2 classes"],
        ),
        (
            "cifar-100-binary/data_batch_1.bin",
            record(&[0], 1),
            &["CIFAR-10 and of CIFAR-100 lie together"],
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let mut files = cifar100();
        files.retain(|(file, _)| file != name);
        files.push((name.to_owned(), bytes));
        pack::folder(dir.path(), &files);
        let said = said(dir.path());
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
    }
    let dir = TempDir::new().unwrap();
    let mut files = cifar100();
    files.remove(1);
    pack::folder(dir.path(), &files);
    assert!(said(dir.path()).contains("not `fine_label_names.txt`"));
}

#[test]
fn idx_files_that_do_not_fit_are_refused() {
    type Change = fn(&mut Vec<(String, Vec<u8>)>);
    let cases: [(Change, &str); 5] = [
        (|files| files[0].1.truncate(20), "it is cut off"),
        (|files| files[1].1[3] = 3, "found"),
        (
            |files| files.retain(|(name, _)| name != "train-labels-idx1-ubyte"),
            "but not `train-labels-idx1-ubyte`",
        ),
        (
            |files| files[1].1 = idx(&[1], &[0]),
            "2 images have 1 labels",
        ),
        (
            // 2³² x 2³² images: the product overflows.
            |files| files[0].1 = idx(&[u32::MAX, u32::MAX, u32::MAX], &[0]),
            "it is cut off",
        ),
    ];
    for (change, part) in cases {
        let dir = TempDir::new().unwrap();
        let mut files = mnist(false);
        change(&mut files);
        pack::folder(dir.path(), &files);
        let said = said(dir.path());
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn pickles_are_refused_with_the_file_to_take_instead() {
    for name in [
        "cifar-10-batches-py/data_batch_1",
        "cifar-100-python/train",
        "labels.pkl",
    ] {
        let dir = TempDir::new().unwrap();
        let files = files(&[(name, b"\x80\x02}q".to_vec())]);
        pack::folder(&dir.path().join("folder"), &files);
        pack::write(
            &dir.path().join("a.tar.gz"),
            &pack::gzip(&pack::tar(&files)),
        );
        for path in ["folder", "a.tar.gz"] {
            let said = said(&dir.path().join(path));
            assert!(said.contains("Python pickle"), "{said}");
            assert!(said.contains("cifar-10-binary.tar.gz"), "{said}");
        }
    }
}

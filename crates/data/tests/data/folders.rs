//! Data sets on disk: what is found, and what is said when something is missing.

use std::fs;
use std::path::Path;

use candlewick_data::{Folder, Parts, Source, TestSplit};
use tempfile::TempDir;

/// A data set of empty files.
pub fn tree(files: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    root
}

pub fn folder(root: &Path) -> Folder {
    Folder {
        path: root.into(),
        split: None,
        expected_images: None,
    }
}

pub fn names(source: &dyn Source) -> Vec<String> {
    (0..source.len()).map(|i| source.name(i)).collect()
}

pub fn message(folder: &Folder) -> String {
    folder.open().err().expect("an error").to_string()
}

#[test]
fn classes_and_files_sort_bytewise_and_strangers_are_passed_over() {
    let root = tree(&[
        "train/cat/b.png",
        "train/cat/a.JPEG",
        "train/cat/10.png",
        "train/cat/9.png",
        "train/cat/README.md",
        "train/cat/.hidden.png",
        "train/.git/x.png",
        "train/Zebra/z.webp",
        "train/cat/more/c.gif",
        "train/list.txt",
        "test/cat/1.tif",
        "test/Zebra/2.bmp",
        "val/ignored/1.png",
    ]);
    let parts = folder(root.path()).open().unwrap();
    assert_eq!(parts.train.classes(), ["Zebra", "cat"]);
    let expected = [
        "train/Zebra/z.webp",
        "train/cat/10.png",
        "train/cat/9.png",
        "train/cat/a.JPEG",
        "train/cat/b.png",
        "train/cat/more/c.gif",
    ];
    assert_eq!(names(&*parts.train), expected);
    assert_eq!(
        (0..6).map(|i| parts.train.label(i)).collect::<Vec<_>>(),
        [0, 1, 1, 1, 1, 1]
    );
    assert_eq!(names(&*parts.test), ["test/Zebra/2.bmp", "test/cat/1.tif"]);
}

#[test]
fn val_stands_in_for_a_missing_test() {
    let root = tree(&["train/a/1.png", "val/a/2.png"]);
    assert_eq!(
        names(&*folder(root.path()).open().unwrap().test),
        ["val/a/2.png"]
    );
}

#[test]
fn missing_folders_are_named_with_what_is_there() {
    let root = tree(&["cats/1.png", "dogs/1.png"]);
    let at = root.path().display().to_string();
    assert_eq!(
        message(&folder(root.path())),
        format!(
            "{at}/train: no such folder (the training part, with one folder per class; if the data set is not \
             divided, point `path` at the class folders and set `split`); {at} holds cats/, dogs/"
        )
    );
    let gone = message(&folder(&root.path().join("no/where")));
    let expected = format!(
        "{at}/no/where: no such folder (the root of the data set); {at} holds cats/, dogs/"
    );
    assert_eq!(gone, expected);
    let root = tree(&["train/a/1.png", "tset/a/1.png"]);
    let at = root.path().display();
    let text = message(&folder(root.path()));
    assert!(
        text.starts_with(&format!(
            "{at}/test: no such folder (the test part, named `test` or `val`"
        )),
        "{text}"
    );
    assert!(
        text.ends_with(&format!("{at} holds train/, tset/")),
        "{text}"
    );
    let root = tree(&["train"]);
    assert!(message(&folder(root.path())).ends_with("a file of that name is there"));
}

#[test]
fn empty_and_unpaired_classes_are_named() {
    let root = tree(&["train/a/1.png", "train/b/notes.txt", "test/a/1.png"]);
    assert_eq!(
        message(&folder(root.path())),
        format!(
            "{}/train/b: class folder without images; add images (jpg, jpeg, png, webp, bmp, tif, tiff, gif) or \
             remove the folder",
            root.path().display()
        )
    );
    let root = tree(&["train/a/1.png", "test/a/1.png", "test/b/1.png"]);
    assert_eq!(
        message(&folder(root.path())),
        "class `b` is in `test` but not in `train`; both parts must have the same class folders: add images of it \
         to `train` or remove it from `test`"
    );
    let root = tree(&["train/a/1.png", "train/b/1.png", "val/a/1.png"]);
    assert!(message(&folder(root.path())).starts_with("class `b` is in `train` but not in `val`"));
}

#[test]
fn no_images_at_all_is_an_error() {
    let root = tree(&["train/loose.png", "test/a/1.png"]);
    let at = root.path().display();
    assert_eq!(
        message(&folder(root.path())),
        format!(
            "{at}/train: no images: expected one folder per class with images inside; {at}/train holds loose.png"
        )
    );
}

#[test]
fn a_wrong_image_count_gives_both_numbers() {
    let root = tree(&["train/a/1.png", "test/a/1.png"]);
    let expecting = |counts| Folder {
        expected_images: Some(counts),
        ..folder(root.path())
    };
    assert!(expecting([1, 1]).open().is_ok());
    let text = message(&expecting([24_000, 1]));
    let at = root.path().display();
    assert!(text.starts_with(&format!(
        "wrong image count in the train part of {at}: the recipe states 24000, found 1"
    )));
}

#[test]
fn a_damaged_image_is_an_error_with_its_path() {
    let root = tree(&["train/a/1.png", "test/a/1.png"]);
    let path = root.path().join("train/a/1.png");
    let source = folder(root.path()).open().unwrap().train;
    let text = || source.rgb(0).unwrap_err().to_string();
    assert!(text().starts_with(&format!(
        "{}: not an image: the file is empty",
        path.display()
    )));
    fs::write(&path, b"\x89PNG\r\n\x1a\nrest").unwrap();
    assert!(text().starts_with(&format!("{}: cannot be decoded: ", path.display())));
    fs::remove_file(&path).unwrap();
    assert!(
        text().starts_with(&format!("{}: No such file", path.display())),
        "{}",
        text()
    );
}

fn numbered(sizes: &[(&str, usize)]) -> TempDir {
    let files: Vec<String> = sizes
        .iter()
        .flat_map(|(class, size)| (0..*size).map(move |i| format!("{class}/{i:02}.png")))
        .collect();
    tree(&files.iter().map(String::as_str).collect::<Vec<_>>())
}

fn divided(root: &Path, test_fraction: f64, seed: u64) -> Folder {
    Folder {
        split: Some(TestSplit {
            test_fraction: Some(test_fraction),
            seed: Some(seed),
            ..TestSplit::default()
        }),
        ..folder(root)
    }
}

#[test]
fn a_split_is_stratified_seeded_and_independent_of_other_classes() {
    let root = numbered(&[("a", 20), ("b", 10), ("c", 2)]);
    let open = |seed| divided(root.path(), 0.2, seed).open().unwrap();
    let count = |parts: &Parts, label| {
        let of = |s: &dyn Source| (0..s.len()).filter(|i| s.label(*i) == label).count();
        (of(&*parts.train), of(&*parts.test))
    };
    let parts = open(7);
    assert_eq!(
        [0, 1, 2].map(|label| count(&parts, label)),
        [(16, 4), (8, 2), (1, 1)]
    );
    let mut all = [names(&*parts.train), names(&*parts.test)].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 32);
    assert!(names(&*parts.train).is_sorted());
    assert_eq!(names(&*parts.test), names(&*open(7).test));
    assert_ne!(names(&*parts.test), names(&*open(8).test));
    let fewer = numbered(&[("a", 20), ("c", 2)]);
    let fewer = divided(fewer.path(), 0.2, 7).open().unwrap();
    assert_eq!(names(&*fewer.test)[..4], names(&*parts.test)[..4]);
    assert_ne!(parts.train.fingerprint(), open(8).train.fingerprint());
    assert_eq!(parts.train.fingerprint(), open(7).train.fingerprint());
}

#[test]
fn a_split_that_cannot_be_is_an_error() {
    let root = numbered(&[("a", 3), ("b", 1)]);
    assert_eq!(
        message(&divided(root.path(), 0.5, 0)),
        format!(
            "{}/b: class has 1 image and cannot be split into training and test; it needs at least 2",
            root.path().display()
        )
    );
    for fraction in [0.0, 1.0, -0.5, f64::NAN] {
        let text = message(&divided(root.path(), fraction, 0));
        assert!(
            text.starts_with("setting `split.test_fraction`: expected a number between 0 and 1"),
            "{text}"
        );
    }
}

#[test]
fn a_recipe_spells_a_folder() {
    let read = |text: &str| toml::from_str::<Folder>(text);
    let folder =
        read("path = \"d\"\nsplit = { test_fraction = 0.2, seed = 1 }\nexpected_images = [3, 4]")
            .unwrap();
    assert_eq!(
        folder.split,
        Some(TestSplit {
            test_fraction: Some(0.2),
            seed: Some(1),
            ..TestSplit::default()
        })
    );
    assert_eq!(folder.expected_images, Some([3, 4]));
    assert!(
        read("path = \"d\"\nexpected = [1, 2]")
            .unwrap_err()
            .to_string()
            .contains("unknown field `expected`")
    );
}

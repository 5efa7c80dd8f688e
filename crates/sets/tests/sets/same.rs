//! The same images from a folder, tar, tar.gz, zip and parquet.

use std::fs;
use std::path::Path;

use candlewick_data::{Parts, Source, TestSplit};
use candlewick_sets::open_path;
use tempfile::TempDir;

use crate::{fixture, pack, pictures};

/// What a run sees of a source.
fn seen(source: &dyn Source) -> Vec<(String, usize, [u8; 32], Vec<u8>)> {
    let image = |i| {
        let pixels = source.rgb(i).unwrap().into_raw();
        (
            source.name(i),
            source.label(i),
            source.content(i).unwrap(),
            pixels,
        )
    };
    (0..source.len()).map(image).collect()
}

fn same(a: &Parts, b: &Parts, what: &str) {
    for (a, b) in [(&a.train, &b.train), (&a.test, &b.test)] {
        assert_eq!(a.classes(), b.classes(), "{what}");
        assert_eq!(a.fingerprint(), b.fingerprint(), "{what}");
        assert!(seen(a.as_ref()) == seen(b.as_ref()), "{what}");
    }
}

/// Every source of the pictures, and what it is.
fn sources(dir: &Path) -> Vec<(&'static str, std::path::PathBuf)> {
    let files = pictures();
    pack::folder(&dir.join("folder"), &files);
    let tar = pack::tar(&files);
    pack::write(&dir.join("a.tar"), &tar);
    pack::write(&dir.join("a.tar.gz"), &pack::gzip(&tar));
    pack::write(&dir.join("a.zip"), &pack::zip(&files));
    pack::write(&dir.join("in/only.tgz"), &pack::gzip(&tar));
    for part in ["train", "test"] {
        let of_part: Vec<_> = files
            .iter()
            .filter_map(|(name, bytes)| {
                let below = name.strip_prefix(&format!("{part}/"))?;
                Some((below.to_owned(), bytes.clone()))
            })
            .collect();
        pack::write(&dir.join(format!("parts/{part}.zip")), &pack::zip(&of_part));
    }
    vec![
        ("folder", dir.join("folder")),
        ("tar", dir.join("a.tar")),
        ("tar.gz", dir.join("a.tar.gz")),
        ("zip", dir.join("a.zip")),
        ("a folder with an archive", dir.join("in")),
        ("an archive for each part", dir.join("parts")),
        ("parquet", fixture("hub")),
    ]
}

#[test]
fn a_divided_set_is_the_same_from_every_source() {
    let dir = TempDir::new().unwrap();
    let sources = sources(dir.path());
    let parts = open_path(&sources[0].1, None).unwrap();
    assert_eq!((parts.train.len(), parts.test.len()), (16, 8));
    assert_eq!(parts.train.classes(), ["bicycle", "cat", "goat", "star"]);
    for (what, path) in &sources[1..] {
        same(&parts, &open_path(path, None).unwrap(), what);
    }
}

#[test]
fn a_set_in_one_piece_is_divided_the_same_from_every_source() {
    let dir = TempDir::new().unwrap();
    let files: Vec<_> = pictures()
        .into_iter()
        .map(|(name, bytes)| (name.split_once('/').unwrap().1.to_owned(), bytes))
        .collect();
    pack::folder(&dir.path().join("folder"), &files);
    let tar = pack::tar(&files);
    pack::write(&dir.path().join("a.tar"), &tar);
    pack::write(&dir.path().join("a.tgz"), &pack::gzip(&tar));
    pack::write(&dir.path().join("a.zip"), &pack::zip(&files));
    let lists = ["train", "test"].map(|part| {
        let names = files.iter().enumerate();
        let wanted = names.filter(|(i, _)| (i % 3 == 0) == (part == "test"));
        let lines: String = wanted
            .map(|(_, (name, _))| format!("set/{name}\n"))
            .collect();
        let path = dir.path().join(format!("{part}.txt"));
        fs::write(&path, lines).unwrap();
        path
    });
    let kinds = [
        "",
        "kind = \"stratified\"\ntest_fraction = 0.4\nseed = 3",
        "kind = \"random\"\nseed = 2\ntest_fraction = 0.4",
        "kind = \"l2p\"\ntest_fraction = 0.4",
        &format!(
            "kind = \"lists\"\ntrain = {:?}\ntest = {:?}",
            lists[0], lists[1]
        ),
    ];
    for kind in kinds {
        let split: TestSplit = toml::from_str(kind).unwrap();
        let parts = open_path(&dir.path().join("folder"), Some(&split)).unwrap();
        assert_eq!(parts.train.len() + parts.test.len(), 24);
        for path in [
            dir.path().join("a.tar"),
            dir.path().join("a.tgz"),
            dir.path().join("a.zip"),
            fixture("whole.parquet"),
        ] {
            let what = format!("{kind} {}", path.display());
            same(&parts, &open_path(&path, Some(&split)).unwrap(), &what);
        }
    }
}

#[test]
fn folders_below_a_class_and_class_folders_alone_are_as_in_a_folder() {
    let dir = TempDir::new().unwrap();
    let bytes = pictures().remove(0).1;
    let files: Vec<_> = [
        "train/cat/sketch/2.png",
        "train/cat/a.PNG",
        "train/cat/sketch/1.png",
        "train/dog/1.png",
        "train/dog/.hidden.png",
        "train/dog/._1.png",
        "test/cat/art/1.png",
        "test/dog/9.png",
        "val/dog/9.png",
    ]
    .iter()
    .map(|name| ((*name).to_owned(), bytes.clone()))
    .collect();
    pack::folder(&dir.path().join("folder"), &files);
    pack::write(&dir.path().join("a.tar"), &pack::tar(&files));
    pack::write(&dir.path().join("a.zip"), &pack::zip(&files));
    let parts = open_path(&dir.path().join("folder"), None).unwrap();
    let names: Vec<String> = (0..parts.train.len())
        .map(|i| parts.train.name(i))
        .collect();
    assert_eq!(
        names,
        [
            "train/cat/a.PNG",
            "train/cat/sketch/1.png",
            "train/cat/sketch/2.png",
            "train/dog/1.png"
        ]
    );
    for archive in ["a.tar", "a.zip"] {
        same(
            &parts,
            &open_path(&dir.path().join(archive), None).unwrap(),
            archive,
        );
    }
}

#[test]
fn a_set_in_pieces_by_domain_is_one_set() {
    let dir = TempDir::new().unwrap();
    let bytes = pictures().remove(0).1;
    let named = |names: &[&str]| -> Vec<(String, Vec<u8>)> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), bytes.clone()))
            .collect()
    };
    // As DomainNet comes: an archive for each domain, the domain its topmost folder.
    let card: candlewick_sets::Card = toml::from_str(
        r#"
        name = "x"
        about = ""
        licence = ""
        paper = ""
        page = ""
        divided = ""
        class_names = ""
        [[source]]
        name = "authors"
        about = ""
        by_hand = "x"
        reading = { layout = "domain/class", test_domains = ["s3"] }
        [[source.file]]
        name = "s1.zip"
        [[source.file]]
        name = "s3.zip"
        "#,
    )
    .unwrap();
    for (domain, images) in [
        ("s1", vec!["s1/cat/1.png", "s1/dog/1.png"]),
        ("s3", vec!["s3/cat/1.png", "s3/dog/1.png"]),
    ] {
        pack::write(
            &dir.path().join(format!("{domain}.zip")),
            &pack::zip(&named(&images)),
        );
    }
    let parts = candlewick_sets::open_card(&card, dir.path(), None, true).unwrap();
    let names = |source: &dyn Source| {
        (0..source.len())
            .map(|i| source.name(i))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(parts.train.as_ref()),
        ["train/cat/s1/1.png", "train/dog/s1/1.png"]
    );
    assert_eq!(
        names(parts.test.as_ref()),
        ["test/cat/s3/1.png", "test/dog/s3/1.png"]
    );
}

#[test]
fn lists_beside_the_archives_divide_them() {
    let dir = TempDir::new().unwrap();
    let bytes = pictures().remove(0).1;
    let card = |lists: &str| -> candlewick_sets::Card {
        let text = format!(
            r#"
            name = "x"
            about = ""
            licence = ""
            paper = ""
            page = ""
            divided = ""
            class_names = ""
            [[source]]
            name = "authors"
            about = ""
            by_hand = "x"
            reading = {{ layout = "domain/class", train_lists = ["a_train.txt"], test_lists = ["a_test.txt"{lists}] }}
            [[source.file]]
            name = "a.zip"
            [[source.file]]
            name = "a_train.txt"
            [[source.file]]
            name = "a_test.txt"
            "#
        );
        toml::from_str(&text).unwrap()
    };
    let files: Vec<_> = [
        "a/cat/1.png",
        "a/cat/2.png",
        "a/dog/1.png",
        "a/dog/2.png",
        "a/dog/3.png",
    ]
    .iter()
    .map(|name| ((*name).to_owned(), bytes.clone()))
    .collect();
    pack::write(&dir.path().join("a.zip"), &pack::zip(&files));
    fs::write(
        dir.path().join("a_train.txt"),
        "a/cat/1.png 0\na/dog/2.png 1\n",
    )
    .unwrap();
    fs::write(
        dir.path().join("a_test.txt"),
        "a/cat/2.png 0\na/dog/1.png 1\n",
    )
    .unwrap();
    let open = |lists: &str| candlewick_sets::open_card(&card(lists), dir.path(), None, true);
    let parts = open("").unwrap();
    let names = |source: &dyn Source| {
        (0..source.len())
            .map(|i| source.name(i))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        names(parts.train.as_ref()),
        ["train/cat/a/1.png", "train/dog/a/2.png"]
    );
    assert_eq!(
        names(parts.test.as_ref()),
        ["test/cat/a/2.png", "test/dog/a/1.png"]
    );

    fs::write(dir.path().join("more.txt"), "a/cat/9.png\n").unwrap();
    let said = open(", \"more.txt\"").err().unwrap().to_string();
    assert!(
        said.contains("more.txt: 1 of 5 images are not in"),
        "{said}"
    );
    fs::write(dir.path().join("more.txt"), "a/cat/1.png\n").unwrap();
    let said = open(", \"more.txt\"").err().unwrap().to_string();
    assert!(said.contains("`a/cat/1.png` is listed twice"), "{said}");
}

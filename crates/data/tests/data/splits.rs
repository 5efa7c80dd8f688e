//! Divisions of a data set in one piece, each against the definition of whoever made it.

use std::collections::BTreeSet;
use std::path::Path;

use candlewick_data::split::{Kind, torch_permutation};
use candlewick_data::{Folder, TestSplit};

use crate::folders::{folder, message, names, tree};

fn divided(root: &Path, split: TestSplit) -> Folder {
    Folder {
        split: Some(split),
        ..folder(root)
    }
}

fn of(kind: Kind) -> TestSplit {
    TestSplit {
        kind,
        ..TestSplit::default()
    }
}

/// `n01` and `n02` with images 00 to 05 each.
fn twelve() -> Vec<String> {
    let class = |class| (0..6).map(move |i| format!("{class}/{i:02}.png"));
    ["n01", "n02"].into_iter().flat_map(class).collect()
}

fn files(names: &[String]) -> tempfile::TempDir {
    tree(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// `torch.manual_seed(seed); torch.randperm(n)`, as torch printed it.
#[test]
fn the_permutation_is_torchs() {
    assert_eq!(torch_permutation(42, 10), [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]);
    assert_eq!(torch_permutation(0, 7), [4, 0, 5, 3, 2, 6, 1]);
    assert_eq!(torch_permutation((1 << 33) + 5, 6), [5, 0, 1, 3, 4, 2]);
    let long = torch_permutation(1993, 30_000);
    let first = [
        241, 4343, 7423, 14701, 12745, 10288, 22406, 16429, 7247, 14889,
    ];
    assert_eq!(long[..10], first);
    assert_eq!(long[29_997..], [17720, 11326, 5783]);
    assert!(torch_permutation(1, 0).is_empty());
}

/// `torch.utils.data.random_split(images, [9, 3])` after `torch.manual_seed(42)`.
#[test]
fn a_random_division_is_that_of_the_pytorch_ports() {
    let root = files(&twelve());
    let split = TestSplit {
        seed: Some(42),
        ..of(Kind::Random)
    };
    let parts = divided(root.path(), split).open().unwrap();
    assert_eq!(
        names(&*parts.test),
        ["n01/03.png", "n01/05.png", "n02/03.png"]
    );
    assert_eq!(parts.train.len(), 9);
}

/// By `hashlib.md5(b"test" + b"n01_00.png")` and so on, the last 2 of 12.
#[test]
fn the_division_of_l2p_is_that_of_tensorflow_datasets() {
    let root = files(&twelve());
    let parts = divided(root.path(), of(Kind::L2p)).open().unwrap();
    assert_eq!(names(&*parts.test), ["n01/01.png", "n02/01.png"]);
}

#[test]
fn a_missing_file_moves_at_most_one_other() {
    let all: Vec<String> = (0..40).map(|i| format!("a/{i:02}.png")).collect();
    let test = |names_: &[String]| -> BTreeSet<String> {
        let root = files(names_);
        let parts = divided(root.path(), TestSplit::default()).open().unwrap();
        names(&*parts.test).into_iter().collect()
    };
    let whole = test(&all);
    assert_eq!(whole.len(), 8);
    for gone in 0..all.len() {
        let mut some = all.clone();
        let gone = some.remove(gone);
        let less = test(&some);
        let mut kept = whole.clone();
        kept.remove(&gone);
        assert!(kept.symmetric_difference(&less).count() <= 1, "{gone}");
    }
}

#[test]
fn lists_divide_as_they_say_and_order_classes_by_their_targets() {
    let root = files(&twelve());
    let list = |name: &str, text: String| {
        let path = root.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let yaml = |part: &dyn Fn(usize) -> bool| {
        let (mut data, mut targets) = ("data:\n".to_owned(), "targets:\n".to_owned());
        for (i, name) in twelve().iter().enumerate().filter(|(i, _)| part(*i)) {
            data += &format!("- data/imagenet-r/{name}\n");
            targets += if i < 6 { "- 1\n" } else { "- 0\n" };
        }
        data + &targets
    };
    let split = TestSplit {
        train: list("train.yaml", yaml(&|i| i % 6 < 4)),
        test: list("test.yaml", yaml(&|i| i % 6 >= 4)),
        ..of(Kind::Lists)
    };
    let parts = divided(root.path(), split).open().unwrap();
    assert_eq!(parts.test.classes(), ["n02", "n01"]);
    let test = ["n02/04.png", "n02/05.png", "n01/04.png", "n01/05.png"];
    assert_eq!(names(&*parts.test), test);
    assert_eq!([0, 1, 2, 3].map(|i| parts.test.label(i)), [0, 0, 1, 1]);
    assert_eq!(parts.train.len(), 8);

    // Plain lines, with a label behind the path, of some of the images.
    let lines = |names: &[&str]| names.iter().map(|name| format!("{name} 3\n")).collect();
    let split = TestSplit {
        train: list("train.txt", lines(&["n02/01.png", "n01/00.png"])),
        test: list("test.txt", lines(&["n01/02.png", "n02/02.png"])),
        ..of(Kind::Lists)
    };
    let parts = divided(root.path(), split.clone()).open().unwrap();
    assert_eq!(parts.train.classes(), ["n01", "n02"]);
    assert_eq!(names(&*parts.train), ["n01/00.png", "n02/01.png"]);

    let said = |train: String, ending: &str| {
        let split = TestSplit {
            train: list(&format!("bad.{ending}"), train),
            ..split.clone()
        };
        message(&divided(root.path(), split))
    };
    for (text, ending, part) in [
        (
            "n01/00.png\nn01/99.png\nn02/77.png\n",
            "txt",
            "2 of 3 images are not in",
        ),
        (
            "n01/00.png\nn02/02.png\n",
            "txt",
            "`n02/02.png` is listed twice",
        ),
        ("n01/00.png\n", "txt", "class `n02` is in `the test part`"),
        ("\n", "txt", "names no image"),
        (
            "data: [n01/00.png]\ntargets: [1, 2]\n",
            "yaml",
            "2 targets for 1 images",
        ),
        ("data:\n  n01/00.png: 1\n", "yaml", "expected YAML"),
        (
            "data: [n01/00.png, n01/01.png]\ntargets: [1, 2]\n",
            "yaml",
            "several targets",
        ),
    ] {
        let found = said(text.into(), ending);
        assert!(found.contains(part), "{part}: {found}");
    }
}

/// Of the length of ImageNet-R's.
#[test]
fn a_long_list_is_read() {
    let all: Vec<String> = (0..30_000)
        .map(|i| format!("c{}/{i}.png", i % 200))
        .collect();
    let root = tempfile::tempdir().unwrap();
    let mut text = "data:\n".to_owned();
    for name in &all[..24_000] {
        text += &format!("- imagenet-r/{name}\n");
    }
    text += "targets:\n";
    for i in 0..24_000 {
        text += &format!("- {}\n", i % 200);
    }
    let path = root.path().join("train.yaml");
    std::fs::write(&path, text).unwrap();
    let split = TestSplit {
        train: Some(path.clone()),
        test: Some(path),
        ..of(Kind::Lists)
    };
    std::fs::create_dir(root.path().join("c0")).unwrap();
    std::fs::write(root.path().join("c0/0.png"), "").unwrap();
    let said = message(&divided(root.path(), split));
    assert!(said.contains("23999 of 24000 images are not in"), "{said}");
}

#[test]
fn keys_of_another_kind_are_refused() {
    let root = files(&twelve());
    let said = |split: TestSplit| message(&divided(root.path(), split));
    let text = said(TestSplit {
        seed: Some(1),
        ..of(Kind::L2p)
    });
    assert!(
        text.contains("split.seed") && text.contains("kind = \"l2p\""),
        "{text}"
    );
    let text = said(TestSplit {
        train: Some("a".into()),
        ..TestSplit::default()
    });
    assert!(text.contains("split.train"), "{text}");
    let text = said(of(Kind::Lists));
    assert!(
        text.contains("split.train") && text.contains("missing"),
        "{text}"
    );
}

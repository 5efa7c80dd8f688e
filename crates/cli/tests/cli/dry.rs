//! `--dry-run`.

use crate::lab::{Lab, Said, precisions};

fn works(said: &Said, parts: &[&str]) {
    assert_eq!(said.code, Some(0), "{}", said.err);
    for part in parts {
        assert!(said.out.contains(part), "no {part:?} in: {}", said.out);
    }
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let lab = Lab::new();
    let before = lab.names("");
    let said = lab.say("run l2p.toml --dry-run --out made");
    works(
        &said,
        &[
            "method    l2p: ",
            "precision f32 on cpu\n",
            "backbone  vit-micro: here (embedded)",
            "depth 2, width 128, 4 heads, patch 8, 64 px: 65 tokens",
            // Prompts, keys and a head for six classes.
            &format!("trainable {} parameters", 4 * 2 * 128 + 4 * 128 + 6 * 129),
            "memory    about ",
            "6 classes, 30 training and 24 test images in all",
        ],
    );
    let table: Vec<Vec<&str>> = said
        .out
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    assert_eq!(table.len(), 4, "{}", said.out);
    for (t, row) in table[1..].iter().enumerate() {
        assert_eq!(row[1..5], [(t + 1).to_string().as_str(), "2", "10", "8"]);
    }
    assert_eq!(lab.names(""), before, "a dry run wrote something");
}

#[test]
fn a_dry_run_says_the_precision() {
    let lab = Lab::new();
    for precision in precisions() {
        let said = lab.say(&format!(
            "run l2p.toml --dry-run --set precision={precision}"
        ));
        works(&said, &[&format!("precision {precision} on cpu\n")]);
    }
    let said = lab.say("run l2p.toml --dry-run --set precision=fp8");
    said.failed(&["`precision`", "`fp8`", "`auto`", "`f32`", "`bf16`"]);
}

#[test]
fn a_card_that_is_not_here_is_reckoned_without_being_fetched() {
    let lab = Lab::new();
    let before = lab.names("");
    // Reaching for the network would fail: the port is closed and this is not offline.
    let output = lab
        .command()
        .env_remove("HF_HUB_OFFLINE")
        .args(["run", "l2p.toml", "--dry-run", "--out", "made"])
        .args(["--set", "backbone.name=vit_base_patch16_224.augreg_in21k"])
        .args(["--set", "backbone.depth=12"])
        .args(["--set", "method.prompts=10", "--set", "method.length=5"])
        .args(["--set", "method.top_k=5"])
        .output()
        .unwrap();
    works(
        &Said::of(output),
        &[
            "vit_base_patch16_224.augreg_in21k: not here, would be fetched",
            "depth 12, width 768, 12 heads, patch 16, 224 px: 197 tokens, 85.8 M",
            // Prompts, keys and a head for six classes.
            &format!("trainable {} parameters", 38_400 + 7_680 + 6 * 769),
            "memory    about ",
            "6 classes",
        ],
    );
    assert_eq!(
        lab.names(""),
        before,
        "a dry run wrote or fetched something"
    );
}

#[test]
fn a_dry_run_finds_what_a_run_would() {
    let lab = Lab::new();
    for (set, parts) in [
        ("method.top_k=9", ["method.top_k", "method.prompts = 4"]),
        ("stream.increment=7", ["stream.increment", "has 6"]),
        ("preprocess.crop=60", ["60 px is not a multiple", "crop"]),
        ("backbone.depth=7", ["backbone.depth", "6 blocks"]),
        ("data.path=nowhere", ["nowhere", "no such folder"]),
    ] {
        let said = lab.say(&format!("run l2p.toml --dry-run --set {set}"));
        said.failed(&parts);
    }
    let base = "--set backbone.name=vit_base_patch16_224.augreg_in21k";
    for (set, parts) in [
        ("preprocess.crop=230", ["230 px is not a multiple", "crop"]),
        ("backbone.depth=13", ["backbone.depth", "12 blocks"]),
    ] {
        let said = lab.say(&format!("run l2p.toml --dry-run {base} --set {set}"));
        said.failed(&parts);
    }
}

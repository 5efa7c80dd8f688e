//! `candlewick merge`, on what runs leave.

use std::fs;

use crate::lab::Lab;

#[test]
fn runs_are_merged_as_their_files_are() {
    let lab = Lab::new();
    for seed in [1, 2] {
        let said = lab.say(&format!(
            "run linear.toml --set seed={seed} --out run-{seed}"
        ));
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
    let bytes = |name: &str| fs::read(lab.path(name)).unwrap();
    let merge = |line: &str| {
        let said = lab.say(&format!("merge {line}"));
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(said.out.contains(" of 2 models"), "{}", said.out);
    };
    let (one, two) = (
        bytes("run-1/params.safetensors"),
        bytes("run-2/params.safetensors"),
    );
    assert_ne!(one, two);
    // The file of a run with itself, byte for byte, and each of two at the ends of what lies between them.
    for rule in ["average", "ema", "wise", "task-arithmetic"] {
        merge(&format!("run-1 run-1 --rule {rule} --out same"));
        assert_eq!(bytes("same"), one, "{rule}");
    }
    let ends = [
        ("--rule wise --alpha 0", &one),
        ("--rule wise --alpha 1", &two),
    ];
    for (rule, want) in ends {
        merge(&format!("run-1 run-2/params.safetensors {rule} --out end"));
        assert_eq!(&bytes("end"), want, "{rule}");
    }
    merge("run-1 run-2 --rule average --only head.0. --out half");
    assert!(bytes("half").len() < one.len());
}

#[test]
fn a_merge_that_makes_no_sense_says_why() {
    let lab = Lab::new();
    for method in ["linear", "l2p"] {
        let said = lab.say(&format!("run {method}.toml --out {method}"));
        assert_eq!(said.code, Some(0), "{}", said.err);
    }
    let cases: [(&str, &[&str]); 5] = [
        (
            "linear linear --rule average --alpha 0.5",
            &["--alpha belongs to --rule wise"],
        ),
        (
            "linear linear --rule wise --alpha 2",
            &["`alpha`", "between 0 and 1", "found 2"],
        ),
        (
            "linear linear --rule fisher",
            &["no information on `head.0.bias`"],
        ),
        (
            "linear l2p --rule average",
            &["is in the second alone", "--only"],
        ),
        (
            "linear nothing --rule average",
            &["nothing: cannot read it"],
        ),
    ];
    for (line, parts) in cases {
        let said = lab.say(&format!("merge {line} --out out"));
        said.failed(parts);
        assert!(!lab.path("out").exists(), "{line}");
    }
}

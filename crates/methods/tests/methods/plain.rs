//! Methods without prompts, and what is checked for all.

use candlewick_core::{OptimizerKind, Train};
use candlewick_methods::{Linear, MethodConfig, SimpleCil, conformance};

use crate::lab::{conforms, micro, odd_stream, quick};

#[test]
fn linear_keeps_the_laws() {
    conforms(MethodConfig::Linear(Linear {}), false).unwrap();
}

#[test]
fn simplecil_keeps_the_laws() {
    conforms(MethodConfig::SimpleCil(SimpleCil {}), false).unwrap();
}

/// Weight decay reaches what is trained, not the heads of earlier tasks.
#[test]
fn old_heads_stand_still_under_weight_decay() {
    let backbone = micro();
    let weights = backbone.weights().clone();
    let train = Train {
        optimizer: OptimizerKind::AdamW,
        weight_decay: 0.1,
        ..quick()
    };
    let linear = MethodConfig::Linear(Linear {});
    let build = || linear.build(backbone.clone(), Some(&train), 16, 5);
    conformance::check(&build, &odd_stream(false), &weights).unwrap();
}

#[test]
fn settings_out_of_range_are_named() {
    let mut train = quick();
    train.lr = 0.0;
    assert!(train.check().unwrap_err().to_string().contains("train.lr"));
    let linear = MethodConfig::Linear(Linear {});
    assert!(
        linear
            .check(None)
            .unwrap_err()
            .to_string()
            .contains("epochs")
    );
    let simplecil = MethodConfig::SimpleCil(SimpleCil {});
    let text = simplecil.check(Some(&quick())).unwrap_err().to_string();
    assert!(text.contains("remove the table"), "{text}");
}

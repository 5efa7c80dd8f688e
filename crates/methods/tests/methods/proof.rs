//! PROOF against the formulas of its authors, and its laws.

use candle_core::Tensor;
use candlewick_core::{Batch, Method, Session, State, TaskInfo};
use candlewick_methods::exemplars::{Choice, Memory};
use candlewick_methods::proof::{Fusion, OldText, Projections, TestImage};
use candlewick_methods::{MethodConfig, Proof, Templates};
use candlewick_vit::Precision;

use crate::clip::lines;
use crate::lab::{
    CLIP, clip_fixture, clip_of, conforms, difference, here, max_abs, quick, task, tensors,
};

fn config() -> Proof {
    Proof {
        templates: Templates::Own(vec!["{}".into()]),
        contexts: 3,
        dropout: 0.0,
        memory: Memory {
            total: None,
            per_class: Some(2),
            choice: Choice::Herding,
        },
        fusion: Fusion::Image,
        old_text: OldText::Frozen,
        test_image: TestImage::Unit,
    }
}

#[test]
fn proof_keeps_the_laws() {
    let config = Proof {
        templates: Templates::default(),
        dropout: 0.1,
        ..config()
    };
    conforms(MethodConfig::Proof(config), false).unwrap();
}

/// Two tasks of four and two classes, called as the fixture's texts.
fn tasks() -> [TaskInfo; 2] {
    let names = lines(&[0, 1, 2, 4, 9, 19]);
    let (mut first, mut second) = (task(0, 0..4), task(1, 4..6));
    first.names = names[..4].to_vec();
    second.names = names[4..].to_vec();
    [first, second]
}

/// The second task under way, with the parameters of the fixture.
fn under_way(config: &Proof) -> Projections {
    let fixture = tensors(here("tests/fixtures/proof.safetensors"));
    let (backbone, _) = clip_of(&clip_fixture(), Precision::F32, 32);
    let build = || config.build(backbone.clone(), quick(), 8, 1).unwrap();
    let mut fresh = build();
    for task in tasks() {
        fresh.begin_task(&task).unwrap();
    }
    let mut state: State = fresh.state().unwrap();
    for (name, tensor) in &mut state {
        if let Some(given) = fixture.get(&format!("in.{name}")) {
            assert_eq!(tensor.dims(), given.dims(), "{name}");
            *tensor = given.clone();
        }
    }
    let session: Session = fresh.session().unwrap();
    assert!(!session.is_empty(), "the optimiser is in it");
    let mut method = build();
    method.resume(&tasks(), &state, session).unwrap();
    method
}

fn batch() -> Batch {
    let data = tensors(here(CLIP).join("data.safetensors"));
    Batch {
        images: data["in.pixel_values"].clone(),
        labels: vec![1, 4, 5],
        ids: vec![0, 1, 2],
        plain: false,
    }
}

#[test]
fn loss_gradients_and_scores_are_those_of_the_reference() {
    let fixture = tensors(here("tests/fixtures/proof.safetensors"));
    for (name, fusion) in [("image", Fusion::Image), ("batch", Fusion::Batch)] {
        let method = under_way(&Proof { fusion, ..config() });
        let scores = method.predict(&batch()).unwrap();
        let want = &fixture[&format!("{name}.scores")];
        assert!(difference(&scores, want) < 1e-4, "{name}");
        let loss = method.loss(&batch()).unwrap();
        let want = &fixture[&format!("{name}.loss")];
        assert!(difference(&loss, want) < 1e-4, "{name}");
        let grads = loss.backward().unwrap();
        let mut held = 0;
        for (parameter, var) in method.params().named() {
            let want = fixture.get(&format!("{name}.grad.{parameter}"));
            let got: Option<&Tensor> = grads.get(&var);
            assert_eq!(got.is_some(), want.is_some(), "{name} {parameter}");
            let (Some(got), Some(want)) = (got, want) else {
                continue;
            };
            let off = difference(got, want) / max_abs(want);
            assert!(off < 2e-4, "{name} {parameter}: {off}");
            held += 1;
        }
        // Two projections, the fusion, the contexts of the task and the scale.
        assert_eq!(held, 4 + 7 + 1 + 1);
        let raw = Proof {
            fusion,
            test_image: TestImage::Raw,
            ..config()
        };
        let scores = under_way(&raw).predict(&batch()).unwrap();
        let want = &fixture[&format!("{name}.raw")];
        assert!(difference(&scores, want) < 1e-4, "{name} raw");
    }
}

/// As the reference has it, projections of texts of earlier tasks have a gradient.
#[test]
fn old_projections_of_texts_train_when_asked() {
    for (old_text, trains) in [(OldText::Frozen, false), (OldText::Trains, true)] {
        let method = under_way(&Proof {
            old_text,
            ..config()
        });
        let grads = method.loss(&batch()).unwrap().backward().unwrap();
        let name = "projection.0.text.weight";
        let var = method.params().named().into_iter().find(|(n, _)| n == name);
        assert_eq!(grads.get(&var.unwrap().1).is_some(), trains);
    }
}

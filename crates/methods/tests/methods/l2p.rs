//! L2P against the values, gradients and steps of its PyTorch port.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::{Backbone, Batch, Error, Method, OptimizerKind, Schedule, State, Train};
use candlewick_methods::{BatchVote, L2p, MethodConfig};

use crate::lab::{Tensors, conforms, difference, here, max_abs, micro, quick, task, tensors, tiny};

/// The fixture's mask is classes 4 to 7: its second task. Rows 8 and 9 of its head belong to classes
/// that have not arrived; here they do not exist.
fn fixture_state(all: &Tensors, prefix: &str) -> State {
    let get = |name: &str| all[&format!("{prefix}{name}")].clone();
    let part = |name: &str, task: usize| get(name).narrow(0, 4 * task, 4).unwrap();
    let mut state = BTreeMap::from([
        ("prompts".to_owned(), get("prompts")),
        ("keys".to_owned(), get("keys")),
    ]);
    for task in 0..2 {
        for name in ["weight", "bias"] {
            let rows = part(&format!("head.{name}"), task);
            state.insert(format!("head.{task}.{name}"), rows);
        }
    }
    state
}

#[test]
fn l2p_matches_its_authors_values_gradients_and_steps() {
    let all = tensors(here("tests/fixtures/l2p.safetensors"));
    let images = all["in.images"].clone();
    let targets: Vec<i64> = all["in.targets"].to_vec1().unwrap();
    let batch = Batch {
        images,
        labels: targets.iter().map(|&t| t as u32).collect(),
        ids: (0..6).collect(),
        plain: false,
    };
    for (mode, batch_vote) in [
        ("perimage", BatchVote::Never),
        ("batchwise", BatchVote::Always),
    ] {
        let config = L2p {
            prompts: 6,
            length: 3,
            top_k: 2,
            pull: 0.1,
            prompt_init: [-1.0, 1.0],
            key_init: [-1.0, 1.0],
            batch_vote,
        };
        let train = Train {
            epochs: 1,
            batch: 6,
            optimizer: OptimizerKind::Adam,
            lr: 0.01,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            clip: Some(1.0),
        };
        let backbone = tiny();
        let query = backbone.query(&batch.images).unwrap();
        assert!(difference(&query, &all["out.query"]) < 5e-5);
        let mut method = config.build(backbone, train, 0).unwrap();
        let tasks = [task(0, 0..4), task(1, 4..8)];
        method.restore(&tasks, &fixture_state(&all, "p.")).unwrap();

        let similarity = method.prompt().similarity(&query).unwrap();
        assert!(difference(&similarity, &all["out.similarity"]) < 5e-5);
        let chosen = method.prompt().choose(&similarity, false).unwrap();
        let want: Vec<Vec<i64>> = all[&format!("{mode}.out.prompt_idx")].to_vec2().unwrap();
        for (got, want) in chosen.iter().zip(&want) {
            let (mut got, mut want): (Vec<i64>, Vec<i64>) =
                (got.iter().map(|&i| i64::from(i)).collect(), want.clone());
            if batch_vote != BatchVote::Never {
                // The order among equal counts is left open by the reference.
                got.sort_unstable();
                want.sort_unstable();
            }
            assert_eq!(got, want, "{mode}");
        }

        let (features, _) = method.features(&batch, None, false).unwrap();
        assert!(difference(&features, &all[&format!("{mode}.out.pre_logits")]) < 5e-5);
        let logits = all[&format!("{mode}.out.logits")].narrow(1, 0, 8).unwrap();
        assert!(difference(&method.predict(&batch).unwrap(), &logits) < 5e-5);

        let loss = method.loss(&batch).unwrap();
        let want: Vec<f32> = all[&format!("{mode}.out.loss")].to_vec1().unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() - want[0]).abs() < 5e-5);
        let grads = loss.backward().unwrap();
        let want_grads = fixture_state(&all, &format!("{mode}.grad."));
        for (name, want) in &want_grads {
            let got = grads.get(&method.params().get(name).unwrap());
            if name.starts_with("head.0.") {
                assert!(got.is_none() && max_abs(want) == 0.0, "{mode} {name}");
                continue;
            }
            let far = difference(got.unwrap(), want);
            assert!(far < 1e-4 * max_abs(want), "{mode} {name}");
        }
        for step in ["step1", "step2"] {
            method.observe(&batch).unwrap();
            let want = fixture_state(&all, &format!("{mode}.{step}."));
            for (name, got) in method.state().unwrap() {
                // Adam moves entries of a vanishing gradient by up to lr in a direction that
                // rounding decides; those are left out, as the fixture says.
                let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let (got, want, grad) = (flat(&got), flat(&want[&name]), flat(&want_grads[&name]));
                for i in 0..got.len() {
                    let bound = if grad[i] != 0.0 && grad[i].abs() < 1e-4 {
                        0.021
                    } else {
                        1e-5
                    };
                    assert!(
                        (got[i] - want[i]).abs() < bound,
                        "{mode} {step} {name}[{i}]"
                    );
                }
            }
        }
    }
}

fn small_pool(batch_vote: BatchVote) -> L2p {
    L2p {
        prompts: 4,
        length: 2,
        top_k: 2,
        pull: 0.1,
        prompt_init: [-1.0, 1.0],
        key_init: [-1.0, 1.0],
        batch_vote,
    }
}

#[test]
fn l2p_keeps_the_laws_on_augmented_images() {
    let config = MethodConfig::L2p(small_pool(BatchVote::Never));
    conforms(config, true).unwrap();
}

/// The suite has teeth: the published vote makes predictions depend on their batch, and it says so.
#[test]
fn the_batch_vote_breaks_the_law_of_batches() {
    // Keys that are not pulled stay apart, so that images disagree.
    let config = MethodConfig::L2p(L2p {
        prompts: 8,
        top_k: 1,
        pull: 0.0,
        ..small_pool(BatchVote::Always)
    });
    let text = conforms(config, false).unwrap_err().to_string();
    assert!(text.contains("in a batch of"), "{text}");
}

#[test]
fn a_choice_of_more_than_there_is() {
    let mut config = small_pool(BatchVote::Never);
    config.top_k = 5;
    let Err(Error::Setting { key, problem }) = config.check() else {
        panic!("top_k = 5 of 4 prompts must fail");
    };
    assert_eq!(key, "method.top_k");
    assert!(problem.contains("method.prompts = 4, found 5"), "{problem}");
}

/// 38 400 prompt, 7 680 key and 153 800 head values, as a published log counts them for 200 classes.
#[test]
fn trainable_values_of_l2p_on_a_base_model() {
    let (prompts, length, dim, classes) = (10, 5, 768, 200);
    let config = L2p {
        prompts,
        length,
        top_k: 5,
        ..small_pool(BatchVote::Never)
    };
    let backbone = micro();
    let width = backbone.spec().dim;
    let mut method = config.build(backbone, quick(), 0).unwrap();
    method.begin_task(&task(0, 0..classes)).unwrap();
    assert_eq!(
        method.trainable(),
        prompts * length * width + prompts * width + classes * (width + 1)
    );
    assert_eq!(
        prompts * length * dim + prompts * dim + classes * (dim + 1),
        199_880
    );
}

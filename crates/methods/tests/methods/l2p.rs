//! L2P against the values, gradients and steps of its PyTorch port.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::{Backbone, Batch, Cue, Error, Method, OptimizerKind, State, Train};
use candlewick_methods::draw::CodeBase;
use candlewick_methods::l2p::Layout;
use candlewick_methods::{BatchVote, Draw, L2p, MethodConfig};
use candlewick_vit::Precision;

use crate::base::trainable;
use crate::lab::{
    Tensors, choosing, conforms, difference, gradient_holds, here, holds, max_abs, quick, task,
    tensors, tiny, tiny_in,
};
use crate::near::precisions;

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
    let modes = [
        ("perimage", BatchVote::Never),
        ("batchwise", BatchVote::Always),
    ];
    let precisions = precisions().into_iter();
    for (precision, (mode, batch_vote)) in precisions.flat_map(|p| modes.map(|mode| (p, mode))) {
        let holds = |got: &Tensor, want: &Tensor, what: &str| {
            holds(precision, got, want, 5e-5, &format!("{mode} {what}"));
        };
        let config = L2p {
            prompts: 6,
            length: 3,
            top_k: 2,
            pull: 0.1,
            prompt_init: Draw::Between([-1.0, 1.0]),
            key_init: Draw::Between([-1.0, 1.0]),
            layout: Layout::V1,
            prompt_mask: false,
            batch_vote,
        };
        let train = Train {
            clip: Some(1.0),
            ..Train::new(1, 6, OptimizerKind::Adam, 0.01)
        };
        let own = tiny_in(precision).query(&batch.images).unwrap();
        holds(&own, &all["out.query"], "query");
        let backbone = choosing(precision, &all["out.query"]);
        let query = backbone.query(&batch.images).unwrap();
        let mut method = config.build(backbone, train, 0).unwrap();
        let tasks = [task(0, 0..4), task(1, 4..8)];
        method.restore(&tasks, &fixture_state(&all, "p.")).unwrap();

        let similarity = method.prompt().similarity(&query).unwrap();
        assert!(
            difference(&similarity, &all["out.similarity"]) < 5e-5,
            "{mode}"
        );
        let chosen = method
            .prompt()
            .choose(&similarity, &Cue::default())
            .unwrap();
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
        let want = &all[&format!("{mode}.out.pre_logits")];
        holds(&features, want, "features");
        let logits = all[&format!("{mode}.out.logits")].narrow(1, 0, 8).unwrap();
        holds(&method.predict(&batch).unwrap(), &logits, "logits");

        let loss = method.loss(&batch).unwrap();
        let want = &all[&format!("{mode}.out.loss")];
        holds(&loss.reshape(1).unwrap(), want, "loss");
        let grads = loss.backward().unwrap();
        let want_grads = fixture_state(&all, &format!("{mode}.grad."));
        for (name, want) in &want_grads {
            let got = grads.get(&method.params().get(name).unwrap());
            if name.starts_with("head.0.") {
                assert!(got.is_none() && max_abs(want) == 0.0, "{mode} {name}");
                continue;
            }
            gradient_holds(precision, got.unwrap(), want, &format!("{mode} {name}"));
        }
        // Adam's first steps are about lr times the sign of the gradient, and bf16 may turn the sign of small ones: a
        // step off by 2·lr there would be no fault.
        if precision == Precision::Bf16 {
            continue;
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
        prompt_init: Draw::Of(CodeBase::PyTorch),
        key_init: Draw::Of(CodeBase::PyTorch),
        layout: Layout::V1,
        prompt_mask: false,
        batch_vote,
    }
}

#[test]
fn l2p_keeps_the_laws_on_augmented_images() {
    let config = MethodConfig::L2p(small_pool(BatchVote::Never));
    conforms(config, true).unwrap();
    let config = MethodConfig::L2p(L2p {
        layout: Layout::V2,
        prompts: 8,
        prompt_mask: true,
        ..small_pool(BatchVote::Train)
    });
    conforms(config, false).unwrap();
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

/// v2 gives prompts no position: it equals v1 whose prompts have that of CLS taken off beforehand.
#[test]
fn the_layouts_differ_by_the_position_of_prompts() {
    let all = tensors(here("tests/fixtures/l2p.safetensors"));
    let weights = tensors(here("../vit/tests/fixtures/vit_timm/data.safetensors"));
    let cls_position = weights["w.pos_embed"].narrow(1, 0, 1).unwrap();
    let batch = Batch {
        images: all["in.images"].clone(),
        labels: vec![4; 6],
        ids: (0..6).collect(),
        plain: false,
    };
    let logits = |layout, shift: Option<&Tensor>| {
        let config = L2p {
            prompts: 6,
            length: 3,
            layout,
            ..small_pool(BatchVote::Never)
        };
        let mut method = config.build(tiny(), quick(), 0).unwrap();
        let mut state = fixture_state(&all, "p.");
        if let Some(shift) = shift {
            let moved = state["prompts"].broadcast_add(shift).unwrap();
            state.insert("prompts".into(), moved);
        }
        let tasks = [task(0, 0..4), task(1, 4..8)];
        method.restore(&tasks, &state).unwrap();
        method.predict(&batch).unwrap()
    };
    let v1 = logits(Layout::V1, None);
    assert!(difference(&v1, &logits(Layout::V2, None)) > 1e-3);
    assert!(difference(&v1, &logits(Layout::V2, Some(&cls_position))) < 5e-6);
}

#[test]
fn the_mask_gives_each_task_its_prompts() {
    let config = L2p {
        prompts: 5,
        prompt_mask: true,
        ..small_pool(BatchVote::Train)
    };
    let mut method = config.build(tiny(), quick(), 0).unwrap();
    let rows = vec![vec![0.9f32, 0.0, 0.8, 0.0, 0.0]; 2];
    let similarity = Tensor::new(rows, &candle_core::Device::Cpu).unwrap();
    let choose = |task, train| {
        let cue = Cue {
            task,
            train,
            ..Cue::default()
        };
        method.prompt().choose(&similarity, &cue).unwrap()[1].clone()
    };
    assert_eq!(choose(Some(0), true), [0, 1]);
    assert_eq!(choose(Some(1), true), [2, 3]);
    assert_eq!(choose(None, false), [0, 2]);
    // Prompts 4 and 5 would be next, but there are five.
    method.begin_task(&task(0, 0..2)).unwrap();
    method.begin_task(&task(1, 2..4)).unwrap();
    let Err(Error::Setting { key, problem }) = method.begin_task(&task(2, 4..6)) else {
        panic!("a third task must be refused");
    };
    assert_eq!(key, "method.prompts");
    assert!(
        problem.contains("found 5, but with prompt_mask 3 tasks need 6"),
        "{problem}"
    );
}

#[test]
fn both_code_bases_have_a_name() {
    let read = |init: &str| {
        let text = format!(
            "prompts = 4\nlength = 2\ntop_k = 2\npull = 0.1\nprompt_init = {init}\nkey_init = \"jax\""
        );
        toml::from_str::<L2p>(&text).map_err(|e| e.to_string())
    };
    let ends = |init| read(init).unwrap().prompt_init.ends();
    assert_eq!(ends("\"jax\""), [0.0, 0.01]);
    assert_eq!(ends("\"pytorch\""), [-1.0, 1.0]);
    assert_eq!(ends("[-0.5, 2]"), [-0.5, 2.0]);
    let text = read("\"keras\"").unwrap_err();
    assert!(text.contains("\"pytorch\" or [low, high]"), "{text}");
    let Err(Error::Setting { key, .. }) = read("[1, 1]").unwrap().check() else {
        panic!("an empty range must fail");
    };
    assert_eq!(key, "method.prompt_init");
    let config = read("\"jax\"").unwrap();
    assert_eq!(config.layout, Layout::V1);
    assert!(!config.prompt_mask && config.compat().is_empty());
    // What is recorded of a run reads back the same.
    let text = toml::to_string(&config).unwrap();
    assert_eq!(toml::from_str::<L2p>(&text).unwrap(), config);
}

/// 38 400 prompt, 7 680 key and 153 800 head values, as a published log counts them for 200 classes.
#[test]
fn trainable_values_of_l2p_on_a_base_model() {
    let config = MethodConfig::L2p(L2p {
        prompts: 10,
        length: 5,
        top_k: 5,
        ..small_pool(BatchVote::Never)
    });
    assert_eq!(trainable(&config, 10, 20), 199_880);
    assert_eq!(trainable(&config, 10, 10), 122_980);
}

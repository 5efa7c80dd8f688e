//! DualPrompt against the values and gradients of its PyTorch port, with the port's reshape mended and as it is.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{Backbone, Batch, Error, Method, OptimizerKind, Prompted, State, Train};
use candlewick_methods::draw::CodeBase;
use candlewick_methods::dualprompt::{Compat, Prefixes};
use candlewick_methods::{BatchVote, Draw, DualPrompt, MethodConfig};
use candlewick_vit::Precision;

use crate::base::trainable;
use crate::lab::{
    Tensors, choosing, conforms, difference, gradient_holds, here, holds, max_abs, micro,
    odd_stream, quick, task, tensors, tiny_in,
};
use crate::near::{BF16, precisions};

fn fixture() -> Tensors {
    tensors(here("tests/fixtures/dualprompt.safetensors"))
}

fn batch(all: &Tensors) -> Batch {
    let targets: Vec<i64> = all["in.targets"].to_vec1().unwrap();
    Batch {
        images: all["in.images"].clone(),
        labels: targets.iter().map(|&t| t as u32).collect(),
        ids: (0..6).collect(),
        plain: false,
    }
}

fn config() -> DualPrompt {
    DualPrompt {
        g_blocks: vec![0, 1],
        g_length: 3,
        e_blocks: vec![2, 3],
        e_length: 4,
        pull: 1.0,
        prompt_init: Draw::Of(CodeBase::PyTorch),
        key_init: Draw::Of(CodeBase::PyTorch),
        batch_vote: BatchVote::Never,
        compat: None,
    }
}

/// What the fixture has in one tensor, in the parts that grow with the tasks, of two classes each here.
fn state(all: &Tensors, prefix: &str, tasks: usize) -> State {
    let get = |name: &str| all[&format!("{prefix}{name}")].clone();
    let mut state = State::new();
    for i in 0..2 {
        let g = get("g_prompt").get(i).unwrap().flatten_from(2).unwrap();
        state.insert(format!("g.{i}"), g);
    }
    for t in 0..tasks {
        for i in 0..2 {
            // [layer, (key, value), pool, L, H, d]
            let e = get("e_prompt").get(i).unwrap();
            let e = e.narrow(1, t, 1).unwrap().squeeze(1).unwrap();
            state.insert(format!("e.{t}.{}", 2 + i), e.flatten_from(2).unwrap());
        }
        let rows = |name: &str, at, n| get(name).narrow(0, at, n).unwrap();
        state.insert(format!("keys.{t}"), rows("keys", t, 1));
        state.insert(format!("head.{t}.weight"), rows("head.weight", 2 * t, 2));
        state.insert(format!("head.{t}.bias"), rows("head.bias", 2 * t, 2));
    }
    state
}

fn build(
    config: &DualPrompt,
    backbone: Arc<dyn Backbone>,
    all: &Tensors,
    tasks: usize,
) -> Prompted<Prefixes> {
    let mut method = config.build(backbone, quick(), 0).unwrap();
    let infos: Vec<_> = (0..tasks).map(|t| task(t, 2 * t..2 * t + 2)).collect();
    method.restore(&infos, &state(all, "p.", tasks)).unwrap();
    method
}

fn close(precision: Precision, got: &Tensor, want: &Tensor, what: &str) {
    holds(precision, got, want, 5e-5, what);
}

fn gradients_match(
    precision: Precision,
    method: &Prompted<Prefixes>,
    loss: &Tensor,
    want: &State,
    what: &str,
) {
    let grads = loss.backward().unwrap();
    for (name, want) in want {
        let got = grads.get(&method.params().get(name).unwrap());
        let current = name.starts_with("g.") || name.split('.').nth(1) == Some("2");
        if current {
            gradient_holds(precision, got.unwrap(), want, &format!("{what} {name}"));
        } else {
            assert!(got.is_none() && max_abs(want) == 0.0, "{what} {name}");
        }
    }
}

/// The fixture trains task 2, counted from 0, of a pool of five.
#[test]
fn training_matches_its_authors_values_and_gradients() {
    let all = fixture();
    let batch = batch(&all);
    for precision in precisions() {
        let close = |got: &Tensor, want: &str| close(precision, got, &all[want], want);
        let method = build(&config(), tiny_in(precision), &all, 3);
        let (features, aux) = method.features(&batch, Some(2), true).unwrap();
        close(&features, "train.pre_logits");
        // A mean of cosines that nearly cancel: what it may be off goes by 1, the largest that one can be.
        let bound = match precision {
            Precision::Bf16 => BF16 as f32,
            _ => 5e-5,
        };
        let pull = aux.unwrap().neg().unwrap().reshape(1).unwrap();
        let far = difference(&pull, &all["train.reduce_sim"]);
        assert!(far < bound, "{far:e}");
        let loss = method.loss(&batch).unwrap();
        close(&loss.reshape(1).unwrap(), "train.loss");
        let want = state(&all, "train.grad.", 3);
        gradients_match(precision, &method, &loss, &want, "train");
    }
}

const VOTES: [(&str, BatchVote); 2] = [
    ("eval_perimage", BatchVote::Never),
    ("eval_batchwise", BatchVote::Always),
];

#[test]
fn each_image_chooses_for_itself_unless_the_batch_votes() {
    let all = fixture();
    let batch = batch(&all);
    for precision in precisions() {
        let close = |got: &Tensor, want: &str| close(precision, got, &all[want], want);
        let own = tiny_in(precision).query(&batch.images).unwrap();
        close(&own, "out.query");
        let backbone = choosing(precision, &all["out.query"]);
        let query = backbone.query(&batch.images).unwrap();
        for (name, batch_vote) in VOTES {
            let config = DualPrompt {
                batch_vote,
                ..config()
            };
            let method = build(&config, backbone.clone(), &all, 5);
            let similarity = method.prompt().similarity(&query).unwrap();
            close(&similarity, "out.similarity");
            let chosen = method.prompt().choose(&similarity).unwrap();
            let chosen: Vec<Vec<i64>> = chosen.iter().map(|&t| vec![i64::from(t)]).collect();
            let want: Vec<Vec<i64>> = all[&format!("{name}.prompt_idx")].to_vec2().unwrap();
            assert_eq!(chosen, want, "{name}");
            close(&method.predict(&batch).unwrap(), &format!("{name}.logits"));
        }
    }
}

/// The published layout gives the published numbers, far from those of the default.
#[test]
fn the_reshape_bug_is_reproduced_where_it_is_asked_for() {
    let all = fixture();
    let batch = batch(&all);
    let buggy = DualPrompt {
        compat: Some(Compat::ReshapeBug),
        ..config()
    };
    let mut all_grads = all.clone();
    for name in ["g_prompt", "keys", "head.weight", "head.bias"] {
        // The fixture has the gradient of the E-prompt alone; the others are left out below.
        let key = format!("buggy_layout.train.grad.{name}");
        all_grads.insert(key, all[&format!("train.grad.{name}")].clone());
    }
    let mut want = state(&all_grads, "buggy_layout.train.grad.", 3);
    want.retain(|name, _| name.starts_with("e."));
    for precision in precisions() {
        let close = |got: &Tensor, want: &str| close(precision, got, &all[want], want);
        let backbone = choosing(precision, &all["out.query"]);
        let method = build(&buggy, backbone.clone(), &all, 3);
        let loss = method.loss(&batch).unwrap();
        close(&loss.reshape(1).unwrap(), "buggy_layout.train.loss");
        gradients_match(precision, &method, &loss, &want, "buggy");

        for (name, batch_vote) in VOTES {
            let logits = |config: DualPrompt| {
                let config = DualPrompt {
                    batch_vote,
                    ..config
                };
                build(&config, backbone.clone(), &all, 5)
                    .predict(&batch)
                    .unwrap()
            };
            let got = logits(buggy.clone());
            close(&got, &format!("buggy_layout.{name}.logits"));
            assert!(difference(&got, &logits(config())) > 0.01, "{name}");
        }
    }
}

fn small() -> DualPrompt {
    DualPrompt {
        g_blocks: vec![0],
        g_length: 2,
        e_blocks: vec![1],
        e_length: 2,
        ..config()
    }
}

#[test]
fn dualprompt_keeps_the_laws() {
    conforms(MethodConfig::DualPrompt(small()), false).unwrap();
}

#[test]
fn the_reshape_bug_breaks_the_law_of_batches() {
    // Tasks that pull no key and start anywhere disagree about images.
    let config = DualPrompt {
        pull: 0.0,
        compat: Some(Compat::ReshapeBug),
        ..small()
    };
    let text = conforms(MethodConfig::DualPrompt(config), false)
        .unwrap_err()
        .to_string();
    assert!(text.contains("in a batch of"), "{text}");
}

/// A task starts from the prefixes of the one before; those then stand still, even under weight decay, and keys are not
/// copied.
#[test]
fn prefixes_are_copied_and_those_of_earlier_tasks_stand_still() {
    let train = Train {
        optimizer: OptimizerKind::AdamW,
        weight_decay: 0.1,
        ..quick()
    };
    let mut method = small().build(micro(), train, 3).unwrap();
    let stream = odd_stream(false);
    let bits = |state: &State, name: &str| -> Vec<u32> {
        let values: Vec<f32> = state[name].flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    let view = candlewick_core::View::Train { seed: 1, epoch: 0 };
    for (t, task) in stream.tasks.iter().enumerate() {
        let before = method.state().unwrap();
        method.begin_task(&task.info).unwrap();
        let begun = method.state().unwrap();
        if t > 0 {
            let (e, k) = (format!("e.{}.1", t - 1), format!("keys.{}", t - 1));
            assert_eq!(bits(&begun, &format!("e.{t}.1")), bits(&before, &e));
            assert_ne!(bits(&begun, &format!("keys.{t}")), bits(&before, &k));
        }
        for batch in task.train.batches(view, 16) {
            method.observe(&batch.unwrap()).unwrap();
        }
        let after = method.state().unwrap();
        for name in begun.keys() {
            let moved = bits(&begun, name) != bits(&after, name);
            let current = name.starts_with("g.") || name.split('.').nth(1) == Some(&t.to_string());
            // A task of a single class has nothing to learn.
            let expected = match task.info.classes.len() {
                1 => moved && current,
                _ => current,
            };
            assert_eq!(moved, expected, "{name} in task {t}");
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let wrong = |config: DualPrompt, key: &str, part: &str| {
        let found = match config.build(micro(), quick(), 0) {
            Err(Error::Setting { key, problem }) => (key, problem),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{key} must be refused"),
        };
        assert_eq!(found.0, format!("method.{key}"));
        assert!(found.1.contains(part), "{}", found.1);
    };
    wrong(
        DualPrompt {
            g_length: 0,
            ..small()
        },
        "g_length",
        "greater than 0",
    );
    wrong(
        DualPrompt {
            e_blocks: vec![],
            ..small()
        },
        "e_blocks",
        "at least one",
    );
    wrong(
        DualPrompt {
            e_blocks: vec![0],
            ..small()
        },
        "e_blocks",
        "block 0 stands twice",
    );
    wrong(
        DualPrompt {
            g_blocks: vec![7],
            ..small()
        },
        "g_blocks",
        "no block 7; the backbone has 2",
    );
    wrong(
        DualPrompt {
            pull: f64::NAN,
            ..small()
        },
        "pull",
        "a number",
    );
    wrong(
        DualPrompt {
            key_init: Draw::Between([1.0, 0.0]),
            ..small()
        },
        "key_init",
        "low < high",
    );
    wrong(
        DualPrompt {
            batch_vote: BatchVote::Train,
            ..small()
        },
        "batch_vote",
        "without a choice",
    );
    assert!(small().compat().is_empty());
    let quirks = DualPrompt {
        batch_vote: BatchVote::Always,
        compat: Some(Compat::ReshapeBug),
        ..small()
    };
    assert_eq!(
        quirks.compat(),
        [
            "dualprompt.batch_vote=always",
            "dualprompt.compat=reshape-bug"
        ]
    );
}

/// The counts of the port on ViT-B/16: 100 classes, and 200 with longer E-prompts, in ten tasks.
#[test]
fn trainable_values_on_a_base_model() {
    let published = |e_length| {
        MethodConfig::DualPrompt(DualPrompt {
            g_length: 5,
            e_blocks: vec![2, 3, 4],
            e_length,
            ..config()
        })
    };
    assert_eq!(trainable(&published(5), 10, 10), 330_340);
    assert_eq!(trainable(&published(20), 10, 20), 1_098_440);
}

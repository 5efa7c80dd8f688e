//! MOS: the merge, what a task leaves, and tests that change nothing.

use candlewick_core::{Batch, Method, View};
use candlewick_methods::alignment::{Alignment, Shrink};
use candlewick_methods::mos::{Surgery, apart};
use candlewick_methods::{MethodConfig, Mos, conformance};

use candle_core::{Tensor, Var};

use crate::base::trainable;
use crate::lab::{conforms, difference, gradient_holds, here, micro, odd_stream, quick, tensors};
use candlewick_vit::Precision;

fn mos(dropout: f32) -> Mos {
    Mos {
        bottleneck: 4,
        dropout,
        momentum: 0.1,
        apart: 0.1,
        head_lr: 0.1,
        rounds: 4,
        alignment: Alignment {
            epochs: 2,
            samples: 20,
            lr: 0.005,
            weight_decay: 5e-4,
            logit_norm: None,
            shrink: Shrink::None,
        },
    }
}

fn first(task: usize, n: usize) -> Batch {
    let train = &odd_stream(false).tasks[task].train;
    train.batches(View::Plain, n).next().unwrap().unwrap()
}

/// The first tasks of the stream, a few steps each.
fn learned(config: &Mos, tasks: usize) -> Surgery {
    let stream = odd_stream(false);
    let mut method = config.build(micro(), quick(), 16, 1).unwrap();
    for task in stream.tasks.iter().take(tasks) {
        method.begin_task(&task.info).unwrap();
        for batch in task.train.batches(View::Plain, 16).take(3) {
            method.observe(&batch.unwrap()).unwrap();
        }
        method.end_task(task, &mut |_| Ok(())).unwrap();
    }
    method
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_loss_that_keeps_features_apart_is_pytorchs() {
    let all = tensors(here("tests/fixtures/pets.safetensors"));
    let features = Var::from_tensor(&all["mos.p.features"]).unwrap();
    let head = [&all["mos.p.weight"], &all["mos.p.bias"]];
    let logits = features.matmul(&head[0].t().unwrap()).unwrap();
    let logits = logits.broadcast_add(head[1]).unwrap();
    let ce = candlewick_core::train::masked_cross_entropy(&logits, &[0, 2, 1], &(0..3)).unwrap();
    let apart = apart(&all["mos.stored"], &features).unwrap();
    assert!(difference(&apart.reshape(1).unwrap(), &all["mos.apart"]) < 1e-5);
    let loss = (ce + (apart * 0.1).unwrap()).unwrap();
    assert!(difference(&loss.reshape(1).unwrap(), &all["mos.loss"]) < 1e-5);
    let grads = loss.backward().unwrap();
    let grad = grads.get(&features).unwrap();
    gradient_holds(Precision::F32, grad, &all["mos.grad.features"], "features");
}

/// A step with a rate of 0 leaves the merge alone: `A ← 0.9 A + 0.1 · mean of what earlier tasks left`, once.
#[test]
fn a_step_merges_once_and_a_test_never() {
    let mut method = learned(&mos(0.0), 2);
    let stream = odd_stream(false);
    method.begin_task(&stream.tasks[2].info).unwrap();
    let kept: Vec<_> = (0..2)
        .map(|t| method.kept(t).unwrap().state().unwrap())
        .collect();
    assert!(difference(&kept[0]["kept.0.up.weight"], &kept[1]["kept.0.up.weight"]) > 0.0);
    let before = method.adapter().state().unwrap();
    let batch = first(2, 8);
    let grads = method.loss(&batch).unwrap().backward().unwrap();
    // Adam's first step, without its merge.
    let mut want = Vec::new();
    for (name, var) in method.adapter().named() {
        let grad = grads.get(&var).map_or(vec![0.0; var.elem_count()], values);
        let kept = |t: usize| values(&kept[t][&name.replace("adapter.", "kept.")]);
        let rows = values(&before[&name])
            .into_iter()
            .zip(grad)
            .zip(kept(0).into_iter().zip(kept(1)));
        let merged = rows.map(|((a, g), (k0, k1))| {
            let step = a - 0.01 * g / (g.abs() + 1e-8);
            0.9 * step + 0.1 * (k0 + k1) / 2.0
        });
        want.push((name, merged.collect::<Vec<f32>>()));
    }
    method.observe(&batch).unwrap();
    for (name, want) in want {
        let got = values(&method.adapter().get(&name).unwrap());
        let far = got.iter().zip(&want).map(|(a, b)| (a - b).abs());
        assert!(far.fold(0.0, f32::max) < 1e-6, "{name}");
    }

    let method = learned(&mos(0.1), 3);
    let before = method.state().unwrap();
    let test = stream.tasks[1]
        .test
        .batches(View::Plain, 8)
        .next()
        .unwrap()
        .unwrap();
    let one = method.predict(&test).unwrap();
    for task in stream.tasks.iter().take(3) {
        for batch in task.test.batches(View::Plain, 4) {
            method.predict(&batch.unwrap()).unwrap();
        }
    }
    assert_eq!(difference(&one, &method.predict(&test).unwrap()), 0.0);
    for (name, t) in method.state().unwrap() {
        assert_eq!(difference(&t, &before[&name]), 0.0, "{name}");
    }
}

/// What a task left stays; its head is aligned with the others.
#[test]
fn tasks_leave_copies_and_heads_are_aligned() {
    let two = learned(&mos(0.1), 2);
    let stream = odd_stream(false);
    let mut three = learned(&mos(0.1), 2);
    three.begin_task(&stream.tasks[2].info).unwrap();
    for batch in stream.tasks[2].train.batches(View::Plain, 16).take(3) {
        three.observe(&batch.unwrap()).unwrap();
    }
    let trained = three.heads().state().unwrap();
    for (name, t) in two.heads().state().unwrap() {
        assert_eq!(difference(&t, &trained[&name]), 0.0, "{name}");
    }
    three.end_task(&stream.tasks[2], &mut |_| Ok(())).unwrap();
    for t in 0..2 {
        let (old, now) = (two.kept(t).unwrap(), three.kept(t).unwrap());
        for (name, t) in old.state().unwrap() {
            assert_eq!(difference(&t, &now.get(&name).unwrap()), 0.0, "{name}");
        }
    }
    for (name, t) in three.heads().state().unwrap() {
        assert!(difference(&t, &trained[&name]) > 0.0, "{name} is aligned");
    }
    let now = three.adapter().state().unwrap();
    for (name, t) in three.kept(2).unwrap().state().unwrap() {
        assert_eq!(
            difference(&t, &now[&name.replace("kept.", "adapter.")]),
            0.0,
            "{name}"
        );
    }
}

#[test]
fn mos_has_the_gradients_of_its_loss() {
    let mut method = learned(&mos(0.0), 2);
    method.begin_task(&odd_stream(false).tasks[2].info).unwrap();
    let batch = first(2, 3);
    let loss = || method.loss(&batch);
    conformance::gradients(&loss, method.adapter(), &[]).unwrap();
    conformance::gradients(&loss, method.heads(), &[]).unwrap();
}

#[test]
fn mos_keeps_the_laws() {
    conforms(MethodConfig::Mos(mos(0.1)), false).unwrap();
}

/// Adapters of width 16 and three heads of ten classes on ViT-B/16.
#[test]
fn trainable_values_on_a_base_model() {
    let config = MethodConfig::Mos(Mos {
        bottleneck: 16,
        ..mos(0.1)
    });
    let adapter = 12 * (2 * 16 * 768 + 16 + 768);
    assert_eq!(trainable(&config, 3, 10), adapter + 3 * 7_690);
}

#[test]
fn settings_of_mos_are_named() {
    for (config, key) in [
        (
            Mos {
                bottleneck: 0,
                ..mos(0.1)
            },
            "method.bottleneck",
        ),
        (
            Mos {
                momentum: 2.0,
                ..mos(0.1)
            },
            "method.momentum",
        ),
        (
            Mos {
                apart: -1.0,
                ..mos(0.1)
            },
            "method.apart",
        ),
        (
            Mos {
                head_lr: f64::NAN,
                ..mos(0.1)
            },
            "method.head_lr",
        ),
        (
            Mos {
                rounds: 0,
                ..mos(0.1)
            },
            "method.rounds",
        ),
    ] {
        let config = MethodConfig::Mos(config);
        let text = config.check(Some(&quick())).unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    }
}

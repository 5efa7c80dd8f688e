//! ESN: class attention, energies and the vote.

use candle_core::Tensor;
use candlewick_core::{Batch, Method, State, View};
use candlewick_methods::esn::{Energy, PromptsTrain, Sessions, session};
use candlewick_methods::{Esn, MethodConfig, conformance};

use crate::base::trainable;
use crate::lab::{
    Tensors, conforms, difference, gradient_holds, here, holds, micro, odd_stream, quick, task,
    tensors, tiny_in,
};
use crate::near::precisions;

fn esn(prompts: usize) -> Esn {
    Esn {
        prompts,
        anchor: -10.0,
        pull: 0.1,
        beta: 1.0,
        temperatures: vec![0.001, 0.1, 0.5, 1.0],
        energy: Energy::Free,
        prompts_train: PromptsTrain::FirstSession,
    }
}

fn as_published(prompts: usize) -> Esn {
    Esn {
        energy: Energy::SoftMinimum,
        prompts_train: PromptsTrain::EverySession,
        ..esn(prompts)
    }
}

/// Our name of a parameter of the fixture.
fn renamed(name: &str) -> String {
    match name.split_once('.') {
        None => name.to_owned(),
        Some((s, rest)) => match rest.strip_prefix("head.") {
            Some(kind) => format!("head.{s}.{kind}"),
            None => format!("session.{s}.{rest}"),
        },
    }
}

/// Two sessions of 2 and 3 classes with the fixture's parameters, before the second's training.
fn given(config: &Esn, precision: candlewick_vit::Precision, all: &Tensors) -> Sessions {
    let mut method = config.build(tiny_in(precision), quick(), 16, 1).unwrap();
    let tasks = [task(0, 0..2), task(1, 2..5)];
    let state = all
        .iter()
        .filter_map(|(name, t)| Some((renamed(name.strip_prefix("esn.p.")?), t.clone())));
    let mut state: State = state.collect();
    let found = Tensor::new(&[0f32], &candle_core::Device::Cpu).unwrap();
    state.insert("temperatures".into(), found);
    // As if stopped inside the second task, before its first step.
    let mut begun = config.build(tiny_in(precision), quick(), 16, 1).unwrap();
    tasks
        .iter()
        .for_each(|task| begun.begin_task(task).unwrap());
    let session = begun.session().unwrap();
    method.resume(&tasks, &state, session).unwrap();
    method
}

#[test]
fn class_attention_and_loss_match_pytorch() {
    let all = tensors(here("tests/fixtures/pets.safetensors"));
    let images = tensors(here("tests/fixtures/pet.safetensors"))["in.images"].clone();
    let batch = Batch {
        images,
        labels: vec![2, 4, 3],
        ids: vec![0, 1, 2],
        plain: false,
    };
    for precision in precisions() {
        let method = given(&as_published(5), precision, &all);
        for (s, z) in method.logits(&batch).unwrap().iter().enumerate() {
            holds(
                precision,
                z,
                &all[&format!("esn.logits.{s}")],
                1e-4,
                "logits",
            );
        }
        let loss = method.loss(&batch).unwrap().reshape(1).unwrap();
        holds(
            precision,
            &loss,
            &all["esn.loss_soft_minimum"],
            1e-4,
            "published loss",
        );
        // Prompts train here, so that their gradient can be held.
        let config = Esn {
            prompts_train: PromptsTrain::EverySession,
            ..esn(5)
        };
        let method = given(&config, precision, &all);
        let loss = method.loss(&batch).unwrap();
        holds(
            precision,
            &loss.reshape(1).unwrap(),
            &all["esn.loss"],
            1e-4,
            "loss",
        );
        let grads = loss.backward().unwrap();
        for (name, want) in &all {
            let Some(name) = name.strip_prefix("esn.grad.") else {
                continue;
            };
            let got = grads.get(&method.params().get(&renamed(name)).unwrap());
            match name.starts_with("0.") {
                true => assert!(got.is_none(), "{name} is of another session"),
                // Of a bias of keys the softmax leaves nothing but rounding.
                false if name == "1.k.bias" => {}
                false => gradient_holds(precision, got.unwrap(), want, name),
            }
        }
    }
}

/// By default the prompts stand still behind the first session; as published they go on.
#[test]
fn prompts_stand_still_behind_the_first_session() {
    let stream = odd_stream(false);
    for (config, stands) in [(esn(3), true), (as_published(3), false)] {
        let mut method = config.build(micro(), quick(), 16, 1).unwrap();
        let mut prompts = Vec::new();
        for task in stream.tasks.iter().take(3) {
            method.begin_task(&task.info).unwrap();
            for batch in task.train.batches(View::Plain, 16).take(2) {
                method.observe(&batch.unwrap()).unwrap();
            }
            prompts.push(method.params().get("prompts").unwrap().copy().unwrap());
            method.end_task(task, &mut |_| Ok(())).unwrap();
        }
        assert_eq!(difference(&prompts[0], &prompts[2]) == 0.0, stands);
        assert_eq!(method.temperatures().len(), 3);
        assert_eq!(method.temperatures()[0], 0.001);
    }
}

/// `log Σ exp(z / T)`: the largest logit where it is cold, the number of classes counts where it is warm.
#[test]
fn a_session_is_chosen_by_its_energy() {
    let logits = [vec![3.0f32, -9.0], vec![2.9, 2.9, 2.9]];
    assert_eq!(session(&logits, 0.001), 0);
    assert_eq!(session(&logits, 1.0), 1);
    // Alike: the earlier.
    assert_eq!(session(&[vec![1.0f32], vec![1.0]], 0.5), 0);
}

/// A score above 1 is of the session that wins; within it the largest logit wins.
#[test]
fn scores_are_a_vote_and_a_softmax() {
    let stream = odd_stream(false);
    let mut method = esn(2).build(micro(), quick(), 16, 1).unwrap();
    for task in stream.tasks.iter().take(3) {
        method.begin_task(&task.info).unwrap();
        for batch in task.train.batches(View::Plain, 16).take(3) {
            method.observe(&batch.unwrap()).unwrap();
        }
        method.end_task(task, &mut |_| Ok(())).unwrap();
    }
    let batch = stream.tasks[2]
        .test
        .batches(View::Plain, 8)
        .next()
        .unwrap()
        .unwrap();
    let scores: Vec<Vec<f32>> = method.predict(&batch).unwrap().to_vec2().unwrap();
    let logits = method.logits(&batch).unwrap();
    let sessions = [0..6, 6..7, 7..11];
    for (i, row) in scores.iter().enumerate() {
        let sums = sessions.clone().map(|of| row[of].iter().sum::<f32>());
        let winners: Vec<usize> = (0..3).filter(|s| sums[*s] > 1.5).collect();
        assert_eq!(winners.len(), 1, "{sums:?}");
        for (s, of) in sessions.iter().enumerate() {
            let classes = of.len() as f32;
            let want = if winners[0] == s { classes + 1.0 } else { 1.0 };
            assert!((sums[s] - want).abs() < 1e-5, "{sums:?}");
            let z: Vec<f32> = logits[s].get(i).unwrap().to_vec1().unwrap();
            let best = |v: &[f32]| {
                let all = v.iter().enumerate();
                all.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
            };
            assert_eq!(best(&z), best(&row[of.clone()]));
        }
    }
}

#[test]
fn esn_has_the_gradients_of_its_loss() {
    let stream = odd_stream(false);
    for config in [esn(2), as_published(2)] {
        let mut method = config.build(micro(), quick(), 16, 1).unwrap();
        method.begin_task(&stream.tasks[0].info).unwrap();
        let batch = stream.tasks[0]
            .train
            .batches(View::Plain, 3)
            .next()
            .unwrap()
            .unwrap();
        method.observe(&batch).unwrap();
        conformance::gradients(&|| method.loss(&batch), method.params(), &[]).unwrap();
    }
}

#[test]
fn esn_keeps_the_laws() {
    conforms(MethodConfig::Esn(esn(0)), false).unwrap();
    assert_eq!(
        as_published(3).compat(),
        ["esn.energy=soft-minimum", "esn.prompts_train=every-session"]
    );
    conforms(MethodConfig::Esn(as_published(3)), false).unwrap();
}

/// 2.96 M values a session and a hundred prompts, on ViT-B/16.
#[test]
fn trainable_values_on_a_base_model() {
    let config = MethodConfig::Esn(esn(100));
    assert_eq!(trainable(&config, 3, 10), 76_800 + 3 * 2_964_874);
}

#[test]
fn settings_of_esn_are_named() {
    for (config, key) in [
        (
            Esn {
                beta: 0.0,
                ..esn(1)
            },
            "method.beta",
        ),
        (
            Esn {
                pull: -1.0,
                ..esn(1)
            },
            "method.pull",
        ),
        (
            Esn {
                temperatures: vec![],
                ..esn(1)
            },
            "method.temperatures",
        ),
        (
            Esn {
                temperatures: vec![0.0],
                ..esn(1)
            },
            "method.temperatures",
        ),
    ] {
        let config = MethodConfig::Esn(config);
        let text = config.check(Some(&quick())).unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    }
}

//! EASE: means that are made up, scores, and what a task leaves alone.

use candlewick_core::{Method, View};
use candlewick_methods::ease::Means;
use candlewick_methods::{Ease, MethodConfig, conformance};

use crate::base::trainable;
use crate::lab::{conforms, difference, here, micro, odd_stream, quick, tensors};

fn ease(dropout: f32) -> Ease {
    Ease {
        bottleneck: 4,
        dropout,
        alpha: 0.1,
    }
}

/// Three tasks of 2, 3 and 1 classes.
#[test]
fn means_and_scores_are_those_of_pytorch() {
    let all = tensors(here("tests/fixtures/pets.safetensors"));
    let values = |name: &str| -> Vec<f32> {
        let t = &all[&format!("ease.{name}")];
        t.flatten_all().unwrap().to_vec1().unwrap()
    };
    let mut means = Means::new(6, 0.1);
    for (t, classes) in [2, 3, 1].into_iter().enumerate() {
        means.grow(classes);
        let measured = (0..=t).map(|j| values(&format!("mean.{t}.{j}"))).collect();
        means.learn(measured);
    }
    let near = |got: &[f32], want: &[f32], what: &str| {
        assert_eq!(got.len(), want.len(), "{what}");
        let far = got.iter().zip(want).map(|(a, b)| (a - b).abs());
        assert!(far.fold(0.0, f32::max) < 1e-6, "{what}");
    };
    for (t, j) in [(0, 1), (0, 2), (1, 2)] {
        let what = format!("synthesised.{t}.{j}");
        near(means.of(t, j).unwrap(), &values(&what), &what);
    }
    let features: Vec<Vec<f32>> = (0..3).map(|j| values(&format!("features.{j}"))).collect();
    near(&means.scores(&features, 4), &values("scores"), "scores");
}

/// One task: its own adapter speaks alone. Two evaluations in a row are one.
#[test]
fn a_task_leaves_earlier_adapters_and_scores_alone() {
    let stream = odd_stream(false);
    let mut method = ease(0.1).build(micro(), quick(), 16, 1).unwrap();
    let batch = stream.tasks[0]
        .test
        .batches(View::Plain, 8)
        .next()
        .unwrap()
        .unwrap();
    for (t, task) in stream.tasks.iter().enumerate().take(2) {
        let before = method.params().state().unwrap();
        method.begin_task(&task.info).unwrap();
        for batch in task.train.batches(View::Plain, 16) {
            method.observe(&batch.unwrap()).unwrap();
        }
        method.end_task(task, &mut |_| Ok(())).unwrap();
        let after = method.params().state().unwrap();
        for (name, old) in &before {
            assert_eq!(difference(old, &after[name]), 0.0, "{name}");
        }
        assert!(
            after
                .keys()
                .any(|name| name.starts_with(&format!("task.{t}.")))
        );
        let (first, again) = (
            method.predict(&batch).unwrap(),
            method.predict(&batch).unwrap(),
        );
        assert_eq!(difference(&first, &again), 0.0);
        assert_eq!(first.dims(), [batch.len(), task.info.classes.end]);
    }
}

#[test]
fn ease_has_the_gradients_of_its_loss() {
    let stream = odd_stream(false);
    let mut method = ease(0.0).build(micro(), quick(), 16, 1).unwrap();
    method.begin_task(&stream.tasks[0].info).unwrap();
    let batch = stream.tasks[0]
        .train
        .batches(View::Plain, 3)
        .next()
        .unwrap()
        .unwrap();
    for _ in 0..2 {
        method.observe(&batch).unwrap();
    }
    conformance::gradients(&|| method.loss(&batch), method.params(), &[]).unwrap();
}

#[test]
fn ease_keeps_the_laws() {
    conforms(MethodConfig::Ease(ease(0.1)), false).unwrap();
}

/// An adapter of PILOT's counts, and a head with σ, for each of three tasks.
#[test]
fn trainable_values_on_a_base_model() {
    let config = MethodConfig::Ease(Ease {
        bottleneck: 64,
        ..ease(0.1)
    });
    assert_eq!(trainable(&config, 3, 10), 3 * (1_189_632 + 7_680 + 1));
}

#[test]
fn settings_of_ease_are_named() {
    for (config, key) in [
        (
            Ease {
                bottleneck: 0,
                ..ease(0.1)
            },
            "method.bottleneck",
        ),
        (ease(1.0), "method.dropout"),
        (
            Ease {
                alpha: f64::NAN,
                ..ease(0.1)
            },
            "method.alpha",
        ),
    ] {
        let config = MethodConfig::Ease(config);
        let text = config.check(Some(&quick())).unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    }
}

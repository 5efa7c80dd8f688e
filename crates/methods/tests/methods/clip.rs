//! Methods that read class names, and others on CLIP's image tower.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone as _, Batch, Batches, Method, Result, RunOptions, Split, State, Stream, Train, View,
    run,
};
use candlewick_methods::coop::Belongs;
use candlewick_methods::zscl::{Distillation, HeldClip};
use candlewick_methods::{
    Beside, Booster, ContinualClip, Coop, METHODS, MethodConfig, Reference, Templates, Zscl,
    conformance,
};
use candlewick_vit::Precision;

use crate::lab::{
    CLIP, clip_fixture, clip_in, clip_of, conforms, difference, here, max_abs, micro, odd_stream,
    quick, task, tensors,
};
use crate::switches::{plain, read};

#[test]
fn continual_clip_keeps_the_laws() {
    conforms(MethodConfig::ContinualClip(ContinualClip::default()), false).unwrap();
}

#[test]
fn coop_keeps_the_laws() {
    for context in [Belongs::Task, Belongs::Class, Belongs::Shared] {
        conforms(MethodConfig::Coop(Coop { length: 3, context }), true).unwrap();
    }
}

/// Some of the fixture's texts.
pub fn lines(which: &[usize]) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
    }
    let text = std::fs::read_to_string(here(CLIP).join("tokens.json")).unwrap();
    let lines: Vec<Line> = serde_json::from_str(&text).unwrap();
    which.iter().map(|&i| lines[i].text.clone()).collect()
}

fn bare() -> Templates {
    Templates::Own(vec!["{}".into()])
}

/// Its scores are the logits of transformers, where classes are called as the fixture's texts.
#[test]
fn continual_clip_has_the_logits_of_the_reference() {
    let data = tensors(here(CLIP).join("data.safetensors"));
    let (backbone, _) = clip_of(&clip_fixture(), Precision::F32, 32);
    let config = ContinualClip { templates: bare() };
    let mut method = config.build(backbone).unwrap();
    let mut info = task(0, 0..6);
    info.names = lines(&[0, 1, 2, 4, 9, 19]);
    method.begin_task(&info).unwrap();
    let batch = Batch {
        images: data["in.pixel_values"].clone(),
        labels: vec![0; 3],
        ids: vec![0, 1, 2],
        plain: false,
    };
    let scores = method.predict(&batch).unwrap();
    assert!(difference(&scores, &data["out.logits_per_image"]) < 2e-4);
}

#[test]
fn the_gradient_of_learned_context_is_that_of_its_loss() {
    let stream = odd_stream(false);
    let first = &stream.tasks[0];
    for context in [Belongs::Task, Belongs::Class, Belongs::Shared] {
        let (backbone, _) = clip_in(Precision::F32, 64);
        let mut method = Coop { length: 3, context }
            .build(backbone, quick(), 3)
            .unwrap();
        method.begin_task(&first.info).unwrap();
        let batch = first.train.batches(View::Plain, 8).next().unwrap().unwrap();
        conformance::gradients(&|| method.loss(&batch), method.params(), &[]).unwrap();
    }
}

/// Contexts of tasks that are over stand still, shared ones go on.
#[test]
fn contexts_of_earlier_tasks_stand_still() {
    let stream = odd_stream(false);
    for (context, moves) in [
        (Belongs::Task, false),
        (Belongs::Class, false),
        (Belongs::Shared, true),
    ] {
        let (backbone, _) = clip_in(Precision::F32, 64);
        let mut method = Coop { length: 2, context }
            .build(backbone, quick(), 3)
            .unwrap();
        let mut first: Option<(String, Tensor)> = None;
        // The second task has a single class, which has nothing to learn among its own.
        for task in &stream.tasks[..3] {
            method.begin_task(&task.info).unwrap();
            for batch in task.train.batches(View::Plain, 16) {
                method.observe(&batch.unwrap()).unwrap();
            }
            method.end_task(task, &mut |_| Ok(())).unwrap();
            let mut state = method.state().unwrap().into_iter();
            first = first.or_else(|| state.next());
        }
        let (name, old) = first.unwrap();
        let new = &method.state().unwrap()[&name];
        assert_eq!(difference(new, &old) > 0.0, moves, "{context:?}");
    }
}

/// Every method of features learns on CLIP's image tower and predicts there.
#[test]
fn every_method_runs_on_the_image_tower() {
    let mut stream = odd_stream(false);
    stream.tasks.truncate(2);
    stream.class_names.truncate(7);
    let (backbone, _) = clip_in(Precision::F32, 64);
    let options = RunOptions {
        seed: 1,
        eval_batch: 16,
    };
    let mut train = quick();
    train.epochs = 1;
    for about in METHODS {
        let config = read(about.name, plain(about.name));
        let table = config.trains().then_some(&train);
        let stream = match config.wants_all_seen() {
            true => stream.cumulative(),
            false => stream.clone(),
        };
        let beside = Beside {
            booster: config.wants_booster().then(|| Booster::same(micro())),
            ..Beside::default()
        };
        let built = config.build_beside(backbone.clone(), table, 16, 3, beside);
        let outcome = run::run(built.unwrap().as_mut(), &stream, options, &mut ());
        let outcome = outcome.unwrap_or_else(|e| panic!("{}: {e}", about.name));
        assert!(!outcome.predictions.is_empty(), "{}", about.name);
    }
}

#[test]
fn what_is_missing_is_said() {
    let config = ContinualClip::default();
    let Err(error) = config.build(micro()) else {
        panic!("vit-micro has no text tower");
    };
    assert!(error.to_string().contains("no text tower"), "{error}");
    let (backbone, _) = clip_in(Precision::F32, 64);
    assert!(backbone.language().is_some());
    let mut method = config.build(backbone.clone()).unwrap();
    let mut info = task(0, 0..2);
    info.names.pop();
    let error = method.begin_task(&info).unwrap_err().to_string();
    assert!(error.contains("1 names"), "{error}");
    let coop = Coop {
        length: 75,
        context: Belongs::Task,
    };
    let mut method = coop.build(backbone, quick(), 1).unwrap();
    let error = method.begin_task(&task(0, 0..2)).unwrap_err().to_string();
    assert!(error.contains("at most 74"), "{error}");
}

fn zscl(distilled: bool) -> Zscl {
    Zscl {
        templates: Templates::default(),
        label_smoothing: 0.2,
        distillation: distilled.then_some(Distillation {
            images: 1.0,
            texts: 1.0,
            temperature: 2.0,
            batch: 5,
        }),
        consolidation: 0.1,
        average_every: Some(2),
    }
}

/// Images of the last task, and sentences about nothing in it.
fn reference(stream: &Stream) -> Reference {
    let sentences = ["a photo of the sea", "two people", "an old house"];
    Reference {
        images: stream.tasks[3].train.clone(),
        sentences: sentences.map(String::from).to_vec(),
    }
}

fn slow() -> Train {
    let mut train = quick();
    train.epochs = 1;
    train.lr = 1e-3;
    train
}

#[test]
fn zscl_keeps_the_laws() {
    let stream = odd_stream(false);
    let (backbone, clip) = clip_in(Precision::F32, 64);
    let mut frozen = backbone.weights().clone();
    for (name, tensor) in clip.weights() {
        frozen.insert(format!("text.{name}"), tensor.clone());
    }
    let build = || -> Result<Box<dyn Method>> {
        let reference = Some(reference(&stream));
        let method = zscl(true).build(backbone.clone(), slow(), reference, 5)?;
        Ok(Box::new(method))
    };
    conformance::check(&build, &stream, &frozen).unwrap();
}

/// After a task the weights are the mean of where it started and of every second model from the first on.
#[test]
fn zscl_ends_a_task_with_the_mean_of_its_models() {
    let stream = odd_stream(false);
    let task = &stream.tasks[0];
    let (backbone, _) = clip_in(Precision::F32, 64);
    let mut method = zscl(false).build(backbone, slow(), None, 5).unwrap();
    method.begin_task(&task.info).unwrap();
    let name = "backbone.blocks.1.mlp.fc1.weight";
    let value = |method: &HeldClip| method.params().get(name).unwrap().copy().unwrap();
    let mut models = vec![value(&method)];
    for (step, batch) in task.train.batches(View::Plain, 8).enumerate() {
        method.observe(&batch.unwrap()).unwrap();
        if step % 2 == 0 {
            models.push(value(&method));
        }
    }
    assert!(models.len() > 2);
    method.end_task(task, &mut |_| Ok(())).unwrap();
    let n = models.len() as f64;
    let sum = models[1..]
        .iter()
        .fold(models[0].clone(), |sum, m| (sum + m).unwrap());
    let mean = (sum / n).unwrap();
    assert!(difference(&mean, &models[0]) > 1e-5);
    assert!(difference(&value(&method), &mean) < 1e-6);
}

/// A few images in memory, in whatever order.
struct Images(Tensor, Vec<u32>);

impl Split for Images {
    fn len(&self) -> usize {
        self.1.len()
    }

    fn labels(&self) -> &[u32] {
        &self.1
    }

    fn image_name(&self, id: u64) -> String {
        id.to_string()
    }

    fn batches(&self, _: View, _: usize) -> Batches<'_> {
        let batch = Batch {
            images: self.0.clone(),
            labels: self.1.clone(),
            ids: (0..self.1.len() as u64).collect(),
            plain: false,
        };
        Box::new(std::iter::once(Ok(batch)))
    }
}

/// Loss and gradients of a network that has moved away from the one that was given.
#[test]
fn zscl_has_the_loss_and_the_gradients_of_the_reference() {
    let data = tensors(here("tests/fixtures/zscl.safetensors"));
    let (given, mut moved) = (clip_fixture(), clip_fixture());
    for (name, tensor) in &mut moved {
        if let Some(by) = data.get(&format!("move.{name}")) {
            *tensor = (&*tensor + by).unwrap();
        }
    }
    let (vit, clip) = clip_of(&moved, Precision::F32, 32);
    let mut state = State::new();
    for (part, weights) in [("backbone.", vit.weights()), ("text.", clip.weights())] {
        let own = weights.iter().filter(|(name, _)| *name != "logit_scale");
        state.extend(own.map(|(name, t)| (format!("{part}{name}"), t.clone())));
    }
    let config = Zscl {
        templates: bare(),
        label_smoothing: 0.2,
        distillation: Some(Distillation {
            images: 1.0,
            texts: 0.5,
            temperature: 2.0,
            batch: 5,
        }),
        consolidation: 0.0,
        average_every: None,
    };
    let reference = Reference {
        images: Arc::new(Images(data["in.others"].clone(), vec![0; 5])),
        sentences: lines(&[4, 9, 19, 0]),
    };
    let (backbone, _) = clip_of(&given, Precision::F32, 32);
    let mut method = config.build(backbone, slow(), Some(reference), 5).unwrap();
    method.restore(&[], &state).unwrap();
    let mut info = task(0, 0..3);
    info.names = lines(&[0, 1, 2]);
    method.begin_task(&info).unwrap();
    let labels: Vec<i64> = data["in.labels"].to_vec1().unwrap();
    let batch = Batch {
        images: data["in.pixels"].clone(),
        labels: labels.iter().map(|l| *l as u32).collect(),
        ids: vec![0, 1, 2, 3],
        plain: false,
    };
    let scores = method.predict(&batch).unwrap();
    assert!(difference(&scores, &data["out.logits"]) < 2e-4);
    let loss = method.loss(&batch).unwrap();
    assert!(difference(&loss, &data["out.loss"]) < 1e-4);
    let grads = loss.backward().unwrap();
    let vars: BTreeMap<String, _> = method.params().named().into_iter().collect();
    for (theirs, ours) in [
        (
            "vision_model.encoder.layers.0.mlp.fc1.weight",
            "backbone.blocks.0.mlp.fc1.weight",
        ),
        (
            "vision_model.pre_layrnorm.weight",
            "backbone.norm_pre.weight",
        ),
        (
            "vision_model.embeddings.patch_embedding.weight",
            "backbone.patch_embed.proj.weight",
        ),
        (
            "vision_model.embeddings.class_embedding",
            "backbone.cls_token",
        ),
        ("visual_projection.weight", "text.visual_projection"),
        ("text_projection.weight", "text.text_projection"),
        (
            "text_model.encoder.layers.1.mlp.fc2.bias",
            "text.blocks.1.mlp.fc2.bias",
        ),
        (
            "text_model.embeddings.position_embedding.weight",
            "text.positional_embedding",
        ),
    ] {
        let want = &data[&format!("grad.{theirs}")];
        let got = grads.get(&vars[ours]).expect(ours);
        let got = got.reshape(want.dims()).unwrap();
        assert!(max_abs(want) > 1e-4, "{theirs} has a gradient");
        let off = difference(&got, want) / max_abs(want);
        assert!(off < 2e-4, "{ours}: {off}");
    }
}

/// The pull is to where a task started, and grows with the distance: `λ Σ |θ − θ_start|²`.
#[test]
fn zscl_pulls_to_where_the_task_started() {
    let stream = odd_stream(false);
    let task = &stream.tasks[0];
    let (backbone, _) = clip_in(Precision::F32, 64);
    let batch = task.train.batches(View::Plain, 8).next().unwrap().unwrap();
    let with = |pull: f64| {
        let mut config = zscl(false);
        config.consolidation = pull;
        let mut method = config.build(backbone.clone(), slow(), None, 5).unwrap();
        method.begin_task(&task.info).unwrap();
        let start = method.state().unwrap();
        // The first step is the same, as there is no way back yet.
        method.observe(&batch).unwrap();
        let way = method.state().unwrap();
        let way = way.iter().map(|(name, t)| {
            let moved = (t - &start[name])
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap();
            f64::from(moved.to_scalar::<f32>().unwrap())
        });
        let loss = method.loss(&batch).unwrap();
        let grads = loss.backward().unwrap();
        let name = "text.text_projection";
        let var = method
            .params()
            .named()
            .into_iter()
            .find(|(n, _)| n == name)
            .unwrap()
            .1;
        let slope = grads.get(&var).unwrap().clone();
        let away = (var.as_detached_tensor() - &start[name]).unwrap();
        (
            f64::from(loss.to_scalar::<f32>().unwrap()),
            way.sum::<f64>(),
            slope,
            away,
        )
    };
    let (free, way, slope, away) = with(0.0);
    let (held, _, pulled, _) = with(10.0);
    assert!(way > 1e-4);
    assert!(
        ((held - free) / (10.0 * way) - 1.0).abs() < 1e-3,
        "{held} {free} {way}"
    );
    let want = (slope + (away * 20.0).unwrap()).unwrap();
    assert!(difference(&pulled, &want) < 1e-4 * max_abs(&want));
}

/// Both distillation terms hold the image tower alone: as published, the sentences are those of the CLIP that was given.
#[test]
fn zscl_without_anything_to_hold_on_to_says_so() {
    let stream = odd_stream(false);
    let (backbone, _) = clip_in(Precision::F32, 64);
    assert!(zscl(true).has(Some(&reference(&stream))).is_ok());
    let error = zscl(true).has(None).unwrap_err().to_string();
    assert!(error.contains("[reference]"), "{error}");
    let mut method = zscl(true).build(backbone, slow(), None, 5).unwrap();
    let task = &stream.tasks[0];
    method.begin_task(&task.info).unwrap();
    let batch = task.train.batches(View::Plain, 6).next().unwrap().unwrap();
    let error = method.observe(&batch).unwrap_err().to_string();
    assert!(error.contains("[reference]"), "{error}");
    for (change, says) in [
        (
            Zscl {
                label_smoothing: 1.0,
                ..zscl(false)
            },
            "label_smoothing",
        ),
        (
            Zscl {
                average_every: Some(0),
                ..zscl(false)
            },
            "average_every",
        ),
        (
            Zscl {
                consolidation: -1.0,
                ..zscl(false)
            },
            "consolidation",
        ),
    ] {
        let error = change.check().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// By what its classes are called, a task is scored before it comes.
#[test]
fn tasks_to_come_are_scored_by_their_names() {
    let stream = odd_stream(false);
    let (backbone, _) = clip_in(Precision::F32, 64);
    let batch = stream.tasks[2]
        .test
        .batches(View::Plain, 8)
        .next()
        .unwrap()
        .unwrap();
    let clip = ContinualClip::default();
    let mut methods: Vec<Box<dyn Method>> = vec![
        Box::new(clip.build(backbone.clone()).unwrap()),
        Box::new(zscl(false).build(backbone, slow(), None, 5).unwrap()),
    ];
    for method in &mut methods {
        method.begin_task(&stream.tasks[0].info).unwrap();
        let ahead = method
            .predict_task(&batch, &stream.tasks[2].info)
            .unwrap()
            .unwrap();
        assert_eq!(ahead.dims(), [batch.len(), 4]);
        for task in &stream.tasks[1..3] {
            method.begin_task(&task.info).unwrap();
        }
        let come = method
            .predict_task(&batch, &stream.tasks[2].info)
            .unwrap()
            .unwrap();
        assert!(difference(&ahead, &come) < 1e-4);
        let all = method.predict(&batch).unwrap();
        assert!(difference(&all.narrow(1, 7, 4).unwrap(), &come) < 1e-4);
    }
}

//! PromptFusion and its gate against the formulas of their authors, and its laws.

use candle_core::{Device, Tensor};
use candlewick_core::{Batch, Method, Params, Result, Session, State, TaskInfo, Train, View};
use candlewick_methods::balance::Weights;
use candlewick_methods::exemplars::{Choice, Memory};
use candlewick_methods::gate::{AtTest, Gate, Gating, OldGate};
use candlewick_methods::promptfusion::{Filler, Fusion, Pixels};
use candlewick_methods::{Booster, PromptFusion, conformance};
use candlewick_vit::Precision;

use crate::clip::lines;
use crate::lab::{
    CLIP, Tensors, clip_fixture, clip_in, clip_of, difference, here, max_abs, micro_in, odd_stream,
    quick, task, tensors, tiny,
};
use crate::near::precisions;

const GATING: Gating = Gating {
    hidden: 5,
    temperature: 3.0,
    open: 0.4,
    open_weight: 0.7,
    keep_weight: 0.1,
    old: OldGate::Whole,
    at_test: AtTest::Sure,
};

fn config() -> PromptFusion {
    PromptFusion {
        length: 3,
        image_prompts: 3,
        booster_prompts: 2,
        memory: Memory {
            total: None,
            per_class: Some(2),
            choice: Choice::Herding,
        },
        gate: None,
        weights: Weights::Class,
        filler: Filler::None,
        pixels: Pixels::Own,
    }
}

fn lite() -> PromptFusion {
    PromptFusion {
        gate: Some(GATING),
        ..config()
    }
}

/// Without and with a gate, in every precision.
#[test]
fn promptfusion_keeps_the_laws() {
    let stream = odd_stream(false);
    for precision in precisions() {
        let (backbone, clip) = clip_in(precision, 64);
        let second = micro_in(precision);
        let mut frozen = backbone.weights().clone();
        for (part, weights) in [("text", clip.weights()), ("booster", second.weights())] {
            let named = weights.iter();
            frozen.extend(named.map(|(name, tensor)| (format!("{part}.{name}"), tensor.clone())));
        }
        for config in [config(), lite()] {
            let build = || -> Result<Box<dyn Method>> {
                let booster = Some(Booster::same(second.clone()));
                let method = config.build(backbone.clone(), booster, quick(), 16, 5)?;
                Ok(Box::new(method))
            };
            conformance::check(&build, &stream, &frozen).unwrap();
        }
    }
}

fn fixture() -> Tensors {
    tensors(here("tests/fixtures/promptfusion.safetensors"))
}

/// Two tasks of three classes, called as texts of the small CLIP's fixture.
fn tasks() -> [TaskInfo; 2] {
    let names = lines(&[0, 1, 2, 4, 9, 19]);
    let (mut first, mut second) = (task(0, 0..3), task(1, 3..6));
    first.names = names[..3].to_vec();
    second.names = names[3..].to_vec();
    [first, second]
}

fn build(config: &PromptFusion, train: Train) -> Fusion {
    let (backbone, _) = clip_of(&clip_fixture(), Precision::F32, 32);
    let first = ([0.5; 3], [0.25; 3]);
    let own = ([0.4, 0.45, 0.5], [0.3, 0.2, 0.25]);
    let booster = Booster::new(tiny(), first, own);
    config.build(backbone, Some(booster), train, 8, 1).unwrap()
}

/// The second task under way, with the parameters of the fixture, and beside these `own`.
fn under_way(config: &PromptFusion, own: &str) -> Fusion {
    let fixture = fixture();
    let mut fresh = build(config, quick());
    for task in tasks() {
        fresh.begin_task(&task).unwrap();
    }
    let mut state: State = fresh.state().unwrap();
    let mut given = 0;
    for (name, tensor) in &mut state {
        let Some(name) = name.strip_prefix("fusion.") else {
            continue;
        };
        let names = [format!("{own}.in.{name}"), format!("in.{name}")];
        if let Some(value) = names.iter().find_map(|name| fixture.get(name)) {
            assert_eq!(tensor.dims(), value.dims(), "{name}");
            *tensor = value.clone();
            given += 1;
        }
    }
    assert!(given >= 10, "{given}");
    let session: Session = fresh.session().unwrap();
    let mut method = build(config, quick());
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
    let fixture = fixture();
    let variants = [
        ("plain", config()),
        (
            "x",
            PromptFusion {
                filler: Filler::X,
                ..config()
            },
        ),
        (
            "pixels",
            PromptFusion {
                pixels: Pixels::Stabilizer,
                ..config()
            },
        ),
        (
            "slot",
            PromptFusion {
                weights: Weights::Slot,
                ..config()
            },
        ),
    ];
    for (variant, config) in variants {
        let method = under_way(&config, variant);
        let scores = method.predict(&batch()).unwrap();
        let want = &fixture[&format!("{variant}.scores")];
        let off = difference(&scores, want);
        assert!(off < 2e-4, "{variant}: {off}");
        let loss = method.loss(&batch()).unwrap();
        let off = difference(&loss, &fixture[&format!("{variant}.loss")]);
        assert!(off < 1e-4, "{variant}: {off}");
        let grads = loss.backward().unwrap();
        let mut held = 0;
        for (name, var) in method.params().named() {
            let want = fixture.get(&format!("{variant}.grad.{name}"));
            let got: Option<&Tensor> = grads.get(&var);
            assert_eq!(got.is_some(), want.is_some(), "{variant} {name}");
            let (Some(got), Some(want)) = (got, want) else {
                continue;
            };
            let off = difference(got, want) / max_abs(want);
            assert!(off < 5e-4, "{variant} {name}: {off}");
            held += 1;
        }
        // Both prompts, λ, the context of the task, α, β and two parts of the head.
        assert_eq!(held, 3 + 1 + 2 + 4, "{variant}");
    }
}

fn gate_of(fixture: &Tensors, config: Gating) -> (Gate, Params) {
    let mut params = Params::seeded(1, &Device::Cpu);
    let mut gate = Gate::new(config, 24, 1, &mut params).unwrap();
    for of in ["old", "in"] {
        for layer in ["0.weight", "0.bias", "1.weight", "1.bias"] {
            let value = &fixture[&format!("gate.{of}.{layer}")];
            params.set(&format!("gate.{layer}"), value).unwrap();
        }
        if of == "old" {
            gate.begin_task(1).unwrap();
        }
    }
    (gate, params)
}

#[test]
fn a_gate_opens_and_learns_as_that_of_the_reference() {
    let fixture = fixture();
    for (variant, old) in [("whole", OldGate::Whole), ("linear", OldGate::Linear)] {
        let (gate, params) = gate_of(&fixture, Gating { old, ..GATING });
        let mut others = Params::seeded(1, &Device::Cpu);
        let init = candlewick_core::Init::Zeros;
        let f = others.create("f", &[9, 24], init).unwrap();
        others.set("f", &fixture["gate.f"]).unwrap();
        let opened = gate.train(&f, &fixture["gate.noise"]).unwrap();
        let want = |what: &str| &fixture[&format!("gate.{variant}.{what}")];
        assert!(difference(&opened.open, want("open")) < 1e-6);
        assert!(difference(&opened.loss, want("loss")) < 1e-6);
        let pulled = (opened.open * &fixture["gate.pull"]).unwrap();
        let loss = (opened.loss + pulled.sum_all().unwrap()).unwrap();
        let grads = loss.backward().unwrap();
        let own = params.named().into_iter();
        let own = own.map(|(name, var)| (name.replace("gate.", ""), var));
        for (name, var) in own.chain(others.named()) {
            let want = want(&format!("grad.{name}"));
            let off = difference(grads.get(&var).unwrap(), want) / max_abs(want);
            assert!(off < 1e-5, "{variant} {name}: {off}");
        }
    }
}

/// Where a gate is shut a score is the stabiliser's, elsewhere the sum of both, in a batch of any make.
#[test]
fn a_gate_adds_the_booster_where_it_opens() {
    let fixture = fixture();
    let method = under_way(&lite(), "lite");
    let whole = (&fixture["stable"] + &fixture["boosted"]).unwrap();
    let scores = method.predict(&batch()).unwrap();
    let mut open = Vec::new();
    for i in 0..3 {
        let row = |t: &Tensor| t.narrow(0, i, 1).unwrap();
        let shut = difference(&row(&scores), &row(&fixture["stable"])) < 2e-4;
        let wide = difference(&row(&scores), &row(&whole)) < 2e-4;
        assert!(shut != wide, "{i}");
        open.push(wide);
        let mut single = batch();
        single.images = single.images.narrow(0, i, 1).unwrap();
        single.ids = vec![i as u64];
        single.labels.truncate(1);
        let alone = method.predict(&single).unwrap();
        assert!(difference(&alone, &row(&scores)) < 1e-4);
    }
    // With its output layer turned round the gate opens for the others.
    let mut state = method.state().unwrap();
    for name in ["fusion.gate.1.weight", "fusion.gate.1.bias"] {
        state.insert(name.into(), state[name].neg().unwrap());
    }
    let mut turned = build(&lite(), quick());
    turned.restore(&tasks(), &state).unwrap();
    let scores = turned.predict(&batch()).unwrap();
    for (i, wide) in open.into_iter().enumerate() {
        let row = |t: &Tensor| t.narrow(0, i, 1).unwrap();
        let want = if wide { &fixture["stable"] } else { &whole };
        assert!(difference(&row(&scores), &row(want)) < 2e-4, "{i}");
    }
}

/// Contexts of tasks that are over stand still; heads and prompts go on.
#[test]
fn contexts_of_earlier_tasks_stand_still() {
    let stream = odd_stream(false);
    let (backbone, _) = clip_in(Precision::F32, 64);
    let booster = Booster::same(micro_in(Precision::F32));
    let mut method = lite()
        .build(backbone, Some(booster), quick(), 16, 3)
        .unwrap();
    let mut states = Vec::new();
    for task in &stream.tasks[..2] {
        method.begin_task(&task.info).unwrap();
        for batch in task.train.batches(View::Plain, 16) {
            method.observe(&batch.unwrap()).unwrap();
        }
        method.end_task(task, &mut |_| Ok(())).unwrap();
        states.push(method.state().unwrap());
    }
    for (name, moves) in [
        ("fusion.context.0", false),
        ("fusion.head.0.weight", true),
        ("fusion.image_prompts", true),
        ("fusion.booster_prompts", true),
        ("fusion.gate.0.weight", true),
    ] {
        let way = difference(&states[0][name], &states[1][name]);
        assert_eq!(way > 0.0, moves, "{name}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let (backbone, _) = clip_in(Precision::F32, 64);
    let Err(error) = config().build(backbone.clone(), None, quick(), 8, 1) else {
        panic!("there is no booster");
    };
    assert!(error.to_string().contains("[booster]"), "{error}");
    let second = micro_in(Precision::F32);
    let booster = || Some(Booster::same(second.clone()));
    let Err(error) = config().build(second.clone(), booster(), quick(), 8, 1) else {
        panic!("vit-micro has no text tower");
    };
    assert!(error.to_string().contains("no text tower"), "{error}");
    let long = PromptFusion {
        length: 38,
        filler: Filler::X,
        ..config()
    };
    let mut method = long
        .build(backbone.clone(), booster(), quick(), 8, 1)
        .unwrap();
    let error = method.begin_task(&task(0, 0..2)).unwrap_err().to_string();
    assert!(error.contains("at most 37"), "{error}");
    let slot = PromptFusion {
        weights: Weights::Slot,
        ..config()
    };
    let mut method = slot.build(backbone, booster(), quick(), 8, 1).unwrap();
    method.begin_task(&task(0, 0..2)).unwrap();
    let error = method.begin_task(&task(1, 2..5)).unwrap_err().to_string();
    assert!(error.contains("of unequal size"), "{error}");
    let none = PromptFusion {
        image_prompts: 0,
        ..config()
    };
    let error = none.check().unwrap_err().to_string();
    assert!(error.contains("method.image_prompts"), "{error}");
}

//! VPT against PILOT's class, APER on it against its equations, the floor of random prompts.

use candle_core::{Device, Tensor};
use candlewick_core::{Backbone, Batch, Cue, Error, Method, Params, State};
use candlewick_methods::vpt::{Depth, FreeTokens, Start};
use candlewick_methods::{Aper, MethodConfig, RandomPrompt, Tuning, Vpt};

use crate::base::{on_base, trainable};
use crate::lab::{
    conforms, difference, gradient_holds, here, holds, max_abs, quick, task, tensors, tiny, tiny_in,
};
use crate::near::precisions;

fn vpt(depth: Depth, length: usize) -> Vpt {
    Vpt {
        depth,
        length,
        init: Start::default(),
    }
}

fn aper(length: usize) -> Aper {
    Aper {
        tuning: Tuning::VptDeep {
            length,
            init: Start::default(),
        },
    }
}

const BOTH: [(Depth, &str); 2] = [(Depth::Shallow, "vpt_shallow"), (Depth::Deep, "vpt_deep")];

#[test]
fn vpt_matches_the_reference_values_and_gradients() {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    let cue = Cue {
        train: true,
        ..Cue::default()
    };
    for (precision, (depth, name)) in precisions().into_iter().flat_map(|p| BOTH.map(|b| (p, b))) {
        let backbone = tiny_in(precision);
        let close = |got: &Tensor, want: &str, bound: f32| {
            let what = format!("{name}.{want}");
            holds(precision, got, &all[&what], bound, &what);
        };
        let mut params = Params::seeded(0, &Device::Cpu);
        let prompt = FreeTokens::new(&vpt(depth, 3), backbone.spec(), &mut params).unwrap();
        let cls = |params: &mut Params, prompts: &Tensor| {
            let state = State::from([("prompts".to_owned(), prompts.clone())]);
            params.load_state(&state).unwrap();
            let features = backbone.forward(&all["in.images"], &prompt, &cue).unwrap();
            features.cls().unwrap()
        };
        let prompts = &all[&format!("{name}.p.Prompt_Tokens")];
        let got = cls(&mut params, &prompts.zeros_like().unwrap());
        close(&got, "cls_zero_prompts", 5e-5);
        let got = cls(&mut params, prompts);
        close(&got, "cls", 5e-5);
        let loss = (got * &all["in.cls_cotangent"]).unwrap().sum_all().unwrap();
        close(&loss.reshape(1).unwrap(), "loss", 1e-4);
        let grads = loss.backward().unwrap();
        let got = grads.get(&params.get("prompts").unwrap()).unwrap();
        let want = &all[&format!("{name}.grad.Prompt_Tokens")];
        gradient_holds(precision, got, want, &format!("{name} gradient"));
    }
}

fn images(seen: u32) -> Batch {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    Batch {
        images: all["in.images"].clone(),
        labels: (0..3).map(|i| i % seen).collect(),
        ids: (0..3).collect(),
        plain: false,
    }
}

/// Why zeros are not the default: tokens that start alike receive the same gradient.
#[test]
fn tokens_that_start_at_zero_stay_alike() {
    for (init, alike) in [(Start::Zeros, true), (Start::XavierUniform, false)] {
        let config = Vpt {
            init,
            ..vpt(Depth::Deep, 3)
        };
        let mut method = config.build(tiny(), quick(), 1).unwrap();
        method.begin_task(&task(0, 0..3)).unwrap();
        for _ in 0..3 {
            method.observe(&images(3)).unwrap();
        }
        let prompts = method.params().get("prompts").unwrap();
        assert!(max_abs(&prompts) > 1e-3, "three steps move it");
        let first = prompts.narrow(1, 0, 1).unwrap();
        let apart = max_abs(&prompts.broadcast_sub(&first).unwrap());
        assert_eq!(apart < 1e-3, alike, "{init:?}: {apart}");
    }
}

/// `σ·cos` in the first session, then nothing is trained.
#[test]
fn aper_on_prompts_follows_its_equations() {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    let mut method = aper(3).build(tiny(), quick(), 16, 1).unwrap();
    method.begin_task(&task(0, 0..2)).unwrap();
    let state = method.state().unwrap();
    // In the order of their names: head.sigma, head.weight, prompts.
    let vars = method.look().params().unwrap().vars();
    let sigma = Tensor::new(&[3.0f32], &Device::Cpu).unwrap();
    vars[0].set(&sigma).unwrap();
    vars[2].set(&all["vpt_deep.p.Prompt_Tokens"]).unwrap();
    let batch = images(2);
    let features = method.look().features(&batch).unwrap();
    let want = Tensor::cat(&[&all["frozen.cls"], &all["vpt_deep.cls"]], 1).unwrap();
    assert!(difference(&features, &want) < 5e-5);

    let rows = |t: &Tensor| t.to_vec2::<f32>().unwrap();
    let (tuned, weight) = (rows(&all["vpt_deep.cls"]), rows(&state["head.weight"]));
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let cos = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    let mut want = 0.0;
    for (x, &label) in tuned.iter().zip(&batch.labels) {
        let logits: Vec<f64> = weight.iter().map(|w| 3.0 * cos(x, w)).collect();
        let sum: f64 = logits.iter().map(|l| l.exp()).sum();
        want += (sum.ln() - logits[label as usize]) / 3.0;
    }
    let loss = method.look().loss(&batch).unwrap();
    let got = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((got - want).abs() < 1e-5, "{got} {want}");
    assert_eq!(
        (method.epochs(), method.trainable()),
        (2, 4 * 3 * 48 + 2 * 48 + 1)
    );

    method.begin_task(&task(1, 2..3)).unwrap();
    assert_eq!(method.epochs(), 0);
    assert!(method.observe(&batch).is_err());
}

#[test]
fn random_prompts_are_drawn_and_left_alone() {
    let config = RandomPrompt { length: 3 };
    let (a, b) = (
        config.build(tiny(), quick(), 1).unwrap(),
        config.build(tiny(), quick(), 2).unwrap(),
    );
    let features =
        |m: &candlewick_core::Prompted<FreeTokens>| m.features(&images(3), None, false).unwrap().0;
    assert!(difference(&features(&a), &features(&b)) > 1e-3);
    // As VPT of the same seed starts.
    let vpt = vpt(Depth::Deep, 3).build(tiny(), quick(), 1).unwrap();
    assert_eq!(difference(&features(&a), &features(&vpt)), 0.0);
    let mut a = a;
    let before = features(&a);
    a.begin_task(&task(0, 0..3)).unwrap();
    a.observe(&images(3)).unwrap();
    assert_eq!(difference(&features(&a), &before), 0.0);
    assert_eq!(a.trainable(), 3 * (48 + 1));
}

#[test]
fn trainable_values_on_a_base_model() {
    for (depth, length, values) in [
        (Depth::Shallow, 5, 3_840),
        (Depth::Deep, 5, 46_080),
        (Depth::Shallow, 30, 23_040),
        (Depth::Deep, 30, 276_480),
    ] {
        let config = MethodConfig::Vpt(vpt(depth, length));
        assert_eq!(on_base(&config).trainable(), values);
    }
    let config = MethodConfig::RandomPrompt(RandomPrompt { length: 5 });
    assert_eq!(trainable(&config, 10, 10), 76_900);
}

#[test]
fn vpt_keeps_the_laws() {
    for (depth, _) in BOTH {
        conforms(MethodConfig::Vpt(vpt(depth, 2)), false).unwrap();
    }
}

#[test]
fn aper_on_prompts_keeps_the_laws_on_augmented_images() {
    conforms(MethodConfig::Aper(aper(2)), true).unwrap();
}

#[test]
fn random_prompts_keep_the_laws() {
    let config = RandomPrompt { length: 2 };
    conforms(MethodConfig::RandomPrompt(config), false).unwrap();
}

#[test]
fn a_prompt_without_tokens_is_refused() {
    let empty = vpt(Depth::Deep, 0);
    for config in [
        MethodConfig::Vpt(empty.clone()),
        MethodConfig::RandomPrompt(RandomPrompt { length: 0 }),
    ] {
        let Err(Error::Setting { key, .. }) = config.check(Some(&quick())) else {
            panic!("length = 0 must fail");
        };
        assert_eq!(key, "method.length");
    }
}

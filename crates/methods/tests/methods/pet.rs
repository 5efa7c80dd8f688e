//! Parameter-efficient modules against the values and gradients of LAE's classes.

use candle_core::{Device, Tensor};
use candlewick_core::{Backbone, Cue, Op, Outputs, Params, Prompt, State};
use candlewick_methods::Pet;
use candlewick_methods::lora::Target;
use candlewick_methods::vpt::Start;

use crate::base::spec;
use crate::lab::{difference, gradient_holds, here, holds, max_abs, tensors, tiny, tiny_in};
use crate::near::precisions;

pub fn adapter(blocks: &[usize], bottleneck: usize) -> Pet {
    let blocks = blocks.to_vec();
    Pet::Adapter { blocks, bottleneck }
}

pub fn lora(blocks: &[usize], rank: usize) -> Pet {
    Pet::Lora {
        blocks: blocks.to_vec(),
        rank,
        on: Target::keys_and_values(),
    }
}

pub fn prefix(blocks: &[usize], length: usize, compensate: bool) -> Pet {
    Pet::Prefix {
        blocks: blocks.to_vec(),
        length,
        compensate,
    }
}

fn every_lora() -> Pet {
    use Target::{Fc1, Fc2, K, Proj, Q, V};
    Pet::Lora {
        blocks: vec![0, 3],
        rank: 2,
        on: vec![Q, K, V, Proj, Fc1, Fc2],
    }
}

/// Our name of a parameter of LAE's class.
fn renamed(variant: &str, name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let target = |i: &str| ["k", "v"][i.parse::<usize>().unwrap()];
    match (variant, parts.as_slice()) {
        ("lae_adapter", [i, "layer", "0", kind]) => format!("adapter.{i}.down.{kind}"),
        ("lae_adapter", [i, "layer", "2", kind]) => format!("adapter.{i}.up.{kind}"),
        ("lae_adapter", [i, "layer", "3", "scale"]) => format!("adapter.{i}.scale"),
        ("lae_lora", [i, "lora_A", t]) => format!("lora.{i}.{}.a", target(t)),
        ("lae_lora", [i, "lora_B", t]) => format!("lora.{i}.{}.b", target(t)),
        ("lae_lora", [i, "scale", t, "scale"]) => format!("lora.{i}.{}.scale", target(t)),
        (_, [i, of, rest @ ..]) => {
            let of = format!(
                "prefix.{i}.{}",
                if *of == "key" { "keys" } else { "values" }
            );
            match rest {
                ["tokens"] => of,
                ["scaler", "scale"] => format!("{of}.scale"),
                other => panic!("{other:?}"),
            }
        }
        other => panic!("{other:?}"),
    }
}

fn build(pet: &Pet, spec: &candlewick_core::Spec) -> (Box<dyn Prompt>, Params) {
    let mut params = Params::seeded(3, &Device::Cpu);
    let prompt = pet.build("method.module", spec, 3, &mut params).unwrap();
    (prompt, params)
}

#[test]
fn modules_of_lae_match_the_reference_values_and_gradients() {
    let blocks = [0, 1, 2];
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    // Queries whose prefix has next to no share, where the divisor of the compensation is cut, among others.
    let cut = tensors(here("tests/fixtures/pets.safetensors"));
    let variants = [
        ("lae_adapter", adapter(&blocks, 5), &all),
        ("lae_lora", lora(&blocks, 3), &all),
        ("lae_prefix", prefix(&blocks, 4, true), &all),
        ("lae_prefix_nocomp", prefix(&blocks, 4, false), &all),
        ("cut_prefix", prefix(&blocks, 4, true), &cut),
    ];
    let cue = Cue {
        train: true,
        outputs: Outputs::Head,
        ..Cue::default()
    };
    for precision in precisions() {
        let backbone = tiny_in(precision);
        for (variant, pet, values) in &variants {
            if *variant == "cut_prefix" && precision == candlewick_vit::Precision::Bf16 {
                // Of such large keys the rounding decides which of them a query sees.
                continue;
            }
            let (prompt, mut params) = build(pet, backbone.spec());
            let start = format!("{variant}.p.");
            let state: State = values
                .iter()
                .filter_map(|(name, t)| {
                    Some((renamed(variant, name.strip_prefix(&start)?), t.clone()))
                })
                .collect();
            // Every parameter has a value, and every value a parameter.
            params.load_state(&state).unwrap();
            let features = backbone.forward(&all["in.images"], prompt.as_ref(), &cue);
            let cls = features.unwrap().cls().unwrap();
            let want = &values[&format!("{variant}.cls")];
            holds(precision, &cls, want, 5e-5, variant);
            let loss = (cls * &all["in.cls_cotangent"]).unwrap().sum_all().unwrap();
            let want = &values[&format!("{variant}.loss")];
            holds(precision, &loss.reshape(1).unwrap(), want, 1e-4, variant);
            let grads = loss.backward().unwrap();
            let start = format!("{variant}.grad.");
            for (name, want) in values.iter() {
                let Some(name) = name.strip_prefix(&start) else {
                    continue;
                };
                let var = params.get(&renamed(variant, name)).unwrap();
                let got = grads.get(&var).unwrap();
                let what = format!("{variant} {name}");
                match *variant {
                    // The gradient of a key's scale is what is left of large terms.
                    "cut_prefix" => {
                        holds(precision, got, want, 1e-4 * max_abs(want).max(1.0), &what)
                    }
                    _ => gradient_holds(precision, got, want, &what),
                }
            }
        }
    }
}

/// Asked wherever another is, it changes nothing.
struct Idle(Box<dyn Prompt>);

impl Prompt for Idle {
    fn tunes(&self, op: Op) -> bool {
        self.0.tunes(op)
    }
}

/// Bit for bit: what is added is 0.
#[test]
fn adapters_and_lora_start_as_the_plain_backbone() {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    let images = &all["in.images"];
    for precision in precisions() {
        let backbone = tiny_in(precision);
        let cls = |prompt: &dyn Prompt| -> Tensor {
            let features = backbone.forward(images, prompt, &Cue::default());
            features.unwrap().cls().unwrap()
        };
        let frozen = backbone.query(images).unwrap();
        for pet in [
            adapter(&[0, 1, 3], 5),
            lora(&[0, 1, 3], 5),
            every_lora(),
            Pet::Adaptformer {
                bottleneck: 4,
                dropout: 0.1,
            },
        ] {
            let (prompt, _) = build(&pet, backbone.spec());
            let drawn = cls(prompt.as_ref());
            assert_eq!(difference(&drawn, &cls(&Idle(prompt))), 0.0, "{pet:?}");
            holds(precision, &drawn, &frozen, 1e-5, "idle");
        }
        // Keys of about 0 take part of the attention, so a prefix is never nothing.
        let (prompt, _) = build(&prefix(&[0, 1, 2, 3], 1, false), backbone.spec());
        assert!(difference(&cls(prompt.as_ref()), &frozen) > 1e-4);
    }
}

/// Every weight that LoRA can change, by differences of a loss.
#[test]
fn every_target_of_lora_has_a_true_gradient() {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    let backbone = tiny();
    let (prompt, mut params) = build(&every_lora(), backbone.spec());
    for (name, value) in params.state().unwrap() {
        if name.ends_with(".b") {
            let n = value.elem_count();
            let drawn: Vec<f32> = (0..n)
                .map(|i| (i * 37 % 101) as f32 / 500.0 - 0.1)
                .collect();
            let drawn = Tensor::from_vec(drawn, value.dims(), &Device::Cpu).unwrap();
            params.set(&name, &drawn).unwrap();
        }
    }
    let cue = Cue {
        train: true,
        ..Cue::default()
    };
    let loss = || {
        let features = backbone.forward(&all["in.images"], prompt.as_ref(), &cue)?;
        Ok((features.cls()? * &all["in.cls_cotangent"])?.mean_all()?)
    };
    candlewick_methods::conformance::gradients(&loss, &params, &[]).unwrap();
}

/// The counts of the paper's code: five blocks of ViT-B/16.
#[test]
fn values_on_a_base_model() {
    let first = [0, 1, 2, 3, 4];
    for (pet, values) in [
        (adapter(&first, 5), 42_270),
        (lora(&first, 5), 76_810),
        (prefix(&first, 10, true), 76_810),
    ] {
        assert_eq!(build(&pet, &spec()).1.count(), values, "{pet:?}");
    }
}

#[test]
fn settings_of_a_module_are_named() {
    let init = Start::default();
    let with = |on: Vec<Target>| Pet::Lora {
        blocks: vec![0],
        rank: 1,
        on,
    };
    for (pet, key) in [
        (adapter(&[0], 0), "method.module.bottleneck"),
        (adapter(&[], 1), "method.module.blocks"),
        (
            lora(&[0, 1, 0], 1),
            "method.module.blocks`: block 0 stands twice",
        ),
        (lora(&[0], 0), "method.module.rank"),
        (with(vec![]), "method.module.on"),
        (with(vec![Target::K, Target::K]), "\"k\" stands twice"),
        (prefix(&[0], 0, true), "method.module.length"),
        (Pet::VptDeep { length: 0, init }, "method.module.length"),
        (
            Pet::Adaptformer {
                bottleneck: 1,
                dropout: 1.0,
            },
            "method.module.dropout",
        ),
    ] {
        let text = pet.check("method.module").unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    }
    let mut params = Params::seeded(0, &Device::Cpu);
    let text = adapter(&[4], 1)
        .build("method.module", tiny().spec(), 0, &mut params)
        .err()
        .unwrap()
        .to_string();
    assert!(text.contains("no block 4"), "{text}");
}

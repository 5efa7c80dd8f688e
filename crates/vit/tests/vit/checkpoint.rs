//! Checkpointed training against training that keeps everything.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use candlewick_core::{Backbone, Cue, NoPrompt, Outputs, Thawed};
use candlewick_vit::{Options, Vit};

use crate::near::{assert_near, precisions};
use crate::{fixture, heads, load, save, tensors, timm_weights};

fn thawed(options: Options) -> Thawed {
    let all = tensors("vit_timm/data.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let vit: Vit = load(&save(&timm_weights(&all), dir.path()), &options).unwrap();
    vit.thaw().unwrap()
}

fn checkpointed() -> Options {
    Options {
        checkpoint_activations: true,
        ..heads(4)
    }
}

/// A loss of the CLS feature, or of all tokens.
fn loss(thawed: &Thawed, images: &Tensor, outputs: Outputs) -> Tensor {
    let cue = Cue {
        train: true,
        outputs,
        ..Cue::default()
    };
    let features = thawed.backbone.forward(images, &NoPrompt, &cue).unwrap();
    let read = match outputs {
        Outputs::Head => features.cls().unwrap(),
        Outputs::All => features.tokens,
    };
    read.powf(3.0).unwrap().mean_all().unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
    // A sum that begins at 0 makes 0 of −0.
    values.into_iter().map(|v| (v + 0.0).to_bits()).collect()
}

fn gradients(thawed: &Thawed, loss: &Tensor) -> BTreeMap<String, Vec<u32>> {
    let grads = loss.backward().unwrap();
    let one = |(name, var): (&String, &Var)| (name.clone(), bits(grads.get(var).unwrap()));
    thawed.weights.iter().map(one).collect()
}

#[test]
fn checkpoints_change_no_loss_and_no_gradient() {
    assert!(fixture("vit_timm").exists());
    let images = &tensors("vit_timm/data.safetensors")["in.images"];
    let (all, few) = (thawed(heads(4)), thawed(checkpointed()));
    for outputs in [Outputs::All, Outputs::Head] {
        let (want, got) = (loss(&all, images, outputs), loss(&few, images, outputs));
        assert_eq!(bits(&want), bits(&got));
        let (want, got) = (gradients(&all, &want), gradients(&few, &got));
        assert_eq!(want.len(), few.weights.len());
        for (name, want) in &want {
            assert!(want == &got[name], "{name}");
            assert!(
                want.iter().any(|v| *v != 0) || name.contains("qkv.bias"),
                "{name}"
            );
        }
        // Twice through one graph, and two passes in one.
        let one = loss(&few, images, outputs);
        let first = gradients(&few, &one);
        assert!(first == gradients(&few, &one));
        let two = (loss(&few, images, outputs) + loss(&few, images, outputs)).unwrap();
        let double = (&two * 0.5).unwrap();
        let twice = double.backward().unwrap();
        for (name, var) in &few.weights {
            let got: Vec<f32> = twice
                .get(var)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            let want = &first[name];
            let size = want
                .iter()
                .map(|w| f32::from_bits(*w).abs())
                .fold(0.0, f32::max);
            for (g, w) in got.iter().zip(want) {
                assert!((g - f32::from_bits(*w)).abs() <= 1e-5 * size, "{name}");
            }
        }
    }
}

/// Products of bf16 values, forward and backward, whether activations are kept or not.
#[test]
fn a_backbone_that_trains_in_bf16_has_about_the_gradients_of_f32() {
    let images = &tensors("vit_timm/data.safetensors")["in.images"];
    let exact = thawed(heads(4));
    let want = loss(&exact, images, Outputs::All).backward().unwrap();
    for precision in precisions() {
        let rounded = thawed(Options {
            precision,
            ..heads(4)
        });
        let few = thawed(Options {
            precision,
            ..checkpointed()
        });
        let value = loss(&rounded, images, Outputs::All);
        let got = value.backward().unwrap();
        let again = loss(&few, images, Outputs::All);
        assert_eq!(bits(&value), bits(&again));
        assert!(gradients(&rounded, &value) == gradients(&few, &again));
        for (name, var) in &rounded.weights {
            let want = want.get(&exact.weights[name]).unwrap();
            assert_near(name, got.get(var).unwrap(), want);
        }
    }
}

//! The backbone against the public implementations, and its seams against what they promise.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checkpoint;
mod clip;
mod near;
mod seams;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, Var};
use candlewick_core::{Backbone, Cue, Injection, NoPrompt, Op, Prompt, Result, Site};
use candlewick_vit::{Layout, Options, Precision, Vit, Weights};

use near::{assert_near, precisions};

type Tensors = HashMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn tensors(name: &str) -> Tensors {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap()
}

fn save(tensors: &Tensors, dir: &Path) -> PathBuf {
    let path = dir.join("model.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    path
}

fn load(path: &Path, options: &Options) -> std::result::Result<Vit, candlewick_vit::Error> {
    Vit::load(&Weights::open(path)?, options, &Device::Cpu)
}

fn heads(n: usize) -> Options {
    Options {
        heads: Some(n),
        ..Options::default()
    }
}

fn timm() -> (Vit, Tensors) {
    timm_in(Precision::F32)
}

fn timm_in(precision: Precision) -> (Vit, Tensors) {
    let all = tensors("vit_timm/data.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        precision,
        ..heads(4)
    };
    let vit = load(&save(&timm_weights(&all), dir.path()), &options).unwrap();
    (vit, all)
}

fn timm_weights(all: &Tensors) -> Tensors {
    let stripped = all.iter().filter_map(|(name, t)| {
        let name = name.strip_prefix("w.")?;
        Some((name.to_owned(), t.clone()))
    });
    stripped.collect()
}

/// Largest `|a − b| / (absolute + relative·|b|)`; at most 1 passes.
fn excess(a: &Tensor, b: &Tensor, absolute: f64, relative: f64) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let bound = ((b.abs().unwrap() * relative).unwrap() + absolute).unwrap();
    let ratio = ((a - b).unwrap().abs().unwrap() / bound).unwrap();
    ratio.max_all().unwrap().to_scalar().unwrap()
}

fn assert_close(what: &str, a: &Tensor, b: &Tensor, absolute: f64, relative: f64) {
    let worst = excess(a, b, absolute, relative);
    assert!(worst <= 1.0, "{what}: {worst} times the tolerance");
}

fn plain(vit: &Vit, images: &Tensor) -> Tensor {
    let features = vit.forward(images, &NoPrompt, &Cue::default()).unwrap();
    features.tokens
}

/// Records what every block is given.
#[derive(Default)]
struct Spy {
    seen: std::sync::Mutex<Vec<(Site, Tensor)>>,
}

impl Prompt for Spy {
    fn inject(&self, site: Site, tokens: &Tensor, _: &Cue) -> Result<Injection> {
        self.seen.lock().unwrap().push((site, tokens.clone()));
        Ok(Injection::default())
    }

    fn tunes(&self, op: Op) -> bool {
        op == Op::Norm
    }

    fn tune(&self, _: Op, input: &Tensor, output: Tensor, _: &Cue) -> Result<Tensor> {
        self.seen
            .lock()
            .unwrap()
            .push((Site::Block(usize::MAX), input.clone()));
        Ok(output)
    }
}

#[test]
fn timm_layout_matches_timm_at_every_stage() {
    let (vit, all) = timm();
    assert_eq!(vit.layout(), Layout::Timm);
    let images = &all["in.images"];
    let patches = vit.patches(images).unwrap();
    assert_close("patches", &patches, &all["out.patch_embed"], 2e-5, 1e-4);
    let spy = Spy::default();
    let features = vit.forward(images, &spy, &Cue::default()).unwrap();
    let seen = spy.seen.into_inner().unwrap();
    let expected = [
        "tokens_embedded",
        "tokens_block0",
        "tokens_block1",
        "tokens_block2",
        "tokens_block3",
    ];
    // The first call is at `Embed`, the last the input of the final norm.
    assert_eq!(seen.len(), 6);
    for ((site, tokens), name) in seen[1..].iter().zip(expected) {
        let want = &all[&format!("out.{name}")];
        assert_close(&format!("{site:?}"), tokens, want, 2e-5, 1e-4);
    }
    assert_close(
        "norm",
        &features.tokens,
        &all["out.tokens_norm"],
        2e-5,
        1e-4,
    );
    assert_close("cls", &features.cls().unwrap(), &all["out.cls"], 2e-5, 1e-4);
}

/// Adds a variable to the input of block 0, so that its gradient is that of the embedded tokens.
struct AddToEmbedding(Tensor);

impl Prompt for AddToEmbedding {
    fn tunes(&self, op: Op) -> bool {
        matches!(op, Op::AttentionBranch(0) | Op::Norm1(0))
    }

    fn tune(&self, op: Op, input: &Tensor, output: Tensor, _: &Cue) -> Result<Tensor> {
        // x + delta enters both the norm and the residual sum.
        match op {
            Op::Norm1(_) => {
                let (shifted, d) = ((input + &self.0)?, input.dim(2)?);
                let mean = (shifted.sum_keepdim(2)? / d as f64)?;
                let centred = shifted.broadcast_sub(&mean)?;
                let var = (centred.sqr()?.sum_keepdim(2)? / d as f64)?;
                let normed = centred.broadcast_div(&(var + 1e-6)?.sqrt()?)?;
                let all = tensors("vit_timm/data.safetensors");
                Ok(normed
                    .broadcast_mul(&all["w.blocks.0.norm1.weight"])?
                    .broadcast_add(&all["w.blocks.0.norm1.bias"])?)
            }
            _ => Ok((output + &self.0)?),
        }
    }
}

#[test]
fn gradient_reaches_the_first_tokens_through_every_block() {
    for precision in precisions() {
        let (vit, all) = timm_in(precision);
        let delta = Var::from_tensor(&all["out.tokens_embedded"].zeros_like().unwrap()).unwrap();
        let prompt = AddToEmbedding(delta.as_tensor().clone());
        let features = vit
            .forward(&all["in.images"], &prompt, &Cue::default())
            .unwrap();
        let cls = features.cls().unwrap();
        let loss = (&cls * &all["in.cls_cotangent"])
            .unwrap()
            .sum_all()
            .unwrap();
        let grads = loss.backward().unwrap();
        let (got, want) = (grads.get(&delta).unwrap(), &all["grad.tokens_embedded"]);
        if precision == Precision::Bf16 {
            assert_near("CLS", &cls, &all["out.cls"]);
            assert_near("gradient", got, want);
        } else {
            let want_loss: Vec<f32> = all["out.loss"].to_vec1().unwrap();
            let off = loss.to_scalar::<f32>().unwrap() - want_loss[0];
            assert!(off.abs() < 1e-4 * want_loss[0].abs().max(1.0));
            let scale: f32 = want.abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert_close("gradient", got, want, f64::from(scale) * 1e-4, 0.0);
        }
        for (name, weight) in vit.weights() {
            assert!(
                grads.get(weight).is_none(),
                "{name} is frozen but has a gradient"
            );
        }
    }
}

#[test]
fn hugging_face_vit_bare_and_with_classifier() {
    let all = tensors("vit_hf/data.safetensors");
    for file in [
        "vit_hf/vit_base.safetensors",
        "vit_hf/vit_classifier.safetensors",
    ] {
        let vit = load(&fixture(file), &heads(4)).unwrap();
        assert_eq!(vit.layout(), Layout::HfVit);
        let images = &all["in.pixel_values"];
        let spy = Spy::default();
        let features = vit.forward(images, &spy, &Cue::default()).unwrap();
        let seen = spy.seen.into_inner().unwrap();
        for (i, (_, tokens)) in seen[1..].iter().enumerate() {
            let want = &all[&format!("out.hidden_states.{i}")];
            assert_close(&format!("{file} {i}"), tokens, want, 3e-5, 1e-4);
        }
        let want = &all["out.last_hidden_state"];
        assert_close(file, &features.tokens, want, 3e-5, 1e-4);
    }
}

#[test]
fn dinov2_at_its_own_and_another_size() {
    let all = tensors("vit_hf/data.safetensors");
    for size in [56, 84] {
        let options = Options {
            image_size: Some(size),
            ..heads(3)
        };
        let vit = load(&fixture("vit_hf/dinov2.safetensors"), &options).unwrap();
        assert_eq!(vit.layout(), Layout::Dinov2);
        let position = vit.position_embedding().unwrap();
        let want = &all[&format!("dino.out.position_embeddings_{size}")];
        assert_close("positions", &position, want, 1e-5, 0.0);
        let tokens = plain(&vit, &all[&format!("dino.in.pixel_values_{size}")]);
        let want = &all[&format!("dino.out.last_hidden_state_{size}")];
        assert_close(&format!("{size}"), &tokens, want, 1e-4, 1e-4);
    }
}

#[test]
fn dinov2_with_registers_interpolates_as_its_own_code() {
    let all = tensors("extra.safetensors");
    for size in [56, 84, 28] {
        let options = Options {
            image_size: Some(size),
            ..heads(4)
        };
        let vit = load(&fixture("registers.safetensors"), &options).unwrap();
        assert_eq!(vit.spec().registers, 3);
        let tokens = plain(&vit, &all[&format!("registers.in.{size}")]);
        let want = &all[&format!("registers.out.{size}")];
        assert_close(&format!("{size}"), &tokens, want, 1e-4, 1e-4);
    }
}

#[test]
fn timm_at_another_size_than_trained() {
    let all = tensors("extra.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let path = save(
        &timm_weights(&tensors("vit_timm/data.safetensors")),
        dir.path(),
    );
    for size in [48, 24] {
        let options = Options {
            image_size: Some(size),
            ..heads(4)
        };
        let vit = load(&path, &options).unwrap();
        let tokens = plain(&vit, &all[&format!("timm.in.{size}")]);
        let cls = tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        let want = &all[&format!("timm.out.{size}")];
        assert_close(&format!("{size}"), &cls, want, 1e-4, 1e-4);
    }
}

#[test]
fn original_npz_as_timm_reads_it() {
    let all = tensors("extra.safetensors");
    let vit = load(&fixture("original.npz"), &Options::default()).unwrap();
    assert_eq!((vit.layout(), vit.spec().heads), (Layout::Npz, 3));
    let tokens = plain(&vit, &all["npz.in"]);
    let cls = tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
    assert_close("npz", &cls, &all["npz.out"], 5e-5, 1e-4);
}

#[test]
fn half_precision_files_give_their_rounded_values() {
    let all = tensors("vit_timm/data.safetensors");
    for dtype in [candle_core::DType::F16, candle_core::DType::BF16] {
        let rounded: Tensors = timm_weights(&all)
            .into_iter()
            .map(|(name, t)| (name, t.to_dtype(dtype).unwrap()))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let vit = load(&save(&rounded, dir.path()), &heads(4)).unwrap();
        for (name, tensor) in vit.weights() {
            let want = rounded[name].to_dtype(candle_core::DType::F32).unwrap();
            assert_eq!(
                tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                want.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            );
        }
    }
}

#[test]
fn a_truncated_backbone_is_its_first_blocks_and_the_final_norm() {
    let all = tensors("vit_timm/data.safetensors");
    let dir = tempfile::tempdir().unwrap();
    let path = save(&timm_weights(&all), dir.path());
    let options = Options {
        depth: Some(2),
        ..heads(4)
    };
    let vit = load(&path, &options).unwrap();
    assert_eq!(vit.spec().depth, 2);
    let spy = Spy::default();
    vit.forward(&all["in.images"], &spy, &Cue::default())
        .unwrap();
    let seen = spy.seen.into_inner().unwrap();
    let (_, before_norm) = seen.last().unwrap();
    assert_close(
        "depth 2",
        before_norm,
        &all["out.tokens_block1"],
        2e-5,
        1e-4,
    );
    let options = Options {
        depth: Some(5),
        ..heads(4)
    };
    let text = load(&path, &options).unwrap_err().to_string();
    assert!(
        text.contains("found 5") && text.contains("give 1 to 4"),
        "{text}"
    );
}

#[test]
fn one_error_lists_every_tensor_that_does_not_fit() {
    let mut weights = timm_weights(&tensors("vit_timm/data.safetensors"));
    weights.remove("blocks.1.mlp.fc1.bias");
    weights.remove("norm.weight");
    let wrong = Tensor::zeros((3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    weights.insert("blocks.2.attn.proj.weight".into(), wrong.clone());
    weights.insert("blocks.0.lora.a".into(), wrong.clone());
    weights.insert("head.weight".into(), wrong);
    let dir = tempfile::tempdir().unwrap();
    let path = save(&weights, dir.path());
    let text = load(&path, &heads(4)).unwrap_err().to_string();
    for part in [
        path.to_str().unwrap(),
        "4 tensors do not fit a timm ViT",
        "missing `blocks.1.mlp.fc1.bias` of shape [192]",
        "missing `norm.weight`",
        "`blocks.2.attn.proj.weight` has shape [3, 3], expected [48, 48]",
        "surplus `blocks.0.lora.a`",
    ] {
        assert!(text.contains(part), "{part} not in: {text}");
    }
    assert!(
        !text.contains("head.weight"),
        "a classifier is left out: {text}"
    );
}

#[test]
fn files_that_are_no_backbone_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let missing = Weights::open(&path).err().unwrap().to_string();
    assert!(missing.contains("model.safetensors"), "{missing}");
    let whole = std::fs::read(fixture("registers.safetensors")).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = Weights::open(&path).err().unwrap().to_string();
    assert!(cut.contains("not a readable safetensors file"), "{cut}");
    let other = HashMap::from([(
        "conv1.weight".to_owned(),
        Tensor::new(1f32, &Device::Cpu).unwrap(),
    )]);
    let path = save(&other, dir.path());
    let unknown = load(&path, &Options::default()).unwrap_err().to_string();
    assert!(unknown.contains("`conv1.weight`"), "{unknown}");
    let npz = dir.path().join("x.npz");
    std::fs::write(&npz, b"no zip").unwrap();
    let npz = Weights::open(&npz).err().unwrap().to_string();
    assert!(npz.contains("not a readable npz file"), "{npz}");
}

#[test]
fn rows_of_a_batch_do_not_see_each_other() {
    let (vit, all) = timm();
    let images = &all["in.images"];
    let whole = plain(&vit, images);
    for i in 0..3 {
        let alone = plain(&vit, &images.narrow(0, i, 1).unwrap());
        let row = whole.narrow(0, i, 1).unwrap();
        assert_close(&format!("row {i}"), &alone, &row, 1e-6, 1e-6);
    }
}

#[test]
fn a_wrong_image_size_says_what_to_set() {
    let (vit, _) = timm();
    let images = Tensor::zeros((1, 3, 40, 40), candle_core::DType::F32, &Device::Cpu).unwrap();
    let text = vit.query(&images).unwrap_err().to_string();
    assert!(
        text.contains("3x40x40")
            && text.contains("preprocess.crop")
            && text.contains("set it to 32"),
        "{text}"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = save(
        &timm_weights(&tensors("vit_timm/data.safetensors")),
        dir.path(),
    );
    let options = Options {
        image_size: Some(30),
        ..heads(4)
    };
    let text = load(&path, &options).unwrap_err().to_string();
    assert!(text.contains("multiple of the patch size 8"), "{text}");
    let text = load(&path, &Options::default()).unwrap_err().to_string();
    assert!(text.contains("backbone.heads"), "{text}");
}

/// Sizes at which the kernels group 12, 4, 3, 1 and 1 images: 65, 197, 257, 577 and 1025 tokens.
#[test]
fn a_query_feature_is_the_images_own_bit_for_bit() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/vit-micro/model.safetensors");
    for (size, most) in [(64, 51), (112, 18), (128, 14), (192, 5), (256, 3)] {
        for precision in precisions() {
            let options = Options {
                image_size: Some(size),
                depth: Some(1),
                precision,
                ..heads(4)
            };
            let vit = load(&path, &options).unwrap();
            let values = (0..most * 3 * size * size).map(|i| ((i * i % 9973) as f32 * 0.7).sin());
            let shape = (most, 3, size, size);
            let images = Tensor::from_iter(values, &Device::Cpu).unwrap();
            let images = images.reshape(shape).unwrap();
            let bits = |from: usize, n: usize| -> Vec<Vec<u32>> {
                let query = vit.query(&images.narrow(0, from, n).unwrap()).unwrap();
                let rows: Vec<Vec<f32>> = query.to_vec2().unwrap();
                rows.into_iter()
                    .map(|row| row.into_iter().map(f32::to_bits).collect())
                    .collect()
            };
            let alone: Vec<_> = (0..most).flat_map(|i| bits(i, 1)).collect();
            for n in 2..=most {
                // Also from the second image on, so that places differ.
                for from in [0, most - n] {
                    let what = format!("{precision:?}, {size} px, {n} from {from}");
                    assert!(bits(from, n) == alone[from..from + n], "{what}");
                }
            }
        }
    }
}

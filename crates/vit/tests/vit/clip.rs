//! Both towers of CLIP against transformers and open_clip.

use candle_core::{DType, Device, Tensor, Var};
use candlewick_core::language::{embed_all, unit};
use candlewick_core::{Backbone as _, Language as _};
use candlewick_vit::{
    Activation, Clip, Error, Layout, Options, Precision, TextOptions, Tokenizer, Vit, Weights,
};

use crate::near::{assert_near, precisions};
use crate::{Spy, Tensors, assert_close, fixture, plain, save, tensors};
use candlewick_core::{Cue, Site};

/// The file of the fixture with the token embeddings put back.
fn whole() -> Tensors {
    let mut weights = tensors("clip/clip_without_token_embedding.safetensors");
    let data = tensors("clip/data.safetensors");
    let ids: Vec<i64> = data["in.token_rows.ids"].to_vec1().unwrap();
    let rows: Vec<Vec<f32>> = data["in.token_rows.values"].to_vec2().unwrap();
    let mut table = vec![0f32; 49408 * 32];
    for (id, row) in ids.iter().zip(rows) {
        table[*id as usize * 32..][..32].copy_from_slice(&row);
    }
    let table = Tensor::from_vec(table, (49408, 32), &Device::Cpu).unwrap();
    let name = "text_model.embeddings.token_embedding.weight";
    weights.insert(name.into(), table);
    weights
}

fn tokenizer() -> Tokenizer {
    Tokenizer::open(&fixture("clip/tokenizer.json")).unwrap()
}

fn towers(weights: &Tensors, precision: Precision) -> (Vit, Clip) {
    let dir = tempfile::tempdir().unwrap();
    let weights = Weights::open(&save(weights, dir.path())).unwrap();
    let options = Options {
        heads: Some(4),
        precision,
        ..Options::default()
    };
    let vit = Vit::load(&weights, &options, &Device::Cpu).unwrap();
    let options = TextOptions {
        heads: Some(4),
        precision,
        ..TextOptions::default()
    };
    let clip = Clip::load(&weights, tokenizer(), &options, &Device::Cpu).unwrap();
    (vit, clip)
}

/// Rows of ids, cut behind the first end of text.
fn texts(ids: &Tensor) -> Vec<Vec<u32>> {
    let rows: Vec<Vec<i64>> = ids.to_vec2().unwrap();
    let cut = |row: &Vec<i64>| {
        let end = row.iter().position(|id| *id == 49407).unwrap();
        row[..=end].iter().map(|id| *id as u32).collect()
    };
    rows.iter().map(cut).collect()
}

#[test]
fn towers_are_those_of_transformers() {
    let (weights, data) = (whole(), tensors("clip/data.safetensors"));
    for precision in precisions() {
        let holds = |what: &str, got: &Tensor, name: &str| {
            let (want, loose) = (&data[name], name == "out.logits_per_image");
            match precision {
                Precision::Bf16 => assert_near(what, got, want),
                _ => assert_close(what, got, want, if loose { 2e-4 } else { 3e-5 }, 1e-4),
            }
        };
        let (vit, clip) = towers(&weights, precision);
        assert_eq!((vit.layout(), vit.spec().dim), (Layout::Clip, 48));
        let spec = clip.spec();
        assert_eq!((spec.dim, spec.width, spec.positions), (24, 32, 77));

        let pixels = &data["in.pixel_values"];
        let spy = Spy::default();
        let features = vit.forward(pixels, &spy, &Cue::default()).unwrap();
        let seen = spy.seen.lock().unwrap();
        let at = |wanted: usize| {
            let found = seen.iter().find(|(site, _)| *site == Site::Block(wanted));
            found.unwrap().1.clone()
        };
        holds("embedded", &at(0), "out.vision_hidden_0");
        let cls = at(2).narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        holds("before the last", &cls, "out.vision_cls_penultimate_layer");
        holds("last", &at(usize::MAX), "out.vision_last_hidden_state");
        let pooled = features.cls().unwrap();
        holds("pooled", &pooled, "out.vision_pooled");
        let images = clip.images(&pooled).unwrap();
        holds("image", &images, "out.image_features");

        let tokens = texts(&data["in.input_ids"]);
        let (embedded, ends) = embed_all(&clip, &tokens).unwrap();
        let found = clip.texts(&embedded, &ends).unwrap();
        holds("text", &found, "out.text_features");
        // Longer than need be, and one by one: what stands behind the end does not matter.
        let fill = clip
            .embed(&vec![320; 6 * (77 - embedded.dim(1).unwrap())])
            .unwrap();
        let fill = fill.reshape((6, (), 32)).unwrap();
        let long = Tensor::cat(&[&embedded, &fill], 1).unwrap();
        holds(
            "padded",
            &clip.texts(&long, &ends).unwrap(),
            "out.text_features",
        );

        let (images, texts) = (unit(&images).unwrap(), unit(&found).unwrap());
        holds("image unit", &images, "out.image_embeds");
        holds("text unit", &texts, "out.text_embeds");
        let scale = clip.scale().unwrap();
        let logits = images.matmul(&texts.t().unwrap()).unwrap();
        let logits = logits.broadcast_mul(&scale).unwrap();
        holds("logits", &logits, "out.logits_per_image");
    }
}

#[test]
fn tokens_are_those_of_the_reference() {
    #[derive(serde::Deserialize)]
    struct Line {
        text: String,
        hf_input_ids: Vec<u32>,
    }
    let text = std::fs::read_to_string(fixture("clip/tokens.json")).unwrap();
    let lines: Vec<Line> = serde_json::from_str(&text).unwrap();
    assert_eq!(lines.len(), 20);
    let tokenizer = tokenizer();
    let mut longest = 0;
    for line in lines {
        let found = tokenizer.encode(&line.text, 77).unwrap();
        assert_eq!(found, line.hf_input_ids, "{}", line.text);
        longest = longest.max(found.len());
    }
    assert_eq!(longest, 77, "one of the texts is cut");
}

/// CoOp's loss over three classes of different lengths, on both precisions, and of the plain operations that other devices use.
#[test]
fn gradients_reach_learned_context() {
    let weights = whole();
    let (data, want) = (
        tensors("clip/data.safetensors"),
        tensors("clip/context.safetensors"),
    );
    for precision in precisions() {
        let (_, clip) = towers(&weights, precision);
        let context = Var::from_tensor(&want["in.context"]).unwrap();
        let rows = texts(&data["in.input_ids"]).into_iter().take(3);
        let rows: Vec<Vec<u32>> = rows.collect();
        let (embedded, ends) = embed_all(&clip, &rows).unwrap();
        let length = embedded.dim(1).unwrap();
        let shared = context.unsqueeze(0).unwrap().expand((3, 4, 32)).unwrap();
        let first = embedded.narrow(1, 0, 1).unwrap();
        let rest = embedded.narrow(1, 1, length - 1).unwrap();
        let whole = Tensor::cat(&[&first, &shared, &rest], 1).unwrap();
        let ends: Vec<usize> = ends.iter().map(|end| end + 4).collect();
        let features = clip.texts(&whole, &ends).unwrap();
        let logits = unit(&want["in.image_embeds"])
            .unwrap()
            .matmul(&unit(&features).unwrap().t().unwrap())
            .unwrap()
            .broadcast_mul(&clip.scale().unwrap())
            .unwrap();
        let labels = Tensor::new(&[0u32, 1, 2, 1, 0], &Device::Cpu).unwrap();
        let loss = candle_nn::loss::cross_entropy(&logits, &labels).unwrap();
        let grads = loss.backward().unwrap();
        let grad = grads.get(&context).expect("the context trains");
        for (what, got, name) in [
            ("features", &features, "out.text_features"),
            ("logits", &logits, "out.logits"),
            ("loss", &loss.reshape(()).unwrap(), "out.loss"),
            ("context", grad, "out.context_grad"),
        ] {
            match precision {
                Precision::Bf16 => assert_near(what, got, &want[name]),
                _ => assert_close(what, got, &want[name], 2e-5, 2e-4),
            }
        }
    }
}

#[test]
fn the_layout_of_open_clip_is_read() {
    let all = tensors("clip/open_clip.safetensors");
    let weights = all.iter().filter_map(|(name, t)| {
        let name = name.strip_prefix("w.")?;
        Some((name.to_owned(), t.clone()))
    });
    let dir = tempfile::tempdir().unwrap();
    let weights = Weights::open(&save(&weights.collect(), dir.path())).unwrap();
    let options = Options {
        heads: Some(4),
        ..Options::default()
    };
    let vit = Vit::load(&weights, &options, &Device::Cpu).unwrap();
    assert_eq!(vit.layout(), Layout::OpenClip);
    // 64 tokens of the fixture are fewer than CLIP's tokenizer gives.
    let options = TextOptions {
        heads: Some(3),
        ..TextOptions::default()
    };
    let error = Clip::load(&weights, tokenizer(), &options, &Device::Cpu)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("49408 tokens, the text tower 64"),
        "{error}"
    );
    let small = Tokenizer::of_bytes("small", SMALL.as_bytes()).unwrap();
    let clip = Clip::load(&weights, small, &options, &Device::Cpu).unwrap();

    let images = clip.images(
        &plain(&vit, &all["in.pixels"])
            .narrow(1, 0, 1)
            .unwrap()
            .squeeze(1)
            .unwrap(),
    );
    assert_close(
        "image",
        &images.unwrap(),
        &all["out.image_features"],
        3e-5,
        1e-4,
    );
    let rows: Vec<Vec<i64>> = all["in.text"].to_vec2().unwrap();
    let rows = rows.iter().map(|row| {
        let end = row.iter().position(|id| *id == 63).unwrap();
        row[..=end]
            .iter()
            .map(|id| *id as u32)
            .collect::<Vec<u32>>()
    });
    let rows: Vec<Vec<u32>> = rows.collect();
    let (embedded, ends) = embed_all(&clip, &rows).unwrap();
    let texts = clip.texts(&embedded, &ends).unwrap();
    assert_close("text", &texts, &all["out.text_features"], 3e-5, 1e-4);
}

/// Two words, a start and an end.
const SMALL: &str = r#"{"version": "1.0", "added_tokens": [], "normalizer": null,
  "pre_tokenizer": {"type": "Whitespace"}, "decoder": null, "truncation": null, "padding": null,
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [63], "tokens": ["</s>"]}}},
  "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "<s>": 1, "cat": 2, "dog": 3, "</s>": 63}, "unk_token": "<unk>"}}"#;

/// Every weight but the scale trains, and the copy with the same weights says the same.
#[test]
fn a_thawed_text_tower_is_the_same_and_trains() {
    let (_, clip) = towers(&whole(), Precision::F32);
    let texts = ["a photo of a cat.", "two dogs"].map(String::from);
    let still = clip.encode(&texts).unwrap();
    let thawed = clip.thaw().unwrap();
    let moving = thawed.language.encode(&texts).unwrap();
    assert_close("thawed", &moving, &still, 1e-6, 1e-6);
    let pixels = Tensor::ones((1, 48), DType::F32, &Device::Cpu).unwrap();
    let images = thawed.language.images(&pixels).unwrap();
    let loss = (moving.sqr().unwrap().sum_all().unwrap() + images.sum_all().unwrap()).unwrap();
    let grads = loss.backward().unwrap();
    for (name, var) in &thawed.weights {
        assert!(grads.get(var).is_some(), "{name} has no gradient");
    }
    assert_eq!(thawed.weights.len() + 1, clip.weights().len());
    let state = thawed
        .weights
        .iter()
        .map(|(name, var)| (name.clone(), var.as_tensor().clone()));
    let mut state: std::collections::BTreeMap<_, _> = state.collect();
    let again = clip.with_weights(&state).unwrap();
    let again = again.encode(&texts).unwrap();
    assert_close("rebuilt", &again, &still, 1e-6, 1e-6);
    state.remove("text_projection");
    let error = clip.with_weights(&state).err().unwrap().to_string();
    assert!(error.contains("missing `text_projection`"), "{error}");
}

/// The text half of a file says what the whole file says, and is no backbone.
#[test]
fn a_text_tower_may_stand_alone() {
    let (_, whole_clip) = towers(&whole(), Precision::F32);
    let mut half = whole();
    half.retain(|name, _| !name.starts_with("vision_model."));
    let dir = tempfile::tempdir().unwrap();
    let weights = Weights::open(&save(&half, dir.path())).unwrap();
    let options = TextOptions {
        heads: Some(4),
        ..TextOptions::default()
    };
    let clip = Clip::load(&weights, tokenizer(), &options, &Device::Cpu).unwrap();
    let texts = ["a photo of a cat.", "two dogs"].map(String::from);
    let [half, all] = [&clip, &whole_clip].map(|clip| clip.encode(&texts).unwrap());
    assert_close("texts", &half, &all, 1e-6, 1e-6);
    let error = Vit::load(&weights, &Options::default(), &Device::Cpu).err();
    let error = error.unwrap();
    assert!(matches!(error, Error::NoImage { .. }), "{error}");
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let mut weights = whole();
    weights.retain(|name, _| name.starts_with("vision_model."));
    let weights = Weights::open(&save(&weights, dir.path())).unwrap();
    let options = TextOptions::default();
    let error = Clip::load(&weights, tokenizer(), &options, &Device::Cpu)
        .err()
        .unwrap();
    assert!(matches!(error, Error::NoText { .. }), "{error}");
    // The image tower alone is whole.
    let options = Options {
        heads: Some(4),
        activation: Some(Activation::Gelu),
        ..Options::default()
    };
    assert!(Vit::load(&weights, &options, &Device::Cpu).is_ok());
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, "{}").unwrap();
    let error = Tokenizer::open(&path).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    let error = Tokenizer::open(&dir.path().join("none")).err().unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

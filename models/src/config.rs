//! Facts about a checkpoint from the files that lie beside it: Transformers' or timm's `config.json`, and
//! `preprocessor_config.json`.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::card::{Activation, Interpolation, Layout, Preprocess, Resize};
use crate::error::{Error, Result};

/// What `config.json` tells.
#[derive(Debug, PartialEq)]
pub(crate) struct Facts {
    pub layout: Layout,
    pub heads: usize,
    pub eps: f64,
    pub activation: Activation,
    pub image_size: u32,
    /// Of a text tower beside it.
    pub text: Option<TextFacts>,
    /// timm keeps it in the same file.
    pub preprocess: Option<Preprocess>,
}

/// What `config.json` tells of a text tower.
#[derive(Debug, PartialEq)]
pub(crate) struct TextFacts {
    pub heads: usize,
    pub activation: Activation,
}

/// Transformers' `CLIPConfig`. What is left out has the defaults of its configuration classes, those of ViT-B/32.
#[derive(Deserialize)]
struct ClipConfig {
    #[serde(default)]
    vision_config: TowerConfig,
    #[serde(default)]
    text_config: TowerConfig,
}

#[derive(Default, Deserialize)]
struct TowerConfig {
    num_attention_heads: Option<usize>,
    layer_norm_eps: Option<f64>,
    image_size: Option<u32>,
    hidden_act: Option<String>,
}

impl TowerConfig {
    fn activation(&self, path: &Path) -> Result<Activation> {
        match self.hidden_act.as_deref().unwrap_or("quick_gelu") {
            "quick_gelu" => Ok(Activation::QuickGelu),
            "gelu" => Ok(Activation::Gelu),
            other => Err(unsupported(path, "hidden_act", "gelu or quick_gelu", other)),
        }
    }
}

#[derive(Deserialize)]
struct Transformers {
    model_type: String,
    num_attention_heads: usize,
    layer_norm_eps: Option<f64>,
    image_size: u32,
    hidden_act: Option<String>,
}

#[derive(Deserialize)]
struct Timm {
    architecture: String,
    #[serde(default)]
    model_args: TimmArgs,
    pretrained_cfg: Option<TimmPretrained>,
}

#[derive(Default, Deserialize)]
struct TimmArgs {
    num_heads: Option<usize>,
    img_size: Option<u32>,
}

#[derive(Deserialize)]
struct TimmPretrained {
    input_size: [u32; 3],
    crop_pct: Option<f64>,
    crop_mode: Option<String>,
    interpolation: Option<String>,
    mean: [f64; 3],
    std: [f64; 3],
}

#[derive(Deserialize)]
struct Processor {
    image_processor_type: Option<String>,
    feature_extractor_type: Option<String>,
    do_center_crop: Option<bool>,
    do_normalize: Option<bool>,
    do_resize: Option<bool>,
    crop_size: Option<Size>,
    size: Option<Size>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
    resample: Option<u32>,
    rescale_factor: Option<f64>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Size {
    Number(u32),
    Shortest { shortest_edge: u32 },
    Exact { height: u32, width: u32 },
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json {
        path: path.into(),
        source,
    })
}

fn unsupported(
    path: &Path,
    key: &'static str,
    expected: &'static str,
    found: impl ToString,
) -> Error {
    Error::Config {
        path: path.into(),
        key,
        expected,
        found: found.to_string(),
    }
}

/// Reads a `config.json` of either library.
pub(crate) fn facts(path: &Path) -> Result<Facts> {
    let value: Value = json(path)?;
    // timm's files have no model_type, save for those that Transformers wraps as "timm_wrapper".
    if value.get("architecture").is_some() {
        return timm(
            serde_json::from_value(value).map_err(|source| Error::Json {
                path: path.into(),
                source,
            })?,
            path,
        );
    }
    if value.get("model_type").is_none() {
        return Err(unsupported(
            path,
            "model_type",
            "a config.json of Transformers (model_type) or timm (architecture)",
            "absent",
        ));
    }
    if value["model_type"] == "clip" {
        let config = serde_json::from_value(value).map_err(|source| Error::Json {
            path: path.into(),
            source,
        })?;
        return clip(config, path);
    }
    let config: Transformers = serde_json::from_value(value).map_err(|source| Error::Json {
        path: path.into(),
        source,
    })?;
    // The defaults for eps are those of Transformers' configuration classes.
    let (layout, eps) = match config.model_type.as_str() {
        "vit" => (Layout::HfVit, 1e-12),
        "dinov2" | "dinov2_with_registers" => (Layout::Dinov2, 1e-6),
        other => {
            return Err(unsupported(
                path,
                "model_type",
                "vit, dinov2, dinov2_with_registers or clip",
                other,
            ));
        }
    };
    if let Some(act) = config.hidden_act.filter(|act| act != "gelu") {
        return Err(unsupported(path, "hidden_act", "gelu", act));
    }
    let eps = config.layer_norm_eps.unwrap_or(eps);
    Ok(Facts {
        layout,
        heads: config.num_attention_heads,
        eps,
        activation: Activation::Gelu,
        image_size: config.image_size,
        text: None,
        preprocess: None,
    })
}

fn clip(config: ClipConfig, path: &Path) -> Result<Facts> {
    let (vision, text) = (config.vision_config, config.text_config);
    Ok(Facts {
        layout: Layout::Clip,
        heads: vision.num_attention_heads.unwrap_or(12),
        eps: vision.layer_norm_eps.unwrap_or(1e-5),
        activation: vision.activation(path)?,
        image_size: vision.image_size.unwrap_or(224),
        text: Some(TextFacts {
            heads: text.num_attention_heads.unwrap_or(8),
            activation: text.activation(path)?,
        }),
        preprocess: None,
    })
}

fn timm(config: Timm, path: &Path) -> Result<Facts> {
    let architecture = &config.architecture;
    let heads = match config
        .model_args
        .num_heads
        .or_else(|| timm_heads(architecture))
    {
        Some(heads) => heads,
        None => {
            let expected = "a plain ViT such as vit_base_patch16_224, or model_args with num_heads";
            return Err(unsupported(path, "architecture", expected, architecture));
        }
    };
    let preprocess = config
        .pretrained_cfg
        .as_ref()
        .map(|cfg| timm_preprocess(cfg, path))
        .transpose()?;
    let size = config
        .model_args
        .img_size
        .or(config.pretrained_cfg.as_ref().map(|cfg| cfg.input_size[1]));
    let Some(image_size) = size else {
        return Err(unsupported(
            path,
            "pretrained_cfg.input_size",
            "the size the model was trained for",
            "absent",
        ));
    };
    // timm's VisionTransformer makes all its layer norms with 1e-6.
    Ok(Facts {
        layout: Layout::Timm,
        heads,
        eps: 1e-6,
        activation: Activation::Gelu,
        image_size,
        text: None,
        preprocess,
    })
}

/// Heads of timm's plain ViTs by name, because `config.json` leaves them out there. Names with anything but a
/// resolution (or DINOv2) after the patch are other models: clip, siglip, rope, gap, ...
fn timm_heads(architecture: &str) -> Option<usize> {
    let rest = architecture
        .strip_prefix("vit_")
        .or_else(|| architecture.strip_prefix("deit_"))?;
    let (size, rest) = rest.split_once("_patch")?;
    let mut parts = rest.split('_');
    parts.next()?.parse::<u32>().ok()?;
    let plain = match (parts.next(), parts.next()) {
        (None, _) => true,
        (Some(part), None) => part == "dinov2" || part.parse::<u32>().is_ok(),
        (Some("reg4"), Some("dinov2")) => parts.next().is_none(),
        _ => false,
    };
    let heads = match size {
        "tiny" => 3,
        "small" => 6,
        "base" => 12,
        "large" | "huge" | "giant" | "gigantic" => 16,
        _ => return None,
    };
    plain.then_some(heads)
}

fn timm_preprocess(cfg: &TimmPretrained, path: &Path) -> Result<Preprocess> {
    let crop = cfg.input_size[1];
    // 0.875 is timm's DEFAULT_CROP_PCT.
    let fraction = cfg.crop_pct.unwrap_or(0.875);
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(unsupported(
            path,
            "pretrained_cfg.crop_pct",
            "a number in (0, 1]",
            fraction,
        ));
    }
    // timm: scale_size = int(math.floor(img_size / crop_pct)).
    let edge = (f64::from(crop) / fraction).floor() as u32;
    let resize = match cfg.crop_mode.as_deref().unwrap_or("center") {
        "center" => Resize::Shortest(edge),
        "squash" => Resize::Exact([edge, edge]),
        other => {
            return Err(unsupported(
                path,
                "pretrained_cfg.crop_mode",
                "center or squash",
                other,
            ));
        }
    };
    let interpolation = match cfg.interpolation.as_deref().unwrap_or("bicubic") {
        "bicubic" => Interpolation::Bicubic,
        "bilinear" => Interpolation::Bilinear,
        other => {
            return Err(unsupported(
                path,
                "pretrained_cfg.interpolation",
                "bicubic or bilinear",
                other,
            ));
        }
    };
    Ok(Preprocess {
        resize,
        crop,
        interpolation,
        mean: cfg.mean,
        std: cfg.std,
    })
}

/// Reads a `preprocessor_config.json`.
pub(crate) fn preprocess(path: &Path) -> Result<Preprocess> {
    let p: Processor = json(path)?;
    let class = p
        .image_processor_type
        .or(p.feature_extractor_type)
        .unwrap_or_default();
    // These classes read a bare number as the shortest edge and crop by default; ViT's reads it as a square.
    let shortest_by_default = class.starts_with("Bit") || class.starts_with("CLIP");
    if p.do_resize == Some(false) {
        return Err(unsupported(
            path,
            "do_resize",
            "true (images of one batch must have one size)",
            false,
        ));
    }
    if let Some(factor) = p.rescale_factor.filter(|f| (f * 255.0 - 1.0).abs() > 1e-6) {
        return Err(unsupported(path, "rescale_factor", "1/255", factor));
    }
    let resize = match p.size {
        Some(Size::Number(n)) if shortest_by_default => Resize::Shortest(n),
        Some(Size::Number(n)) => Resize::Exact([n, n]),
        Some(Size::Shortest { shortest_edge }) => Resize::Shortest(shortest_edge),
        Some(Size::Exact { height, width }) => Resize::Exact([height, width]),
        None => {
            return Err(unsupported(
                path,
                "size",
                "shortest_edge, or height and width",
                "absent",
            ));
        }
    };
    let cropped = p
        .do_center_crop
        .unwrap_or(shortest_by_default || p.crop_size.is_some());
    let crop = match (cropped, p.crop_size, resize) {
        (true, Some(Size::Number(n)), _) => n,
        (true, Some(Size::Exact { height, width }), _) if height == width => height,
        (false, _, Resize::Exact([height, width])) if height == width => height,
        (true, _, _) => {
            return Err(unsupported(
                path,
                "crop_size",
                "one number, or equal height and width",
                "something else",
            ));
        }
        (false, _, _) => {
            return Err(unsupported(
                path,
                "size",
                "a square, as there is no centre crop",
                "something else",
            ));
        }
    };
    let interpolation = match p.resample {
        Some(2) => Interpolation::Bilinear,
        Some(3) => Interpolation::Bicubic,
        None if shortest_by_default => Interpolation::Bicubic,
        None => Interpolation::Bilinear,
        Some(other) => {
            return Err(unsupported(
                path,
                "resample",
                "2 (bilinear) or 3 (bicubic)",
                other,
            ));
        }
    };
    let (mean, std) = match (p.do_normalize, p.image_mean, p.image_std) {
        (Some(false), _, _) => ([0.0; 3], [1.0; 3]),
        (_, Some(mean), Some(std)) => (mean, std),
        _ => {
            return Err(unsupported(
                path,
                "image_mean and image_std",
                "three numbers each",
                "absent",
            ));
        }
    };
    Ok(Preprocess {
        resize,
        crop,
        interpolation,
        mean,
        std,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(text: &str, f: fn(&Path) -> Result<T>) -> Result<T> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, text).unwrap();
        f(&path)
    }

    #[test]
    fn vit_micro_agrees_with_its_card() {
        let facts = read(include_str!("../vit-micro/config.json"), facts).unwrap();
        let card = crate::find("vit-micro").unwrap();
        let from_card = Facts {
            layout: card.layout,
            heads: card.heads.unwrap(),
            eps: card.eps,
            activation: card.activation,
            text: None,
            image_size: card.image_size.unwrap(),
            preprocess: card.preprocess,
        };
        assert_eq!(facts, from_card);
    }

    #[test]
    fn timm_files_without_heads_are_read_by_architecture() {
        // As on the Hub for vit_base_patch16_224.augreg_in21k_ft_in1k.
        let text = r#"{"architecture": "vit_base_patch16_224", "num_classes": 1000, "num_features": 768,
            "global_pool": "token", "pretrained_cfg": {"tag": "augreg_in21k_ft_in1k", "custom_load": true,
            "input_size": [3, 224, 224], "fixed_input_size": true, "interpolation": "bicubic", "crop_pct": 0.9,
            "crop_mode": "center", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "num_classes": 1000,
            "pool_size": null, "first_conv": "patch_embed.proj", "classifier": "head"}}"#;
        let facts = read(text, facts).unwrap();
        let card = crate::find("vit_base_patch16_224.augreg_in21k_ft_in1k").unwrap();
        assert_eq!(facts.heads, 12);
        assert_eq!(facts.preprocess, card.preprocess);
        for (name, heads) in [
            ("deit_small_patch16_224", Some(6)),
            ("vit_large_patch14_reg4_dinov2", Some(16)),
            ("vit_base_patch16_clip_224", None),
            ("vit_base_patch16_siglip_224", None),
            ("resnet50", None),
        ] {
            assert_eq!(timm_heads(name), heads, "{name}");
        }
    }

    #[test]
    fn transformers_vits_keep_their_own_epsilon() {
        let vit = r#"{"model_type": "vit", "hidden_size": 768, "num_attention_heads": 12, "image_size": 224,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu"}"#;
        assert_eq!(read(vit, facts).unwrap().eps, 1e-12);
        // openai/clip-vit-base-patch16 names few of its settings, LAION's models say GELU.
        let clip = r#"{"model_type": "clip", "vision_config": {"model_type": "clip_vision_model", "patch_size": 16},
            "text_config": {"num_attention_heads": 8}}"#;
        let clip = read(clip, facts).unwrap();
        let found = (clip.layout, clip.heads, clip.eps, clip.image_size);
        assert_eq!(found, (Layout::Clip, 12, 1e-5, 224));
        assert_eq!(clip.activation, Activation::QuickGelu);
        let laion = r#"{"model_type": "clip", "vision_config": {"hidden_act": "gelu", "num_attention_heads": 16}}"#;
        let laion = read(laion, facts).unwrap();
        assert_eq!((laion.activation, laion.heads), (Activation::Gelu, 16));
        assert_eq!(laion.text.unwrap().activation, Activation::QuickGelu);
        let dino = r#"{"model_type": "dinov2_with_registers", "num_attention_heads": 6, "image_size": 518}"#;
        let dino = read(dino, facts).unwrap();
        assert_eq!((dino.layout, dino.eps), (Layout::Dinov2, 1e-6));
        for (text, says) in [
            (
                r#"{"model_type": "swin", "num_attention_heads": 3, "image_size": 1}"#,
                "model_type is swin",
            ),
            (
                &vit.replace("\"gelu\"", "\"quick_gelu\""),
                "hidden_act is quick_gelu",
            ),
            (
                r#"{"model_type": "vit", "image_size": 224}"#,
                "num_attention_heads",
            ),
            ("{}", "model_type is absent"),
        ] {
            let error = read(text, facts).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn preprocessors_of_both_generations_are_read() {
        // facebook/dinov2-*, google/vit-base-patch16-224-in21k as published, and a newer ViT's.
        let dino = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_normalize": true,
            "image_mean": [0.485, 0.456, 0.406], "image_processor_type": "BitImageProcessor",
            "image_std": [0.229, 0.224, 0.225], "resample": 3, "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": 256}}"#;
        assert_eq!(
            Some(read(dino, preprocess).unwrap()),
            crate::find("dinov2-base").unwrap().preprocess
        );
        let google = r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224}"#;
        let card = crate::find("vit-base-patch16-224-in21k")
            .unwrap()
            .preprocess;
        assert_eq!(Some(read(google, preprocess).unwrap()), card);
        let newer = google.replace("\"size\": 224", r#""size": {"height": 224, "width": 224}"#);
        assert_eq!(Some(read(&newer, preprocess).unwrap()), card);
        let raw = read(
            &google.replace("\"do_normalize\": true", "\"do_normalize\": false"),
            preprocess,
        )
        .unwrap();
        assert_eq!((raw.mean, raw.std), ([0.0; 3], [1.0; 3]));
        for (from, to, key) in [
            ("\"resample\": 2", "\"resample\": 0", "resample is 0"),
            (", \"size\": 224", "", "size is absent"),
            (
                "\"size\": 224",
                r#""size": {"height": 224, "width": 112}"#,
                "size is something else",
            ),
            ("\"do_resize\": true", "\"do_resize\": false", "do_resize"),
        ] {
            let error = read(&google.replace(from, to), preprocess)
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}

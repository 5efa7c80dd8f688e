//! A text tower that knows nothing yet, and the file of one that was trained: names and shapes of the Hub's CLIP.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candlewick_core::{Init, Params};

use crate::Result;

/// Sizes of what is trained.
pub struct Sizes {
    pub vocabulary: usize,
    pub positions: usize,
    pub width: usize,
    pub depth: usize,
    pub joint: usize,
    /// Width of the image tower's features.
    pub image: usize,
}

/// CLIP's own start (`openai/CLIP:clip/model.py`, `initialize_parameters`), drawn from a seed.
pub fn fresh(sizes: &Sizes, seed: u64) -> Result<BTreeMap<String, Tensor>> {
    let (w, depth) = (sizes.width, sizes.depth as f32);
    let mut params = Params::seeded(seed, &Device::Cpu);
    let narrow = (w as f32).powf(-0.5);
    let inner = narrow * (2.0 * depth).powf(-0.5);
    let normal = |std| Init::Normal { std };
    let mut all = vec![
        (
            "text_model.embeddings.token_embedding.weight".to_owned(),
            vec![sizes.vocabulary, w],
            normal(0.02),
        ),
        (
            "text_model.embeddings.position_embedding.weight".to_owned(),
            vec![sizes.positions, w],
            normal(0.01),
        ),
        (
            "text_model.final_layer_norm.weight".to_owned(),
            vec![w],
            Init::Ones,
        ),
        (
            "text_model.final_layer_norm.bias".to_owned(),
            vec![w],
            Init::Zeros,
        ),
        (
            "text_projection.weight".to_owned(),
            vec![sizes.joint, w],
            normal(narrow),
        ),
        (
            "visual_projection.weight".to_owned(),
            vec![sizes.joint, sizes.image],
            normal((sizes.image as f32).powf(-0.5)),
        ),
    ];
    for i in 0..sizes.depth {
        for (name, out, inn, std) in [
            ("self_attn.q_proj", w, w, narrow),
            ("self_attn.k_proj", w, w, narrow),
            ("self_attn.v_proj", w, w, narrow),
            ("self_attn.out_proj", w, w, inner),
            ("mlp.fc1", 4 * w, w, (2.0 * w as f32).powf(-0.5)),
            ("mlp.fc2", w, 4 * w, inner),
        ] {
            let name = format!("text_model.encoder.layers.{i}.{name}");
            all.push((format!("{name}.weight"), vec![out, inn], normal(std)));
            all.push((format!("{name}.bias"), vec![out], Init::Zeros));
        }
        for norm in ["layer_norm1", "layer_norm2"] {
            let name = format!("text_model.encoder.layers.{i}.{norm}");
            all.push((format!("{name}.weight"), vec![w], Init::Ones));
            all.push((format!("{name}.bias"), vec![w], Init::Zeros));
        }
    }
    let mut tensors = BTreeMap::new();
    for (name, shape, init) in all {
        let tensor = params.create(&name, &shape, init)?;
        tensors.insert(name, tensor);
    }
    let scale = Tensor::new((1f32 / 0.07).ln(), &Device::Cpu)?;
    tensors.insert("logit_scale".into(), scale);
    Ok(tensors)
}

/// From the names that candlewick computes with to those of the Hub.
pub fn hub_names(canonical: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for (name, tensor) in canonical {
        let Some(block) = name.strip_prefix("blocks.") else {
            let name = match name.as_str() {
                "token_embedding.weight" => "text_model.embeddings.token_embedding.weight".into(),
                "positional_embedding" => "text_model.embeddings.position_embedding.weight".into(),
                "text_projection" | "visual_projection" => format!("{name}.weight"),
                "logit_scale" => name.clone(),
                norm => format!("text_model.final_layer_{norm}"),
            };
            all.insert(name, tensor.clone());
            continue;
        };
        let (i, name) = block.split_once('.').ok_or("a block without a number")?;
        let scope = format!("text_model.encoder.layers.{i}");
        if let Some(part) = name.strip_prefix("attn.qkv.") {
            for (of, thirds) in ["q", "k", "v"].iter().zip(tensor.chunk(3, 0)?) {
                all.insert(format!("{scope}.self_attn.{of}_proj.{part}"), thirds);
            }
        } else {
            let name = name
                .replace("attn.proj", "self_attn.out_proj")
                .replace("norm", "layer_norm");
            all.insert(format!("{scope}.{name}"), tensor.clone());
        }
    }
    Ok(all)
}

/// Writes a file as a whole or not at all.
pub fn save(tensors: &BTreeMap<String, Tensor>, dtype: DType, path: &Path) -> Result<()> {
    let narrow =
        |(name, t): (&String, &Tensor)| Ok((name.clone(), t.to_dtype(dtype)?.contiguous()?));
    let tensors = tensors
        .iter()
        .map(narrow)
        .collect::<Result<std::collections::HashMap<_, _>>>()?;
    let part = path.with_extension("part");
    let name = path.display();
    candle_core::safetensors::save(&tensors, &part).map_err(|e| format!("{name}: {e}"))?;
    std::fs::rename(&part, path).map_err(|e| format!("{name}: {e}"))?;
    Ok(())
}

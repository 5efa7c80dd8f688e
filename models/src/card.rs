//! What is known about a checkpoint: one TOML file each, embedded into the binary.

use std::fmt;
use std::sync::LazyLock;

use include_dir::{Dir, include_dir};
use serde::{Deserialize, Serialize};

static CARDS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/cards");

/// How the tensors of a checkpoint are named and shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// timm's `VisionTransformer`: `blocks.0.attn.qkv.weight`.
    Timm,
    /// Transformers' `ViTModel`: `encoder.layer.0.attention.attention.query.weight`.
    HfVit,
    /// Transformers' `Dinov2Model`, with or without registers: layer scale, position embedding of 518 pixels.
    Dinov2,
    /// The original JAX release: `Transformer/encoderblock_0/...` in a NumPy archive.
    Npz,
    /// Transformers' `CLIPModel`, both towers: `vision_model.encoder.layers.0.self_attn.q_proj.weight`.
    Clip,
    /// OpenAI's and open_clip's: `visual.transformer.resblocks.0.attn.in_proj_weight`.
    OpenClip,
}

/// What stands between the two layers of an MLP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Exact GELU.
    #[default]
    Gelu,
    /// `x·σ(1.702 x)`, in OpenAI's CLIP.
    QuickGelu,
}

impl Activation {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The text tower of a card.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Text {
    /// Its weights. Absent where they are in the file of the image tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Its tokens, a `tokenizer.json`.
    pub tokenizer: String,
    /// Attention heads. Absent: one per 64 dimensions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Activation of its MLPs. Absent: that of the image tower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timm => "timm",
            Self::HfVit => "hf-vit",
            Self::Dinov2 => "dinov2",
            Self::Npz => "npz",
            Self::Clip => "clip",
            Self::OpenClip => "open-clip",
        })
    }
}

/// The filter an image is resized with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interpolation {
    /// Linear in both directions.
    Bilinear,
    /// Cubic in both directions (Pillow's, a = -0.5).
    Bicubic,
}

/// The size an image is brought to before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resize {
    /// The shorter edge becomes this long, the aspect ratio stays: `resize = 256`.
    Shortest(u32),
    /// Exactly `[height, width]`, the aspect ratio is lost: `resize = [224, 224]`.
    Exact([u32; 2]),
}

/// From an image to the numbers the model was trained on; pixels are in 0..=1 before `mean` and `std`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preprocess {
    /// Resize first.
    pub resize: Resize,
    /// Then cut this square from the centre.
    pub crop: u32,
    /// The filter of the resize.
    pub interpolation: Interpolation,
    /// Subtracted, per channel.
    pub mean: [f64; 3],
    /// Divided by, per channel.
    pub std: [f64; 3],
}

/// A checkpoint: where it lies, how it is laid out, and what its tensors do not tell.
///
/// Exactly one of `hub`, `url` and `embedded` is set on the cards of [`list`]; a card built for a path has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// The name a recipe uses; for a shipped card also the name of its file.
    pub name: String,
    /// One line for a list.
    pub about: String,
    /// Repository on the Hub, `organisation/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<String>,
    /// Commit, tag or branch on the Hub; `main` if absent. A branch is pinned to its commit at first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Plain address, for files that are not on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The weights are part of this binary.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embedded: bool,
    /// File inside the repository or folder.
    pub file: String,
    /// Naming of the tensors.
    pub layout: Layout,
    /// Width of a token. Absent where only the tensors tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Blocks. Absent where only the tensors tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Edge of a patch in pixels. Absent where only the tensors tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
    /// Register tokens; 0 for all but the DINOv2 models that have them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub registers: usize,
    /// Attention heads. Absent only for bare `npz` files, whose attention tensors have a dimension of heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Epsilon of every layer norm (1e-6 in timm and DINOv2, 1e-12 in Transformers' ViT).
    pub eps: f64,
    /// Activation of its MLPs.
    #[serde(default, skip_serializing_if = "Activation::is_default")]
    pub activation: Activation,
    /// Edge in pixels that the position embedding was trained for. Absent where only the tensors tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<u32>,
    /// Parameters of the backbone without classifier and mask token, for display.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// Licence of the weights, as an SPDX identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Paper or page the weights come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// SHA-256 of the file. Absent: recorded at first use and checked from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The text tower, for methods that read class names. Absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Text>,
    /// Preprocessing the weights were trained with. Absent for paths without such a file: the recipe must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preprocess: Option<Preprocess>,
}

impl Card {
    /// The revision asked of the Hub.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// A card shows itself as the TOML it was read from.
impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = toml::to_string(self).map_err(|_| fmt::Error)?;
        for (i, line) in text.trim_end().lines().enumerate() {
            let newline = if i > 0 { "\n" } else { "" };
            // TOML's writer spells out the zeros.
            match line.starts_with("eps = ") {
                true => write!(f, "{newline}eps = {:e}", self.eps)?,
                false => write!(f, "{newline}{line}")?,
            }
        }
        Ok(())
    }
}

/// All cards shipped with this crate, by name.
///
/// # Panics
/// If a shipped card is not valid. Cards are part of the binary, not input, and this crate's tests read them all.
pub fn list() -> &'static [Card] {
    static LIST: LazyLock<Vec<Card>> = LazyLock::new(|| {
        let mut cards: Vec<Card> = CARDS
            .files()
            .filter(|file| file.path().extension().is_some_and(|e| e == "toml"))
            .map(|file| {
                let text = file.contents_utf8().unwrap_or_default();
                toml::from_str(text)
                    .unwrap_or_else(|e| panic!("models/cards/{}: {e}", file.path().display()))
            })
            .collect();
        cards.sort_by(|a: &Card, b: &Card| a.name.cmp(&b.name));
        cards
    });
    &LIST
}

/// The card with this name, or with this Hub id.
pub fn find(name: &str) -> Option<&'static Card> {
    list()
        .iter()
        .find(|card| card.name == name)
        .or_else(|| list().iter().find(|card| card.hub.as_deref() == Some(name)))
}

/// The card whose name is spelled most alike, if one is near enough to be meant.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    list()
        .iter()
        .map(|card| (strsim::jaro_winkler(name, &card.name), card.name.as_str()))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.7)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_is_complete_and_named_after_its_file() {
        let stems: Vec<_> = CARDS
            .files()
            .map(|f| f.path().file_stem().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(stems.len(), list().len());
        for card in list() {
            let name = &card.name;
            assert!(
                stems.contains(&name.as_str()),
                "{name}: the file's name differs"
            );
            let places = usize::from(card.hub.is_some()) + usize::from(card.url.is_some());
            assert_eq!(
                places + usize::from(card.embedded),
                1,
                "{name}: one of hub, url and embedded"
            );
            assert_eq!(
                card.hub.is_some(),
                card.revision.is_some(),
                "{name}: a hub card states its revision"
            );
            assert!(
                card.heads.is_some_and(|h| h > 0) && card.image_size.is_some(),
                "{name}"
            );
            assert!(
                card.licence.is_some() && card.source.is_some() && card.parameters.is_some(),
                "{name}"
            );
            assert!((1e-12..=1e-5).contains(&card.eps), "{name}");
            let preprocess = card.preprocess.expect("preprocessing");
            let fits = match preprocess.resize {
                Resize::Shortest(edge) => edge >= preprocess.crop,
                Resize::Exact([h, w]) => h.min(w) >= preprocess.crop,
            };
            assert!(fits, "{name}: the crop is larger than the resized image");
            assert!(preprocess.std.iter().all(|s| *s > 0.0), "{name}");
            if let Some(sha) = &card.sha256 {
                assert!(
                    sha.len() == 64 && sha.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn a_card_shows_itself_as_the_toml_it_is_read_from() {
        for card in list() {
            let text = card.to_string();
            assert_eq!(&toml::from_str::<Card>(&text).unwrap(), card, "{text}");
        }
        let dinov2 = find("dinov2-small").unwrap().to_string();
        assert!(
            dinov2.contains("mean = [0.485, 0.456, 0.406]") && dinov2.contains("eps = 1e-6\n"),
            "{dinov2}"
        );
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = find("vit-micro")
            .unwrap()
            .to_string()
            .replace("heads", "haeds");
        let error = toml::from_str::<Card>(&text).unwrap_err().to_string();
        assert!(error.contains("haeds"), "{error}");
    }

    #[test]
    fn names_and_hub_ids_find_their_card_and_misspellings_the_nearest() {
        assert_eq!(find("facebook/dinov2-base").unwrap().name, "dinov2-base");
        assert!(find("dinov2-huge").is_none());
        assert_eq!(nearest("vit-mirco"), Some("vit-micro"));
        assert_eq!(nearest("dinov2_small"), Some("dinov2-small"));
        assert_eq!(nearest("!!"), None);
    }
}

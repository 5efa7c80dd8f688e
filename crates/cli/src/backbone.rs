//! From the `[backbone]` and `[booster]` of a recipe to networks: where their weights are, what is known of them, and loading.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::Device;
use candlewick_core::{Backbone as _, Spec, TextSpec};
use candlewick_data::Preprocess;
use candlewick_methods::{Booster, MethodConfig};
use candlewick_models::{Card, HubConfig, Located, Options, Progress};
use candlewick_vit::{Activation, Clip, TextOptions, Tokenizer, Vit, Weights};

use crate::prepare;
use crate::recipe::{BackboneTable, Recipe};

/// Finds weights, fetching them if need be and allowed; with the text tower that belongs to them where `texts` are read.
pub fn locate(
    table: &BackboneTable,
    texts: bool,
    hub: HubConfig,
    progress: Option<&dyn Progress>,
) -> Result<Located> {
    let mut options = Options::new(hub);
    options.revision = table.revision.clone();
    options.file = table.file.clone();
    options.card = table.card.clone();
    options.text = texts;
    options.progress = progress;
    let name = match (&table.path, &table.name) {
        // A path is never mistaken for a card or an id.
        (Some(path), _) => path_name(path.clone()),
        (None, name) => name.clone().unwrap_or_default(),
    };
    Ok(candlewick_models::resolve(&name, &options)?)
}

fn path_name(path: PathBuf) -> String {
    match path.is_absolute() || path.starts_with(".") || path.starts_with("..") {
        true => path.display().to_string(),
        false => PathBuf::from(".").join(path).display().to_string(),
    }
}

/// The network of a table of the recipe, for images of `size` pixels.
pub fn load(
    recipe: &Recipe,
    table: &BackboneTable,
    located: &Located,
    size: usize,
    device: &Device,
) -> Result<Vit> {
    let card = &located.card;
    let open = |weights: &candlewick_models::Weights| match weights {
        candlewick_models::Weights::Path(path) => Weights::open(path),
        candlewick_models::Weights::Embedded(bytes) => Weights::embedded(&card.name, bytes),
    };
    let options = candlewick_vit::Options {
        heads: table.heads.or(card.heads),
        eps: Some(card.eps),
        activation: Some(activation(card.activation)),
        image_size: Some(size),
        depth: table.depth,
        precision: recipe.precision.for_vit(),
        checkpoint_activations: recipe.checkpoint_activations,
    };
    let vit = Vit::load(&open(&located.weights)?, &options, device)?;
    let (Some(files), Some(text)) = (&located.text, &card.text) else {
        return Ok(vit);
    };
    let tokenizer = match &files.tokenizer {
        candlewick_models::Weights::Path(path) => Tokenizer::open(path)?,
        candlewick_models::Weights::Embedded(bytes) => Tokenizer::of_bytes(&card.name, bytes)?,
    };
    let options = TextOptions {
        heads: text.heads,
        eps: None,
        activation: Some(activation(text.activation.unwrap_or(card.activation))),
        precision: recipe.precision.for_vit(),
    };
    let clip = Clip::load(&open(&files.weights)?, tokenizer, &options, device)?;
    Ok(vit.speaking(Arc::new(clip)))
}

fn activation(card: candlewick_models::Activation) -> Activation {
    match card {
        candlewick_models::Activation::Gelu => Activation::Gelu,
        candlewick_models::Activation::QuickGelu => Activation::QuickGelu,
    }
}

/// The second backbone of a method that has two, loaded.
pub struct Second {
    pub located: Located,
    /// Blocks, where not all are used.
    depth: Option<usize>,
    /// Number of frozen weights.
    pub parameters: usize,
    pub booster: Booster,
}

impl Second {
    /// Finds and loads it, for pictures of `size` pixels that `preprocess` prepares for the first.
    pub fn load(
        recipe: &Recipe,
        preprocess: &Preprocess,
        size: usize,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let table = wanted(recipe)?;
        let within = || "[booster]";
        let hub = HubConfig::from_env()?;
        let located = locate(table, false, hub, Some(progress)).with_context(within)?;
        let device = prepare::device(&recipe.device)?;
        let vit = load(recipe, table, &located, size, &device).with_context(within)?;
        let Some(own) = &located.card.preprocess else {
            bail!(
                "[booster]: nothing beside `{}` says how its pixels are prepared; set booster.card to a card with its mean and std",
                table.label()
            );
        };
        let first = (preprocess.mean, preprocess.std);
        Ok(Self {
            depth: table.depth,
            parameters: vit.spec().parameters,
            booster: Booster::new(Arc::new(vit), first, (own.mean, own.std)),
            located,
        })
    }

    /// As reports have it.
    pub fn fingerprint(&self) -> String {
        match self.depth {
            None => self.located.sha256.clone(),
            Some(depth) => format!("{}, {depth} blocks", self.located.sha256),
        }
    }
}

/// The table of a second backbone.
fn wanted(recipe: &Recipe) -> Result<&BackboneTable> {
    recipe.booster.as_ref().ok_or_else(|| {
        anyhow!(
            "`{}` has a second backbone; name it in a table [booster], such as name = \"vit-micro\"",
            recipe.method_name()
        )
    })
}

/// What is known of a backbone without fetching anything.
pub struct Outlook {
    pub card: Card,
    /// Where it is, if it is here already.
    pub located: Option<Located>,
    /// The same of the second.
    pub booster: Option<Box<Self>>,
}

impl Outlook {
    /// Of the backbones of a recipe. Nothing is downloaded as long as cards tell enough; only a Hub id without one is fetched here, and
    /// only if `fetch` is given.
    pub fn of(
        recipe: &Recipe,
        method: &MethodConfig,
        fetch: Option<&dyn Progress>,
    ) -> Result<Self> {
        let booster = match method.wants_booster() {
            true => {
                let booster = Self::one(wanted(recipe)?, false, fetch);
                Some(Box::new(booster.context("[booster]")?))
            }
            false => None,
        };
        let own = Self::one(&recipe.backbone, method.reads_texts(), fetch)?;
        Ok(Self { booster, ..own })
    }

    fn one(table: &BackboneTable, texts: bool, fetch: Option<&dyn Progress>) -> Result<Self> {
        let mut offline = HubConfig::from_env()?;
        offline.offline = true;
        let here = match locate(table, texts, offline, None) {
            Ok(located) => located,
            Err(error) => {
                let name = table.name.as_deref().unwrap_or_default();
                let card = candlewick_models::find(name.split('@').next().unwrap_or_default());
                match (card, fetch) {
                    (Some(card), _) => {
                        return Ok(Self {
                            card: card.clone(),
                            located: None,
                            booster: None,
                        });
                    }
                    (None, Some(_)) if table.name.is_some() => {
                        locate(table, texts, HubConfig::from_env()?, fetch)?
                    }
                    _ => return Err(error),
                }
            }
        };
        Ok(Self {
            card: here.card.clone(),
            located: Some(here),
            booster: None,
        })
    }

    /// Sizes of the network: read from the weights where they are here, else from the card.
    pub fn spec(
        &self,
        recipe: &Recipe,
        table: &BackboneTable,
        size: usize,
    ) -> Result<Option<Spec>> {
        if let Some(located) = &self.located {
            let vit = load(recipe, table, located, size, &Device::Cpu)?;
            return Ok(Some(vit.spec().clone()));
        }
        let card = &self.card;
        let (Some(dim), Some(depth), Some(patch_size)) = (card.width, card.depth, card.patch_size)
        else {
            return Ok(None);
        };
        if !size.is_multiple_of(patch_size) {
            bail!(
                "[preprocess]: {size} px is not a multiple of the patch size {patch_size} of `{}`; set crop",
                card.name
            );
        }
        let used = table.depth.unwrap_or(depth);
        if used == 0 || used > depth {
            bail!(
                "backbone.depth: found {used}, but `{}` has {depth} blocks",
                card.name
            );
        }
        Ok(Some(Spec {
            image_size: size,
            patch_size,
            dim,
            depth: used,
            heads: card.heads.unwrap_or(dim / 64),
            mlp_dim: 4 * dim,
            registers: card.registers,
            parameters: card.parameters.unwrap_or(0) as usize,
        }))
    }

    /// Sizes of the text tower, where the weights are here.
    pub fn text_spec(
        &self,
        recipe: &Recipe,
        table: &BackboneTable,
        size: usize,
    ) -> Result<Option<TextSpec>> {
        let Some(located) = &self.located else {
            return Ok(None);
        };
        let vit = load(recipe, table, located, size, &Device::Cpu)?;
        Ok(vit.language().map(|language| language.spec().clone()))
    }
}

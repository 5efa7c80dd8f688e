//! From a recipe to the things a run is made of.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::Device;
use candlewick_core::report::{NUMERICS, class_order_hash, hex};
use candlewick_core::{Backbone, Fingerprint, Method, Spec, Stream, TextSpec};
use candlewick_data::{Loader, Parts, Preprocess, Preset, Source};
use candlewick_methods::{Beside, Extent, MethodConfig, Reference};
use candlewick_models::{Card, HubConfig, Located, Options, Progress};
use candlewick_vit::{Activation, Clip, TextOptions, Tokenizer, Vit, Weights};
use sha2::{Digest as _, Sha256};

use crate::blueprint::Blueprint;
use crate::features::Keep;
use crate::names;
use crate::recipe::{PRESET, Recipe};
use crate::sets::{self, Images};
use crate::texts;

/// A recipe whose parts have been found to fit each other, before anything heavy is done.
pub struct Plan {
    /// With everything filled in; written to `config.toml`.
    pub recipe: Recipe,
    pub method: MethodConfig,
    pub stream: Stream,
    pub loader: Loader,
    pub preprocess: Preprocess,
    pub device: Device,
    pub threads: usize,
    images: Images,
    /// What the method holds on to.
    reference: Option<Reference>,
}

/// A backbone that is loaded.
pub struct Loaded {
    pub vit: Arc<Vit>,
    pub located: Located,
}

impl Plan {
    /// Checks everything but the weights themselves. Nothing is downloaded as long as a card tells enough; only a
    /// Hub id without one is fetched here, and only if `fetch` is given.
    pub fn new(
        recipe: Recipe,
        origin: &str,
        fetch: Option<&dyn Progress>,
    ) -> Result<(Self, Outlook)> {
        let method = recipe.method(origin)?;
        method
            .check(recipe.train.as_ref())
            .with_context(|| origin.to_owned())?;
        let device = device(&recipe.device)?;
        let precision = recipe
            .precision
            .resolve(&device)
            .with_context(|| origin.to_owned())?;
        let threads = match recipe.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism()?.get(),
        };
        let images = sets::images(&recipe)?;
        let outlook = Outlook::of(&recipe, fetch)?;
        let preprocess = recipe.preprocess(outlook.card.preprocess.as_ref(), origin)?;
        let loader = Loader::new(&preprocess, threads, recipe.data.on_corrupt)
            .map_err(|e| anyhow!(e.within("preprocess")))
            .with_context(|| origin.to_owned())?;
        let stream = recipe
            .stream
            .build(&images, &loader)
            .map_err(|e| anyhow!(e.within("stream")))
            .with_context(|| origin.to_owned())?;
        method
            .fits(&stream.scenario)
            .with_context(|| origin.to_owned())?;
        let stream = names::named(&recipe, stream)?;
        let reference =
            reference(&recipe, &images.parts, &loader).with_context(|| origin.to_owned())?;
        if let MethodConfig::Zscl(config) = &method {
            let had = config.has(reference.as_ref());
            had.with_context(|| origin.to_owned())?;
        }
        let stream = match method.wants_all_seen() {
            true => stream.cumulative(),
            false => stream,
        };
        let mut recipe = recipe;
        let preset = recipe.preset(origin)?;
        recipe.preprocess = toml::Table::try_from(&preprocess)?;
        if let Some(preset) = preset {
            let name = toml::Value::String(preset.name.into());
            recipe.preprocess.insert(PRESET.into(), name);
        }
        recipe.threads = Some(threads);
        // What it was here, so that the written recipe gives the same numbers elsewhere or refuses.
        recipe.precision = precision;
        let plan = Self {
            recipe,
            method,
            stream,
            loader,
            preprocess,
            device,
            threads,
            images,
            reference,
        };
        Ok((plan, outlook))
    }

    /// Whether the method can do with features of plain images, from the store.
    pub fn reads_features(&self) -> bool {
        let plain = !self.method.about().trains || self.loader.transform().trains_on_plain();
        self.recipe.features != Keep::Off && self.method.reads_features_alone() && plain
    }

    /// Equal for plans that load the same backbone.
    pub fn backbone_key(&self) -> Result<String> {
        let recipe = &self.recipe;
        let machine = (
            &recipe.device,
            recipe.precision,
            recipe.checkpoint_activations,
            self.image_size()?,
            // With its text tower or without.
            recipe.reads_texts(),
        );
        Ok(format!("{}{machine:?}", toml::to_string(&recipe.backbone)?))
    }

    /// Equal for plans that read the same stored features.
    pub fn store_key(&self) -> Result<String> {
        let data = toml::to_string(&self.recipe.data)?;
        let plain = self.preprocess.canonical_plain();
        let plain = String::from_utf8_lossy(&plain).into_owned();
        Ok(format!(
            "{}{data}{plain}{:?}",
            self.backbone_key()?,
            self.recipe.features
        ))
    }

    /// All images, by their ids in the stream.
    pub fn images(&self) -> Arc<dyn Source> {
        self.images.parts.joined()
    }

    /// The stream without its pixels, for a backbone that has the features.
    pub fn stream_of_features(&self) -> Result<Stream> {
        let loader = self.loader.without_pixels();
        let stream = self.recipe.stream.build(&self.images, &loader)?;
        names::named(&self.recipe, stream)
    }

    /// The side of the images the backbone will see.
    fn image_size(&self) -> Result<usize> {
        square(&self.loader)
    }

    /// Finds the weights, fetching them if need be, and loads them.
    pub fn load(&self, progress: &dyn Progress) -> Result<Loaded> {
        let located = locate(&self.recipe, HubConfig::from_env()?, Some(progress))?;
        let vit = load_vit(&self.recipe, &located, self.image_size()?, &self.device)?;
        let precision = vit.precision().name();
        let vit = match vit.language() {
            Some(language) => vit.speaking(texts::kept(self, &located, precision, language)),
            None => vit,
        };
        Ok(Loaded {
            vit: Arc::new(vit),
            located,
        })
    }

    /// Whether features are kept on disk.
    pub fn keeps_features(&self) -> bool {
        self.recipe.features != Keep::Off
    }

    /// A fresh method.
    pub fn build(&self, backbone: Arc<dyn Backbone>) -> Result<Box<dyn Method>> {
        let recipe = &self.recipe;
        let beside = Beside {
            reference: self.reference.clone(),
        };
        let method = self.method.build_beside(
            backbone,
            recipe.train.as_ref(),
            recipe.data.eval_batch,
            recipe.seed,
            beside,
        )?;
        Ok(method)
    }

    pub fn fingerprint(&self, loaded: &Loaded) -> Fingerprint {
        Fingerprint {
            backbone: self.recipe.backbone.label(),
            weights: loaded.located.sha256.clone(),
            text: loaded.located.text.as_ref().map(|text| text.sha256.clone()),
            depth: loaded.vit.spec().depth,
            preprocess: hex(&Sha256::digest(self.preprocess.canonical())),
            preset: self.preset(),
            split: split_hash(&self.images.parts),
            class_order: class_order_hash(&self.stream),
            code: env!("CANDLEWICK_VERSION").into(),
            numerics: Some(NUMERICS),
            device: self.recipe.device.clone(),
            dtype: loaded.vit.precision().name().into(),
            seed: self.recipe.seed,
            compat: self.compat(),
        }
    }

    /// The preset that the preprocessing is, or that it was made from.
    fn preset(&self) -> Option<String> {
        let name = self.recipe.preprocess.get(PRESET)?.as_str()?;
        let preset = Preset::find(name)?;
        let own: Option<Preprocess> = toml::from_str(preset.keys()).ok();
        match own.as_ref() == Some(&self.preprocess) {
            true => Some(name.to_owned()),
            false => Some(format!("{name}, changed")),
        }
    }

    /// Named departures of the method, and of its features.
    fn compat(&self) -> Vec<String> {
        let mut compat = self.method.compat();
        if self.reads_features() && self.recipe.features == Keep::F16 {
            compat.push("features=f16".into());
        }
        compat
    }

    /// Sizes of the backbone: read from the weights where they are here, else from the card.
    pub fn spec(&self, outlook: &Outlook) -> Result<Option<Spec>> {
        let size = self.image_size()?;
        if let Some(located) = &outlook.located {
            let vit = load_vit(&self.recipe, located, size, &Device::Cpu)?;
            return Ok(Some(vit.spec().clone()));
        }
        let card = &outlook.card;
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
        let used = self.recipe.backbone.depth.unwrap_or(depth);
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

    /// Bytes that the method has in use besides the backbone, on features of `dim` values.
    pub fn memory(&self, dim: usize) -> u64 {
        let tasks = || self.stream.tasks.iter().map(|task| &task.info);
        self.method.memory(&Extent {
            dim,
            classes: tasks().map(|t| t.classes.end).max().unwrap_or(0),
            images: tasks().map(|t| t.train_len).sum(),
            task: tasks().map(|t| t.train_len).max().unwrap_or(0),
            threads: self.threads,
        })
    }

    /// Sizes of the text tower, where the method reads class names and the weights are here.
    pub fn text_spec(&self, outlook: &Outlook) -> Result<Option<TextSpec>> {
        let Some(located) = &outlook.located else {
            return Ok(None);
        };
        let vit = load_vit(&self.recipe, located, self.image_size()?, &Device::Cpu)?;
        Ok(vit.language().map(|language| language.spec().clone()))
    }

    /// Trainable values after the last task, counted on the method itself; `text` is of a method that reads class names.
    pub fn trainable(&self, spec: &Spec, text: Option<TextSpec>) -> Result<usize> {
        let mut method = self.build(Arc::new(Blueprint::new(spec, text)))?;
        for task in &self.stream.tasks {
            method.begin_task(&task.info)?;
        }
        Ok(method.trainable())
    }
}

/// What is known of a backbone without fetching anything.
pub struct Outlook {
    pub card: Card,
    /// Where it is, if it is here already.
    pub located: Option<Located>,
}

impl Outlook {
    fn of(recipe: &Recipe, fetch: Option<&dyn Progress>) -> Result<Self> {
        let mut offline = HubConfig::from_env()?;
        offline.offline = true;
        let here = match locate(recipe, offline, None) {
            Ok(located) => located,
            Err(error) => {
                let name = recipe.backbone.name.as_deref().unwrap_or_default();
                let card = candlewick_models::find(name.split('@').next().unwrap_or_default());
                match (card, fetch) {
                    (Some(card), _) => {
                        return Ok(Self {
                            card: card.clone(),
                            located: None,
                        });
                    }
                    (None, Some(_)) if recipe.backbone.name.is_some() => {
                        locate(recipe, HubConfig::from_env()?, fetch)?
                    }
                    _ => return Err(error),
                }
            }
        };
        Ok(Self {
            card: here.card.clone(),
            located: Some(here),
        })
    }
}

/// SHA-256 of what is in the training and in the test part.
pub fn split_hash(parts: &Parts) -> String {
    let split = [parts.train.fingerprint(), parts.test.fingerprint()];
    hex(&Sha256::digest(split.concat()))
}

/// The side of the square images that a loader makes.
pub fn square(loader: &Loader) -> Result<usize> {
    match loader.transform().size() {
        (h, w) if h == w => Ok(h),
        (h, w) => bail!(
            "[preprocess]: images become {h}x{w}, but the backbone needs square ones; set crop"
        ),
    }
}

/// Finds a recipe's weights, fetching them if need be and allowed.
pub fn locate(recipe: &Recipe, hub: HubConfig, progress: Option<&dyn Progress>) -> Result<Located> {
    let table = &recipe.backbone;
    let mut options = Options::new(hub);
    options.revision = table.revision.clone();
    options.file = table.file.clone();
    options.card = table.card.clone();
    options.text = recipe.reads_texts();
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

/// The backbone of a recipe for images of `size` pixels.
pub fn load_vit(recipe: &Recipe, located: &Located, size: usize, device: &Device) -> Result<Vit> {
    let card = &located.card;
    let open = |weights: &candlewick_models::Weights| match weights {
        candlewick_models::Weights::Path(path) => Weights::open(path),
        candlewick_models::Weights::Embedded(bytes) => Weights::embedded(&card.name, bytes),
    };
    let options = candlewick_vit::Options {
        heads: recipe.backbone.heads.or(card.heads),
        eps: Some(card.eps),
        activation: Some(activation(card.activation)),
        image_size: Some(size),
        depth: recipe.backbone.depth,
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

/// The `[reference]` of a recipe. Its images have ids behind those of the stream.
fn reference(recipe: &Recipe, parts: &Parts, loader: &Loader) -> Result<Option<Reference>> {
    let Some(table) = &recipe.reference else {
        return Ok(None);
    };
    let own = sets::one(&table.data).context("reference")?.train;
    let first = (parts.train.len() + parts.test.len()) as u64;
    let labels = (0..own.len()).map(|i| own.label(i) as u32).collect();
    let members = (0..own.len()).collect();
    let images = loader.split(own, members, labels, first, u64::MAX)?;
    let path = &table.sentences;
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reference.sentences: {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let sentences: Vec<String> = lines.map(str::to_owned).collect();
    if sentences.is_empty() {
        bail!(
            "reference.sentences: {}: expected a sentence a line, found none",
            path.display()
        );
    }
    Ok(Some(Reference {
        images: Arc::new(images),
        sentences,
    }))
}

/// By its name in recipes.
pub fn device(name: &str) -> Result<Device> {
    let (kind, ordinal) = match name.split_once(':') {
        Some((kind, n)) => (kind, n.parse().ok()),
        None => (name, Some(0)),
    };
    let Some(ordinal) = ordinal else {
        bail!("device: `{name}`: expected a number behind the colon, as in \"cuda:0\"");
    };
    let result = match kind {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Device::new_cuda(ordinal),
        "metal" => Device::new_metal(ordinal),
        _ => bail!("device: found `{name}`, expected \"cpu\", \"cuda\" or \"metal\""),
    };
    result.map_err(|e| {
        anyhow!("device: `{name}` cannot be used ({e}); build with --features {kind}, or set device = \"cpu\"")
    })
}

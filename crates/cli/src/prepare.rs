//! From a recipe to the things a run is made of.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::Device;
use candlewick_core::report::{NUMERICS, class_order_hash, hex};
use candlewick_core::{Backbone, Fingerprint, Method, Spec, Stream};
use candlewick_data::{Loader, Parts, Preprocess, Preset, Source};
use candlewick_methods::{Beside, Booster, Extent, MethodConfig, Reference};
use candlewick_models::{HubConfig, Located, Progress};
use candlewick_vit::Vit;
use sha2::{Digest as _, Sha256};

use crate::backbone::{self, Outlook, Second};
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

/// A backbone that is loaded, and the second one of a method that has two.
pub struct Loaded {
    pub vit: Arc<Vit>,
    pub located: Located,
    pub booster: Option<Second>,
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
        let outlook = Outlook::of(&recipe, &method, fetch)?;
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
        let booster = match self.method.wants_booster() {
            true => toml::to_string(&recipe.booster)?,
            false => String::new(),
        };
        let backbone = toml::to_string(&recipe.backbone)?;
        Ok(format!("{backbone}{booster}{machine:?}"))
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
        let (recipe, size) = (&self.recipe, self.image_size()?);
        let table = &recipe.backbone;
        let texts = recipe.reads_texts();
        let located = backbone::locate(table, texts, HubConfig::from_env()?, Some(progress))?;
        let vit = backbone::load(recipe, table, &located, size, &self.device)?;
        let precision = vit.precision().name();
        let vit = match vit.language() {
            Some(language) => vit.speaking(texts::kept(self, &located, precision, language)),
            None => vit,
        };
        let booster = match self.method.wants_booster() {
            true => Some(Second::load(recipe, &self.preprocess, size, progress)?),
            false => None,
        };
        Ok(Loaded {
            vit: Arc::new(vit),
            located,
            booster,
        })
    }

    /// Whether features are kept on disk.
    pub fn keeps_features(&self) -> bool {
        self.recipe.features != Keep::Off
    }

    /// A fresh method.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        booster: Option<Booster>,
    ) -> Result<Box<dyn Method>> {
        let recipe = &self.recipe;
        let beside = Beside {
            reference: self.reference.clone(),
            booster,
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
            backbone: self.recipe.backbones(),
            weights: loaded.located.sha256.clone(),
            text: loaded.located.text.as_ref().map(|text| text.sha256.clone()),
            booster: loaded.booster.as_ref().map(Second::fingerprint),
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

    /// Trainable values after the last task, counted on the method itself. `None` where a text tower or a second backbone that it has
    /// is not here yet.
    pub fn trainable(&self, spec: &Spec, outlook: &Outlook) -> Result<Option<usize>> {
        let (recipe, size) = (&self.recipe, self.image_size()?);
        let text = match (recipe.reads_texts(), &outlook.located) {
            (false, _) => None,
            (true, None) => return Ok(None),
            (true, Some(_)) => outlook.text_spec(recipe, &recipe.backbone, size)?,
        };
        let booster = match self.booster_spec(outlook)? {
            Some(spec) => Some(Booster::same(Arc::new(Blueprint::new(&spec, None)))),
            None if self.method.wants_booster() => return Ok(None),
            None => None,
        };
        let mut method = self.build(Arc::new(Blueprint::new(spec, text)), booster)?;
        for task in &self.stream.tasks {
            method.begin_task(&task.info)?;
        }
        Ok(Some(method.trainable()))
    }

    /// Sizes of the backbone, where they are known.
    pub fn spec(&self, outlook: &Outlook) -> Result<Option<Spec>> {
        outlook.spec(&self.recipe, &self.recipe.backbone, self.image_size()?)
    }

    /// Sizes of the second backbone, where there is one and they are known.
    pub fn booster_spec(&self, outlook: &Outlook) -> Result<Option<Spec>> {
        match (&outlook.booster, &self.recipe.booster) {
            (Some(booster), Some(table)) => booster
                .spec(&self.recipe, table, self.image_size()?)
                .context("[booster]"),
            _ => Ok(None),
        }
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
    let built = match kind {
        "cuda" => cfg!(feature = "cuda"),
        _ => cfg!(feature = "metal"),
    };
    result.map_err(|e| {
        let reason = match e {
            candle_core::Error::WithBacktrace { inner, .. } => inner.to_string(),
            e => e.to_string(),
        };
        let advice = match built {
            true => {
                "see that the system finds it and that its driver is as new as this build".into()
            }
            false => format!("build with --features {kind}"),
        };
        anyhow!("device: `{name}` cannot be used ({reason}); {advice}, or set device = \"cpu\"")
    })
}

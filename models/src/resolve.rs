//! From what a recipe says to a file.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use candlewick_hub::{self as hub, HubConfig, Progress, Wanted, checksum};

use crate::card::{self, Activation, Card, Layout, Text};
use crate::config::{self, Facts};
use crate::error::{Error, Result};
use crate::format::{Format, named_like_a_pickle, sniff};

/// How to resolve.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options<'a> {
    /// Hub, cache and token.
    pub hub: HubConfig,
    /// Revision instead of the card's, for Hub ids and cards from the Hub.
    pub revision: Option<String>,
    /// File of the repository instead of `model.safetensors`, for Hub ids without a card.
    pub file: Option<String>,
    /// Card whose facts hold for the weights at a path: spares it a `config.json`.
    pub card: Option<String>,
    /// Whether the text tower is wanted too, where there is one.
    pub text: bool,
    /// Told about downloads.
    pub progress: Option<&'a dyn Progress>,
}

impl Options<'_> {
    /// This Hub, and nothing else.
    pub fn new(hub: HubConfig) -> Self {
        Self {
            hub,
            revision: None,
            file: None,
            card: None,
            text: false,
            progress: None,
        }
    }
}

/// Where the bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// On disk.
    Path(PathBuf),
    /// In the binary.
    Embedded(&'static [u8]),
}

/// Where the bytes came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Part of the binary.
    Embedded,
    /// The user's own file.
    Path(PathBuf),
    /// The Hub.
    Hub {
        /// Repository.
        repo: String,
        /// Commit, whatever was asked for.
        commit: String,
        /// File.
        file: String,
    },
    /// A plain address.
    Url(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, commit, file } => write!(f, "{repo}@{commit}/{file}"),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// A checkpoint that is here and whose hash is known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Located {
    /// What is known about it; without preprocessing if it is a path that has none beside it.
    pub card: Card,
    /// Its bytes.
    pub weights: Weights,
    /// Their SHA-256.
    pub sha256: String,
    /// Where they came from.
    pub origin: Origin,
    /// The files of the text tower, where it was asked for and there is one.
    pub text: Option<TextFiles>,
}

/// The files of a text tower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextFiles {
    /// Its weights, perhaps those of the image tower too.
    pub weights: Weights,
    /// Its `tokenizer.json`.
    pub tokenizer: Weights,
    /// SHA-256 of both hashes, one behind the other.
    pub sha256: String,
}

impl TextFiles {
    /// Whatever the image tower's file is; `own` where the text tower has another.
    fn new(image: (&Weights, &str), own: Option<Weights>, tokenizer: Weights) -> Result<Self> {
        let (weights, sha) = match own {
            Some(own) => {
                let sha = own.sha256()?;
                (own, sha)
            }
            None => (image.0.clone(), image.1.to_owned()),
        };
        let both = format!("{sha}{}", tokenizer.sha256()?);
        Ok(Self {
            weights,
            tokenizer,
            sha256: checksum::of_bytes(both.as_bytes()),
        })
    }
}

impl Weights {
    fn sha256(&self) -> Result<String> {
        Ok(match self {
            Self::Path(path) => checksum::of_file(path)?,
            Self::Embedded(bytes) => checksum::of_bytes(bytes),
        })
    }
}

/// Keeps the embedded tensors aligned, so that they can be read in place.
#[repr(C, align(8))]
struct Aligned<B: ?Sized>(B);

static VIT_MICRO: &Aligned<[u8]> = &Aligned(*include_bytes!("../vit-micro/model.safetensors"));
static CLIP_MICRO: &Aligned<[u8]> = &Aligned(*include_bytes!("../clip-micro/model.safetensors"));
static CLIP_MICRO_TOKENS: &[u8] = include_bytes!("../clip-micro/tokenizer.json");

/// Finds the weights that `name` means, fetching them if need be: the name of a card, a folder or file, or a Hub
/// id `organisation/name` (with or without a card), in that order. `@revision` may follow a card's name or an id. A
/// folder that is called like a card is reached as `./name`.
pub fn resolve(name: &str, options: &Options<'_>) -> Result<Located> {
    if let Some(card) = card::list().iter().find(|card| card.name == name) {
        return resolve_card(card, options);
    }
    let path = Path::new(name);
    if path.exists() {
        return from_path(path, options);
    }
    if let Some(card) = card::find(name) {
        return resolve_card(card, options);
    }
    let (id, revision) = name
        .split_once('@')
        .map_or((name, None), |(id, at)| (id, Some(at)));
    if let (Some(card), Some(revision)) = (card::find(id), revision) {
        let options = Options {
            revision: Some(revision.to_owned()),
            ..options.clone()
        };
        return resolve_card(card, &options);
    }
    let is_id = id.split('/').count() == 2 && !name.starts_with(['.', '~']) && !name.ends_with('/');
    // An id may look like a file's path; a file that is missing should not become a question to the network.
    if is_id
        && path
            .extension()
            .is_none_or(|e| e != "safetensors" && e != "npz")
        && !named_like_a_pickle(path)
    {
        return from_hub(name, options);
    }
    // What starts with a dot or a slash can only be a path.
    if path.is_absolute() || name.starts_with('.') {
        return Err(Error::NoSuchPath { path: path.into() });
    }
    Err(Error::Unknown {
        name: name.to_owned(),
        nearest: card::nearest(name).map(str::to_owned),
    })
}

/// The weights of a card, fetching them if need be; for cards that are not shipped, too.
pub fn resolve_card(card: &Card, options: &Options<'_>) -> Result<Located> {
    let mut card = card.clone();
    let stated_by = format!("the card {}", card.name);
    if card.hub.is_some() && options.revision.is_some() && options.revision != card.revision {
        // The card's hash is that of the card's revision.
        card.sha256 = None;
        card.revision.clone_from(&options.revision);
    }
    let stated = card.sha256.as_deref().map(|sha| (sha, stated_by.as_str()));
    if let Some(repo) = &card.hub {
        let revision = card.revision().to_owned();
        let (path, sha256, origin) = from_repo(repo, &revision, None, &card.file, stated, options)?;
        let weights = Weights::Path(path);
        let text = match (&card.text, &origin) {
            (Some(text), Origin::Hub { commit, .. }) if options.text => Some(text_of_repo(
                text,
                repo,
                commit,
                (&weights, &sha256),
                options,
            )?),
            _ => None,
        };
        return Ok(Located {
            weights,
            sha256,
            origin,
            text,
            card,
        });
    }
    if let Some(url) = &card.url {
        let record = options.hub.record();
        let known = record.get(url)?.map(|entry| entry.sha256);
        let cite = record.cite(url);
        let stated = stated.or(known.as_deref().map(|sha| (sha, cite.as_str())));
        let path = hub::fetch_url(
            &options.hub,
            &card.name,
            url,
            &card.file,
            stated,
            options.progress,
        )?;
        check_format(&path, card.layout)?;
        let sha256 = record.verify(url, &path, None, stated)?;
        let origin = Origin::Url(url.clone());
        return Ok(Located {
            weights: Weights::Path(path),
            sha256,
            origin,
            text: None,
            card,
        });
    }
    // The image tower of clip-micro is vit-micro.
    if !card.embedded || !["vit-micro", "clip-micro"].contains(&card.name.as_str()) {
        return Err(Error::NoPlace { card: card.name });
    }
    let weights = Weights::Embedded(&VIT_MICRO.0);
    let sha256 = checksum::of_bytes(&VIT_MICRO.0);
    let text = match card.text.is_some() && options.text {
        true => {
            let own = Weights::Embedded(&CLIP_MICRO.0);
            let tokens = Weights::Embedded(CLIP_MICRO_TOKENS);
            Some(TextFiles::new((&weights, &sha256), Some(own), tokens)?)
        }
        false => None,
    };
    Ok(Located {
        weights,
        sha256,
        origin: Origin::Embedded,
        text,
        card,
    })
}

/// Weights of a repository: pinned by the record to the commit and the hash of first use. `commit` is the one a
/// branch was just found to stand for.
fn from_repo(
    repo: &str,
    revision: &str,
    commit: Option<&str>,
    file: &str,
    stated: Option<(&str, &str)>,
    options: &Options<'_>,
) -> Result<(PathBuf, String, Origin)> {
    let record = options.hub.record();
    let key = format!("{repo}@{revision}/{file}");
    let known = record.get(&key)?;
    let cite = record.cite(&key);
    let pinned = known
        .as_ref()
        .and_then(|entry| entry.commit.as_deref())
        .or(commit);
    let stated = stated.or(known
        .as_ref()
        .map(|entry| (entry.sha256.as_str(), cite.as_str())));
    let want = Wanted {
        repo,
        revision: pinned.unwrap_or(revision),
        file,
        stated,
    };
    let cached = hub::fetch(&options.hub, &want, options.progress)?;
    sniff(&cached.path)?;
    let sha256 = record.verify(&key, &cached.path, Some(&cached.commit), stated)?;
    let origin = Origin::Hub {
        repo: repo.to_owned(),
        commit: cached.commit,
        file: file.to_owned(),
    };
    Ok((cached.path, sha256, origin))
}

/// The text tower of a repository, at the commit its image tower is of.
fn text_of_repo(
    text: &Text,
    repo: &str,
    commit: &str,
    image: (&Weights, &str),
    options: &Options<'_>,
) -> Result<TextFiles> {
    let file = |file: &str| -> Result<Weights> {
        let want = Wanted {
            repo,
            revision: commit,
            file,
            stated: None,
        };
        let found = hub::fetch(&options.hub, &want, options.progress)?;
        Ok(Weights::Path(found.path))
    };
    let own = text.file.as_deref().map(file).transpose()?;
    TextFiles::new(image, own, file(&text.tokenizer)?)
}

/// A repository without card: its configuration files make one.
fn from_hub(id: &str, options: &Options<'_>) -> Result<Located> {
    let (repo, at) = id.split_once('@').unwrap_or((id, "main"));
    let revision = options.revision.as_deref().unwrap_or(at);
    let file = options.file.as_deref().unwrap_or("model.safetensors");
    if named_like_a_pickle(Path::new(file)) {
        return Err(Error::Pickle { path: file.into() });
    }
    let pinned = options
        .hub
        .record()
        .get(&format!("{repo}@{revision}/{file}"))?
        .and_then(|entry| entry.commit);
    let want = Wanted {
        repo,
        revision: pinned.as_deref().unwrap_or(revision),
        file: "config.json",
        stated: None,
    };
    let config = hub::fetch(&options.hub, &want, None)?;
    let facts = config::facts(&config.path)?;
    let preprocess = match facts.preprocess {
        Some(preprocess) => Some(preprocess),
        None => {
            let file = "preprocessor_config.json";
            let want = Wanted {
                repo,
                revision: &config.commit,
                file,
                stated: None,
            };
            match hub::fetch(&options.hub, &want, None) {
                Ok(found) => Some(config::preprocess(&found.path)?),
                // It is asked for before the weights, so where they are cached and it is not, there is none.
                Err(
                    hub::Error::NotFound { .. }
                    | hub::Error::Offline { .. }
                    | hub::Error::Network { .. },
                ) => None,
                Err(error) => return Err(error.into()),
            }
        }
    };
    let found = from_repo(repo, revision, Some(&config.commit), file, None, options);
    let (path, sha256, origin) = found.map_err(|error| match error {
        Error::Hub(hub::Error::NotFound { what, repo, revision, file, endpoint }) => Error::Hub(hub::Error::NotFound {
            what: format!("{what}; a repository that has only pytorch_model.bin must be converted to safetensors first"),
            repo,
            revision,
            file,
            endpoint,
        }),
        other => other,
    })?;
    let mut card = bare_card(id, file, facts);
    card.preprocess = preprocess;
    card.hub = Some(repo.to_owned());
    card.revision = Some(revision.to_owned());
    let weights = Weights::Path(path);
    let text = match &card.text {
        Some(text) if options.text => {
            let image = (&weights, sha256.as_str());
            Some(text_of_repo(text, repo, &config.commit, image, options)?)
        }
        _ => None,
    };
    Ok(Located {
        weights,
        sha256,
        origin,
        text,
        card,
    })
}

fn from_path(path: &Path, options: &Options<'_>) -> Result<Located> {
    let file = match path.is_dir() {
        true => weights_in(path)?,
        false => path.to_owned(),
    };
    let format = sniff(&file)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let name = file
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let known = match &options.card {
        Some(card) => Some(card::find(card).ok_or_else(|| Error::Unknown {
            name: card.clone(),
            nearest: card::nearest(card).map(str::to_owned),
        })?),
        None => None,
    };
    let config = folder.join("config.json");
    let mut card = if let Some(known) = known {
        check_format(&file, known.layout)?;
        // The file may be a variant: what the card says about its own bytes does not hold.
        Card {
            hub: None,
            revision: None,
            url: None,
            embedded: false,
            sha256: None,
            file: name,
            ..known.clone()
        }
    } else if format == Format::Npz {
        // The attention tensors of the original release are (width, heads, width / heads), so heads need no telling.
        let facts = Facts {
            layout: Layout::Npz,
            heads: 0,
            eps: 1e-6,
            activation: Activation::Gelu,
            image_size: 0,
            text: None,
            preprocess: None,
        };
        Card {
            heads: None,
            image_size: None,
            ..bare_card(&path.to_string_lossy(), &name, facts)
        }
    } else if config.exists() {
        bare_card(&path.to_string_lossy(), &name, config::facts(&config)?)
    } else {
        return Err(Error::NoConfig { path: file });
    };
    let beside = folder.join("preprocessor_config.json");
    if card.preprocess.is_none() && beside.exists() {
        card.preprocess = Some(config::preprocess(&beside)?);
    }
    let sha256 = checksum::of_file(&file)?;
    let weights = Weights::Path(file.clone());
    let beside = |name: &str| {
        let path = folder.join(name);
        path.exists().then_some(Weights::Path(path))
    };
    let text = match &card.text {
        Some(text) if options.text => {
            let own = text.file.as_deref().and_then(beside);
            let tokenizer = beside(&text.tokenizer).ok_or_else(|| Error::NoTokenizer {
                path: folder.join(&text.tokenizer),
            })?;
            Some(TextFiles::new((&weights, &sha256), own, tokenizer)?)
        }
        _ => None,
    };
    Ok(Located {
        card,
        weights,
        sha256,
        origin: Origin::Path(file),
        text,
    })
}

/// The file that holds the tokens beside weights without a card.
const TOKENIZER: &str = "tokenizer.json";

fn bare_card(name: &str, file: &str, facts: Facts) -> Card {
    Card {
        name: name.to_owned(),
        about: "weights without a card".to_owned(),
        hub: None,
        revision: None,
        url: None,
        embedded: false,
        file: file.to_owned(),
        layout: facts.layout,
        heads: Some(facts.heads),
        eps: facts.eps,
        activation: facts.activation,
        image_size: Some(facts.image_size),
        text: facts.text.map(|text| Text {
            file: None,
            tokenizer: TOKENIZER.to_owned(),
            heads: Some(text.heads),
            activation: Some(text.activation),
        }),
        parameters: None,
        width: None,
        depth: None,
        patch_size: None,
        registers: 0,
        licence: None,
        source: None,
        sha256: None,
        preprocess: facts.preprocess,
    }
}

/// The one file of a folder that can be meant.
fn weights_in(folder: &Path) -> Result<PathBuf> {
    let model = folder.join("model.safetensors");
    if model.exists() {
        return Ok(model);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("read", folder))? {
        files.push(entry.map_err(Error::io("read", folder))?.path());
    }
    files.sort();
    let with = |extension: &str| -> Vec<&PathBuf> {
        files
            .iter()
            .filter(|f| f.extension().is_some_and(|e| e == extension))
            .collect()
    };
    if let [only] = with("npz").as_slice() {
        return Ok((*only).clone());
    }
    if let [only] = with("safetensors").as_slice() {
        return Ok((*only).clone());
    }
    if let Some(pickle) = files.iter().find(|f| named_like_a_pickle(f)) {
        return Err(Error::Pickle {
            path: pickle.clone(),
        });
    }
    let names: Vec<_> = files
        .iter()
        .filter_map(|f| f.file_name()?.to_str())
        .collect();
    let found = if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    };
    Err(Error::NoWeights {
        folder: folder.into(),
        found,
    })
}

/// Whether a file is of the kind its card speaks of.
fn check_format(path: &Path, layout: Layout) -> Result<()> {
    let (expected, what) = match layout {
        Layout::Npz => (Format::Npz, "a NumPy archive (.npz), as the card says"),
        _ => (Format::Safetensors, "safetensors, as the card says"),
    };
    match sniff(path)? {
        format if format == expected => Ok(()),
        other => Err(Error::Format {
            path: path.into(),
            expected: what,
            found: format!("{other:?}"),
        }),
    }
}

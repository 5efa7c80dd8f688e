//! From a place on disk to the parts of a data set.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candlewick_data::folder::is_image;
use candlewick_data::{Folder, Parts, TestSplit};

use crate::card::{Card, Images as Count, Source};
use crate::error::{Error, Result};
use crate::fetch::Manifest;
use crate::read::{
    Cifar, Idx, Images, Parquet, Part, Reader, Reading, Table, is_cifar, is_idx, part_of, root_of,
};
use crate::tree::{self, Disk, Kind, Many, Tree, broken};

/// Opens what lies at a path: a folder of images, of parquet shards, of CIFAR or IDX files or of one archive (or of
/// `train.*` and `test.*`), an archive (tar, tar.gz, zip) or a parquet file. Told by content; images are read later.
///
/// # Errors
/// What cannot be read or is damaged, what holds no images, a set that needs a division and has none, and what
/// [`Folder::open`] refuses.
pub fn open_path(path: &Path, split: Option<&TestSplit>) -> candlewick_data::Result<Parts> {
    open_with(path, split, &Reading::default(), &[])
}

/// What [`locate`] finds.
enum Found {
    /// Image folders as they are.
    Folder,
    Reader(Box<dyn Reader>),
}

fn open_with(
    path: &Path,
    split: Option<&TestSplit>,
    reading: &Reading,
    names: &[String],
) -> candlewick_data::Result<Parts> {
    match find(path, reading, names)? {
        Found::Folder => {
            let folder = Folder {
                path: path.into(),
                split: split.cloned(),
                expected_images: None,
            };
            folder.open()
        }
        Found::Reader(reader) => reader.table()?.parts(split),
    }
}

fn find(path: &Path, reading: &Reading, names: &[String]) -> candlewick_data::Result<Found> {
    if path.is_file() {
        return match tree::kind(path)? {
            Kind::Parquet => parquet(path, &[path.to_owned()], reading),
            Kind::Other => Err(broken(
                path,
                format!(
                    "not a data set: expected a folder, a tar, tar.gz or zip archive or a parquet file{}",
                    pickle_hint(path)
                ),
            )),
            kind => archive(path, tree::open(path, kind)?, reading, names),
        };
    }
    if !path.is_dir() || has_image_folders(path) {
        // Its reader says best what is missing.
        return Ok(Found::Folder);
    }
    let files = files_below(path)?;
    let with = |wanted: &dyn Fn(&str) -> bool| -> Vec<PathBuf> {
        let fits = files.iter().filter(|(name, _)| wanted(name));
        fits.map(|(_, path)| path.clone()).collect()
    };
    let shards = with(&|name| name.ends_with(".parquet"));
    if !shards.is_empty() {
        return parquet(path, &shards, reading);
    }
    if files.iter().any(|(name, _)| is_cifar(name) || is_idx(name)) {
        let disk: Arc<dyn Tree> =
            Arc::new(Disk::open(path, |name| is_cifar(name) || is_idx(name))?);
        if let Some(reader) = records(&disk, names)? {
            return Ok(Found::Reader(reader));
        }
    }
    let archives = with(&|name| !name.contains('/') && is_archive(name));
    match archives.as_slice() {
        [] => {}
        [one] => return archive(one, tree::open(one, tree::kind(one)?)?, reading, names),
        several => return many(path, several, reading, names),
    }
    if let Some(pickle) = files.iter().find(|(name, _)| is_pickle(name)) {
        let problem = format!(
            "there is no data set that can be read{}",
            pickle_hint(&pickle.1)
        );
        return Err(broken(path, problem));
    }
    Ok(Found::Folder)
}

/// Opens the data set of a card in its folder, from whichever of its sources is there; otherwise as [`open_path`] does, which
/// knows the authors' repacked folders and archives too. A set that comes undivided is divided by `stratified`, if `split`
/// does not say otherwise.
///
/// # Errors
/// [`Error::Absent`] and [`Error::Incomplete`], what [`open_path`] refuses, and [`Error::Count`] for another number of classes
/// or images than the card states, unless `count` is false.
pub fn open_card(
    card: &Card,
    folder: &Path,
    split: Option<&TestSplit>,
    count: bool,
) -> Result<Parts> {
    let Located {
        source,
        paths,
        missing,
    } = located(card, folder)?;
    if let Some(missing) = missing.into_iter().next() {
        return Err(Error::Incomplete {
            set: card.name.clone(),
            folder: folder.into(),
            missing,
        });
    }
    let found = match source {
        Some(source) => read_source(card, source, folder, &paths)?,
        None => {
            let by_hand = card.sources.iter().find(|source| source.by_hand.is_some());
            let reading = by_hand.map(|source| source.reading.clone());
            find(folder, &reading.unwrap_or_default(), &card.names)?
        }
    };
    let default = TestSplit::default();
    let parts = match found {
        Found::Folder => {
            let whole = !folder.join("train").is_dir();
            let folder = Folder {
                path: folder.into(),
                split: split.cloned().or_else(|| whole.then_some(default)),
                expected_images: None,
            };
            folder.open()?
        }
        Found::Reader(reader) => {
            let table = reader.table()?;
            let whole = table.is_whole();
            table.parts(split.or(whole.then_some(&default)))?
        }
    };
    if count {
        check_count(card, source, folder, &parts)?;
    }
    Ok(parts)
}

/// What of a card is in a folder.
pub(crate) struct Located<'a> {
    /// `None` where none of the files that the card names is there, but something else.
    pub source: Option<&'a Source>,
    pub paths: Vec<PathBuf>,
    pub missing: Vec<String>,
}

pub(crate) fn check_count(
    card: &Card,
    source: Option<&Source>,
    folder: &Path,
    parts: &Parts,
) -> Result<()> {
    let differs = |what: String, expected: usize, found: usize| match expected == found {
        true => Ok(()),
        false => Err(Error::Count {
            set: card.name.clone(),
            folder: folder.into(),
            what,
            expected,
            found,
        }),
    };
    let found = [parts.train.len(), parts.test.len()];
    // What was put there by hand may be any source; all have as many images together.
    let stated = match source {
        Some(source) => source.images.or(card.images),
        None => by_hand(card, found).or(card.images),
    };
    match stated {
        Some(Count::Divided(expected)) => {
            for (i, part) in ["training", "test"].into_iter().enumerate() {
                differs(format!("{part} images"), expected[i], found[i])?;
            }
        }
        Some(whole) => differs("images".into(), whole.total(), found[0] + found[1])?,
        None => {}
    }
    match card.classes {
        Some(classes) => differs("classes".into(), classes, parts.train.classes().len()),
        None => Ok(()),
    }
}

/// The numbers that a source to be placed by hand states, if they are those that were found.
fn by_hand(card: &Card, found: [usize; 2]) -> Option<Count> {
    let stated = card
        .sources
        .iter()
        .filter(|source| source.by_hand.is_some());
    let mut counts = stated.filter_map(|source| source.images);
    counts.find(|count| *count == Count::Divided(found))
}

/// Finds the source of a card that is in a folder: the first that is whole, else the first that is there in part.
pub(crate) fn located<'a>(card: &'a Card, folder: &Path) -> Result<Located<'a>> {
    let absent = || Error::Absent {
        set: card.name.clone(),
        folder: folder.into(),
    };
    let nothing = Located {
        source: None,
        paths: Vec::new(),
        missing: Vec::new(),
    };
    if folder.is_file() {
        return Ok(nothing);
    }
    let files = match folder.is_dir() {
        true => files_below(folder)?,
        false => return Err(absent()),
    };
    if !fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(absent());
    }
    let manifest = Manifest::read(folder)?;
    let mut partly = None;
    for source in &card.sources {
        let mut wanted: Vec<String> = source.files.iter().map(|file| file.name.clone()).collect();
        match (manifest.get(source), &source.hub) {
            (Some(listed), _) => wanted.extend(listed.files.iter().cloned()),
            // Copied there from a checkout of the repository.
            (None, Some(hub)) => {
                let fits = files.iter().filter(|(name, _)| hub.wants(name));
                wanted.extend(fits.map(|(name, _)| name.clone()));
            }
            (None, None) => {}
        }
        let (here, missing): (Vec<_>, Vec<_>) = wanted
            .into_iter()
            .partition(|name| folder.join(name).is_file());
        if here.is_empty() {
            continue;
        }
        let found = Located {
            source: Some(source),
            paths: here.iter().map(|name| folder.join(name)).collect(),
            missing,
        };
        match found.missing.is_empty() {
            true => return Ok(found),
            false => partly = partly.or(Some(found)),
        }
    }
    Ok(partly.unwrap_or(nothing))
}

fn read_source(
    card: &Card,
    source: &Source,
    folder: &Path,
    paths: &[PathBuf],
) -> candlewick_data::Result<Found> {
    let kinds: Vec<Kind> = paths
        .iter()
        .map(|path| tree::kind(path))
        .collect::<Result<_, _>>()?;
    if kinds.contains(&Kind::Parquet) {
        let shards: Vec<PathBuf> = paths
            .iter()
            .zip(&kinds)
            .filter(|(_, kind)| **kind == Kind::Parquet)
            .map(|(path, _)| path.clone())
            .collect();
        return parquet(folder, &shards, &source.reading);
    }
    let archives: Vec<PathBuf> = paths
        .iter()
        .zip(&kinds)
        .filter(|(_, kind)| **kind != Kind::Other)
        .map(|(path, _)| path.clone())
        .collect();
    match archives.as_slice() {
        [] => find(folder, &source.reading, &card.names),
        [one] => archive(
            one,
            tree::open(one, tree::kind(one)?)?,
            &source.reading,
            &card.names,
        ),
        several => many(folder, several, &source.reading, &card.names),
    }
}

fn parquet(root: &Path, shards: &[PathBuf], reading: &Reading) -> candlewick_data::Result<Found> {
    Ok(Found::Reader(Box::new(Parquet::open(
        root, shards, reading,
    )?)))
}

/// CIFAR or IDX records among the files of a tree.
fn records(
    tree: &Arc<dyn Tree>,
    names: &[String],
) -> candlewick_data::Result<Option<Box<dyn Reader>>> {
    if let Some(cifar) = Cifar::of(tree.clone())? {
        return Ok(Some(Box::new(cifar)));
    }
    Ok(Idx::of(tree.clone(), names)?.map(|idx| Box::new(idx) as Box<dyn Reader>))
}

fn archive(
    path: &Path,
    tree: Arc<dyn Tree>,
    reading: &Reading,
    names: &[String],
) -> candlewick_data::Result<Found> {
    if let Some(reader) = records(&tree, names)? {
        return Ok(Found::Reader(reader));
    }
    let images = tree.entries().iter().any(|e| is_image(&e.name));
    let pickle = tree.entries().iter().find(|entry| is_pickle(&entry.name));
    if let (false, Some(pickle)) = (images, pickle) {
        let hint = pickle_hint(Path::new(&pickle.name));
        return Err(broken(
            path,
            format!("there is no data set that can be read{hint}"),
        ));
    }
    Ok(Found::Reader(Box::new(Images {
        tree,
        reading: reading.clone(),
    })))
}

/// Several archives: those that are called after a part are that part, others are one set in pieces.
fn many(
    root: &Path,
    paths: &[PathBuf],
    reading: &Reading,
    names: &[String],
) -> candlewick_data::Result<Found> {
    let mut trees = Vec::new();
    let parts: Vec<Option<Part>> = paths
        .iter()
        .map(|path| part_of(&path.file_name().unwrap_or_default().to_string_lossy()))
        .collect();
    let parted = parts.iter().all(Option::is_some);
    for (path, part) in paths.iter().zip(parts) {
        let tree = tree::open(path, tree::kind(path)?)?;
        match (parted, part) {
            (true, Some(part)) => {
                let root = root_of(tree.as_ref(), reading.layout);
                trees.push((Some(part.name().to_owned()), root, tree));
            }
            _ => trees.push((None, 0, tree)),
        }
    }
    archive(root, Arc::new(Many::new(root, trees)?), reading, names)
}

/// Whether a folder holds image folders: `train` with folders in it, or folders with images.
fn has_image_folders(path: &Path) -> bool {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let folders = |path: &Path| -> Vec<PathBuf> {
        let paths = entries(path).map(|entry| entry.path());
        paths.filter(|path| path.is_dir()).collect()
    };
    let image = |entry: fs::DirEntry| entry.file_name().to_str().is_some_and(is_image);
    !folders(&path.join("train")).is_empty()
        || folders(path).iter().any(|class| entries(class).any(image))
}

/// Names below a folder and paths, without hidden ones and not deeper than data sets lie.
fn files_below(path: &Path) -> candlewick_data::Result<Vec<(String, PathBuf)>> {
    let mut found = tree::files(path)?;
    found.sort();
    Ok(found)
}

fn is_archive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".tar", ".tar.gz", ".tgz", ".zip"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// The Python versions of CIFAR, and other pickles.
fn is_pickle(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    let batch = name
        .strip_prefix("data_batch_")
        .is_some_and(|n| n.parse::<u8>().is_ok());
    batch
        || matches!(
            name,
            "batches.meta" | "test_batch" | "meta" | "train" | "test"
        )
        || [".pkl", ".pickle"]
            .iter()
            .any(|ending| name.ends_with(ending))
}

fn pickle_hint(path: &Path) -> String {
    let name = path.to_string_lossy();
    match is_pickle(&name) {
        true => format!(
            "; `{name}` is a Python pickle, which can run code when it is read, so it is not: take the binary version \
             (cifar-10-binary.tar.gz, cifar-100-binary.tar.gz) or the Hub's parquet"
        ),
        false => String::new(),
    }
}

impl Table {
    /// Whether nothing says what is for training and what for testing.
    fn is_whole(&self) -> bool {
        let parts: Vec<Part> = self.rows.iter().map(|row| row.part).collect();
        !parts.contains(&Part::Train)
            || !(parts.contains(&Part::Test) || parts.contains(&Part::Val))
    }
}

//! Folders of images: one folder per class, already divided into training and test or divided here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::listing::{Bytes, Item, Listing};
use crate::source::Parts;
use crate::split::TestSplit;

/// Endings of image files, compared without case; everything else in a folder is passed over.
pub const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"];

/// Whether a name ends like that of an image file.
pub fn is_image(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, ending)| {
        let known = EXTENSIONS.iter().any(|e| ending.eq_ignore_ascii_case(e));
        !stem.is_empty() && known
    })
}

/// A data set in folders, as a recipe writes it.
///
/// Without `split`, `path` must hold `train` and `test` (or `val`, if there is no `test`), and in each one folder
/// per class. With `split`, `path` itself holds the class folders. Classes and files are sorted by name as Python's
/// `sorted` does; folders below a class folder belong to the class; hidden files and files that do not
/// end in one of [`EXTENSIONS`] are passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Folder {
    /// The root of the data set.
    pub path: PathBuf,
    /// How to divide a data set that comes in one piece.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<TestSplit>,
    /// Numbers of training and test images that the data set must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_images: Option<[usize; 2]>,
}

impl Folder {
    /// Lists the folders; images are read later.
    ///
    /// # Errors
    /// A missing folder, a class without images or in one part only, no images at all, a class too small to be
    /// divided, a wrong number of images, or a folder that cannot be read: each names the path.
    pub fn open(&self) -> Result<Parts> {
        let parts = match &self.split {
            Some(split) => self.divide(split)?,
            None => self.given()?,
        };
        if let Some(expected) = self.expected_images {
            parts.expect_images(expected, &self.path.display().to_string())?;
        }
        Ok(parts)
    }

    fn given(&self) -> Result<Parts> {
        require(&self.path, "the root of the data set")?;
        let train = self.path.join("train");
        let hint = "with one folder per class; if the data set is not divided, point `path` at the class folders \
                    and set `split`";
        require(&train, &format!("the training part, {hint}"))?;
        let test_name = if self.path.join("test").is_dir() || !self.path.join("val").is_dir() {
            "test"
        } else {
            "val"
        };
        require(
            &self.path.join(test_name),
            &format!("the test part, named `test` or `val`, {hint}"),
        )?;
        let train = list(&self.path, "train")?;
        let test = list(&self.path, test_name)?;
        Listing::paired(train, test, ["train", test_name])
    }

    fn divide(&self, split: &TestSplit) -> Result<Parts> {
        require(
            &self.path,
            "the root of the data set, with one folder per class",
        )?;
        split.divide(list(&self.path, "")?)
    }
}

/// Fails with what is there instead, if `path` is not a folder.
fn require(path: &Path, wanted: &str) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let found = if path.exists() {
        "a file of that name is there".into()
    } else {
        // What is above a bare name is the working directory.
        let mut above = path
            .ancestors()
            .skip(1)
            .map(|above| match above.as_os_str().is_empty() {
                true => Path::new("."),
                false => above,
            });
        match above.find(|above| above.is_dir()) {
            Some(above) => inventory(above),
            None => "nor does any folder above it exist, seen from the working directory".into(),
        }
    };
    Err(Error::MissingFolder {
        path: path.into(),
        wanted: wanted.into(),
        found,
    })
}

/// What a folder holds, in a few words.
fn inventory(folder: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let mark = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{mark}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    const SHOWN: usize = 8;
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.truncate(SHOWN);
    let folder = match folder == Path::new(".") {
        true => "the working directory".into(),
        false => folder.display().to_string(),
    };
    match names.len() {
        0 => format!("{folder} is empty"),
        _ => format!("{folder} holds {}{more}", names.join(", ")),
    }
}

/// Files by their paths.
struct Files(Vec<PathBuf>);

impl Bytes for Files {
    fn read(&self, at: usize) -> Result<Vec<u8>> {
        fs::read(&self.0[at]).map_err(|source| Error::Read {
            path: self.0[at].clone(),
            source,
        })
    }

    fn place(&self, at: usize) -> String {
        self.0[at].display().to_string()
    }
}

/// What is found below a folder, before it has a place in a listing.
struct File {
    name: String,
    path: PathBuf,
    label: usize,
    size: u64,
}

fn listing(root: &Path, classes: Vec<String>, files: Vec<File>) -> Result<Listing> {
    let (mut items, mut paths) = (Vec::new(), Vec::new());
    for (at, file) in files.into_iter().enumerate() {
        items.push(Item {
            name: file.name,
            label: file.label,
            size: file.size,
            at,
        });
        paths.push(file.path);
    }
    Listing::new(root, classes, items, Arc::new(Files(paths)))
}

/// Lists the class folders in `root/part` (in `root`, if `part` is empty).
fn list(root: &Path, part: &str) -> Result<Listing> {
    let folder = root.join(part);
    let mut classes = Vec::new();
    let mut files = Vec::new();
    for (name, path, _) in entries(&folder)?
        .into_iter()
        .filter(|(_, _, size)| size.is_none())
    {
        let before = files.len();
        let prefix = if part.is_empty() {
            name.clone()
        } else {
            format!("{part}/{name}")
        };
        collect(&path, &prefix, classes.len(), &mut files)?;
        if files.len() == before {
            return Err(Error::EmptyClass { path });
        }
        classes.push(name);
    }
    if classes.is_empty() {
        return Err(Error::NoImages {
            found: inventory(&folder),
            path: folder,
        });
    }
    listing(root, classes, files)
}

/// Images of one class that lie anywhere: files as they are named, of folders all images in them and below, by name.
///
/// # Errors
/// [`Error::Read`] for a path that is not there, [`Error::EmptyClass`] for a folder without images.
pub fn of_paths(class: &str, paths: &[PathBuf]) -> Result<Listing> {
    let mut files = Vec::new();
    for path in paths {
        let read = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let about = fs::metadata(path).map_err(read)?;
        let name = path.display().to_string();
        let before = files.len();
        match about.is_dir() {
            true => collect(path, name.trim_end_matches('/'), 0, &mut files)?,
            false => files.push(File {
                name,
                path: path.clone(),
                label: 0,
                size: about.len(),
            }),
        }
        if files.len() == before {
            return Err(Error::EmptyClass { path: path.clone() });
        }
    }
    listing(Path::new(""), vec![class.to_owned()], files)
}

/// The images of a class: those in the folder by name, then those of each folder inside, as
/// `sorted(os.walk(folder))` would find them.
fn collect(folder: &Path, prefix: &str, label: usize, files: &mut Vec<File>) -> Result<()> {
    let (inside, images): (Vec<_>, Vec<_>) = entries(folder)?
        .into_iter()
        .partition(|(_, _, size)| size.is_none());
    for (name, path, size) in images {
        if is_image(&name) {
            files.push(File {
                name: format!("{prefix}/{name}"),
                path,
                label,
                size: size.unwrap_or(0),
            });
        }
    }
    for (name, path, _) in inside {
        collect(&path, &format!("{prefix}/{name}"), label, files)?;
    }
    Ok(())
}

/// What is in a folder and not hidden, by name: (name, path, size; no size for a folder).
///
/// # Errors
/// [`Error::Read`], and [`Error::Name`] for a name that is not UTF-8.
pub fn entries(folder: &Path) -> Result<Vec<(String, PathBuf, Option<u64>)>> {
    let read = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Read { path, source }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(read(folder))? {
        let entry = entry.map_err(read(folder))?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::Name {
                path: folder.into(),
                name: entry
                    .file_name()
                    .as_encoded_bytes()
                    .escape_ascii()
                    .to_string(),
            });
        };
        // Follows links, as data sets are often assembled of them.
        let about = fs::metadata(&path).map_err(read(&path))?;
        found.push((name, path, about.is_file().then_some(about.len())));
    }
    found.sort();
    Ok(found)
}

//! Folders of images: one folder per class, already divided into training and test or divided here.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decode::decode_rgb;
use crate::error::{Error, Result};
use crate::source::{Parts, Source, fingerprint};
use crate::split::TestSplit;

/// Endings of image files, compared without case; everything else in a folder is passed over.
pub const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"];

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
        let train = FolderSource::list(&self.path, "train")?;
        let test = FolderSource::list(&self.path, test_name)?;
        for (here, other, names) in [
            (&train, &test, ["train", test_name]),
            (&test, &train, [test_name, "train"]),
        ] {
            if let Some(class) = here
                .classes
                .iter()
                .find(|class| other.classes.binary_search(class).is_err())
            {
                return Err(Error::UnpairedClass {
                    class: class.clone(),
                    here: names[0].into(),
                    missing: names[1].into(),
                });
            }
        }
        Ok(Parts {
            train: Arc::new(train),
            test: Arc::new(test),
        })
    }

    fn divide(&self, split: &TestSplit) -> Result<Parts> {
        require(
            &self.path,
            "the root of the data set, with one folder per class",
        )?;
        split.divide(FolderSource::list(&self.path, "")?)
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

#[derive(Debug, Clone)]
pub(crate) struct File {
    /// Below the root of the data set, with `/` between the parts.
    pub name: String,
    path: PathBuf,
    pub label: usize,
    size: u64,
}

impl File {
    fn read(&self) -> Result<Vec<u8>> {
        fs::read(&self.path).map_err(|source| Error::Read {
            path: self.path.clone(),
            source,
        })
    }
}

/// One part of a [`Folder`]. Its fingerprint covers class names, file names, labels and file **sizes**, not
/// contents, because reading tens of thousands of files would take longer than many a run: an image that was
/// replaced by another of the very same length goes unseen.
#[derive(Debug, Clone)]
pub struct FolderSource {
    pub(crate) root: PathBuf,
    pub(crate) classes: Vec<String>,
    /// Class by class.
    pub(crate) files: Vec<File>,
}

impl FolderSource {
    /// Lists the class folders in `root/part` (in `root`, if `part` is empty).
    fn list(root: &Path, part: &str) -> Result<Self> {
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
        Ok(Self {
            root: root.into(),
            classes,
            files,
        })
    }

    /// Images of one class that lie anywhere: files as they are named, of folders all images in them and below, by name.
    ///
    /// # Errors
    /// [`Error::Read`] for a path that is not there, [`Error::EmptyClass`] for a folder without images.
    pub fn of_paths(class: &str, paths: &[PathBuf]) -> Result<Self> {
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
        Ok(Self {
            root: PathBuf::new(),
            classes: vec![class.to_owned()],
            files,
        })
    }

    /// The root of the data set.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// The images of a class: those in the folder by name, then those of each folder inside, as
/// `sorted(os.walk(folder))` would find them.
fn collect(folder: &Path, prefix: &str, label: usize, files: &mut Vec<File>) -> Result<()> {
    let (inside, images): (Vec<_>, Vec<_>) = entries(folder)?
        .into_iter()
        .partition(|(_, _, size)| size.is_none());
    for (name, path, size) in images {
        let known = path.extension().is_some_and(|extension| {
            EXTENSIONS
                .iter()
                .any(|known| extension.eq_ignore_ascii_case(known))
        });
        if known {
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
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf, Option<u64>)>> {
    let read = |path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Read { path, source }
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(read(folder))? {
        let entry = entry.map_err(read(folder))?;
        let (name, path) = (
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        );
        if name.starts_with('.') {
            continue;
        }
        // Follows links, as data sets are often assembled of them.
        let about = fs::metadata(&path).map_err(read(&path))?;
        found.push((name, path, about.is_file().then_some(about.len())));
    }
    found.sort();
    Ok(found)
}

impl Source for FolderSource {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        self.files.len()
    }

    fn label(&self, index: usize) -> usize {
        self.files[index].label
    }

    fn name(&self, index: usize) -> String {
        self.files[index].name.clone()
    }

    fn rgb(&self, index: usize) -> Result<RgbImage> {
        let file = &self.files[index];
        decode_rgb(&file.read()?, &file.path.display().to_string())
    }

    fn content(&self, index: usize) -> Result<[u8; 32]> {
        Ok(Sha256::digest(self.files[index].read()?).into())
    }

    fn fingerprint(&self) -> String {
        let files = self.files.iter().map(|file| {
            (
                file.name.as_str(),
                file.label,
                file.size.to_le_bytes().to_vec(),
            )
        });
        fingerprint(&self.classes, files)
    }
}

//! Images that are listed once and read later, wherever their bytes lie.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::RgbImage;
use sha2::{Digest, Sha256};

use crate::decode::decode_rgb;
use crate::error::{Error, Result};
use crate::source::{Parts, Source, fingerprint};
use crate::split::TestSplit;

/// Where the bytes of listed images lie: a folder, an archive, a table. Images are numbered as whoever lists them likes.
pub trait Bytes: Send + Sync {
    /// What is stored of an image: the content of its file, or bare pixels.
    ///
    /// # Errors
    /// When it cannot be read; the message names the image.
    fn read(&self, at: usize) -> Result<Vec<u8>>;

    /// What names an image in messages.
    fn place(&self, at: usize) -> String;

    /// The decoded image; by default what is read is the content of an image file.
    ///
    /// # Errors
    /// When it cannot be read or decoded.
    fn rgb(&self, at: usize) -> Result<RgbImage> {
        decode_rgb(&self.read(at)?, &self.place(at))
    }
}

/// One image of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Below the root of the data set, with `/` between the parts.
    pub name: String,
    /// Its class, as a position in the list of classes.
    pub label: usize,
    /// Length in bytes of what is stored.
    pub size: u64,
    /// Its number among the [`Bytes`].
    pub at: usize,
}

/// Images and where they lie. Its fingerprint covers class names, image names, labels and **sizes**, not contents, because
/// reading tens of thousands of files would take longer than many a run: an image that was replaced by another of the very
/// same length goes unseen. Where the images lie does not enter.
#[derive(Clone)]
pub struct Listing {
    pub(crate) root: PathBuf,
    pub(crate) classes: Vec<String>,
    /// Class by class.
    pub(crate) items: Vec<Item>,
    pub(crate) bytes: Arc<dyn Bytes>,
}

impl Listing {
    /// A listing of these images, sorted by class; `root` names the data set in messages.
    ///
    /// # Errors
    /// [`Error::Label`] for an image whose label has no class.
    pub fn new(
        root: impl Into<PathBuf>,
        classes: Vec<String>,
        mut items: Vec<Item>,
        bytes: Arc<dyn Bytes>,
    ) -> Result<Self> {
        if let Some(item) = items.iter().find(|item| item.label >= classes.len()) {
            return Err(Error::Label {
                name: item.name.clone(),
                label: item.label,
                classes: classes.len(),
            });
        }
        items.sort_by_key(|item| item.label);
        Ok(Self {
            root: root.into(),
            classes,
            items,
            bytes,
        })
    }

    /// What names the data set in messages.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The images, class by class.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Divides the images into training and test.
    ///
    /// # Errors
    /// [`Error::Setting`] for a key that is out of range or of another kind, [`Error::CannotSplit`], [`Error::UnpairedClass`],
    /// and [`Error::List`] for what a list names and the data set lacks.
    pub fn divide(self, split: &TestSplit) -> Result<Parts> {
        split.divide(self)
    }

    /// Two listings as the parts of one data set; `names` are those of the parts in messages.
    ///
    /// # Errors
    /// [`Error::UnpairedClass`] for a class that only one has images of.
    pub fn paired(train: Self, test: Self, names: [&str; 2]) -> Result<Parts> {
        for (here, other, names) in [
            (&train, &test, names),
            (&test, &train, [names[1], names[0]]),
        ] {
            let mut of_other: Vec<&str> = other.used().collect();
            of_other.sort_unstable();
            if let Some(class) = here.used().find(|c| of_other.binary_search(c).is_err()) {
                return Err(Error::UnpairedClass {
                    class: class.into(),
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

    /// The classes that have images.
    fn used(&self) -> impl Iterator<Item = &str> {
        let groups = self.items.chunk_by(|a, b| a.label == b.label);
        groups.map(|group| self.classes[group[0].label].as_str())
    }
}

impl Source for Listing {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        self.items.len()
    }

    fn label(&self, index: usize) -> usize {
        self.items[index].label
    }

    fn name(&self, index: usize) -> String {
        self.items[index].name.clone()
    }

    fn rgb(&self, index: usize) -> Result<RgbImage> {
        self.bytes.rgb(self.items[index].at)
    }

    fn content(&self, index: usize) -> Result<[u8; 32]> {
        Ok(Sha256::digest(self.bytes.read(self.items[index].at)?).into())
    }

    fn fingerprint(&self) -> String {
        let items = self.items.iter().map(|item| {
            let size = item.size.to_le_bytes().to_vec();
            (item.name.as_str(), item.label, size)
        });
        fingerprint(&self.classes, items)
    }
}

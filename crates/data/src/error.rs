//! One error type for everything in this crate; every message names the file or the key.

use std::io;
use std::path::PathBuf;

/// What went wrong with the data, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// The content is in none of the formats that can be decoded.
    #[error(
        "{name}: not an image: {found}; expected JPEG, PNG, WebP, BMP, TIFF or GIF (told by content, not by name)"
    )]
    Format {
        /// Name or path of the image.
        name: String,
        /// How the content begins.
        found: String,
    },

    /// The image is cut off or damaged, or larger than the decoder may become.
    #[error("{name}: cannot be decoded: {source}")]
    Decode {
        /// Name or path of the image.
        name: String,
        /// The decoder's reason.
        source: image::ImageError,
    },

    /// The decoded picture has a pixel type that has no agreed meaning as RGB.
    #[error(
        "{name}: pixels of type {found} have no RGB form here; convert the file to 8 bits per channel"
    )]
    Pixels {
        /// Name or path of the image.
        name: String,
        /// The pixel type.
        found: String,
    },

    /// A folder that must be there is not.
    #[error("{}: no such folder ({wanted}); {found}", path.display())]
    MissingFolder {
        /// The folder.
        path: PathBuf,
        /// What it should hold.
        wanted: String,
        /// What is there instead.
        found: String,
    },

    /// A class folder without images.
    #[error(
        "{}: class folder without images; add images (jpg, jpeg, png, webp, bmp, tif, tiff, gif) or remove the folder",
        path.display()
    )]
    EmptyClass {
        /// The folder.
        path: PathBuf,
    },

    /// A name that is not text.
    #[error("{}: the name `{name}` is not UTF-8; rename it", path.display())]
    Name {
        /// The folder or archive it is in.
        path: PathBuf,
        /// The name, what is not ASCII escaped.
        name: String,
    },

    /// An archive or another file of many images that cannot be used.
    #[error("{}: {problem}", path.display())]
    Archive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },

    /// No class folders, and so no images.
    #[error("{}: no images: expected one folder per class with images inside; {found}", path.display())]
    NoImages {
        /// The folder.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },

    /// Training and test part do not have the same classes.
    #[error(
        "class `{class}` is in `{here}` but not in `{missing}`; both parts must have the same class folders: \
         add images of it to `{missing}` or remove it from `{here}`"
    )]
    UnpairedClass {
        /// The class.
        class: String,
        /// The part that has it.
        here: String,
        /// The part that lacks it.
        missing: String,
    },

    /// A class is too small for a split.
    #[error(
        "{}: class has {found} image and cannot be split into training and test; it needs at least 2",
        path.display()
    )]
    CannotSplit {
        /// The class folder.
        path: PathBuf,
        /// Its number of images.
        found: usize,
    },

    /// A list of images that does not fit the data set.
    #[error("{}: {problem}", path.display())]
    List {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A data set does not have the number of images that its recipe states.
    #[error(
        "wrong image count in the {part} part of {data}: the recipe states {expected}, found {found}; \
         is the data set complete, and is it the right version?"
    )]
    WrongCount {
        /// `train` or `test`.
        part: &'static str,
        /// Where the data are.
        data: String,
        /// What the recipe states.
        expected: usize,
        /// What is there.
        found: usize,
    },

    /// An image in memory names a class that does not exist.
    #[error(
        "image `{name}` has label {label}, but there are only {classes} classes (labels count from 0)"
    )]
    Label {
        /// Name of the image.
        name: String,
        /// Its label.
        label: usize,
        /// Number of classes.
        classes: usize,
    },

    /// A setting is out of its range or does not fit the others.
    #[error("setting `{key}`: {problem}")]
    Setting {
        /// Dotted key below the struct that was checked, for example `order`.
        key: String,
        /// What was expected, what was found, and what to do.
        problem: String,
    },

    /// The decoder or the transform panicked on an image.
    #[error(
        "{name}: the decoder failed inside: {message}; please report the file, and leave it out meanwhile"
    )]
    Panic {
        /// Name or path of the image.
        name: String,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    /// A setting that does not hold.
    pub fn setting(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// Puts `table` before the key of a [`Error::Setting`], so that the message shows the key as the
    /// recipe writes it; other errors pass unchanged.
    pub fn within(self, table: &str) -> Self {
        match self {
            Self::Setting { key, problem } => Self::Setting {
                key: format!("{table}.{key}"),
                problem,
            },
            other => other,
        }
    }

    /// True for damage of one image, which a loader may skip: anything but a failure to read the file.
    pub fn is_corrupt_image(&self) -> bool {
        matches!(
            self,
            Self::Format { .. } | Self::Decode { .. } | Self::Pixels { .. } | Self::Panic { .. }
        )
    }
}

impl From<Error> for candlewick_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Setting { key, problem } => Self::setting(key, problem),
            other => Self::data(other),
        }
    }
}

/// The result of everything in this crate, but for what implements a trait of `candlewick-core`.
pub type Result<T> = std::result::Result<T, Error>;

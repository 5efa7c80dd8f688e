//! Files of a folder; those that end in `.gz` read as what is inside.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candlewick_data::{Result, entries};

use super::gzip::Gzip;
use super::{Entry, Tree, read_error};

/// How deep files are looked for: `MNIST/raw/train-images-idx3-ubyte` is three.
pub(super) const DEPTH: usize = 4;

pub(crate) struct Disk {
    path: PathBuf,
    entries: Vec<Entry>,
    files: Vec<Place>,
}

enum Place {
    Plain(PathBuf),
    Gzip(Gzip),
}

impl Disk {
    /// The files of a folder for which `wanted` is true of the name, hidden ones aside.
    pub(crate) fn open(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut found = Vec::new();
        walk(path, "", DEPTH, &mut found)?;
        found.retain(|(name, _)| wanted(name));
        found.sort();
        let mut disk = Self {
            path: path.into(),
            entries: Vec::new(),
            files: Vec::new(),
        };
        for (name, path) in found {
            let (name, size, place) = match name.strip_suffix(".gz") {
                Some(inner) => {
                    let (gzip, ()) = Gzip::index(&path, |_| Ok(()))?;
                    (inner.to_owned(), gzip.len(), Place::Gzip(gzip))
                }
                None => {
                    let size = fs::metadata(&path).map_err(read_error(&path))?.len();
                    (name, size, Place::Plain(path))
                }
            };
            disk.entries.push(Entry { name, size });
            disk.files.push(place);
        }
        super::distinct(path, &disk.entries)?;
        Ok(disk)
    }
}

impl Tree for Disk {
    fn path(&self) -> &Path {
        &self.path
    }

    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn read(&self, entry: usize, from: u64, len: usize) -> Result<Vec<u8>> {
        match &self.files[entry] {
            Place::Plain(path) => range(path, from, len),
            Place::Gzip(gzip) => gzip.read(from, len),
        }
    }

    fn place(&self, entry: usize) -> String {
        match &self.files[entry] {
            Place::Plain(path) => path.display().to_string(),
            Place::Gzip(gzip) => gzip.path().display().to_string(),
        }
    }
}

/// Names and paths of the files in a folder and below.
pub(super) fn walk(
    folder: &Path,
    prefix: &str,
    depth: usize,
    found: &mut Vec<(String, PathBuf)>,
) -> Result<()> {
    for (name, path, size) in entries(folder)? {
        let name = format!("{prefix}{name}");
        match size {
            Some(_) => found.push((name, path)),
            None if depth > 1 && path.is_dir() => {
                walk(&path, &format!("{name}/"), depth - 1, found)?;
            }
            None => {}
        }
    }
    Ok(())
}

/// A piece of a file. It is opened for each, as the files of a folder are, so that threads need not wait for each other.
pub(super) fn range(path: &Path, from: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut file = File::open(path).map_err(read_error(path))?;
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.read_exact(&mut bytes))
        .map_err(read_error(path))?;
    Ok(bytes)
}

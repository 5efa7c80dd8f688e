//! Reading: the file is mapped, every chunk checked once, rows found by their keys.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::format::{self, Found, Header, Identity, Key};

/// The features of a file as it was when it was opened.
pub struct Store {
    path: PathBuf,
    map: Mmap,
    header: Header,
    /// Where each key's values begin.
    rows: HashMap<Key, usize>,
    /// Keys in the order of the file.
    keys: Vec<Key>,
    /// Where the next chunk goes.
    end: usize,
}

impl Store {
    /// Opens a file and checks all of it; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Damaged`] names the chunk in which a byte was changed; [`Error::Foreign`] for any other file.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self::of(&file, path)?)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open", path)(e)),
        }
    }

    /// The same, and refuses features of another identity.
    pub fn open_as(path: &Path, identity: &Identity) -> Result<Option<Self>> {
        let store = Self::open(path)?;
        if let Some(store) = &store {
            identity.expect(store.identity(), path)?;
        }
        Ok(store)
    }

    pub(crate) fn of(file: &File, path: &Path) -> Result<Self> {
        // SAFETY: the bytes of a sealed chunk never change and are never cut off while candlewick writes the file; only
        // those are read after this function, which looks at the rest with bounds checked. Whoever else changes the
        // file meanwhile breaks this, as with every mapped file.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(file) }.map_err(Error::io("map", path))?;
        let header = format::read_header(&map, path)?;
        let (mut rows, mut keys) = (HashMap::new(), Vec::new());
        let mut end = header.end;
        let mut number = 0;
        loop {
            let found = format::look(&map, &header, end, path).map_err(|e| numbered(e, number))?;
            let Found::Chunk { rows: n, end: next } = found else {
                break;
            };
            for i in 0..n {
                let key = format::key_at(&map, end, i);
                let values = format::values_at(&header.identity, end, n, i);
                if rows.insert(key, values).is_none() {
                    keys.push(key);
                }
            }
            end = next;
            number += 1;
        }
        Ok(Self {
            path: path.into(),
            map,
            header,
            rows,
            keys,
            end,
        })
    }

    /// What its features depend on.
    pub fn identity(&self) -> &Identity {
        &self.header.identity
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Images in it.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Their keys in the order of the file.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Whether it has the feature of an image.
    pub fn contains(&self, key: &Key) -> bool {
        self.rows.contains_key(key)
    }

    /// Appends the feature of an image to `out`; false if it has none.
    pub fn read(&self, key: &Key, out: &mut Vec<f32>) -> bool {
        match self.rows.get(key) {
            Some(&from) => {
                format::decode(&self.map, self.identity(), from, out);
                true
            }
            None => false,
        }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn end(&self) -> usize {
        self.end
    }
}

fn numbered(error: Error, number: usize) -> Error {
    match error {
        Error::Damaged {
            path,
            part,
            from,
            to,
        } => Error::Damaged {
            path,
            part: format!("{part} (number {number}, from 0)"),
            from,
            to,
        },
        other => other,
    }
}

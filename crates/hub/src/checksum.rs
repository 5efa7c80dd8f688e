//! SHA-256 of files, and the record that pins what was fetched first.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use fs4::FileExt;
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// SHA-256 of bytes in memory, in hex.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, in hex.
///
/// # Errors
/// When it cannot be read.
pub fn of_file(path: &Path) -> Result<String> {
    digest::<Sha256>(path)
}

/// MD5 of a file, in hex: for what publishers state, not against malice.
///
/// # Errors
/// When it cannot be read.
pub fn md5_of_file(path: &Path) -> Result<String> {
    digest::<Md5>(path)
}

fn digest<D: Digest>(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = D::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is remembered of a fetched file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The commit a branch stood for at first use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The file's digest.
    pub sha256: String,
    size: u64,
    /// Nanoseconds since 1970, as text because TOML's integers are too small for all of them.
    modified: String,
}

/// `checksums.toml`: `repository@revision/file` or an address, to what it was at first use.
pub struct Record {
    path: PathBuf,
}

impl Record {
    /// The record in a folder, which need not exist.
    pub fn new(folder: &Path) -> Self {
        Self {
            path: folder.join("checksums.toml"),
        }
    }

    fn read(&self) -> Result<BTreeMap<String, Entry>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => toml::from_str(&text).map_err(|e| Error::Record {
                path: self.path.clone(),
                source: Box::new(e),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(e) => Err(Error::io("read", &self.path)(e)),
        }
    }

    /// What is remembered of a file.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.read()?.remove(key))
    }

    /// The name by which messages cite an entry.
    pub fn cite(&self, key: &str) -> String {
        format!("[\"{key}\"] in {}", self.path.display())
    }

    /// Hashes a file unless it is the recorded one untouched, compares with the record and with `stated` (a hash
    /// and who says so), and records what is new. The hash is returned.
    ///
    /// # Errors
    /// [`Error::HashMismatch`], and a file or record that cannot be read or written.
    pub fn verify(
        &self,
        key: &str,
        path: &Path,
        commit: Option<&str>,
        stated: Option<(&str, &str)>,
    ) -> Result<String> {
        let meta = fs::metadata(path).map_err(Error::io("read", path))?;
        let modified = meta
            .modified()
            .map_err(Error::io("read the time of", path))?;
        let modified = modified
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos()
            .to_string();
        let known = self.get(key)?;
        let sha256 = match &known {
            Some(entry) if entry.size == meta.len() && entry.modified == modified => {
                entry.sha256.clone()
            }
            _ => of_file(path)?,
        };
        // The blob and not the link to it: deleting that would bring the same bytes back.
        let real = path.canonicalize().map_err(Error::io("find", path))?;
        check(&real, &sha256, stated)?;
        if let Some(entry) = &known {
            check(&real, &sha256, Some((&entry.sha256, &self.cite(key))))?;
        }
        let entry = Entry {
            commit: commit.map(str::to_owned),
            sha256: sha256.clone(),
            size: meta.len(),
            modified,
        };
        if known.as_ref() != Some(&entry) {
            self.put(key, entry)?;
        }
        Ok(sha256)
    }

    /// Adds an entry. A cache that may only be read (a shared one) keeps no record, and that is no error.
    fn put(&self, key: &str, entry: Entry) -> Result<()> {
        match self.try_put(key, entry) {
            Err(Error::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn try_put(&self, key: &str, entry: Entry) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let _lock = Lock::take(&self.path.with_extension("lock"))?;
        let mut entries = self.read()?;
        entries.insert(key.to_owned(), entry);
        write_atomically(&self.path, toml::to_string(&entries)?.as_bytes())
    }
}

/// Compares a hash with one that somebody states.
///
/// # Errors
/// [`Error::HashMismatch`], which names `path`.
pub fn check(path: &Path, found: &str, stated: Option<(&str, &str)>) -> Result<()> {
    match stated {
        Some((expected, by)) if !expected.eq_ignore_ascii_case(found) => Err(Error::HashMismatch {
            path: path.into(),
            expected: expected.to_owned(),
            found: found.to_owned(),
            stated_by: by.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Temporary name, sync, rename: a reader sees the old text or the new one, never half.
///
/// # Errors
/// What the file system refuses.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(folder).map_err(Error::io("write into", folder))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.as_file()
        .sync_all()
        .map_err(Error::io("write", path))?;
    file.persist(path)
        .map_err(|e| Error::io("write", path)(e.error))?;
    Ok(())
}

/// An advisory lock between processes (flock, as Python's filelock takes it), held until dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits for the lock.
    ///
    /// # Errors
    /// What the file system refuses.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path);
        let file = file.map_err(Error::io("open", path))?;
        FileExt::lock(&file).map_err(Error::io("lock", path))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_remembers_and_refuses_a_changed_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w");
        fs::write(&file, "abc").unwrap();
        let record = Record::new(&dir.path().join("candlewick"));
        let sha = record
            .verify("o/n@main/w", &file, Some("c0ffee"), None)
            .unwrap();
        assert_eq!(
            sha,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(of_bytes(b"abc"), sha);
        assert_eq!(
            record.get("o/n@main/w").unwrap().unwrap().commit.as_deref(),
            Some("c0ffee")
        );

        fs::write(&file, "abcd").unwrap();
        let error = record
            .verify("o/n@main/w", &file, Some("c0ffee"), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&sha)
                && error
                    .contains("88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589")
        );
        assert!(error.contains("checksums.toml"), "{error}");
    }

    #[test]
    fn an_untouched_file_is_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("w");
        fs::write(&file, "abc").unwrap();
        let time = fs::metadata(&file).unwrap().modified().unwrap();
        let record = Record::new(dir.path());
        let sha = record.verify("k", &file, None, None).unwrap();
        // Same size and time, other bytes: only a second reading could tell.
        fs::write(&file, "xyz").unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(time)
            .unwrap();
        assert_eq!(record.verify("k", &file, None, None).unwrap(), sha);
    }

    #[test]
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("checksums.toml"), "[oops").unwrap();
        let error = Record::new(dir.path()).get("k").unwrap_err();
        assert!(
            matches!(error, Error::Record { .. }) && error.to_string().contains("delete it"),
            "{error}"
        );
    }
}

//! The Hub's cache on disk: `blobs/` by ETag, `refs/` from branch to commit, `snapshots/COMMIT/` of links.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checksum::write_atomically;
use crate::error::{Error, Result};
use crate::hub::Cached;

/// Refuses what could leave the cache's folder or change an address.
pub(crate) fn check_part(what: &'static str, value: &str) -> Result<()> {
    let part_is_fine = |part: &str| {
        !part.is_empty()
            && part.bytes().any(|b| b != b'.')
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    match value.split('/').all(part_is_fine) {
        true => Ok(()),
        false => Err(Error::BadId {
            what,
            value: value.to_owned(),
        }),
    }
}

/// One model repository in the cache.
pub(crate) struct Repo {
    pub name: String,
    pub folder: PathBuf,
}

impl Repo {
    pub(crate) fn new(cache: &Path, id: &str) -> Result<Self> {
        check_part("id", id)?;
        let name = format!("models--{}", id.replace('/', "--"));
        Ok(Self {
            folder: cache.join(&name),
            name,
        })
    }

    pub(crate) fn blob(&self, name: &str) -> PathBuf {
        self.folder.join("blobs").join(name)
    }

    fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(file)
    }

    /// The file at a revision, if it is here.
    pub(crate) fn lookup(&self, revision: &str, file: &str) -> Result<Option<Cached>> {
        let reference = self.folder.join("refs").join(revision);
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_owned(),
            // A commit has no reference of its own.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => revision.to_owned(),
            Err(e) => return Err(Error::io("read", reference)(e)),
        };
        let path = self.pointer(&commit, file);
        Ok(path.exists().then_some(Cached { path, commit }))
    }

    /// Links a blob into its snapshot and notes the commit of a branch.
    pub(crate) fn link(
        &self,
        etag: &str,
        commit: &str,
        revision: &str,
        file: &str,
    ) -> Result<Cached> {
        let path = self.pointer(commit, file);
        if !path.exists() {
            let folder = path.parent().unwrap_or(&self.folder);
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            if path.is_symlink() {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
            // Two up from a file in snapshots/COMMIT, one more for every folder of its own.
            let up = "../".repeat(2 + file.matches('/').count());
            place(&self.blob(etag), &format!("{up}blobs/{etag}"), &path)?;
        }
        if revision != commit {
            let reference = self.folder.join("refs").join(revision);
            let folder = reference.parent().unwrap_or(&self.folder);
            fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
            write_atomically(&reference, commit.as_bytes())?;
        }
        Ok(Cached {
            path,
            commit: commit.to_owned(),
        })
    }
}

#[cfg(unix)]
fn place(_blob: &Path, target: &str, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, link).map_err(Error::io("link", link))
}

/// Without the right to make links the file itself moves into the snapshot, as it does in Python.
#[cfg(not(unix))]
fn place(blob: &Path, target: &str, link: &Path) -> Result<()> {
    #[cfg(windows)]
    if std::os::windows::fs::symlink_file(target.replace('/', "\\"), link).is_ok() {
        return Ok(());
    }
    let _ = target;
    fs::rename(blob, link).map_err(Error::io("rename", blob))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_the_cache() {
        for good in [
            "facebook/dinov2-small",
            "main",
            "refs/pr/1",
            "sub/model.safetensors",
            "a..b",
        ] {
            check_part("id", good).unwrap();
        }
        for bad in [
            "../x", "a/../b", "/etc", "a//b", "", "a b", "a\\b", "x?y", "x%2Fy", ".",
        ] {
            assert!(check_part("id", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn files_in_folders_are_linked_from_the_right_depth() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(dir.path(), "org/name").unwrap();
        fs::create_dir_all(repo.folder.join("blobs")).unwrap();
        fs::write(repo.blob("e7a6"), "weights").unwrap();
        for file in ["model.safetensors", "a/b/model.safetensors"] {
            let linked = repo.link("e7a6", "c0", "refs/pr/1", file).unwrap();
            assert_eq!(fs::read_to_string(&linked.path).unwrap(), "weights");
            assert_eq!(
                repo.lookup("refs/pr/1", file).unwrap().unwrap().path,
                linked.path
            );
            assert_eq!(repo.lookup("c0", file).unwrap().unwrap().commit, "c0");
        }
        assert!(repo.lookup("main", "model.safetensors").unwrap().is_none());
    }
}

//! Named files that lie in a folder or an archive and are read in pieces where they lie: nothing is unpacked to disk.

mod disk;
mod gzip;
mod many;
mod tar;
mod zip;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candlewick_data::folder::is_image;
use candlewick_data::{Error, Result};

pub(crate) use disk::Disk;
pub(crate) use many::Many;

/// The most bytes that one image of an archive or a table may have; more is refused before it is read.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// With `/` between the parts; below the archive or folder.
    pub name: String,
    pub size: u64,
}

/// Files below one place.
pub(crate) trait Tree: Send + Sync {
    /// The folder or archive.
    fn path(&self) -> &Path;

    fn entries(&self) -> &[Entry];

    /// Folders that are listed, whether or not there is something in them.
    fn folders(&self) -> &[String] {
        &[]
    }

    /// `len` bytes of a file from `from` on; the caller stays within its size.
    fn read(&self, entry: usize, from: u64, len: usize) -> Result<Vec<u8>>;

    /// What names a file in messages.
    fn place(&self, entry: usize) -> String {
        format!(
            "{} in {}",
            self.entries()[entry].name,
            self.path().display()
        )
    }
}

/// What a file is by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tar,
    TarGz,
    Zip,
    Parquet,
    Other,
}

/// Tells by content; an ending only where the content of a gzip file may be anything.
pub(crate) fn kind(path: &Path) -> Result<Kind> {
    let mut head = [0; 262];
    let mut file = File::open(path).map_err(read_error(path))?;
    let mut got = 0;
    while got < head.len() {
        match file.read(&mut head[got..]).map_err(read_error(path))? {
            0 => break,
            n => got += n,
        }
    }
    let head = &head[..got];
    let name = path.to_string_lossy().to_ascii_lowercase();
    Ok(match head {
        [0x1f, 0x8b, ..] if name.ends_with(".tar.gz") || name.ends_with(".tgz") => Kind::TarGz,
        [b'P', b'K', 3 | 5, 4 | 6, ..] => Kind::Zip,
        [b'P', b'A', b'R', b'1', ..] => Kind::Parquet,
        _ if head.get(257..262) == Some(b"ustar".as_slice()) => Kind::Tar,
        // Archives from before 1988 have no mark, and an empty or damaged one deserves the reader's message.
        _ if name.ends_with(".tar") => Kind::Tar,
        _ if name.ends_with(".zip") => Kind::Zip,
        _ if name.ends_with(".parquet") => Kind::Parquet,
        _ => Kind::Other,
    })
}

/// Names and paths of the files in a folder and a few levels below, hidden ones aside.
pub(crate) fn files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    disk::walk(folder, "", disk::DEPTH, &mut found)?;
    Ok(found)
}

/// The files of an archive.
pub(crate) fn open(path: &Path, kind: Kind) -> Result<Arc<dyn Tree>> {
    Ok(match kind {
        Kind::Tar => Arc::new(tar::Tar::plain(path)?),
        Kind::TarGz => Arc::new(tar::Tar::gzipped(path)?),
        Kind::Zip => Arc::new(zip::Zip::open(path)?),
        Kind::Parquet | Kind::Other => {
            return Err(broken(path, "not a tar, tar.gz or zip archive"));
        }
    })
}

pub(crate) fn broken(path: &Path, problem: impl Into<String>) -> Error {
    Error::Archive {
        path: path.into(),
        problem: problem.into(),
    }
}

pub(crate) fn read_error(path: &Path) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = PathBuf::from(path);
    move |source| Error::Read {
        path: path.clone(),
        source,
    }
}

/// The name of a file in an archive: text, below the root, with `/` between its parts and without `.` among them.
pub(crate) fn name_of(archive: &Path, raw: &[u8]) -> Result<String> {
    let Ok(text) = std::str::from_utf8(raw) else {
        return Err(Error::Name {
            path: archive.into(),
            name: raw.escape_ascii().to_string(),
        });
    };
    let outside = || {
        let text = format!(
            "the entry `{}` lies outside the archive; nothing was written, and such an archive is not read",
            text.escape_default()
        );
        broken(archive, text)
    };
    let drive = text.as_bytes().get(1) == Some(&b':');
    if text.starts_with(['/', '\\']) || drive || text.contains('\0') {
        return Err(outside());
    }
    let mut parts = Vec::new();
    for part in text.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => return Err(outside()),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Refuses an image that is larger than any image is.
fn bounded(archive: &Path, name: &str, size: u64) -> Result<()> {
    if is_image(name) && size > MAX_IMAGE_BYTES {
        let problem = format!(
            "`{name}` has {size} bytes; an image may have {MAX_IMAGE_BYTES} at most, so this is none, or a bomb"
        );
        return Err(broken(archive, problem));
    }
    Ok(())
}

/// Refuses two files of one name.
fn distinct(archive: &Path, entries: &[Entry]) -> Result<()> {
    let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let problem = format!(
                "`{}` is in it twice; which one is meant cannot be told, so pack it anew",
                pair[0]
            );
            Err(broken(archive, problem))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        let name = |raw: &[u8]| name_of(Path::new("a.tar"), raw);
        assert_eq!(name(b"./x//cat/1.png").unwrap(), "x/cat/1.png");
        assert_eq!(name(b"x\\cat\\1.png").unwrap(), "x/cat/1.png");
        for bad in [
            &b"../1.png"[..],
            b"x/../../1.png",
            b"/etc/1.png",
            b"C:\\1.png",
            b"x\0.png",
        ] {
            let said = name(bad).unwrap_err().to_string();
            assert!(said.contains("lies outside the archive"), "{said}");
        }
        let said = name(b"caf\xe9/1.png").unwrap_err().to_string();
        assert!(said.contains("`caf\\xe9/1.png` is not UTF-8"), "{said}");
    }
}

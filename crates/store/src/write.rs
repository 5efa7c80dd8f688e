//! Writing: one process at a time, chunk by chunk, each on disk before the next begins.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::{self, Header, Identity, Key};
use crate::read::Store;

/// Features of a chunk: the most that a process which dies can lose.
pub const CHUNK: usize = 64;

/// The one who may append to a file.
pub struct Writer {
    path: PathBuf,
    file: File,
    header: Header,
    present: HashSet<Key>,
    end: usize,
    waiting: Vec<(Key, Vec<f32>)>,
}

impl Writer {
    /// Opens or makes the file, and takes up behind its last sealed chunk. Where another process writes, `wait` is
    /// called once and then waited for it to end.
    ///
    /// # Errors
    /// As of [`Store::open_as`]; a damaged file is not written to.
    pub fn open(path: &Path, identity: &Identity, wait: impl FnOnce()) -> Result<Self> {
        fs::create_dir_all(folder(path)).map_err(Error::io("make the folder of", path))?;
        if !path.exists() {
            make(path, identity)?;
        }
        let file = locked(path, identity, wait)?;
        let store = Store::of(&file, path)?;
        identity.expect(store.identity(), path)?;
        let writer = Self {
            path: path.into(),
            header: store.header().clone(),
            present: store.keys().iter().copied().collect(),
            end: store.end(),
            waiting: Vec::new(),
            file,
        };
        drop(store);
        // What a writer that died left behind the last seal.
        let cut = writer.file.set_len(writer.end as u64);
        cut.map_err(Error::io("write", path))?;
        Ok(writer)
    }

    /// Whether the file has the feature of an image, or has it waiting.
    pub fn contains(&self, key: &Key) -> bool {
        self.present.contains(key)
    }

    /// Images in the file and waiting.
    pub fn len(&self) -> usize {
        self.present.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty()
    }

    /// Takes the feature of an image. It is on disk once [`CHUNK`] of them are together, or after [`Writer::finish`].
    pub fn push(&mut self, key: Key, row: Vec<f32>) -> Result<()> {
        if self.present.insert(key) {
            self.waiting.push((key, row));
        }
        match self.waiting.len() {
            CHUNK => self.append(),
            _ => Ok(()),
        }
    }

    /// Writes those that wait for a full chunk. A writer that is dropped without it loses them.
    pub fn finish(mut self) -> Result<()> {
        match self.waiting.is_empty() {
            true => Ok(()),
            false => self.append(),
        }
    }

    fn append(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.waiting);
        let (body, seal) = format::chunk(&self.header, self.end, &rows, &self.path)?;
        let write = |file: &mut File| {
            file.seek(SeekFrom::Start(self.end as u64))?;
            file.write_all(&body)?;
            // The seal must not be on disk before what it seals.
            file.sync_data()?;
            file.write_all(&seal)?;
            file.sync_data()
        };
        write(&mut self.file).map_err(Error::io("write", &self.path))?;
        self.end += body.len() + seal.len();
        Ok(())
    }
}

/// A file with a header, unless another process was faster. It gets its name when it is on disk.
fn make(path: &Path, identity: &Identity) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".candlewick-");
        // Readable by whoever the user's umask allows, like any file; temporary ones are private otherwise.
        #[cfg(unix)]
        let builder = builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut file = builder.tempfile_in(folder(path))?;
        file.write_all(&format::header(identity))?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Err(e) if e.error.kind() != std::io::ErrorKind::AlreadyExists => Err(e.error),
            _ => Ok(()),
        }
    };
    write().map_err(Error::io("make", path))?;
    sync_folder(path)
}

/// The file at `path`, held by this process alone.
fn locked(path: &Path, identity: &Identity, wait: impl FnOnce()) -> Result<File> {
    let mut wait = Some(wait);
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match options.open(path) {
            Ok(file) => file,
            // Removed while it was waited for.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                make(path, identity)?;
                continue;
            }
            Err(e) => return Err(Error::io("open", path)(e)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                if let Some(wait) = wait.take() {
                    wait();
                }
                file.lock().map_err(Error::io("lock", path))?;
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", path)(e)),
        }
        // A merge may have put another file under the name meanwhile, or somebody removed it.
        if same_file(&file, path) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
pub(crate) fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Elsewhere an open file cannot be replaced.
#[cfg(not(unix))]
pub(crate) fn same_file(_: &File, _: &Path) -> bool {
    true
}

/// Where the file is.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// The name is on disk once the folder is.
pub(crate) fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder(path))
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync the folder of", path))?;
    Ok(())
}

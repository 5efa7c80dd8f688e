//! A gzip file that can be read from anywhere: one pass notes the decompressor's state every few megabytes, and a later read
//! begins at the note before it, as Mark Adler's `zran` does (`madler/zlib:examples/zran.c`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candlewick_data::Result;
use crc32fast::Hasher;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::{broken, read_error};

/// How far back deflate may refer.
const WINDOW: usize = 1 << 15;

/// The first distance between notes, in decompressed bytes; doubled whenever there are more than [`MOST`].
const SPACING: u64 = 1 << 20;

/// A note takes about 43 kB, so all of them 44 MB at most.
const MOST: usize = 1024;

/// A file that grows by more than this, beyond the first 64 MiB, holds no images. (Deflate's limit is 1032.)
const GROWTH: u64 = 100;

pub(super) struct Gzip {
    path: PathBuf,
    marks: Vec<Mark>,
    len: u64,
}

/// Where decompression may begin.
struct Mark {
    /// Decompressed bytes before it.
    out: u64,
    /// Compressed bytes before it.
    input: u64,
    state: DecompressorOxide,
    window: Box<[u8]>,
    at: usize,
}

impl Gzip {
    /// Reads a file once, through `look` and then to its end.
    ///
    /// # Errors
    /// What `look` says; otherwise a file that is cut off, damaged (each member has a CRC-32 and a length) or a bomb.
    pub(super) fn index<T>(
        path: &Path,
        look: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<(Self, T)> {
        let file = File::open(path).map_err(read_error(path))?;
        let mut stream = Stream::new(file, 0);
        stream.marks = Some(Vec::new());
        let looked = look(&mut stream);
        let drained = match looked {
            Ok(_) => io::copy(&mut stream, &mut io::sink()).map(drop),
            Err(_) => Ok(()),
        };
        // Damage of the gzip layer comes first: what was seen through it means nothing.
        if let Some(problem) = stream.problem.take() {
            return Err(broken(path, problem));
        }
        let looked = looked?;
        drained.map_err(read_error(path))?;
        let gzip = Self {
            path: path.into(),
            marks: stream.marks.take().unwrap_or_default(),
            len: stream.out,
        };
        Ok((gzip, looked))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Decompressed length.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Decompressed bytes from `from` on.
    pub(super) fn read(&self, from: u64, len: usize) -> Result<Vec<u8>> {
        let before = self.marks.partition_point(|mark| mark.out <= from);
        let mut file = File::open(&self.path).map_err(read_error(&self.path))?;
        let mut stream = match before.checked_sub(1).and_then(|i| self.marks.get(i)) {
            None => Stream::new(file, 0),
            Some(mark) => {
                file.seek(SeekFrom::Start(mark.input))
                    .map_err(read_error(&self.path))?;
                let mut stream = Stream::new(file, mark.input);
                stream.state = Box::new(mark.state.clone());
                stream.window = mark.window.clone();
                stream.at = mark.at;
                stream.out = mark.out;
                stream.phase = Phase::Middle;
                stream
            }
        };
        let mut bytes = vec![0; len];
        let skip = from - stream.out;
        let outcome = io::copy(&mut (&mut stream).take(skip), &mut io::sink())
            .and_then(|_| stream.read_exact(&mut bytes));
        match (stream.problem, outcome) {
            (Some(problem), _) => Err(broken(&self.path, problem)),
            (None, Err(e)) => Err(read_error(&self.path)(e)),
            (None, Ok(())) => Ok(bytes),
        }
    }
}

#[derive(PartialEq)]
enum Phase {
    /// Before the header of a member.
    Header,
    /// In its data, whose checks are known.
    Body,
    /// In data that were entered in the middle.
    Middle,
    End,
}

/// Decompression as a reader.
struct Stream {
    file: File,
    input: Vec<u8>,
    /// The part of `input` that is still to be used.
    unused: std::ops::Range<usize>,
    /// Compressed bytes used.
    used: u64,
    out: u64,
    state: Box<DecompressorOxide>,
    window: Box<[u8]>,
    /// Where in the window the next byte goes.
    at: usize,
    /// The part of the window that the reader has yet to take.
    ready: std::ops::Range<usize>,
    phase: Phase,
    crc: Hasher,
    member: u32,
    marks: Option<Vec<Mark>>,
    spacing: u64,
    /// What is wrong with the file, if something is.
    problem: Option<String>,
}

impl Stream {
    fn new(file: File, used: u64) -> Self {
        Self {
            file,
            input: vec![0; 1 << 16],
            unused: 0..0,
            used,
            out: 0,
            state: Box::default(),
            window: vec![0; WINDOW].into(),
            at: 0,
            ready: 0..0,
            phase: Phase::Header,
            crc: Hasher::new(),
            member: 0,
            marks: None,
            spacing: SPACING,
            problem: None,
        }
    }

    fn wrong(&mut self, problem: impl Into<String>) -> io::Error {
        let problem = problem.into();
        self.problem = Some(problem.clone());
        io::Error::new(io::ErrorKind::InvalidData, problem)
    }

    /// More input; false at the end of the file.
    fn refill(&mut self) -> io::Result<bool> {
        loop {
            match self.file.read(&mut self.input) {
                Ok(n) => {
                    self.unused = 0..n;
                    return Ok(n > 0);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        if self.unused.is_empty() && !self.refill()? {
            return Ok(None);
        }
        let byte = self.input[self.unused.start];
        self.unused.start += 1;
        self.used += 1;
        Ok(Some(byte))
    }

    fn sure(&mut self) -> io::Result<u8> {
        match self.byte()? {
            Some(byte) => Ok(byte),
            None => Err(self.wrong("the gzip file is cut off; fetch it again")),
        }
    }

    /// A member's header (RFC 1952), or the end of the file. False at the end.
    fn header(&mut self) -> io::Result<bool> {
        let first = self.used == 0;
        let Some(mut magic) = self.byte()? else {
            return match first {
                true => Err(self.wrong("the file is empty")),
                false => Ok(false),
            };
        };
        // Tapes are padded with zeros, and gzip passes over them.
        while magic == 0 && !first {
            match self.byte()? {
                Some(byte) => magic = byte,
                None => return Ok(false),
            }
        }
        if magic != 0x1f || self.sure()? != 0x8b || self.sure()? != 8 {
            return Err(self.wrong(match first {
                true => "not a gzip file",
                false => "bytes that are no gzip follow the end of the gzip data; fetch it again",
            }));
        }
        let flags = self.sure()?;
        for _ in 0..6 {
            self.sure()?;
        }
        if flags & 4 != 0 {
            let len = u16::from_le_bytes([self.sure()?, self.sure()?]);
            for _ in 0..len {
                self.sure()?;
            }
        }
        // A name and a comment end with a zero.
        for flag in [8, 16] {
            while flags & flag != 0 && self.sure()? != 0 {}
        }
        if flags & 2 != 0 {
            self.sure()?;
            self.sure()?;
        }
        *self.state = DecompressorOxide::default();
        self.crc = Hasher::new();
        self.member = 0;
        Ok(true)
    }

    fn trailer(&mut self) -> io::Result<()> {
        let mut word = || -> io::Result<u32> {
            let mut bytes = [0; 4];
            for byte in &mut bytes {
                *byte = self.sure()?;
            }
            Ok(u32::from_le_bytes(bytes))
        };
        let (crc, len) = (word()?, word()?);
        let found = std::mem::take(&mut self.crc).finalize();
        if self.phase == Phase::Body && (crc, len) != (found, self.member) {
            let problem = format!(
                "the gzip data are damaged: CRC-32 {crc:08x} and length {len} are stated, found {found:08x} and {}; fetch it again",
                self.member
            );
            return Err(self.wrong(problem));
        }
        Ok(())
    }

    /// Notes the state, if the last note is far enough away.
    fn mark(&mut self) {
        let Some(marks) = &mut self.marks else { return };
        if marks
            .last()
            .is_some_and(|last| self.out < last.out + self.spacing)
        {
            return;
        }
        marks.push(Mark {
            out: self.out,
            input: self.used,
            state: (*self.state).clone(),
            window: self.window.clone(),
            at: self.at,
        });
        if marks.len() > MOST {
            self.spacing *= 2;
            let mut even = false;
            marks.retain(|_| {
                even = !even;
                even
            });
        }
    }

    /// Fills `ready`, which is empty only at the end.
    fn advance(&mut self) -> io::Result<()> {
        loop {
            match self.phase {
                Phase::End => return Ok(()),
                Phase::Header => {
                    self.phase = match self.header()? {
                        true => Phase::Body,
                        false => Phase::End,
                    };
                    continue;
                }
                Phase::Body | Phase::Middle => {}
            }
            if self.unused.is_empty() && !self.refill()? {
                return Err(self.wrong("the gzip file is cut off; fetch it again"));
            }
            self.mark();
            let (status, used, made) = decompress(
                &mut self.state,
                &self.input[self.unused.clone()],
                &mut self.window,
                self.at,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            self.unused.start += used;
            self.used += used as u64;
            let made = self.at..self.at + made;
            self.crc.update(&self.window[made.clone()]);
            self.member = self.member.wrapping_add(made.len() as u32);
            self.out += made.len() as u64;
            self.at = made.end % WINDOW;
            if self.marks.is_some() && self.out > (64 << 20) + GROWTH * self.used {
                let problem = format!(
                    "{} bytes decompress to more than {}; images do not compress like that, so this is a bomb",
                    self.used, self.out
                );
                return Err(self.wrong(problem));
            }
            match status {
                TINFLStatus::Done => {
                    self.trailer()?;
                    self.phase = Phase::Header;
                }
                TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => {}
                other => {
                    let problem = format!("the gzip data are damaged ({other:?}); fetch it again");
                    return Err(self.wrong(problem));
                }
            }
            if !made.is_empty() {
                self.ready = made;
                return Ok(());
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.ready.is_empty() {
            self.advance()?;
        }
        let n = into.len().min(self.ready.len());
        let from = self.ready.start;
        into[..n].copy_from_slice(&self.window[from..from + n]);
        self.ready.start += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut x = 1u32;
        let mut next = || {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few symbols, so that it compresses and refers back.
            (x >> 28) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn index(bytes: &[u8]) -> Result<(Gzip, tempfile::NamedTempFile)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Ok((Gzip::index(file.path(), |_| Ok(()))?.0, file))
    }

    #[test]
    fn any_piece_is_what_decompressing_everything_gives() {
        let all = noise(7_000_000);
        // Two members, as `cat a.gz b.gz` makes them, and a tape's padding.
        let mut bytes = packed(&all[..4_000_000]);
        bytes.extend(packed(&all[4_000_000..]));
        bytes.extend([0; 100]);
        let (gzip, _file) = index(&bytes).unwrap();
        assert_eq!(gzip.len(), all.len() as u64);
        assert!(gzip.marks.len() >= 6, "{}", gzip.marks.len());
        for (from, len) in [
            (0, 10),
            (1_048_570, 20),
            (3_999_990, 20),
            (2_500_000, 1_500_000),
            (6_999_000, 1_000),
            (7_000_000, 0),
        ] {
            assert_eq!(gzip.read(from as u64, len).unwrap(), all[from..from + len]);
        }
    }

    #[test]
    fn damage_is_told() {
        let bytes = packed(&noise(300_000));
        let said = |bytes: &[u8]| match index(bytes) {
            Ok(_) => panic!("read"),
            Err(e) => e.to_string(),
        };
        assert!(said(&bytes[..bytes.len() / 2]).contains("cut off"));
        assert!(said(&bytes[..bytes.len() - 3]).contains("cut off"));
        let mut crc = bytes.clone();
        let at = crc.len() - 8;
        crc[at] ^= 1;
        assert!(said(&crc).contains("damaged: CRC-32"));
        let mut tail = bytes;
        tail.extend(b"more");
        assert!(said(&tail).contains("follow the end"));
        assert!(said(b"plain").contains("not a gzip file"));
        assert!(said(b"").contains("empty"));
    }

    #[test]
    fn a_bomb_is_stopped_long_before_its_end() {
        let bytes = packed(&vec![0; 200 << 20]);
        let Err(error) = index(&bytes) else {
            panic!("read")
        };
        let said = error.to_string();
        assert!(said.contains("a bomb"), "{said}");
    }

    #[test]
    fn notes_are_thinned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gz");
        std::fs::write(&path, packed(&noise(3_000_000))).unwrap();
        let mut stream = Stream::new(File::open(&path).unwrap(), 0);
        stream.marks = Some(Vec::new());
        stream.spacing = 1;
        io::copy(&mut stream, &mut io::sink()).unwrap();
        let marks = stream.marks.unwrap();
        assert!(marks.len() <= MOST, "{}", marks.len());
        assert_eq!(marks[0].out, 0);
    }
}

//! `--tensorboard`: scalars of a run as an event file, written as the run goes, so that TensorBoard can watch it.
//!
//! The file is a sequence of records: the length in eight bytes, its checksum, the bytes, their checksum. A record is a message
//! `Event` of protocol buffers, of which four fields are needed (`tensorflow/tensorflow:tensorflow/core/util/event.proto`,
//! `tensorflow/core/lib/io/record_writer.h`). The crates for this are not kept up, and it is little.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use candlewick_core::{AccuracyMatrix, Error, Event, Observer, Standing};

/// The folder below a run directory.
const FOLDER: &str = "tensorboard";
/// By which TensorBoard knows its files.
const START: &str = "events.out.tfevents.";
/// Of a record's checksum, so that one over bytes that hold one themselves is sound.
const MASK: u32 = 0xa282_ead8;

/// Writes what happens in a run.
pub struct Board {
    file: File,
    path: PathBuf,
    /// Steps of the optimiser so far.
    steps: u64,
}

impl Board {
    /// A new file in the folder of the run in `dir`, which goes on from `at`.
    pub fn new(dir: &Path, at: &Standing) -> Result<Self> {
        let folder = dir.join(FOLDER);
        let hint = || {
            format!(
                "{}: cannot be written; give another --out",
                folder.display()
            )
        };
        fs::create_dir_all(&folder).with_context(hint)?;
        let seconds = wall_time() as u64;
        // TensorBoard reads files in the order of their names; of two within a second the later comes later.
        let path = (0..)
            .map(|n| folder.join(format!("{START}{seconds:010}.candlewick.{n:04}")))
            .find(|path| !path.exists())
            .unwrap_or_default();
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut board = Self {
            file: file.with_context(hint)?,
            path,
            steps: at.cost.optimizer_steps,
        };
        board.write(0, &bytes(3, b"brain.Event:2"))?;
        if board.steps > 0 {
            // The start of a session: what an earlier process wrote of later steps is void.
            let start = bytes(7, &number(1, 1));
            board.write(board.steps + 1, &start)?;
        }
        Ok(board)
    }

    /// Removes the event files of an earlier run.
    pub fn clear(dir: &Path) -> Result<()> {
        let folder = dir.join(FOLDER);
        if !folder.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(START) {
                let path = entry.path();
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// One event with its step and what else is in it.
    fn write(&mut self, step: u64, rest: &[u8]) -> Result<()> {
        let mut event = Vec::new();
        event.push((1 << 3) | 1);
        event.extend(wall_time().to_le_bytes());
        event.extend(number(2, step));
        event.extend(rest);
        self.file
            .write_all(&record(&event))
            .with_context(|| format!("{}: not written", self.path.display()))
    }

    /// Values by their names, all of one step.
    fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (name, value) in values {
            let mut scalar = bytes(1, name.as_bytes());
            scalar.push((2 << 3) | 5);
            scalar.extend((*value as f32).to_le_bytes());
            summary.extend(bytes(1, &scalar));
        }
        self.write(step, &bytes(5, &summary))
    }

    fn session(&mut self, accuracy: &AccuracyMatrix) -> Result<()> {
        let sessions = accuracy.sessions();
        let last = |curve: Vec<f64>| curve.last().copied().unwrap_or(f64::NAN);
        let mut values = vec![
            ("accuracy/micro".into(), last(accuracy.micro_curve())),
            ("accuracy/macro".into(), last(accuracy.macro_curve())),
            ("forgetting".into(), accuracy.forgetting()),
        ];
        let row = accuracy.percent.last().into_iter().flatten().take(sessions);
        let tasks = row.enumerate();
        values.extend(tasks.map(|(i, percent)| (format!("task/{:03}", i + 1), *percent)));
        self.scalars(sessions as u64, &values)?;
        let synced = self.file.sync_data();
        synced.with_context(|| format!("{}: not written", self.path.display()))
    }
}

impl Observer for Board {
    fn on(&mut self, event: Event<'_>) -> candlewick_core::Result<()> {
        let written = match event {
            Event::Step { loss, .. } => {
                self.steps += 1;
                match loss {
                    Some(loss) => self.scalars(self.steps, &[("loss".into(), loss.into())]),
                    None => Ok(()),
                }
            }
            Event::TaskEnd { accuracy, .. } => self.session(accuracy),
            _ => Ok(()),
        };
        written.map_err(|e| Error::data(std::io::Error::other(format!("{e:#}"))))
    }
}

fn wall_time() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |time| time.as_secs_f64())
}

/// Length, its checksum, bytes, their checksum.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked(bytes).to_le_bytes());
    record
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

/// A field of a number.
fn number(field: u8, value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    varint(&mut out, value);
    out
}

/// A field of bytes, or of a message.
fn bytes(field: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![(field << 3) | 2];
    varint(&mut out, value.len() as u64);
    out.extend(value);
    out
}

/// Seven bits a byte, the lowest first.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As tensorboard 2.21.0 has it, `tensorboard.summary.writer.record_writer.RecordWriter`.
    #[test]
    fn a_record_is_as_others_write_it() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let expected = b"\x0a\0\0\0\0\0\0\0\xae\xa3\xbf\x3acandlewick\x44\xf6\x25\x88";
        assert_eq!(record(b"candlewick"), expected);
    }

    #[test]
    fn numbers_take_as_many_bytes_as_they_need() {
        for (value, expected) in [
            (0, vec![0x10, 0]),
            (127, vec![0x10, 0x7f]),
            (300, vec![0x10, 0xac, 0x02]),
            (u64::MAX, [vec![0x10], vec![0xff; 9], vec![0x01]].concat()),
        ] {
            assert_eq!(number(2, value), expected);
        }
    }
}

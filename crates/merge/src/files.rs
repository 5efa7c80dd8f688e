//! Merging files piece by piece.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::rule::Rule;

/// Values of a tensor that are merged at a time.
const PIECE: usize = 1 << 18;

/// Before the names of a Fisher information that stands in the file of its model, as CoFiMA's runs have it.
const FISHER: &str = "fisher.";

/// What is merged.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Safetensors files with the same names, shapes and types.
    pub models: Vec<PathBuf>,
    /// The Fisher information of each model, under its names, with or without `fisher.` before them; where empty, the models' own
    /// files are asked.
    pub fishers: Vec<PathBuf>,
    /// Names begin with one of these; all do where empty.
    pub only: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Tensors written.
    pub tensors: usize,
    /// Values in them.
    pub values: usize,
}

/// Merges safetensors files by `rule` into `out`, which may be one of them. It is there whole or not at all.
///
/// Values of floating point are merged in f64 and rounded to the type of the files. Others, counters for example, must be the same in
/// all files.
///
/// # Errors
/// All differences of names, shapes and types; a rule that does not fit the number of models; files that cannot be read.
pub fn files(rule: &Rule, sources: &Sources, out: &Path) -> Result<Merged> {
    rule.check(sources.models.len())?;
    let open = |paths: &[PathBuf]| -> Result<Vec<Reader>> {
        paths.iter().map(|path| Reader::open(path)).collect()
    };
    let mut models = open(&sources.models)?;
    let wanted = |name: &str| {
        let fisher = rule.wants_fisher() && name.starts_with(FISHER);
        let only = &sources.only;
        !fisher && (only.is_empty() || only.iter().any(|prefix| name.starts_with(prefix)))
    };
    same(&models, &wanted)?;
    let mut fishers = match (rule.wants_fisher(), sources.fishers.len()) {
        (false, 0) => Vec::new(),
        (false, _) => {
            return Err(Error::Setting {
                key: "fisher",
                problem: "belongs to the rule fisher; leave it out".into(),
            });
        }
        (true, 0) => open(&sources.models)?,
        (true, n) if n == models.len() => open(&sources.fishers)?,
        (true, n) => {
            let expected = models.len();
            return Err(Error::Setting {
                key: "fisher",
                problem: format!("expected a file for each of {expected} models, found {n}"),
            });
        }
    };
    for (model, fisher) in models.iter().zip(&fishers) {
        informed(model, fisher, &wanted)?;
    }

    // In the order of the first file, so that aligned values stay aligned.
    let mut names: Vec<(usize, String)> = models[0]
        .tensors
        .iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, info)| (info.data_offsets.0, name.clone()))
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(Error::Setting {
            key: "only",
            problem: format!(
                "{} has no tensor whose name begins so; its names are {}",
                models[0].path.display(),
                listed(models[0].tensors.keys())
            ),
        });
    }
    let mut end = 0;
    let infos = names.iter().map(|(_, name)| {
        let info = &models[0].tensors[name];
        let start = end;
        end += info.data_offsets.1 - info.data_offsets.0;
        let info = TensorInfo {
            data_offsets: (start, end),
            ..info.clone()
        };
        (name.clone(), info)
    });
    let infos: Vec<_> = infos.collect();
    let values = infos.iter().map(|(_, info)| count(info)).sum();
    let header = header(infos, out)?;

    let folder = match out.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".candlewick-");
    // Readable by whoever the user's umask allows, like any file; temporary ones are private otherwise.
    #[cfg(unix)]
    let builder = builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder
        .tempfile_in(folder)
        .map_err(Error::io("write", out))?;
    let mut sink = BufWriter::new(file);
    sink.write_all(&header).map_err(Error::io("write", out))?;
    for (_, name) in &names {
        tensor(rule, name, &mut models, &mut fishers, |bytes| {
            sink.write_all(bytes).map_err(Error::io("write", out))
        })?;
    }
    let file = sink
        .into_inner()
        .map_err(|e| Error::io("write", out)(e.into_error()))?;
    file.as_file().sync_all().map_err(Error::io("write", out))?;
    file.persist(out)
        .map_err(|e| Error::io("write", out)(e.error))?;
    // The name is on disk once the folder is.
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("sync the folder of", out))?;
    Ok(Merged {
        tensors: names.len(),
        values,
    })
}

/// A file whose header was read.
struct Reader {
    path: PathBuf,
    file: File,
    /// Where the values begin.
    start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self> {
        let format = |reason: String| Error::Format {
            path: path.into(),
            reason,
        };
        let io = || Error::io("read", path);
        let mut file = File::open(path).map_err(io())?;
        let whole = file.metadata().map_err(io())?.len();
        let mut length = [0; 8];
        if whole < 8 {
            return Err(format(format!("it has {whole} bytes")));
        }
        file.read_exact(&mut length).map_err(io())?;
        let length = u64::from_le_bytes(length);
        if length > whole - 8 {
            return Err(format("its header is longer than the file".into()));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(io())?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| format(e.to_string()))?;
        let start = 8 + length;
        let expected = start + metadata.data_len() as u64;
        if whole != expected {
            return Err(format(format!(
                "its header speaks of {expected} bytes, it has {whole}"
            )));
        }
        let tensors = metadata.tensors().into_iter();
        Ok(Self {
            path: path.into(),
            file,
            start,
            tensors: tensors.map(|(name, info)| (name, info.clone())).collect(),
        })
    }

    /// Values `first..first + n` of a tensor, as bytes.
    fn piece(&mut self, info: &TensorInfo, first: usize, n: usize) -> Result<Vec<u8>> {
        let size = info.dtype.bitsize() / 8;
        let at = self.start + (info.data_offsets.0 + first * size) as u64;
        let mut bytes = vec![0; n * size];
        let read = self
            .file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.read_exact(&mut bytes));
        read.map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }
}

fn count(info: &TensorInfo) -> usize {
    info.shape.iter().product()
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<&str> = names.map(String::as_str).collect();
    match all.len() {
        0..=12 => all.join(", "),
        n => format!("{} and {} more", all[..12].join(", "), n - 12),
    }
}

/// That all models have the tensors of the first one.
fn same(models: &[Reader], wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let Some((first, rest)) = models.split_first() else {
        return Ok(());
    };
    for other in rest {
        let mut problems = Vec::new();
        for (name, info) in first.tensors.iter().filter(|(name, _)| wanted(name)) {
            match other.tensors.get(name) {
                None => problems.push(format!("`{name}` is in the first alone")),
                Some(there) if there.shape != info.shape => problems.push(format!(
                    "`{name}` has shape {:?} and {:?}",
                    info.shape, there.shape
                )),
                Some(there) if there.dtype != info.dtype => problems.push(format!(
                    "`{name}` is of type {:?} and {:?}",
                    info.dtype, there.dtype
                )),
                Some(_) => {}
            }
        }
        let surplus = other.tensors.keys().filter(|name| wanted(name));
        let surplus = surplus.filter(|name| !first.tensors.contains_key(*name));
        problems.extend(surplus.map(|name| format!("`{name}` is in the second alone")));
        if !problems.is_empty() {
            return Err(Error::Differ {
                first: first.path.clone(),
                other: other.path.clone(),
                problems,
            });
        }
    }
    Ok(())
}

/// The tensor of a Fisher file for a parameter.
fn information<'a>(fisher: &'a Reader, name: &str) -> Option<&'a TensorInfo> {
    let prefixed = fisher.tensors.get(&format!("{FISHER}{name}"));
    prefixed.or_else(|| fisher.tensors.get(name))
}

/// That there is information on every value that is merged.
fn informed(model: &Reader, fisher: &Reader, wanted: &dyn Fn(&str) -> bool) -> Result<()> {
    let own = model.path == fisher.path;
    let mut problems = Vec::new();
    for (name, info) in model.tensors.iter().filter(|(name, _)| wanted(name)) {
        if !float(info.dtype) {
            continue;
        }
        // In a model's own file its parameters are not their information.
        let found = match own {
            true => fisher.tensors.get(&format!("{FISHER}{name}")),
            false => information(fisher, name),
        };
        match found {
            None => problems.push(format!("there is no information on `{name}`")),
            Some(there) if there.shape != info.shape => problems.push(format!(
                "`{name}` has shape {:?}, its information {:?}",
                info.shape, there.shape
            )),
            Some(there) if !float(there.dtype) => {
                problems.push(format!("the information on `{name}` is no floating point"));
            }
            Some(_) => {}
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::Differ {
            first: model.path.clone(),
            other: fisher.path.clone(),
            problems,
        }),
    }
}

fn header(infos: Vec<(String, TensorInfo)>, out: &Path) -> Result<Vec<u8>> {
    let format = |reason: String| Error::Format {
        path: out.into(),
        reason,
    };
    let metadata = Metadata::new(None, infos).map_err(|e| format(e.to_string()))?;
    let mut text = serde_json::to_vec(&metadata).map_err(|e| format(e.to_string()))?;
    // Values begin at a multiple of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    Ok(header)
}

/// One tensor, piece by piece.
fn tensor(
    rule: &Rule,
    name: &str,
    models: &mut [Reader],
    fishers: &mut [Reader],
    mut write: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let info = models[0].tensors[name].clone();
    let length = count(&info);
    for first in (0..length).step_by(PIECE) {
        let n = PIECE.min(length - first);
        let read = |model: &mut Reader| {
            let info = model.tensors[name].clone();
            model.piece(&info, first, n)
        };
        if !float(info.dtype) {
            let pieces: Vec<Vec<u8>> = models.iter_mut().map(read).collect::<Result<_>>()?;
            if let Some(other) = pieces.iter().position(|piece| *piece != pieces[0]) {
                let found = format!(
                    "`{name}` is of type {:?}, which is not merged, and differs",
                    info.dtype
                );
                return Err(Error::Differ {
                    first: models[0].path.clone(),
                    other: models[other].path.clone(),
                    problems: vec![found],
                });
            }
            write(&pieces[0])?;
            continue;
        }
        let values: Vec<Vec<f64>> = models
            .iter_mut()
            .map(|model| Ok(decoded(info.dtype, &read(model)?)))
            .collect::<Result<_>>()?;
        let weights: Vec<Vec<f64>> = fishers
            .iter_mut()
            .map(|fisher| {
                let Some(info) = information(fisher, name).cloned() else {
                    return Ok(Vec::new());
                };
                Ok(decoded(info.dtype, &fisher.piece(&info, first, n)?))
            })
            .collect::<Result<_>>()?;
        let (values, weights) = (slices(&values), slices(&weights));
        let mut merged = vec![0f64; n];
        rule.merge(&values, &weights, |at, value| merged[at] = value)?;
        write(&encoded(info.dtype, &merged))?;
    }
    Ok(())
}

fn slices(all: &[Vec<f64>]) -> Vec<&[f64]> {
    all.iter().map(Vec::as_slice).collect()
}

fn float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

fn decoded(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    fn each<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        bytes.as_chunks::<N>().0.iter().map(|b| one(*b)).collect()
    }
    match dtype {
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        _ => each(bytes, f64::from_le_bytes),
    }
}

fn encoded(dtype: Dtype, values: &[f64]) -> Vec<u8> {
    let all = values.iter();
    match dtype {
        Dtype::F16 => all.flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(),
        Dtype::BF16 => all.flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect(),
        Dtype::F32 => all.flat_map(|v| (*v as f32).to_le_bytes()).collect(),
        _ => all.flat_map(|v| v.to_le_bytes()).collect(),
    }
}

//! Weight files: safetensors mapped into memory, or NumPy's npz. Values become f32.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use candle_core::npy::NpzTensors;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use crate::error::{Error, Result};

/// An open weight file: names and shapes at hand, values read when asked for.
pub struct Weights {
    file: String,
    shapes: BTreeMap<String, Vec<usize>>,
    values: Values,
}

enum Values {
    Safetensors {
        bytes: Bytes,
        entries: BTreeMap<String, (Dtype, Range<usize>)>,
    },
    Npz(NpzTensors),
}

enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

impl Weights {
    /// Opens a `.npz` file, or any other as safetensors. The file is mapped, not read; it must not
    /// be cut short by another program meanwhile.
    pub fn open(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "npz") {
            return Self::open_npz(path);
        }
        let io = |source| Error::Io {
            path: PathBuf::from(path),
            source,
        };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this value. A file truncated by another
        // process while mapped would end this one by a signal, as with every reader of safetensors.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Self::safetensors(path.display().to_string(), Bytes::Mapped(map))
    }

    /// Reads safetensors that are part of the program; `name` is used in messages.
    pub fn embedded(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::safetensors(name.to_owned(), Bytes::Static(bytes))
    }

    fn safetensors(file: String, bytes: Bytes) -> Result<Self> {
        let format = |e: safetensors::SafeTensorError| Error::Format {
            file: file.clone(),
            kind: "safetensors",
            reason: e.to_string(),
        };
        let all = bytes.get();
        SafeTensors::deserialize(all).map_err(format)?;
        let (header, metadata) = SafeTensors::read_metadata(all).map_err(format)?;
        let start = header + size_of::<u64>();
        let (mut shapes, mut entries) = (BTreeMap::new(), BTreeMap::new());
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            entries.insert(name.clone(), (info.dtype, start + from..start + to));
            shapes.insert(name, info.shape.clone());
        }
        Ok(Self {
            file,
            shapes,
            values: Values::Safetensors { bytes, entries },
        })
    }

    fn open_npz(path: &Path) -> Result<Self> {
        let file = path.display().to_string();
        std::fs::metadata(path).map_err(|source| Error::Io {
            path: PathBuf::from(path),
            source,
        })?;
        let format = |e: candle_core::Error| Error::Format {
            file: path.display().to_string(),
            kind: "npz",
            reason: e.to_string(),
        };
        let npz = NpzTensors::new(path).map_err(format)?;
        let mut shapes = BTreeMap::new();
        for name in npz.names() {
            let (shape, _) = npz.get_shape_and_dtype(name).map_err(format)?;
            shapes.insert(name.clone(), shape.dims().to_vec());
        }
        Ok(Self {
            file,
            shapes,
            values: Values::Npz(npz),
        })
    }

    /// Path or name, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Shape by name, in the order of names.
    pub fn shapes(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.shapes
    }

    /// The values of one tensor as f32.
    pub fn load(&self, name: &str, device: &Device) -> Result<Tensor> {
        let missing = || Error::Tensors {
            file: self.file.clone(),
            layout: "any",
            problems: vec![format!("missing `{name}`")],
        };
        match &self.values {
            Values::Npz(npz) => {
                let tensor = npz.get(name)?.ok_or_else(missing)?;
                Ok(tensor.to_dtype(DType::F32)?.to_device(device)?)
            }
            Values::Safetensors { bytes, entries } => {
                let (dtype, range) = entries.get(name).ok_or_else(missing)?;
                let bytes = &bytes.get()[range.clone()];
                let values: Vec<f32> = match dtype {
                    Dtype::F32 => each(bytes, f32::from_le_bytes),
                    Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
                    Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
                    other => {
                        return Err(Error::Dtype {
                            file: self.file.clone(),
                            tensor: name.to_owned(),
                            found: format!("{other:?}"),
                        });
                    }
                };
                Ok(Tensor::from_vec(
                    values,
                    self.shapes[name].as_slice(),
                    device,
                )?)
            }
        }
    }
}

fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (values, _) = bytes.as_chunks::<N>();
    values.iter().map(|&b| value(b)).collect()
}

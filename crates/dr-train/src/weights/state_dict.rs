//! [`StateDict`]: named tensors from a safetensors file or from one that PyTorch saved.

use crate::artifact::TensorEntry;
use crate::files::{FileError, at};
use half::{bf16, f16};
use pytorch_reader::{PytorchError, PytorchReader};
use safetensors::{SafeTensorError, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a file is no state dict.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StateDictError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// A damaged safetensors file.
    #[error("`{}`: not a sound safetensors file: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
    /// A damaged file of PyTorch, or one with more in it than tensors.
    #[error("`{}`: neither safetensors nor a sound state dict of PyTorch: {source}", path.display())]
    Pytorch {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<PytorchError>,
    },
    /// Nothing in it.
    #[error("`{}`: has no tensors: expected a state dict", .0.display())]
    Empty(PathBuf),
    /// Values that are no floats.
    #[error("`{}`: `{name}` is of type {found}: expected 16-, 32- or 64-bit floats", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
    },
}

/// The float tensors of a trained network by name.
#[derive(Clone, Debug)]
pub struct StateDict {
    /// Where they come from.
    pub path: PathBuf,
    /// All of them, in 32-bit floats.
    pub tensors: BTreeMap<String, TensorEntry>,
}

/// Counters that BatchNorms of PyTorch keep.
const COUNTER: &str = "num_batches_tracked";

/// What training scripts wrap a state dict in.
const WRAPPINGS: [&str; 3] = ["state_dict.", "model.", "module."];

impl StateDict {
    /// Reads a safetensors file, or one that `torch.save` wrote: a state dict, alone or under the key `state_dict` or
    /// `model`, or a whole model. Nothing in the file is executed. Counters of BatchNorms are left out.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged or has other values than floats.
    pub fn load(path: &Path) -> Result<Self, StateDictError> {
        let tensors = match is_safetensors(path).map_err(at(path))? {
            true => read_safetensors(path)?,
            false => pytorch(path)?,
        };
        let mut tensors: BTreeMap<_, _> =
            tensors.into_iter().filter(|(name, _)| !name.ends_with(COUNTER)).collect();
        if tensors.is_empty() {
            return Err(StateDictError::Empty(path.into()));
        }
        for wrapping in WRAPPINGS {
            if tensors.keys().all(|name| name.starts_with(wrapping)) {
                tensors = tensors
                    .into_iter()
                    .map(|(name, tensor)| (name[wrapping.len()..].to_string(), tensor))
                    .collect();
            }
        }
        Ok(Self { path: path.into(), tensors })
    }
}

/// Whether a file begins as safetensors do: the length of a header of JSON that fits into the file, and its brace.
fn is_safetensors(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut start = [0; 9];
    if len < 9 {
        return Ok(false);
    }
    file.read_exact(&mut start)?;
    let header = start[..8].iter().rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
    Ok(start[8] == b'{' && header <= len - 8)
}

/// The float tensors of a safetensors file.
pub(super) fn read_safetensors(path: &Path) -> Result<BTreeMap<String, TensorEntry>, StateDictError> {
    let bytes = std::fs::read(path).map_err(at(path))?;
    let wrong = |source| StateDictError::Safetensors { path: path.into(), source };
    let tensors = SafeTensors::deserialize(&bytes).map_err(wrong)?;
    let mut entries = BTreeMap::new();
    for (name, view) in tensors.iter() {
        if !name.ends_with(COUNTER) {
            let values = floats(path, name, &format!("{:?}", view.dtype()), view.data())?;
            entries.insert(name.to_string(), TensorEntry::f32(view.shape(), values));
        }
    }
    Ok(entries)
}

fn pytorch(path: &Path) -> Result<BTreeMap<String, TensorEntry>, StateDictError> {
    let wrong = |source| StateDictError::Pytorch { path: path.into(), source: Box::new(source) };
    let reader = PytorchReader::new(path).map_err(wrong)?;
    let mut entries = BTreeMap::new();
    for (name, tensor) in reader.into_tensors() {
        if !name.ends_with(COUNTER) {
            let bytes = tensor.read().map_err(at(path))?;
            let values = floats(path, &name, &format!("{:?}", tensor.dtype()), &bytes)?;
            entries.insert(name, TensorEntry::f32(tensor.shape(), values));
        }
    }
    Ok(entries)
}

/// Little-endian bytes of a type as 32-bit floats.
fn floats(path: &Path, name: &str, of: &str, bytes: &[u8]) -> Result<Vec<f32>, StateDictError> {
    fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks().0.iter().map(|&bytes| value(bytes)).collect()
    }
    match of {
        "F16" => Ok(each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32())),
        "BF16" => Ok(each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32())),
        "F32" => Ok(each(bytes, f32::from_le_bytes)),
        "F64" => Ok(each(bytes, |bytes| f64::from_le_bytes(bytes) as f32)),
        _ => Err(StateDictError::Type { path: path.into(), name: name.into(), found: of.into() }),
    }
}

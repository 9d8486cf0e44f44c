//! [`StateDict`]: named tensors from a safetensors file or from one that PyTorch saved.

use crate::artifact::TensorEntry;
use crate::files::{FileError, at};
use dr_runtime::refuse_lfs_pointer;
use half::{bf16, f16};
use pytorch_reader::{PytorchError, PytorchReader};
use safetensors::{SafeTensorError, SafeTensors};
use std::cmp::Reverse;
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
    #[error("`{}`: neither safetensors nor a sound state dict of PyTorch: {source}: expected tensors, alone or among numbers and texts", path.display())]
    Pytorch {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<PytorchError>,
    },
    /// Nothing in it.
    #[error("`{}`: has no tensors: expected a state dict", .0.display())]
    Empty(PathBuf),
    /// Weights that are codes of some other program.
    #[error("`{}`: `{name}`: weights that are quantized already: expected those in floats", path.display())]
    Quantized {
        /// The file.
        path: PathBuf,
        /// A tensor.
        name: String,
    },
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
#[derive(Clone, Debug, Default)]
pub struct StateDict {
    /// Where they come from.
    pub path: PathBuf,
    /// All of them, in 32-bit floats.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// What their names begin with in the file.
    pub below: String,
    /// The other tensors in the file.
    pub left: Vec<String>,
}

/// Counters that BatchNorms of PyTorch keep.
const COUNTER: &str = "num_batches_tracked";

/// Modules that compile, shard or recompute what is in them, and add nothing to it: their names may stand anywhere in others.
const WRAPPERS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// How a word of the keys of averaged weights begins.
const AVERAGED: [&str; 3] = ["ema", "swa", "average"];

/// The ends of the names of tensors whose values are quantized already (GPTQ, AWQ).
const QUANTIZED: [&str; 2] = [".qweight", ".qzeros"];

impl StateDict {
    /// Reads a safetensors file, or one that `torch.save` wrote: a state dict, a whole model, or what a training keeps, with the state
    /// dict under any keys and prefixes. Of several, averaged weights (EMA, SWA) are taken. Nothing in the file is executed. Counters of
    /// BatchNorms are left out.
    ///
    /// `ends` are the first and the last weight of the network, by which its tensors are found.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged or has other values than floats.
    pub fn load(path: &Path, ends: &[String]) -> Result<Self, StateDictError> {
        let mut dict = Self { path: path.into(), ..Self::default() };
        dict.tensors = read_tensors(path, |names| {
            dict.below = part(names, ends).or_else(|| shared(names)).unwrap_or_default().to_owned();
            let (inside, left): (Vec<_>, _) =
                names.iter().cloned().partition(|name| name.starts_with(&dict.below));
            dict.left = left;
            inside
        })?;
        let name = |name: String| name[dict.below.len()..].to_owned();
        dict.tensors = dict.tensors.into_iter().map(|(long, tensor)| (name(long), tensor)).collect();
        Ok(dict)
    }

    /// What was read and what was left, if there was something to leave.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        for name in &self.left {
            // The shortest beginning that nothing which was read has.
            let mut ends = name.match_indices('.').map(|(at, _)| at);
            let end = ends.find(|&at| !self.below.starts_with(&name[..=at])).unwrap_or(name.len());
            *groups.entry(&name[..end]).or_default() += 1;
        }
        let group = |(name, count): (&str, usize)| match count {
            1 => format!("`{name}`"),
            _ => format!("`{name}` ({count} tensors)"),
        };
        let left: Vec<_> = groups.into_iter().map(group).collect();
        let below = self.below.trim_end_matches('.');
        (!left.is_empty()).then(|| {
            format!("{}: read the tensors below `{below}`, left {}", self.path.display(), left.join(", "))
        })
    }
}

/// What the names of a network's tensors begin with, which has both `ends`; of several such parts the one with the most tensors, then
/// averaged weights, then the one of the shortest name. The names are sorted.
pub(super) fn part<'a>(names: &'a [String], ends: &[String]) -> Option<&'a str> {
    let has = |before: &str, end: &String| names.binary_search(&format!("{before}{end}")).is_ok();
    let before = names.iter().flat_map(|name| ends.iter().filter_map(|end| name.strip_suffix(end.as_str())));
    let parts = before.filter(|before| {
        (before.is_empty() || before.ends_with('.')) && ends.iter().all(|end| has(before, end))
    });
    parts.max_by_key(|before| {
        let mut words = before.split(['.', '_']);
        let averaged = words.any(|word| AVERAGED.iter().any(|start| word.starts_with(start)));
        (names.iter().filter(|name| name.starts_with(before)).count(), averaged, Reverse(before.len()))
    })
}

/// What all names begin with.
fn shared(names: &[String]) -> Option<&str> {
    let first = names.first()?;
    let mut befores = first.match_indices('.').rev().map(|(at, _)| &first[..=at]);
    befores.find(|before| names.iter().all(|name| name.starts_with(before)))
}

/// The tensors of a file that `pick` chooses from the names of all, which are sorted.
pub(super) fn read_tensors(
    path: &Path, pick: impl FnOnce(&[String]) -> Vec<String>,
) -> Result<BTreeMap<String, TensorEntry>, StateDictError> {
    refuse_lfs_pointer(path).map_err(at(path))?;
    match is_safetensors(path).map_err(at(path))? {
        true => read_safetensors(path, pick),
        false => read_pytorch(path, pick),
    }
}

/// The tensors in a file by the names that its network has without [`WRAPPERS`].
fn named(
    path: &Path, names: impl IntoIterator<Item = String>,
) -> Result<BTreeMap<String, String>, StateDictError> {
    let plain = |name: &str| {
        let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
        parts.collect::<Vec<_>>().join(".")
    };
    let names = names.into_iter().filter(|name| !name.ends_with(COUNTER));
    let names: BTreeMap<_, _> = names.map(|name| (plain(&name), name)).collect();
    if let Some(name) = names.keys().find(|name| QUANTIZED.iter().any(|end| name.ends_with(end))) {
        return Err(StateDictError::Quantized { path: path.into(), name: name.clone() });
    }
    match names.is_empty() {
        true => Err(StateDictError::Empty(path.into())),
        false => Ok(names),
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

fn read_safetensors(
    path: &Path, pick: impl FnOnce(&[String]) -> Vec<String>,
) -> Result<BTreeMap<String, TensorEntry>, StateDictError> {
    let bytes = std::fs::read(path).map_err(at(path))?;
    let wrong = |source| StateDictError::Safetensors { path: path.into(), source };
    let file = SafeTensors::deserialize(&bytes).map_err(wrong)?;
    let names = named(path, file.names().into_iter().map(str::to_owned))?;
    let read = |name: String| {
        let view = file.tensor(&names[&name]).map_err(wrong)?;
        let values = floats(path, &name, &format!("{:?}", view.dtype()), view.data())?;
        Ok((name, TensorEntry::f32(view.shape(), values)))
    };
    pick(&names.keys().cloned().collect::<Vec<_>>()).into_iter().map(read).collect()
}

fn read_pytorch(
    path: &Path, pick: impl FnOnce(&[String]) -> Vec<String>,
) -> Result<BTreeMap<String, TensorEntry>, StateDictError> {
    let wrong = |source| StateDictError::Pytorch { path: path.into(), source: Box::new(source) };
    let tensors = PytorchReader::new(path).map_err(wrong)?.into_tensors();
    let names = named(path, tensors.keys().cloned())?;
    let read = |name: String| {
        let tensor = &tensors[&names[&name]];
        let bytes = tensor.read().map_err(at(path))?;
        let values = floats(path, &name, &format!("{:?}", tensor.dtype()), &bytes)?;
        Ok((name, TensorEntry::f32(tensor.shape(), values)))
    };
    pick(&names.keys().cloned().collect::<Vec<_>>()).into_iter().map(read).collect()
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

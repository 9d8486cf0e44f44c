//! The saved model: one safetensors file that describes itself.
//!
//! Tensors are stored under names that the model gives them. The file's metadata has one key, [`METADATA_KEY`], whose
//! value is a [`Description`] as JSON. Its checksum covers every byte of the file, so that a damaged file does not
//! load:
//!
//! ```text
//! checksum = SHA-256 of the whole file, with the 64 characters of the checksum itself replaced by `0`
//! ```
//!
//! Files are replaced in one step ([`write_atomically`]): never half-written.

mod description;
mod error;
mod format;
mod network;
mod tensors;

pub use description::{ArtifactKind, Description, InputShape};
pub use error::ArtifactError;
pub use format::{FORMAT_VERSION, MAX_HEADER_BYTES, METADATA_KEY};
pub(crate) use network::parameter_shapes;
pub use tensors::{TensorEntry, TensorValues};

use crate::files::write_atomically;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The name of the tensor that holds the tokenizer of a language model: the bytes of its `tokenizer.json`.
pub const TOKENIZER: &str = "tokenizer.json";

/// A saved model: what it is, and its tensors by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Artifact {
    /// What the tensors are.
    pub description: Description,
    /// The tensors.
    pub tensors: BTreeMap<String, TensorEntry>,
}

impl Artifact {
    /// The content of the file. The description's `checksum` is computed here, whatever it was.
    ///
    /// # Errors
    /// If the description contradicts itself, or a tensor's shape does not match its values.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ArtifactError> {
        format::write(self)
    }

    /// Reads the content of a file.
    ///
    /// # Errors
    /// If it is anything else than an undamaged artifact of this format version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArtifactError> {
        format::read(bytes)
    }

    /// Writes the file in one step, over an older one of that name.
    ///
    /// # Errors
    /// Those of [`Artifact::to_bytes`] and of the file system.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        let bytes = self.to_bytes().map_err(|error| error.in_file(path))?;
        write_atomically(path, &bytes).map_err(|error| ArtifactError::Write(error).in_file(path))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or is anything else than an undamaged artifact of this format version.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        read_file(path).and_then(|bytes| Self::from_bytes(&bytes)).map_err(|error| error.in_file(path))
    }

    /// The bytes of all tensors, without the header and a tokenizer: the size of the model.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let of_network = self.tensors.iter().filter(|(name, _)| *name != TOKENIZER);
        of_network.map(|(_, entry)| entry.byte_len()).sum()
    }

    /// The values of a tensor of 32-bit floats.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<&[f32], ArtifactError> {
        let entry = self.entry(name, shape)?;
        match &entry.data {
            TensorValues::F32(values) => Ok(values),
            other => Err(ArtifactError::wrong_type(name, "F32", other)),
        }
    }

    /// The values of a tensor of bytes: quantized codes.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn i8(&self, name: &str, shape: &[usize]) -> Result<&[i8], ArtifactError> {
        let entry = self.entry(name, shape)?;
        match &entry.data {
            TensorValues::I8(values) => Ok(values),
            other => Err(ArtifactError::wrong_type(name, "I8", other)),
        }
    }

    /// The values of a tensor of 32-bit words: packed codes.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn u32(&self, name: &str, shape: &[usize]) -> Result<&[u32], ArtifactError> {
        let entry = self.entry(name, shape)?;
        match &entry.data {
            TensorValues::U32(values) => Ok(values),
            other => Err(ArtifactError::wrong_type(name, "U32", other)),
        }
    }

    /// The tokenizer of a language model, as `tokenizer.json` has it.
    ///
    /// # Errors
    /// If there is none.
    pub fn tokenizer(&self) -> Result<&[u8], ArtifactError> {
        match self.tensors.get(TOKENIZER).map(|entry| &entry.data) {
            Some(TensorValues::U8(json)) => Ok(json),
            Some(other) => Err(ArtifactError::wrong_type(TOKENIZER, "U8", other)),
            None => Err(ArtifactError::MissingTensor(TOKENIZER.to_owned())),
        }
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&TensorEntry, ArtifactError> {
        let entry = self.tensors.get(name).ok_or_else(|| ArtifactError::MissingTensor(name.to_owned()))?;
        if entry.shape != shape {
            return Err(ArtifactError::Shape {
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(entry)
    }
}

/// Reads a file whole, but only if it begins like a safetensors file of its size: a foreign file of any size is
/// turned away after 8 bytes.
fn read_file(path: &Path) -> Result<Vec<u8>, ArtifactError> {
    let mut file = File::open(path).map_err(ArtifactError::Read)?;
    let metadata = file.metadata().map_err(ArtifactError::Read)?;
    if !metadata.is_file() {
        return Err(ArtifactError::NotAFile);
    }
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).map_err(ArtifactError::Read)?;
    format::header_len(&bytes, metadata.len())?;
    file.read_to_end(&mut bytes).map_err(ArtifactError::Read)?;
    Ok(bytes)
}

//! GGUF, the files of llama.cpp and ggml: a Llama or Qwen3 in one file, with its tokenizer.
//!
//! | what | read | written |
//! |---|---|---|
//! | networks | `llama`, `qwen3` | the same |
//! | tensors | F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K | F32, F16, Q8_0, Q4_0, Q4_1 |
//! | tokenizers | `gpt2` (bytes, merges) with a known `tokenizer.ggml.pre`; `llama` (scores, bytes of unknown characters) | the same |
//! | rotary scaling | `linear`, and the factors of Llama 3 in `rope_freqs.weight` | the same |

mod blocks;
mod container;
mod export;
mod model;
mod tokenizer;

pub use blocks::BlockType;
pub use container::{Array, File, Tensor, Value};
pub use export::{ExportError, Exported, export};

use super::WeightsError;
use super::llama::{Llama, check_tokenizer};
use crate::artifact::{Artifact, TOKENIZER, TOKENIZER_CONFIG, TensorEntry};
use crate::files::at;
use crate::text::Tokenizer;
use dr_precision::PrecisionSet;
use dr_runtime::read_file;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;
use thiserror::Error;

/// Why a file is no model in GGUF.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GgufError {
    /// Another format.
    #[error("does not begin with `GGUF`")]
    Magic,
    /// A version that is not read, or another order of bytes.
    #[error("GGUF version {0}: expected 2 or 3, little-endian")]
    Version(u32),
    /// A file that is cut off or damaged.
    #[error("the file ends in {0}: expected more bytes")]
    End(String),
    /// A value that is missing, damaged or makes no sense.
    #[error("{key} is {found}: expected {expected}")]
    Value {
        /// Its key, or the name of a tensor.
        key: String,
        /// What is there.
        found: String,
        /// What can be.
        expected: String,
    },
    /// Tensors of types that are not read: names and types.
    #[error("{}: expected {}", types(.0), BlockType::ALL.map(BlockType::name).join(", "))]
    Types(Vec<(String, String)>),
}

fn types(tensors: &[(String, String)]) -> String {
    tensors.iter().map(|(name, kind)| format!("`{name}` is of type {kind}")).collect::<Vec<_>>().join("; ")
}

impl GgufError {
    fn value(key: impl fmt::Display, found: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self::Value { key: key.to_string(), found: found.to_string(), expected: expected.to_string() }
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value}"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "`{text}`"),
            Self::Array(_) => f.write_str("an array"),
        }
    }
}

/// Whether a file begins as GGUF does, whatever its name is.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    let begin = || {
        let mut magic = [0; container::MAGIC.len()];
        std::fs::File::open(path)?.read_exact(&mut magic)?;
        Ok::<_, std::io::Error>(magic)
    };
    path.is_file() && begin().is_ok_and(|magic| magic == container::MAGIC)
}

/// Reads a file as a float model; `precisions` are what it is to be quantized for. A file without a tokenizer gives a model without
/// one.
///
/// # Errors
/// A file that is damaged, another architecture, tensors of other types, and those that are missing, unknown or of another shape (all are
/// named), and a tokenizer of another kind.
pub fn load_gguf(path: &Path, precisions: PrecisionSet) -> Result<Artifact, WeightsError> {
    let bytes = read_file(path).map_err(at(path)).map_err(super::StateDictError::from)?;
    from_bytes(&bytes, path, precisions)
}

/// The same of the content of a file, which messages call `path`.
///
/// # Errors
/// Those of [`load_gguf`].
pub fn from_bytes(bytes: &[u8], path: &Path, precisions: PrecisionSet) -> Result<Artifact, WeightsError> {
    let wrong = |error| WeightsError::Gguf { path: path.into(), error };
    let file = File::parse(bytes).map_err(wrong)?;
    let config = model::config(&file).map_err(wrong)?;
    config.check().map_err(|error| WeightsError::Config { path: path.into(), error })?;
    let mut attachments = BTreeMap::new();
    if let Some(json) = tokenizer::read(&file).map_err(wrong)? {
        let json = json.to_string().into_bytes();
        check_tokenizer(&Tokenizer::from_json(&json)?, path, config.vocabulary)?;
        attachments.insert(TOKENIZER.to_owned(), TensorEntry::bytes(json));
        let config = tokenizer::config(&file).map_err(wrong)?.to_string().into_bytes();
        attachments.insert(TOKENIZER_CONFIG.to_owned(), TensorEntry::bytes(config));
    }
    let tensors = model::tensors(&file, &config);
    Llama { path, config, attachments, tensors, their_name: model::gguf_name }.artifact(precisions)
}

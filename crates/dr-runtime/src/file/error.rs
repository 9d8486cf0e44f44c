//! [`ArtifactError`].

use super::{ArtifactKind, CalibratedError, FORMAT_VERSION, MAX_HEADER_BYTES, METADATA_KEY, NestedError};
use dr_precision::{Precision, PrecisionSet};
use safetensors::SafeTensorError;
use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why an artifact cannot be read, written or used. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// Any of the others, and the file it is about.
    #[error("`{}`: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<ArtifactError>,
    },
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// The file cannot be written.
    #[error("cannot be written: {0}")]
    Write(io::Error),
    /// A folder, or something stranger.
    #[error("not a file: expected a .safetensors file")]
    NotAFile,
    /// The first bytes are not those of a safetensors file.
    #[error(
        "not a safetensors file, or cut off: expected a header of 2 to {MAX_HEADER_BYTES} bytes inside the file"
    )]
    Header,
    /// Not what the safetensors format allows.
    #[error("not a safetensors file, or damaged: {0}")]
    Safetensors(SafeTensorError),
    /// A safetensors file, but somebody else's.
    #[error(
        "a safetensors file, but not one of this program: expected metadata under the key `{METADATA_KEY}`"
    )]
    Foreign,
    /// Of another version of the format.
    #[error("format version {0}: expected 1 to {FORMAT_VERSION}, those that this program reads")]
    Version(u32),
    /// A description that contradicts itself or is not readable.
    #[error("damaged description: {0}")]
    Description(String),
    /// Some byte of the file is not what was written.
    #[error("damaged: its checksum is {found}, expected {expected} as recorded in it")]
    Checksum {
        /// What the file's bytes yield.
        found: String,
        /// What the description says.
        expected: String,
    },
    /// A tensor that the model needs is not there.
    #[error("tensor `{0}` is missing: expected by the model that the file describes")]
    MissingTensor(String),
    /// A tensor of the wrong shape.
    #[error("tensor `{name}` has shape {found:?}: expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape the model has.
        expected: Vec<usize>,
    },
    /// A tensor of the wrong type.
    #[error("tensor `{name}` has type {found}: expected {expected}")]
    Type {
        /// Its name.
        name: String,
        /// The type in the file.
        found: String,
        /// The type that was asked for.
        expected: &'static str,
    },
    /// A tensor with more or fewer values than its shape says.
    #[error("tensor `{name}` has {found} values: expected as many as its shape {shape:?} holds")]
    Length {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// How many values there are.
        found: usize,
    },
    /// A tensor that the model has no place for.
    #[error("tensor `{0}` is not part of the model: expected only those that the description calls for")]
    Superfluous(String),
    /// A code that its width cannot hold.
    #[error("tensor `{name}` holds the code {code}: expected {expected}")]
    Code {
        /// Its name.
        name: String,
        /// The first such code.
        code: i32,
        /// What codes there are.
        expected: String,
    },
    /// Tensors that are no nested weight.
    #[error("the weight `{name}` has {error}")]
    Nested {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: NestedError,
    },
    /// Tensors that are no calibrated layer.
    #[error("the layer `{name}` has {error}")]
    Calibrated {
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: CalibratedError,
    },
    /// A precision that the model does not have.
    #[error("the model has no precision {precision}: expected one of {expected}")]
    Precision {
        /// What was asked for.
        precision: Precision,
        /// What it has.
        expected: PrecisionSet,
    },
    /// A network for another task.
    #[error("a model for the task {found}: expected one for {expected}")]
    Task {
        /// What it is for.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// Another kind of model than was asked for.
    #[error("a {found} model: expected a {expected} one")]
    Kind {
        /// What it is.
        found: ArtifactKind,
        /// What it should be.
        expected: &'static str,
    },
    /// A model that no mixture of precisions was trained for.
    #[error("the model was not trained for mixed precision: expected one of `dr-train train --mixed`")]
    NotMixed,
    /// A plan that does not fit the model.
    #[error("{0}")]
    Plan(String),
    /// A network that is not known, in a file that says no more of it.
    #[error("the network `{0}` without a graph: expected a graph, or the name of a network of this program")]
    UnknownModel(String),
    /// A file of a version without graphs.
    #[error(
        "format version {0}, which has no graph: expected {FORMAT_VERSION}; `dr-train export --model OLD --out NEW` writes one"
    )]
    NoGraph(u32),
    /// Tensors and description do not make a network.
    #[error("not a network of this program: {0}")]
    Network(String),
}

impl ArtifactError {
    /// The same, naming the file it is about.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Self {
        Self::InFile { path: path.to_owned(), error: Box::new(self) }
    }

    /// What does not make a network.
    pub fn network(reason: impl Display) -> Self {
        Self::Network(reason.to_string())
    }
}

//! Weights that were trained elsewhere: a state dict with torchvision's names, an ONNX file, a folder of Hugging Face or a GGUF file
//! becomes a float model.

mod backbone;
pub mod gguf;
mod hugging_face;
mod llama;
mod onnx;
mod state_dict;

pub use backbone::{Backbone, Started};
pub use gguf::load_gguf;
pub use hugging_face::load_hugging_face;
pub use llama::{is_language_model, load_language_model};
pub use onnx::{USUAL_IMAGE, is_onnx, load_onnx};
pub use state_dict::{StateDict, StateDictError};

use crate::artifact::{
    Artifact, ArtifactError, ArtifactKind, Described, Description, SavedModel, TensorEntry, TensorValues,
};
use crate::models::{LlamaConfigError, ModelKind, Sizes};
use std::collections::BTreeMap;
use std::path::PathBuf;
use thiserror::Error;

/// Why a state dict is no model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file.
    #[error(transparent)]
    File(#[from] StateDictError),
    /// Tensors that do not fit the network.
    #[error("`{}`: {}: {}", path.display(), model, list(.problems))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The network.
        model: String,
        /// All of them.
        problems: Vec<Problem>,
    },
    /// Not one tensor that the network has.
    #[error("`{}`: {model}: has no tensor of it: expected torchvision's names, such as `{expected}`", path.display())]
    OtherNetwork {
        /// The file.
        path: PathBuf,
        /// The network.
        model: String,
        /// A name that was expected.
        expected: String,
    },
    /// Fewer values than the network has.
    #[error("`{}`: {model}: has {found} values: expected at least {expected}, for the sizes of its layers", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The network.
        model: String,
        /// Values in it.
        found: usize,
        /// Values of the largest layer.
        expected: usize,
    },
    /// The sizes of a language model.
    #[error("`{}`: {error}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: LlamaConfigError,
    },
    /// A folder without weights.
    #[error("`{}`: has no weights: expected {}", path.display(), hugging_face::WEIGHTS.join(", "))]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// The list of the files with weights.
    #[error("`{}`: {reason}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A GGUF file.
    #[error("`{}`: {error}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: gguf::GgufError,
    },
    /// A file that is none of ONNX, or damaged.
    #[error(transparent)]
    OnnxRead(#[from] Box<dr_runtime::onnx::OnnxReadError>),
    /// A network of an ONNX file.
    #[error("`{}`: {error}", path.display())]
    Onnx {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<dr_runtime::onnx::OnnxImportError>,
    },
    /// A network of an ONNX file that does not run.
    #[error("`{}`: images of {} rows and {} columns: {error}: expected the size that the network is for (--image-size)", path.display(), size[0], size[1])]
    Run {
        /// The file.
        path: PathBuf,
        /// Rows and columns.
        size: [usize; 2],
        /// What goes wrong.
        error: Box<dr_runtime::RuntimeError>,
    },
    /// The tokenizer, or how tokens are to be drawn.
    #[error(transparent)]
    Tokenizer(#[from] dr_runtime::text::TextError),
    /// The model.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// A tensor that does not fit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// The network has it, the file does not.
    #[error("`{0}` is missing")]
    Missing(String),
    /// The file has it, the network does not.
    #[error("`{0}` is unknown")]
    Unknown(String),
    /// Both have it, in other shapes.
    #[error("`{name}` is {found:?}: expected {expected:?}")]
    Shape {
        /// Its name in the file.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// In the network.
        expected: Vec<usize>,
    },
    /// A number that no trained network has.
    #[error("`{name}` has {found} at position {at}: expected {expected}")]
    Number {
        /// Its name in the file.
        name: String,
        /// Where, of all its numbers.
        at: usize,
        /// The number.
        found: String,
        /// What can be.
        expected: &'static str,
    },
}

/// How the names of variances end that BatchNorms of PyTorch keep.
const VARIANCE: &str = "running_var";

/// Whether a tensor, perhaps of variances, has numbers that a trained network can have.
fn check_numbers(name: &str, numbers: &[f32], variances: bool) -> Result<(), Problem> {
    let (fits, expected): (fn(&f32) -> bool, _) = match variances {
        true => (|number| number.is_finite() && *number >= 0.0, "finite numbers, none below 0"),
        false => (|number| number.is_finite(), "finite numbers"),
    };
    match numbers.iter().position(|number| !fits(number)) {
        Some(at) => {
            Err(Problem::Number { name: name.to_owned(), at, found: numbers[at].to_string(), expected })
        }
        None => Ok(()),
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Takes a tensor out of a file's, if it is there, has the network's shape and numbers that can be.
fn take(
    theirs: &mut BTreeMap<String, TensorEntry>, name: String, expected: &[usize],
) -> Result<TensorEntry, Problem> {
    match theirs.remove(&name) {
        Some(entry) if entry.shape == expected => match &entry.data {
            TensorValues::F32(numbers) => {
                check_numbers(&name, numbers, name.ends_with(VARIANCE)).map(|()| entry)
            }
            _ => Ok(entry),
        },
        Some(TensorEntry { shape: found, .. }) => {
            Err(Problem::Shape { name, found, expected: expected.to_vec() })
        }
        None => Err(Problem::Missing(name)),
    }
}

/// A float model made of a state dict.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The model.
    pub artifact: Artifact,
    /// The last layer's tensors that were left out as they are for other classes: it starts from scratch.
    pub new_head: Vec<Problem>,
}

/// The parts of the network that may differ: they are for other classes.
const HEAD: &str = "head.";

/// The first and the last weight of a network, by the names of others. A state dict has at least one of them.
#[must_use]
pub fn ends(kind: &dyn ModelKind) -> [String; 2] {
    ["stem.weight", "head.weight"].map(|name| kind.state_dict_name(name).unwrap_or_default())
}

/// The network of `kind` that `description` says, with the tensors of a state dict that has [its names](ModelKind::state_dict_name).
///
/// The last layer is left as it was initialised if it is for another number of classes.
///
/// # Errors
/// [`WeightsError::Mismatch`] with every tensor that is missing, unknown, or of another shape.
pub fn import(
    dict: StateDict, kind: &dyn ModelKind, description: Description,
) -> Result<Imported, WeightsError> {
    let StateDict { path, tensors: mut theirs, .. } = dict;
    let description = Description { kind: ArtifactKind::Float, ..description };
    let sizes = description.sizes();
    let model = kind.name().to_owned();
    let ends = ends(kind);
    if !ends.iter().any(|name| theirs.contains_key(name)) {
        let [expected, _] = ends;
        return Err(WeightsError::OtherNetwork { path, model, expected });
    }
    // No memory is taken for a network that cannot be in the file.
    description.check()?;
    let (expected, found) = (
        kind.largest_weight(&Sizes { classes: 1, ..sizes }),
        theirs.values().map(|tensor| tensor.data.len()).sum::<usize>(),
    );
    if found < expected {
        return Err(WeightsError::Size { path, model, found, expected });
    }
    let network = kind.init(&sizes, description.seed, &burn::tensor::Device::flex());
    let network = network.map_err(ArtifactError::network)?;
    let initial = Artifact::of(&network, description)?;
    let (mut problems, mut new_head) = (vec![], vec![]);
    let mut tensors: BTreeMap<String, TensorEntry> = BTreeMap::new();
    for (name, own) in initial.tensors {
        let Some(their_name) = kind.state_dict_name(&name) else { continue };
        let entry = take(&mut theirs, their_name, &own.shape).unwrap_or_else(|problem| {
            let same_inputs = |shape: &[usize]| shape.get(1..) == own.shape.get(1..);
            let other_classes = match &problem {
                Problem::Shape { found, .. } => name.starts_with(HEAD) && same_inputs(found),
                _ => false,
            };
            let list = if other_classes { &mut new_head } else { &mut problems };
            list.push(problem);
            own.clone()
        });
        tensors.insert(name, entry);
    }
    problems.extend(theirs.into_keys().map(Problem::Unknown));
    match problems.is_empty() {
        true => Ok(Imported { artifact: Artifact { tensors, ..initial }, new_head }),
        false => Err(WeightsError::Mismatch { path, model, problems }),
    }
}

//! [`Backbone`]: the convolutions of a trained classifier, which networks that say something about every part of an image start from.

use super::{Problem, StateDict, WeightsError, ends, take};
use crate::artifact::{
    Artifact, ArtifactError, ArtifactKind, Described, Description, SavedModel, TensorEntry,
};
use crate::config::task::CLASSIFY;
use crate::models::ModelKind;
use burn::tensor::Device;
use dr_runtime::file::Normalization;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How the names of its tensors begin in networks that stand on it.
const PREFIX: &str = "pyramid.";

/// The tensors of the layer for classes, which nothing else has a use for.
const HEAD: [&str; 2] = ["head.weight", "head.bias"];

/// The tensors of a trained classifier.
#[derive(Clone)]
pub struct Backbone {
    path: PathBuf,
    kind: &'static dyn ModelKind,
    /// Whether they are called as in this crate, or else as [the network](ModelKind::state_dict_name) says.
    is_own: bool,
    tensors: BTreeMap<String, TensorEntry>,
    /// What was done to the pixels that it learned from.
    pub normalization: Normalization,
}

/// A network that starts from a backbone.
#[derive(Clone, Debug)]
pub struct Started {
    /// A float model.
    pub artifact: Artifact,
    /// The names of the tensors that come from the backbone.
    pub taken: Vec<String>,
    /// Those in its file that there is no use for.
    pub left: Vec<String>,
}

impl Backbone {
    /// Reads a float model of this crate that classifies, or a state dict with [the network's names](ModelKind::state_dict_name), whose images are normalised
    /// as ImageNet's; for images of so many channels.
    ///
    /// # Errors
    /// A file that cannot be read, or that has another kind of model.
    pub fn load(path: &Path, kind: &'static dyn ModelKind, channels: usize) -> Result<Self, WeightsError> {
        let own = own(path)?;
        let (is_own, path) = (own.is_some(), path.to_owned());
        let (tensors, normalization) = match own {
            Some(Artifact { tensors, description, .. }) => (tensors, description.normalization),
            None => (StateDict::load(&path, &ends(kind))?.tensors, Normalization::imagenet()),
        };
        let backbone = Self { path, kind, is_own, tensors, normalization };
        let [stem, _] = ends(kind);
        let stem = if is_own { "stem.weight" } else { stem.as_str() };
        match backbone.tensors.get(stem).map(|tensor| &tensor.shape[..]) {
            Some(&[outputs, found, rows, columns]) if found != channels => {
                let [found, expected] = [found, channels].map(|inputs| vec![outputs, inputs, rows, columns]);
                Err(backbone.mismatch(vec![Problem::Shape { name: stem.to_owned(), found, expected }]))
            }
            _ => Ok(backbone),
        }
    }

    /// The network that `description` says, with what it has of this; all other layers start anew.
    ///
    /// # Errors
    /// [`WeightsError::Mismatch`] with every tensor of the backbone that is missing, unknown, or of another shape.
    pub fn start(&self, description: Description) -> Result<Started, WeightsError> {
        let description = Description { kind: ArtifactKind::Float, ..description };
        let network = self.kind.init(&description.sizes(), description.seed, &Device::flex());
        let mut artifact = Artifact::of(&network.map_err(ArtifactError::network)?, description)?;
        let (mut theirs, mut problems, mut taken) = (self.tensors.clone(), vec![], vec![]);
        for (name, own) in &mut artifact.tensors {
            let Some(in_file) = name.strip_prefix(PREFIX).and_then(|name| self.name(name)) else { continue };
            match take(&mut theirs, in_file, &own.shape) {
                Ok(entry) => {
                    *own = entry;
                    taken.push(name.clone());
                }
                Err(problem) => problems.push(problem),
            }
        }
        let heads = HEAD.map(|name| self.name(name).unwrap_or_default());
        let (left, unknown): (Vec<String>, Vec<String>) =
            theirs.into_keys().partition(|name| heads.contains(name));
        problems.extend(unknown.into_iter().map(Problem::Unknown));
        match problems.is_empty() {
            true => Ok(Started { artifact, taken, left }),
            false => Err(self.mismatch(problems)),
        }
    }

    /// What the file calls a tensor of the classifier; `None` if that has no such tensor.
    fn name(&self, name: &str) -> Option<String> {
        let in_dict = self.kind.state_dict_name(name)?;
        Some(if self.is_own { name.to_owned() } else { in_dict })
    }

    fn mismatch(&self, problems: Vec<Problem>) -> WeightsError {
        WeightsError::Mismatch { path: self.path.clone(), model: self.kind.name().to_owned(), problems }
    }
}

/// The model of a file of this crate; `None` of other files.
fn own(path: &Path) -> Result<Option<Artifact>, WeightsError> {
    let artifact = match Artifact::open(path) {
        Err(ArtifactError::InFile { error, .. })
            if matches!(
                *error,
                ArtifactError::Foreign | ArtifactError::Header | ArtifactError::Safetensors(_)
            ) =>
        {
            return Ok(None);
        }
        artifact => artifact?,
    };
    let found = artifact.description.kind;
    let is_float = match found {
        ArtifactKind::Float => Ok(()),
        _ => Err(ArtifactError::Kind { found, expected: "float" }),
    };
    let checked = is_float.and_then(|()| artifact.description.check_task(CLASSIFY));
    Ok(Some(checked.map(|()| artifact).map_err(|error| error.in_file(path))?))
}

impl std::fmt::Display for Started {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let left = match &self.left[..] {
            [] => "left nothing".to_owned(),
            names => format!(
                "left {}",
                names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            ),
        };
        write!(f, "took {} tensors of the backbone, {left}; the layers after it start anew", self.taken.len())
    }
}

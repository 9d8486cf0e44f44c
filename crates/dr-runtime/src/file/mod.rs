//! The saved network: one safetensors file that describes itself.
//!
//! Tensors are stored under names that the model gives them. The file's metadata has one key, [`METADATA_KEY`], whose
//! value is a [`Description`] as JSON. Its checksum covers every byte of the file, so that a damaged file does not
//! load:
//!
//! ```text
//! checksum = SHA-256 of the whole file, with the 64 characters of the checksum itself replaced by `0`
//! ```
//!

mod calibrated;
mod description;
mod error;
mod format;
mod nested;
mod plan;
mod tensors;

pub use calibrated::{CalibratedError, CalibratedLayer, CalibratedPass};
pub use description::{
    ArtifactKind, BatchNormKind, ChannelOrder, Description, InputShape, LayerFormat, MixedNorm,
    Normalization, Resize,
};
pub use error::ArtifactError;
pub use format::{FIRST_VERSION, FORMAT_VERSION, MAX_HEADER_BYTES, METADATA_KEY};
pub use nested::{Affine, NarrowGrid, NestedError, NestedWeight, STORED, StoredGrid};
pub use plan::PlanFitError;
pub(crate) use tensors::elements;
pub use tensors::{Element, TensorEntry, TensorValues, Values};

use crate::graph::{Embedding, Graph, Layer, LayerKind};
use crate::refuse_lfs_pointer;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use tensors::Content;

/// The tokenizer of a language model.
pub const TOKENIZER: &str = "tokenizer.json";

/// The special tokens of a language model, and usually its chat template.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The chat template of a language model.
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// How tokens of a language model are to be drawn, and which of them end a text.
pub const GENERATION_CONFIG: &str = "generation_config.json";

/// The files of a language model's folder that its artifact can have besides the network, each as it is, in a tensor of this name.
pub const ATTACHMENTS: [&str; 4] = [TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE, GENERATION_CONFIG];

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
        Self::of_content(Content::Bytes(bytes.to_vec()), |_| ()).map(|(artifact, ())| artifact)
    }

    /// Reads a file. Its tensors stay where they are, in the file: it must not be written to as long as they are used (files that this
    /// project writes are replaced as a whole).
    ///
    /// # Errors
    /// If it cannot be read, or is anything else than an undamaged file of a format version that is known.
    pub fn load(path: &Path) -> Result<Self, ArtifactError> {
        Self::load_with(path, |_| ()).map(|(artifact, ())| artifact)
    }

    /// The same, with something that is made of the file while its checksum is computed: `|artifact| Network::load(artifact, precision)`, which is the sooner ready. It is
    /// dropped if the file is damaged.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    pub fn load_with<T>(path: &Path, make: impl FnOnce(&Self) -> T) -> Result<(Self, T), ArtifactError> {
        content(path).and_then(|content| Self::of_content(content, make)).map_err(|error| error.in_file(path))
    }

    fn of_content<T>(content: Content, make: impl FnOnce(&Self) -> T) -> Result<(Self, T), ArtifactError> {
        let content = Arc::new(content);
        let description = format::description(&content)?;
        let checksum = description.checksum.clone();
        // Not in a thread of Rayon's: whoever reads a file may still be going to say how many these are.
        std::thread::scope(|scope| {
            let verified = scope.spawn(|| format::verify(&content, &checksum));
            let made = format::tensors(&content, description).map(|artifact| {
                let made = make(&artifact);
                (artifact, made)
            });
            verified.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            made
        })
    }

    /// What the network computes.
    ///
    /// # Errors
    /// A file of the first version, which does not say it.
    pub fn graph(&self) -> Result<&Graph, ArtifactError> {
        let version = self.description.format_version;
        self.description.graph.as_ref().ok_or(ArtifactError::NoGraph(version))
    }

    /// The bytes of all tensors, without the header and [`ATTACHMENTS`]: the size of the model.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        let of_network = self.tensors.iter().filter(|(name, _)| !ATTACHMENTS.contains(&name.as_str()));
        of_network.map(|(_, entry)| entry.byte_len()).sum()
    }

    /// The values of a tensor, to be kept.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn values<T: Element>(&self, name: &str, shape: &[usize]) -> Result<Values<T>, ArtifactError> {
        self.find(name, shape).cloned()
    }

    /// The values of a tensor of 32-bit floats.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<&[f32], ArtifactError> {
        self.find::<f32>(name, shape).map(|values| &**values)
    }

    /// The nested weights of all layers and tables, by the names of these.
    ///
    /// # Errors
    /// Another kind of file, tensors that are missing or of another type or shape, and grids that make no numbers.
    pub fn nested(&self) -> Result<BTreeMap<String, NestedWeight>, ArtifactError> {
        let (description, graph) = (&self.description, self.graph()?);
        let (ArtifactKind::Nested, Some(group)) = (description.kind, description.group_size) else {
            return Err(ArtifactError::Kind { found: description.kind, expected: "nested" });
        };
        if let Some(plan) = &description.plan {
            description.layers_of_plan(graph, plan)?;
        }
        let layers = graph.layers().iter().enumerate().filter_map(|(at, layer)| match layer.kind {
            LayerKind::Linear { features: [inputs, outputs] } => {
                let edge = !description.switch_edge && graph.is_edge(at);
                let widths = if edge { vec![STORED] } else { description.precisions.weights() };
                Some((&layer.name, [outputs, inputs], widths))
            }
            LayerKind::Conv2d { .. } => None,
        });
        let tables = graph.embeddings().iter().filter_map(|table| match table {
            Embedding::Own { name, vocabulary, features } => {
                Some((name, [*vocabulary, *features], vec![STORED]))
            }
            Embedding::Layer(_) => None,
        });
        let read = |(name, shape, widths): (&String, _, Vec<_>)| {
            let weight = NestedWeight::read(self, name, shape, group, &widths);
            weight.map(|weight| (name.clone(), weight))
        };
        layers.chain(tables).map(read).collect()
    }

    /// The calibrated layers, in the order of the graph; `None` for those in floats.
    ///
    /// # Errors
    /// Another kind of file, tensors that are missing or of another type or shape, and scales that make no numbers.
    pub fn calibrated(&self) -> Result<Vec<Option<CalibratedLayer>>, ArtifactError> {
        let (description, graph) = (&self.description, self.graph()?);
        if description.kind != ArtifactKind::Calibrated {
            return Err(ArtifactError::Kind { found: description.kind, expected: "calibrated" });
        }
        let read = |(at, layer): (usize, &Layer)| {
            if description.in_floats.contains(&layer.name) {
                return Ok(None);
            }
            let widths = |precision| (precision, description.calibrated_widths(graph, at, precision));
            let widths: Vec<_> = description.precisions.iter().map(widths).collect();
            CalibratedLayer::read(self, layer, &widths).map(Some)
        };
        graph.layers().iter().enumerate().map(read).collect()
    }

    /// The tokenizer of a language model, as `tokenizer.json` has it.
    ///
    /// # Errors
    /// If there is none.
    pub fn tokenizer(&self) -> Result<&[u8], ArtifactError> {
        self.attachment(TOKENIZER)?.ok_or_else(|| ArtifactError::MissingTensor(TOKENIZER.to_owned()))
    }

    /// One of the [`ATTACHMENTS`], if it is there.
    ///
    /// # Errors
    /// A tensor of this name that is no file.
    pub fn attachment(&self, name: &str) -> Result<Option<&[u8]>, ArtifactError> {
        let Some(entry) = self.tensors.get(name) else { return Ok(None) };
        self.find::<u8>(name, &entry.shape).map(|values| Some(&**values))
    }

    /// All [`ATTACHMENTS`] that are there, as tensors.
    pub fn attachments(&self) -> impl Iterator<Item = (String, TensorEntry)> {
        let find = |name: &str| Some((name.to_owned(), self.tensors.get(name)?.clone()));
        ATTACHMENTS.into_iter().filter_map(find)
    }

    fn find<T: Element>(&self, name: &str, shape: &[usize]) -> Result<&Values<T>, ArtifactError> {
        let entry = self.tensors.get(name).ok_or_else(|| ArtifactError::MissingTensor(name.to_owned()))?;
        entry.check(name)?;
        if entry.shape != shape {
            let (found, expected) = (entry.shape.clone(), shape.to_vec());
            return Err(ArtifactError::Shape { name: name.to_owned(), found, expected });
        }
        T::of(&entry.data).ok_or_else(|| ArtifactError::Type {
            name: name.to_owned(),
            found: entry.data.type_name().to_owned(),
            expected: T::NAME,
        })
    }
}

/// The content of a file, but only if it begins like a safetensors file of its size: a foreign file of any size is turned away after 8
/// bytes.
fn content(path: &Path) -> Result<Content, ArtifactError> {
    let mut file = File::open(path).map_err(ArtifactError::Read)?;
    let metadata = file.metadata().map_err(ArtifactError::Read)?;
    if !metadata.is_file() {
        return Err(ArtifactError::NotAFile);
    }
    refuse_lfs_pointer(path).map_err(ArtifactError::Read)?;
    let mut bytes = Vec::new();
    file.by_ref().take(8).read_to_end(&mut bytes).map_err(ArtifactError::Read)?;
    format::header_len(&bytes, metadata.len())?;
    // SAFETY: The file is only read. Who changes it meanwhile breaks the promise that `load` asks for.
    if let Ok(map) = unsafe { memmap2::Mmap::map(&file) } {
        return Ok(Content::Mapped(map));
    }
    file.read_to_end(&mut bytes).map_err(ArtifactError::Read)?;
    Ok(Content::Bytes(bytes))
}

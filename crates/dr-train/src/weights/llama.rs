//! What the formats of language models have in common: tensors under the names of others become a float model.

use super::gguf::{is_gguf, load_gguf};
use super::hugging_face::{is_hugging_face, load_hugging_face};
use super::{Problem, WeightsError, take};
use crate::artifact::{Artifact, ArtifactError, Described, Description, TensorEntry, parameter_shapes};
use crate::models::LlamaConfig;
use crate::nn::Model;
use crate::note::note;
use crate::text::Tokenizer;
use burn::tensor::Device;
use dr_precision::PrecisionSet;
use std::collections::BTreeMap;
use std::path::Path;

/// Whether a path is a language model of others: a folder of Hugging Face, or a file that begins as GGUF does.
#[must_use]
pub fn is_language_model(path: &Path) -> bool {
    is_hugging_face(path) || is_gguf(path)
}

/// Reads a folder of Hugging Face or a GGUF file as a float model; `precisions` are what it is to be quantized for.
///
/// # Errors
/// Those of [`load_hugging_face`] and [`load_gguf`].
pub fn load_language_model(path: &Path, precisions: PrecisionSet) -> Result<Artifact, WeightsError> {
    if path.is_file() { load_gguf(path, precisions) } else { load_hugging_face(path, precisions) }
}

/// A Llama as a format has it.
pub(super) struct Llama<'a> {
    pub path: &'a Path,
    pub config: LlamaConfig,
    /// The tokenizer, and what else the file is to have besides tensors.
    pub attachments: BTreeMap<String, TensorEntry>,
    /// By the names of the format.
    pub tensors: BTreeMap<String, TensorEntry>,
    /// What the format calls a parameter.
    pub their_name: fn(&str) -> String,
}

impl Llama<'_> {
    /// The float model.
    pub fn artifact(self, precisions: PrecisionSet) -> Result<Artifact, WeightsError> {
        let Self { path, config, attachments, tensors: mut theirs, their_name } = self;
        // No memory is taken for much more than the files hold; what is near enough is compared tensor by tensor.
        let (found, expected) =
            (theirs.values().map(|tensor| tensor.data.len()).sum::<usize>(), config.elements() / SLACK);
        if found < expected {
            let model = "llama".to_owned();
            return Err(WeightsError::Size { path: path.into(), model, found, expected });
        }
        let network = Model::trace(&config.zeros(&Device::flex())).map_err(ArtifactError::network)?;
        let (embedding, head) = (their_name(EMBEDDING), their_name(HEAD));
        let mut problems = vec![];
        let mut tensors: BTreeMap<String, TensorEntry> = BTreeMap::new();
        for (name, expected) in parameter_shapes(&network) {
            let mut their_name = their_name(&name);
            // A tied head is either not there or the same as the embedding.
            if config.tied
                && their_name == head
                && !theirs.contains_key(&head)
                && theirs.contains_key(&embedding)
            {
                their_name.clone_from(&embedding);
            }
            match take(&mut theirs, their_name, &expected) {
                Ok(entry) => drop(tensors.insert(name, entry)),
                Err(problem) => problems.push(problem),
            }
        }
        let is_used = |name: &String| {
            let derived = name.ends_with(".rotary_emb.inv_freq") || (config.tied && *name == embedding);
            !derived
        };
        problems.extend(theirs.into_keys().filter(is_used).map(Problem::Unknown));
        if !problems.is_empty() {
            return Err(WeightsError::Mismatch { path: path.into(), model: "llama".into(), problems });
        }
        tensors.extend(attachments);
        let graph = Some(network.graph().clone());
        Ok(Artifact {
            description: Description { graph, ..Description::of_language(&config, precisions) },
            tensors,
        })
    }
}

/// Whether a tokenizer, which is in the file `path`, is for a model of so many tokens; says so if it has a few more.
///
/// # Errors
/// Those of [`Tokenizer::unknown_to`].
pub(super) fn check_tokenizer(
    tokenizer: &Tokenizer, path: &Path, vocabulary: usize,
) -> Result<(), WeightsError> {
    let unknown = tokenizer.unknown_to(vocabulary)?;
    if unknown > 0 {
        let found = tokenizer.vocabulary();
        note(format_args!(
            "{}: the tokenizer has {found} tokens, the model {vocabulary}: texts that need one of the other {unknown} are refused",
            path.display()
        ));
    }
    Ok(())
}

/// How many times more elements than the files have are still compared one by one.
const SLACK: usize = 4;

/// The parameters that may be one.
pub(super) const EMBEDDING: &str = "embed_tokens.weight";
pub(super) const HEAD: &str = "lm_head.weight";

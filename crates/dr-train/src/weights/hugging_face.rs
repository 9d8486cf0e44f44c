//! A folder of Hugging Face with a language model: `config.json`, `tokenizer.json`, and the weights in one safetensors file or several.

use super::state_dict::{StateDictError, read_safetensors};
use super::{Problem, WeightsError, take};
use crate::artifact::{
    Artifact, ArtifactError, Described, Description, TOKENIZER, TensorEntry, parameter_shapes,
};
use crate::files::at;
use crate::models::LlamaConfig;
use crate::nn::Model;
use crate::text::Tokenizer;
use burn::tensor::Device;
use dr_precision::PrecisionSet;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Reads the folder as a float model; `precisions` are what it is to be quantized for. A folder without `tokenizer.json` gives
/// a model without one.
///
/// # Errors
/// A file that is missing or damaged, another architecture, tensors that are missing, unknown or of another shape (all are
/// named), and a tokenizer of more tokens than the model has.
pub fn load_hugging_face(dir: &Path, precisions: PrecisionSet) -> Result<Artifact, WeightsError> {
    let in_dir = |error| WeightsError::Config { path: dir.join(CONFIG), error };
    let mut config = LlamaConfig::from_hugging_face(&text(&dir.join(CONFIG))?).map_err(in_dir)?;
    let tokenizer = match dir.join(TOKENIZER) {
        path if path.is_file() => Some(Tokenizer::load(&path)?),
        _ => None,
    };
    if let Some(tokenizer) = &tokenizer {
        tokenizer.check(config.vocabulary)?;
    }
    let mut theirs = BTreeMap::new();
    for file in shards(dir)? {
        theirs.extend(read_safetensors(&dir.join(file))?);
    }
    // With a head of its own a model is not tied, whatever its configuration says: so does transformers.
    let [embedding, head] = [EMBEDDING, HEAD].map(|name| theirs.get(name));
    config.tied &= embedding.is_none() || head.is_none() || embedding == head;
    // No memory is taken for much more than the files hold; what is near enough is compared tensor by tensor.
    let (found, expected) =
        (theirs.values().map(|tensor| tensor.data.len()).sum::<usize>(), config.elements() / SLACK);
    if found < expected {
        let model = "llama".to_owned();
        return Err(WeightsError::Size { path: dir.into(), model, found, expected });
    }
    let network = Model::trace(&config.zeros(&Device::flex())).map_err(ArtifactError::network)?;
    let mut problems = vec![];
    let mut tensors: BTreeMap<String, TensorEntry> = BTreeMap::new();
    for (name, expected) in parameter_shapes(&network) {
        let mut their_name = hugging_face_name(&name);
        // A tied head is either not there or the same as the embedding.
        if config.tied && name == HEAD && !theirs.contains_key(HEAD) && theirs.contains_key(EMBEDDING) {
            their_name = EMBEDDING.to_owned();
        }
        match take(&mut theirs, their_name, &expected) {
            Ok(entry) => drop(tensors.insert(name, entry)),
            Err(problem) => problems.push(problem),
        }
    }
    let is_used = |name: &String| {
        let derived = name.ends_with(".rotary_emb.inv_freq") || (config.tied && name == EMBEDDING);
        !derived
    };
    problems.extend(theirs.into_keys().filter(is_used).map(Problem::Unknown));
    if !problems.is_empty() {
        return Err(WeightsError::Mismatch { path: dir.into(), model: "llama".into(), problems });
    }
    tensors
        .extend(tokenizer.map(|tokenizer| (TOKENIZER.into(), TensorEntry::bytes(tokenizer.json().to_vec()))));
    let graph = Some(network.graph().clone());
    Ok(Artifact {
        description: Description { graph, ..Description::of_language(&config, precisions) },
        tensors,
    })
}

/// How many times more elements than the files have are still compared one by one.
const SLACK: usize = 4;

const CONFIG: &str = "config.json";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// What Hugging Face calls a parameter.
fn hugging_face_name(name: &str) -> String {
    let name = name.strip_suffix(".gamma").map_or_else(|| name.to_owned(), |norm| format!("{norm}.weight"));
    if name == HEAD { name } else { format!("model.{name}") }
}

/// The files with the weights.
fn shards(dir: &Path) -> Result<BTreeSet<String>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = dir.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(BTreeSet::from(["model.safetensors".to_owned()]));
    }
    let wrong = |reason: String| WeightsError::Index { path: index.clone(), reason };
    let Index { weight_map } =
        serde_json::from_str(&text(&index)?).map_err(|error| wrong(error.to_string()))?;
    let files: BTreeSet<String> = weight_map.into_values().collect();
    // Names, not paths: nothing outside of the folder is read.
    match files.iter().find(|file| Path::new(file).file_name().is_none_or(|name| name != file.as_str())) {
        Some(path) => Err(wrong(format!("`{path}`: expected the name of a file in the folder"))),
        None => Ok(files),
    }
}

fn text(path: &Path) -> Result<String, WeightsError> {
    let text = std::fs::read_to_string(path).map_err(at(path));
    Ok(text.map_err(StateDictError::from)?)
}

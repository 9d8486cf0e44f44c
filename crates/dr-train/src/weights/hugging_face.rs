//! A folder of Hugging Face with a language model: `config.json`, the weights in one file or several, safetensors or those of PyTorch, and
//! [`ATTACHMENTS`].

use super::WeightsError;
use super::llama::{EMBEDDING, HEAD, Llama, check_tokenizer};
use super::state_dict::{StateDictError, part, read_tensors};
use crate::artifact::{ATTACHMENTS, Artifact, GENERATION_CONFIG, TOKENIZER, TensorEntry};
use crate::files::at;
use crate::models::LlamaConfig;
use crate::text::Tokenizer;
use dr_precision::PrecisionSet;
use dr_runtime::read_file;
use dr_runtime::text::GenerationConfig;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind};
use std::path::Path;

/// Reads the folder as a float model; `precisions` are what it is to be quantized for. A folder without `tokenizer.json` gives
/// a model without one. The tokens that end a text are those of `config.json` and `generation_config.json`.
///
/// # Errors
/// A file that is missing or damaged, another architecture, tensors that are missing, unknown or of another shape (all are
/// named), weights that are quantized already, a tokenizer of many more tokens than the model has, and ways to draw tokens that make no
/// sense.
pub fn load_hugging_face(dir: &Path, precisions: PrecisionSet) -> Result<Artifact, WeightsError> {
    let in_dir = |error| WeightsError::Config { path: dir.join(CONFIG), error };
    let mut config = LlamaConfig::from_hugging_face(&text(&dir.join(CONFIG))?).map_err(in_dir)?;
    let is_there = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    if let Some(path) = is_there(TOKENIZER) {
        check_tokenizer(&Tokenizer::load(&path)?, &path, config.vocabulary)?;
    }
    if let Some(path) = is_there(GENERATION_CONFIG) {
        config.end_tokens.extend(GenerationConfig::load(&path)?.end_tokens);
        config.end_tokens.sort_unstable();
        config.end_tokens.dedup();
    }
    let mut theirs = BTreeMap::new();
    for file in shards(dir)? {
        theirs.extend(read_tensors(&dir.join(file), <[String]>::to_vec)?);
    }
    let names: Vec<String> = theirs.keys().cloned().collect();
    if let Some(below) = part(&names, &ENDS.map(hugging_face_name)) {
        theirs = theirs
            .into_iter()
            .map(|(name, tensor)| (name.strip_prefix(below).unwrap_or(&name).to_owned(), tensor))
            .collect();
    }
    let mut attachments = BTreeMap::new();
    for (name, path) in ATTACHMENTS.into_iter().filter_map(|name| Some((name, is_there(name)?))) {
        let bytes = read_file(&path).map_err(at(&path)).map_err(StateDictError::from)?;
        attachments.insert(name.to_owned(), TensorEntry::bytes(bytes));
    }
    // With a head of its own a model is not tied, whatever its configuration says: so does transformers.
    let [embedding, head] = [EMBEDDING, HEAD].map(|name| theirs.get(&hugging_face_name(name)));
    config.tied &= embedding.is_none() || head.is_none() || embedding == head;
    Llama { path: dir, config, attachments, tensors: theirs, their_name: hugging_face_name }
        .artifact(precisions)
}

/// Whether a path is a folder of Hugging Face.
pub(super) fn is_hugging_face(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}

const CONFIG: &str = "config.json";

/// Tensors that every model has.
const ENDS: [&str; 2] = ["layers.0.input_layernorm.gamma", "norm.gamma"];

/// What Hugging Face calls a parameter.
fn hugging_face_name(name: &str) -> String {
    let name = name.strip_suffix(".gamma").map_or_else(|| name.to_owned(), |norm| format!("{norm}.weight"));
    if name == HEAD { name } else { format!("model.{name}") }
}

/// The files with the weights, in the order in which transformers looks for them.
pub(super) const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// The files with the weights.
fn shards(dir: &Path) -> Result<BTreeSet<String>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let found = WEIGHTS.into_iter().find(|name| dir.join(name).is_file());
    let name = found.ok_or_else(|| WeightsError::NoWeights { path: dir.into() })?;
    if !name.ends_with(".json") {
        return Ok(BTreeSet::from([name.to_owned()]));
    }
    let index = dir.join(name);
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
    let utf8 = |bytes| String::from_utf8(bytes).map_err(|error| Error::new(ErrorKind::InvalidData, error));
    let text = read_file(path).and_then(utf8);
    Ok(text.map_err(at(path)).map_err(StateDictError::from)?)
}

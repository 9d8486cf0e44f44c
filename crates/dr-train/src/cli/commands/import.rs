//! `dr-train import`.

use super::save;
use crate::artifact::{Described, Description, InputShape};
use crate::cli::values::at_least_one;
use crate::cli::{CommandError, resolve};
use crate::config::task::LANGUAGE;
use crate::data::Normalization;
use crate::experiment::Registry;
use crate::weights::{StateDict, import as import_weights, load_language_model};
use clap::Args;
use dr_precision::PrecisionSet;
use std::path::PathBuf;

/// `dr-train import`.
#[derive(Debug, Args)]
#[command(after_help = "\
The names of the tensors are torchvision's; every one that is missing, unknown or of another shape
is reported. The result is a float model, for `dr-train quantize`. To train on, give the weights to
`dr-train train --weights`.

Example:
  dr-train import --model resnet18 --weights resnet18.pth --out float.safetensors
  dr-train quantize --model float.safetensors --data-dir imagenet --out model.safetensors")]
pub struct ImportArgs {
    /// The network
    #[arg(long)]
    pub model: String,
    /// A state dict, as safetensors or as PyTorch saves it; of a llama, a folder of Hugging Face or GGUF
    #[arg(long, value_name = "FILE|DIR")]
    pub weights: PathBuf,
    /// Rows and columns of the images that the model takes
    #[arg(long, value_name = "N", value_parser = at_least_one(4096), allow_negative_numbers = true, default_value_t = 224)]
    pub image_size: usize,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Turns a state dict with torchvision's names, a folder of Hugging Face or a GGUF file into a float model.
///
/// # Errors
/// If the file cannot be read, or its tensors are not those of the model, or the result cannot be written.
pub fn import(registry: &Registry, args: &ImportArgs) -> Result<(), CommandError> {
    resolve::check_output_file("out", &args.out, &args.weights)?;
    let model = registry.models.get(&args.model)?;
    if model.tasks().contains(&LANGUAGE) {
        return save(&load_language_model(&args.weights, PrecisionSet::default())?, &args.out);
    }
    let dict = StateDict::load(&args.weights)?;
    // Sizes are those of the file; what does not fit together is found by the import.
    let size = |name: &str, axis: usize, usual: usize| {
        let tensor = model.state_dict_name(name).and_then(|name| dict.tensors.get(&name));
        tensor.and_then(|tensor| tensor.shape.get(axis)).copied().unwrap_or(usual)
    };
    let channels = size("stem.weight", 1, 3);
    let classes = size("head.weight", 0, 1000);
    let width = size("stem.weight", 0, model.usual_width());
    let input = InputShape { channels, height: args.image_size, width: args.image_size };
    let normalization = match channels {
        3 => Normalization::imagenet(),
        _ => Normalization { mean: vec![0.0; channels], std: vec![1.0; channels] },
    };
    let description = Description {
        width,
        normalization,
        ..Description::new("folder", model, input, classes, PrecisionSet::default())
    };
    save(&import_weights(dict, model, description)?.artifact, &args.out)
}

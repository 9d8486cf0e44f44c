//! `dr-train import`.

use super::save;
use crate::artifact::{Described, Description, InputShape};
use crate::cli::resolve::SAFETENSORS;
use crate::cli::{CommandError, PictureArgs, resolve};
use crate::config::task::LANGUAGE;
use crate::data::Normalization;
use crate::experiment::Registry;
use crate::note::note;
use crate::progress::Progress;
use crate::weights::{StateDict, USUAL_IMAGE, ends, import as import_weights, load_language_model};
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
  dr-train quantize --model float.safetensors --data-dir imagenet --out model.safetensors
  dr-train import --onnx net.onnx --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --out float.safetensors")]
pub struct ImportArgs {
    /// The network; ONNX files say it themselves
    #[arg(long, required_unless_present = "onnx")]
    pub model: Option<String>,
    /// A state dict, as safetensors or as PyTorch saves it; of a llama, a folder of Hugging Face or GGUF
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "onnx")]
    pub weights: Option<PathBuf>,
    /// A network with its weights
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "weights"])]
    pub onnx: Option<PathBuf>,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How pictures become images
    #[command(flatten)]
    pub pictures: PictureArgs,
}

/// Turns a state dict with torchvision's names, an ONNX file, a folder of Hugging Face or a GGUF file into a float model.
///
/// # Errors
/// If the file cannot be read, or its tensors are not those of the model, or the result cannot be written.
pub fn import(registry: &Registry, args: &ImportArgs) -> Result<(), CommandError> {
    let file = args.onnx.as_ref().or(args.weights.as_ref()).map(|file| file.display());
    let _line = file.map(|file| Progress::unknown(format_args!("reading {file}")));
    if let Some(file) = &args.onnx {
        resolve::check_output_file("out", &args.out, &[SAFETENSORS], file)?;
        return save(&args.pictures.load(file)?, &args.out);
    }
    let [height, width] = args.pictures.image_size.map_or([USUAL_IMAGE; 2], Into::into);
    if let Some(flag) = (PictureArgs { image_size: None, ..args.pictures.clone() }).given() {
        return Err(CommandError::new(format!("--{flag}: of a state dict it is known: expected --onnx")));
    }
    let (Some(model), Some(weights)) = (&args.model, &args.weights) else { return Ok(()) };
    resolve::check_output_file("out", &args.out, &[SAFETENSORS], weights)?;
    let model = registry.models.get(model)?;
    if model.tasks().contains(&LANGUAGE) {
        if args.pictures.given().is_some() {
            let found = "--image-size: a language model has no use for it";
            return Err(CommandError::new(format!("{found}: expected a network for images")));
        }
        return save(&load_language_model(weights, PrecisionSet::default())?, &args.out);
    }
    let dict = StateDict::load(weights, &ends(model))?;
    dict.remark().into_iter().for_each(note);
    // Sizes are those of the file; what does not fit together is found by the import.
    let size = |name: &str, axis: usize, usual: usize| {
        let tensor = model.state_dict_name(name).and_then(|name| dict.tensors.get(&name));
        tensor.and_then(|tensor| tensor.shape.get(axis)).copied().unwrap_or(usual)
    };
    let channels = size("stem.weight", 1, 3);
    let classes = size("head.weight", 0, 1000);
    let input = InputShape { channels, height, width };
    let normalization = match channels {
        3 => Normalization::imagenet(),
        _ => Normalization::none(channels),
    };
    let description = Description {
        width: size("stem.weight", 0, model.usual_width()),
        normalization,
        ..Description::new("folder", model, input, classes, PrecisionSet::default())
    };
    save(&import_weights(dict, model, description)?.artifact, &args.out)
}

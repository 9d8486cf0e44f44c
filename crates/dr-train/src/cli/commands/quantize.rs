//! `dr-train quantize`.

use super::{load_model, save};
use crate::artifact::{ArtifactError, ArtifactKind, SavedModel};
use crate::cli::values::{group_size, one_of};
use crate::cli::{CommandError, resolve};
use crate::config::DeviceKind;
use crate::device;
use crate::experiment::{Registry, Source};
use crate::nn::QuantConfig;
use clap::Args;
use dr_precision::{BitWidth, PrecisionSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// `dr-train quantize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  dr-train quantize --model float.safetensors --precisions 8,6,4 --out model.safetensors")]
pub struct QuantizeArgs {
    /// The model; a float one, or a folder of Hugging Face with a Llama
    #[arg(long, value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// The precisions the result runs at
    #[arg(long, value_name = "LIST", default_value_t = PrecisionSet::default())]
    pub precisions: PrecisionSet,
    /// So many inputs of an output of a linear layer share a scale, e.g. 32, 64 or 128 [default: all]
    #[arg(long, value_name = "N", value_parser = group_size(), allow_negative_numbers = true)]
    pub group_size: Option<NonZeroUsize>,
    /// Let the first and the last layer switch like all others, too; they keep the highest widths otherwise
    #[arg(long)]
    pub switch_edge: bool,
    /// Move the weights of linear layers so that they make up for what rounding does at this width (as GPTQ
    /// does): better there, worse at other widths
    #[arg(long, value_name = "BITS")]
    pub compensate: Option<BitWidth>,
    /// Fit activations to other images than the training images of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Turns a float model into one for several precisions, without training: scales are fitted to its weights and to the
/// activations that some training images, or the beginning of a text, cause.
///
/// # Errors
/// If the model cannot be read, or is not a float one, or the data do not fit it, or the result cannot be written.
pub fn quantize(registry: &Registry, args: &QuantizeArgs) -> Result<(), CommandError> {
    resolve::check_output_file("out", &args.out, &args.model)?;
    let artifact = load_model(&args.model)?;
    let description = &artifact.description;
    if description.kind != ArtifactKind::Float {
        let wrong = ArtifactError::Kind { found: description.kind, expected: "float" };
        return Err(wrong.in_file(&args.model).into());
    }
    let (device, _) = device::open(args.device)?;
    let quantization = QuantConfig {
        group_size: args.group_size,
        switch_edge: args.switch_edge,
        compensate: args.compensate,
        ..QuantConfig::new(args.precisions.clone())
    };
    if let Some(width) = args.compensate
        && !quantization.precisions.weights().contains(&width)
    {
        let found = format!("--compensate {width}: the model will have no weights of {width} bits");
        return Err(CommandError::new(format!("{found}: expected a width of {}", args.precisions)));
    }
    let source = Source::new(registry, &artifact, &args.model, &args.dataset, &args.data_dir, &device);
    let quantized = artifact.quantize(&quantization, (source.task()?.calibration)(&source)?, &device)?;
    save(&quantized, &args.out)
}

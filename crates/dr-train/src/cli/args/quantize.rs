//! The arguments of `dr-train quantize`.

use crate::cli::values::{at_least_one, group_size, one_of};
use crate::config::DeviceKind;
use clap::Args;
use dr_precision::{BitWidth, PrecisionSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// `dr-train quantize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  dr-train quantize --model float.safetensors --precisions 8,6,4 --out model.safetensors
  dr-train quantize --model SmolLM2-135M --calibration text.txt --out model.safetensors")]
pub struct QuantizeArgs {
    /// The model; a float one, or a folder of Hugging Face with a Llama
    #[arg(long, value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// The precisions the result runs at [default: w8a8,w6a6,w4a4,w2a2, and with --calibration
    /// w8a8,w6a8,w4a8,w3a8]
    #[arg(long, value_name = "LIST")]
    pub precisions: Option<PrecisionSet>,
    /// A text like those that a language model is for: codes are chosen for all precisions at once by what its
    /// predictions depend on (no engine computes such models yet)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["switch_edge", "compensate", "dataset", "data_dir"])]
    pub calibration: Option<PathBuf>,
    /// So many tokens of the text are looked at, in windows all over it
    #[arg(long, value_name = "N", requires = "calibration", default_value_t = 1 << 15, value_parser = at_least_one(1 << 30))]
    pub calibration_tokens: usize,
    /// So many inputs of an output of a linear layer share a scale, e.g. 32, 64 or 128 [default: all, and with --calibration 32]
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

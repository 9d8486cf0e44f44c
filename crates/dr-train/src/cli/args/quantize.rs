//! The arguments of `dr-train quantize`.

use crate::cli::values::{group_size, one_of};
use crate::config::DeviceKind;
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

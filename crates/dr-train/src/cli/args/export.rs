//! The arguments of `dr-train export`.

use crate::cli::values::at_least_one;
use crate::onnx::Opset;
use clap::Args;
use dr_precision::Precision;
use std::path::PathBuf;

/// `dr-train export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dr-train export --model model.safetensors --precision w2a2 --out w2a2.safetensors
  dr-train export --model model.safetensors --plan plan.toml --out mixed.safetensors
  dr-train export --model model.safetensors --precision w4a8 --out w4a8.onnx
  dr-train export --model model.safetensors --precision 2 --out 2.onnx --samples samples.safetensors")]
pub struct ExportArgs {
    /// The model; one for several precisions
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The precision to keep
    #[arg(long)]
    pub precision: Option<Precision>,
    /// The precisions to keep, one for each layer; BatchNorm statistics are taken from training images
    #[arg(long, value_name = "FILE.toml", conflicts_with = "precision")]
    pub plan: Option<PathBuf>,
    /// Other images than those of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The file to write: ONNX if its name ends in .onnx
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The version of ONNX's operators, 21 to 25; types of 2 bits come with 25
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t)]
    pub opset: Opset,
    /// Also write test images with the model's logits, to check another runtime by
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// How many of them
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 1000)]
    pub images: usize,
}

//! The arguments of `dr-train import-check`.

use crate::cli::values::number;
use clap::Args;
use std::path::PathBuf;

/// `dr-train import-check`.
#[derive(Debug, Args)]
#[command(after_help = "\
`dr-train export --samples` writes the samples: `images` [n, channels, rows, columns], normalised,
`labels` [n] and the model's `logits` [n, classes]. The other runtime's file has its `logits`.

Example:
  dr-train import-check --samples samples.safetensors --logits onnxruntime.safetensors")]
pub struct ImportCheckArgs {
    /// Images and the model's logits
    #[arg(long, value_name = "FILE")]
    pub samples: PathBuf,
    /// What another runtime made of the images
    #[arg(long, value_name = "FILE")]
    pub logits: PathBuf,
    /// Images that must get the same class, in percent
    #[arg(long, value_name = "PERCENT", value_parser = number, allow_negative_numbers = true, default_value_t = 99.5)]
    pub least: f64,
    /// Print JSON instead of a sentence
    #[arg(long)]
    pub json: bool,
}

//! `dr-train import-check`.

use super::print;
use crate::cli::CommandError;
use crate::cli::values::number;
use crate::samples::{Agreement, compare};
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

/// Compares what another runtime made of samples with what the model made of them.
///
/// # Errors
/// If a file cannot be read or does not fit, or if too few images get the same class.
pub fn import_check(args: &ImportCheckArgs) -> Result<(), CommandError> {
    let agreement = compare(&args.samples, &args.logits)?;
    let Agreement { images, same, top1, their_top1, largest_difference } = agreement;
    print(&match args.json {
        true => format!("{}\n", serde_json::to_string(&agreement)?),
        false => format!(
            "{images} images: {same:.2} % get the same class; top-1 {top1:.2} % here, {their_top1:.2} % there; the largest \
             difference of two logits is {largest_difference:.1e} of the largest logit\n"
        ),
    })?;
    match same >= args.least {
        true => Ok(()),
        false => {
            let found =
                format!("{same:.2} % of the images get the same class: expected at least {} %", args.least);
            Err(CommandError::about(&args.logits, found))
        }
    }
}

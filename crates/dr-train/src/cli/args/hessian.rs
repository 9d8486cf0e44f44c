//! The arguments of `dr-train hessian`.

use crate::cli::values::{at_least_one, between, count, one_of, part, seed};
use crate::config::DeviceKind;
use crate::mixed::HessianOptions;
use clap::Args;
use std::path::PathBuf;

/// `dr-train hessian`.
#[derive(Debug, Args)]
#[command(after_help = "\
For each layer: the trace of the Hessian of the loss over the layer's weights, divided by their
number, estimated from random directions on training images. The network computes in floats; one for
several precisions has its stored codes dequantized. It stops when every layer's standard error is at
most --tolerance of its trace, or of a hundredth of the mean trace where that is larger.

Examples:
  dr-train hessian --model float.safetensors
  dr-train hessian --model float.safetensors --tolerance 0.02 --out traces.json --plot traces.svg")]
pub struct HessianArgs {
    /// The model
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Other images than the training images of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Use only the first so many training images
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub limit_train: Option<usize>,
    /// Largest standard error, as a part of the trace
    #[arg(long, value_name = "PART", value_parser = part, allow_negative_numbers = true, default_value_t = HessianOptions::default().tolerance)]
    pub tolerance: f64,
    /// Most directions
    #[arg(long, value_name = "N", value_parser = between(HessianOptions::MIN_SAMPLES, 1 << 20), allow_negative_numbers = true, default_value_t = HessianOptions::default().max_samples)]
    pub max_samples: usize,
    /// Images for each direction
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true, default_value_t = 64)]
    pub batch_size: usize,
    /// Decides the directions
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = HessianOptions::default().seed)]
    pub seed: u64,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Write the traces as JSON
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Draw the traces
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

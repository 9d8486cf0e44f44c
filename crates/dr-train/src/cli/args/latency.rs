//! The arguments of `dr-train latency`.

use crate::cli::values::{at_least_one, one_of};
use crate::config::DeviceKind;
use clap::Args;
use std::path::PathBuf;

/// `dr-train latency`.
#[derive(Debug, Args)]
#[command(after_help = "\
The images are random, of the size that the model takes. Times are medians from the images to the
logits, after some passes that do not count. `float` is the same network with its codes dequantized,
in floats. The bytes are those that a pass reads: codes with their padding, and scales.

Examples:
  dr-train latency --model model.safetensors
  dr-train latency --model model.safetensors --plan plan.toml
  dr-train latency --model model.safetensors --batch 1 --threads 1 --json")]
pub struct LatencyArgs {
    /// The model; not a float one
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Only with the precisions that a plan has for the layers
    #[arg(long, value_name = "FILE.toml")]
    pub plan: Option<PathBuf>,
    /// Images in a pass
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true, default_value_t = 1)]
    pub batch: usize,
    /// Passes of which the median is taken, for each precision
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 20), allow_negative_numbers = true, default_value_t = 100)]
    pub samples: usize,
    /// Threads of the processor [default: one for each core]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 10), allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

//! `dr-train latency`.

use super::{load_model, print};
use crate::artifact::SavedModel;
use crate::cli::CommandError;
use crate::cli::values::{at_least_one, one_of};
use crate::config::DeviceKind;
use crate::device;
use crate::latency::{LatencyOptions, latency as measure};
use crate::mixed::PlanFile;
use crate::nn::Value;
use burn::tensor::Device;
use clap::Args;
use std::path::PathBuf;

/// `dr-train latency`.
#[derive(Debug, Args)]
#[command(after_help = "\
The inputs are random, of the size that the model takes. Times are medians from the inputs to the
results, after some passes that do not count. `float` is the same network with its codes dequantized,
in floats. Networks with operations on arrays run on the processor. The bytes are those that a pass reads: codes with their padding, and scales.

Examples:
  dr-train latency --model model.safetensors
  dr-train latency --model model.safetensors --plan plan.toml
  dr-train latency --model model.safetensors --batch 1 --threads 1 --json")]
pub struct LatencyArgs {
    /// The model
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

/// Measures how long a saved model takes at each precision.
///
/// # Errors
/// If the model cannot be read or its inputs have open sizes, or the device or so many threads cannot be had.
pub fn latency(args: &LatencyArgs) -> Result<(), CommandError> {
    let mut artifact = load_model(&args.model)?;
    if let Some(plan) = &args.plan {
        // The time does not depend on BatchNorm statistics: no images.
        let plan = PlanFile::load(plan)?.plan;
        artifact = artifact
            .export_plan::<Value>(&plan, &[], &Device::flex())
            .map_err(|error| error.in_file(&args.model))?;
    }
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let (device, device_kind) = device::open(args.device)?;
    let name = args.model.display().to_string();
    let options = LatencyOptions { batch: args.batch, samples: args.samples };
    let latencies = measure(&artifact, name.clone(), options, &device, device_kind.to_string())
        .map_err(|error| CommandError::about(&args.model, error))?;
    print(&if args.json { serde_json::to_string_pretty(&latencies)? + "\n" } else { latencies.table() })
}

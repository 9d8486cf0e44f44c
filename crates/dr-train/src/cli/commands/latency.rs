//! `dr-train latency`.

use super::print;
use crate::artifact::{Artifact, SavedModel};
use crate::cli::{CommandError, LatencyArgs};
use crate::device;
use crate::latency::{LatencyOptions, latency as measure};
use crate::mixed::PlanFile;
use crate::nn::Value;
use burn::tensor::Device;

/// Measures how long a saved model takes at each precision.
///
/// # Errors
/// If the model cannot be read or is a float one, or the device or so many threads cannot be had.
pub fn latency(args: &LatencyArgs) -> Result<(), CommandError> {
    let mut artifact = Artifact::open(&args.model)?;
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
        .map_err(|error| CommandError::new(format!("`{name}`: {error}")))?;
    print(&if args.json { serde_json::to_string_pretty(&latencies)? + "\n" } else { latencies.table() })
}

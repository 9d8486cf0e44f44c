//! `dr-train hessian`.

use super::{load_model, print, write};
use crate::cli::values::{at_least_one, between, count, one_of, part, seed};
use crate::cli::{CommandError, resolve};
use crate::config::DeviceKind;
use crate::device;
use crate::experiment::{Registry, Source};
use crate::mixed::{HessianOptions, HessianReport, Traces};
use crate::progress::Progress;
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

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

/// Estimates the average Hessian trace of every layer of a saved model, on the data that it learned from.
///
/// # Errors
/// If the model or the images cannot be read, or do not fit together, or the results cannot be written.
pub fn hessian(registry: &Registry, args: &HessianArgs) -> Result<(), CommandError> {
    let files = [("out", args.out.as_deref(), &["json"][..]), ("plot", args.plot.as_deref(), &["svg"][..])];
    resolve::check_output_files(files, &args.model)?;
    let started = Instant::now();
    let options =
        HessianOptions { tolerance: args.tolerance, max_samples: args.max_samples, seed: args.seed };
    options.check()?;
    let artifact = load_model(&args.model)?;
    let name = args.model.display().to_string();
    let (device, device_kind) = device::open(args.device)?;
    let mut source = Source::new(registry, &artifact, &args.model, &args.dataset, &args.data_dir, &device);
    source.limit = args.limit_train;
    let (traces, count) = estimate(&source, args.batch_size, &options)?;
    let report = HessianReport {
        model: name.clone(),
        dataset: args.dataset.as_ref().unwrap_or(&artifact.description.dataset).clone(),
        images: count,
        batch_size: args.batch_size.min(count),
        seed: args.seed,
        tolerance: args.tolerance,
        device: device_kind.to_string(),
        traces,
        seconds: started.elapsed().as_secs_f64(),
    };

    let json = serde_json::to_string_pretty(&report)? + "\n";
    let mut wrote = vec![];
    if let Some(path) = &args.out {
        write(path, json.as_bytes(), &mut wrote)?;
    }
    if let Some(path) = &args.plot {
        write(path, report.svg().map_err(CommandError::failure)?.as_bytes(), &mut wrote)?;
    }
    if args.json {
        return print(&json);
    }
    let wrote = if wrote.is_empty() { String::new() } else { format!("wrote {}\n", wrote.join(" and ")) };
    print(&(report.table(source.task()?.items) + &wrote))
}

/// The traces of a saved network, with its stored codes dequantized, and of how many items of its training data.
pub(super) fn estimate(
    source: &Source, batch_size: usize, options: &HessianOptions,
) -> Result<(Traces, usize), CommandError> {
    let (line, HessianOptions { tolerance, max_samples, .. }) = (Progress::new("directions:"), *options);
    let mut show = |samples, uncertainty| {
        let (found, wanted) = (100.0 * uncertainty, 100.0 * tolerance);
        line.show(
            samples,
            max_samples,
            format_args!(" at most; errors {found:.1} % (stops at {wanted:.1} %)"),
        );
    };
    Ok((source.task()?.traces)(source, batch_size, options, &mut show)?)
}

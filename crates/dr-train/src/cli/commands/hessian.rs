//! `dr-train hessian`.

use super::{StatusLine, print};
use crate::artifact::{Artifact, SavedModel};
use crate::cli::{CommandError, HessianArgs};
use crate::device;
use crate::experiment::{Registry, Source};
use crate::files::write_atomically;
use crate::mixed::{HessianOptions, HessianReport, Traces};
use std::path::Path;
use std::time::Instant;

/// Estimates the average Hessian trace of every layer of a saved model, on the data that it learned from.
///
/// # Errors
/// If the model or the images cannot be read, or do not fit together, or the results cannot be written.
pub fn hessian(registry: &Registry, args: &HessianArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let options =
        HessianOptions { tolerance: args.tolerance, max_samples: args.max_samples, seed: args.seed };
    options.check()?;
    let artifact = Artifact::open(&args.model)?;
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
        write(path, report.svg().map_err(CommandError::new)?.as_bytes(), &mut wrote)?;
    }
    if args.json {
        return print(&json);
    }
    let wrote = if wrote.is_empty() { String::new() } else { format!("wrote {}\n", wrote.join(" and ")) };
    print(&(report.table(source.task()?.items()) + &wrote))
}

/// The traces of a saved network, with its stored codes dequantized, and of how many items of its training data.
pub(super) fn estimate(
    source: &Source, batch_size: usize, options: &HessianOptions,
) -> Result<(Traces, usize), CommandError> {
    let (line, HessianOptions { tolerance, max_samples, .. }) = (StatusLine::new(), *options);
    let mut show = |samples, uncertainty| {
        let (found, wanted) = (100.0 * uncertainty, 100.0 * tolerance);
        line.show(&format!(
            "{samples} of at most {max_samples} directions, standard errors up to {found:.1} % (stops at {wanted:.1} %)"
        ));
    };
    Ok(source.task()?.traces(source, batch_size, options, &mut show)?)
}

fn write(path: &Path, content: &[u8], wrote: &mut Vec<String>) -> Result<(), CommandError> {
    let name = path.display().to_string();
    write_atomically(path, content).map_err(|error| CommandError::new(format!("`{name}`: {error}")))?;
    wrote.push(name);
    Ok(())
}

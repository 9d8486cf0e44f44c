//! `dr-train hessian`.

use super::print;
use crate::artifact::Artifact;
use crate::cli::{CommandError, HessianArgs};
use crate::data::{self, ImageLoader};
use crate::device;
use crate::evaluation::{check_batch, check_images};
use crate::files::write_atomically;
use crate::mixed::{HessianOptions, HessianReport, traces};
use crate::models::ConvNet;
use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::time::Instant;

/// Estimates the average Hessian trace of every layer of a saved model, on training images.
///
/// # Errors
/// If the model or the images cannot be read, or do not fit together, or the results cannot be written.
pub fn hessian(args: &HessianArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let options =
        HessianOptions { tolerance: args.tolerance, max_samples: args.max_samples, seed: args.seed };
    options.check()?;
    let artifact = Artifact::load(&args.model)?;
    let name = args.model.display().to_string();
    let in_model = |error: &dyn std::error::Error| CommandError::new(format!("`{name}`: {error}"));
    let description = &artifact.description;
    let (device, device_kind) = device::open(args.device)?;
    let dataset = args.dataset.unwrap_or(description.dataset);
    let train = data::load(&description.images(dataset, args.data_dir.as_deref()), args.limit_train)?.train;
    check_images(&artifact, &train).map_err(|error| in_model(&error))?;
    check_batch(&artifact, args.batch_size, MOST_PIXELS)?;
    let network = artifact.network::<ConvNet>(&device).map_err(|error| in_model(&error))?;

    // A last batch with fewer images would give each of them more weight.
    let batch_size = args.batch_size.min(train.len());
    let images = train.range(0..train.len() - train.len() % batch_size);
    let count = images.len();
    let normalization = description.normalization.clone();
    let loader = ImageLoader::evaluation(images, normalization, batch_size, device);
    let progress = Progress::new(&options);
    let traces = traces(&network, &loader, &options, |samples, uncertainty| {
        progress.show(samples, uncertainty);
    });
    progress.clear();
    let report = HessianReport {
        model: name.clone(),
        dataset,
        images: count,
        batch_size,
        seed: args.seed,
        tolerance: args.tolerance,
        device: device_kind.to_string(),
        traces: traces.map_err(|error| in_model(&error))?,
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
    print(&(report.table() + &wrote))
}

/// Pixels of a batch: the gradients of a ResNet-20 keep 16 channels of them some 60 times, which are 4 GiB.
const MOST_PIXELS: usize = 1 << 20;

fn write(path: &Path, content: &[u8], wrote: &mut Vec<String>) -> Result<(), CommandError> {
    let name = path.display().to_string();
    write_atomically(path, content).map_err(|error| CommandError::new(format!("`{name}`: {error}")))?;
    wrote.push(name);
    Ok(())
}

/// A line that is written over, if there is a terminal to do so.
pub(super) struct Progress {
    options: HessianOptions,
    terminal: bool,
}

impl Progress {
    pub(super) fn new(options: &HessianOptions) -> Self {
        Self { options: *options, terminal: stderr().is_terminal() }
    }

    pub(super) fn show(&self, samples: usize, uncertainty: f64) {
        let HessianOptions { tolerance, max_samples, .. } = self.options;
        let (found, wanted) = (100.0 * uncertainty, 100.0 * tolerance);
        self.line(&format!(
            "{samples} of at most {max_samples} directions, standard errors up to {found:.1} % (stops at {wanted:.1} %)"
        ));
    }

    pub(super) fn clear(&self) {
        self.line("");
    }

    fn line(&self, text: &str) {
        if self.terminal {
            // That nobody sees it is no reason to stop.
            let _ = write!(stderr(), "\r\x1b[2K{text}").and_then(|()| stderr().flush());
        }
    }
}

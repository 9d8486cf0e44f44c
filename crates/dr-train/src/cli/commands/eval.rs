//! `dr-train eval`.

use super::{print, with_plan};
use crate::artifact::Artifact;
use crate::cli::{CommandError, EvalArgs};
use crate::evaluation::{formats, measure};
use crate::report::{NumberFormat, PrecisionResult, Report};
use crate::{data, device};
use std::time::Instant;

/// Measures a saved model on the test images.
///
/// # Errors
/// If the model or the images cannot be read, or do not fit together.
pub fn eval(args: &EvalArgs) -> Result<(), CommandError> {
    let started = Instant::now();
    let mut artifact = Artifact::load(&args.model)?;
    let (device, device_kind) = device::open(args.device)?;
    if let Some(plan) = &args.plan {
        artifact = with_plan(&artifact, &args.model, plan, args.dataset, args.data_dir.as_deref(), &device)?;
    }
    let description = &artifact.description;
    let formats = args.precision.map_or_else(|| formats(&artifact), |precision| vec![precision.into()]);
    let dataset = args.dataset.unwrap_or(description.dataset);
    let test = data::load_test(&description.images(dataset, args.data_dir.as_deref()))?;
    let measured = measure(&artifact, &formats, &test, args.engine, &device)
        .map_err(|error| CommandError::new(format!("`{}`: {error}", args.model.display())))?;
    let mut report = Report {
        dataset,
        model: description.model,
        seed: description.seed,
        device: device_kind.to_string(),
        seconds: started.elapsed().as_secs_f64(),
        test_images: test.len(),
        skipped_images: test.skipped().len(),
        float: None,
        precisions: vec![],
        single: vec![],
        float_epoch_seconds: None,
        joint_epoch_seconds: None,
        history: vec![],
        config: None,
    };
    for (format, measured) in formats.into_iter().zip(measured) {
        match format {
            NumberFormat::Float => report.float = Some(measured),
            precision => report.precisions.push(PrecisionResult { precision, measured }),
        }
    }
    print(&if args.json { report.to_json()? } else { report.table() })
}

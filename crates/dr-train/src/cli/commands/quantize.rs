//! `dr-train quantize`.

use super::save;
use crate::artifact::{Artifact, ArtifactError, ArtifactKind};
use crate::cli::{CommandError, QuantizeArgs};
use crate::evaluation::check_images;
use crate::experiment::calibration_batches;
use crate::models::ConvNet;
use crate::{data, device};

/// Turns a float model into one for several precisions, without training: scales are fitted to its weights and to the
/// activations that some training images cause.
///
/// # Errors
/// If the model cannot be read, or is not a float one, or the images do not fit it, or the result cannot be written.
pub fn quantize(args: &QuantizeArgs) -> Result<(), CommandError> {
    let artifact = Artifact::load(&args.model)?;
    let description = &artifact.description;
    if description.kind != ArtifactKind::Float {
        let wrong = ArtifactError::Kind { found: description.kind, expected: "float" };
        return Err(wrong.in_file(&args.model).into());
    }
    let (device, _) = device::open(args.device)?;
    let dataset = args.dataset.unwrap_or(description.dataset);
    let train = data::load(&description.images(dataset, args.data_dir.as_deref()), None)?.train;
    check_images(&artifact, &train)?;
    let batches = calibration_batches(&train, &description.normalization, &device)?;
    save(&artifact.quantize::<ConvNet>(args.precisions.clone(), batches, &device)?, &args.out)
}

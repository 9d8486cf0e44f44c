//! `dr-train quantize`.

use super::{load_model, save};
use crate::artifact::{ArtifactError, ArtifactKind, SavedModel};
use crate::cli::{CommandError, QuantizeArgs};
use crate::device;
use crate::experiment::{Registry, Source};
use crate::nn::QuantConfig;

/// Turns a float model into one for several precisions, without training: scales are fitted to its weights and to the
/// activations that some training images, or the beginning of a text, cause.
///
/// # Errors
/// If the model cannot be read, or is not a float one, or the data do not fit it, or the result cannot be written.
pub fn quantize(registry: &Registry, args: &QuantizeArgs) -> Result<(), CommandError> {
    let artifact = load_model(&args.model)?;
    let description = &artifact.description;
    if description.kind != ArtifactKind::Float {
        let wrong = ArtifactError::Kind { found: description.kind, expected: "float" };
        return Err(wrong.in_file(&args.model).into());
    }
    let (device, _) = device::open(args.device)?;
    let quantization = QuantConfig {
        group_size: args.group_size,
        switch_edge: args.switch_edge,
        compensate: args.compensate,
        ..QuantConfig::new(args.precisions.clone())
    };
    if let Some(width) = args.compensate
        && !quantization.precisions.weights().contains(&width)
    {
        let found = format!("--compensate {width}: the model will have no weights of {width} bits");
        return Err(CommandError::new(format!("{found}: expected a width of {}", args.precisions)));
    }
    let source = Source::new(registry, &artifact, &args.model, &args.dataset, &args.data_dir, &device);
    let quantized = artifact.quantize_with(&quantization, source.task()?.calibration(&source)?, &device)?;
    save(&quantized, &args.out)
}

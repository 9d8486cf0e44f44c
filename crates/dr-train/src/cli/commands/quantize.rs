//! `dr-train quantize`.

use super::{load_model, save};
use crate::artifact::{ArtifactError, ArtifactKind};
use crate::cli::{CommandError, QuantizeArgs};
use crate::config::TaskKind;
use crate::evaluation::check_size;
use crate::experiment::{calibration_batches, calibration_tokens};
use crate::models::{ConvNet, Llama};
use crate::nn::QuantConfig;
use crate::text::{self, Tokenizer};
use crate::{data, device};

/// Turns a float model into one for several precisions, without training: scales are fitted to its weights and to the
/// activations that some training images, or the beginning of a text, cause.
///
/// # Errors
/// If the model cannot be read, or is not a float one, or the images do not fit it, or the result cannot be written.
pub fn quantize(args: &QuantizeArgs) -> Result<(), CommandError> {
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
    let quantized = match &description.language {
        Some(config) => {
            let tokenizer = Tokenizer::from_json(artifact.tokenizer()?)?;
            let text = text::split(&text::read(args.data_dir.as_deref())?, None).train;
            let batches = calibration_tokens(&tokenizer.encode(&text, false)?, config.context, &device)?;
            artifact.quantize_with::<Llama>(&quantization, batches, &device)?
        }
        None => {
            description.check_task(TaskKind::Classify).map_err(|error| error.in_file(&args.model))?;
            let dataset = args.dataset.unwrap_or(description.dataset);
            let train = data::load(&description.images(dataset, args.data_dir.as_deref()), None)?.train;
            check_size(&artifact, &train)?;
            let batches = calibration_batches(&train, &description.normalization, &device)?;
            artifact.quantize_with::<ConvNet>(&quantization, batches, &device)?
        }
    };
    save(&quantized, &args.out)
}

//! What a saved model scores.

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, InputShape};
use crate::config::Engine;
use crate::data::{ImageLoader, ImageSet};
use crate::generation::{ChoiceScore, GenerationError, score_choices};
use crate::models::{ConvNet, IntConvNet, IntLlama, Llama, LlamaConfig, Network};
use crate::nn::{IntegerError, Pass};
use crate::report::{Measured, NumberFormat};
use crate::text::{Choices, TextError, TextLoader, Tokenizer};
use crate::training::{Score, evaluate, score};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use dr_precision::{Precision, PrecisionSet};
use std::sync::Arc;
use thiserror::Error;

/// Images in a batch of evaluation.
pub(crate) const EVAL_BATCH: usize = 256;

/// Why a model cannot be measured.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// The model file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Images of another size.
    #[error("the images are {found} (channels x rows x columns): the model expects {expected}")]
    Shape {
        /// Of the images.
        found: InputShape,
        /// Of the model.
        expected: InputShape,
    },
    /// Images of other classes.
    #[error("the images have {found} classes: the model expects {expected}")]
    Classes {
        /// Of the images.
        found: usize,
        /// Of the model.
        expected: usize,
    },
    /// More images at once than memory is taken for.
    #[error("a batch of {batch} images of {input}: expected at most {largest}")]
    Batch {
        /// Images in the batch.
        batch: usize,
        /// Their size.
        input: InputShape,
        /// How many there can be.
        largest: usize,
    },
    /// The questions.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The text or the tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The network cannot compute with integers.
    #[error(transparent)]
    Integer(#[from] IntegerError),
    /// The images could not be prepared.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// Whether a model takes such images.
///
/// # Errors
/// If their size or number of classes is another.
pub fn check_images(artifact: &Artifact, images: &ImageSet) -> Result<(), EvaluationError> {
    check_size(artifact, images)?;
    let description = &artifact.description;
    if images.classes() != description.classes {
        return Err(EvaluationError::Classes { found: images.classes(), expected: description.classes });
    }
    Ok(())
}

/// Whether a model takes images of such a size, whatever they show.
///
/// # Errors
/// If their size is another.
pub fn check_size(artifact: &Artifact, images: &ImageSet) -> Result<(), EvaluationError> {
    let (found, expected) = (InputShape::from(images.shape()), artifact.description.input);
    if found == expected { Ok(()) } else { Err(EvaluationError::Shape { found, expected }) }
}

/// Whether a batch of images of the model's size has at most `most_pixels`.
///
/// # Errors
/// If it has more.
pub(crate) fn check_batch(
    artifact: &Artifact, batch: usize, most_pixels: usize,
) -> Result<(), EvaluationError> {
    let input = artifact.description.input;
    let largest = most_pixels / (input.height * input.width).max(1);
    if batch > largest {
        return Err(EvaluationError::Batch { batch, input, largest });
    }
    Ok(())
}

/// What the model can compute in, highest first.
#[must_use]
pub fn formats(artifact: &Artifact) -> Vec<NumberFormat> {
    let description = &artifact.description;
    match description.kind {
        ArtifactKind::Float => vec![NumberFormat::Float],
        ArtifactKind::Packed(precision) => vec![precision.into()],
        ArtifactKind::MultiPrecision => description.precisions.iter().map(NumberFormat::from).collect(),
        ArtifactKind::PackedPlan => vec![NumberFormat::Mixed],
    }
}

/// Measures a model in each of `formats`, on the device. [`Engine::Integer`] is for quantized formats only.
///
/// # Errors
/// Tensors that are no network, a format that the model does not have, or images that do not fit it.
pub fn measure(
    artifact: &Artifact, formats: &[NumberFormat], images: &ImageSet, engine: Engine, device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    check_images(artifact, images)?;
    let normalization = artifact.description.normalization.clone();
    let loader = ImageLoader::evaluation(images.clone(), normalization, EVAL_BATCH, device.clone());
    measured(artifact, formats, || match engine {
        Engine::Fake => Ok(evaluate(&artifact.network::<ConvNet>(device)?, &loader, &passes(artifact, formats))?),
        Engine::Integer => {
            let networks = integer_networks(artifact, formats, device)?;
            score(&loader, &networks, |network, images| Ok(network.forward(images)?))
        }
    })
}

/// The same for a language model and a text that is seen in pieces of `length` tokens.
///
/// # Errors
/// Tensors that are no network, a format that the model does not have, or a text of less than two tokens.
pub fn measure_text(
    artifact: &Artifact, formats: &[NumberFormat], tokens: &Arc<[u32]>, length: usize, engine: Engine,
    device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    let config = artifact.description.llama()?;
    if let Some(&token) = tokens.iter().max().filter(|&&token| token as usize >= config.vocabulary) {
        return Err(TextError::Vocabulary { found: token as usize + 1, expected: config.vocabulary }.into());
    }
    let length = length.min(config.context);
    let loader = TextLoader::evaluation(tokens.clone(), length, text_batch(config, length), device.clone())?;
    measured(artifact, formats, || match engine {
        Engine::Fake => Ok(evaluate(&artifact.network::<Llama>(device)?, &loader, &passes(artifact, formats))?),
        Engine::Integer => {
            let networks = integer_llamas(artifact, formats, device)?;
            score(&loader, &networks, |network, tokens| Ok(network.forward(tokens)?))
        }
    })
}

/// How many questions a language model answers right in each of `formats`.
///
/// # Errors
/// Tensors that are no network, a format that the model does not have, or a question longer than its context.
pub fn answer(
    artifact: &Artifact, formats: &[NumberFormat], questions: &[Choices], tokenizer: &Tokenizer, engine: Engine,
    device: &Device,
) -> Result<Vec<ChoiceScore>, EvaluationError> {
    let config = artifact.description.llama()?;
    match engine {
        Engine::Fake => {
            let network = artifact.network::<Llama>(device)?;
            let of = |pass: &Pass| {
                score_choices(questions, tokenizer, config, device, |tokens| Ok(network.forward(tokens, pass)))
            };
            passes(artifact, formats).iter().map(of).collect()
        }
        Engine::Integer => {
            let of = |network: &IntLlama| {
                score_choices(questions, tokenizer, config, device, |tokens| Ok(network.forward(tokens)?))
            };
            integer_llamas(artifact, formats, device)?.iter().map(of).collect()
        }
    }
}

/// Pieces of a text that are measured together, so that there are some 16 million logits at most.
pub(crate) fn text_batch(config: &LlamaConfig, length: usize) -> usize {
    ((1 << 24) / (config.vocabulary * length)).clamp(1, 16)
}

/// Whether a model knows all tokens of a tokenizer.
///
/// # Errors
/// If it does not, or is no language model.
pub fn check_tokens(artifact: &Artifact, tokenizer: &Tokenizer) -> Result<(), EvaluationError> {
    Ok(tokenizer.check(artifact.description.llama()?.vocabulary)?)
}

/// The scores of a model in each of `formats`, with its size in each.
fn measured(
    artifact: &Artifact, formats: &[NumberFormat],
    scores: impl FnOnce() -> Result<Vec<Score>, EvaluationError>,
) -> Result<Vec<Measured>, EvaluationError> {
    let bytes = formats.iter().map(|&format| bytes(artifact, format)).collect::<Result<Vec<_>, _>>()?;
    let measured = |(Score { top1, loss }, model_bytes)| Measured { top1, loss, model_bytes };
    Ok(scores()?.into_iter().zip(bytes).map(measured).collect())
}

/// The model in integer arithmetic in each of `formats`; they share the stored codes.
pub(crate) fn integer_networks(
    artifact: &Artifact, formats: &[NumberFormat], device: &Device,
) -> Result<Vec<IntConvNet>, EvaluationError> {
    let precisions = precisions(artifact, formats)?;
    let Some(&first) = precisions.first() else { return Ok(vec![]) };
    let network = artifact.integer(first, device)?;
    let at = |&precision: &Precision| {
        let mut network = network.clone();
        network.switch(precision)?;
        Ok(network)
    };
    precisions.iter().map(at).collect()
}

/// The same for language models.
pub(crate) fn integer_llamas(
    artifact: &Artifact, formats: &[NumberFormat], device: &Device,
) -> Result<Vec<IntLlama>, EvaluationError> {
    let precisions = precisions(artifact, formats)?;
    let Some(&first) = precisions.first() else { return Ok(vec![]) };
    let network = artifact.integer_llama(first, device)?;
    let at = |&precision: &Precision| {
        let mut network = network.clone();
        network.switch(precision)?;
        Ok(network)
    };
    precisions.iter().map(at).collect()
}

/// The precisions that integer networks have in `formats`.
fn precisions(artifact: &Artifact, formats: &[NumberFormat]) -> Result<Vec<Precision>, EvaluationError> {
    let precision = |&format: &NumberFormat| match format {
        NumberFormat::Quantized(precision) => Ok(precision),
        // What is not pinned to the plan is pinned to this.
        NumberFormat::Mixed => Ok(artifact.description.edge),
        NumberFormat::Float => {
            let (found, expected) = (artifact.description.kind, "multi-precision or packed");
            Err(ArtifactError::Kind { found, expected })
        }
    };
    Ok(formats.iter().map(precision).collect::<Result<_, ArtifactError>>()?)
}

fn passes(artifact: &Artifact, formats: &[NumberFormat]) -> Vec<Pass<'static>> {
    formats.iter().map(|&format| pass(artifact, format)).collect()
}

fn pass(artifact: &Artifact, format: NumberFormat) -> Pass<'static> {
    match format {
        NumberFormat::Float => Pass::float(),
        NumberFormat::Quantized(precision) => Pass::at(precision),
        NumberFormat::Mixed => Pass::at(artifact.description.edge),
    }
}

/// The size of the model in one of its formats: as it is, or exported at the precision.
fn bytes(artifact: &Artifact, format: NumberFormat) -> Result<usize, ArtifactError> {
    match (format, artifact.description.kind) {
        (NumberFormat::Float, ArtifactKind::Float) | (NumberFormat::Mixed, ArtifactKind::PackedPlan) => {
            Ok(artifact.payload_bytes())
        }
        (NumberFormat::Quantized(precision), ArtifactKind::MultiPrecision) => {
            Ok(artifact.export(precision)?.payload_bytes())
        }
        (NumberFormat::Quantized(precision), ArtifactKind::Packed(packed)) => match precision == packed {
            true => Ok(artifact.payload_bytes()),
            false => Err(ArtifactError::Precision { precision, expected: PrecisionSet::of(packed) }),
        },
        (NumberFormat::Quantized(_), found) => {
            Err(ArtifactError::Kind { found, expected: "multi-precision or packed" })
        }
        (NumberFormat::Mixed, found) => Err(ArtifactError::Kind { found, expected: "packed plan" }),
        (NumberFormat::Float, found) => Err(ArtifactError::Kind { found, expected: "float" }),
    }
}

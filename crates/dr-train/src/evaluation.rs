//! What a saved model scores.

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described, InputShape, SavedModel};
use crate::config::Engine;
use crate::config::task::{DETECT, LANGUAGE, SEGMENT};
use crate::data::{Batch, ImageLoader, ImageSet, Input, Labelled, SceneLoader, SceneSet, Target};
use crate::detection::{BoxTargets, DecodeOptions, Found, Positions, decode};
use crate::generation::{ChoiceScore, GenerationError, score_choices};
use crate::metrics::{Confusion, Detection, Rect, Truth, mean_ap};
use crate::nn::{Pass, Value};
use crate::report::{Measured, NumberFormat};
use crate::text::{Choices, TextError, TextLoader, Tokenizer};
use crate::training::{Score, score};
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor};
use dr_precision::{Precision, PrecisionSet};
use dr_runtime::tensors::Network;
use dr_runtime::{Arithmetic, RuntimeError};
use std::cell::RefCell;
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
    /// A way to compute that is not for every task.
    #[error("engine {engine}: expected fake or integer for the task {task}")]
    Engine {
        /// The way.
        engine: Engine,
        /// The task.
        task: String,
    },
    /// The questions.
    #[error(transparent)]
    Generation(#[from] GenerationError),
    /// The text or the tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] dr_runtime::text::TextError),
    /// The network cannot compute with integers.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
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
        ArtifactKind::MultiPrecision | ArtifactKind::Nested => {
            description.precisions.iter().map(NumberFormat::from).collect()
        }
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
    measured(artifact, formats, || scores(artifact, formats, &loader, engine, device))
}

/// The same for a language model and a text that is seen in pieces of `length` tokens.
///
/// # Errors
/// Tensors that are no network, a format that the model does not have, or a text of less than two tokens.
pub fn measure_text(
    artifact: &Artifact, formats: &[NumberFormat], tokens: &Arc<[u32]>, length: usize, engine: Engine,
    device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    let [vocabulary, context] = language(artifact)?;
    if let Some(&token) = tokens.iter().max().filter(|&&token| token as usize >= vocabulary) {
        let found = token as usize + 1;
        return Err(dr_runtime::text::TextError::Vocabulary { found, expected: vocabulary }.into());
    }
    let length = length.min(context);
    let batch = text_batch(vocabulary, length);
    let loader = TextLoader::evaluation(tokens.clone(), length, batch, device.clone())?;
    measured(artifact, formats, || scores(artifact, formats, &loader, engine, device))
}

/// Tokens that a language model knows, and positions that it can look at.
///
/// # Errors
/// A model for another task.
pub(crate) fn language(artifact: &Artifact) -> Result<[usize; 2], ArtifactError> {
    let description = &artifact.description;
    description.check_task(LANGUAGE)?;
    Ok([description.classes, description.input.width])
}

/// What the model scores in each of `formats`.
fn scores<I: Input + Into<Value>, T: Target>(
    artifact: &Artifact, formats: &[NumberFormat], loader: &dyn DataLoader<Batch<I, T>>, engine: Engine,
    device: &Device,
) -> Result<Vec<Score>, EvaluationError> {
    score(loader, &networks(artifact, formats, engine, device)?, |forward, input| forward(input.into()))
}

/// What a model makes of an input, in one format.
pub(crate) type Forward = Box<dyn Fn(Value) -> Result<Tensor<2>, EvaluationError>>;

/// The model in each of `formats`.
///
/// # Errors
/// Tensors that are no network, and a format that the model does not have.
pub(crate) fn networks(
    artifact: &Artifact, formats: &[NumberFormat], engine: Engine, device: &Device,
) -> Result<Vec<Forward>, EvaluationError> {
    let arithmetic = match engine {
        Engine::Fake => {
            let passes = passes(artifact, formats)?;
            let model = artifact.network(device)?;
            let forward = |pass: Pass<'static>| {
                let model = model.clone();
                Box::new(move |input| Ok(model.forward(input, &pass))) as Forward
            };
            return Ok(passes.into_iter().map(forward).collect());
        }
        Engine::Integer => Arithmetic::Integer,
        Engine::WeightOnly if artifact.description.task == LANGUAGE => Arithmetic::WeightOnly,
        Engine::WeightOnly => {
            return Err(EvaluationError::Engine { engine, task: artifact.description.task.clone() });
        }
    };
    artifact.checked_graph()?;
    let networks = runtime_networks(artifact, formats, arithmetic, device)?.into_iter();
    Ok(networks.map(|network| Box::new(move |input| Ok(network.forward(input)?)) as Forward).collect())
}

/// How many questions a language model answers right in each of `formats`.
///
/// # Errors
/// Tensors that are no network, a format that the model does not have, or a question longer than its context.
pub fn answer(
    artifact: &Artifact, formats: &[NumberFormat], questions: &[Choices], tokenizer: &Tokenizer,
    engine: Engine, device: &Device,
) -> Result<Vec<ChoiceScore>, EvaluationError> {
    let sizes = language(artifact)?;
    let of = |forward: &Forward| {
        score_choices(questions, tokenizer, sizes, device, |tokens| forward(tokens.into()))
    };
    networks(artifact, formats, engine, device)?.iter().map(of).collect()
}

/// Pieces of a text that are measured together, so that there are some 16 million logits at most.
pub(crate) fn text_batch(vocabulary: usize, length: usize) -> usize {
    ((1 << 24) / (vocabulary * length)).clamp(1, 16)
}

/// Whether a model does `task` and takes such scenes.
///
/// # Errors
/// If it does something else, or their size or classes are others.
pub fn check_scenes(artifact: &Artifact, task: &str, scenes: &SceneSet) -> Result<(), EvaluationError> {
    let description = &artifact.description;
    description.check_task(task)?;
    let (found, expected) = (InputShape::from(scenes.shape()), description.input);
    if found != expected {
        return Err(EvaluationError::Shape { found, expected });
    }
    let found = scenes.names.len() + usize::from(task == SEGMENT);
    match found == description.classes {
        true => Ok(()),
        false => Err(EvaluationError::Classes { found, expected: description.classes }),
    }
}

/// Scenes in a batch of evaluation.
const SCENE_BATCH: usize = 32;

/// Where a detector looks for objects.
///
/// # Errors
/// Tensors that are no network, or one that says nothing about positions of images.
pub(crate) fn positions(artifact: &Artifact) -> Result<Positions, ArtifactError> {
    let input = artifact.description.input;
    let positions = Positions::of(artifact.graph()?, [input.height, input.width]);
    positions.ok_or_else(nowhere)
}

/// A detector that says nothing about positions of images.
pub(crate) fn nowhere() -> ArtifactError {
    ArtifactError::network("a detector without rows of positions of images")
}

/// Measures a segmentation in each of `formats`: `top1` is of pixels, `quality` the mean IoU.
///
/// # Errors
/// A model that is not for these scenes, or not sound.
pub fn measure_pixels(
    artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine, device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    check_scenes(artifact, SEGMENT, scenes)?;
    let networks = networks(artifact, formats, engine, device)?;
    let normalization = &artifact.description.normalization;
    let loader = SceneLoader::<Tensor<1, Int>>::new(
        scenes.clone(),
        normalization,
        (),
        SCENE_BATCH,
        None,
        device.clone(),
    );
    measured(artifact, formats, || {
        let confusions = RefCell::new(vec![Confusion::new(artifact.description.classes); networks.len()]);
        let truth = RefCell::new(scenes.classes.chunks(SCENE_BATCH * scenes.size[0] * scenes.size[1]));
        let current = RefCell::new(vec![]);
        let numbers: Vec<usize> = (0..networks.len()).collect();
        let mut scores = score(&loader, &numbers, |&number, images: Tensor<4>| {
            if number == 0 {
                let next = truth.borrow_mut().next().unwrap_or_default();
                *current.borrow_mut() = next.iter().map(|&class| u32::from(class)).collect::<Vec<u32>>();
            }
            let output = networks[number](images.into())?;
            let guesses = output.clone().argmax(1).into_data().convert::<u32>().try_into_vec::<u32>();
            confusions.borrow_mut()[number].add(&guesses.unwrap_or_default(), &current.borrow());
            Ok::<_, EvaluationError>(output)
        })?;
        for (score, confusion) in scores.iter_mut().zip(confusions.into_inner()) {
            score.quality = Some(100.0 * confusion.mean_iou());
        }
        Ok(scores)
    })
}

/// Measures a detection in each of `formats`: `top1` is of the positions with an object, `quality` COCO's mean average precision.
///
/// # Errors
/// A model that is not for these scenes, or not sound.
pub fn measure_boxes(
    artifact: &Artifact, formats: &[NumberFormat], scenes: &Arc<SceneSet>, engine: Engine, device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    check_scenes(artifact, DETECT, scenes)?;
    let (networks, positions) = (networks(artifact, formats, engine, device)?, positions(artifact)?);
    let normalization = &artifact.description.normalization;
    let loader = SceneLoader::<BoxTargets>::new(
        scenes.clone(),
        normalization,
        positions.clone(),
        SCENE_BATCH,
        None,
        device.clone(),
    );
    let truths: Vec<Truth> =
        scenes.boxes.iter().enumerate().flat_map(|(image, boxes)| truths(image, boxes)).collect();
    measured(artifact, formats, || {
        let found = RefCell::new(vec![(0, vec![]); networks.len()]);
        let numbers: Vec<usize> = (0..networks.len()).collect();
        let mut scores = score(&loader, &numbers, |&number, images: Tensor<4>| {
            let output = networks[number](images.into())?;
            let (first, detections) = &mut found.borrow_mut()[number];
            for boxes in decode(output.clone(), &positions, &DecodeOptions::default()) {
                detections.extend(boxes.iter().map(|found| detection(*first, found)));
                *first += 1;
            }
            Ok::<_, EvaluationError>(output)
        })?;
        for (score, (images, detections)) in scores.iter_mut().zip(found.into_inner()) {
            let precision = mean_ap(&truths, &detections, images, artifact.description.classes);
            score.quality = precision.ap.map(|ap| 100.0 * ap);
        }
        Ok(scores)
    })
}

fn truths(image: usize, boxes: &[Labelled]) -> impl Iterator<Item = Truth> {
    boxes.iter().map(move |&Labelled { rect, class }| {
        let bbox = corner_and_size(rect);
        Truth { image, class, bbox, area: bbox[2] * bbox[3], crowd: false }
    })
}

fn detection(image: usize, found: &Found) -> Detection {
    let Found { rect, class, score } = *found;
    Detection { image, class, bbox: corner_and_size(rect), score: score.into() }
}

/// Left, top, width and height.
fn corner_and_size(rect: Rect) -> [f64; 4] {
    let [left, top, right, bottom] = rect.map(f64::from);
    [left, top, right - left, bottom - top]
}

/// Whether a model knows all tokens of a tokenizer.
///
/// # Errors
/// If it does not, or is no language model.
pub fn check_tokens(artifact: &Artifact, tokenizer: &Tokenizer) -> Result<(), EvaluationError> {
    Ok(tokenizer.check(language(artifact)?[0])?)
}

/// The scores of a model in each of `formats`, with its size in each.
fn measured(
    artifact: &Artifact, formats: &[NumberFormat],
    scores: impl FnOnce() -> Result<Vec<Score>, EvaluationError>,
) -> Result<Vec<Measured>, EvaluationError> {
    let bytes = formats.iter().map(|&format| bytes(artifact, format)).collect::<Result<Vec<_>, _>>()?;
    let measured =
        |(Score { top1, loss, quality }, model_bytes)| Measured { top1, loss, quality, model_bytes };
    Ok(scores()?.into_iter().zip(bytes).map(measured).collect())
}

/// The model in integer or weight-only arithmetic in each of `formats`; they share the stored codes.
pub(crate) fn runtime_networks(
    artifact: &Artifact, formats: &[NumberFormat], arithmetic: Arithmetic, device: &Device,
) -> Result<Vec<Network>, EvaluationError> {
    let precisions = precisions(artifact, formats)?;
    let Some(&first) = precisions.first() else { return Ok(vec![]) };
    let network = Network::load(artifact, first, arithmetic, device)?;
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

/// The passes of `formats`.
fn passes(artifact: &Artifact, formats: &[NumberFormat]) -> Result<Vec<Pass<'static>>, ArtifactError> {
    let pass = |&format: &NumberFormat| {
        Ok(match format {
            NumberFormat::Float => Pass::float(),
            NumberFormat::Quantized(precision) => {
                artifact.check_precision(precision)?;
                Pass::at(precision)
            }
            NumberFormat::Mixed => Pass::at(artifact.description.edge),
        })
    };
    formats.iter().map(pass).collect()
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

//! What a saved model scores.

use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described, InputShape, SavedModel};
use crate::config::task::{LANGUAGE, SEGMENT};
use crate::config::{Engine, Fit};
use crate::data::{
    Batch, ClassError, ImageFiles, ImageLoader, ImageSet, ImageShape, Input, SceneSet, Target,
};
use crate::detection::Positions;
use crate::generation::{ChoiceScore, GenerationError, score_choices};
use crate::nn::{Pass, Tensors, Value};
use crate::quantization::{CalibratedModel, Dynamic, NestedModel};
use crate::report::{Agreement, Measured, NumberFormat};
use crate::text::{Choices, TextError, TextLoader, Tokenizer};
use crate::training::{Score, score};
use crate::values::values;
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::host::language::divergence;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::NestedWeight;
use dr_runtime::tensors::Network;
use dr_runtime::{Arithmetic, RuntimeError};
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;
use thiserror::Error;

/// Images in a batch of evaluation.
pub(crate) const EVAL_BATCH: usize = 256;

/// Pixels in one, at most, where single images have fewer.
const EVAL_PIXELS: usize = 1 << 20;

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
    /// Images that are made of pictures in another way.
    #[error("the pictures become images by --fit {found}: the model expects --fit {expected}")]
    Fit {
        /// Of the images.
        found: Fit,
        /// Of the model.
        expected: Fit,
    },
    /// Images of other classes.
    #[error("the images have {found} classes: the model expects {expected}")]
    Classes {
        /// Of the images.
        found: usize,
        /// Of the model.
        expected: usize,
    },
    /// Classes of other names.
    #[error("{0}, as the model has it")]
    Names(#[from] ClassError),
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
    /// A model to compare with that knows other tokens.
    #[error("the model to compare with knows {found} tokens: expected {expected}, as the model does")]
    Reference {
        /// Of the model to compare with.
        found: usize,
        /// Of the model.
        expected: usize,
    },
    /// Pieces of a text that are longer than what a model looks at.
    #[error("pieces of {found} tokens: expected 1 to {expected}, the model's context")]
    Window {
        /// Tokens of a piece.
        found: usize,
        /// The most that there can be.
        expected: usize,
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
    /// The network cannot compute with integers.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// An array of which sizes are not known, or that is too large.
    #[error(
        "the input `{name}`: expected sizes that the file does not leave open but for the first, of at most {most} values"
    )]
    Sizes {
        /// Its name.
        name: String,
        /// The most values.
        most: usize,
    },
    /// The images could not be prepared.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

/// Whether a model takes such images.
///
/// # Errors
/// If their size or number of classes is another.
pub fn check_images(artifact: &Artifact, images: &ImageSet) -> Result<(), EvaluationError> {
    check_size(artifact, images.shape())?;
    check_classes(artifact, images.classes())
}

/// Whether a model takes images of such a size, whatever they show.
///
/// # Errors
/// If their size is another.
pub fn check_size(artifact: &Artifact, shape: ImageShape) -> Result<(), EvaluationError> {
    let (found, expected) = (InputShape::from(shape), artifact.description.input);
    if found == expected { Ok(()) } else { Err(EvaluationError::Shape { found, expected }) }
}

fn check_classes(artifact: &Artifact, found: usize) -> Result<(), EvaluationError> {
    let expected = artifact.description.classes;
    if found == expected { Ok(()) } else { Err(EvaluationError::Classes { found, expected }) }
}

/// Whether classes are called as those of a model, where both are known.
///
/// # Errors
/// The first that is not.
pub fn check_names(artifact: &Artifact, names: &[String]) -> Result<(), EvaluationError> {
    let expected = &artifact.description.class_names;
    match names.is_empty() || expected.is_empty() {
        true => Ok(()),
        false => Ok(ClassError::check(names, expected)?),
    }
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
        _ if description.plan.is_some() => vec![NumberFormat::Mixed],
        ArtifactKind::Float => vec![NumberFormat::Float],
        ArtifactKind::Packed(precision) => vec![precision.into()],
        ArtifactKind::MultiPrecision | ArtifactKind::Nested | ArtifactKind::Calibrated => {
            description.precisions.iter().map(NumberFormat::from).collect()
        }
        ArtifactKind::PackedPlan => vec![NumberFormat::Mixed],
    }
}

/// Measures a model in each of `formats`, on the device, and, with a `reference`, how near the predictions are to those of that model in fake
/// quantization: at the same precision, or in floats if it is a model in floats. [`Engine::Integer`] is for quantized formats only.
///
/// # Errors
/// Tensors that are no network, a format that the model or the reference does not have, images that do not fit it, a reference for other
/// images.
pub fn measure(
    artifact: &Artifact, formats: &[NumberFormat], images: &ImageSet, engine: Engine,
    reference: Option<&Artifact>, device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    check_images(artifact, images)?;
    if let Some(reference) = reference {
        check_images(reference, images)?;
        check_names(artifact, &reference.description.class_names)?;
    }
    let loader = evaluation_loader(artifact, images, device);
    compared(artifact, formats, &loader, engine, reference, device)
}

/// Images as a model takes them, in their order.
fn evaluation_loader(artifact: &Artifact, images: &ImageSet, device: &Device) -> ImageLoader {
    let description = &artifact.description;
    let batch = EVAL_BATCH.min(EVAL_PIXELS / (description.input.height * description.input.width).max(1));
    let normalization = description.normalization.clone();
    ImageLoader::evaluation(images.clone(), normalization, batch.max(1), device.clone())
}

/// The same files, each with the class that a model in floats, or at its highest precision, gives it.
///
/// # Errors
/// Tensors that are no network, and images that do not fit it.
pub fn labelled(
    reference: &Artifact, images: &ImageFiles, device: &Device,
) -> Result<ImageFiles, EvaluationError> {
    check_size(reference, images.shape)?;
    let count = reference.description.classes;
    // Files that cannot be read are left out, so each says which it is.
    let numbers: Vec<usize> = (0..images.len()).collect();
    let numbered = ImageSet::from(images.with_classes(&numbers, images.len()));
    let mut classes = vec![0; images.len()];
    let formats = formats(reference);
    let networks = networks(reference, &formats[..1], Engine::Fake, device)?;
    for batch in evaluation_loader(reference, &numbered, device).iter() {
        let Batch { input, labels } = batch?;
        for forward in &networks {
            let found = values::<u32>(forward(input.clone().into())?.argmax(1).into_data());
            let numbers = values::<u32>(labels.classes.clone().into_data());
            numbers.iter().zip(found).for_each(|(&at, class)| classes[at as usize] = class as usize);
        }
    }
    Ok(images.with_classes(&classes, count))
}

/// What the model scores, and how near its predictions are to those of a reference, if there is one.
fn compared<I: Input + Into<Value>, T: Target>(
    artifact: &Artifact, formats: &[NumberFormat], loader: &dyn DataLoader<Batch<I, T>>, engine: Engine,
    reference: Option<&Artifact>, device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    let Some(reference) = reference else {
        return measured(artifact, formats, || scores(artifact, formats, loader, engine, device));
    };
    let comparison = Comparison::new(reference, formats, device)?;
    let networks: Vec<_> = networks(artifact, formats, engine, device)?.into_iter().enumerate().collect();
    let mut results = measured(artifact, formats, || {
        score(loader, &networks, |(at, forward), input, _| {
            let input = input.into();
            comparison.observe(*at, input.clone(), forward(input)?)
        })
    })?;
    for (measured, agreement) in results.iter_mut().zip(comparison.agreements()) {
        measured.agreement = Some(agreement);
    }
    Ok(results)
}

/// The same for a language model and a text that is seen in pieces of `length` tokens, and, with a `reference`, how near the predictions
/// are to those of that model in fake quantization: at the same precision, or in floats if it is a model in floats.
///
/// # Errors
/// Tensors that are no network, a format that the model or the reference does not have, a text of less than two tokens, pieces that are
/// longer than the context, a reference of another vocabulary.
pub fn measure_text(
    artifact: &Artifact, formats: &[NumberFormat], tokens: &Arc<[u32]>, length: usize, engine: Engine,
    reference: Option<&Artifact>, device: &Device,
) -> Result<Vec<Measured>, EvaluationError> {
    let [vocabulary, context] = language(artifact)?;
    if let Some(&token) = tokens.iter().max().filter(|&&token| token as usize >= vocabulary) {
        let found = token as usize + 1;
        let error = dr_runtime::text::TextError::Vocabulary { found, expected: vocabulary };
        return Err(TextError::from(error).into());
    }
    if !(1..=context).contains(&length) {
        return Err(EvaluationError::Window { found: length, expected: context });
    }
    let batch = text_batch(vocabulary, length);
    let loader = TextLoader::evaluation(tokens.clone(), length, batch, device.clone())?;
    if let Some(reference) = reference {
        let [found, _] = language(reference)?;
        if found != vocabulary {
            return Err(EvaluationError::Reference { found, expected: vocabulary });
        }
    }
    compared(artifact, formats, &loader, engine, reference, device)
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
    score(loader, &networks(artifact, formats, engine, device)?, |forward, input, _| forward(input.into()))
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
        Engine::Fake if artifact.description.kind == ArtifactKind::Nested => {
            return Ok(nested_networks(artifact, formats, device)?);
        }
        Engine::Fake if artifact.description.kind == ArtifactKind::Calibrated => {
            return Ok(calibrated_networks(artifact, formats, device)?);
        }
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

/// A model with nested weights in each of `formats`, in fake quantization.
fn nested_networks(
    artifact: &Artifact, formats: &[NumberFormat], device: &Device,
) -> Result<Vec<Forward>, ArtifactError> {
    let (model, nested) = (artifact.network(device)?, NestedModel { weights: artifact.nested()? });
    let forward = |precision: Precision| {
        let model = nested.dequantized(model.clone(), nested_widths(artifact, precision)?);
        let forward = move |input| match model.run(&mut Dynamic(Tensors::new(&Pass::float())), input) {
            Value::Rows(rows) => Ok(rows),
            _ => Err(ArtifactError::network("a language model whose result is no logits").into()),
        };
        Ok(Box::new(forward) as Forward)
    };
    precisions(artifact, formats)?.into_iter().map(forward).collect()
}

/// A model with calibrated layers in each of `formats`, in fake quantization.
fn calibrated_networks(
    artifact: &Artifact, formats: &[NumberFormat], device: &Device,
) -> Result<Vec<Forward>, ArtifactError> {
    let forward = |precision: Precision| {
        let model = CalibratedModel::new(artifact, precision, device)?;
        let forward = move |input| match model.run(input) {
            Value::Rows(rows) => Ok(rows),
            _ => Err(ArtifactError::network("a model whose result is no rows").into()),
        };
        Ok(Box::new(forward) as Forward)
    };
    precisions(artifact, formats)?.into_iter().map(forward).collect()
}

/// The width that each nested weight has at a precision, by its name.
fn nested_widths(
    artifact: &Artifact, precision: Precision,
) -> Result<impl Fn(&str) -> BitWidth + '_, ArtifactError> {
    let description = &artifact.description;
    let expected = description.precisions().unwrap_or_else(|| description.precisions.clone());
    if expected.position(precision).is_none() {
        return Err(ArtifactError::Precision { precision, expected });
    }
    let planned = |name: &str| description.plan.as_ref().and_then(|plan| plan.get(name));
    Ok(move |name: &str| planned(name).unwrap_or(precision).weights)
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

/// The predictions of a reference beside those of some networks.
struct Comparison {
    /// One for each network, or one for all.
    reference: Vec<Forward>,
    /// The reference's logits of the batch that networks see at present.
    logits: RefCell<TensorData>,
    /// Of each network's predictions so far.
    observed: Vec<RefCell<Observed>>,
}

/// Predictions beside those of a reference.
#[derive(Default)]
struct Observed {
    divergences: Vec<f32>,
    /// How many have the same class or token first; and of those of which the reference is [sure](Agreement::sure).
    same: [usize; 2],
    /// How many of these there are.
    sure: usize,
    /// Sums of squares of the differences, and of the reference.
    squares: [f64; 2],
}

impl Comparison {
    fn new(reference: &Artifact, formats: &[NumberFormat], device: &Device) -> Result<Self, EvaluationError> {
        let of = match reference.description.kind {
            ArtifactKind::Float => &[NumberFormat::Float],
            _ => formats,
        };
        let reference = networks(reference, of, Engine::Fake, device)?;
        let logits = RefCell::new(TensorData::new(Vec::<f32>::new(), [0]));
        Ok(Self { reference, logits, observed: formats.iter().map(|_| RefCell::default()).collect() })
    }

    /// Compares what network `at` made of a batch, which all networks see one after the other, and gives it back.
    fn observe(&self, at: usize, input: Value, output: Tensor<2>) -> Result<Tensor<2>, EvaluationError> {
        if let Some(forward) = self.reference.get(at) {
            *self.logits.borrow_mut() = forward(input)?.into_data().convert::<f32>();
        }
        let ([_, classes], device) = (output.dims(), output.device());
        let (output, logits) = (output.into_data().convert::<f32>(), self.logits.borrow());
        let rows = match (logits.as_slice(), output.as_slice()) {
            (Ok(logits), Ok(output)) => divergence(logits, output, classes).map_err(RuntimeError::from)?,
            _ => vec![],
        };
        if let (Ok(logits), Ok(output)) = (logits.as_slice::<f32>(), output.as_slice::<f32>()) {
            self.observed[at].borrow_mut().add(&rows, logits, output, classes);
        }
        Ok(Tensor::from_data(output, &device))
    }

    fn agreements(self) -> impl Iterator<Item = Agreement> {
        self.observed.into_iter().map(|observed| {
            let Observed { mut divergences, same, sure, squares: [error, all] } = observed.into_inner();
            let count = divergences.len();
            let sum: f64 = divergences.iter().copied().map(f64::from).sum();
            divergences.sort_unstable_by(f32::total_cmp);
            let most = divergences.get(divergences.len() * 99 / 100).copied().unwrap_or(f32::NAN);
            Agreement {
                divergence: sum / count as f64,
                divergence_99: most.into(),
                same_top1: 100.0 * same[0] as f64 / count as f64,
                relative_error: if count == 0 {
                    f64::NAN
                } else {
                    (error / all.max(f64::MIN_POSITIVE)).sqrt()
                },
                sure,
                same_top1_sure: 100.0 * same[1] as f64 / sure as f64,
            }
        })
    }
}

impl Observed {
    /// Rows of so many classes, of which `rows` has the divergence and whether the first class is the same.
    fn add(&mut self, rows: &[(f64, bool)], logits: &[f32], output: &[f32], classes: usize) {
        self.divergences.extend(rows.iter().map(|(divergence, _)| *divergence as f32));
        let classes = classes.max(1);
        let of_row = |(expected, found): (&[f32], &[f32])| {
            let pairs =
                expected.iter().zip(found).map(|(&expected, &found)| [expected, found].map(f64::from));
            let squares = pairs.fold([0.0; 2], |[error, all], [expected, found]| {
                [error + (found - expected).powi(2), all + expected * expected]
            });
            (margin(expected) > SURE, squares)
        };
        let found: Vec<_> = logits.par_chunks(classes).zip(output.par_chunks(classes)).map(of_row).collect();
        for ((_, is_same), (is_sure, squares)) in rows.iter().zip(found) {
            self.sure += usize::from(is_sure);
            self.same[0] += usize::from(*is_same);
            self.same[1] += usize::from(*is_same && is_sure);
            self.squares.iter_mut().zip(squares).for_each(|(sum, square)| *sum += square);
        }
    }
}

/// By how much the most likely class is to be likelier than the next for a model to be sure of it.
const SURE: f64 = 0.1;

/// By how much the most likely class is likelier than the next.
fn margin(logits: &[f32]) -> f64 {
    let [first, second] = logits.iter().fold([f32::NEG_INFINITY; 2], |[first, second], &logit| match logit {
        _ if logit > first => [logit, first],
        _ => [first, second.max(logit)],
    });
    let part = |logit: f32| f64::from(logit - first).exp();
    (1.0 - part(second)) / logits.iter().map(|&logit| part(logit)).sum::<f64>()
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
    artifact.description.check_task(task)?;
    check_size(artifact, scenes.shape())?;
    let (found, expected) = (scenes.fit, artifact.description.resize.into());
    if found != expected {
        return Err(EvaluationError::Fit { found, expected });
    }
    check_names(artifact, &scenes.names)?;
    check_classes(artifact, scenes.names.len() + usize::from(task == SEGMENT))
}

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

/// Whether a model knows the tokens of a tokenizer, [a few](Tokenizer::unknown_to) apart.
///
/// # Errors
/// If it does not, or is no language model.
pub fn check_tokens(artifact: &Artifact, tokenizer: &Tokenizer) -> Result<(), EvaluationError> {
    Ok(tokenizer.unknown_to(language(artifact)?[0]).map(drop).map_err(TextError::from)?)
}

/// The scores of a model in each of `formats`, with its size in each.
pub(crate) fn measured(
    artifact: &Artifact, formats: &[NumberFormat],
    scores: impl FnOnce() -> Result<Vec<Score>, EvaluationError>,
) -> Result<Vec<Measured>, EvaluationError> {
    let bytes = formats.iter().map(|&format| bytes(artifact, format)).collect::<Result<Vec<_>, _>>()?;
    let is_language = artifact.description.task == LANGUAGE;
    let measured = |(Score { top1, loss, quality }, model_bytes)| Measured {
        top1,
        loss,
        perplexity: is_language.then(|| loss.exp()),
        quality,
        agreement: None,
        model_bytes,
    };
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
pub(crate) fn precisions(
    artifact: &Artifact, formats: &[NumberFormat],
) -> Result<Vec<Precision>, ArtifactError> {
    let precision = |&format: &NumberFormat| match format {
        NumberFormat::Quantized(precision) => Ok(precision),
        // What is not pinned to the plan is pinned to this.
        NumberFormat::Mixed => Ok(artifact.description.edge),
        NumberFormat::Float => {
            let (found, expected) = (artifact.description.kind, "multi-precision or packed");
            Err(ArtifactError::Kind { found, expected })
        }
    };
    formats.iter().map(precision).collect()
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
        (NumberFormat::Quantized(precision), ArtifactKind::MultiPrecision | ArtifactKind::Calibrated) => {
            Ok(artifact.export(precision)?.payload_bytes())
        }
        (NumberFormat::Mixed, ArtifactKind::Nested) if artifact.description.plan.is_some() => {
            bytes(artifact, artifact.description.edge.into())
        }
        (NumberFormat::Quantized(precision), ArtifactKind::Nested) => {
            let nested = artifact.nested()?;
            let parts = nested.iter().flat_map(|(name, weight)| weight.tensors(name));
            let parts: usize = parts.map(|(_, entry)| entry.byte_len()).sum();
            let width = nested_widths(artifact, precision)?;
            let at = |(name, weight): (&String, &NestedWeight)| weight.bytes(width(name));
            Ok(artifact.payload_bytes() - parts + nested.iter().map(at).sum::<usize>())
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

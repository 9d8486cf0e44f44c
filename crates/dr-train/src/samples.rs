//! Images with what a model makes of them, to check other runtimes by.

use crate::artifact::{Artifact, TensorEntry, TensorValues};
use crate::data::{ImageBatch, ImageLoader, ImageSet};
use crate::evaluation::{EVAL_BATCH, EvaluationError, check_images, runtime_networks};
use crate::files::{FileError, at, write_atomically};
use crate::report::NumberFormat;
use crate::values::values;
use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use dr_runtime::Arithmetic;
use safetensors::{SafeTensorError, SafeTensors};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The names in the file: `[n, channels, rows, columns]`, normalised; `[n]`; `[n, classes]`.
const IMAGES: &str = "images";
const LABELS: &str = "labels";
const LOGITS: &str = "logits";

/// Images, their classes, and the logits of a model in integer arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    tensors: BTreeMap<String, TensorEntry>,
}

/// Why samples cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SamplesError {
    /// A file.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A damaged file.
    #[error("`{}`: not a sound safetensors file: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SafeTensorError,
    },
    /// Another type or shape.
    #[error("`{}`: `{name}` is {found}: expected {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// How another runtime's logits compare with the model's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Agreement {
    /// How many were compared.
    pub images: usize,
    /// Images that get the same class, in percent.
    pub same: f64,
    /// Top-1 accuracy of the model, in percent.
    pub top1: f64,
    /// That of the other runtime.
    pub their_top1: f64,
    /// The largest difference of two logits, as a part of the model's largest one.
    pub largest_difference: f64,
}

impl Samples {
    /// The images, and what a model makes of them in integers at `format`.
    ///
    /// # Errors
    /// Images that do not fit the model, or a format that it does not have.
    pub fn new(
        artifact: &Artifact, format: NumberFormat, images: &ImageSet, device: &Device,
    ) -> Result<Self, EvaluationError> {
        check_images(artifact, images)?;
        let normalization = artifact.description.normalization.clone();
        let loader = ImageLoader::evaluation(images.clone(), normalization, EVAL_BATCH, device.clone());
        let networks = runtime_networks(artifact, &[format], Arithmetic::Integer, device)?;
        let (mut pixels, mut labels, mut logits) = (vec![], vec![], vec![]);
        for batch in loader.iter() {
            let ImageBatch { input: images, labels: classes } = batch?;
            labels.extend(values::<u32>(classes.classes.into_data()));
            for network in &networks {
                logits.extend(values::<f32>(network.forward(images.clone())?.into_data()));
            }
            pixels.extend(values::<f32>(images.into_data()));
        }
        let (input, count) = (artifact.description.input, labels.len());
        let tensors = BTreeMap::from([
            (IMAGES.into(), TensorEntry::f32([count, input.channels, input.height, input.width], pixels)),
            (LABELS.into(), TensorEntry::u32([count], labels)),
            (LOGITS.into(), TensorEntry::f32([count, artifact.description.classes], logits)),
        ]);
        Ok(Self { tensors })
    }

    /// Writes them as safetensors, in one step.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn save(&self, path: &Path) -> Result<(), SamplesError> {
        let bytes = safetensors::serialize(&self.tensors, None);
        let bytes = bytes.map_err(|source| SamplesError::Format { path: path.into(), source })?;
        Ok(write_atomically(path, &bytes).map_err(at(path))?)
    }
}

/// Compares the logits in the file `theirs` with those in the file `samples`.
///
/// # Errors
/// Files that cannot be read or do not fit together.
pub fn compare(samples: &Path, theirs: &Path) -> Result<Agreement, SamplesError> {
    let (shape, ours) = logits(samples, None)?;
    let labels = labels(samples, shape[0])?;
    let (_, theirs) = logits(theirs, Some(&shape))?;
    let classes = shape[1].max(1);
    let guess = |logits: &[f32]| {
        let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
        (0..logits.len()).fold(0, better)
    };
    let [mut same, mut right, mut their_right] = [0; 3];
    for ((our, their), &label) in ours.chunks(classes).zip(theirs.chunks(classes)).zip(&labels) {
        let (our, their) = (guess(our), guess(their));
        same += usize::from(our == their);
        right += usize::from(our == label);
        their_right += usize::from(their == label);
    }
    let largest = ours.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    let difference = ours.iter().zip(&theirs).map(|(our, their)| f64::from((our - their).abs()));
    let percent = |count: usize| 100.0 * count as f64 / labels.len().max(1) as f64;
    // NaN is no agreement.
    let worst = difference.fold(0.0, |worst: f64, d| if d.is_nan() { f64::INFINITY } else { worst.max(d) });
    Ok(Agreement {
        images: labels.len(),
        same: percent(same),
        top1: percent(right),
        their_top1: percent(their_right),
        largest_difference: worst / f64::from(largest).max(f64::MIN_POSITIVE),
    })
}

/// Logits of the expected shape, or of two axes.
fn logits(path: &Path, expected: Option<&[usize]>) -> Result<(Vec<usize>, Vec<f32>), SamplesError> {
    let entry = read(path, LOGITS)?;
    let fits = expected.map_or(entry.shape.len() == 2, |expected| entry.shape == expected);
    match &entry.data {
        TensorValues::F32(values) if fits => Ok((entry.shape.clone(), values.to_vec())),
        _ => {
            let expected = expected.map_or("[images, classes]".into(), |shape| format!("{shape:?}"));
            Err(unexpected(path, LOGITS, &entry, format!("F32 {expected}")))
        }
    }
}

fn labels(path: &Path, count: usize) -> Result<Vec<usize>, SamplesError> {
    let entry = read(path, LABELS)?;
    match &entry.data {
        TensorValues::U32(values) if entry.shape == [count] => {
            Ok(values.iter().map(|&label| label as usize).collect())
        }
        _ => Err(unexpected(path, LABELS, &entry, format!("U32 [{count}]"))),
    }
}

fn unexpected(path: &Path, name: &'static str, entry: &TensorEntry, expected: String) -> SamplesError {
    let found = format!("{} {:?}", entry.data.type_name(), entry.shape);
    SamplesError::Tensor { path: path.into(), name, found, expected }
}

/// One tensor of a file.
fn read(path: &Path, name: &'static str) -> Result<TensorEntry, SamplesError> {
    let bytes = std::fs::read(path).map_err(at(path))?;
    let wrong = |source| SamplesError::Format { path: path.into(), source };
    let file = SafeTensors::deserialize(&bytes).map_err(wrong)?;
    let view = file.tensor(name).map_err(wrong)?;
    let words = || view.data().as_chunks().0.iter().copied();
    match view.dtype() {
        safetensors::Dtype::F32 => {
            Ok(TensorEntry::f32(view.shape(), words().map(f32::from_le_bytes).collect()))
        }
        safetensors::Dtype::U32 => {
            Ok(TensorEntry::u32(view.shape(), words().map(u32::from_le_bytes).collect()))
        }
        other => Err(SamplesError::Tensor {
            path: path.into(),
            name,
            found: format!("{other:?}"),
            expected: "F32 or U32".into(),
        }),
    }
}

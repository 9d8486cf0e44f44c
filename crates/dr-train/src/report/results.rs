//! [`Report`].

use super::NumberFormat;
#[cfg(feature = "program")]
use super::plot;
use crate::config::TrainConfig;
use crate::config::task::before;
#[cfg(feature = "program")]
use crate::files::write_atomically;
use crate::files::{FileError, at};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use thiserror::Error;

/// The name of the report in the folder of a run.
/// The report of a run, in its folder.
pub const REPORT_FILE: &str = "report.json";

/// The results of a training run or of an evaluation; `report.json`.
///
/// Accuracies (`top1`) are in percent. Those outside `history` are on the test split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What the network does.
    #[serde(default = "before")]
    pub task: String,
    /// The dataset.
    pub dataset: String,
    /// The network.
    pub model: String,
    /// The seed.
    pub seed: u64,
    /// What it ran on.
    pub device: String,
    /// How long it took.
    pub seconds: f64,
    /// Images in the test split.
    pub test_images: usize,
    /// Files of images that could not be read, in all splits.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped_images: usize,
    /// The float network that joint training started from, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float: Option<Measured>,
    /// The one network at its precisions, highest first.
    pub precisions: Vec<PrecisionResult>,
    /// Separately trained networks, one for each format, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub single: Vec<SingleResult>,
    /// Median time of an epoch of float training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float_epoch_seconds: Option<f64>,
    /// Median time of an epoch of joint training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joint_epoch_seconds: Option<f64>,
    /// Every epoch, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<EpochRecord>,
    /// The settings of the training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<TrainConfig>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// A mean over nothing is NaN, which JSON writes as `null`.
fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// The same of what may be missing.
fn some_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    or_nan(deserializer).map(Some)
}

/// What was measured of one network in one format. Means over nothing are NaN.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Percent of the test images whose class comes first.
    #[serde(deserialize_with = "or_nan")]
    pub top1: f64,
    /// Mean loss: of classes the cross-entropy.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Of texts `e` to the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Of segmentations the mean IoU of the classes with the background, of detections COCO's mean average precision, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<f64>,
    /// How near predictions are to those of another model, if they were compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
    /// Bytes of the model's tensors, packed.
    pub model_bytes: usize,
}

/// How near the predictions of a model are to those of another one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The mean Kullback-Leibler divergence from the other's distribution of the class or next token, in nats.
    #[serde(deserialize_with = "or_nan")]
    pub divergence: f64,
    /// What 99 % of the divergences are at most.
    #[serde(deserialize_with = "or_nan")]
    pub divergence_99: f64,
    /// Percent of the images or positions where both hold the same class or token for the most likely one.
    #[serde(deserialize_with = "or_nan")]
    pub same_top1: f64,
    /// The root of the squared differences of all logits over that of the other's squared logits.
    #[serde(default, deserialize_with = "or_nan")]
    pub relative_error: f64,
    /// Images or positions of which the other is sure: its most likely class is likelier than the next by more than a tenth.
    #[serde(default)]
    pub sure: usize,
    /// The same percentage, of these.
    #[serde(default, deserialize_with = "or_nan")]
    pub same_top1_sure: f64,
}

/// The network at one precision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecisionResult {
    /// The precision.
    pub precision: NumberFormat,
    /// What was measured.
    #[serde(flatten)]
    pub measured: Measured,
}

/// A network trained for one format only.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SingleResult {
    /// The format.
    pub precision: NumberFormat,
    /// Percent of the test images whose class comes first.
    #[serde(deserialize_with = "or_nan")]
    pub top1: f64,
}

/// The two parts of a training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainPhase {
    /// Training the float network.
    Float,
    /// Training all precisions together.
    Joint,
}

/// One epoch of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// The part of the run.
    pub phase: TrainPhase,
    /// Counted from 1 in each phase.
    pub epoch: usize,
    /// How long it took.
    pub seconds: f64,
    /// What was measured for each format that was trained.
    pub curves: BTreeMap<NumberFormat, CurvePoint>,
}

/// One format after one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Mean loss over the epoch's training images.
    #[serde(deserialize_with = "or_nan")]
    pub train_loss: f64,
    /// Accuracy on the validation split, in percent.
    #[serde(deserialize_with = "or_nan")]
    pub valid_top1: f64,
    /// Loss on the validation split, where the best epoch is chosen by it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_or_nan")]
    pub valid_loss: Option<f64>,
}

/// Why a report could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReportError {
    /// The file system.
    #[error("`{}` cannot be written: {}", .0.path.display(), .0.source)]
    Write(FileError),
    /// The file system.
    #[error("`{}` cannot be read: {}", .0.path.display(), .0.source)]
    Read(FileError),
    /// The results cannot be put into JSON, or the JSON is not that of a report.
    #[error("the report's JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The results cannot be drawn.
    #[error("the report cannot be drawn: {0}")]
    Draw(String),
}

impl Report {
    /// The report as indented JSON.
    ///
    /// # Errors
    /// [`ReportError::Json`].
    pub fn to_json(&self) -> Result<String, ReportError> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// The report as a picture: accuracy per precision, and training curves.
    ///
    /// # Errors
    /// [`ReportError::Draw`].
    #[cfg(feature = "program")]
    pub fn to_svg(&self) -> Result<String, ReportError> {
        plot::draw(self).map_err(ReportError::Draw)
    }

    /// Writes `report.svg` and `report.json` into a folder, each in one step.
    ///
    /// # Errors
    /// If they cannot be made or written.
    #[cfg(feature = "program")]
    pub fn save(&self, folder: &Path) -> Result<(), ReportError> {
        for (name, content) in [("report.svg", self.to_svg()?), (REPORT_FILE, self.to_json()?)] {
            let path = folder.join(name);
            write_atomically(&path, content.as_bytes()).map_err(at(&path)).map_err(ReportError::Write)?;
        }
        Ok(())
    }

    /// The report in the folder of a finished run.
    ///
    /// # Errors
    /// If there is none that can be read.
    pub fn load(folder: &Path) -> Result<Self, ReportError> {
        let path = folder.join(REPORT_FILE);
        let json = std::fs::read(&path).map_err(at(&path)).map_err(ReportError::Read)?;
        Ok(serde_json::from_slice(&json)?)
    }

    /// The accuracy of the separately trained network of a format, if there is one.
    #[must_use]
    pub fn single_top1(&self, format: NumberFormat) -> Option<f64> {
        self.single.iter().find(|result| result.precision == format).map(|result| result.top1)
    }
}

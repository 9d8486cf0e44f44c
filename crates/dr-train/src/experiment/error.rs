//! [`RunError`]: why a run did not end well.

use crate::artifact::ArtifactError;
use crate::config::{ComputeKind, UnknownName};
use crate::data::{DataError, SceneError};
use crate::device::DeviceError;
use crate::evaluation::EvaluationError;
use crate::files::FileError;
use crate::mixed::HessianError;
use crate::nn::TraceError;
use crate::report::ReportError;
use crate::text::TextError;
use crate::training::PhaseError;
use crate::weights::WeightsError;
use crate::workers::WorkerError;
use burn::data::dataset::DatasetError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a run did not end well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// A name that the program does not know.
    #[error(transparent)]
    Name(#[from] UnknownName),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The data, in the middle of an epoch.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The text or the tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] dr_runtime::text::TextError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The training.
    #[error(transparent)]
    Phase(#[from] PhaseError),
    /// A worker, in the middle of the training.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The weights to start from.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A model file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The Hessian traces that mixed training draws by.
    #[error(transparent)]
    Hessian(#[from] HessianError),
    /// The network that resulted cannot be measured.
    #[error(transparent)]
    Evaluation(#[from] EvaluationError),
    /// A network that is none.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A saved model, and data that do not fit it.
    #[error("`{}`: {error}", path.display())]
    InModel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The float network of the run that is resumed is another one.
    #[error("`{}`: a {found} model: expected {expected}, as the run's settings say", path.display())]
    OtherModel {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: String,
        /// What the settings say.
        expected: String,
    },
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// A file or folder of the run.
    #[error(transparent)]
    File(#[from] FileError),
    /// Settings that do not go together.
    #[error("--task {task} with --dataset {dataset} and --model {model}: expected {expected}")]
    Task {
        /// The task.
        task: &'static str,
        /// The data.
        dataset: String,
        /// The network.
        model: String,
        /// What goes with the task.
        expected: &'static str,
    },
    /// Settings that a task has no use for.
    #[error("--task {task}: {setting}: expected without it")]
    Setting {
        /// The task.
        task: &'static str,
        /// The setting.
        setting: &'static str,
    },
    /// A flag that nothing has a use for.
    #[error("--{flag}: {by} has no use for it: expected {expected}")]
    Unused {
        /// The flag.
        flag: String,
        /// What is asked for.
        by: String,
        /// What would have a use for it.
        expected: String,
    },
    /// No folder.
    #[error(
        "dataset coco: expected --data-dir, a folder with images and annotations as `dr-train scenes` makes one"
    )]
    NoScenes,
    /// The scenes.
    #[error(transparent)]
    Scenes(#[from] SceneError),
    /// A type that a device does not have.
    #[error("--compute {compute}: device `{device}` does not compute in it: expected f32")]
    Compute {
        /// The device.
        device: String,
        /// The type.
        compute: ComputeKind,
    },
    /// Batches too small to be divided.
    #[error("--batch-size {batch} on {devices} devices: expected at least {}, two images on each", 2 * devices)]
    Devices {
        /// Images in a batch.
        batch: usize,
        /// How many devices.
        devices: usize,
    },
    /// Ctrl-C.
    #[error("stopped; the run in `{}` can be resumed after its last complete epoch", .0.display())]
    Interrupted(PathBuf),
}

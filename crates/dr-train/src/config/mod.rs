//! What can be chosen, and [`TrainConfig`], which has all choices of a training run.

mod check;
mod devices;
mod kinds;
mod named;
mod train;

pub use check::ConfigError;
pub use devices::{Devices, DevicesError};
pub use kinds::{
    Baseline, BatchNormKind, Batches, ComputeKind, DatasetKind, DeviceKind, Distill, Engine, ForwardKind,
    LossTerms, MixedNorm, ModelKind, OptimizerKind, Sampling, TaskKind, Widths,
};
pub use named::UnknownName;
pub use train::{IMAGE_SIZE, LanguageSettings, TrainConfig};

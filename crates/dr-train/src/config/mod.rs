//! What can be chosen, and [`TrainConfig`], which has all choices of a training run.

mod changes;
mod check;
mod devices;
mod image_size;
mod kinds;
mod place;
mod rates;
pub mod task;
mod text;
mod train;

pub use changes::{Changes, ChangesError};
pub use check::ConfigError;
pub use devices::{Devices, DevicesError};
pub use dr_runtime::UnknownName;
pub use dr_runtime::file::{BatchNormKind, MixedNorm};
pub use image_size::{ImageSize, ImageSizeError};
pub use kinds::{
    Baseline, Batches, ComputeKind, DeviceKind, Distill, Engine, Fit, ForwardKind, LossTerms, OptimizerKind,
    Sampling, Widths,
};
pub use place::{Place, PlaceError, WorkerAddress, WorkerAddressError};
pub use rates::Rates;
pub use train::{IMAGE_SIZE, LanguageSettings, TrainConfig};

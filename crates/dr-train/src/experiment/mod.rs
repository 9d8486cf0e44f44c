//! A whole training run: data, float network, joint training, results.

mod error;
mod images;
mod registry;
mod run;
mod scenes;
mod settings;
mod task;
mod text;

pub use error::RunError;
pub use images::{ImageTask, calibration_batches};
pub use registry::Registry;
pub use run::{CONFIG, Experiment, RunOptions};
pub use scenes::{SceneGoal, SceneTask, calibration_scenes};
pub use task::{Evaluation, Part, Task};
pub use text::{TextTask, calibration_tokens};

use crate::config::{TaskKind, TrainConfig};
use crate::detection::BoxTargets;
use crate::report::Report;
use burn::tensor::{Int, Tensor};
use std::path::Path;

/// Trains as `config` says, and writes the model, the report and the checkpoints into the folder `out`. `ready` is called once the
/// settings and data are found to be sound, before anything is written.
///
/// # Errors
/// Anything that stops the run. What was complete before is kept, and can be resumed.
pub fn run<E: From<RunError>>(
    registry: &Registry, config: TrainConfig, out: &Path, options: RunOptions,
    ready: impl FnOnce() -> Result<(), E>,
) -> Result<Report, E> {
    fn of<T: Task, E: From<RunError>>(
        registry: &Registry, config: TrainConfig, out: &Path, options: RunOptions,
        ready: impl FnOnce() -> Result<(), E>,
    ) -> Result<Report, E> {
        let experiment = Experiment::<T>::new(registry, config, out, options)?;
        ready()?;
        Ok(experiment.run()?)
    }
    match config.task {
        TaskKind::Language => of::<TextTask, E>(registry, config, out, options, ready),
        TaskKind::Segment => of::<SceneTask<Tensor<1, Int>>, E>(registry, config, out, options, ready),
        TaskKind::Detect => of::<SceneTask<BoxTargets>, E>(registry, config, out, options, ready),
        TaskKind::Classify => of::<ImageTask, E>(registry, config, out, options, ready),
    }
}

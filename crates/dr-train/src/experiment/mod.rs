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

/// A run that is ready: it trains, and writes the model, the report and the checkpoints into its folder. What was complete before
/// an error is kept, and can be resumed.
pub type Run = Box<dyn FnOnce() -> Result<Report, RunError>>;

/// Finds the settings and the data of a run into the folder `out` to be sound. Nothing is written yet.
///
/// # Errors
/// Those of [`Experiment::new`].
pub fn prepare(
    registry: &Registry, config: TrainConfig, out: &Path, options: RunOptions,
) -> Result<Run, RunError> {
    fn of<T: Task + 'static>(
        registry: &Registry, config: TrainConfig, out: &Path, options: RunOptions,
    ) -> Result<Run, RunError> {
        let experiment = Experiment::<T>::new(registry, config, out, options)?;
        Ok(Box::new(move || experiment.run()))
    }
    let of = match config.task {
        TaskKind::Language => of::<TextTask>,
        TaskKind::Segment => of::<SceneTask<Tensor<1, Int>>>,
        TaskKind::Detect => of::<SceneTask<BoxTargets>>,
        TaskKind::Classify => of::<ImageTask>,
    };
    of(registry, config, out, options)
}

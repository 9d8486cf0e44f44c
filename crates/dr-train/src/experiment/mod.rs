//! A whole training run: data, float network, joint training, results.

mod error;
mod images;
mod registry;
mod run;
mod said;
mod scenes;
mod settings;
mod source;
mod task;
mod text;

pub use error::RunError;
pub(crate) use images::test_images;
pub use images::{ImageTask, calibration_batches};
pub use registry::Registry;
pub use run::{CONFIG, Experiment, MODEL_FILE, RunOptions};
pub(crate) use said::{tell_ignored, tell_noted};
pub use scenes::{SceneGoal, SceneTask, calibration_scenes};
pub(crate) use settings::{check_data_flags, check_flags};
pub use source::Source;
pub use task::{Answer, Evaluation, Part, Run, Task, TaskKind};
pub use text::{TextTask, calibration_tokens};

//! [`Registry`]: what a program knows by name.

use super::images::ImageTask;
use super::scenes::SceneTask;
use super::task::{Task, TaskKind};
use super::text::TextTask;
use crate::data::{DatasetKind, PixelTargets, datasets};
use crate::detection::BoxTargets;
use crate::models::{ModelKind, models};
use crate::names::Names;

/// What a program knows by name: at first all that this crate has, and then what the program adds of its own.
pub struct Registry {
    /// Networks.
    pub models: Names<dyn ModelKind>,
    /// Datasets.
    pub datasets: Names<dyn DatasetKind>,
    /// Tasks.
    pub tasks: Names<TaskKind>,
}

impl Default for Registry {
    fn default() -> Self {
        let tasks = [
            TaskKind::of::<ImageTask>(),
            TaskKind::of::<SceneTask<PixelTargets>>(),
            TaskKind::of::<SceneTask<BoxTargets>>(),
            TaskKind::of::<TextTask>(),
        ];
        let tasks = Names::new("task", |task: &TaskKind| task.name, tasks);
        Self { models: models(), datasets: datasets(), tasks }
    }
}

impl Registry {
    /// The same with one more network.
    #[must_use]
    pub fn with_model(self, model: &'static dyn ModelKind) -> Self {
        Self { models: self.models.with(model), ..self }
    }

    /// The same with one more dataset.
    #[must_use]
    pub fn with_dataset(self, dataset: &'static dyn DatasetKind) -> Self {
        Self { datasets: self.datasets.with(dataset), ..self }
    }

    /// The same with one more task.
    #[must_use]
    pub fn with_task<T: Task + 'static>(self) -> Self {
        Self { tasks: self.tasks.with(TaskKind::of::<T>()), ..self }
    }
}

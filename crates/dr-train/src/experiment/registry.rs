//! [`Registry`]: what a program knows by name.

use crate::data::{DatasetKind, datasets};
use crate::models::{ModelKind, models};
use crate::names::Names;

/// What a program knows by name: at first all that this crate has, and then what the program adds of its own.
pub struct Registry {
    /// Networks.
    pub models: Names<dyn ModelKind>,
    /// Datasets.
    pub datasets: Names<dyn DatasetKind>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { models: models(), datasets: datasets() }
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
}

//! [`Registry`]: what a program knows by name.

use crate::models::{ModelKind, models};
use crate::names::Names;

/// What a program knows by name: at first all that this crate has, and then what the program adds of its own.
pub struct Registry {
    /// Networks.
    pub models: Names<dyn ModelKind>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { models: models() }
    }
}

impl Registry {
    /// The same with one more network.
    #[must_use]
    pub fn with_model(self, model: &'static dyn ModelKind) -> Self {
        Self { models: self.models.with(model) }
    }
}

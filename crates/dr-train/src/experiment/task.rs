//! [`Task`]: what a run is about.

use super::error::RunError;
use super::registry::Registry;
use crate::artifact::{Artifact, Description, TensorEntry};
use crate::config::TrainConfig;
use crate::data::{Batch, Input, Target, TrainingLoader};
use crate::evaluation::EvaluationError;
use crate::nn::{Model, Value};
use crate::report::{Measured, NumberFormat};
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use std::sync::Arc;

/// Loaders of a task's data for evaluation.
pub type Evaluation<T> = Arc<dyn DataLoader<Batch<<T as Task>::Input, <T as Task>::Target>>>;

/// Held-out data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is learned from, without augmentation.
    Train,
    /// To choose by.
    Valid,
    /// To measure the result once.
    Test,
}

/// A task: data, the network that learns from them, and how well it does.
pub trait Task: Sized + Send + Sync {
    /// What networks take.
    type Input: Input + Into<Value>;

    /// What they learn.
    type Target: Target;

    /// Makes batches to learn from.
    type Loader: TrainingLoader<Self::Input, Self::Target>;

    /// What the items of a batch are called.
    const ITEMS: &'static str;

    /// Reads the data.
    ///
    /// # Errors
    /// Data that are not there or wrong, and names that are not in the registry.
    fn load(registry: &Registry, config: &TrainConfig) -> Result<Self, RunError>;

    /// The float network that training starts from, if there are weights to start from.
    ///
    /// # Errors
    /// Weights that cannot be read, or of another network.
    fn imported(&self, config: &TrainConfig) -> Result<Option<Artifact>, RunError>;

    /// The float network that training starts from if there are no weights.
    ///
    /// # Errors
    /// A network that cannot be traced.
    fn init(&self, config: &TrainConfig, device: &Device) -> Result<Model, RunError>;

    /// What an artifact says about the float network.
    fn description(&self, config: &TrainConfig) -> Description;

    /// What an artifact has besides the network's tensors.
    fn attachments(&self) -> Vec<(String, TensorEntry)> {
        vec![]
    }

    /// Whether a model is for these data.
    ///
    /// # Errors
    /// If it is not.
    fn check(&self, artifact: &Artifact) -> Result<(), EvaluationError>;

    /// Batches to learn from.
    ///
    /// # Errors
    /// Too few data.
    fn training(
        &self, config: &TrainConfig, batch_size: usize, device: &Device,
    ) -> Result<Self::Loader, RunError>;

    /// Batches of a part of the data, in order.
    ///
    /// # Errors
    /// Too few data.
    fn evaluation(
        &self, part: Part, batch_size: usize, device: &Device,
    ) -> Result<Evaluation<Self>, RunError>;

    /// Inputs that scales of activations are fitted to.
    ///
    /// # Errors
    /// What the loader says.
    fn calibration(&self, device: &Device) -> Result<Vec<Self::Input>, DatasetError>;

    /// Measures a model on the test data.
    ///
    /// # Errors
    /// A model that is not for these data, or not sound.
    fn measure(
        &self, artifact: &Artifact, formats: &[NumberFormat], device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError>;

    /// Items of the test data.
    fn test_items(&self) -> usize;

    /// Items that could not be read.
    fn skipped(&self) -> usize {
        0
    }
}

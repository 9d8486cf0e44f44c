//! [`Task`]: what a run is about.

use super::error::RunError;
use super::registry::Registry;
use super::run::{Experiment, RunOptions};
use super::source::Source;
use crate::artifact::{Artifact, ArtifactError, Description, SavedModel, TensorEntry};
use crate::config::{Engine, TrainConfig};
use crate::data::{Batch, Input, Noted, Target, TrainingLoader};
use crate::evaluation::EvaluationError;
use crate::mixed::{HessianOptions, Traces, traces};
use crate::nn::{Model, Value};
use crate::report::{Measured, NumberFormat, Report};
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use dr_runtime::RuntimeError;
use dr_runtime::graph::Graph;
use std::path::Path;
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

    /// The name in flags, files and messages.
    const NAME: &'static str;

    /// Data and networks that go with it.
    const GOES_WITH: &'static str;

    /// What the items of a batch are called.
    const ITEMS: &'static str;

    /// Whether the best epoch is the one with the least loss; else it is the one with the most right classes.
    const BY_LOSS: bool = true;

    /// Whether lower precisions can learn from the outputs of higher ones.
    const DISTILLS: bool = true;

    /// Those of the flags that only some tasks have a use for which say something about it; `None` is all of them.
    const FLAGS: Option<&'static [&'static str]> = None;

    /// Reads the data.
    ///
    /// # Errors
    /// Data that are not there or wrong, and names that are not in the registry.
    fn load(registry: &Registry, config: &TrainConfig) -> Result<Self, RunError>;

    /// Says on the standard error where the data are from, and what is missing of them.
    fn tell(&self) {}

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

    /// What is noted of files of images that were read so far.
    fn noted(&self) -> Vec<Noted> {
        vec![]
    }

    /// Measures a saved network on its test data.
    ///
    /// # Errors
    /// Data that are not there, or do not fit it.
    fn measure_saved(source: &Source, formats: &[NumberFormat], engine: Engine) -> Result<Answer, RunError>;

    /// Batches of at most `batch_size` training items of a saved network, all of the same size, so that each item counts the same;
    /// and how many items they have.
    ///
    /// # Errors
    /// Data that are not there, or do not fit it.
    fn batches(source: &Source, batch_size: usize) -> Result<(Evaluation<Self>, usize), RunError>;

    /// Inputs of a saved network that scales of activations and statistics of BatchNorm are taken from.
    ///
    /// # Errors
    /// Data that are not there, or do not fit it.
    fn calibration_saved(source: &Source) -> Result<Vec<Self::Input>, RunError>;

    /// The results as aligned text.
    fn table(report: &Report) -> String;
}

/// What was measured in each format; and of how many items, and how many that could not be read.
pub type Answer = (Vec<Measured>, [usize; 2]);

/// A run that is ready: it trains, and writes the model, the report and the checkpoints into its folder. What was complete before
/// an error is kept, and can be resumed.
pub type Run = Box<dyn FnOnce() -> Result<Report, RunError>>;

/// A task by its name, whatever its inputs and targets: the entry of a [`Task`] in the [`Registry`].
pub struct TaskKind {
    /// [`Task::NAME`].
    pub name: &'static str,
    /// [`Task::GOES_WITH`].
    pub goes_with: &'static str,
    /// [`Task::ITEMS`].
    pub items: &'static str,
    /// [`Task::DISTILLS`].
    pub distills: bool,
    /// [`Task::FLAGS`].
    pub flags: Option<&'static [&'static str]>,
    /// [`Experiment::new`].
    pub prepare: fn(&Registry, TrainConfig, &Path, RunOptions) -> Result<Run, RunError>,
    /// [`Task::measure_saved`].
    pub measure: fn(&Source, &[NumberFormat], Engine) -> Result<Answer, RunError>,
    /// The Hessian traces of a saved network, with its stored codes dequantized, and of how many items of its training data: from
    /// batches of so many items, with what is told of the progress.
    #[expect(clippy::type_complexity, reason = "as long as a method's signature is")]
    pub traces:
        fn(&Source, usize, &HessianOptions, &mut dyn FnMut(usize, f64)) -> Result<(Traces, usize), RunError>,
    /// [`Task::calibration_saved`].
    pub calibration: fn(&Source) -> Result<Vec<Value>, RunError>,
    /// [`Task::table`].
    pub table: fn(&Report) -> String,
}

impl TaskKind {
    /// Whether a flag that only some tasks have a use for says something about it.
    #[must_use]
    pub fn takes(&self, flag: &str) -> bool {
        self.flags.is_none_or(|flags| flags.contains(&flag))
    }

    /// The entry of a task.
    #[must_use]
    pub const fn of<T: Task + 'static>() -> &'static Self {
        const {
            &Self {
                name: T::NAME,
                goes_with: T::GOES_WITH,
                items: T::ITEMS,
                distills: T::DISTILLS,
                flags: T::FLAGS,
                prepare: |registry, config, out, options| {
                    let experiment = Experiment::<T>::new(registry, config, out, options)?;
                    Ok(Box::new(move || experiment.run()))
                },
                measure: |source, formats, engine| {
                    let answer = T::measure_saved(source, formats, engine)?;
                    source.tell_noted();
                    Ok(answer)
                },
                traces: |source, batch_size, options, progress| {
                    if source.artifact.graph().is_ok_and(Graph::has_arrays) {
                        // They have no gradients.
                        return Err(source.wrong(ArtifactError::network(RuntimeError::Arrays)));
                    }
                    let (batches, count) = T::batches(source, batch_size)?;
                    let model =
                        source.artifact.network(source.device).map_err(|error| source.wrong(error))?;
                    let traces = traces(&model, &*batches, options, progress);
                    source.tell_noted();
                    Ok((traces.map_err(|error| source.wrong(error))?, count))
                },
                calibration: |source| {
                    let inputs = T::calibration_saved(source)?.into_iter().map(Into::into).collect();
                    source.tell_noted();
                    Ok(inputs)
                },
                table: T::table,
            }
        }
    }
}

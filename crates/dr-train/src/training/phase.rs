//! [`Phase`]: the settings of one phase of training, float or joint.

use crate::config::OptimizerKind;
use crate::report::TrainPhase;
use burn::tensor::Device;
use std::path::PathBuf;

/// Settings of a phase.
#[derive(Clone, Debug)]
pub struct Phase {
    /// How the log and errors call it.
    pub name: String,
    /// As what its epochs are recorded.
    pub kind: TrainPhase,
    /// Where its checkpoints and history go.
    pub directory: PathBuf,
    /// How many epochs.
    pub epochs: usize,
    /// How many came before on the same images, so that this phase does not repeat their shuffling and augmentation.
    pub epochs_before: usize,
    /// What the items of a batch are called in the line of an epoch.
    pub items: &'static str,
    /// Whether the best epoch is the one of the lowest validation loss, instead of the highest accuracy.
    pub by_loss: bool,
    /// Batches in a step of the optimizer, on each device; at least 1.
    pub accumulate: usize,
    /// The devices that train together, each on images of its own: the mean of their gradients makes a step. With autodiff;
    /// of one or none, the model trains where it is.
    pub devices: Vec<Device>,
    /// After how many the learning rate would be zero: at least as many.
    pub anneal_epochs: usize,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Highest learning rate of the weights.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Largest L2 norm of one parameter's gradient; 0 is no limit.
    pub clip_norm: f64,
    /// Epochs of warm-up.
    pub warmup_epochs: f64,
    /// So many epochs without a better validation end the phase.
    pub patience: Option<usize>,
    /// Go on after the last complete checkpoint, if there is one.
    pub resume: bool,
    /// Show Burn's dashboard, if the standard output is a terminal, instead of a line for each epoch. Needs the feature `dashboard`.
    pub dashboard: bool,
}

impl Phase {
    /// A phase of stochastic gradient descent with momentum at a rate of at most `lr`, from its start, on one device.
    #[must_use]
    pub fn new(name: &str, kind: TrainPhase, directory: PathBuf, epochs: usize, lr: f64) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            directory,
            epochs,
            epochs_before: 0,
            items: "images",
            by_loss: false,
            accumulate: 1,
            devices: vec![],
            anneal_epochs: epochs,
            optimizer: OptimizerKind::Sgd,
            lr,
            weight_decay: 5e-4,
            clip_norm: 0.0,
            warmup_epochs: 1.0,
            patience: None,
            resume: false,
            dashboard: false,
        }
    }

    /// The epochs so far, as JSON.
    #[must_use]
    pub fn history_file(&self) -> PathBuf {
        self.directory.join("history.json")
    }

    pub(super) fn checkpoints(&self) -> PathBuf {
        self.directory.join("checkpoint")
    }
}

//! Training through one phase on Burn's `Learner`.

use super::checkpoint::{AtomicCheckpointer, LastAndBest, PARTS, is_sound, load_model, path};
use super::history::{History, SharedHistory};
use super::metric::{PassMetric, Quantity};
use super::optimizer::{optimizer, schedule};
use super::phase::Phase;
use super::step::{Objective, Trainee};
use crate::compilation::Compilation;
use crate::data::{Batch, Input, Target, TrainingLoader};
use crate::files::{FileError, at, remove_leftovers};
use crate::nn::{Model, Value};
use crate::note::{detail, note};
use crate::report::NumberFormat;
use burn::data::dataloader::DataLoader;
use burn::module::Module;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::MetricDefinition;
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation, MetricsRendererTraining,
};
use burn::train::{
    ExecutionStrategy, Interrupter, Learner, LearnerSummary, MultiDeviceOptim, SupervisedTraining,
};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use thiserror::Error;

/// What a phase ended with.
#[derive(Debug)]
pub struct PhaseOutcome {
    /// The network of the best epoch on validation, in evaluation mode; of the last step, if interrupted.
    pub model: Model,
    /// All epochs, those before a resume among them.
    pub history: History,
    /// How many of the epochs were there before.
    pub resumed_after: usize,
    /// Stopped by Ctrl-C.
    pub interrupted: bool,
}

/// Why a phase did not end well.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PhaseError {
    /// The loss became infinite or not a number.
    #[error("{phase} training: the loss is not finite in epoch {epoch}: expected a number; {}", kept(.checkpoint))]
    NotFinite {
        /// The phase.
        phase: String,
        /// The epoch, from 1.
        epoch: usize,
        /// The network of the last good checkpoint, if there is one.
        checkpoint: Option<PathBuf>,
    },
    /// Settings that Burn does not take.
    #[error("learning rate {lr}: {reason}")]
    Schedule {
        /// The rate.
        lr: f64,
        /// What Burn says.
        reason: String,
    },
    /// A checkpoint or the data could not be read or written.
    #[error("{phase} training stopped: {reason}")]
    Stopped {
        /// The phase.
        phase: String,
        /// Why.
        reason: String,
    },
    /// The directory could not be made.
    #[error(transparent)]
    Directory(#[from] FileError),
}

fn kept(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("`{}` is the last good checkpoint", path.display()),
        None => "there is no checkpoint yet".to_string(),
    }
}

/// Trains `model` for `objective` and returns it as it was in its best epoch on validation.
///
/// The model must be on a device with autodiff. Every epoch ends with a checkpoint in `phase.directory`; with
/// `phase.resume`, training goes on after the last complete one.
///
/// # Errors
/// A loss that is not finite, data that cannot be read, checkpoints that cannot be written.
pub fn run_phase<I: Input + Into<Value>, T: Target>(
    phase: &Phase, model: Model, mut objective: Objective<I>, train: impl TrainingLoader<I, T>,
    valid: Arc<dyn DataLoader<Batch<I, T>>>, interrupter: &Interrupter,
) -> Result<PhaseOutcome, PhaseError> {
    let checkpoints = phase.checkpoints();
    std::fs::create_dir_all(&checkpoints).map_err(at(&checkpoints))?;
    // The history lies beside the checkpoints' folder.
    for path in [&phase.directory, &checkpoints] {
        remove_leftovers(path).map_err(at(path))?;
    }
    objective.interrupter = interrupter.clone();
    let devices = phase.devices.len().max(1);
    objective.accumulate = phase.accumulate * devices;
    let trainee = Trainee::new(model, objective);
    let objective = trainee.objective().clone();
    let finished = finished(phase, &trainee);
    let dashboard = phase.dashboard && std::io::stdout().is_terminal();
    let history = SharedHistory::new(phase, finished, !dashboard, train.waited(), train.noted());

    let mut trained = trainee.clone();
    if finished < phase.epochs && history.no_better_since().is_none() {
        let steps_per_epoch = train.num_batches().div_ceil(devices).max(1);
        if let Some(draws) = &objective.draws {
            let stopped = |error: FileError| PhaseError::Stopped {
                phase: phase.name.clone(),
                reason: error.to_string(),
            };
            draws.start(finished * steps_per_epoch * devices).map_err(stopped)?;
        }
        let updates_per_epoch = steps_per_epoch.div_ceil(phase.accumulate);
        let warmup = (phase.warmup_epochs * updates_per_epoch as f64).round() as usize;
        let schedule = schedule(phase.lr, warmup, phase.anneal_epochs * updates_per_epoch)
            .map_err(|reason| PhaseError::Schedule { lr: phase.lr, reason })?;
        detail(format_args!(
            "{} training: {updates_per_epoch} steps of {} in an epoch, rates up to {}, {warmup} steps of warm-up, after epoch {finished}",
            phase.name, phase.optimizer, phase.lr
        ));
        let train: Arc<dyn DataLoader<Batch<I, T>>> = Arc::new(
            train
                .with_orders(objective.batches() as u32)
                .starting_at((phase.epochs_before + finished) as u64),
        );
        let checkpointer = |part: usize| AtomicCheckpointer {
            directory: checkpoints.clone(),
            part: PARTS[part],
            history: history.clone(),
        };
        let mut training = SupervisedTraining::new(&phase.directory, train, valid)
            .num_epochs(phase.epochs)
            .with_interrupter(interrupter.clone())
            .with_application_logger(None)
            .with_metric_logger(history.clone())
            .with_progress_logger(history.clone())
            .with_checkpointing_strategy(LastAndBest {
                directory: checkpoints.clone(),
                history: history.clone(),
            })
            .with_custom_checkpointers(checkpointer(0), checkpointer(1), checkpointer(2))
            .label(&phase.name);
        for (position, format) in objective.passes.iter().enumerate() {
            // Of several mixtures the first.
            let first = objective.passes[..position].iter().all(|earlier| earlier != format);
            for quantity in [Quantity::Loss, Quantity::Top1].into_iter().filter(|_| first) {
                let metric = PassMetric::new(&format.to_string(), position, quantity);
                training = training.metric_train_numeric(metric.clone());
                if *format != NumberFormat::Mixed {
                    training = training.metric_valid_numeric(metric);
                }
            }
        }
        if devices > 1 {
            let strategy = ExecutionStrategy::multi(phase.devices.clone(), MultiDeviceOptim::OptimMainDevice);
            training = training.with_training_strategy(strategy.into());
        }
        if phase.accumulate > 1 {
            training = training.grads_accumulation(phase.accumulate);
        }
        if phase.patience.is_some() {
            training = training.early_stopping(history.clone());
        }
        if !dashboard {
            training = training.renderer(Box::new(Silent));
        }
        if finished > 0 {
            training = training.checkpoint(finished);
        }
        let optimizer = optimizer(phase.optimizer, phase.weight_decay, phase.clip_norm);
        let _compilation = Compilation::watch(&phase.name);
        trained = training.launch(Learner::new(trainee.clone(), optimizer, schedule)).model;
    }

    let no_better_since = history.no_better_since();
    let (history, failure) = history.snapshot();
    if objective.diverged.load(Ordering::Relaxed) {
        let last = history.epochs.last().map(|record| path(&checkpoints, PARTS[0], record.epoch));
        return Err(PhaseError::NotFinite {
            phase: phase.name.clone(),
            epoch: history.epochs.last().map_or(1, |record| record.epoch + 1),
            checkpoint: last,
        });
    }
    let failure = failure.or_else(|| interrupter.error().map(|error| error.to_string()));
    if let Some(reason) = failure {
        return Err(PhaseError::Stopped { phase: phase.name.clone(), reason });
    }
    // The dashboard resets the interrupter when it closes.
    let last = history.epochs.last().map_or(0, |record| record.epoch);
    let early = no_better_since.filter(|_| last < phase.epochs);
    let interrupted = interrupter.should_stop() || (last < phase.epochs && early.is_none());
    if let Some(best) = early.filter(|_| !interrupted) {
        let name = &phase.name;
        note(format_args!(
            "{name} training ends after epoch {last}: no validation was better than that of epoch {best}"
        ));
    }
    let best = (!interrupted).then(|| best_network(&checkpoints, &history, &trainee)).flatten();
    let model = best.unwrap_or_else(|| trained.valid()).into_model();
    Ok(PhaseOutcome { model, history, resumed_after: finished, interrupted })
}

/// The epoch to go on after: the last one that is in the history and whose checkpoint is sound; 0 if there is none.
fn finished<I: Input, T: Target>(phase: &Phase, trainee: &Trainee<I, T>) -> usize {
    if !phase.resume {
        return 0;
    }
    let recorded = History::load(&phase.history_file()).epochs;
    let mut epochs = recorded.iter().map(|record| record.epoch).rev();
    epochs.find(|&epoch| is_sound(&phase.checkpoints(), epoch, trainee)).unwrap_or(0)
}

/// The network of the best epoch whose checkpoint can be loaded.
fn best_network<I: Input, T: Target>(
    checkpoints: &Path, history: &History, trainee: &Trainee<I, T>,
) -> Option<Trainee<I, T>> {
    history.best_first().into_iter().find_map(|epoch| load_model(checkpoints, epoch, trainee).ok())
}

/// Renders nothing: without a terminal, the history prints a line per epoch.
struct Silent;

impl MetricsRendererTraining for Silent {
    fn update_train(&mut self, _: MetricState) {}
    fn update_valid(&mut self, _: MetricState) {}
    fn on_train_end(&mut self, _: Option<LearnerSummary>) -> Result<(), Box<dyn std::error::Error>> {
        Ok(())
    }
}

impl MetricsRendererEvaluation for Silent {
    fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
}

impl TrainingProgressLogger for Silent {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
    fn start_split(&mut self, _: &str, _: usize) {}
    fn update_split(&mut self, _: usize) {}
    fn end_split(&mut self) {}
    fn update_epoch(&mut self, _: usize) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _: String) {}
}

impl EvaluationProgressLogger for Silent {
    fn start_global_progress(&mut self, _: usize) {}
    fn start_test(&mut self, _: &str, _: usize) {}
    fn update_test_progress(&mut self, _: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _: String) {}
}

impl MetricsRenderer for Silent {
    fn manual_close(&mut self) {}
    fn register_metric(&mut self, _: MetricDefinition) {}
}

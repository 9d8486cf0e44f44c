//! What happened in each epoch: kept for the report, printed as the training log, saved beside the checkpoints.

use burn::train::logger::{MetricLogger, TrainingProgressLogger};
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// One pass's numbers of one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Mean training loss.
    pub train_loss: f64,
    /// Training accuracy, in percent.
    pub train_top1: f64,
    /// Mean validation loss.
    pub valid_loss: f64,
    /// Validation accuracy, in percent.
    pub valid_top1: f64,
}

/// One epoch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// `float` or `joint`.
    pub phase: String,
    /// From 1.
    pub epoch: usize,
    /// Time of the training split, without validation and checkpoint.
    pub seconds: f64,
    /// By pass: `float`, or a precision.
    pub curves: BTreeMap<String, Curve>,
}

impl EpochRecord {
    /// Validation accuracy, averaged over the passes: what the best epoch is chosen by.
    #[must_use]
    pub fn mean_valid_top1(&self) -> f64 {
        self.curves.values().map(|curve| curve.valid_top1).sum::<f64>() / self.curves.len().max(1) as f64
    }
}

/// The epochs of one phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// In order.
    pub epochs: Vec<EpochRecord>,
}

impl History {
    /// The history saved in `path`, or none.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    /// The epoch with the best mean validation accuracy; the later one of equals.
    #[must_use]
    pub fn best_epoch(&self) -> Option<usize> {
        let by_top1 = |a: &&EpochRecord, b: &&EpochRecord| a.mean_valid_top1().total_cmp(&b.mean_valid_top1());
        self.epochs.iter().max_by(by_top1).map(|record| record.epoch)
    }
}

/// A history that the learner's threads write to.
#[derive(Clone, Debug)]
pub(super) struct SharedHistory {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    history: History,
    path: PathBuf,
    phase: String,
    epochs: usize,
    print: bool,
    started: Option<Instant>,
    split: String,
    seconds: f64,
    names: HashMap<MetricId, String>,
    current: BTreeMap<String, Curve>,
}

impl SharedHistory {
    /// Goes on after the epochs up to `finished` that `path` has.
    pub(super) fn new(path: PathBuf, phase: &str, finished: usize, epochs: usize, print: bool) -> Self {
        let mut history = History::load(&path);
        history.epochs.retain(|record| record.epoch <= finished);
        let state = State {
            history,
            path,
            phase: phase.to_string(),
            epochs,
            print,
            started: None,
            split: String::new(),
            seconds: 0.0,
            names: HashMap::new(),
            current: BTreeMap::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn best_epoch(&self) -> Option<usize> {
        self.lock().history.best_epoch()
    }

    pub(super) fn snapshot(&self) -> History {
        self.lock().history.clone()
    }
}

impl State {
    fn finish_epoch(&mut self, epoch: usize) {
        let record = EpochRecord {
            phase: self.phase.clone(),
            epoch,
            seconds: self.seconds,
            curves: std::mem::take(&mut self.current),
        };
        if self.print {
            let loss: f64 = record.curves.values().map(|curve| curve.train_loss).sum::<f64>();
            let loss = loss / record.curves.len().max(1) as f64;
            // Highest precision first, as everywhere.
            let top1 = record.curves.iter().rev().map(|(name, curve)| format!("{name} {:.2}", curve.valid_top1));
            let top1 = top1.collect::<Vec<_>>().join("  ");
            let (phase, epochs, seconds) = (&self.phase, self.epochs, record.seconds);
            eprintln!("{phase} {epoch:>3}/{epochs}  {seconds:>6.1} s  loss {loss:.4}  validation top-1 % {top1}");
        }
        self.history.epochs.retain(|earlier| earlier.epoch < epoch);
        self.history.epochs.push(record);
        let saved = serde_json::to_vec(&self.history).map_err(std::io::Error::other);
        if let Err(error) = saved.and_then(|json| crate::files::write_atomically(&self.path, &json)) {
            eprintln!("warning: {}: {error}", self.path.display());
        }
    }
}

impl MetricLogger for SharedHistory {
    fn log(&mut self, update: MetricsUpdate, _epoch: usize, split: &Split) {
        let state = &mut *self.lock();
        for numeric in &update.entries_numeric {
            let Some(name) = state.names.get(&numeric.entry.metric_id) else { continue };
            let Some((quantity, pass)) = name.split_once(' ') else { continue };
            let Some(value) = numeric.running_entry.as_ref().map(NumericEntry::current) else { continue };
            let curve = state.current.entry(pass.to_string()).or_default();
            match (split, quantity) {
                (Split::Train, "Loss") => curve.train_loss = value,
                (Split::Train, _) => curve.train_top1 = value,
                (_, "Loss") => curve.valid_loss = value,
                _ => curve.valid_top1 = value,
            }
        }
    }

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(vec![])
    }

    fn log_metric_definition(&mut self, definition: MetricDefinition) {
        self.lock().names.insert(definition.metric_id, definition.name.to_string());
    }

    // Comes after the epoch's last numbers on the thread that logs them; the progress events do not.
    fn log_epoch_summary(&mut self, summary: EpochSummary) {
        if summary.split == Split::Valid {
            self.lock().finish_epoch(summary.epoch_number);
        }
    }
}

impl TrainingProgressLogger for SharedHistory {
    fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}

    fn start_split(&mut self, split: &str, _: usize) {
        let state = &mut *self.lock();
        state.split = split.to_string();
        state.started = Some(Instant::now());
    }

    fn update_split(&mut self, _: usize) {}

    fn end_split(&mut self) {
        let state = &mut *self.lock();
        if state.split == Split::Train.to_string()
            && let Some(started) = state.started.take()
        {
            state.seconds = started.elapsed().as_secs_f64();
        }
    }

    fn update_epoch(&mut self, _: usize) {}

    fn end(&mut self) {}

    fn log_event_training(&mut self, _: String) {}
}

//! What happened in each epoch: kept for the report, printed as the training log, saved beside the checkpoints.

use super::metric::{LOSS, TOP1};
use super::phase::Phase;
use crate::data::Noted;
use crate::files::{at, write_atomically};
use crate::note::note;
use crate::progress::Progress;
use crate::report::{CurvePoint, EpochRecord, NumberFormat, UNDEFINED, number};
use burn::train::EarlyStoppingStrategy;
use burn::train::logger::{MetricLogger, TrainingProgressLogger};
use burn::train::metric::store::{EpochSummary, EventStoreClient, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, MetricId, NumericEntry};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

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

    /// The epochs by mean validation loss where that is recorded, else by accuracy, the best first; the later one of equals. Those of which that is undefined
    /// come last.
    #[must_use]
    pub fn best_first(&self) -> Vec<usize> {
        let mut epochs: Vec<&EpochRecord> = self.epochs.iter().rev().collect();
        epochs.sort_by(|a, b| goodness(b).total_cmp(&goodness(a)));
        epochs.into_iter().map(|record| record.epoch).collect()
    }

    /// The first of the best epochs, if `patience` epochs or more came after it.
    #[must_use]
    pub fn no_better_since(&self, patience: usize) -> Option<usize> {
        let best = self.epochs.iter().map(goodness).max_by(f64::total_cmp).filter(|best| best.is_finite())?;
        let first = self.epochs.iter().find(|record| goodness(record) >= best)?;
        let last = self.epochs.last()?;
        (last.epoch - first.epoch >= patience).then_some(first.epoch)
    }
}

/// Validation accuracy, or loss with its sign changed, averaged over the passes: what the best epoch is chosen by. In millionths, so that equals stay
/// equal when they are read from a file, which may change their last bit.
fn goodness(record: &EpochRecord) -> f64 {
    let of = |point: &CurvePoint| point.valid_loss.map_or(point.valid_top1, |loss| -loss);
    let mean = mean(validated(record).map(|(_, point)| of(point)));
    if mean.is_nan() { f64::NEG_INFINITY } else { (mean * 1e6).round() }
}

/// NaN of no values.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    sum / count
}

/// What is validated: mixtures have no running statistics of their own.
fn validated(record: &EpochRecord) -> impl Iterator<Item = (&NumberFormat, &CurvePoint)> {
    record.curves.iter().filter(|(format, _)| **format != NumberFormat::Mixed)
}

/// A history that the learner's threads write to.
#[derive(Clone, Debug)]
pub(super) struct SharedHistory {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    history: History,
    phase: Phase,
    print: bool,
    started: Option<Instant>,
    split: String,
    /// How many items the split has, and the line that says how far it is.
    progress: Option<(usize, Progress)>,
    seconds: f64,
    /// Items of the epoch, once for each pass that sees items of its own.
    count: usize,
    /// Microseconds that training has waited for them.
    waited: Arc<AtomicU64>,
    /// What is noted of their files.
    noted: Noted,
    names: HashMap<MetricId, String>,
    current: BTreeMap<NumberFormat, CurvePoint>,
    failure: Option<String>,
}

impl SharedHistory {
    /// Goes on after the epochs up to `finished` that the phase's file has. `waited` are the microseconds that training has waited
    /// for images, `noted` is what is noted of their files.
    pub(super) fn new(
        phase: &Phase, finished: usize, print: bool, waited: Arc<AtomicU64>, noted: Noted,
    ) -> Self {
        let mut history = History::load(&phase.history_file());
        history.epochs.retain(|record| record.epoch <= finished);
        let state = State {
            history,
            phase: phase.clone(),
            print,
            started: None,
            split: String::new(),
            progress: None,
            seconds: 0.0,
            count: 0,
            waited,
            noted,
            names: HashMap::new(),
            current: BTreeMap::new(),
            failure: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// See [`History::no_better_since`], with the patience of the phase.
    pub(super) fn no_better_since(&self) -> Option<usize> {
        let state = self.lock();
        state.history.no_better_since(state.phase.patience?)
    }

    pub(super) fn best_epoch(&self) -> Option<usize> {
        self.lock().history.best_first().first().copied()
    }

    /// The epochs so far, and what went wrong with files.
    pub(super) fn snapshot(&self) -> (History, Option<String>) {
        let state = self.lock();
        (state.history.clone(), state.failure.clone())
    }

    /// Remembers the first thing that went wrong with files.
    pub(super) fn fail(&self, failure: String) {
        self.lock().failure.get_or_insert(failure);
    }
}

/// Stops where the patience of the phase has come to its end.
impl EarlyStoppingStrategy for SharedHistory {
    fn should_stop(&mut self, _: usize, _: &EventStoreClient) -> bool {
        self.no_better_since().is_some()
    }
}

impl State {
    fn finish_epoch(&mut self, epoch: usize) {
        let Phase { name, kind, epochs, items, by_loss, .. } = &self.phase;
        let (seconds, curves) = (self.seconds, std::mem::take(&mut self.current));
        let record = EpochRecord { phase: *kind, epoch, seconds, curves };
        if self.print {
            let loss = number(mean(record.curves.values().map(|point| point.train_loss)), 4);
            let shown = |point: &CurvePoint| match point.valid_loss {
                Some(loss) => number(loss, 4),
                None => number(point.valid_top1, 2),
            };
            let valid = validated(&record).map(|(format, point)| format!("{format} {}", shown(point)));
            let valid = valid.collect::<Vec<_>>().join("  ");
            let valid = if valid.is_empty() { UNDEFINED.to_owned() } else { valid };
            let of = if *by_loss { "loss" } else { "top-1 %" };
            let rate = self.count as f64 / seconds.max(1e-9);
            let waited = self.waited.swap(0, Ordering::Relaxed) as f64 / 1e4 / seconds.max(1e-9);
            note(format_args!(
                "{name} {epoch:>3}/{epochs}  {seconds:>6.1} s  {rate:.0} {items}/s ({waited:.0} % waiting for them)  loss {loss}  validation {of} {valid}"
            ));
            Noted::tell_turned([&self.noted]);
        }
        self.history.epochs.retain(|earlier| earlier.epoch < epoch);
        self.history.epochs.push(record);
        let saved = serde_json::to_vec(&self.history).map_err(std::io::Error::other);
        let path = self.phase.history_file();
        if let Err(error) = saved.and_then(|json| write_atomically(&path, &json)) {
            self.failure.get_or_insert(at(&path)(error).to_string());
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
            let Ok(format) = pass.parse::<NumberFormat>() else { continue };
            let point = state.current.entry(format).or_insert(CurvePoint {
                train_loss: f64::NAN,
                valid_top1: f64::NAN,
                valid_loss: None,
            });
            match (split, quantity) {
                (Split::Train, LOSS) => point.train_loss = value,
                (Split::Valid, TOP1) => point.valid_top1 = value,
                (Split::Valid, LOSS) if state.phase.by_loss => point.valid_loss = Some(value),
                _ => {}
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

    fn start_split(&mut self, split: &str, items: usize) {
        let state = &mut *self.lock();
        state.split = split.to_string();
        if split == Split::Train.to_string() {
            state.count = items;
        }
        state.started = Some(Instant::now());
        if state.print {
            let Phase { name, epochs, .. } = &state.phase;
            let epoch = state.history.epochs.last().map_or(0, |record| record.epoch) + 1;
            let part = if split == Split::Valid.to_string() { " validation" } else { "" };
            let line = format!("{name} {epoch}/{epochs}{part}:");
            state.progress = Some((items, Progress::new(line)));
        }
    }

    fn update_split(&mut self, done: usize) {
        if let State { progress: Some((of, progress)), phase, .. } = &*self.lock() {
            progress.show(done, *of, format_args!(" ({})", phase.items));
        }
    }

    fn end_split(&mut self) {
        let state = &mut *self.lock();
        state.progress = None;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::TrainPhase;

    #[test]
    fn no_epoch_is_chosen_by_what_is_undefined() {
        let epoch = |epoch, valid_top1, valid_loss| EpochRecord {
            phase: TrainPhase::Float,
            epoch,
            seconds: 1.0,
            curves: BTreeMap::from([(
                NumberFormat::Float,
                CurvePoint { train_loss: 1.0, valid_top1, valid_loss },
            )]),
        };
        let best = |epochs: Vec<EpochRecord>| {
            let history = History { epochs };
            let read: History = serde_json::from_slice(&serde_json::to_vec(&history).unwrap()).unwrap();
            assert_eq!(read.best_first(), history.best_first());
            history.best_first()
        };
        let nan = f64::NAN;
        assert_eq!(best(vec![epoch(1, 50.0, None), epoch(2, nan, None), epoch(3, 60.0, None)]), [3, 1, 2]);
        assert_eq!(
            best(vec![epoch(1, 99.0, Some(nan)), epoch(2, 10.0, Some(0.5)), epoch(3, 10.0, Some(0.7))]),
            [2, 3, 1]
        );
        assert_eq!(best(vec![epoch(1, nan, None), epoch(2, nan, None)]), [2, 1]);
        let since = |epochs, patience| History { epochs }.no_better_since(patience);
        let epochs =
            || vec![epoch(1, 50.0, None), epoch(2, 60.0, None), epoch(3, 60.0, None), epoch(4, nan, None)];
        // Equals are not better.
        assert_eq!([1, 2, 3].map(|patience| since(epochs(), patience)), [Some(2), Some(2), None]);
        assert_eq!(since(vec![epoch(1, 9.0, Some(0.5)), epoch(2, 1.0, Some(0.4))], 1), None);
        assert_eq!(since(vec![epoch(1, 9.0, Some(0.5)), epoch(2, 99.0, Some(0.6))], 1), Some(1));
        // Of what is undefined nothing is better or worse.
        assert_eq!(since(vec![epoch(1, nan, None), epoch(2, nan, None)], 1), None);
        assert_eq!(since(vec![], 1), None);
        assert_eq!(best(vec![EpochRecord { curves: BTreeMap::new(), ..epoch(1, nan, None) }]), [1]);
    }
}

//! Checkpoints that are whole or not there: written to a temporary file, then renamed.

use super::history::SharedHistory;
use super::step::Trainee;
use crate::data::{Input, Target};
use crate::files::UNFINISHED;
use burn::module::Module;
use burn::optim::OptimizerRecord;
use burn::optim::lr_scheduler::LrSchedulerRecord;
use burn::store::{ModuleRecord, RecordError};
use burn::train::checkpoint::{
    Checkpoint, Checkpointer, CheckpointerError, CheckpointingAction, CheckpointingStrategy,
};
use burn::train::metric::store::EventStoreClient;
use std::fs;
use std::path::{Path, PathBuf};

/// The three files of a checkpoint: network, optimizer state, schedule.
pub(super) const PARTS: [&str; 3] = ["model", "optim", "scheduler"];

/// Why a record was not written: it is said after the name of a temporary file.
fn reason(error: &CheckpointerError) -> std::io::Error {
    let text = error.to_string();
    let reason = text.rsplit_once("': ").map_or(text.as_str(), |(_, reason)| reason);
    std::io::Error::other(reason.trim_end_matches('`'))
}

/// Writes one part of the checkpoints of a phase.
pub(super) struct AtomicCheckpointer {
    pub directory: PathBuf,
    pub part: &'static str,
    pub history: SharedHistory,
}

impl AtomicCheckpointer {
    fn save<R: Checkpoint>(&self, to: &Path, record: R) -> std::io::Result<()> {
        let temporary = self.directory.join(format!("{UNFINISHED}{}.bpk", self.part));
        let written = record.save(temporary.clone()).map_err(|error| reason(&error));
        let synced = written.and_then(|()| fs::File::open(&temporary)?.sync_all());
        synced.and_then(|()| fs::rename(&temporary, to)).inspect_err(|_| drop(fs::remove_file(&temporary)))
    }
}

/// Where a part of an epoch's checkpoint is.
pub(super) fn path(directory: &Path, part: &str, epoch: usize) -> PathBuf {
    directory.join(format!("{part}-{epoch}.bpk"))
}

impl<R: Checkpoint> Checkpointer<R> for AtomicCheckpointer {
    fn save(&self, epoch: usize, record: R) -> Result<(), CheckpointerError> {
        let to = path(&self.directory, self.part, epoch);
        self.save(&to, record).map_err(|error| {
            self.history.fail(format!("`{}`: {error}", to.display()));
            CheckpointerError::IOError(error)
        })
    }

    fn delete(&self, epoch: usize) -> Result<(), CheckpointerError> {
        match fs::remove_file(path(&self.directory, self.part, epoch)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CheckpointerError::IOError(error))
            }
            _ => Ok(()),
        }
    }

    fn restore(&self, epoch: usize) -> Result<R, CheckpointerError> {
        R::load(path(&self.directory, self.part, epoch))
    }
}

/// The epochs whose checkpoints are complete, in order.
pub(super) fn complete_epochs(directory: &Path) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let epoch = |name: &str| name.strip_prefix("model-")?.strip_suffix(".bpk")?.parse::<usize>().ok();
    let mut epochs: Vec<usize> = entries
        .flatten()
        .filter_map(|entry| epoch(entry.file_name().to_str()?))
        .filter(|&epoch| PARTS.iter().all(|part| path(directory, part, epoch).is_file()))
        .collect();
    epochs.sort_unstable();
    epochs
}

/// The network that was saved after `epoch`, in evaluation mode.
pub(super) fn load_model<I: Input, T: Target>(
    directory: &Path, epoch: usize, trainee: &Trainee<I, T>,
) -> Result<Trainee<I, T>, RecordError> {
    // A clone would share its running statistics with `trainee`, which would then start with those of the record.
    trainee.valid().try_load_record(ModuleRecord::load(path(directory, PARTS[0], epoch))?)
}

/// Whether all parts of the checkpoint can be loaded, and are of such a network.
pub(super) fn is_sound<I: Input, T: Target>(directory: &Path, epoch: usize, trainee: &Trainee<I, T>) -> bool {
    load_model(directory, epoch, trainee).is_ok()
        && OptimizerRecord::load(path(directory, PARTS[1], epoch)).is_ok()
        && LrSchedulerRecord::load(path(directory, PARTS[2], epoch)).is_ok()
}

/// Saves every epoch; keeps the last two and the best on validation.
pub(super) struct LastAndBest {
    pub directory: PathBuf,
    pub history: SharedHistory,
}

impl CheckpointingStrategy for LastAndBest {
    fn checkpointing(&mut self, epoch: usize, _: &EventStoreClient) -> Vec<CheckpointingAction> {
        let best = self.history.best_epoch();
        // The one before stays until the new one is complete.
        let outdated = |&old: &usize| old + 1 < epoch && Some(old) != best;
        let old =
            complete_epochs(&self.directory).into_iter().filter(outdated).map(CheckpointingAction::Delete);
        std::iter::once(CheckpointingAction::Save).chain(old).collect()
    }
}

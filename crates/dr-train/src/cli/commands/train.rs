//! `dr-train train`.

use super::print;
use crate::cli::{CommandError, ResolvedTraining};
use crate::device::DeviceError;
use crate::experiment::{CONFIG, Registry, RunError, RunOptions};
use crate::note::{self, detail, note};
use crate::training::PhaseError;
use crate::workers::look_after;
use burn::train::Interrupter;
use std::path::Path;

/// Exit code of a program that Ctrl-C stopped.
pub(super) const INTERRUPTED: u8 = 130;

/// Trains, leaves the results in the folder, and prints them as a table or as JSON.
///
/// # Errors
/// Anything that stops the training.
pub fn train(
    registry: &Registry, training: ResolvedTraining, dashboard: bool, json: bool,
) -> Result<(), CommandError> {
    if dashboard && cfg!(not(feature = "dashboard")) {
        let reason = "--dashboard: not compiled in: expected a build with the feature `dashboard`";
        return Err(CommandError::new(reason).with_hint("without it, every epoch is a line"));
    }
    let ResolvedTraining { config, out, resume } = training;
    let options = RunOptions { resume, dashboard, interrupter: Interrupter::new() };
    let interrupter = options.interrupter.clone();
    let workers = config.workers();
    let task = registry.tasks.get(&config.task)?;
    detail(format_args!("settings, in {}: {}", out.join(CONFIG).display(), serde_json::to_string(&config)?));
    let run = (task.prepare)(registry, config, &out, options).map_err(|error| failure(error, &out))?;
    stop_on_ctrl_c(interrupter)?;
    let folder = out.clone();
    look_after(workers, move |gone| {
        let error = failure(gone.into(), &folder);
        note::error(&error);
        std::process::exit(error.exit_code().into());
    });
    // This thread is one of those that share a tensor operation, which then need not be woken for each of them. Without
    // effect where they are already there.
    let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
    let report = run().map_err(|error| failure(error, &out))?;
    if json {
        return print(&report.to_json()?);
    }
    let out = out.display();
    print(&format!(
        "{}\nwrote {out}/model.safetensors, {out}/float.safetensors, {out}/report.json and {out}/report.svg in {:.0} s\n",
        (task.table)(&report),
        report.seconds
    ))
}

fn failure(error: RunError, out: &Path) -> CommandError {
    let resume = format!("`dr-train train --resume {}` goes on", out.display());
    let lower = match &error {
        RunError::Interrupted(_) => {
            return CommandError::from(error).with_hint(resume).with_exit_code(INTERRUPTED);
        }
        RunError::Worker(_) => {
            return CommandError::from(error).with_hint(format!("{resume}; --devices names other workers"));
        }
        RunError::Phase(PhaseError::NotFinite { .. }) => {
            Some("a lower learning rate or --clip-norm 1 may help")
        }
        _ => None,
    };
    let wrong_use = matches!(
        error,
        RunError::Name(_)
            | RunError::Task { .. }
            | RunError::Setting { .. }
            | RunError::NoScenes
            | RunError::Compute { .. }
            | RunError::Devices { .. }
            | RunError::Device(DeviceError::TwoPlaces { .. } | DeviceError::Elsewhere(_))
    );
    match lower {
        Some(hint) => CommandError::from(error).with_hint(hint),
        None if wrong_use => CommandError::new(error.to_string()),
        None => error.into(),
    }
}

/// The first Ctrl-C stops after the step under way, the second at once.
pub(super) fn stop_on_ctrl_c(interrupter: Interrupter) -> Result<(), CommandError> {
    ctrlc::set_handler(move || {
        if interrupter.should_stop() {
            std::process::exit(INTERRUPTED.into());
        }
        note("stopping after this step; Ctrl-C again stops at once");
        interrupter.stop(Some("Ctrl-C"));
    })?;
    Ok(())
}

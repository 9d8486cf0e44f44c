//! `dr-train train --distill` of a network in a file.

use super::inputs::{Told, calibration_images, inputs_below};
use super::quantize::{FLOAT_SHARE, calibrated_with};
use super::train::{INTERRUPTED, stop_on_ctrl_c};
use super::{load_model, print, save, save_in_json};
use crate::artifact::{ArtifactError, ArtifactKind, Described};
use crate::cli::distillation::check_free;
use crate::cli::{CommandError, ResolvedDistillation};
use crate::config::task::LANGUAGE;
use crate::device;
use crate::experiment::MODEL_FILE;
use crate::files::{FolderLock, at, remove_leftovers};
use crate::note::note;
use crate::progress::Progress;
use crate::quantization::{DistillationProgress, Distilled, NetworkOptions, distill as trained};
use crate::report::aligned;
use burn::train::Interrupter;
use dr_precision::PrecisionSet;
use serde_json::json;
use std::fs;
use std::ops::ControlFlow;
use std::time::Instant;

/// So many times as many images are learned from as a network is calibrated with, at most.
const TRAINING: usize = 8;

/// Trains a network of a file at several precisions on inputs without labels, and leaves it in the folder.
///
/// # Errors
/// If the model or the inputs cannot be read, do not fit together, or the network cannot be trained so.
pub fn distill(of_file: &ResolvedDistillation, json: bool) -> Result<(), CommandError> {
    let ResolvedDistillation { model, inputs, limit, precisions, switch_edge, options, device, out } =
        of_file;
    let float = load_model(model)?;
    let in_model = |error: ArtifactError| error.in_file(model);
    if float.description.kind != ArtifactKind::Float {
        return Err(in_model(ArtifactError::Kind { found: float.description.kind, expected: "float" }).into());
    }
    if float.description.check_task(LANGUAGE).is_ok() {
        let found = format!("`{}`: a language model", model.display());
        return Err(CommandError::new(format!("{found}: expected a network for images or arrays"))
            .with_hint("`dr-train quantize --tuning-steps` trains the scales of language models"));
    }
    let (device, _) = device::open(*device)?;
    let (few, most) = (calibration_images(&float), limit.unwrap_or(usize::MAX));
    let calibration = inputs_below(&float, inputs, few.min(most), *limit, Told::Later, &device)?;
    fs::create_dir_all(out).map_err(at(out))?;
    let _lock = FolderLock::take(out)?;
    remove_leftovers(out).map_err(at(out))?;
    // Another one may have ended meanwhile.
    check_free(out)?;
    let network = NetworkOptions {
        precisions: precisions.clone(),
        switch_edge: *switch_edge,
        switch_depthwise: false,
        float_share: FLOAT_SHARE as f64 / 100.0,
        // Training takes more.
        memory: u64::MAX,
        folder: std::env::temp_dir(),
    };
    let (start, _) = calibrated_with(&float, model, calibration, &network)?;
    let learned = inputs_below(&float, inputs, limit.unwrap_or(few * TRAINING), *limit, Told::Here, &device)?;

    let interrupter = Interrupter::new();
    stop_on_ctrl_c(interrupter.clone())?;
    let (line, begin) = (Progress::new("steps:"), Instant::now());
    let result = trained(&float, &start, learned, options, &device, |progress| {
        match progress {
            DistillationProgress::Step { done, of, loss } => {
                line.show(done, of, format_args!(" ({loss:.4} of the loss at the start)"));
            }
            DistillationProgress::Epoch { done, held_out } => {
                let losses = precisions
                    .iter()
                    .zip(held_out)
                    .map(|(precision, loss)| format!("{precision} {loss:.2e}"));
                let (losses, seconds) =
                    (losses.collect::<Vec<_>>().join(", "), begin.elapsed().as_secs_f64());
                note(format_args!("epoch {done} of {}: held out {losses}; {seconds:.0} s", options.epochs));
            }
        }
        if interrupter.should_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    drop(line);
    let result = result.map_err(|error| CommandError::about(model, error))?;
    if json {
        let losses = precisions.iter().zip(result.before.iter().zip(&result.after));
        let losses = losses.map(|(precision, (before, after))| {
            json!({ "precision": precision.to_string(), "before": before, "after": after })
        });
        let held_out = losses.collect::<Vec<_>>();
        let learned = json!({ "epoch": result.epoch, "held_out_losses": held_out });
        save_in_json(&result.artifact, &out.join(MODEL_FILE), "training", &learned)?;
    } else {
        print(&table(precisions, &result))?;
        save(&result.artifact, &out.join(MODEL_FILE))?;
    }
    let out = out.display();
    match (result.diverged, interrupter.should_stop()) {
        (true, _) => Err(CommandError::failure(format!(
            "a loss is not finite: `{out}` has the best epoch before that"
        ))
        .with_hint("lower --joint-lr and --scale-lr may help")),
        (_, true) => Err(CommandError::new(format!("interrupted: `{out}` has the best epoch until then"))
            .with_exit_code(INTERRUPTED)),
        _ => Ok(()),
    }
}

/// The losses of the inputs that are held out, before and after.
fn table(precisions: &PrecisionSet, of: &Distilled) -> String {
    let row = |name: String, losses: &[f64]| {
        std::iter::once(name).chain(losses.iter().map(|loss| format!("{loss:.2e}"))).collect()
    };
    let header = std::iter::once("loss, held out".to_owned())
        .chain(precisions.iter().map(|precision| precision.to_string()));
    aligned(&[
        header.collect(),
        row("without training".to_owned(), &of.before),
        row(format!("epoch {}", of.epoch), &of.after),
    ])
}

//! `dr-train import-check`.

use super::print;
use crate::cli::{CommandError, ImportCheckArgs};
use crate::samples::{Agreement, compare};

/// Compares what another runtime made of samples with what the model made of them.
///
/// # Errors
/// If a file cannot be read or does not fit, or if too few images get the same class.
pub fn import_check(args: &ImportCheckArgs) -> Result<(), CommandError> {
    let agreement = compare(&args.samples, &args.logits)?;
    let Agreement { images, same, top1, their_top1, largest_difference } = agreement;
    print(&match args.json {
        true => format!("{}\n", serde_json::to_string(&agreement)?),
        false => format!(
            "{images} images: {same:.2} % get the same class; top-1 {top1:.2} % here, {their_top1:.2} % there; the largest \
             difference of two logits is {largest_difference:.1e} of the largest logit\n"
        ),
    })?;
    match same >= args.least {
        true => Ok(()),
        false => Err(CommandError::new(format!(
            "`{}`: {same:.2} % of the images get the same class: expected at least {} %",
            args.logits.display(),
            args.least
        ))),
    }
}

//! What the commands do, once their arguments are checked.

mod info;

pub use info::info;

use super::{CommandError, EvalArgs, ExportArgs, QuantizeArgs};
use crate::config::TrainConfig;
use std::path::Path;

/// Trains, and leaves the results in `out`.
///
/// # Errors
/// Anything that stops the training.
pub fn train(config: TrainConfig, out: &Path, resume: Option<&Path>) -> Result<(), CommandError> {
    // STUB: to be replaced.
    let _ = (config, out, resume);
    Err(CommandError::new("`train` is not there yet"))
}

/// Measures a saved model on the test images.
///
/// # Errors
/// If the model or the images cannot be read, or do not fit together.
pub fn eval(args: &EvalArgs) -> Result<(), CommandError> {
    // STUB: to be replaced.
    let _ = args;
    Err(CommandError::new("`eval` is not there yet"))
}

/// Saves a model at one precision.
///
/// # Errors
/// If the model cannot be read, or does not have the precision, or the result cannot be written.
pub fn export(args: &ExportArgs) -> Result<(), CommandError> {
    // STUB: to be replaced.
    let _ = args;
    Err(CommandError::new("`export` is not there yet"))
}

/// Turns a float model into one for several precisions.
///
/// # Errors
/// If the model cannot be read, or is not a float one, or the result cannot be written.
pub fn quantize(args: &QuantizeArgs) -> Result<(), CommandError> {
    // STUB: to be replaced.
    let _ = args;
    Err(CommandError::new("`quantize` is not there yet"))
}

/// Prints to the standard output. That its reader went away is no error.
fn print(text: &str) -> Result<(), CommandError> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

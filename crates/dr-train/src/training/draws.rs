//! [`Draws`]: where the mixtures of training steps come from.

use dr_precision::Precision;
use std::path::PathBuf;
use thiserror::Error;

/// Draws the mixtures of training steps, one step after the other.
pub trait Draws: Send + Sync {
    /// Starts at step `step`, counted from 0.
    ///
    /// # Errors
    /// A record of the draws that cannot be written.
    fn start(&self, step: usize) -> Result<(), DrawError>;

    /// The mixtures of the next step: precisions of the layers, from input to output.
    ///
    /// # Errors
    /// A record of the draws that cannot be written.
    fn next(&self) -> Result<Vec<Vec<Precision>>, DrawError>;
}

/// A record of draws that cannot be written.
#[derive(Debug, Error)]
#[error("`{}`: {source}", path.display())]
pub struct DrawError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub source: std::io::Error,
}

//! [`Draws`]: where the mixtures of training steps come from.

use crate::files::FileError;
use dr_precision::Precision;

/// Draws the mixtures of training steps, one step after the other.
pub trait Draws: Send + Sync {
    /// Starts at step `step`, counted from 0.
    ///
    /// # Errors
    /// A record of the draws that cannot be written.
    fn start(&self, step: usize) -> Result<(), FileError>;

    /// The mixtures of the next step: precisions of the layers, from input to output.
    ///
    /// # Errors
    /// A record of the draws that cannot be written.
    fn next(&self) -> Result<Vec<Vec<Precision>>, FileError>;
}

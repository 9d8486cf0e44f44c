//! `dr-train export`.

use super::save;
use crate::artifact::Artifact;
use crate::cli::{CommandError, ExportArgs};

/// Saves a model at one precision.
///
/// # Errors
/// If the model cannot be read, or does not have the precision, or the result cannot be written.
pub fn export(args: &ExportArgs) -> Result<(), CommandError> {
    let artifact = Artifact::load(&args.model)?;
    let packed = artifact.export(args.precision).map_err(|error| error.in_file(&args.model))?;
    save(&packed, &args.out)
}

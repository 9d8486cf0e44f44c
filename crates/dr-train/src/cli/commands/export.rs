//! `dr-train export`.

use super::{save, with_plan};
use crate::artifact::Artifact;
use crate::cli::{CommandError, ExportArgs};
use burn::tensor::Device;

/// Saves a model at one precision, or with one for each layer.
///
/// # Errors
/// If the model cannot be read, or does not have the precisions, or the result cannot be written.
pub fn export(args: &ExportArgs) -> Result<(), CommandError> {
    let artifact = Artifact::load(&args.model)?;
    let packed = match (&args.plan, args.precision) {
        (Some(plan), _) => {
            with_plan(&artifact, &args.model, plan, args.dataset, args.data_dir.as_deref(), &Device::flex())?
        }
        (None, Some(precision)) => artifact.export(precision).map_err(|error| error.in_file(&args.model))?,
        (None, None) => return Err(CommandError::new("expected --precision or --plan")),
    };
    save(&packed, &args.out)
}

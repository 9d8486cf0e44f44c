//! `dr-train export`.

use super::{print, save, with_plan};
use crate::artifact::{Artifact, ArtifactKind, FORMAT_VERSION, SavedModel};
use crate::cli::{CommandError, ExportArgs};
use crate::data;
use crate::evaluation::{formats, runtime_networks};
use crate::experiment::{Registry, Source};
use crate::files::write_atomically;
use crate::onnx;
use crate::report::thousands;
use crate::samples::Samples;
use burn::tensor::Device;
use dr_runtime::Arithmetic;
use std::path::Path;

/// Saves a model at one precision, or with one for each layer, as an artifact or as ONNX; and samples to check it by.
///
/// # Errors
/// If the model cannot be read, or does not have the precisions, or the result cannot be written.
pub fn export(registry: &Registry, args: &ExportArgs) -> Result<(), CommandError> {
    let (device, artifact) = (Device::flex(), Artifact::open(&args.model)?);
    let packed = match (&args.plan, args.precision) {
        (Some(plan), _) => {
            let (of, from) = (&args.dataset, &args.data_dir);
            with_plan(&Source::new(registry, &artifact, &args.model, of, from, &device), plan)?
        }
        (None, Some(precision)) => artifact.export(precision).map_err(|error| error.in_file(&args.model))?,
        (None, None) => match artifact.description.kind {
            ArtifactKind::Packed(_) | ArtifactKind::PackedPlan => artifact,
            // As it is, with its graph.
            _ if artifact.description.format_version < FORMAT_VERSION && !is_onnx(&args.out) => artifact,
            _ => return Err(CommandError::new("expected --precision or --plan")),
        },
    };
    let description = &packed.description;
    match is_onnx(&args.out) {
        false => save(&packed, &args.out)?,
        true => {
            for network in runtime_networks(&packed, &formats(&packed), Arithmetic::Integer, &device)? {
                let model = onnx::export(&network, description, args.opset)
                    .map_err(|error| CommandError::new(format!("`{}`: {error}", args.model.display())))?;
                write_atomically(&args.out, &model)?;
                let (out, bytes) = (args.out.display(), thousands(model.len()));
                print(&format!("wrote {out}: ONNX, {bytes} bytes\n"))?;
            }
        }
    }
    if let Some(path) = &args.samples {
        let source = Source::new(registry, &packed, &args.model, &args.dataset, &args.data_dir, &device);
        let test = data::load_test(&source.data()?)?;
        let test = test.range(0..args.images.min(test.len()));
        for format in formats(&packed) {
            Samples::new(&packed, format, &test, &device)?.save(path)?;
        }
        print(&format!("wrote {}: {} test images and their logits\n", path.display(), test.len()))?;
    }
    Ok(())
}

fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx"))
}

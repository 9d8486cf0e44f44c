//! `dr-train export`.

use super::{load_model, print, save, with_plan};
use crate::artifact::{Artifact, ArtifactKind, FORMAT_VERSION, SavedModel};
use crate::cli::resolve::{SAFETENSORS, has_extension};
use crate::cli::values::{at_least_one, or_default};
use crate::cli::{CommandError, resolve};
use crate::evaluation::formats;
use crate::experiment::{Registry, Source, test_images};
use crate::files::{at, write_atomically};
use crate::onnx::{self, Opset};
use crate::report::thousands;
use crate::samples::Samples;
use crate::weights::gguf;
use burn::tensor::Device;
use clap::{ArgGroup, Args};
use dr_precision::Precision;
use std::fmt::Display;
use std::path::PathBuf;

/// `dr-train export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dr-train export --model model.safetensors --precision w2a2 --out w2a2.safetensors
  dr-train export --model model.safetensors --plan plan.toml --out mixed.safetensors
  dr-train export --model model.safetensors --precision w4a8 --out w4a8.onnx
  dr-train export --model float.safetensors --out float.onnx
  dr-train export --model model.safetensors --precision 2 --out 2.onnx --samples samples.safetensors
  dr-train export --model language.safetensors --precision w4a8 --out w4.gguf
  dr-train export --model language.safetensors --plan plan.toml --out plan.gguf")]
#[command(mut_arg("opset", |argument| or_default(argument, Opset::default())))]
#[command(group = ArgGroup::new("data").args(["plan", "samples"]).multiple(true))]
pub struct ExportArgs {
    /// The model; one for several precisions
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The precision to keep; a model in floats has none
    #[arg(long)]
    pub precision: Option<Precision>,
    /// The precisions to keep, one for each layer; BatchNorm statistics, if there are any, are taken from training
    /// images
    #[arg(long, value_name = "FILE.toml", conflicts_with = "precision")]
    pub plan: Option<PathBuf>,
    /// Other images than those of the dataset the model was trained on
    #[arg(long, requires = "data")]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR", requires = "data")]
    pub data_dir: Option<PathBuf>,
    /// The file to write: ONNX if its name ends in .onnx, and, of a language model, GGUF if it ends in .gguf
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The version of ONNX's operators, 21 to 25; types of 2 bits come with 25
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub opset: Option<Opset>,
    /// Also write test images with the model's logits, to check another runtime by
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// How many of them
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 1000, requires = "samples")]
    pub images: usize,
}

/// Saves a model at one precision, or with one for each layer, as an artifact, as ONNX (which also takes floats) or as GGUF; and samples to
/// check it by.
///
/// # Errors
/// If the model cannot be read, does not have the precisions, or has parts that the format does not, or the result cannot be written.
pub fn export(registry: &Registry, args: &ExportArgs) -> Result<(), CommandError> {
    let samples = [SAFETENSORS];
    let out = [SAFETENSORS, ONNX, GGUF];
    let files =
        [("out", Some(args.out.as_path()), &out[..]), ("samples", args.samples.as_deref(), &samples[..])];
    resolve::check_output_files(files, &args.model)?;
    if let Some(opset) = args.opset.filter(|_| !has_extension(&args.out, ONNX)) {
        let out = args.out.display();
        let found = format!("--opset {opset}: `{out}` has no use for it");
        return Err(CommandError::new(format!("{found}: expected --out with a name that ends in .onnx")));
    }
    let (device, artifact) = (Device::flex(), load_model(&args.model)?);
    let packed = match (&args.plan, args.precision) {
        (Some(plan), _) => {
            check_data_flags(args, &artifact)?;
            let (of, from) = (&args.dataset, &args.data_dir);
            with_plan(&Source::new(registry, &artifact, &args.model, of, from, &device), plan)?
        }
        (None, _) if has_extension(&args.out, GGUF) => artifact,
        (None, Some(precision)) => artifact.export(precision).map_err(|error| error.in_file(&args.model))?,
        // As it is.
        (None, None) if has_extension(&args.out, ONNX) && formats(&artifact).len() == 1 => artifact,
        (None, None) => match artifact.description.kind {
            ArtifactKind::Packed(_) | ArtifactKind::PackedPlan => artifact,
            // With its graph.
            _ if artifact.description.format_version < FORMAT_VERSION && !has_extension(&args.out, ONNX) => {
                artifact
            }
            ArtifactKind::Float => {
                let (model, out) = (args.model.display(), args.out.display());
                return Err(CommandError::new(format!(
                    "`{model}`: a model in floats: expected a name that ends in .onnx instead of `{out}`"
                )));
            }
            _ => return Err(CommandError::new("expected --precision or --plan")),
        },
    };
    let in_model = |error: &dyn Display| CommandError::about(&args.model, error);
    // What is wrong with them is known before anything is written.
    let samples = match &args.samples {
        Some(path) => {
            let of = Source::new(registry, &packed, &args.model, &args.dataset, &args.data_dir, &device);
            let test = test_images(&of)?;
            Some((path, test.range(0..args.images.min(test.len()))))
        }
        None => None,
    };
    if has_extension(&args.out, GGUF) {
        let exported = gguf::export(&packed, args.precision).map_err(|error| in_model(&error))?;
        write_atomically(&args.out, &exported.bytes).map_err(at(&args.out))?;
        let (out, bytes) = (args.out.display(), thousands(exported.bytes.len()));
        print(&format!("wrote {out}: GGUF, {bytes} bytes; {exported}\n"))?;
    } else if has_extension(&args.out, ONNX) {
        let model =
            onnx::export(&packed, args.opset.unwrap_or_default()).map_err(|error| in_model(&error))?;
        write_atomically(&args.out, &model).map_err(at(&args.out))?;
        let (out, bytes) = (args.out.display(), thousands(model.len()));
        print(&format!("wrote {out}: ONNX, {bytes} bytes\n"))?;
    } else {
        save(&packed, &args.out)?;
    }
    if let Some((path, test)) = samples {
        for format in formats(&packed) {
            Samples::new(&packed, format, &test, &device)?.save(path)?;
        }
        print(&format!("wrote {}: {} test images and their logits\n", path.display(), test.len()))?;
    }
    Ok(())
}

/// Whether there is a use for data: statistics of BatchNorms for a plan, or samples.
fn check_data_flags(args: &ExportArgs, artifact: &Artifact) -> Result<(), CommandError> {
    let given = [("dataset", args.dataset.is_some()), ("data-dir", args.data_dir.is_some())];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) if args.samples.is_none() && artifact.graph()?.batch_norms().is_empty() => {
            let model = args.model.display();
            let found = format!("--{flag}: `{model}`, without BatchNorm, has no use for it");
            Err(CommandError::new(format!("{found}: expected it with --samples")))
        }
        _ => Ok(()),
    }
}

const ONNX: &str = "onnx";
const GGUF: &str = "gguf";

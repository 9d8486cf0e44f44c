//! The commands: their arguments, and what they do once these are checked.

mod completions;
mod distill;
mod draw;
mod eval;
mod export;
mod generate;
mod hessian;
mod import;
mod import_check;
mod info;
mod inputs;
mod latency;
mod predict;
mod quantize;
mod scenes;
mod search;
mod train;
mod words;
mod worker;

pub use completions::{CompletionsArgs, completions};
pub use distill::distill;
pub use draw::{DrawArgs, draw};
pub use eval::{EvalArgs, eval};
pub use export::{ExportArgs, export};
pub use generate::{GenerateArgs, Layers, SwitchAfter, SwitchAfterError, SwitchTo, generate};
pub use hessian::{HessianArgs, hessian};
pub use import::{ImportArgs, import};
pub use import_check::{ImportCheckArgs, import_check};
pub use info::{InfoArgs, info};
pub use latency::{LatencyArgs, latency};
pub use predict::{PredictArgs, predict};
pub use quantize::{QuantizeArgs, quantize};
pub use scenes::{ScenesArgs, scenes};
pub use search::{SearchArgs, search};
pub use train::train;
pub use worker::{WorkerArgs, worker};

use super::{CommandError, PictureArgs};
use crate::agreement::{ArraysError, arrays_below};
use crate::artifact::{Artifact, ArtifactKind, Description, SavedModel};
use crate::experiment::{MODEL_FILE, Source};
use crate::files::{at, write_atomically};
use crate::mixed::PlanFile;
use crate::nn::Value;
use crate::note::detail;
use crate::progress::Progress;
use crate::report::{REPORT_FILE, thousands};
use crate::weights::{is_language_model, is_onnx, load_language_model};
use clap::Args;
use dr_precision::PrecisionSet;
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The model of a command that has no other file: `--model FILE`, or the file alone.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct ModelArg {
    /// The model, or the folder of a run with one
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The same, without the flag
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

impl ModelArg {
    /// The file, in the folder of a run its `model.safetensors`.
    fn path(&self) -> PathBuf {
        // clap has made sure that there is one.
        in_run(self.model.as_ref().or(self.file.as_ref()).map(PathBuf::as_path).unwrap_or(Path::new("")))
    }
}

/// The model of a run if the path is the folder of one; the path itself otherwise.
fn in_run(path: &Path) -> PathBuf {
    let model = path.join(MODEL_FILE);
    if path.join(REPORT_FILE).is_file() && model.is_file() { model } else { path.to_path_buf() }
}

/// Prints to the standard output. That its reader went away is no error.
fn print(text: &str) -> Result<(), CommandError> {
    is_read(text).map(drop)
}

/// Prints to the standard output; whether somebody reads it.
fn is_read(text: &str) -> Result<bool, CommandError> {
    use std::io::ErrorKind;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// The model with the precisions of a plan, with BatchNorm statistics of training data.
fn with_plan(source: &Source, plan: &Path) -> Result<Artifact, CommandError> {
    let Source { artifact, model, device, .. } = *source;
    let plan = PlanFile::load(plan)?.plan;
    let export = |batches: &[Value]| {
        artifact.export_plan(&plan, batches, device).map_err(|error| error.in_file(model))
    };
    // Without data first: what is wrong with the plan is known before they are read.
    let empty = export(&[])?;
    match artifact.graph()?.batch_norms() {
        [] => Ok(empty),
        _ => Ok(export(&(source.task()?.calibration)(source)?)?),
    }
}

/// Reads a model file, an ONNX file or a language model of others.
fn load_model(path: &Path) -> Result<Artifact, CommandError> {
    load_with(path, &PictureArgs::default())
}

/// The same; an ONNX file does not say what becomes of pictures, and every other file does.
fn load_with(path: &Path, pictures: &PictureArgs) -> Result<Artifact, CommandError> {
    let path = &in_run(path);
    if let Some(flag) = pictures.given().filter(|_| !is_onnx(path)) {
        let found = format!("--{flag}: `{}` says it", path.display());
        return Err(CommandError::new(format!("{found}: expected an ONNX file")));
    }
    let _line = Progress::unknown(format_args!("reading {}", path.display()));
    let artifact = match path {
        path if is_onnx(path) => pictures.load(path)?,
        path if is_language_model(path) => load_language_model(path, PrecisionSet::default())?,
        path => Artifact::open(path)?,
    };
    let Description { kind, model, dataset, precisions, .. } = &artifact.description;
    let precisions = if *kind == ArtifactKind::Float { String::new() } else { format!(" at {precisions}") };
    detail(format_args!("`{}`: a {kind} model, {model} for {dataset}{precisions}", path.display()));
    Ok(artifact)
}

/// The `.npy` files below a folder; none if it has others only.
fn arrays_in(folder: &Path) -> Result<Option<Vec<PathBuf>>, CommandError> {
    match arrays_below(folder) {
        Ok(files) => Ok(Some(files)),
        Err(ArraysError::Empty(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes a file, and adds its name to those of what was written.
fn write(path: &Path, content: &[u8], wrote: &mut Vec<String>) -> Result<(), CommandError> {
    write_atomically(path, content).map_err(at(path))?;
    wrote.push(path.display().to_string());
    Ok(())
}

/// Writes a model file, and says so as an object in JSON that has some more, by a name.
fn save_in_json(
    artifact: &Artifact, path: &Path, name: &str, more: &impl Serialize,
) -> Result<(), CommandError> {
    artifact.save(path)?;
    let answer = serde_json::json!({
        "file": path, "kind": artifact.description.kind, "bytes": artifact.payload_bytes(), name: more,
    });
    print(&(serde_json::to_string_pretty(&answer)? + "\n"))
}

/// Writes a model file, and says so.
fn save(artifact: &Artifact, path: &Path) -> Result<(), CommandError> {
    artifact.save(path)?;
    let (kind, bytes) = (artifact.description.kind, thousands(artifact.payload_bytes()));
    print(&format!("wrote {}: {kind}, {bytes} bytes\n", path.display()))
}

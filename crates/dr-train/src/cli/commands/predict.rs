//! `dr-train predict`.

use super::inputs::picture;
use super::{load_with, print, write};
use crate::artifact::Artifact;
use crate::cli::{CommandError, PictureArgs};
use clap::Args;
use dr_precision::Precision;
use dr_runtime::arrays::Array;
use dr_runtime::graph::Op;
use dr_runtime::{Arithmetic, Network, npy};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// `dr-train predict`.
#[derive(Debug, Args)]
#[command(after_help = "\
An input is an array as the network takes it, batch first, or an image (PNG or JPEG), which is cut and
normalised as the model file says. A network with several inputs takes a .npz file that has an array under the
name of each. The outputs of INPUT.npy are DIR/INPUT.npy, or DIR/INPUT.NAME.npy if there are several.

Example:
  dr-train predict --model net.onnx --out outputs line-000.npy line-001.npy")]
pub struct PredictArgs {
    /// The model: a model file or an ONNX file
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// At this precision [default: the highest; floats of a float model]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Arrays (.npy), archives of arrays by name (.npz), images
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// Write all outputs into this folder, as .npy
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How pictures become images
    #[command(flatten)]
    pub pictures: PictureArgs,
}

/// Computes what a network makes of each input, says of what shape it is and what is largest in its rows, and writes it.
///
/// # Errors
/// A model or input that cannot be read, inputs that the network does not take, outputs that cannot be written.
pub fn predict(args: &PredictArgs) -> Result<(), CommandError> {
    let artifact = load_with(&args.model, &args.pictures)?;
    let in_model = |error: dr_runtime::RuntimeError| CommandError::about(&args.model, error);
    let precision = match (args.precision, artifact.description.precisions()) {
        (Some(precision), _) => Some(precision),
        (None, set) => set.map(|set| set.highest()),
    };
    let network = Network::load_with(&artifact, precision, Arithmetic::Integer).map_err(in_model)?;
    let names: Vec<&str> =
        network.graph().named_results().iter().map(|result| result.name.as_str()).collect();
    if let Some(out) = &args.out {
        std::fs::create_dir_all(out).map_err(crate::files::at(out))?;
        check_stems(&args.inputs)?;
    }
    let mut wrote = vec![];
    for input in &args.inputs {
        let about = |error: &dyn std::fmt::Display| CommandError::about(input, error);
        let arrays = read(input, &network, &artifact)?;
        let outputs = network.forward_arrays(&arrays).map_err(|error| about(&error))?;
        print(&summary(input, &names, &outputs))?;
        let Some(out) = &args.out else { continue };
        let stem = input.file_stem().unwrap_or_default().to_string_lossy();
        for (at, output) in outputs.iter().enumerate() {
            let name = match names.get(at).filter(|_| outputs.len() > 1) {
                Some(name) => format!("{stem}.{}.npy", file_name(name)),
                None => format!("{stem}.npy"),
            };
            let mut bytes = vec![];
            npy::write(output, &mut bytes).map_err(|error| about(&error))?;
            write(&out.join(name), &bytes, &mut wrote)?;
        }
    }
    match &args.out {
        Some(out) => print(&format!("wrote {} arrays to {}\n", wrote.len(), out.display())),
        None => Ok(()),
    }
}

/// The arrays of a file, in the order in which the network takes them.
fn read(input: &Path, network: &Network, artifact: &Artifact) -> Result<Vec<Array>, CommandError> {
    let about = |error: &dyn std::fmt::Display| CommandError::about(input, error);
    let is_array = input
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("npy") || end.eq_ignore_ascii_case("npz"));
    if !is_array {
        if !matches!(network.graph().input(), Some(Op::Images { .. })) {
            return Err(about(&"an image: expected an array (.npy, .npz), as the network takes"));
        }
        return Ok(vec![picture(input, &artifact.description)?]);
    }
    let mut arrays = npy::read(input).map_err(|error| about(&error))?;
    let wanted: Vec<&str> = network.graph().array_inputs().map(|(_, input)| input.name.as_str()).collect();
    if wanted.len() < 2 && arrays.len() == 1 {
        return Ok(arrays.into_iter().map(|(_, array)| array).collect());
    }
    let mut in_order = vec![];
    for name in &wanted {
        match arrays.iter().position(|(found, _)| found.as_deref() == Some(*name)) {
            Some(at) => in_order.push(arrays.swap_remove(at).1),
            None => {
                return Err(about(&format!(
                    "no array `{name}`: expected {} in a .npz file",
                    wanted.join(", ")
                )));
            }
        }
    }
    match arrays.first() {
        Some((name, _)) => {
            let name = name.as_deref().unwrap_or("without a name");
            Err(about(&format!("an array `{name}`: expected {}", wanted.join(", "))))
        }
        None => Ok(in_order),
    }
}

/// Two inputs would be written to one file.
fn check_stems(inputs: &[PathBuf]) -> Result<(), CommandError> {
    for (at, input) in inputs.iter().enumerate() {
        if let Some(other) = inputs[..at].iter().find(|other| other.file_stem() == input.file_stem()) {
            let (a, b) = (other.display(), input.display());
            return Err(CommandError::new(format!(
                "`{a}` and `{b}`: expected inputs whose names differ, to name the outputs"
            )));
        }
    }
    Ok(())
}

/// What can stand in a file's name.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect()
}

/// The shapes of outputs, and what is largest in a single row.
fn summary(input: &Path, names: &[&str], outputs: &[Array]) -> String {
    let mut text = format!("{}:", input.display());
    for (at, output) in outputs.iter().enumerate() {
        let name = names.get(at).map_or_else(String::new, |name| format!("{name} "));
        let _ = write!(text, " {name}{:?}", output.dims());
        if let ([1, _], Ok(row)) = (output.dims(), output.floats())
            && let Some((largest, value)) = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1))
        {
            let _ = write!(text, ", largest {largest} ({value:.4})");
        }
    }
    text.push('\n');
    text
}

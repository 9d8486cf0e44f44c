//! `dr-train info`.

use super::{ModelArg, load_model, print};
use crate::artifact::{Artifact, Described, Description};
use crate::cli::CommandError;
use crate::report::{few, thousands};
use crate::weights::is_onnx;
use clap::Args;
use dr_precision::PrecisionPlan;
use dr_runtime::file::Resize;
use serde::Serialize;
use std::fmt::Write;

/// `dr-train info`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  dr-train info runs/digits-resnet8/model.safetensors")]
pub struct InfoArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArg,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The most names of classes in the table.
const NAMES: usize = 20;

/// Shows what a model file holds.
///
/// # Errors
/// If the file cannot be read or is not an undamaged model.
pub fn info(args: &InfoArgs) -> Result<(), CommandError> {
    let model = args.model.path();
    let artifact = match is_onnx(&model) {
        true => load_model(&model)?,
        false => Artifact::load(&model)?,
    };
    let text = if args.json { json(&artifact)? } else { table(&artifact) };
    print(&text)
}

#[derive(Serialize)]
struct Info<'a> {
    description: &'a Description,
    tensor_bytes: usize,
    tensors: Vec<TensorInfo<'a>>,
}

#[derive(Serialize)]
struct TensorInfo<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    type_name: &'static str,
    shape: &'a [usize],
    bytes: usize,
}

fn tensors(artifact: &Artifact) -> Vec<TensorInfo<'_>> {
    let tensors = artifact.tensors.iter().map(|(name, entry)| TensorInfo {
        name,
        type_name: entry.data.type_name(),
        shape: &entry.shape,
        bytes: entry.byte_len(),
    });
    tensors.collect()
}

fn json(artifact: &Artifact) -> Result<String, CommandError> {
    let info = Info {
        description: &artifact.description,
        tensor_bytes: artifact.payload_bytes(),
        tensors: tensors(artifact),
    };
    Ok(serde_json::to_string_pretty(&info)? + "\n")
}

fn table(artifact: &Artifact) -> String {
    let description = &artifact.description;
    let list = |values: &[f32]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let normalization = &description.normalization;
    let mixed = description.mixed.map_or("not trained for".to_owned(), |norm| format!("BatchNorm {norm}"));
    let edge = match description.switch_edge {
        true => "the first and the last layer switch, too".to_owned(),
        false => format!("{} in the first and the last layer", description.edge),
    };
    let order = match description.input.channels {
        1 => "grey".to_owned(),
        _ => normalization.order.to_string(),
    };
    let pictures = match description.pictures() {
        Resize::Middle => "the middle, seven eighths of the largest part".to_owned(),
        Resize::Shorter(side) => format!("the middle, with {side} pixels along the shorter side"),
        Resize::Stretch => "stretched".to_owned(),
        Resize::Pad => "as large as fits, with grey beside or below".to_owned(),
    };
    let classes = match &description.class_names[..] {
        [] => description.classes.to_string(),
        names => format!("{}: {}", description.classes, few(names, NAMES)),
    };
    let rows = [
        ("kind", description.kind.to_string()),
        ("model", format!("{}, {} channels in its first stage", description.model, description.width)),
        ("input", format!("{} (channels x rows x columns)", description.input)),
        ("classes", classes),
        ("dataset", description.dataset.to_string()),
        ("mean", list(&normalization.mean)),
        ("std", list(&normalization.std)),
        ("channels", order),
        ("pictures", pictures),
        ("precisions", description.precisions.to_string()),
        ("edge", edge),
        ("BatchNorm", description.batch_norm.to_string()),
        ("mixtures", mixed),
        ("seed", description.seed.to_string()),
        ("checksum", description.checksum.clone()),
    ];
    let tensors = tensors(artifact);
    let name_width = tensors.iter().map(|tensor| tensor.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    // Writing to a string cannot fail.
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<12}{value}");
    }
    let _ =
        writeln!(text, "{:<12}{}, {} bytes", "tensors", tensors.len(), thousands(artifact.payload_bytes()));
    for (layer, precision) in description.plan.iter().flat_map(PrecisionPlan::iter) {
        let _ = writeln!(text, "{:<12}{precision}  {layer}", "plan");
    }
    for TensorInfo { name, type_name, shape, bytes } in tensors {
        let shape = format!("{shape:?}");
        let _ = writeln!(text, "  {name:<name_width$}  {type_name:<3}  {shape:<20} {:>12}", thousands(bytes));
    }
    text
}

//! The arguments of `dr-train eval`.

use crate::cli::values::one_of;
use crate::config::{DeviceKind, Engine};
use clap::Args;
use dr_precision::Precision;
use std::path::PathBuf;

/// `dr-train eval`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dr-train eval --model model.safetensors                    at every precision of the model
  dr-train eval --model model.safetensors --precision w4a4
  dr-train eval --model model.safetensors --engine integer   in integer arithmetic
  dr-train eval --model model.safetensors --plan plan.toml   a precision for each layer
  dr-train eval --model model.safetensors --all --json")]
pub struct EvalArgs {
    /// The model
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Only at this precision
    #[arg(long, conflicts_with = "all")]
    pub precision: Option<Precision>,
    /// With the precisions that a plan has for the layers, as `dr-train search` writes it; BatchNorm statistics are
    /// taken from training images
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["precision", "all"])]
    pub plan: Option<PathBuf>,
    /// At every precision of the model; this is also the default
    #[arg(long)]
    pub all: bool,
    /// Other images than those of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places; the file of a text
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The text that a language model is measured on, all of it [default: the end of the text it was trained on]
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Also ask a language model these questions: JSON lines with `context`, `choices` and the number of the right `answer`
    #[arg(long, value_name = "FILE.jsonl")]
    pub questions: Option<PathBuf>,
    /// Compute in floats as in training (fake quantization), in integers, or with packed weights and float
    /// activations (language models)
    #[arg(long, value_parser = one_of(Engine::ALL), default_value_t = Engine::Fake)]
    pub engine: Engine,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

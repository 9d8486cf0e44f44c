//! The arguments of `dr-train info`.

use clap::Args;
use std::path::PathBuf;

/// `dr-train info`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  dr-train info runs/digits-resnet8/model.safetensors")]
pub struct InfoArgs {
    /// The model
    #[arg(value_name = "FILE")]
    pub model: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

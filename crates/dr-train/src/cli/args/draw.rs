//! The arguments of `dr-train draw`.

use crate::cli::values::{at_least_one, one_of};
use crate::config::DeviceKind;
use clap::Args;
use dr_precision::Precision;
use std::path::PathBuf;

/// `dr-train draw`.
#[derive(Debug, Args)]
#[command(after_help = "\
A column for each image; the first row is the truth, the others are the model's precisions.

Example:
  dr-train draw --model runs/coco-resnet8/model.safetensors --data-dir scenes --out found.png")]
pub struct DrawArgs {
    /// The model
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// A folder with images and annotations in COCO's format
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Only at this precision
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Test images
    #[arg(long, value_name = "N", value_parser = at_least_one(64), allow_negative_numbers = true, default_value_t = 8)]
    pub images: usize,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// The file to write
    #[arg(long, value_name = "FILE.png")]
    pub out: PathBuf,
}

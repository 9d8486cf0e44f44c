//! The arguments of `dr-train scenes`.

use crate::cli::values::{at_least_one, between, seed};
use clap::Args;
use std::path::PathBuf;

/// `dr-train scenes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Digits or clothes in random sizes, places and colours on cluttered canvases, with boxes and masks. The
images of the parts are made of different digits or clothes.

Examples:
  dr-train scenes --out scenes
  dr-train scenes --dataset fashion-mnist --train 4000 --out clothes
  dr-train train --dataset coco --task segment --data-dir scenes")]
pub struct ScenesArgs {
    /// The objects: digits, mnist or fashion-mnist
    #[arg(long, default_value = "digits")]
    pub dataset: String,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Images to learn from
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 2000)]
    pub train: usize,
    /// Images to choose by
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 200)]
    pub val: usize,
    /// Images to measure the result on
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 500)]
    pub test: usize,
    /// Rows and columns of an image
    #[arg(long, value_name = "N", value_parser = between(16, 4096), allow_negative_numbers = true, default_value_t = 64)]
    pub size: usize,
    /// Objects of an image at most
    #[arg(long, value_name = "N", value_parser = at_least_one(64), allow_negative_numbers = true, default_value_t = 3)]
    pub objects: usize,
    /// Decides the scenes
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

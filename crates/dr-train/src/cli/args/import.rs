//! The arguments of `dr-train import`.

use crate::cli::values::at_least_one;
use clap::Args;
use std::path::PathBuf;

/// `dr-train import`.
#[derive(Debug, Args)]
#[command(after_help = "\
The names of the tensors are torchvision's; every one that is missing, unknown or of another shape
is reported. The result is a float model, for `dr-train quantize`. To train on, give the weights to
`dr-train train --weights`.

Example:
  dr-train import --model resnet18 --weights resnet18.pth --out float.safetensors
  dr-train quantize --model float.safetensors --data-dir imagenet --out model.safetensors")]
pub struct ImportArgs {
    /// The network
    #[arg(long)]
    pub model: String,
    /// A state dict, as safetensors or as PyTorch saves it; of a llama, a folder of Hugging Face
    #[arg(long, value_name = "FILE|DIR")]
    pub weights: PathBuf,
    /// Rows and columns of the images that the model takes
    #[arg(long, value_name = "N", value_parser = at_least_one(4096), allow_negative_numbers = true, default_value_t = 224)]
    pub image_size: usize,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

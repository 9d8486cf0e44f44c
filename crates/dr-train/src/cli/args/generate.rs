//! The arguments of `dr-train generate`.

use crate::cli::values::{at_least_one, number, one_of, seed};
use crate::config::{DeviceKind, Engine};
use clap::Args;
use dr_precision::Precision;
use std::path::PathBuf;
use std::str::FromStr;
use thiserror::Error;

/// `dr-train generate`.
#[derive(Debug, Args)]
#[command(after_help = "\
The model is a file of this program, or a folder of Hugging Face with a Llama, which computes in
floats. How fast it was is printed to the standard error.

Examples:
  dr-train generate --model runs/text-llama/model.safetensors --prompt 'ROMEO:'
  dr-train generate --model model.safetensors --precision w4a8 --prompt 'Once upon' --temperature 0.8
  dr-train generate --model model.safetensors --prompt 'Once upon' --switch 32:w4a8,64:w2a8")]
pub struct GenerateArgs {
    /// The model
    #[arg(long, value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// What it begins at [default: its highest precision]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Go on at other precisions after so many new tokens
    #[arg(long, value_name = "N:PRECISION", value_delimiter = ',')]
    pub switch: Vec<SwitchAfter>,
    /// The beginning of the text
    #[arg(long, value_name = "TEXT")]
    pub prompt: String,
    /// New tokens at most; fewer if the context has no room for more, or the text ends
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 128)]
    pub tokens: usize,
    /// How freely tokens are drawn; at 0 the most likely one is taken
    #[arg(long, value_name = "T", value_parser = number, allow_negative_numbers = true, default_value_t = 0.0)]
    pub temperature: f64,
    /// Of how many of the most likely tokens one is drawn
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 40)]
    pub top_k: usize,
    /// Decides the draws
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// Compute in floats as in training (fake quantization), in integers, or with packed weights and float
    /// activations (language models)
    #[arg(long, value_parser = one_of(Engine::ALL), default_value_t = Engine::Integer)]
    pub engine: Engine,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
}

impl GenerateArgs {
    /// After how many new tokens the model goes on at which precision, that of the beginning first.
    #[must_use]
    pub fn switches(&self) -> Vec<(usize, Precision)> {
        let first = self.precision.map(|precision| (0, precision));
        first.into_iter().chain(self.switch.iter().map(|switch| (switch.after, switch.precision))).collect()
    }
}

/// Another precision after so many new tokens: `32:w4a8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchAfter {
    /// How many.
    pub after: usize,
    /// Which.
    pub precision: Precision,
}

/// A text that is no [`SwitchAfter`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}`: expected a number of tokens and a precision, such as `32:w4a8`")]
pub struct SwitchAfterError(pub String);

impl FromStr for SwitchAfter {
    type Err = SwitchAfterError;

    fn from_str(text: &str) -> Result<Self, SwitchAfterError> {
        let wrong = || SwitchAfterError(text.to_owned());
        let (after, precision) = text.split_once(':').ok_or_else(wrong)?;
        let after = after.trim().parse().map_err(|_| wrong())?;
        Ok(Self { after, precision: precision.trim().parse().map_err(|_| wrong())? })
    }
}

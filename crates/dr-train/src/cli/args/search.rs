//! The arguments of `dr-train search`.

use crate::cli::values::{at_least_one, one_of, pin, seed};
use crate::config::{DeviceKind, LossTerms, Widths};
use crate::mixed::{Budget, HessianOptions};
use clap::Args;
use dr_precision::Precision;
use std::path::PathBuf;

/// `dr-train search`.
#[derive(Debug, Args)]
#[command(after_help = "\
The model is one that was trained for mixtures (dr-train train --mixed). Of all plans within the
budget, the one is found that is predicted to cost the least loss: an exact optimum. Budgets:

  avg-bits=4      bits of a weight, on average over all layers but the first and the last, which
                  stay at the highest width
  size=250KB      bytes of the exported model, all of it (B, KB, KiB, MB, MiB or GB)
  bitops=1.2G     multiply-accumulates of an image, each times the bits of weight and activation
                  (K, M, G, T)
  latency=1.5ms   time of a pass in integers on this machine, from layers that are measured first
                  (ns, us, ms, s)

Predicted is, for each layer, its average Hessian trace times the squared error of its weights; with
--objective both also the error of its inputs, as the error of the weights that would weigh as much.

Examples:
  dr-train search --model model.safetensors --budget avg-bits=4 --out plan.toml
  dr-train search --model model.safetensors --budget size=60KB --widths separate
  dr-train search --model model.safetensors --budget latency=1.5ms --batch 1 --threads 1
  dr-train search --model model.safetensors --budget avg-bits=4 --pin stages.0.0.conv1=w8a8
  dr-train search --model model.safetensors --budget avg-bits=4 --pareto front.svg")]
pub struct SearchArgs {
    /// The model; one that was trained for mixtures
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// What the plan may take: avg-bits=N, size=N, bitops=N or latency=N, with units as below
    #[arg(long, value_name = "SPEC")]
    pub budget: Budget,
    /// Average Hessian traces, as `dr-train hessian --out` writes them [default: they are estimated first]
    #[arg(long, value_name = "FILE.json")]
    pub traces: Option<PathBuf>,
    /// What layers choose from: the precisions of the model, or every width of weights with every width of activations
    #[arg(long, value_name = "HOW", value_parser = one_of(Widths::ALL), default_value_t = Widths::Together)]
    pub widths: Widths,
    /// Whose quantization costs loss: that of the weights, or of both weights and activations
    #[arg(long, value_name = "OF", value_parser = one_of(LossTerms::ALL), default_value_t = LossTerms::Both)]
    pub objective: LossTerms,
    /// Keep a layer at a precision; may be given for several layers
    #[arg(long, value_name = "LAYER=PRECISION", value_parser = pin)]
    pub pin: Vec<(String, Precision)>,
    /// Other images than the training images of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Images in a pass whose latency is measured
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true, default_value_t = 1)]
    pub batch: usize,
    /// Passes of which medians are taken, for each precision
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 20), allow_negative_numbers = true, default_value_t = 100)]
    pub samples: usize,
    /// Threads of the processor [default: one for each core]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 10), allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Decides the directions along which traces are estimated
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = HessianOptions::default().seed)]
    pub seed: u64,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Write the plan
    #[arg(long, value_name = "PLAN.toml")]
    pub out: Option<PathBuf>,
    /// Also find the best plans for 24 budgets of this kind, and draw them
    #[arg(long, value_name = "FILE.svg")]
    pub pareto: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

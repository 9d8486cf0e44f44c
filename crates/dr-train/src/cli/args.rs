//! The arguments of the program, as clap reads them; each command says its own.

use super::commands::{
    CompletionsArgs, DrawArgs, EvalArgs, ExportArgs, GenerateArgs, HessianArgs, ImportArgs, ImportCheckArgs,
    InfoArgs, LatencyArgs, PredictArgs, QuantizeArgs, ScenesArgs, SearchArgs, WorkerArgs,
};
use super::settings::TrainArgs;
use clap::{Parser, Subcommand};

/// Trains one network that runs at several widths from 2 to 8 bits, switched at run time.
///
/// Without a command: `dr-train train`, on the digits that the program carries with it.
#[derive(Debug, Parser)]
#[command(
    name = "dr-train",
    bin_name = "dr-train",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  dr-train                                             train on the embedded digits, print the table
  dr-train train --dataset fashion-mnist --epochs 20   train on another dataset
  dr-train eval --model runs/digits-resnet8/model.safetensors
  dr-train export --model model.safetensors --precision w4a4 --out w4a4.safetensors"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Say nothing on the standard error but what goes wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Also say on the standard error what is decided on the way
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network for several precisions at once
    Train(Box<TrainArgs>),
    /// Measure a saved model on the test images
    Eval(EvalArgs),
    /// Save a model at one fixed precision, or with one for each layer, packed or as ONNX
    Export(ExportArgs),
    /// Turn a network that others trained into a float model
    Import(ImportArgs),
    /// Compare what another runtime makes of an exported model with what it makes here
    ImportCheck(ImportCheckArgs),
    /// Turn a float model into one for several precisions, without training
    Quantize(QuantizeArgs),
    /// Write scenes with objects to learn detection and segmentation from, in COCO's format
    Scenes(ScenesArgs),
    /// Draw the boxes or the classes of pixels that a model finds in test images
    Draw(DrawArgs),
    /// Go on with a text, by a language model
    Generate(GenerateArgs),
    /// Say what a model sees in images, or makes of arrays
    Predict(PredictArgs),
    /// Show what a model file holds
    Info(InfoArgs),
    /// Measure how long a saved model takes at each precision, in integers, and in floats
    Latency(LatencyArgs),
    /// Measure how sensitive the loss is to each layer's weights: average Hessian traces
    Hessian(HessianArgs),
    /// Find the best precision for each layer within a budget
    Search(Box<SearchArgs>),
    /// Lend the devices of this machine to trainings on other machines
    Worker(WorkerArgs),
    /// Print what completes commands and flags in a shell
    Completions(CompletionsArgs),
}

impl Default for Command {
    fn default() -> Self {
        Self::Train(Box::default())
    }
}

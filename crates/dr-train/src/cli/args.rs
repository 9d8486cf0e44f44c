//! The arguments of the program, as clap reads them.

use super::values::{at_least_one, between, count, group_size, number, one_of, part, pin, seed, switch};
use crate::config::{
    Baseline, BatchNormKind, Batches, ComputeKind, DatasetKind, DeviceKind, Devices, Distill, Engine,
    ForwardKind, LossTerms, MixedNorm, ModelKind, OptimizerKind, Sampling, TaskKind, TrainConfig, Widths,
};
use crate::mixed::{Budget, HessianOptions};
use crate::onnx::Opset;
use clap::{Args, Parser, Subcommand};
use dr_kernels::ScaleGradient;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// Trains one network that runs at 8, 6, 4 or 2 bits, switched at run time.
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
    /// Turn weights that PyTorch trained into a float model
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
    /// Show what a model file holds
    Info(InfoArgs),
    /// Measure how long a saved model takes at each precision, in integers, and in floats
    Latency(LatencyArgs),
    /// Measure how sensitive the loss is to each layer's weights: average Hessian traces
    Hessian(HessianArgs),
    /// Find the best precision for each layer within a budget
    Search(Box<SearchArgs>),
}

impl Default for Command {
    fn default() -> Self {
        Self::Train(Box::default())
    }
}

/// `dr-train train`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Examples:
  dr-train train                                       the embedded digits, some minutes
  dr-train train --dataset fashion-mnist --limit-train 12000 --baseline single
  dr-train train --dataset cifar10 --data-dir ~/cifar-10-batches-bin --device cuda
  dr-train train --precisions w8a8,w4a8,w2a4 --distill highest --out runs/mixed
  dr-train train --dataset fashion-mnist --mixed --choices 8,6,4,2
  dr-train train --config settings.toml --seed 2       flags win over the file
  dr-train train --resume runs/digits-resnet8          go on after an interruption

A settings file holds flags without the dashes, for example:
  dataset = \"fashion-mnist\"
  precisions = \"8,6,4,2\"
  joint-lr = 0.01
  alrs = true")]
pub struct TrainArgs {
    /// Read settings from a TOML file whose keys are the names of the flags below; flags win
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Show a dashboard with curves while training, if the output is a terminal; `q` stops
    #[arg(long)]
    pub dashboard: bool,
    /// What can be in the file, too.
    #[command(flatten)]
    pub settings: Settings,
}

/// The settings that both flags and a file can give. What is not given is left to
/// [`TrainConfig::for_dataset`], or to the run that is resumed.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct Settings {
    /// What the network is to do [default: what goes with the dataset; for coco detect]
    #[arg(long, value_parser = one_of(TaskKind::ALL), help_heading = "Data")]
    pub task: Option<TaskKind>,
    /// The images to learn [default: digits, which need no files]
    #[arg(long, value_parser = one_of(DatasetKind::ALL), help_heading = "Data")]
    pub dataset: Option<DatasetKind>,
    /// Where the dataset's files are, if not in the usual places; the file of a text
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// Use only the first so many training images
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Data")]
    pub limit_train: Option<usize>,
    /// Rows and columns that the images of a folder are made into [default: 224]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Data")]
    pub image_size: Option<usize>,

    /// The network [default: resnet8; for CIFAR resnet20, for a folder resnet18, for a text llama]
    #[arg(long, value_parser = one_of(ModelKind::ALL), help_heading = "Network")]
    pub model: Option<ModelKind>,
    /// Start from trained weights: a state dict with torchvision's names, as safetensors or as PyTorch saves it; for a llama,
    /// a folder of Hugging Face
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    pub weights: Option<PathBuf>,
    /// The most tokens that a language model's tokenizer learns [default: 512]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Language model")]
    pub vocabulary: Option<usize>,
    /// Features of each of its positions; a multiple of 64 [default: 128]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Language model")]
    pub hidden: Option<usize>,
    /// Its blocks [default: 4]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Language model")]
    pub layers: Option<usize>,
    /// Tokens that it looks at together [default: 128]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Language model")]
    pub context: Option<usize>,
    /// What to train for: `w4a8` is 4-bit weights with 8-bit activations, `4` is `w4a4` [default: 8,6,4,2]
    #[arg(long, visible_alias = "choices", value_name = "LIST", help_heading = "Network")]
    pub precisions: Option<PrecisionSet>,
    /// Whether precisions share their BatchNorm [default: per-precision]
    #[arg(long, value_name = "KIND", value_parser = one_of(BatchNormKind::ALL), help_heading = "Network")]
    pub batch_norm: Option<BatchNormKind>,

    /// Epochs of joint training [default: 40; MNIST 10, CIFAR 60]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub epochs: Option<usize>,
    /// Epochs of float training before that [default: 20; MNIST 10, CIFAR 60]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub float_epochs: Option<usize>,
    /// Batches whose mean gradient makes a step, for networks too large for larger batches [default: 1]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub accumulate: Option<usize>,
    /// Images in a step [default: 64; digits 32]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub batch_size: Option<usize>,
    /// The rule that turns gradients into steps [default: sgd]
    #[arg(long, value_parser = one_of(OptimizerKind::ALL), help_heading = "Training")]
    pub optimizer: Option<OptimizerKind>,
    /// Highest learning rate of float training
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub lr: Option<f64>,
    /// Highest learning rate of the weights in joint training
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub joint_lr: Option<f64>,
    /// Highest learning rate of scales and zero points
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub scale_lr: Option<f64>,
    /// Decay of the weights
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Epochs over which learning rates rise at the start
    #[arg(long, value_name = "N", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub warmup_epochs: Option<f64>,
    /// Whether the learning rate of float training falls to zero, or only as far as it would get in as many epochs of both
    /// trainings together
    #[arg(long, value_name = "on|off", value_parser = switch(), hide_possible_values = true, help_heading = "Training")]
    pub anneal_float: Option<bool>,
    /// Largest L2 norm of one parameter's gradient; 0 is no limit
    #[arg(long, value_name = "NORM", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub clip_norm: Option<f64>,
    /// Adaptive learning rate scaling of the scales
    #[arg(long, value_name = "on|off", value_parser = switch(), hide_possible_values = true, help_heading = "Training")]
    pub alrs: Option<bool>,
    /// The straight-through gradient of the weights' scales
    #[arg(long, value_name = "MODE", value_parser = one_of(&ScaleGradient::ALL), help_heading = "Training")]
    pub scale_gradient: Option<ScaleGradient>,
    /// So many inputs of an output of a linear layer share a scale, e.g. 32, 64 or 128 [default: all]
    #[arg(long, value_name = "N", value_parser = group_size(), allow_negative_numbers = true, help_heading = "Network")]
    pub group_size: Option<NonZeroUsize>,
    /// Whether the first and the last layer switch like all others; they keep the highest widths otherwise [default: off]
    #[arg(long, value_name = "on|off", value_parser = switch(), hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "on", help_heading = "Network")]
    pub switch_edge: Option<bool>,
    /// Whether the precisions of a step see the same images, or each its own [default: separate; same for texts and with --distill highest]
    #[arg(long, value_name = "WHICH", value_parser = one_of(Batches::ALL), help_heading = "Training")]
    pub batches: Option<Batches>,
    /// Whose logits the lower precisions also learn from
    #[arg(long, value_name = "FROM", value_parser = one_of(Distill::ALL), help_heading = "Training")]
    pub distill: Option<Distill>,
    /// What the forward pass of joint training multiplies
    #[arg(long, value_name = "WHAT", value_parser = one_of(ForwardKind::ALL), help_heading = "Training")]
    pub forward: Option<ForwardKind>,
    /// Train a supernet: the highest and the lowest precision, and mixtures with a precision for each layer
    #[arg(long, value_name = "on|off", value_parser = switch(), hide_possible_values = true, num_args = 0..=1, require_equals = true, default_missing_value = "on", help_heading = "Mixed precision")]
    pub mixed: Option<bool>,
    /// Mixtures drawn in each step [default: 2]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Mixed precision")]
    pub draws: Option<usize>,
    /// How a layer's precision is drawn: by its Hessian trace, or uniformly [default: hasb]
    #[arg(long, value_name = "HOW", value_parser = one_of(Sampling::ALL), help_heading = "Mixed precision")]
    pub sampling: Option<Sampling>,
    /// Draw the precisions of the list, or the widths of weights and activations each for itself [default: together]
    #[arg(long, value_name = "HOW", value_parser = one_of(Widths::ALL), help_heading = "Mixed precision")]
    pub widths: Option<Widths>,
    /// Which BatchNorm a layer has in mixtures [default: width]
    #[arg(long, value_name = "WHICH", value_parser = one_of(MixedNorm::ALL), help_heading = "Mixed precision")]
    pub mixed_norm: Option<MixedNorm>,
    /// Also train separate networks, one for each precision and a float one, to compare with
    #[arg(long, value_parser = one_of(Baseline::ALL), help_heading = "Training")]
    pub baseline: Option<Baseline>,

    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), help_heading = "Run")]
    pub device: Option<DeviceKind>,
    /// Train on several devices of that kind together, each on its part of every batch: `all`, or numbers such as `0,1`
    /// [default: the first]
    #[arg(long, value_name = "LIST", help_heading = "Run")]
    pub devices: Option<Devices>,
    /// What convolutions and linear layers multiply [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = one_of(ComputeKind::ALL), help_heading = "Run")]
    pub compute: Option<ComputeKind>,
    /// Decides initial weights, shuffling, augmentation and the validation split
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, help_heading = "Run")]
    pub seed: Option<u64>,
    /// Folder for the model, checkpoints and report [default: runs/DATASET-MODEL, or
    /// that with a number after it where a finished run is]
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub out: Option<PathBuf>,
    /// Go on with an interrupted run, from its folder; its settings hold where nothing else is given
    #[arg(long, value_name = "DIR", help_heading = "Run")]
    pub resume: Option<PathBuf>,
}

impl Settings {
    /// Writes what is given over a configuration.
    pub fn apply(&self, config: &mut TrainConfig) {
        /// Fields that are plain in the one and optional in the other.
        macro_rules! set {
            ($($field:ident),* $(,)?) => {
                $(if let Some(value) = &self.$field { config.$field = value.clone(); })*
            };
        }
        set!(
            task,
            dataset,
            image_size,
            model,
            precisions,
            batch_norm,
            epochs,
            float_epochs,
            batch_size,
            accumulate,
            optimizer,
            lr,
            joint_lr,
            scale_lr,
            weight_decay,
            warmup_epochs,
            anneal_float,
            clip_norm,
            alrs,
            scale_gradient,
            switch_edge,
            batches,
            distill,
            forward,
            mixed,
            draws,
            sampling,
            widths,
            mixed_norm,
            baseline,
            device,
            compute,
            seed,
        );
        let language = &mut config.language;
        language.vocabulary = self.vocabulary.unwrap_or(language.vocabulary);
        language.hidden = self.hidden.unwrap_or(language.hidden);
        language.layers = self.layers.unwrap_or(language.layers);
        language.context = self.context.unwrap_or(language.context);
        config.devices = self.devices.clone().or(config.devices.take());
        config.data_dir = self.data_dir.clone().or(config.data_dir.take());
        config.weights = self.weights.clone().or(config.weights.take());
        config.limit_train = self.limit_train.or(config.limit_train);
        config.group_size = self.group_size.or(config.group_size);
    }
}

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
    #[arg(long, value_parser = one_of(DatasetKind::ALL))]
    pub dataset: Option<DatasetKind>,
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

/// `dr-train latency`.
#[derive(Debug, Args)]
#[command(after_help = "\
The images are random, of the size that the model takes. Times are medians from the images to the
logits, after some passes that do not count. `float` is the same network with its codes dequantized,
in floats. The bytes are those that a pass reads: codes with their padding, and scales.

Examples:
  dr-train latency --model model.safetensors
  dr-train latency --model model.safetensors --plan plan.toml
  dr-train latency --model model.safetensors --batch 1 --threads 1 --json")]
pub struct LatencyArgs {
    /// The model; not a float one
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Only with the precisions that a plan has for the layers
    #[arg(long, value_name = "FILE.toml")]
    pub plan: Option<PathBuf>,
    /// Images in a pass
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true, default_value_t = 1)]
    pub batch: usize,
    /// Passes of which the median is taken, for each precision
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 20), allow_negative_numbers = true, default_value_t = 100)]
    pub samples: usize,
    /// Threads of the processor [default: one for each core]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 10), allow_negative_numbers = true)]
    pub threads: Option<usize>,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// `dr-train hessian`.
#[derive(Debug, Args)]
#[command(after_help = "\
For each layer: the trace of the Hessian of the loss over the layer's weights, divided by their
number, estimated from random directions on training images. The network computes in floats; one for
several precisions has its stored codes dequantized. It stops when every layer's standard error is at
most --tolerance of its trace, or of a hundredth of the mean trace where that is larger.

Examples:
  dr-train hessian --model float.safetensors
  dr-train hessian --model float.safetensors --tolerance 0.02 --out traces.json --plot traces.svg")]
pub struct HessianArgs {
    /// The model
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// Other images than the training images of the dataset the model was trained on
    #[arg(long, value_parser = one_of(DatasetKind::ALL))]
    pub dataset: Option<DatasetKind>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Use only the first so many training images
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub limit_train: Option<usize>,
    /// Largest standard error, as a part of the trace
    #[arg(long, value_name = "PART", value_parser = part, allow_negative_numbers = true, default_value_t = HessianOptions::default().tolerance)]
    pub tolerance: f64,
    /// Most directions
    #[arg(long, value_name = "N", value_parser = between(HessianOptions::MIN_SAMPLES, 1 << 20), allow_negative_numbers = true, default_value_t = HessianOptions::default().max_samples)]
    pub max_samples: usize,
    /// Images for each direction
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 16), allow_negative_numbers = true, default_value_t = 64)]
    pub batch_size: usize,
    /// Decides the directions
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = HessianOptions::default().seed)]
    pub seed: u64,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// Write the traces as JSON
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<PathBuf>,
    /// Draw the traces
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

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
    #[arg(long, value_parser = one_of(DatasetKind::ALL))]
    pub dataset: Option<DatasetKind>,
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

/// `dr-train export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dr-train export --model model.safetensors --precision w2a2 --out w2a2.safetensors
  dr-train export --model model.safetensors --plan plan.toml --out mixed.safetensors
  dr-train export --model model.safetensors --precision w4a8 --out w4a8.onnx
  dr-train export --model model.safetensors --precision 2 --out 2.onnx --samples samples.safetensors")]
pub struct ExportArgs {
    /// The model; one for several precisions
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// The precision to keep
    #[arg(long)]
    pub precision: Option<Precision>,
    /// The precisions to keep, one for each layer; BatchNorm statistics are taken from training images
    #[arg(long, value_name = "FILE.toml", conflicts_with = "precision")]
    pub plan: Option<PathBuf>,
    /// Other images than those of the dataset the model was trained on
    #[arg(long, value_parser = one_of(DatasetKind::ALL))]
    pub dataset: Option<DatasetKind>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The file to write: ONNX if its name ends in .onnx
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// The version of ONNX's operators, 21 to 25; types of 2 bits come with 25
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t)]
    pub opset: Opset,
    /// Also write test images with the model's logits, to check another runtime by
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// How many of them
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 1000)]
    pub images: usize,
}

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
    #[arg(long, value_parser = one_of(ModelKind::ALL))]
    pub model: ModelKind,
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

/// `dr-train import-check`.
#[derive(Debug, Args)]
#[command(after_help = "\
`dr-train export --samples` writes the samples: `images` [n, channels, rows, columns], normalised,
`labels` [n] and the model's `logits` [n, classes]. The other runtime's file has its `logits`.

Example:
  dr-train import-check --samples samples.safetensors --logits onnxruntime.safetensors")]
pub struct ImportCheckArgs {
    /// Images and the model's logits
    #[arg(long, value_name = "FILE")]
    pub samples: PathBuf,
    /// What another runtime made of the images
    #[arg(long, value_name = "FILE")]
    pub logits: PathBuf,
    /// Images that must get the same class, in percent
    #[arg(long, value_name = "PERCENT", value_parser = number, allow_negative_numbers = true, default_value_t = 99.5)]
    pub least: f64,
    /// Print JSON instead of a sentence
    #[arg(long)]
    pub json: bool,
}

/// `dr-train quantize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  dr-train quantize --model float.safetensors --precisions 8,6,4 --out model.safetensors")]
pub struct QuantizeArgs {
    /// The model; a float one, or a folder of Hugging Face with a Llama
    #[arg(long, value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// The precisions the result runs at
    #[arg(long, value_name = "LIST", default_value_t = PrecisionSet::default())]
    pub precisions: PrecisionSet,
    /// So many inputs of an output of a linear layer share a scale, e.g. 32, 64 or 128 [default: all]
    #[arg(long, value_name = "N", value_parser = group_size(), allow_negative_numbers = true)]
    pub group_size: Option<NonZeroUsize>,
    /// Let the first and the last layer switch like all others, too; they keep the highest widths otherwise
    #[arg(long)]
    pub switch_edge: bool,
    /// Move the weights of linear layers so that they make up for what rounding does at this width (as GPTQ
    /// does): better there, worse at other widths
    #[arg(long, value_name = "BITS")]
    pub compensate: Option<BitWidth>,
    /// Fit activations to other images than the training images of the dataset the model was trained on
    #[arg(long, value_parser = one_of(DatasetKind::ALL))]
    pub dataset: Option<DatasetKind>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

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
    #[arg(long, value_parser = one_of(DatasetKind::ALL), default_value_t = DatasetKind::Digits)]
    pub dataset: DatasetKind,
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

impl FromStr for SwitchAfter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}`: expected a number of tokens and a precision, such as `32:w4a8`");
        let (after, precision) = text.split_once(':').ok_or_else(wrong)?;
        let after = after.trim().parse().map_err(|_| wrong())?;
        Ok(Self { after, precision: precision.trim().parse().map_err(|_| wrong())? })
    }
}

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

//! The arguments of `dr-train train`.

use crate::cli::values::{KindOrWorker, count, group_size, number, one_of, seed, switch};
use crate::config::{
    Baseline, BatchNormKind, Batches, Changes, ComputeKind, DeviceKind, Devices, Distill, Fit, ForwardKind,
    ImageSize, MixedNorm, OptimizerKind, Place, Rates, Sampling, TrainConfig, Widths,
};
use crate::data::{Coco, DatasetKind, Text};
use crate::quantization::DistillationOptions;
use clap::Args;
use dr_kernels::ScaleGradient;
use dr_precision::PrecisionSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// `dr-train train`.
#[derive(Debug, Default, Args)]
#[command(after_help = format!("{EXAMPLES}\n\n{}", rates()))]
pub struct TrainArgs {
    /// Read settings from a TOML file whose keys are the names of the flags below; flags win
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Show a dashboard with curves while training, if the output is a terminal; `q` stops. Needs a build with the feature `dashboard`
    #[arg(long, conflicts_with = "json")]
    pub dashboard: bool,
    /// Print the report as JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// What can be in the file, too.
    #[command(flatten)]
    pub settings: Settings,
}

/// How trainings are asked for.
const EXAMPLES: &str = "\
Examples:
  dr-train train                                       the embedded digits, some minutes
  dr-train train --dataset fashion-mnist --limit-train 12000 --baseline single
  dr-train train --dataset cifar10 --data-dir ~/cifar-10-batches-bin --device cuda
  dr-train train --precisions w8a8,w4a8,w2a4 --distill highest --out runs/mixed
  dr-train train --dataset fashion-mnist --mixed --choices 8,6,4,2
  dr-train train --model net.onnx --distill --data-dir inputs --precisions w8a8,w4a8 --out trained
  dr-train train --config settings.toml --seed 2       flags win over the file
  dr-train train --resume runs/digits-resnet8          go on after an interruption

A settings file holds flags without the dashes, for example:
  dataset = \"fashion-mnist\"
  precisions = \"8,6,4,2\"
  joint-lr = 0.01
  alrs = true";

/// The table of the learning rates that are taken where none are given.
fn rates() -> String {
    let line = |name: &str, rates: [&str; 3]| {
        let [lr, joint, scale] = rates;
        format!("  {name:<22}{lr:<9}{joint:<12}{scale}")
    };
    let row = |name: &str, Rates { lr, joint_lr, scale_lr }: Rates| {
        line(name, [lr, joint_lr, scale_lr].map(|rate| rate.to_string()).each_ref().map(String::as_str))
    };
    let optimizers = OptimizerKind::ALL.iter().flat_map(|&optimizer| {
        let of = |trained| Rates::usual(optimizer, trained);
        [row(optimizer.name(), of(false)), row(&format!("{optimizer}, --weights"), of(true))]
    });
    let datasets = [Text.settings(), Coco.settings()].map(|config| {
        let TrainConfig { lr, joint_lr, scale_lr, .. } = config;
        row(&format!("{}, {}", config.dataset, config.optimizer), Rates { lr, joint_lr, scale_lr })
    });
    let DistillationOptions { weight_rate, scale_rate, .. } = DistillationOptions::default();
    let [weights, scales] = [weight_rate, scale_rate].map(|rate| rate.to_string());
    let distilled = line("a file, --distill", ["-", &weights, &scales]);
    let header =
        "Learning rates where none are given:\n".to_owned() + &line("", ["--lr", "--joint-lr", "--scale-lr"]);
    std::iter::once(header)
        .chain(optimizers)
        .chain(datasets)
        .chain([distilled])
        .collect::<Vec<_>>()
        .join("\n")
}

/// The settings that both flags and a file can give. What is not given is left to
/// the [settings](crate::data::DatasetKind::settings) of the dataset, or to the run that is resumed.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub struct Settings {
    /// What the network is to do [default: what goes with the dataset; for coco detect]
    #[arg(long, help_heading = "Data")]
    pub task: Option<String>,
    /// The images to learn [default: digits, which need no files]
    #[arg(long, help_heading = "Data")]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places; the file of a text; the inputs, images or .npy files,
    /// that a network in a file is trained on
    #[arg(long, value_name = "DIR", help_heading = "Data")]
    pub data_dir: Option<PathBuf>,
    /// Use only the first so many training images; of the inputs of a network in a file so many, evenly spread
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Data")]
    pub limit_train: Option<usize>,
    /// Rows and columns that images of a folder or of coco are made into [default: 224; coco 64]
    #[arg(long, value_name = "N|HxW", allow_negative_numbers = true, help_heading = "Data")]
    pub image_size: Option<ImageSize>,
    /// How pictures of coco become images of that size: with their ratio of sides, and grey beside or below; or stretched [default: pad]
    #[arg(long, value_parser = one_of(Fit::ALL), help_heading = "Data")]
    pub fit: Option<Fit>,

    /// The network [default: resnet8; for CIFAR resnet20, for a folder resnet18, for a text llama]; or, with --distill, the
    /// file of a trained float one, .onnx or .safetensors: it is quantized without training, and then all precisions learn
    /// what it gives for the inputs of --data-dir, without labels
    #[arg(long, value_name = "MODEL|FILE", help_heading = "Network")]
    pub model: Option<String>,
    /// Start from trained weights: a state dict with torchvision's names, as safetensors or as PyTorch saves it; for coco, that
    /// of a classifier, or a float model of this program that classifies; for a llama, a folder of Hugging Face or GGUF
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
    /// What to train for: `w4a8` is 4-bit weights with 8-bit activations, `4` is `w4a4` [default: 8,6,4,2; text 8,6,4]
    #[arg(long, visible_alias = "choices", value_name = "LIST", help_heading = "Network")]
    pub precisions: Option<PrecisionSet>,
    /// Whether precisions share their BatchNorm [default: per-precision]
    #[arg(long, value_name = "KIND", value_parser = one_of(BatchNormKind::ALL), help_heading = "Network")]
    pub batch_norm: Option<BatchNormKind>,

    /// Epochs of joint training [default: 40; MNIST 10, CIFAR 60, folder 30, coco 20, text 5]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub epochs: Option<usize>,
    /// Epochs of float training before that [default: 20; MNIST 10, CIFAR 60, folder 30, coco 20, text 5]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub float_epochs: Option<usize>,
    /// Batches whose mean gradient makes a step, for networks too large for larger batches [default: 1]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub accumulate: Option<usize>,
    /// Images in a step [default: 64; digits 32, coco and text 16]
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub batch_size: Option<usize>,
    /// The rule that turns gradients into steps [default: sgd; coco and text adamw]
    #[arg(long, value_parser = one_of(OptimizerKind::ALL), help_heading = "Training")]
    pub optimizer: Option<OptimizerKind>,
    /// Highest learning rate of float training [default: see below]
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub lr: Option<f64>,
    /// Highest learning rate of the weights in joint training [default: see below]
    #[arg(long, value_name = "RATE", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub joint_lr: Option<f64>,
    /// Highest learning rate of scales and zero points [default: see below]
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
    /// Random changes to training images with a class each: `none`, or a list of `crop`, `flip`, `colour` and `rand` or `rand:M`,
    /// RandAugment of a magnitude M of at most 30 [default: what is usual for the dataset, such as crop,flip]
    #[arg(long, value_name = "LIST", help_heading = "Training")]
    pub augment: Option<Changes>,
    /// Learn from mixtures of two such images, their parts drawn from Beta(ALPHA, ALPHA); 0 is none [default: 0]
    #[arg(long, value_name = "ALPHA", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub mixup: Option<f64>,
    /// The part of the probability that is spread over all classes [default: 0]
    #[arg(long, value_name = "PART", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub label_smoothing: Option<f64>,
    /// Choose and keep a moving average of the network, of which this part stays in each step, e.g. 0.999; 0 is none [default: 0]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_negative_numbers = true, help_heading = "Training")]
    pub ema: Option<f64>,
    /// End float or joint training after so many epochs without a better validation [default: train all epochs]
    #[arg(long, value_name = "EPOCHS", value_parser = count, allow_negative_numbers = true, help_heading = "Training")]
    pub patience: Option<usize>,
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
    /// Whose logits the lower precisions also learn from; without a value the float network's
    #[arg(long, value_name = "FROM", value_parser = one_of(Distill::ALL), num_args = 0..=1, default_missing_value = "float", help_heading = "Training")]
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

    /// Where to compute; `remote:HOST:PORT` is on a `dr-train worker`
    #[arg(long, value_parser = KindOrWorker::default(), help_heading = "Run")]
    pub device: Option<Place>,
    /// Train on several devices there together, each on its part of every batch: `all`, or numbers such as `0,1`
    /// [default: the first]; or on all of workers, `remote:HOST:PORT,remote:HOST:PORT`
    #[arg(long, value_name = "LIST", help_heading = "Run")]
    pub devices: Option<Devices>,
    /// File with the token of the workers
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub token_file: Option<PathBuf>,
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
    /// The flags that are given, by their names.
    pub fn given(&self) -> Vec<String> {
        /// All fields by name.
        macro_rules! given {
            ($($field:ident),* $(,)?) => {{
                let Self { $($field),* } = self;
                let fields = [$((stringify!($field), $field.is_some())),*];
                fields.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.replace('_', "-")).collect()
            }};
        }
        given! {
            task, dataset, data_dir, limit_train, image_size, fit, model, weights, vocabulary, hidden, layers, context,
            precisions, batch_norm, epochs, float_epochs, accumulate, batch_size, optimizer, lr, joint_lr, scale_lr,
            weight_decay, warmup_epochs, anneal_float, augment, mixup, label_smoothing, ema, patience, clip_norm, alrs, scale_gradient, group_size, switch_edge, batches,
            distill, forward, mixed, draws, sampling, widths, mixed_norm, baseline, device, devices, token_file, compute, seed, out,
            resume,
        }
    }

    /// Writes what is given over a configuration.
    pub fn apply(&self, config: &mut TrainConfig) {
        /// Fields that are plain in the one and optional in the other.
        macro_rules! set {
            ($($field:ident),* $(,)?) => {
                $(if let Some(value) = &self.$field { config.$field = value.clone(); })*
            };
        }
        set! {
            task, dataset, image_size, fit, model, precisions, batch_norm, epochs, float_epochs,
            batch_size, accumulate, optimizer, lr, joint_lr, scale_lr, weight_decay, warmup_epochs,
            anneal_float, mixup, label_smoothing, ema, clip_norm, alrs, scale_gradient, switch_edge, batches, distill, forward,
            mixed, draws, sampling, widths, mixed_norm, baseline, device, compute, seed,
        }
        let language = &mut config.language;
        language.vocabulary = self.vocabulary.unwrap_or(language.vocabulary);
        language.hidden = self.hidden.unwrap_or(language.hidden);
        language.layers = self.layers.unwrap_or(language.layers);
        language.context = self.context.unwrap_or(language.context);
        // Workers are a place and its devices at once: either flag replaces both.
        if self.device.is_some() {
            config.devices = config.devices.take().filter(|devices| !matches!(devices, Devices::Workers(_)));
        } else if matches!(self.devices, Some(Devices::Workers(_))) {
            config.device = Place::Here(DeviceKind::Auto);
        }
        config.devices = self.devices.clone().or(config.devices.take());
        config.token_file = self.token_file.clone().or(config.token_file.take());
        config.data_dir = self.data_dir.clone().or(config.data_dir.take());
        config.weights = self.weights.clone().or(config.weights.take());
        config.augment = self.augment.or(config.augment);
        config.patience = self.patience.or(config.patience);
        config.limit_train = self.limit_train.or(config.limit_train);
        config.group_size = self.group_size.or(config.group_size);
    }
}

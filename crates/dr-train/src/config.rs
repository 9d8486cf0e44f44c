//! [`TrainConfig`]: everything that decides a training run, as it is saved beside its results.

use dr_kernels::ScaleGradient;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::{fmt, str::FromStr};
use thiserror::Error;

/// An enum whose values have one name each, in text, flags, files and messages alike.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant,)*
        }

        impl $type {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in flags, files and messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or_else(|| {
                    let names: Vec<&str> = Self::ALL.iter().map(|value| value.name()).collect();
                    format!(concat!("unknown ", $what, " `{}`: expected one of {}"), text, names.join(", "))
                })
            }
        }
    };
}

named! {
    /// A dataset the program can read.
    DatasetKind, "dataset" {
        /// The UCI optical digits (8x8), embedded in the program.
        Digits = "digits",
        /// MNIST (28x28), from IDX files.
        Mnist = "mnist",
        /// Fashion-MNIST (28x28), from IDX files.
        FashionMnist = "fashion-mnist",
        /// CIFAR-10 (32x32, colour), from its binary files.
        Cifar10 = "cifar10",
        /// CIFAR-100 (32x32, colour, fine labels), from its binary files.
        Cifar100 = "cifar100",
        /// JPEG and PNG files in a folder for each class.
        Folder = "folder",
        /// A text, for language models; without a file, the one that the program carries with it.
        Text = "text",
        /// Images with objects in them, and annotations in COCO's format.
        Coco = "coco",
    }
}

named! {
    /// A network.
    ModelKind, "model" {
        /// Three stages of one block.
        Resnet8 = "resnet8",
        /// Three stages of three blocks.
        Resnet20 = "resnet20",
        /// Three stages of five blocks.
        Resnet32 = "resnet32",
        /// Four stages of two blocks, as torchvision has it.
        Resnet18 = "resnet18",
        /// Four stages of three, four, six and three blocks, as torchvision has it.
        Resnet34 = "resnet34",
        /// The same of bottleneck blocks, as torchvision has it.
        Resnet50 = "resnet50",
        /// Inverted residual blocks, as torchvision has it.
        MobilenetV2 = "mobilenet_v2",
        /// A language model of the Llama family.
        Llama = "llama",
    }
}

named! {
    /// What a network does.
    #[derive(Default)]
    TaskKind, "task" {
        /// Gives each image a class.
        #[default]
        Classify = "classify",
        /// Gives each pixel of an image a class.
        Segment = "segment",
        /// Finds objects in an image and their boxes.
        Detect = "detect",
        /// Predicts the next token of a text: a language model.
        Language = "lm",
    }
}

named! {
    /// Whether precisions share their BatchNorm.
    BatchNormKind, "BatchNorm kind" {
        /// Statistics and affine terms for each precision.
        PerPrecision = "per-precision",
        /// One set for all.
        Shared = "shared",
    }
}

named! {
    /// Which BatchNorm a layer has in mixed passes.
    #[derive(Default)]
    MixedNorm, "BatchNorm of mixed passes" {
        /// The one of the layer's own precision, that the passes at one precision have, too.
        Uniform = "uniform",
        /// One for each width of the layer's weights, for mixed passes only.
        #[default]
        Width = "width",
        /// One, for mixed passes only.
        One = "one",
    }
}

named! {
    /// How a step of mixed training draws the precision of a layer.
    #[derive(Default)]
    Sampling, "sampling" {
        /// Sensitive layers draw more bits more often (Hessian-aware stochastic bit-switching).
        #[default]
        Hasb = "hasb",
        /// Every layer draws uniformly.
        Uniform = "uniform",
    }
}

named! {
    /// Which precisions a layer can have in a mixture.
    #[derive(Default)]
    Widths, "widths" {
        /// The precisions of the model.
        #[default]
        Together = "together",
        /// Every width of weights with every width of activations.
        Separate = "separate",
    }
}

named! {
    /// Whose quantization a search takes to cost loss.
    LossTerms, "objective" {
        /// That of the weights.
        Weights = "weights",
        /// That of the weights and of the activations.
        Both = "both",
    }
}

named! {
    /// What the passes of a step of joint training see.
    Batches, "kind of batches" {
        /// All the same images.
        Same = "same",
        /// Each images of its own: in an epoch, each goes over all of them.
        Separate = "separate",
    }
}

impl Default for Batches {
    /// What runs had before there was a choice.
    fn default() -> Self {
        Self::Same
    }
}

named! {
    /// Whose logits the lower precisions also learn from.
    Distill, "distillation" {
        /// Labels only.
        Off = "off",
        /// Those of the highest precision, in the same step.
        Highest = "highest",
        /// Those of the float network that training started from.
        Float = "float",
    }
}

named! {
    /// What the forward pass of joint training multiplies.
    ForwardKind, "forward pass" {
        /// Fake-quantized floats.
        Float = "float",
        /// Their codes, where there are kernels for that (`flex`): the same values up to rounding.
        Integer = "integer",
    }
}

impl Default for ForwardKind {
    /// What runs had before there was a choice.
    fn default() -> Self {
        Self::Float
    }
}

named! {
    /// Where to compute.
    DeviceKind, "device" {
        /// The first of cuda, vulkan, wgpu that is compiled in and there; else flex.
        Auto = "auto",
        /// The processor, in plain Rust.
        Flex = "flex",
        /// Any GPU, through WebGPU.
        Wgpu = "wgpu",
        /// Any GPU, through Vulkan.
        Vulkan = "vulkan",
        /// An NVIDIA GPU.
        Cuda = "cuda",
        /// The processor, through CubeCL.
        Cpu = "cpu",
    }
}

named! {
    /// How a quantized network is computed.
    Engine, "engine" {
        /// In floats, quantized and dequantized before each layer, as in training.
        Fake = "fake",
        /// In integers.
        Integer = "integer",
        /// With packed weights and activations in floats: language models.
        WeightOnly = "weight-only",
    }
}

named! {
    /// The rule that turns gradients into steps.
    OptimizerKind, "optimizer" {
        /// Stochastic gradient descent with Nesterov momentum 0.9.
        Sgd = "sgd",
        /// Adam.
        Adam = "adam",
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
    }
}

named! {
    /// The numbers that convolutions and linear layers multiply in training; everything else stays in 32 bits.
    #[derive(Default)]
    ComputeKind, "type to compute in" {
        /// 32-bit floats.
        #[default]
        F32 = "f32",
        /// 16-bit floats of IEEE 754. Factors keep gradients in their range.
        F16 = "f16",
        /// 16-bit floats with the exponents of 32-bit ones.
        Bf16 = "bf16",
    }
}

named! {
    /// What the joint training is compared to.
    Baseline, "baseline" {
        /// Nothing.
        Off = "off",
        /// Separate networks, one for each precision and a float one, of the same total number of epochs.
        Single = "single",
    }
}

/// Everything that decides a training run. Saved as `config.json` in the output directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What the network is to do.
    #[serde(default)]
    pub task: TaskKind,
    /// The dataset.
    pub dataset: DatasetKind,
    /// Where its files are, if not where they are usually found.
    pub data_dir: Option<PathBuf>,
    /// The network.
    pub model: ModelKind,
    /// A state dict with torchvision's names that training starts from.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// The precisions to train for.
    pub precisions: PrecisionSet,
    /// Epochs of joint training.
    pub epochs: usize,
    /// Epochs of float training before that.
    pub float_epochs: usize,
    /// Images in a step.
    pub batch_size: usize,
    /// Batches whose mean gradient makes a step of the optimizer.
    #[serde(default = "one")]
    pub accumulate: usize,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Highest learning rate of the float training; after a warm-up it falls along a cosine.
    pub lr: f64,
    /// The same for the joint training's weights.
    pub joint_lr: f64,
    /// The same for scales and zero points in joint training.
    pub scale_lr: f64,
    /// Decay of weights; not of scales, zero points and BatchNorm.
    pub weight_decay: f64,
    /// Epochs of warm-up.
    pub warmup_epochs: f64,
    /// Whether the learning rate of the float training that joint training starts from falls to zero; else it gets as far
    /// down as it would in as many epochs of both trainings together, which leaves more to learn.
    #[serde(default = "anneal")]
    pub anneal_float: bool,
    /// Largest L2 norm of one parameter's gradient; 0 is no limit.
    pub clip_norm: f64,
    /// Adaptive learning rate scaling of the scales (ALRS).
    pub alrs: bool,
    /// Gradient mode of the weights' scales.
    #[serde(with = "text")]
    pub scale_gradient: ScaleGradient,
    /// So many inputs of an output of a linear layer share a scale; `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<NonZeroUsize>,
    /// Whether the first and the last layer switch like all others, instead of keeping the highest widths.
    #[serde(default)]
    pub switch_edge: bool,
    /// BatchNorm.
    pub batch_norm: BatchNormKind,
    /// Whether the precisions of a step see the same images.
    #[serde(default)]
    pub batches: Batches,
    /// Distillation.
    pub distill: Distill,
    /// What the forward pass of joint training multiplies.
    #[serde(default)]
    pub forward: ForwardKind,
    /// Train for all mixtures of the precisions: a supernet.
    #[serde(default)]
    pub mixed: bool,
    /// Mixtures drawn in each step, besides the highest and the lowest precision.
    #[serde(default = "default_draws")]
    pub draws: usize,
    /// How they are drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// From which precisions.
    #[serde(default)]
    pub widths: Widths,
    /// Which BatchNorm layers have in them.
    #[serde(default)]
    pub mixed_norm: MixedNorm,
    /// Rows and columns that images of a folder are made into.
    #[serde(default = "default_image_size")]
    pub image_size: usize,
    /// The language model that is trained from scratch.
    #[serde(default)]
    pub language: LanguageSettings,
    /// Use only so many training images, or so many characters of a text.
    pub limit_train: Option<usize>,
    /// Where to compute.
    pub device: DeviceKind,
    /// On which devices of that kind, if not on the first alone: together, each on its part of every batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
    /// What convolutions and linear layers multiply.
    #[serde(default)]
    pub compute: ComputeKind,
    /// Decides initial weights, shuffling, augmentation and the validation split.
    pub seed: u64,
    /// What to compare to.
    pub baseline: Baseline,
}

/// What runs did before there was a choice.
const fn anneal() -> bool {
    true
}

/// What language models are trained for.
fn language_precisions() -> PrecisionSet {
    let bits = [BitWidth::B8, BitWidth::B6, BitWidth::B4];
    let set = PrecisionSet::new(bits.map(|bits| Precision::new(bits, bits)));
    set.expect("three of them, each once")
}

/// With the highest and the lowest precision, as many passes as joint training has at four precisions.
const fn default_draws() -> usize {
    2
}

const fn one() -> usize {
    1
}

/// Rows and columns of images if nothing else is asked for.
pub const IMAGE_SIZE: usize = 224;

const fn default_image_size() -> usize {
    IMAGE_SIZE
}

impl TrainConfig {
    /// The settings for a dataset, where flags and files say nothing else.
    #[must_use]
    pub fn for_dataset(dataset: DatasetKind) -> Self {
        let (epochs, float_epochs) = match dataset {
            DatasetKind::Digits => (40, 20),
            DatasetKind::Mnist | DatasetKind::FashionMnist => (10, 10),
            DatasetKind::Cifar10 | DatasetKind::Cifar100 => (60, 60),
            DatasetKind::Folder => (30, 30),
            DatasetKind::Text => (5, 5),
            DatasetKind::Coco => (20, 20),
        };
        let model = match dataset {
            DatasetKind::Cifar10 | DatasetKind::Cifar100 => ModelKind::Resnet20,
            DatasetKind::Folder => ModelKind::Resnet18,
            DatasetKind::Text => ModelKind::Llama,
            _ => ModelKind::Resnet8,
        };
        let text = dataset == DatasetKind::Text;
        let adam = text || dataset == DatasetKind::Coco;
        Self {
            task: match dataset {
                DatasetKind::Text => TaskKind::Language,
                DatasetKind::Coco => TaskKind::Detect,
                _ => TaskKind::Classify,
            },
            dataset,
            data_dir: None,
            model,
            weights: None,
            precisions: if text { language_precisions() } else { PrecisionSet::default() },
            epochs,
            float_epochs,
            batch_size: match dataset {
                DatasetKind::Digits => 32,
                DatasetKind::Text | DatasetKind::Coco => 16,
                _ => 64,
            },
            accumulate: one(),
            optimizer: if adam { OptimizerKind::AdamW } else { OptimizerKind::Sgd },
            lr: match dataset {
                DatasetKind::Text => 2e-3,
                DatasetKind::Coco => 4e-3,
                _ => 0.1,
            },
            joint_lr: match dataset {
                DatasetKind::Text => 1e-3,
                DatasetKind::Coco => 4e-3,
                _ => 0.02,
            },
            scale_lr: if adam { 1e-5 } else { 0.01 },
            weight_decay: if text { 0.1 } else { 5e-4 },
            warmup_epochs: if text { 0.1 } else { 1.0 },
            anneal_float: anneal(),
            clip_norm: if text { 1.0 } else { 0.0 },
            alrs: false,
            scale_gradient: ScaleGradient::default(),
            group_size: None,
            switch_edge: false,
            batch_norm: BatchNormKind::PerPrecision,
            batches: if text { Batches::Same } else { Batches::Separate },
            distill: Distill::Off,
            forward: ForwardKind::Float,
            mixed: false,
            draws: default_draws(),
            sampling: Sampling::default(),
            widths: Widths::default(),
            mixed_norm: MixedNorm::default(),
            image_size: if dataset == DatasetKind::Coco { 64 } else { default_image_size() },
            language: LanguageSettings::default(),
            limit_train: None,
            device: DeviceKind::Auto,
            devices: None,
            compute: ComputeKind::default(),
            seed: 1,
            baseline: Baseline::Off,
        }
    }
}

/// Sizes of a language model that is trained from scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageSettings {
    /// The most tokens that the tokenizer learns; 256 are single bytes.
    pub vocabulary: usize,
    /// Features of a position; a multiple of 64.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// The most positions of a text, and the length of the pieces that it is learned in.
    pub context: usize,
}

impl Default for LanguageSettings {
    fn default() -> Self {
        Self { vocabulary: 512, hidden: 128, layers: 4, context: 128 }
    }
}

/// Which devices of a kind train together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All there are.
    All,
    /// Those with these numbers, counted from 0.
    Numbers(Vec<usize>),
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.pad("all"),
            Self::Numbers(numbers) => {
                f.pad(&numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = || format!("devices `{text}`: expected `all`, or numbers such as `0,1`, each once");
        let numbers = text.split(',').map(|number| number.trim().parse()).collect::<Result<Vec<usize>, _>>();
        let numbers = numbers.map_err(|_| wrong())?;
        let repeated = numbers.iter().enumerate().any(|(i, number)| numbers[..i].contains(number));
        if repeated { Err(wrong()) } else { Ok(Self::Numbers(numbers)) }
    }
}

impl Serialize for Devices {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        text::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text::deserialize(deserializer)
    }
}

/// A setting outside what makes sense.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{name} {value}: expected {expected}")]
pub struct ConfigError {
    /// The setting, spelt like its flag.
    pub name: &'static str,
    /// What it is set to.
    pub value: f64,
    /// What it can be set to.
    pub expected: &'static str,
}

impl TrainConfig {
    /// Whether all numbers are in range.
    ///
    /// # Errors
    /// The first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = "a whole number of at least 1";
        let rate_range = "a number above 0 and at most 1";
        let not_negative = "a finite number of at least 0";
        let rate = |value: f64| value > 0.0 && value <= 1.0;
        let non_negative = |value: f64| value.is_finite() && value >= 0.0;
        // `as f64`: only shown.
        let checks = [
            ("epochs", self.epochs as f64, self.epochs >= 1, at_least_one),
            (
                "batch-size",
                self.batch_size as f64,
                self.batch_size >= 2,
                "a whole number of at least 2, for BatchNorm's statistics",
            ),
            ("accumulate", self.accumulate as f64, self.accumulate >= 1, at_least_one),
            ("lr", self.lr, rate(self.lr), rate_range),
            ("joint-lr", self.joint_lr, rate(self.joint_lr), rate_range),
            ("scale-lr", self.scale_lr, non_negative(self.scale_lr), not_negative),
            ("weight-decay", self.weight_decay, non_negative(self.weight_decay), not_negative),
            ("warmup-epochs", self.warmup_epochs, non_negative(self.warmup_epochs), not_negative),
            ("clip-norm", self.clip_norm, non_negative(self.clip_norm), not_negative),
            (
                "vocabulary",
                self.language.vocabulary as f64,
                (257..=1 << 17).contains(&self.language.vocabulary),
                "257 to 131072 tokens",
            ),
            (
                "hidden",
                self.language.hidden as f64,
                (64..=1 << 14).contains(&self.language.hidden) && self.language.hidden.is_multiple_of(64),
                "a multiple of 64 up to 16384",
            ),
            (
                "layers",
                self.language.layers as f64,
                (1..=256).contains(&self.language.layers),
                "1 to 256 blocks",
            ),
            (
                "context",
                self.language.context as f64,
                (2..=1 << 17).contains(&self.language.context),
                "2 to 131072 positions",
            ),
            (
                "draws",
                self.draws as f64,
                (1..=MOST_DRAWS).contains(&self.draws),
                "a whole number from 1 to 64",
            ),
            (
                "image-size",
                self.image_size as f64,
                (8..=MOST_PIXELS).contains(&self.image_size),
                "8 to 4096 pixels",
            ),
            (
                "limit-train",
                self.limit_train.unwrap_or(usize::MAX) as f64,
                self.limit_train.is_none_or(|limit| limit >= self.batch_size),
                "at least as many images as the batch size",
            ),
        ];
        match checks.into_iter().find(|check| !check.2) {
            Some((name, value, _, expected)) => Err(ConfigError { name, value, expected }),
            None => Ok(()),
        }
    }
}

/// Rows and columns.
const MOST_PIXELS: usize = 4096;

/// Each is a pass of every step.
const MOST_DRAWS: usize = 64;

/// Serde through `Display` and `FromStr`.
mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

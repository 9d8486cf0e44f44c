//! [`TrainConfig`]: everything that decides a training run, as it is saved beside its results.

use super::changes::Changes;
use super::devices::Devices;
use super::image_size::ImageSize;
use super::kinds::{
    Baseline, Batches, ComputeKind, DeviceKind, Distill, Fit, ForwardKind, OptimizerKind, Sampling, Widths,
};
use super::place::{Place, WorkerAddress};
use super::rates::Rates;
use super::task::{CLASSIFY, before};
use super::text;
use super::{BatchNormKind, MixedNorm};
use dr_kernels::ScaleGradient;
use dr_precision::PrecisionSet;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Everything that decides a training run. Saved as `config.json` in the output directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// What the network is to do.
    #[serde(default = "before")]
    pub task: String,
    /// The dataset.
    pub dataset: String,
    /// Where its files are, if not where they are usually found.
    pub data_dir: Option<PathBuf>,
    /// The network.
    pub model: String,
    /// What training starts from: a state dict with torchvision's names; for detection and segmentation also a float model that classifies.
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
    /// Random changes to training images with a class each, if not those that are usual for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augment: Option<Changes>,
    /// Parameter of the beta distribution that parts of two such images in a mixture are drawn from (mixup); 0 is no mixtures.
    #[serde(default)]
    pub mixup: f64,
    /// The part of the probability that their classes share evenly.
    #[serde(default)]
    pub label_smoothing: f64,
    /// How much of the moving average of the network stays in each step; 0 is no average.
    #[serde(default)]
    pub ema: f64,
    /// So many epochs without a better validation end a phase of training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<usize>,
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
    /// Rows and columns that images in files are made into.
    #[serde(default = "default_image_size")]
    pub image_size: ImageSize,
    /// How pictures with objects become images of that size.
    #[serde(default)]
    pub fit: Fit,
    /// The language model that is trained from scratch.
    #[serde(default)]
    pub language: LanguageSettings,
    /// Use only so many training images, or so many characters of a text.
    pub limit_train: Option<usize>,
    /// Where to compute.
    pub device: Place,
    /// On which devices there, if not on the first alone: together, each on its part of every batch. Workers are places of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Devices>,
    /// The file with the token that workers ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
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

/// With the highest and the lowest precision, as many passes as joint training has at four precisions.
const fn default_draws() -> usize {
    2
}

const fn one() -> usize {
    1
}

/// Rows and columns of images if nothing else is asked for.
pub const IMAGE_SIZE: ImageSize = ImageSize::square(224);

const fn default_image_size() -> ImageSize {
    IMAGE_SIZE
}

impl TrainConfig {
    /// The settings for a dataset of images with a class each that has no reason for others.
    #[must_use]
    pub fn new(dataset: &str) -> Self {
        let optimizer = OptimizerKind::Sgd;
        let Rates { lr, joint_lr, scale_lr } = Rates::usual(optimizer, false);
        Self {
            task: CLASSIFY.to_owned(),
            dataset: dataset.to_owned(),
            data_dir: None,
            model: "resnet8".to_owned(),
            weights: None,
            precisions: PrecisionSet::default(),
            epochs: 10,
            float_epochs: 10,
            batch_size: 64,
            accumulate: one(),
            optimizer,
            lr,
            joint_lr,
            scale_lr,
            weight_decay: 5e-4,
            warmup_epochs: 1.0,
            anneal_float: anneal(),
            augment: None,
            mixup: 0.0,
            label_smoothing: 0.0,
            ema: 0.0,
            patience: None,
            clip_norm: 0.0,
            alrs: false,
            scale_gradient: ScaleGradient::default(),
            group_size: None,
            switch_edge: false,
            batch_norm: BatchNormKind::PerPrecision,
            batches: Batches::Separate,
            distill: Distill::Off,
            forward: ForwardKind::Float,
            mixed: false,
            draws: default_draws(),
            sampling: Sampling::default(),
            widths: Widths::default(),
            mixed_norm: MixedNorm::default(),
            image_size: default_image_size(),
            fit: Fit::default(),
            language: LanguageSettings::default(),
            limit_train: None,
            device: Place::Here(DeviceKind::Auto),
            devices: None,
            token_file: None,
            compute: ComputeKind::default(),
            seed: 1,
            baseline: Baseline::Off,
        }
    }
}

impl TrainConfig {
    /// The workers that it computes on, if it does not compute here.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerAddress> {
        match (&self.device, &self.devices) {
            (Place::Worker(worker), _) => vec![worker.clone()],
            (Place::Here(_), Some(Devices::Workers(workers))) => workers.clone(),
            (Place::Here(_), _) => vec![],
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

//! [`ConvNet`]: a convolutional network of residual blocks.

use super::architecture::{Architecture, ConvNetKind, Stem};
use super::block::Block;
use super::kind::{ModelKind, Sizes};
use crate::config::task::{CLASSIFY, DETECT, SEGMENT};
use crate::nn::{
    Executor, Model, Network, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig,
    QuantLinear, QuantLinearConfig, TraceError,
};
use burn::module::Module;
use burn::tensor::Device;
use dr_runtime::graph::Op;
use rand::SeedableRng;

/// Configuration of [`ConvNet`], [`Segmenter`](super::Segmenter) and [`Detector`](super::Detector).
#[derive(Clone, Copy, Debug)]
pub struct ConvNetConfig {
    /// Which network, or which one it stands on.
    pub kind: ConvNetKind,
    /// Channels that the first convolution makes; all others are in proportion.
    pub width: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes; of a segmentation with the background.
    pub classes: usize,
}

impl ConvNetConfig {
    /// The network of that name, of its usual width.
    #[must_use]
    pub const fn new(kind: ConvNetKind, channels: usize, classes: usize) -> Self {
        Self { kind, width: kind.usual_width, channels, classes }
    }

    pub(super) fn architecture(&self) -> Architecture {
        (self.kind.architecture)(self.width)
    }

    /// A float network; the same `seed` gives the same weights on every device.
    #[must_use]
    pub fn init(&self, seed: u64, device: &Device) -> ConvNet {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let norm = |channels| PrecisionNormConfig::new(channels).init(device);
        let architecture = self.architecture();
        let (stem, stem_norm, stages) = architecture.init(self.channels, rng, device);
        let tail = architecture.tail.map(|channels| {
            let input = architecture.stages.last().map_or(architecture.stem.channels, |stage| stage.channels);
            let config = QuantConv2dConfig::new([input, channels], 1);
            (config.init(rng, device), norm(channels))
        });
        let (tail, tail_norm) = tail.unzip();
        let features = [architecture.features(), self.classes];
        let head = QuantLinearConfig::new(features).init(rng, device);
        let (channels, kind) = (self.channels, architecture.stem);
        ConvNet { stem, stem_norm, stages, tail, tail_norm, head, channels, kind }
    }
}

impl ModelKind for ConvNetKind {
    fn name(&self) -> &'static str {
        self.name
    }

    fn tasks(&self) -> &'static [&'static str] {
        let tasks = &[CLASSIFY, SEGMENT, DETECT];
        if self.pyramid { tasks } else { &tasks[..1] }
    }

    fn usual_width(&self) -> usize {
        self.usual_width
    }

    fn init(&self, sizes: &Sizes, seed: u64, device: &Device) -> Result<Model, TraceError> {
        let Sizes { task, input, classes, width, .. } = *sizes;
        let config = ConvNetConfig { kind: *self, width, channels: input.channels, classes };
        match task {
            SEGMENT => Model::trace(&config.init_segmenter(seed, device)),
            DETECT => Model::trace(&config.init_detector(seed, device)),
            _ => Model::trace(&config.init(seed, device)),
        }
    }

    fn largest_weight(&self, sizes: &Sizes) -> usize {
        // Networks that say something about every part of an image have a head for features of another number.
        let classes = if sizes.task == CLASSIFY { sizes.classes } else { 1 };
        (self.architecture)(sizes.width).largest_weight(sizes.input.channels, classes)
    }

    fn state_dict_name(&self, name: &str) -> Option<String> {
        self.torchvision_name(name)
    }
}

/// A convolutional network of residual blocks, for images of any size: ResNets for small images (He et al.,
/// arXiv:1512.03385, section 4.2) and for those of ImageNet, and MobileNetV2 (Sandler et al., arXiv:1801.04381).
#[derive(Module, Debug)]
pub struct ConvNet {
    stem: QuantConv2d,
    stem_norm: PrecisionNorm,
    stages: Vec<Vec<Block>>,
    tail: Option<QuantConv2d>,
    tail_norm: Option<PrecisionNorm>,
    head: QuantLinear,
    /// Of an image.
    #[module(skip)]
    channels: usize,
    /// What follows the first convolution; its activation follows the last, too.
    #[module(skip)]
    kind: Stem,
}

impl Network for ConvNet {
    fn input(&self) -> Op {
        Op::Images { channels: self.channels }
    }

    /// `[batch, channels, height, width]` to logits `[batch, classes]`.
    fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> E::Value {
        let mut x = self.kind.forward(on, images, &self.stem, &self.stem_norm);
        for block in self.stages.iter().flatten() {
            x = block.forward(on, x);
        }
        if let Some(conv) = &self.tail {
            x = on.conv2d(x, conv, self.tail_norm.as_ref());
            x = on.activation(x, self.kind.activation);
        }
        let features = on.mean(x);
        on.linear(features, &self.head)
    }
}

//! [`ConvNet`]: a convolutional network of residual blocks.

use super::architecture::Architecture;
use super::block::Block;
use super::int_conv_net::IntConvNet;
use super::{NamedLayer, Network, activate};
use crate::config::ModelKind;
use crate::nn::{
    IntegerError, Layer, Pass, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig,
    QuantLinear, QuantLinearConfig, max_pool,
};
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Int, Tensor};
use dr_kernels::integer::Activation;
use dr_precision::Precision;
use rand::SeedableRng;
use std::sync::Arc;

/// Configuration of [`ConvNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvNetConfig {
    /// Which network.
    pub kind: ModelKind,
    /// Channels that the first convolution makes; all others are in proportion.
    pub width: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub classes: usize,
}

impl ConvNetConfig {
    /// The network of that name, of its usual width.
    #[must_use]
    pub const fn new(kind: ModelKind, channels: usize, classes: usize) -> Self {
        Self { kind, width: kind.usual_width(), channels, classes }
    }

    /// Elements of the network's largest weight.
    ///
    /// # Panics
    /// If it is no network for images.
    #[must_use]
    pub fn largest_weight(&self) -> usize {
        Architecture::new(self.kind, self.width).largest_weight(self.channels, self.classes)
    }

    /// A float network; the same `seed` gives the same weights on every device.
    ///
    /// # Panics
    /// If it is no network for images.
    #[must_use]
    pub fn init(&self, seed: u64, device: &Device) -> ConvNet {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let norm = |channels| PrecisionNormConfig::new(channels).init(device);
        let architecture = Architecture::new(self.kind, self.width);
        let stem = architecture.stem;
        let config = QuantConv2dConfig {
            stride: stem.stride,
            ..QuantConv2dConfig::new([self.channels, stem.channels], stem.kernel)
        };
        let (first, stem_norm) = (config.init(rng, device), norm(stem.channels));
        let mut input = stem.channels;
        let mut before = stem.activation;
        let mut stages = vec![];
        for stage in &architecture.stages {
            let mut blocks = vec![];
            for position in 0..stage.blocks {
                let stride = if position == 0 { stage.stride } else { 1 };
                let block = Block::new(stage, input, stride, before, stem.activation, rng, device);
                (input, before) = (stage.channels, block.after());
                blocks.push(block);
            }
            stages.push(blocks);
        }
        let tail = architecture.tail.map(|channels| {
            let config = QuantConv2dConfig::new([input, channels], 1);
            (config.init(rng, device), norm(channels))
        });
        let (tail, tail_norm) = tail.unzip();
        let features = [architecture.features(), self.classes];
        let head = QuantLinearConfig::new(features).init(rng, device);
        ConvNet {
            stem: first,
            stem_norm,
            stages,
            tail,
            tail_norm,
            head,
            max_pool: stem.max_pool,
            activation: stem.activation,
        }
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
    /// Whether there is a maximum after the first convolution.
    #[module(skip)]
    max_pool: bool,
    /// What follows the first and the last convolution.
    #[module(skip)]
    activation: Activation,
}

impl ConvNet {
    /// The quantized network in integer arithmetic at `precision`, on its device. It computes what the network does in
    /// evaluation mode, up to the rounding of f32, and can be switched to its other precisions.
    ///
    /// # Errors
    /// A float network, or a precision that it was not quantized for.
    pub fn to_integer(&self, precision: Precision) -> Result<IntConvNet, IntegerError> {
        let blocks = self.stages.iter().flatten().map(|block| block.to_integer(precision));
        let tail = self.tail().map(|(conv, norm)| conv.to_integer(norm, self.activation, precision));
        Ok(IntConvNet {
            stem: self.stem.to_integer(&self.stem_norm, self.activation, precision)?,
            max_pool: self.max_pool,
            blocks: blocks.collect::<Result<_, _>>()?,
            tail: tail.transpose()?,
            head: self.head.to_integer(precision)?,
            workspace: Arc::default(),
        })
    }

    fn tail(&self) -> Option<(&QuantConv2d, &PrecisionNorm)> {
        self.tail.as_ref().zip(self.tail_norm.as_ref())
    }
}

impl Network for ConvNet {
    type Input = Tensor<4>;
    type Target = Tensor<1, Int>;

    fn forward(&self, images: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let mut x = activate(self.stem.forward_norm(images, &self.stem_norm, pass), self.activation);
        if self.max_pool {
            x = max_pool(x);
        }
        for block in self.stages.iter().flatten() {
            x = block.forward(x, pass);
        }
        if let Some((conv, norm)) = self.tail() {
            x = activate(conv.forward_norm(x, norm, pass), self.activation);
        }
        let features = x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2);
        self.head.forward(features, pass)
    }

    fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let named =
            |name: &str, layer, pinned| NamedLayer { name: name.into(), layer, pinned, after_relu: true };
        let stem = named("stem", Layer::Conv2d(&mut self.stem), true);
        let mut layers = vec![NamedLayer { after_relu: false, ..stem }];
        let mut last = self.activation;
        for (s, stage) in self.stages.iter_mut().enumerate() {
            for (b, block) in stage.iter_mut().enumerate() {
                last = block.after();
                layers.extend(block.layers(&format!("stages.{s}.{b}")));
            }
        }
        layers.extend(self.tail.as_mut().map(|conv| NamedLayer {
            after_relu: last != Activation::None,
            ..named("tail", Layer::Conv2d(conv), false)
        }));
        layers.push(named("head", Layer::Linear(&mut self.head), true));
        layers
    }

    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        let mut norms = vec![(self.stem.weight_id(), &mut self.stem_norm)];
        norms.extend(self.stages.iter_mut().flatten().flat_map(Block::norms_after));
        norms.extend(self.tail.as_ref().map(QuantConv2d::weight_id).zip(self.tail_norm.as_mut()));
        norms
    }
}

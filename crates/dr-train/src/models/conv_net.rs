//! Residual networks in the style of those for CIFAR-10 (He et al., arXiv:1512.03385, section 4.2).

use super::int_resnet::{IntBlock, IntResNet};
use super::{NamedLayer, Network};
use crate::config::ModelKind;
use crate::nn::{
    IntegerError, Layer, Pass, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig,
    QuantLinear, QuantLinearConfig,
};
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Tensor, activation::relu};
use dr_precision::Precision;
use rand::{Rng, SeedableRng};

/// Configuration of [`ResNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResNetConfig {
    /// Residual blocks in each of the three stages: 1, 3 and 5 make ResNet-8, 20 and 32.
    pub blocks: usize,
    /// Channels of the first stage; each later one has twice as many at half the resolution.
    pub width: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Classes.
    pub classes: usize,
}

impl ResNetConfig {
    /// The network of that name, 16 channels wide.
    #[must_use]
    pub const fn new(kind: ModelKind, channels: usize, classes: usize) -> Self {
        let blocks = match kind {
            ModelKind::Resnet8 => 1,
            ModelKind::Resnet20 => 3,
            ModelKind::Resnet32 => 5,
        };
        Self { blocks, width: 16, channels, classes }
    }

    /// A float network; the same `seed` gives the same weights on every device.
    #[must_use]
    pub fn init(&self, seed: u64, device: &Device) -> ResNet {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let stem = QuantConv2dConfig { channels: [self.channels, self.width], kernel: 3, stride: 1 };
        let stem = stem.init(rng, device);
        let stem_norm = PrecisionNormConfig::new(self.width).init(device);
        let mut channels = self.width;
        let mut stages = vec![];
        for stage in 0..3 {
            let mut blocks = vec![];
            for block in 0..self.blocks {
                let (out, stride) = (self.width << stage, if stage > 0 && block == 0 { 2 } else { 1 });
                blocks.push(Block::new([channels, out], stride, rng, device));
                channels = out;
            }
            stages.push(blocks);
        }
        let head = QuantLinearConfig { features: [channels, self.classes] }.init(rng, device);
        ResNet { stem, stem_norm, stages, head }
    }
}

/// Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes.
#[derive(Module, Debug)]
struct Block {
    conv1: QuantConv2d,
    norm1: PrecisionNorm,
    conv2: QuantConv2d,
    norm2: PrecisionNorm,
    shortcut: Option<QuantConv2d>,
    shortcut_norm: Option<PrecisionNorm>,
}

impl Block {
    fn new([from, to]: [usize; 2], stride: usize, rng: &mut impl Rng, device: &Device) -> Self {
        let norm = || PrecisionNormConfig::new(to).init(device);
        let changes = from != to || stride != 1;
        Self {
            conv1: QuantConv2dConfig { channels: [from, to], kernel: 3, stride }.init(rng, device),
            norm1: norm(),
            conv2: QuantConv2dConfig { channels: [to, to], kernel: 3, stride: 1 }.init(rng, device),
            norm2: norm(),
            shortcut: changes
                .then(|| QuantConv2dConfig { channels: [from, to], kernel: 1, stride }.init(rng, device)),
            shortcut_norm: changes.then(norm),
        }
    }

    fn forward(&self, x: Tensor<4>, pass: &Pass) -> Tensor<4> {
        let y = relu(self.conv1.forward_norm(x.clone(), &self.norm1, pass));
        let y = self.conv2.forward_norm(y, &self.norm2, pass);
        let x = match (&self.shortcut, &self.shortcut_norm) {
            (Some(conv), Some(norm)) => conv.forward_norm(x, norm, pass),
            _ => x,
        };
        relu(x + y)
    }

    fn to_integer(&self, precision: Precision) -> Result<IntBlock, IntegerError> {
        let shortcut = match (&self.shortcut, &self.shortcut_norm) {
            (Some(conv), Some(norm)) => Some(conv.to_integer(norm, false, precision)?),
            _ => None,
        };
        Ok(IntBlock {
            conv1: self.conv1.to_integer(&self.norm1, true, precision)?,
            conv2: self.conv2.to_integer(&self.norm2, true, precision)?,
            shortcut,
        })
    }
}

/// A residual network for small images of any size.
#[derive(Module, Debug)]
pub struct ResNet {
    stem: QuantConv2d,
    stem_norm: PrecisionNorm,
    stages: Vec<Vec<Block>>,
    head: QuantLinear,
}

impl ResNet {
    /// The quantized network in integer arithmetic at `precision`, on its device. It computes what the network does in
    /// evaluation mode, up to the rounding of f32, and can be switched to its other precisions.
    ///
    /// # Errors
    /// A float network, or a precision that it was not quantized for.
    pub fn to_integer(&self, precision: Precision) -> Result<IntResNet, IntegerError> {
        let blocks = self.stages.iter().flatten().map(|block| block.to_integer(precision));
        Ok(IntResNet {
            stem: self.stem.to_integer(&self.stem_norm, true, precision)?,
            blocks: blocks.collect::<Result<_, _>>()?,
            head: self.head.to_integer(precision)?,
        })
    }
}

impl Network for ResNet {
    fn forward(&self, images: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let mut x = relu(self.stem.forward_norm(images, &self.stem_norm, pass));
        for block in self.stages.iter().flatten() {
            x = block.forward(x, pass);
        }
        let features = x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2);
        self.head.forward(features, pass)
    }

    fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let conv = |name: String, conv| NamedLayer {
            name,
            layer: Layer::Conv2d(conv),
            pinned: false,
            after_relu: true,
        };
        let stem = conv("stem".into(), &mut self.stem);
        let mut layers = vec![NamedLayer { pinned: true, after_relu: false, ..stem }];
        for (s, stage) in self.stages.iter_mut().enumerate() {
            for (b, block) in stage.iter_mut().enumerate() {
                layers.push(conv(format!("stages.{s}.{b}.conv1"), &mut block.conv1));
                layers.push(conv(format!("stages.{s}.{b}.conv2"), &mut block.conv2));
                layers.extend(block.shortcut.as_mut().map(|c| conv(format!("stages.{s}.{b}.shortcut"), c)));
            }
        }
        let layer = Layer::Linear(&mut self.head);
        layers.push(NamedLayer { name: "head".into(), layer, pinned: true, after_relu: true });
        layers
    }

    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        let mut norms = vec![(self.stem.weight_id(), &mut self.stem_norm)];
        for block in self.stages.iter_mut().flatten() {
            norms.push((block.conv1.weight_id(), &mut block.norm1));
            norms.push((block.conv2.weight_id(), &mut block.norm2));
            if let (Some(conv), Some(norm)) = (&block.shortcut, &mut block.shortcut_norm) {
                norms.push((conv.weight_id(), norm));
            }
        }
        norms
    }
}

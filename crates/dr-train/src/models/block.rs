//! [`Block`]: two or three convolutions and what goes around them.

use super::architecture::{Architecture, BlockKind, Stage, Stem};
use crate::nn::{Executor, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig};
use burn::module::Module;
use burn::tensor::Device;
use dr_runtime::graph::Activation;
use rand::Rng;

/// A residual block. Its parts have the names that they have in the usual descriptions of each kind.
#[derive(Module, Debug)]
pub(super) struct Block {
    conv1: QuantConv2d,
    norm1: PrecisionNorm,
    conv2: QuantConv2d,
    norm2: PrecisionNorm,
    conv3: Option<QuantConv2d>,
    norm3: Option<PrecisionNorm>,
    shortcut: Option<QuantConv2d>,
    shortcut_norm: Option<PrecisionNorm>,
    /// Whether the input, or its shortcut, is added to what the convolutions make.
    #[module(skip)]
    adds: bool,
    /// What follows the convolutions but the last.
    #[module(skip)]
    inside: Activation,
    /// What follows the block.
    #[module(skip)]
    after: Option<Activation>,
}

impl Architecture {
    /// The first convolution, for images of so many channels, with its BatchNorm, and the blocks of all stages.
    pub(super) fn init(
        &self, channels: usize, rng: &mut impl Rng, device: &Device,
    ) -> (QuantConv2d, PrecisionNorm, Vec<Vec<Block>>) {
        let stem = self.stem;
        let config = QuantConv2dConfig::new([channels, stem.channels], stem.kernel).with_stride(stem.stride);
        let (first, norm) = (config.init(rng, device), PrecisionNormConfig::new(stem.channels).init(device));
        let mut input = stem.channels;
        let mut stages = vec![];
        for stage in &self.stages {
            let mut blocks = vec![];
            for position in 0..stage.blocks {
                let stride = if position == 0 { stage.stride } else { 1 };
                blocks.push(Block::new(stage, input, stride, stem.activation, rng, device));
                input = stage.channels;
            }
            stages.push(blocks);
        }
        (first, norm, stages)
    }
}

impl Stem {
    /// What the first convolution makes of images, up to the blocks.
    pub(super) fn forward<E: Executor>(
        &self, on: &mut E, images: E::Value, conv: &QuantConv2d, norm: &PrecisionNorm,
    ) -> E::Value {
        let x = on.conv2d(images, conv, Some(norm));
        let x = on.activation(x, self.activation);
        if self.max_pool { on.max_pool(x, 3, 2, 1) } else { x }
    }
}

impl Block {
    /// The block of a stage after `input` channels.
    pub(super) fn new(
        stage: &Stage, input: usize, stride: usize, inside: Activation, rng: &mut impl Rng, device: &Device,
    ) -> Self {
        let (inner, output) = (stage.inner(input), stage.channels);
        let norm = |channels| PrecisionNormConfig::new(channels).init(device);
        let config = |channels, kernel, stride| QuantConv2dConfig::new(channels, kernel).with_stride(stride);
        let mut convs = match stage.kind {
            BlockKind::Basic => vec![config([input, output], 3, stride), config([output, output], 3, 1)],
            BlockKind::Bottleneck => {
                vec![
                    config([input, inner], 1, 1),
                    config([inner, inner], 3, stride),
                    config([inner, output], 1, 1),
                ]
            }
            BlockKind::Inverted { expansion } => {
                let each = config([inner, inner], 3, stride).with_groups(inner);
                let expand = (expansion != 1).then(|| config([input, inner], 1, 1));
                expand.into_iter().chain([each, config([inner, output], 1, 1)]).collect()
            }
        }
        .into_iter()
        .map(|config| (config.init(rng, device), norm(config.channels[1])));
        let mut next = || convs.next();
        let changes = input != output || stride != 1;
        let inverted = matches!(stage.kind, BlockKind::Inverted { .. });
        let [(conv1, norm1), (conv2, norm2)] =
            [next(), next()].map(|step| step.expect("every kind has two convolutions"));
        let (conv3, norm3) = next().unzip();
        let projects = changes && !inverted;
        Self {
            conv1,
            norm1,
            conv2,
            norm2,
            conv3,
            norm3,
            shortcut: projects.then(|| config([input, output], 1, stride).init(rng, device)),
            shortcut_norm: projects.then(|| norm(output)),
            adds: !(changes && inverted),
            inside,
            after: (!inverted).then_some(Activation::Relu),
        }
    }

    pub(super) fn forward<E: Executor>(&self, on: &mut E, x: E::Value) -> E::Value {
        let y = on.conv2d(x.clone(), &self.conv1, Some(&self.norm1));
        let y = on.activation(y, self.inside);
        let mut y = on.conv2d(y, &self.conv2, Some(&self.norm2));
        if let Some(conv) = &self.conv3 {
            y = on.activation(y, self.inside);
            y = on.conv2d(y, conv, self.norm3.as_ref());
        }
        if self.adds {
            let x = match &self.shortcut {
                Some(conv) => on.conv2d(x, conv, self.shortcut_norm.as_ref()),
                None => x,
            };
            y = on.add(x, y);
        }
        match self.after {
            Some(activation) => on.activation(y, activation),
            None => y,
        }
    }
}

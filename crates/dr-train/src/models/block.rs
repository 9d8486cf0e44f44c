//! [`Block`]: two or three convolutions and what goes around them.

use super::architecture::{BlockKind, Stage};
use super::int_conv_net::IntBlock;
use super::{NamedLayer, activate};
use crate::nn::{
    IntegerError, Layer, Pass, PrecisionNorm, PrecisionNormConfig, QuantConv2d, QuantConv2dConfig,
};
use burn::module::{Module, ParamId};
use burn::tensor::{Device, Tensor};
use dr_kernels::integer::Activation;
use dr_precision::Precision;
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
    /// What the input comes out of.
    #[module(skip)]
    before: Activation,
    /// What follows the convolutions but the last.
    #[module(skip)]
    inside: Activation,
    /// What follows the block.
    #[module(skip)]
    after: Activation,
}

/// One of a block's convolutions, and the BatchNorm after it.
type Step<'a> = (&'a QuantConv2d, &'a PrecisionNorm);

impl Block {
    /// The block of a stage after `input` channels that come out of `before`.
    pub(super) fn new(
        stage: &Stage, input: usize, stride: usize, before: Activation, inside: Activation,
        rng: &mut impl Rng, device: &Device,
    ) -> Self {
        let (inner, output) = (stage.inner(input), stage.channels);
        let norm = |channels| PrecisionNormConfig::new(channels).init(device);
        let config = |channels, kernel, stride| QuantConv2dConfig {
            stride,
            ..QuantConv2dConfig::new(channels, kernel)
        };
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
                let each = QuantConv2dConfig { groups: inner, ..config([inner, inner], 3, stride) };
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
            before,
            inside,
            after: if inverted { Activation::None } else { Activation::Relu },
        }
    }

    /// What the block's result comes out of.
    pub(super) const fn after(&self) -> Activation {
        self.after
    }

    fn shortcut(&self) -> Option<Step<'_>> {
        self.shortcut.as_ref().zip(self.shortcut_norm.as_ref())
    }

    fn third(&self) -> Option<Step<'_>> {
        self.conv3.as_ref().zip(self.norm3.as_ref())
    }

    pub(super) fn forward(&self, x: Tensor<4>, pass: &Pass) -> Tensor<4> {
        let y = self.conv1.forward_norm(x.clone(), &self.norm1, pass);
        let y = self.conv2.forward_norm(activate(y, self.inside), &self.norm2, pass);
        let y = match self.third() {
            Some((conv, norm)) => conv.forward_norm(activate(y, self.inside), norm, pass),
            None => y,
        };
        let x = self.adds.then(|| match self.shortcut() {
            Some((conv, norm)) => conv.forward_norm(x, norm, pass),
            None => x,
        });
        activate(x.map_or(y.clone(), |x| x + y), self.after)
    }

    pub(super) fn to_integer(&self, precision: Precision) -> Result<IntBlock, IntegerError> {
        let convert = |(conv, norm): Step<'_>, activation| conv.to_integer(norm, activation, precision);
        let (first, second, third) = ((&self.conv1, &self.norm1), (&self.conv2, &self.norm2), self.third());
        let (middle, last) = match third {
            Some(third) => (vec![convert(second, self.inside)?], convert(third, self.after)?),
            None => (vec![], convert(second, self.after)?),
        };
        let shortcut = self.shortcut().map(|step| convert(step, Activation::None)).transpose()?;
        Ok(IntBlock { first: convert(first, self.inside)?, middle, last, shortcut, adds: self.adds })
    }

    /// The layers, with names that start with `name`.
    pub(super) fn layers(&mut self, name: &str) -> Vec<NamedLayer<'_>> {
        let layer = |part: &str, conv, before| NamedLayer {
            name: format!("{name}.{part}"),
            layer: Layer::Conv2d(conv),
            pinned: false,
            after_relu: before != Activation::None,
        };
        let mut layers =
            vec![layer("conv1", &mut self.conv1, self.before), layer("conv2", &mut self.conv2, self.inside)];
        layers.extend(self.conv3.as_mut().map(|conv| layer("conv3", conv, self.inside)));
        layers.extend(self.shortcut.as_mut().map(|conv| layer("shortcut", conv, self.before)));
        layers
    }

    /// The BatchNorms, each with the layer before it.
    pub(super) fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        let mut norms =
            vec![(self.conv1.weight_id(), &mut self.norm1), (self.conv2.weight_id(), &mut self.norm2)];
        let third = self.conv3.as_ref().zip(self.norm3.as_mut());
        let shortcut = self.shortcut.as_ref().zip(self.shortcut_norm.as_mut());
        norms.extend(third.into_iter().chain(shortcut).map(|(conv, norm)| (conv.weight_id(), norm)));
        norms
    }
}

//! [`Architecture`]: what the networks of each name are made of, in one table.

use dr_runtime::graph::Activation;

/// What a network is made of, from images to features; a linear layer follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Architecture {
    pub stem: Stem,
    /// Groups of blocks of the same channels.
    pub stages: Vec<Stage>,
    /// Channels of a 1x1 convolution after the last stage, if there is one.
    pub tail: Option<usize>,
}

/// The first convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stem {
    /// Channels that it makes.
    pub channels: usize,
    /// Side of its kernel.
    pub kernel: usize,
    /// Its stride.
    pub stride: usize,
    /// Whether the maximum of 3x3 pixels at every second position follows.
    pub max_pool: bool,
    /// What follows its BatchNorm, and all others inside of blocks.
    pub activation: Activation,
}

/// Blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stage {
    pub kind: BlockKind,
    /// Channels that each makes.
    pub channels: usize,
    /// How many there are.
    pub blocks: usize,
    /// The stride of the first.
    pub stride: usize,
}

/// Which convolutions a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Two 3x3 (arXiv:1512.03385, figure 5 left).
    Basic,
    /// 1x1 to a quarter of the channels, 3x3, and 1x1 back (figure 5 right).
    Bottleneck,
    /// 1x1 to so many times the channels of the input (left out if that is once), 3x3 of each channel for itself, and 1x1
    /// (arXiv:1801.04381, figure 4d). Nothing follows it.
    Inverted { expansion: usize },
}

/// Channels of the first convolution in networks for small images.
const SMALL_WIDTH: usize = 16;

/// The first stage of residual networks for ImageNet-sized images is this many channels wide.
const IMAGENET_WIDTH: usize = 64;

/// The first convolution of MobileNetV2 makes this many channels.
const MOBILE_WIDTH: usize = 32;

/// The name and the parts of a [`ConvNet`](super::ConvNet).
#[derive(Clone, Copy, Debug)]
pub struct ConvNetKind {
    /// The name in flags, files and messages.
    pub name: &'static str,
    pub(super) usual_width: usize,
    /// Whether networks that say something about every part of an image can stand on it.
    pub(super) pyramid: bool,
    /// With so many channels after the first convolution; all others are in proportion.
    pub(super) architecture: fn(usize) -> Architecture,
}

impl ConvNetKind {
    const fn residual(
        name: &'static str, usual_width: usize, architecture: fn(usize) -> Architecture,
    ) -> Self {
        Self { name, usual_width, pyramid: true, architecture }
    }
}

/// Three stages of one block.
pub const RESNET8: ConvNetKind =
    ConvNetKind::residual("resnet8", SMALL_WIDTH, |width| Architecture::small(width, 1));
/// Three stages of three blocks.
pub const RESNET20: ConvNetKind =
    ConvNetKind::residual("resnet20", SMALL_WIDTH, |width| Architecture::small(width, 3));
/// Three stages of five blocks.
pub const RESNET32: ConvNetKind =
    ConvNetKind::residual("resnet32", SMALL_WIDTH, |width| Architecture::small(width, 5));
/// Four stages of two blocks, as torchvision has it.
pub const RESNET18: ConvNetKind = ConvNetKind::residual("resnet18", IMAGENET_WIDTH, |width| {
    Architecture::residual(width, BlockKind::Basic, [2, 2, 2, 2])
});
/// Four stages of three, four, six and three blocks, as torchvision has it.
pub const RESNET34: ConvNetKind = ConvNetKind::residual("resnet34", IMAGENET_WIDTH, |width| {
    Architecture::residual(width, BlockKind::Basic, [3, 4, 6, 3])
});
/// The same of bottleneck blocks, as torchvision has it.
pub const RESNET50: ConvNetKind = ConvNetKind::residual("resnet50", IMAGENET_WIDTH, |width| {
    Architecture::residual(width, BlockKind::Bottleneck, [3, 4, 6, 3])
});
/// Inverted residual blocks, as torchvision has it.
pub const MOBILENET_V2: ConvNetKind = ConvNetKind {
    name: "mobilenet_v2",
    usual_width: MOBILE_WIDTH,
    pyramid: false,
    architecture: Architecture::mobilenet_v2,
};

impl Architecture {
    /// Twice the channels at half the resolution from stage to stage.
    fn residual<const N: usize>(width: usize, kind: BlockKind, blocks: [usize; N]) -> Self {
        let expansion = if kind == BlockKind::Bottleneck { BOTTLENECK } else { 1 };
        let stage = |(stage, blocks): (usize, usize)| Stage {
            kind,
            channels: (width << stage) * expansion,
            blocks,
            stride: if stage == 0 { 1 } else { 2 },
        };
        let stem =
            Stem { channels: width, kernel: 7, stride: 2, max_pool: true, activation: Activation::Relu };
        Self { stem, stages: blocks.into_iter().enumerate().map(stage).collect(), tail: None }
    }

    /// For images of some 32 pixels (arXiv:1512.03385, section 4.2).
    fn small(width: usize, blocks: usize) -> Self {
        let Self { stem, stages, tail } = Self::residual(width, BlockKind::Basic, [blocks; 3]);
        Self { stem: Stem { kernel: 3, stride: 1, max_pool: false, ..stem }, stages, tail }
    }

    /// arXiv:1801.04381, table 2.
    fn mobilenet_v2(width: usize) -> Self {
        // Multiples of 8, and not below nine tenths of what they should be.
        let scaled = |channels: usize| {
            let exact = channels * width;
            let rounded = ((exact + 4 * MOBILE_WIDTH) / (8 * MOBILE_WIDTH)).max(1) * 8;
            if 10 * rounded * MOBILE_WIDTH < 9 * exact { rounded + 8 } else { rounded }
        };
        let stage = |(expansion, channels, blocks, stride)| Stage {
            kind: BlockKind::Inverted { expansion },
            channels: scaled(channels),
            blocks,
            stride,
        };
        let stages = [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ];
        Self {
            stem: Stem {
                channels: width,
                kernel: 3,
                stride: 2,
                max_pool: false,
                activation: Activation::Relu6,
            },
            stages: stages.map(stage).to_vec(),
            // Narrower networks keep their last features.
            tail: Some(scaled(1280).max(1280)),
        }
    }

    /// Channels of the features.
    pub(super) fn features(&self) -> usize {
        let last = self.stages.last().map_or(self.stem.channels, |stage| stage.channels);
        self.tail.unwrap_or(last)
    }

    /// Elements of the largest weight, for images of so many channels and so many classes.
    pub(super) fn largest_weight(&self, channels: usize, classes: usize) -> usize {
        let stem = channels * self.stem.channels * self.stem.kernel * self.stem.kernel;
        let mut input = self.stem.channels;
        let mut sizes = vec![stem, self.features() * classes];
        for stage in &self.stages {
            for _ in 0..stage.blocks {
                let inner = stage.inner(input);
                sizes.push(match stage.kind {
                    BlockKind::Inverted { .. } => inner * input.max(stage.channels),
                    _ => (inner * inner * 9).max(inner * stage.channels),
                });
                input = stage.channels;
            }
        }
        sizes.push(self.tail.unwrap_or(0) * input);
        sizes.into_iter().max().unwrap_or(0)
    }
}

/// By how much the blocks' inner channels are fewer.
const BOTTLENECK: usize = 4;

impl Stage {
    /// Channels of the 3x3 convolution of a block with so many input channels.
    pub(super) const fn inner(&self, input: usize) -> usize {
        match self.kind {
            BlockKind::Basic => self.channels,
            BlockKind::Bottleneck => self.channels / BOTTLENECK,
            BlockKind::Inverted { expansion } => input * expansion,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As torchvision's `_make_divisible` gives them at a width of 0.75 and of 0.35.
    #[test]
    fn narrow_mobile_networks() {
        let channels = |width| {
            let architecture = Architecture::mobilenet_v2(width);
            architecture.stages.iter().map(|stage| stage.channels).collect::<Vec<_>>()
        };
        assert_eq!(channels(32), [16, 24, 32, 64, 96, 160, 320]);
        assert_eq!(channels(24), [16, 24, 24, 48, 72, 120, 240]);
        assert_eq!(channels(8), [8, 8, 8, 16, 24, 40, 80]);
        assert_eq!(Architecture::mobilenet_v2(24).features(), 1280);
    }

    #[test]
    fn the_largest_weight() {
        let largest = |kind: ConvNetKind| (kind.architecture)(kind.usual_width).largest_weight(3, 1000);
        assert_eq!(largest(RESNET8), 64 * 1000);
        assert_eq!(largest(RESNET18), 512 * 512 * 9);
        assert_eq!(largest(RESNET50), 512 * 512 * 9);
        assert_eq!(largest(MOBILENET_V2), 1280 * 1000);
    }
}

//! [`Detector`]: boxes around objects.

use super::features;
use super::pyramid::Pyramid;
use crate::models::ConvNetConfig;
use crate::nn::{Executor, Network, QuantConv2d, QuantConv2dConfig};
use burn::module::Module;
use burn::tensor::Device;
use dr_runtime::graph::Op;
use rand::SeedableRng;

/// The first stage whose features are used: those of full resolution have nothing to say about whole objects.
const FIRST: usize = 1;

/// What is predicted for each position besides classes: distances to the box's left, top, right and bottom, and centerness.
pub const BOX_OUTPUTS: usize = 5;

/// Logits of classes at first: an object is found at one in a hundred positions (focal loss, arXiv:1708.02002).
const RARE: f32 = -4.6;

impl ConvNetConfig {
    /// A float network that finds boxes; the same `seed` gives the same weights on every device.
    #[must_use]
    pub fn init_detector(&self, seed: u64, device: &Device) -> Detector {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let features = features(self.width);
        let pyramid = Pyramid::new(self, features, FIRST, rng, device);
        let biased = |outputs| QuantConv2dConfig::new([features, outputs], 3).with_bias(true);
        Detector {
            pyramid,
            class_tower: biased(features).init(rng, device),
            box_tower: biased(features).init(rng, device),
            classes: biased(self.classes).init(rng, device).with_bias(RARE),
            boxes: biased(BOX_OUTPUTS).init(rng, device),
            channels: self.channels,
        }
    }
}

/// An anchor-free one-stage detector (FCOS, arXiv:1904.01355): each position of each level predicts classes, the distances to the sides of
/// the box that it is in, and how near it is to the box's middle. The levels share the convolutions that do so.
#[derive(Module, Debug)]
pub struct Detector {
    pyramid: Pyramid,
    class_tower: QuantConv2d,
    box_tower: QuantConv2d,
    classes: QuantConv2d,
    boxes: QuantConv2d,
    #[module(skip)]
    channels: usize,
}

impl Network for Detector {
    fn input(&self) -> Op {
        Op::Images { channels: self.channels }
    }

    /// `[batch, channels, height, width]` to `[batch * positions, classes + 5]`: logits of the classes, what distances are the exponentials
    /// of (in strides of the level), and the logit of centerness.
    fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> E::Value {
        let mut levels = vec![];
        for x in self.pyramid.forward(on, images) {
            let x = on.relu(x);
            let mut branch = |tower, last| {
                let y = on.conv2d(x.clone(), tower, None);
                let y = on.relu(y);
                on.conv2d(y, last, None)
            };
            let outputs =
                vec![branch(&self.class_tower, &self.classes), branch(&self.box_tower, &self.boxes)];
            levels.push(on.concat(outputs));
        }
        on.rows(levels)
    }
}

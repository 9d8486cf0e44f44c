//! [`Segmenter`]: a class for every pixel.

use super::features;
use super::pyramid::Pyramid;
use crate::models::ConvNetConfig;
use crate::nn::{Executor, Network, QuantConv2d, QuantConv2dConfig};
use burn::module::Module;
use burn::tensor::Device;
use dr_runtime::graph::Op;
use rand::SeedableRng;

impl ConvNetConfig {
    /// A float network that gives every pixel a class; the same `seed` gives the same weights on every device.
    #[must_use]
    pub fn init_segmenter(&self, seed: u64, device: &Device) -> Segmenter {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let features = features(self.width);
        let pyramid = Pyramid::new(self, features, 0, rng, device);
        let biased = |channels, kernel| QuantConv2dConfig::new(channels, kernel).with_bias(true);
        Segmenter {
            pyramid,
            mix: biased([features, features], 3).init(rng, device),
            head: biased([features, self.classes], 1).init(rng, device),
            channels: self.channels,
        }
    }
}

/// A semantic segmentation network: the levels of a pyramid are added at the resolution of the finest, and a convolution gives
/// each of its pixels a class (the semantic branch of arXiv:1901.02446, with one step of upsampling).
#[derive(Module, Debug)]
pub struct Segmenter {
    pyramid: Pyramid,
    mix: QuantConv2d,
    head: QuantConv2d,
    #[module(skip)]
    channels: usize,
}

impl Network for Segmenter {
    fn input(&self) -> Op {
        Op::Images { channels: self.channels }
    }

    /// `[batch, channels, height, width]` to logits `[batch * height * width, classes]`.
    fn forward<E: Executor>(&self, on: &mut E, images: E::Value) -> E::Value {
        let mut levels = self.pyramid.forward(on, images.clone()).into_iter();
        let mut x = levels.next().expect("a pyramid has levels");
        let finest = x.clone();
        for level in levels {
            let level = on.enlarge(level, finest.clone());
            x = on.add(x, level);
        }
        x = on.conv2d(x, &self.mix, None);
        x = on.relu(x);
        let logits = on.conv2d(x, &self.head, None);
        let logits = on.enlarge(logits, images);
        on.rows(vec![logits])
    }
}

//! [`Segmenter`]: a class for every pixel.

use super::pyramid::{IntPyramid, Pyramid, enlarge};
use super::{DenseConfig, features};
use crate::models::{NamedLayer, Network};
use crate::nn::{IntConv2d, IntegerError, Layer, Pass, PrecisionNorm, QuantConv2d, QuantConv2dConfig};
use burn::module::{Module, ParamId};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Int, Tensor};
use dr_kernels::integer::Activation;
use dr_precision::Precision;
use rand::SeedableRng;

impl DenseConfig {
    /// A float network that gives every pixel a class; the same `seed` gives the same weights on every device.
    ///
    /// # Panics
    /// If the network is no residual network for images.
    #[must_use]
    pub fn init_segmenter(&self, seed: u64, device: &Device) -> Segmenter {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let features = features(self.width);
        let pyramid = Pyramid::new(self.kind, self.width, self.channels, features, 0, rng, device);
        let biased =
            |channels, kernel| QuantConv2dConfig { bias: true, ..QuantConv2dConfig::new(channels, kernel) };
        Segmenter {
            pyramid,
            mix: biased([features, features], 3).init(rng, device),
            head: biased([features, self.classes], 1).init(rng, device),
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
}

impl Segmenter {
    /// The quantized network in integer arithmetic at `precision`, on its device.
    ///
    /// # Errors
    /// A float network, or a precision that it was not quantized for.
    pub fn to_integer(&self, precision: Precision) -> Result<IntSegmenter, IntegerError> {
        Ok(IntSegmenter {
            pyramid: self.pyramid.to_integer(precision)?,
            mix: self.mix.to_integer_alone(Activation::Relu, precision)?,
            head: self.head.to_integer_alone(Activation::None, precision)?,
        })
    }
}

/// The sum of all levels at the resolution of the first. The rows are axis `first`.
fn merged(levels: Vec<Tensor<4>>, first: usize) -> Option<Tensor<4>> {
    let mut levels = levels.into_iter();
    let finest = levels.next()?;
    let size = [finest.dims()[first], finest.dims()[first + 1]];
    Some(levels.fold(finest, |sum, level| sum + enlarge(level, size, first)))
}

impl Network for Segmenter {
    type Input = Tensor<4>;
    type Target = Tensor<1, Int>;

    /// `[batch, channels, height, width]` to logits `[batch * height * width, classes]`.
    fn forward(&self, images: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let [batch, _, height, width] = images.dims();
        let levels = self.pyramid.forward(images, pass);
        let x = merged(levels, 2).expect("a pyramid has levels");
        let logits = self.head.forward(relu(self.mix.forward(x, pass)), pass);
        let classes = logits.dims()[1];
        let logits = enlarge(logits, [height, width], 2);
        logits.permute([0, 2, 3, 1]).reshape([batch * height * width, classes])
    }

    fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let mut layers = self.pyramid.layers();
        let named = |name: &str, conv, pinned, after_relu| NamedLayer {
            name: name.into(),
            layer: Layer::Conv2d(conv),
            pinned,
            after_relu,
        };
        layers.push(named("mix", &mut self.mix, false, false));
        layers.push(named("head", &mut self.head, true, true));
        layers
    }

    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        self.pyramid.norms_after()
    }
}

/// A [`Segmenter`] in integer arithmetic, switched between precisions in place.
#[derive(Clone, Debug)]
pub struct IntSegmenter {
    pyramid: IntPyramid,
    mix: IntConv2d,
    head: IntConv2d,
}

impl IntSegmenter {
    /// `[batch, channels, height, width]` to logits `[batch * height * width, classes]`.
    ///
    /// # Errors
    /// Images of another number of channels or on another device.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, IntegerError> {
        let [batch, _, height, width] = images.dims();
        let x = merged(self.pyramid.forward(images)?, 1).expect("a pyramid has levels");
        let codes = self.mix.forward_to(&self.mix.quantize(x, true)?, &self.head)?;
        let logits = self.head.forward(&codes, None)?;
        let classes = logits.dims()[3];
        Ok(enlarge(logits, [height, width], 1).reshape([batch * height * width, classes]))
    }

    /// Switches all layers to another precision; the first and the last keep their bits.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        let Self { pyramid, mix, head } = self;
        pyramid.layers().chain([&*mix, &*head]).try_for_each(|layer| layer.check(precision))?;
        pyramid.layers_mut().chain([mix, head]).try_for_each(|layer| layer.switch(precision))
    }
}

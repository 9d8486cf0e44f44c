//! [`Detector`]: boxes around objects.

use super::pyramid::{IntPyramid, Pyramid};
use super::{DenseConfig, features};
use crate::detection::{BoxTargets, Positions};
use crate::models::{NamedLayer, Network};
use crate::nn::{IntConv2d, IntegerError, Layer, Pass, PrecisionNorm, QuantConv2d, QuantConv2dConfig};
use burn::module::{Module, ParamId};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use dr_kernels::integer::Activation;
use dr_precision::Precision;
use rand::SeedableRng;

/// The first stage whose features are used: those of full resolution have nothing to say about whole objects.
const FIRST: usize = 1;

/// What is predicted for each position besides classes: distances to the box's left, top, right and bottom, and centerness.
pub const BOX_OUTPUTS: usize = 5;

/// Logits of classes at first: an object is found at one in a hundred positions (focal loss, arXiv:1708.02002).
const RARE: f32 = -4.6;

impl DenseConfig {
    /// A float network that finds boxes; the same `seed` gives the same weights on every device.
    ///
    /// # Panics
    /// If the network is no residual network for images.
    #[must_use]
    pub fn init_detector(&self, seed: u64, device: &Device) -> Detector {
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let features = features(self.width);
        let pyramid = Pyramid::new(self.kind, self.width, self.channels, features, FIRST, rng, device);
        let biased = |outputs, kernel| QuantConv2dConfig {
            bias: true,
            ..QuantConv2dConfig::new([features, outputs], kernel)
        };
        Detector {
            pyramid,
            class_tower: biased(features, 3).init(rng, device),
            box_tower: biased(features, 3).init(rng, device),
            classes: biased(self.classes, 3).init(rng, device).with_bias(RARE),
            boxes: biased(BOX_OUTPUTS, 3).init(rng, device),
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
}

impl Detector {
    /// Where it looks in images of a size.
    #[must_use]
    pub fn positions(&self, image: [usize; 2]) -> Positions {
        Positions { image, strides: self.pyramid.strides().to_vec() }
    }

    /// The quantized network in integer arithmetic at `precision`, on its device.
    ///
    /// # Errors
    /// A float network, or a precision that it was not quantized for.
    pub fn to_integer(&self, precision: Precision) -> Result<IntDetector, IntegerError> {
        let alone = |conv: &QuantConv2d, activation| conv.to_integer_alone(activation, precision);
        Ok(IntDetector {
            pyramid: self.pyramid.to_integer(precision)?,
            class_tower: alone(&self.class_tower, Activation::Relu)?,
            box_tower: alone(&self.box_tower, Activation::Relu)?,
            classes: alone(&self.classes, Activation::None)?,
            boxes: alone(&self.boxes, Activation::None)?,
        })
    }
}

impl Network for Detector {
    type Input = Tensor<4>;
    type Target = BoxTargets;

    /// `[batch, channels, height, width]` to `[batch * positions, classes + 5]`: logits of the classes, what distances are the exponentials
    /// of (in strides of the level), and the logit of centerness.
    fn forward(&self, images: Tensor<4>, pass: &Pass) -> Tensor<2> {
        let level = |x: Tensor<4>| {
            let x = relu(x);
            let classes = self.classes.forward(relu(self.class_tower.forward(x.clone(), pass)), pass);
            let boxes = self.boxes.forward(relu(self.box_tower.forward(x, pass)), pass);
            Tensor::cat(vec![classes, boxes], 1).permute([0, 2, 3, 1])
        };
        joined(self.pyramid.forward(images, pass).into_iter().map(level).collect())
    }

    fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let mut layers = self.pyramid.layers();
        let named = |name: &str, conv, pinned| NamedLayer {
            name: name.into(),
            layer: Layer::Conv2d(conv),
            pinned,
            after_relu: true,
        };
        layers.push(named("class_tower", &mut self.class_tower, false));
        layers.push(named("box_tower", &mut self.box_tower, false));
        layers.push(named("classes", &mut self.classes, true));
        layers.push(named("boxes", &mut self.boxes, true));
        layers
    }

    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        self.pyramid.norms_after()
    }
}

/// Levels `[batch, rows, columns, outputs]` as `[batch * all positions, outputs]`, image by image.
fn joined(levels: Vec<Tensor<4>>) -> Tensor<2> {
    let flat = |x: Tensor<4>| {
        let [batch, rows, columns, outputs] = x.dims();
        x.reshape([batch, rows * columns, outputs])
    };
    let all = Tensor::cat(levels.into_iter().map(flat).collect(), 1);
    let [batch, positions, outputs] = all.dims();
    all.reshape([batch * positions, outputs])
}

/// A [`Detector`] in integer arithmetic, switched between precisions in place.
#[derive(Clone, Debug)]
pub struct IntDetector {
    pyramid: IntPyramid,
    class_tower: IntConv2d,
    box_tower: IntConv2d,
    classes: IntConv2d,
    boxes: IntConv2d,
}

impl IntDetector {
    /// What [`Detector`] makes of images.
    ///
    /// # Errors
    /// Images of another number of channels or on another device.
    pub fn forward(&self, images: Tensor<4>) -> Result<Tensor<2>, IntegerError> {
        let branch = |x: Tensor<4>, tower: &IntConv2d, last: &IntConv2d| {
            last.forward(&tower.forward_to(&tower.quantize(x, true)?, last)?, None)
        };
        let level = |x: Tensor<4>| {
            let x = relu(x);
            let classes = branch(x.clone(), &self.class_tower, &self.classes)?;
            Ok(Tensor::cat(vec![classes, branch(x, &self.box_tower, &self.boxes)?], 3))
        };
        let levels = self.pyramid.forward(images)?.into_iter().map(level);
        Ok(joined(levels.collect::<Result<_, IntegerError>>()?))
    }

    /// Switches all layers to another precision; the first and the last keep their bits.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        let Self { pyramid, class_tower, box_tower, classes, boxes } = self;
        let heads = [&*class_tower, &*box_tower, &*classes, &*boxes];
        pyramid.layers().chain(heads).try_for_each(|layer| layer.check(precision))?;
        let heads = [class_tower, box_tower, classes, boxes];
        pyramid.layers_mut().chain(heads).try_for_each(|layer| layer.switch(precision))
    }
}

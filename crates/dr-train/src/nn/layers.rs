//! Convolution and linear layer.

#[cfg(doc)]
use super::compensated;
use super::compute::product;
use super::errors::QuantizationErrors;
use super::integer::{Affine, Affines};
use super::{
    IntConv2d, IntLinear, IntegerError, LayerSpec, Observer, Pass, PrecisionNorm, Quantizers,
    WeightOnlyLinear,
};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use dr_kernels::integer::Activation;
use dr_kernels::{Conv2dOptions, conv2d, conv2d_of_codes};
use dr_precision::{BitWidth, Precision};
use rand::Rng;

/// Normal numbers of deviation `sqrt(2 / fan_in)` (He et al., arXiv:1502.01852), the same on every device.
fn he_normal<const D: usize>(shape: [usize; D], rng: &mut impl Rng, device: &Device) -> Param<Tensor<D>> {
    let fan_in: usize = shape[1..].iter().product();
    normal(shape, (2.0 / fan_in.max(1) as f64).sqrt(), rng, device)
}

/// Normal numbers, the same on every device; without a deviation, zeros.
pub(crate) fn normal<const D: usize>(
    shape: [usize; D], deviation: f64, rng: &mut impl Rng, device: &Device,
) -> Param<Tensor<D>> {
    if deviation == 0.0 {
        return Param::from_tensor(Tensor::zeros(shape, device));
    }
    let normal = Distribution::Normal(0.0, deviation);
    Param::from_tensor(Tensor::from_data(TensorData::random::<f32, _, _>(shape, normal, rng), device))
}

/// Configuration of [`QuantConv2d`].
#[derive(Clone, Copy, Debug)]
pub struct QuantConv2dConfig {
    /// Channels in and out.
    pub channels: [usize; 2],
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step along both axes. The padding is `kernel / 2`.
    pub stride: usize,
    /// Parts of the channels that are convolved each for itself.
    pub groups: usize,
    /// Whether there is a bias; without, a BatchNorm is meant to follow.
    pub bias: bool,
}

impl QuantConv2dConfig {
    /// A stride of 1, one group, no bias.
    #[must_use]
    pub const fn new(channels: [usize; 2], kernel: usize) -> Self {
        Self { channels, kernel, stride: 1, groups: 1, bias: false }
    }

    /// A float convolution with weights drawn from `rng`.
    ///
    /// # Panics
    /// If there are no groups.
    pub fn init(&self, rng: &mut impl Rng, device: &Device) -> QuantConv2d {
        let [channels_in, channels_out] = self.channels;
        QuantConv2d {
            weight: he_normal(
                [channels_out, channels_in / self.groups, self.kernel, self.kernel],
                rng,
                device,
            ),
            bias: self.bias.then(|| Param::from_tensor(Tensor::zeros([channels_out], device))),
            quantizers: Quantizers::default(),
            stride: self.stride,
            padding: self.kernel / 2,
            groups: self.groups,
        }
    }
}

/// A 2D convolution, float or fake-quantized. A bias stays float.
#[derive(Module, Debug)]
pub struct QuantConv2d {
    /// `[channels out, channels in / groups, kernel, kernel]`.
    weight: Param<Tensor<4>>,
    /// `[channels out]`
    bias: Option<Param<Tensor<1>>>,
    quantizers: Quantizers,
    #[module(skip)]
    stride: usize,
    #[module(skip)]
    padding: usize,
    #[module(skip)]
    groups: usize,
}

impl QuantConv2d {
    /// `[batch, channels in, height, width]` to `[batch, channels out, height / stride, width / stride]`, rounded up.
    pub fn forward(&self, x: Tensor<4>, pass: &Pass) -> Tensor<4> {
        let (x, w) = self.quantizers.forward(x, &self.weight, pass);
        let y = match self.quantizers.scales(self.weight.id, pass) {
            Some((activation, weight, widths)) if pass.integers => {
                conv2d_of_codes(x, w, activation, weight, widths, self.stride, self.padding)
            }
            _ => product(pass.compute, x, w, |x, w| conv2d(x, w, self.stride, self.padding)),
        };
        match &self.bias {
            Some(bias) => y + bias.val().reshape([1, -1, 1, 1]),
            None => y,
        }
    }

    /// Gives all output channels this bias, if there is one.
    #[must_use]
    pub fn with_bias(mut self, value: f32) -> Self {
        self.bias = self.bias.map(|bias| bias.map(|bias| bias.full_like(value)));
        self
    }

    /// What tells the weight from others.
    #[must_use]
    pub const fn weight_id(&self) -> ParamId {
        self.weight.id
    }

    /// The same, followed by the BatchNorm of `norm` that is for this pass.
    pub fn forward_norm(&self, x: Tensor<4>, norm: &PrecisionNorm, pass: &Pass) -> Tensor<4> {
        norm.forward(self.forward(x, pass), pass.norm(self.weight.id))
    }

    /// The layer in integer arithmetic at `precision`, with the BatchNorm that follows it, in evaluation mode, and an
    /// activation. It is on the device of the weight.
    ///
    /// # Errors
    /// A float layer, or a precision that it was not prepared for.
    pub fn to_integer(
        &self, norm: &PrecisionNorm, activation: Activation, precision: Precision,
    ) -> Result<IntConv2d, IntegerError> {
        self.followed_by(norm.affines(), activation, precision)
    }

    /// The layer in integer arithmetic at `precision`, with its bias and an activation, but without a BatchNorm. It is on the
    /// device of the weight.
    ///
    /// # Errors
    /// A float layer, or a precision that it was not prepared for.
    pub fn to_integer_alone(
        &self, activation: Activation, precision: Precision,
    ) -> Result<IntConv2d, IntegerError> {
        let [outputs, ..] = self.weight.lazy_shape().dims::<4>();
        self.followed_by(vec![(None, Affine::bias(self.bias.as_ref(), outputs))], activation, precision)
    }

    fn followed_by(
        &self, affines: Affines, activation: Activation, precision: Precision,
    ) -> Result<IntConv2d, IntegerError> {
        let (weight, scales) = self.quantizers.to_integer(&self.weight, self.groups)?;
        let options = Conv2dOptions {
            stride: [self.stride; 2],
            padding: [self.padding; 2],
            ..Conv2dOptions::default()
        };
        let device = self.weight.val().device().inner();
        IntConv2d::new(weight, scales, affines, options, activation, precision, device)
    }
}

/// Configuration of [`QuantLinear`].
#[derive(Clone, Copy, Debug)]
pub struct QuantLinearConfig {
    /// Features in and out.
    pub features: [usize; 2],
    /// Whether there is a bias.
    pub bias: bool,
    /// The deviation of random weights, if it is not `sqrt(2 / features in)`.
    pub deviation: Option<f64>,
}

impl QuantLinearConfig {
    /// With a bias, and weights of the usual deviation.
    #[must_use]
    pub const fn new(features: [usize; 2]) -> Self {
        Self { features, bias: true, deviation: None }
    }

    /// A float layer with weights drawn from `rng` and a bias of zeros.
    pub fn init(&self, rng: &mut impl Rng, device: &Device) -> QuantLinear {
        let [features_in, features_out] = self.features;
        let shape = [features_out, features_in];
        QuantLinear {
            weight: match self.deviation {
                None => he_normal(shape, rng, device),
                Some(deviation) => normal(shape, deviation, rng, device),
            },
            bias: self.bias.then(|| Param::from_tensor(Tensor::zeros([features_out], device))),
            quantizers: Quantizers::default(),
        }
    }
}

/// A linear layer, float or fake-quantized. The bias stays float.
#[derive(Module, Debug)]
pub struct QuantLinear {
    /// `[features out, features in]`: output channels first, as in a convolution.
    weight: Param<Tensor<2>>,
    /// `[features out]`.
    bias: Option<Param<Tensor<1>>>,
    quantizers: Quantizers,
}

impl QuantLinear {
    /// `[batch, features in]` to `[batch, features out]`.
    pub fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let (x, w) = self.quantizers.forward(x, &self.weight, pass);
        let y = product(pass.compute, x, w, |x, w| x.matmul(w.transpose()));
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }

    /// The weight, `[features out, features in]`.
    #[must_use]
    pub fn weight(&self) -> Tensor<2> {
        self.weight.val()
    }

    /// The layer in integer arithmetic at `precision`, on the device of the weight.
    ///
    /// # Errors
    /// A float layer, or a precision that it was not prepared for.
    pub fn to_integer(&self, precision: Precision) -> Result<IntLinear, IntegerError> {
        let (weight, scales) = self.quantizers.to_integer(&self.weight, 1)?;
        let [outputs, _] = self.weight.lazy_shape().dims::<2>();
        let bias = Affine::bias(self.bias.as_ref(), outputs);
        let (options, device) = (Conv2dOptions::default(), self.weight.val().device().inner());
        let (bias, activation) = (vec![(None, bias)], Activation::None);
        let layer = IntConv2d::new(weight, scales, bias, options, activation, precision, device)?;
        Ok(IntLinear::new(layer))
    }

    /// The layer with packed weights of `precision` and inputs in floats, on the device of the weight.
    ///
    /// # Errors
    /// A float layer, or a precision that it was not prepared for.
    pub fn to_weight_only(&self, precision: Precision) -> Result<WeightOnlyLinear, IntegerError> {
        let (weight, scales) = self.quantizers.to_integer(&self.weight, 1)?;
        let bias = self.bias.as_ref().map(|bias| bias.val().inner());
        WeightOnlyLinear::new(weight, scales, bias, precision, self.weight.val().device().inner())
    }
}

/// A quantized layer of either kind, as a network lists them.
#[derive(Debug)]
pub enum Layer<'a> {
    /// A convolution.
    Conv2d(&'a mut QuantConv2d),
    /// A linear layer.
    Linear(&'a mut QuantLinear),
}

impl Layer<'_> {
    /// The layer's quantizers.
    #[must_use]
    pub fn quantizers(&self) -> &Quantizers {
        match self {
            Self::Conv2d(layer) => &layer.quantizers,
            Self::Linear(layer) => &layer.quantizers,
        }
    }

    /// What tells the layer's weight from others.
    #[must_use]
    pub fn weight_id(&self) -> ParamId {
        match self {
            Self::Conv2d(layer) => layer.weight_id(),
            Self::Linear(layer) => layer.weight.id,
        }
    }

    /// The shape of the weight, output channels first.
    #[must_use]
    pub fn weight_shape(&self) -> Vec<usize> {
        match self {
            Self::Conv2d(layer) => layer.weight.lazy_shape().to_vec(),
            Self::Linear(layer) => layer.weight.lazy_shape().to_vec(),
        }
    }

    /// Multiply-accumulates for one image, if the input has this shape, batch first.
    #[must_use]
    pub fn macs(&self, input: &[usize]) -> u64 {
        let weights = self.weight_shape().iter().product::<usize>();
        let positions = match (self, input) {
            (Self::Conv2d(layer), &[_, _, rows, columns]) => {
                let [.., kernel] = layer.weight.lazy_shape().dims::<4>();
                let along =
                    |size: usize| (size + 2 * layer.padding).saturating_sub(kernel) / layer.stride + 1;
                along(rows) * along(columns)
            }
            _ => 1,
        };
        weights as u64 * positions as u64
    }

    /// What quantization changes in the layer's weight and in a sample of its inputs; `None` in a float network.
    pub(crate) fn errors(&self, sample: &[f32]) -> Option<QuantizationErrors> {
        match self {
            Self::Conv2d(layer) => layer.quantizers.errors(&layer.weight, sample),
            Self::Linear(layer) => layer.quantizers.errors(&layer.weight, sample),
        }
    }

    /// Fits scales to the weights and to what the observer saw; linear layers are [`compensated`] at a width that they have.
    pub(crate) fn fit(&mut self, spec: LayerSpec, observer: &Observer, compensate: Option<BitWidth>) {
        match self {
            Self::Conv2d(layer) => {
                let inputs = observer.take(layer.weight.id).sample;
                layer.quantizers = Quantizers::fitted(spec, layer.weight.val(), &inputs);
            }
            Self::Linear(layer) => {
                let inputs = observer.take(layer.weight.id);
                let width = spec.compensated_width(compensate);
                layer.quantizers = Quantizers::fitted(spec, layer.weight.val(), &inputs.sample);
                let Some((width, products)) = width.zip(inputs.products) else { return };
                let weight = layer.quantizers.compensate(layer.weight.val(), &products, width);
                layer.weight = layer.weight.clone().map(|_| weight);
            }
        }
    }

    /// Gives the layer quantizers of the right shapes, to be loaded into.
    pub(crate) fn prepare(&mut self, spec: LayerSpec) {
        match self {
            Self::Conv2d(layer) => {
                let shape = layer.weight.lazy_shape().to_vec();
                layer.quantizers = Quantizers::placeholder(spec, &shape, &layer.weight.val().device());
            }
            Self::Linear(layer) => {
                let shape = layer.weight.lazy_shape().to_vec();
                layer.quantizers = Quantizers::placeholder(spec, &shape, &layer.weight.val().device());
            }
        }
    }
}

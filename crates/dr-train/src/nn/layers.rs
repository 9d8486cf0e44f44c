//! Convolution and linear layer.

use super::compute::product;
#[cfg(feature = "program")]
use super::errors::QuantizationErrors;
use super::{Images, LayerSpec, Observer, Pass, Quantizers};
use crate::config::ComputeKind;
use burn::config::Config;
use burn::module::{Module, Param, ParamId};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Gradients, Tensor, TensorData, module};
use dr_kernels::{conv2d_channels_last, conv2d_quantized, takes_channels_last};
use dr_runtime::graph::{self, LayerKind};
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
#[derive(Config, Debug)]
pub struct QuantConv2dConfig {
    /// Channels in and out.
    pub channels: [usize; 2],
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step along both axes. The padding is `kernel / 2`.
    #[config(default = 1)]
    pub stride: usize,
    /// Parts of the channels that are convolved each for itself.
    #[config(default = 1)]
    pub groups: usize,
    /// Whether there is a bias; without, a BatchNorm is meant to follow.
    #[config(default = false)]
    pub bias: bool,
}

impl QuantConv2dConfig {
    /// A float convolution with weights drawn from `rng`.
    ///
    /// # Panics
    /// If there are no groups.
    pub fn init(&self, rng: &mut impl Rng, device: &Device) -> QuantConv2d {
        let [channels_in, channels_out] = self.channels;
        let shape = [channels_out, channels_in / self.groups, self.kernel, self.kernel];
        QuantConv2d {
            weight: he_normal(shape, rng, device),
            bias: self.bias.then(|| Param::from_tensor(Tensor::zeros([channels_out], device))),
            quantizers: Quantizers::default(),
            stride: [self.stride; 2],
            padding: [self.kernel / 2; 2],
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
    stride: [usize; 2],
    #[module(skip)]
    padding: [usize; 2],
    #[module(skip)]
    groups: usize,
}

impl QuantConv2d {
    /// The layer of a graph with weights of zero, to be loaded into.
    ///
    /// # Panics
    /// If it is no convolution.
    #[must_use]
    pub fn zeros(layer: &graph::Layer, device: &Device) -> Self {
        let LayerKind::Conv2d { channels: [_, outputs], stride, padding, groups, .. } = layer.kind else {
            panic!("`{}`: expected a convolution", layer.name)
        };
        let shape: [usize; 4] = layer.kind.weight_shape().try_into().expect("a convolution has four axes");
        Self {
            weight: Param::from_tensor(Tensor::zeros(shape, device)),
            bias: layer.bias.then(|| Param::from_tensor(Tensor::zeros([outputs], device))),
            quantizers: Quantizers::default(),
            stride,
            padding,
            groups,
        }
    }

    /// Its sizes.
    #[must_use]
    pub fn kind(&self) -> LayerKind {
        let [output, input, rows, columns] = self.weight.lazy_shape().dims::<4>();
        LayerKind::Conv2d {
            channels: [input * self.groups, output],
            kernel: [rows, columns],
            stride: self.stride,
            padding: self.padding,
            groups: self.groups,
        }
    }

    /// Whether it has a bias.
    #[must_use]
    pub const fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// Images to as many rows and columns as the kernel has positions.
    pub fn forward(&self, x: impl Into<Images>, pass: &Pass) -> Images {
        let x = x.into();
        if let Some(observer) = pass.observer {
            observer.record(self.weight.id, &x.clone().channels_first());
        }
        let takes_last = pass.compute == ComputeKind::F32
            && takes_channels_last(x.tensor(), x.dims()[1], &self.weight.val());
        match self.square() {
            Some(steps) if takes_last => {
                Images::with_channels_last(self.forward_channels_last(x.channels_last(), steps, pass))
            }
            _ => self.forward_channels_first(x.channels_first(), pass).into(),
        }
    }

    /// By the kernels for channels-last images.
    fn forward_channels_last(&self, x: Tensor<4>, [stride, padding]: [usize; 2], pass: &Pass) -> Tensor<4> {
        let w = self.quantizers.weight(&self.weight, pass);
        let y = match self.quantizers.of_convolution(self.weight.id, pass) {
            Some(quantizer) => conv2d_quantized(x, w, quantizer, stride, padding)
                .expect("one scale and zero point for the tensor"),
            None => conv2d_channels_last(x, w, stride, padding),
        };
        match &self.bias {
            Some(bias) => y + bias.val().reshape([1, 1, 1, -1]),
            None => y,
        }
    }

    /// By Burn's convolution.
    fn forward_channels_first(&self, x: Tensor<4>, pass: &Pass) -> Tensor<4> {
        let (x, w) = self.quantizers.forward(x, &self.weight, pass);
        let options = ConvOptions::new(self.stride, self.padding, [1, 1], self.groups);
        let y = product(pass.compute, x, w, |x, w| module::conv2d(x, w, None, options));
        match &self.bias {
            Some(bias) => y + bias.val().reshape([1, -1, 1, 1]),
            None => y,
        }
    }

    /// Stride and padding, if both are the same along both axes.
    fn square(&self) -> Option<[usize; 2]> {
        let ([stride, columns], [padding, beside]) = (self.stride, self.padding);
        (stride == columns && padding == beside).then_some([stride, padding])
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
}

/// Configuration of [`QuantLinear`].
#[derive(Config, Debug)]
pub struct QuantLinearConfig {
    /// Features in and out.
    pub features: [usize; 2],
    /// Whether there is a bias.
    #[config(default = true)]
    pub bias: bool,
    /// The deviation of random weights, if it is not `sqrt(2 / features in)`.
    pub deviation: Option<f64>,
}

impl QuantLinearConfig {
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
        if let Some(observer) = pass.observer {
            observer.record(self.weight.id, &x);
        }
        let (x, w) = self.quantizers.forward(x, &self.weight, pass);
        self.plus_bias(product(pass.compute, x, w, |x, w| x.matmul(w.transpose())))
    }

    /// The same in floats with another weight, `[features out, features in]`.
    #[must_use]
    pub fn forward_with(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        self.plus_bias(x.matmul(weight.transpose()))
    }

    fn plus_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze(),
            None => y,
        }
    }

    /// The layer of a graph with weights of zero, to be loaded into.
    ///
    /// # Panics
    /// If it is a convolution.
    #[must_use]
    pub fn zeros(layer: &graph::Layer, device: &Device) -> Self {
        let LayerKind::Linear { features: [input, output] } = layer.kind else {
            panic!("`{}`: expected a linear layer", layer.name)
        };
        Self {
            weight: Param::from_tensor(Tensor::zeros([output, input], device)),
            bias: layer.bias.then(|| Param::from_tensor(Tensor::zeros([output], device))),
            quantizers: Quantizers::default(),
        }
    }

    /// Features in and out.
    #[must_use]
    pub fn features(&self) -> [usize; 2] {
        let [output, input] = self.weight.lazy_shape().dims::<2>();
        [input, output]
    }

    /// Whether it has a bias.
    #[must_use]
    pub const fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// What tells the weight from others.
    #[must_use]
    pub const fn weight_id(&self) -> ParamId {
        self.weight.id
    }

    /// The weight, `[features out, features in]`.
    #[must_use]
    pub fn weight(&self) -> Tensor<2> {
        self.weight.val()
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

/// Does the same with a layer, of whichever kind.
macro_rules! with_layer {
    ($value:expr, $layer:ident => $result:expr) => {
        match $value {
            Layer::Conv2d($layer) => $result,
            Layer::Linear($layer) => $result,
        }
    };
}

impl Layer<'_> {
    /// The layer's quantizers.
    #[must_use]
    pub fn quantizers(&self) -> &Quantizers {
        with_layer!(self, layer => &layer.quantizers)
    }

    /// What tells the layer's weight from others.
    #[must_use]
    pub fn weight_id(&self) -> ParamId {
        with_layer!(self, layer => layer.weight.id)
    }

    /// The shape of the weight, output channels first.
    #[must_use]
    pub fn weight_shape(&self) -> Vec<usize> {
        with_layer!(self, layer => layer.weight.lazy_shape().to_vec())
    }

    /// The values of the weight in one row, without gradients.
    pub(crate) fn flat_weight(&self) -> Tensor<1> {
        with_layer!(self, layer => layer.weight.val().inner().reshape([-1]))
    }

    /// Puts these values in place of the weight, and tracks their gradient.
    pub(crate) fn track(&mut self, values: Tensor<1>) {
        with_layer!(self, layer => {
            let weight = layer.weight.clone();
            layer.weight = weight.map(|old| values.reshape(old.dims()).autodiff().require_grad());
        });
    }

    /// The gradient of the weight in one row; `None` if there is none.
    pub(crate) fn flat_gradient(&self, gradients: &mut Gradients) -> Option<Tensor<1>> {
        with_layer!(self, layer => {
            let gradient = layer.weight.val().grad_remove(gradients);
            gradient.map(|gradient| gradient.reshape([-1]))
        })
    }

    /// Multiply-accumulates for one image, if the input has this shape, batch first.
    #[must_use]
    pub fn macs(&self, input: &[usize]) -> u64 {
        let weights = self.weight_shape().iter().product::<usize>();
        let positions = match (self, input) {
            (Self::Conv2d(layer), &[_, _, rows, columns]) => {
                layer.kind().output_size([rows, columns]).iter().product()
            }
            _ => 1,
        };
        weights as u64 * positions as u64
    }

    /// What quantization changes in the layer's weight and in a sample of its inputs; `None` in a float network.
    #[cfg(feature = "program")]
    pub(crate) fn errors(&self, sample: &[f32]) -> Option<QuantizationErrors> {
        with_layer!(self, layer => layer.quantizers.errors(&layer.weight, sample))
    }

    /// Fits scales to the weights and to what the observer saw.
    pub(crate) fn fit(&mut self, spec: LayerSpec, observer: &Observer) {
        let inputs = observer.take(self.weight_id());
        with_layer!(self, layer => {
            layer.quantizers = Quantizers::fitted(spec, layer.weight.val(), &inputs.sample);
        });
    }

    /// Gives the layer quantizers of the right shapes, to be loaded into.
    pub(crate) fn prepare(&mut self, spec: LayerSpec) {
        let shape = self.weight_shape();
        with_layer!(self, layer => {
            layer.quantizers = Quantizers::placeholder(spec, &shape, &layer.weight.val().device());
        });
    }
}

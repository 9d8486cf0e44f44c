//! Layers in integer arithmetic: trained layers with what follows them (BatchNorm, residual, activation) folded in.
//!
//! With `x` and `q` the codes of input and weight, a layer computes
//!
//! ```text
//! y = s_x s_w gain * sum(x q)  +  shift + gain * z sum(s_w q)  (+ residual, activation)
//! ```
//!
//! (with a sum for each group of inputs that has a scale of its own)
//!
//! where `gain * y + shift` is BatchNorm in evaluation mode (or a bias, with a gain of 1), and the last sum, over the
//! taps that are inside the image, makes up for the zero point `z` of the input. Up to the rounding of f32 these are the
//! values of fake quantization.

use super::LayerSpec;
use super::arithmetic::{OnHost, linear_on_host};
use super::quantizers::host;
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use dr_kernels::cpu::integer::Epilogue;
use dr_kernels::integer::{Activation, CodeQuantizer, IntConv2dShape, WeightLayout};
use dr_kernels::reference::zero_point_addends;
use dr_kernels::{
    Codes, Conv2dOptions, HostWords, IntProduct, IntWeight, KernelError, Narrowed, Results, Wanted,
};
use dr_precision::{BitWidth, Precision};
use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// Why a network cannot compute with integers.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IntegerError {
    /// Nothing in it is quantized.
    #[error("a float network: expected a quantized one")]
    Float,
    /// A precision that the network does not have.
    #[error("the network has no precision {precision}: expected {expected}")]
    Precision {
        /// What was asked for.
        precision: Precision,
        /// What it has.
        expected: String,
    },
    /// More of a text than a language model can look at, or nothing of it.
    #[error("a text of {found} tokens: expected 1 to {expected}, the model's context")]
    Context {
        /// Tokens.
        found: usize,
        /// The most there can be.
        expected: usize,
    },
    /// Sizes or devices that do not fit.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// What is done to each output channel: `gain * y + shift`.
#[derive(Clone, Debug)]
pub(super) struct Affine {
    pub(super) gain: Vec<f32>,
    pub(super) shift: Vec<f32>,
}

impl Affine {
    /// A bias, or nothing.
    pub(super) fn bias(bias: Option<&Param<Tensor<1>>>, outputs: usize) -> Self {
        let shift = bias.map_or_else(|| vec![0.0; outputs], |bias| host(&bias.val()));
        Self { gain: vec![1.0; outputs], shift }
    }
}

/// An [`Affine`] for each precision, or one (without a precision) for all.
pub(super) type Affines = Vec<(Option<Precision>, Affine)>;

/// How a layer is quantized at all its widths.
#[derive(Clone, Debug)]
pub(super) struct LayerScales {
    pub(super) spec: LayerSpec,
    /// `[outputs, groups]` for each width of the weights.
    pub(super) weights: Vec<Vec<f32>>,
    /// One for each width of the inputs.
    pub(super) inputs: Vec<CodeQuantizer>,
}

/// A convolution in integer arithmetic, with the BatchNorm after it. It holds the stored codes and the scales of all
/// precisions, and computes at one of them.
#[derive(Clone, Debug)]
pub struct IntConv2d {
    stored: IntWeight,
    scales: LayerScales,
    affines: Affines,
    options: Conv2dOptions,
    activation: Activation,
    device: Device,
    active: Active,
    /// Addends that depend on the position, by precision and size of the input.
    addends: Arc<Mutex<Addends>>,
}

type Addends = HashMap<(Precision, [usize; 2]), Arc<[f32]>>;

/// What a layer needs at its precision.
#[derive(Clone, Debug)]
struct Active {
    precision: Precision,
    weight: IntWeight<Narrowed>,
    input: CodeQuantizer,
    product: IntProduct,
    /// The weight, if it is in the memory of this computer's processor.
    words: Option<HostWords>,
    /// `[groups, outputs]`, of input, weight and gain.
    multiplier: Arc<[f32]>,
    /// `[outputs, groups]`, scales of the weight times gains.
    weight_gain: Vec<f32>,
    /// `[outputs]`.
    shift: Arc<[f32]>,
}

/// A layer at its precision for an input of one size, in the memory of this computer's processor.
pub(super) struct HostLayer<'a> {
    pub(super) words: &'a [u32],
    pub(super) shape: IntConv2dShape,
    multiplier: &'a [f32],
    addend: Arc<[f32]>,
    activation: Activation,
}

impl HostLayer<'_> {
    pub(super) fn epilogue<'a>(&'a self, residual: Option<&'a [f32]>) -> Epilogue<'a> {
        let Self { multiplier, addend, activation, .. } = self;
        Epilogue { multiplier, addend, residual, activation: *activation }
    }
}

/// A layer at one precision, for other runtimes.
#[derive(Clone, Debug)]
pub(crate) struct LayerParts {
    pub(crate) weight: WeightLayout,
    /// `[outputs, inputs / groups * taps]`.
    pub(crate) codes: Vec<i32>,
    /// `[outputs, groups]`, of the weight and of what follows the layer.
    pub(crate) scale: Vec<f32>,
    /// `[outputs]`, what is added.
    pub(crate) shift: Vec<f32>,
    pub(crate) input: CodeQuantizer,
    pub(crate) options: Conv2dOptions,
    pub(crate) activation: Activation,
}

/// So many addends are kept for each layer: of images of many sizes they would fill the memory.
const KEPT_ADDENDS: usize = 64;

impl IntConv2d {
    pub(super) fn new(
        stored: IntWeight, scales: LayerScales, affines: Affines, options: Conv2dOptions,
        activation: Activation, precision: Precision, device: Device,
    ) -> Result<Self, IntegerError> {
        let active = Active::new(&stored, &scales, &affines, options, activation, precision, &device)?;
        active.weight.settle();
        Ok(Self { stored, scales, affines, options, activation, device, active, addends: Arc::default() })
    }

    /// Whether the layer can be switched to `precision`.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if not.
    pub fn check(&self, precision: Precision) -> Result<(), IntegerError> {
        choose(&self.scales, &self.affines, precision).map(|_| ())
    }

    /// Switches to another precision, by shifts of the stored codes. A layer whose bits are pinned keeps them.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if the layer has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        let Self { stored, scales, affines, options, activation, device, .. } = self;
        self.active = Active::new(stored, scales, affines, *options, *activation, precision, device)?;
        Ok(())
    }

    /// The precision it computes at.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.active.precision
    }

    /// Bytes that a pass at this precision reads: the prepared codes with their padding, a multiplier for each scale and an
    /// addend for each output, the scale and zero point of the input.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        let floats = self.active.multiplier.len() + self.active.shift.len() + 2;
        self.active.weight.bytes() + floats * size_of::<f32>()
    }

    /// The layer's input as codes. `x` is `[batch, rows, columns, channels]` if `channels_last`, else `[batch, channels,
    /// rows, columns]`.
    ///
    /// # Errors
    /// Another data type than f32, f16 or bf16, or another device.
    pub fn quantize(&self, x: Tensor<4>, channels_last: bool) -> Result<Codes, IntegerError> {
        Ok(self.active.product.quantize(x, channels_last)?)
    }

    /// `[batch, rows, columns, channels out]` in f32, with `residual` of that shape added before the activation.
    ///
    /// # Errors
    /// Codes or a residual of another shape or device.
    pub fn forward(&self, x: &Codes, residual: Option<Tensor<4>>) -> Result<Tensor<4>, IntegerError> {
        Ok(self.forward_both(x, residual, None)?.0)
    }

    /// The result as the codes that `next` takes, without a float in memory.
    ///
    /// # Errors
    /// Codes of another shape or device.
    pub fn forward_to(&self, x: &Codes, next: &Self) -> Result<Codes, IntegerError> {
        let results = self.active.product.run(x, None, Wanted::Codes(next.active.input))?;
        Ok(results.codes.expect("codes are wanted"))
    }

    /// [`IntConv2d::forward`], and the result also as the codes that `next` takes, if there is a next layer.
    ///
    /// # Errors
    /// Codes or a residual of another shape or device.
    pub fn forward_both(
        &self, x: &Codes, residual: Option<Tensor<4>>, next: Option<&Self>,
    ) -> Result<(Tensor<4>, Option<Codes>), IntegerError> {
        let wanted = next.map_or(Wanted::Values, |next| Wanted::Both(next.active.input));
        let Results { values, codes } = self.active.product.run(x, residual, wanted)?;
        Ok((values.expect("values are wanted"), codes))
    }

    /// What the layer is made of at its precision; the codes are copied from the device.
    pub(crate) fn parts(&self) -> LayerParts {
        let Active { weight, input, weight_gain, shift, .. } = &self.active;
        LayerParts {
            weight: *weight.layout(),
            codes: weight.codes().expect("a device that gives its tensors back"),
            scale: weight_gain.clone(),
            shift: shift.to_vec(),
            input: *input,
            options: self.options,
            activation: self.activation,
        }
    }

    /// What is added at each position of an input of this size, if that depends on the position.
    fn addend(&self, input: [usize; 2]) -> Result<Option<Arc<[f32]>>, KernelError> {
        let active = &self.active;
        if active.input.zero_point == 0.0 {
            return Ok(None);
        }
        let key = (active.precision, input);
        let mut addends = self.addends.lock().unwrap_or_else(PoisonError::into_inner);
        if addends.len() >= KEPT_ADDENDS && !addends.contains_key(&key) {
            addends.clear();
        }
        if let Some(addend) = addends.get(&key) {
            return Ok(Some(addend.clone()));
        }
        let addend = active.addends(input, &self.options)?.into();
        Ok(Some(addends.entry(key).or_insert(addend).clone()))
    }

    /// How its input is quantized.
    pub(super) const fn input(&self) -> CodeQuantizer {
        self.active.input
    }

    /// What it is applied to inputs of this size.
    fn shape(&self, [batch, rows, columns, _]: [usize; 4]) -> Result<IntConv2dShape, KernelError> {
        IntConv2dShape::new(batch, [rows, columns], self.options, *self.active.weight.layout())
    }

    /// Output channels.
    pub(super) fn outputs(&self) -> usize {
        self.active.weight.layout().outputs()
    }

    /// The size of its result: `[batch, rows, columns, channels]`, as that of the input.
    pub(super) fn output(&self, input: [usize; 4]) -> Result<[usize; 4], KernelError> {
        Ok(self.active.product.output(input)?)
    }

    /// The layer for inputs of this size, for kernels over slices.
    ///
    /// # Errors
    /// Another number of channels, or a layer that is not in this memory.
    pub(super) fn on_host(&self, input: [usize; 4]) -> Result<HostLayer<'_>, IntegerError> {
        let Active { words, multiplier, shift, .. } = &self.active;
        let shape = self.shape(input)?;
        if input[3] != shape.channels() {
            let (found, expected) = (vec![input[3]], vec![shape.channels()]);
            return Err(KernelError::Size { what: "input channels", found, expected }.into());
        }
        let Some(words) = words else {
            let (found, expected) = (format!("{:?}", Device::flex()), format!("{:?}", self.device));
            return Err(KernelError::Device { what: "input", found, expected }.into());
        };
        let [_, rows, columns, _] = input;
        let addend = self.addend([rows, columns])?.unwrap_or_else(|| shift.clone());
        Ok(HostLayer { words, shape, multiplier, addend, activation: self.activation })
    }
}

impl Active {
    fn new(
        stored: &IntWeight, scales: &LayerScales, affines: &Affines, options: Conv2dOptions,
        activation: Activation, precision: Precision, device: &Device,
    ) -> Result<Self, IntegerError> {
        let ((weight_at, input_at), affine) = choose(scales, affines, precision)?;
        let input = scales.inputs[input_at];
        let (weight_scales, outputs) = (&scales.weights[weight_at], affine.gain.len());
        let groups = weight_scales.len() / outputs.max(1);
        let gain = |(i, scale): (usize, &f32)| scale * affine.gain[i / groups];
        let weight_gain: Vec<f32> = weight_scales.iter().enumerate().map(gain).collect();
        let by_group = (0..groups * outputs).map(|i| weight_gain[i % outputs * groups + i / outputs]);
        let multiplier: Vec<f32> = by_group.map(|weight| input.scale * weight).collect();
        let shift = affine.shift.clone();
        let weight = stored.at(scales.spec.weights[weight_at], floats(weight_scales, device))?;
        let product = IntProduct::new(&weight, options, input, &affine.gain, &shift, activation)?;
        let (words, multiplier, shift) = (weight.on_host(), multiplier.into(), shift.into());
        Ok(Self { precision, weight, input, product, words, multiplier, weight_gain, shift })
    }

    /// `[positions * outputs]` for an input of this size; `[outputs]` if all positions have the same.
    fn addends(&self, input: [usize; 2], options: &Conv2dOptions) -> Result<Vec<f32>, KernelError> {
        let shape = IntConv2dShape::new(1, input, *options, *self.weight.layout())?;
        let codes = self.weight.codes()?;
        let zero = zero_point_addends(&codes, &self.weight_gain, self.input.zero_point, &shape);
        Ok(zero.iter().zip(self.shift.iter().cycle()).map(|(zero, shift)| zero + shift).collect())
    }
}

/// Positions of the precision's widths among the layer's, and what follows the layer at this precision.
fn choose<'a>(
    scales: &LayerScales, affines: &'a Affines, precision: Precision,
) -> Result<((usize, usize), &'a Affine), IntegerError> {
    let missing = |expected| IntegerError::Precision { precision, expected };
    let is_for = |of: &Option<Precision>| of.is_none_or(|of| of == precision);
    let affine = affines.iter().find(|(of, _)| is_for(of)).map(|(_, affine)| affine);
    let affine = affine
        .ok_or_else(|| missing(format!("one of {}", list(affines.iter().filter_map(|(of, _)| *of)))))?;
    let spec = &scales.spec;
    let widths = |bits: &[BitWidth]| list(bits.iter().copied());
    let positions = spec.positions(precision).ok_or_else(|| {
        let (weights, activations) = (widths(&spec.weights), widths(&spec.activations));
        missing(format!("weights of {weights} bits and activations of {activations} bits"))
    })?;
    Ok((positions, affine))
}

fn list<T: Display>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

fn floats(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), device)
}

/// A linear layer in integer arithmetic.
#[derive(Clone, Debug)]
pub struct IntLinear {
    /// The same with a kernel of one tap.
    layer: IntConv2d,
}

impl IntLinear {
    pub(super) const fn new(layer: IntConv2d) -> Self {
        Self { layer }
    }

    /// The layer as a convolution of images of one pixel, to check, switch and measure it.
    #[must_use]
    pub const fn as_conv2d(&self) -> &IntConv2d {
        &self.layer
    }

    /// The same, to switch it.
    #[must_use]
    pub const fn as_conv2d_mut(&mut self) -> &mut IntConv2d {
        &mut self.layer
    }

    /// `[batch, features in]` to `[batch, features out]`.
    ///
    /// # Errors
    /// Another number of features or another device.
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, IntegerError> {
        let [batch, features] = x.dims();
        if OnHost::takes(&x) {
            let [y] = linear_on_host([&self.layer], &host(&x), [batch, features])?;
            let y = TensorData::new(y, [batch, self.layer.outputs()]);
            return Ok(Tensor::from_data(y, &self.layer.device));
        }
        let codes = self.layer.quantize(x.reshape([batch, 1, 1, features]), true)?;
        let y = self.layer.forward(&codes, None)?;
        let [batch, _, _, features] = y.dims();
        Ok(y.reshape([batch, features]))
    }
}

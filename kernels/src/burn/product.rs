//! Convolutions and matrix products in integers.

use super::ops::{CodesFormat, IntConvFormat, IntOps};
use super::states::CodeState;
use super::weight::{IntWeight, Prepared};
use super::{addressable, floats, require_f32, require_float, same_device};
use crate::KernelError;
use crate::error::size;
use crate::integer::{Activation, CodeQuantizer, Conv2dOptions, IntConv2dShape, padded_channels};
use burn::backend::Dispatch;
use burn::tensor::{DType, Int, Tensor, TensorData};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Unsigned codes of activations, `[batch, rows, columns, channels]`.
#[derive(Clone, Debug)]
pub struct Codes {
    words: Tensor<1, Int>,
    dims: [usize; 4],
    quantizer: CodeQuantizer,
}

impl Codes {
    /// Quantizes activations, `clip(round((x - z) / s), 0, 2^b - 1)`.
    ///
    /// `x`: `[batch, channels, rows, columns]`, or `[batch, rows, columns, channels]` if `channels_last`; f32, f16 or bf16.
    ///
    /// # Errors
    /// Other data types, and more elements than the device can address.
    pub fn quantize(x: Tensor<4>, channels_last: bool, to: CodeQuantizer) -> Result<Self, KernelError> {
        let x = x.inner();
        require_float("activation", x.dtype())?;
        let dims = match (channels_last, x.dims()) {
            (true, dims) => dims,
            (false, [batch, channels, rows, columns]) => [batch, rows, columns, channels],
        };
        let [batch, rows, columns, channels] = dims;
        addressable("codes", &[batch, rows, columns, padded_channels(channels)], &x.device())?;
        let format = CodesFormat { images: batch, channels, positions: rows * columns, channels_last, to };
        let words = Dispatch::quantize_codes(x.into_dispatch(), format);
        Ok(Self { words: Tensor::from_dispatch(words), dims, quantizer: to })
    }

    /// Batch, rows, columns, channels.
    #[must_use]
    pub const fn dims(&self) -> [usize; 4] {
        self.dims
    }

    /// The codes, four in a word, channels padded with zeros: `[batch * rows * columns * ceil(channels / 4)]`.
    #[must_use]
    pub fn words(&self) -> &Tensor<1, Int> {
        &self.words
    }

    /// How they were quantized.
    #[must_use]
    pub const fn quantizer(&self) -> CodeQuantizer {
        self.quantizer
    }
}

/// What [`IntProduct::run`] is to give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// Values in f32.
    Values,
    /// The codes of a next product's input, without a float in memory.
    Codes(CodeQuantizer),
    /// Both: for what is a residual and the input of a next product.
    Both(CodeQuantizer),
}

/// What [`IntProduct::run`] gave: what was [`Wanted`].
#[derive(Clone, Debug)]
pub struct Results {
    /// `[batch, rows, columns, outputs]` in f32.
    pub values: Option<Tensor<4>>,
    /// [`Codes::quantize`] of the values.
    pub codes: Option<Codes>,
}

/// A convolution or matrix product in integers, ready to run: a weight, how its input is quantized, and what follows.
///
/// Results are those of [`host::Product`](crate::host::Product). A matrix product `[rows, inputs]` is a convolution of `rows`
/// images of one pixel.
#[derive(Clone, Debug)]
pub struct IntProduct {
    weight: Prepared,
    options: Conv2dOptions,
    input: CodeQuantizer,
    activation: Activation,
    /// `[scale groups * outputs]`, of weight and gain.
    gained: Tensor<1>,
    /// The same times the scale of the input.
    multiplier: Tensor<1>,
    /// `[outputs]`.
    shift: Tensor<1>,
    addends: Arc<Mutex<Addends>>,
}

/// What makes up for the zero point of the input. Made by the first pass that needs it.
#[derive(Debug, Default)]
struct Addends {
    /// `[taps * outputs]`: sums of weights, times their scales and gains.
    sums: Option<Tensor<1>>,
    /// Shifts with what makes up for the zero point, by size of the input.
    by_input: HashMap<[usize; 2], Tensor<1>>,
}

/// So many addends are kept: of images of many sizes they would fill the memory.
const KEPT_ADDENDS: usize = 64;

impl IntProduct {
    /// A product on the device of `weight`, whose input is quantized by `input`; `gain` and `shift` are `[outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of gains or shifts, [`KernelError::Zero`] for a stride or dilation of 0,
    /// [`KernelError::TooLarge`] for steps that the device cannot count.
    pub fn new<C: CodeState>(
        weight: &IntWeight<C>, options: Conv2dOptions, input: CodeQuantizer, gain: &[f32], shift: &[f32],
        activation: Activation,
    ) -> Result<Self, KernelError> {
        let (prepared, outputs) = (weight.prepared().clone(), weight.layout().outputs());
        size("gain", &[gain.len()], &[outputs])?;
        size("shift", &[shift.len()], &[outputs])?;
        IntConv2dShape::new(0, [0, 0], options, prepared.layout)?;
        let device = prepared.device();
        let Conv2dOptions { stride, padding, dilation } = options;
        for (what, steps) in [("stride", stride), ("padding", padding), ("dilation", dilation)] {
            steps.iter().try_for_each(|&step| addressable(what, &[step], &device).map(|_| ()))?;
        }
        let gained = weight.scales_by_group(Some(floats(gain, &device)));
        let multiplier = gained.clone() * input.scale;
        let shift = floats(shift, &device);
        let addends = Arc::default();
        Ok(Self { weight: prepared, options, input, activation, gained, multiplier, shift, addends })
    }

    /// How its input is quantized.
    #[must_use]
    pub const fn input(&self) -> CodeQuantizer {
        self.input
    }

    /// Bytes that a pass reads: the codes with their padding, a multiplier for each scale and an addend for each output, the
    /// scale and zero point of the input.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let floats = self.multiplier.dims()[0] + self.shift.dims()[0] + 2;
        self.weight.bytes() + floats * size_of::<f32>()
    }

    /// Sizes of the result, `[batch, rows, columns, channels]`, for an input of these sizes.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of channels, [`KernelError::TooLarge`] for more elements than the device can
    /// address.
    pub fn output(&self, input: [usize; 4]) -> Result<[usize; 4], KernelError> {
        Ok(self.shape(input)?.result())
    }

    /// The input as codes. `x` is `[batch, rows, columns, channels]` if `channels_last`, else `[batch, channels, rows, columns]`;
    /// f32, f16 or bf16.
    ///
    /// # Errors
    /// As [`Codes::quantize`]; another device than the weight's.
    pub fn quantize(&self, x: Tensor<4>, channels_last: bool) -> Result<Codes, KernelError> {
        same_device("activation", &x.device(), &self.weight.device())?;
        Codes::quantize(x, channels_last, self.input)
    }

    /// The product, with a `residual` like the result added before the activation.
    ///
    /// The sums are those of the codes, exactly; what is made of them in f32 is in the order of the formula above, and by groups.
    ///
    /// # Errors
    /// Codes of another quantizer than [`IntProduct::input`], other sizes, data types and devices, more elements than the device
    /// can address.
    pub fn run(
        &self, codes: &Codes, residual: Option<Tensor<4>>, wanted: Wanted,
    ) -> Result<Results, KernelError> {
        let device = self.weight.device();
        if codes.quantizer != self.input {
            let [found, expected] =
                [codes.quantizer, self.input].map(|CodeQuantizer { bits, scale, zero_point }| {
                    format!("{bits} bits, scale {scale}, zero point {zero_point}")
                });
            return Err(KernelError::Quantizer { found, expected });
        }
        same_device("codes", &codes.words.device(), &device)?;
        let shape = self.shape(codes.dims)?;
        let (dims, residual) = (shape.result(), residual.map(Tensor::inner));
        if let Some(residual) = &residual {
            size("residual", &residual.dims(), &dims)?;
            same_device("residual", &residual.device(), &device)?;
            require_f32("residual", residual.dtype())?;
        }
        let (values, to) = match wanted {
            Wanted::Values => (true, None),
            Wanted::Codes(to) => (false, Some(to)),
            Wanted::Both(to) => (true, Some(to)),
        };
        if dims.contains(&0) {
            let words = || Tensor::zeros([0], (&device, DType::U32));
            return Ok(Results {
                values: values.then(|| Tensor::zeros(dims, (&device, DType::F32))),
                codes: to.map(|quantizer| Codes { words: words(), dims, quantizer }),
            });
        }
        let addend = self.addend(&shape);
        let format = IntConvFormat {
            shape,
            addend_by_position: addend.dims() != self.shift.dims(),
            residual: residual.is_some(),
            activation: self.activation,
            kernel: self.weight.kernel,
            values,
            codes: to,
        };
        let residual =
            residual.map_or_else(|| addend.clone(), |residual| residual.reshape([shape.results()]));
        let (out, words) = Dispatch::int_conv2d(
            codes.words.clone().into_dispatch(),
            self.weight.words.clone().into_dispatch(),
            self.multiplier.clone().into_dispatch(),
            addend.into_dispatch(),
            residual.into_dispatch(),
            format,
        );
        Ok(Results {
            values: values.then(|| Tensor::<1>::from_dispatch(out).reshape(dims)),
            codes: to.map(|quantizer| Codes { words: Tensor::from_dispatch(words), dims, quantizer }),
        })
    }

    /// The shape for an input of these sizes.
    fn shape(&self, [batch, rows, columns, channels]: [usize; 4]) -> Result<IntConv2dShape, KernelError> {
        let (layout, device) = (self.weight.layout, self.weight.device());
        let shape = IntConv2dShape::new(batch, [rows, columns], self.options, layout)?;
        size("input channels", &[channels], &[shape.channels()])?;
        let padded = [0, 1].map(|axis| shape.input()[axis] + 2 * shape.options().padding[axis]);
        addressable("padded input", &[batch, padded[0], padded[1], padded_channels(channels)], &device)?;
        let [rows, columns] = shape.output();
        addressable("output", &[batch, rows, columns, padded_channels(layout.outputs())], &device)?;
        Ok(shape)
    }

    /// What is added for an input of this shape, which is not empty: `[outputs]`, or `[positions * outputs]`.
    fn addend(&self, shape: &IntConv2dShape) -> Tensor<1> {
        if self.input.zero_point == 0.0 {
            return self.shift.clone();
        }
        let padded = shape.options().padding != [0, 0];
        let key = if padded { shape.input() } else { [0, 0] };
        let mut addends = self.addends.lock().unwrap_or_else(PoisonError::into_inner);
        let Addends { sums, by_input } = &mut *addends;
        if by_input.len() >= KEPT_ADDENDS && !by_input.contains_key(&key) {
            by_input.clear();
        }
        let sums = sums.get_or_insert_with(|| {
            let (words, gained) = (self.weight.words.clone(), self.gained.clone());
            let sums = Dispatch::tap_sums(words.into_dispatch(), gained.into_dispatch(), *shape.weight());
            Tensor::from_dispatch(sums)
        });
        let addend = || {
            let (taps, outputs, cols) = (shape.weight().taps(), shape.weight().outputs(), shape.output()[1]);
            let positions = if padded { shape.positions() } else { 1 };
            let inside = |i: usize| {
                let (tap, position) = (i / positions, i % positions);
                !padded || shape.tapped([position / cols, position % cols], tap).is_some()
            };
            let inside = (0..taps * positions).map(|i| f32::from(u8::from(inside(i)))).collect::<Vec<_>>();
            let inside = TensorData::new(inside, [taps, positions, 1]);
            let inside = Tensor::<3>::from_data(inside, (&self.weight.device(), DType::F32));
            let sums = sums.clone().reshape([taps, 1, outputs]);
            // In the order of the taps, as on every device.
            let term = |tap: usize| inside.clone().slice(tap..=tap) * sums.clone().slice(tap..=tap);
            let total = (1..taps).fold(term(0), |total, tap| total + term(tap));
            let shift = self.shift.clone().reshape([1, 1, outputs]);
            (total * self.input.zero_point + shift).reshape([positions * outputs])
        };
        by_input.entry(key).or_insert_with(addend).clone()
    }
}

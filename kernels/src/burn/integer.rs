//! Integer convolutions and matrix products over Burn tensors.

use super::ops::{CodesFormat, IntConvFormat, IntOps, WeightOnlyFormat};
use super::{PackedTensor, require_f32, same_device};
use crate::cpu::Huge;
use crate::cpu::integer::{prepare_panels, unpack_panels};
use crate::error::size;
pub use crate::integer::Conv2dOptions as IntConv2dOptions;
use crate::integer::{Activation, BLOCK_STEPS, GpuKernel, IntConv2dShape, PANEL, STEP, WeightLayout};
use crate::{KernelError, reference};
use burn::backend::flex::FlexTensor;
use burn::backend::{BackendTensor, Dispatch, DispatchTensorKind};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use dr_precision::{BitWidth, Signedness};
use std::ops::Deref;

/// The weight of a convolution or linear layer, prepared for integer arithmetic on its device. It has no scales: those are
/// part of the [`IntEpilogue`].
#[derive(Clone, Debug)]
pub struct IntWeight {
    words: Tensor<1, Int>,
    layout: WeightLayout,
    kernel: Option<GpuKernel>,
}

impl IntWeight {
    /// Prepares packed weights, `[outputs, inputs]` or `[outputs, inputs / groups, rows, columns]`.
    ///
    /// # Errors
    /// Another number of axes, groups that do not divide the outputs, unsigned codes, or sums that may overflow.
    pub fn new(packed: &PackedTensor, groups: usize) -> Result<Self, KernelError> {
        let (spec, shape) = (packed.spec(), packed.shape());
        if spec.signedness == Signedness::Unsigned {
            return Err(KernelError::SwitchUnsigned);
        }
        let layout = WeightLayout::new(shape, groups, spec.bits, spec.granularity)?;
        let words: Vec<u32> = host(packed.words());
        let codes = reference::unpack(&words, shape.iter().product(), spec.bits, Signedness::Signed);
        Ok(Self::from_codes(&codes, layout, &packed.words().device()))
    }

    fn from_codes(codes: &[i32], layout: WeightLayout, device: &Device) -> Self {
        let words = match is_flex(device) {
            true => prepare_panels(codes, &layout),
            false => reference::prepare_rows(codes, &layout),
        };
        let length = words.len();
        let words = Tensor::from_data(TensorData::new(words, [length]), (device, DType::U32));
        Self { words, layout, kernel: None }
    }

    /// Asks for a kernel, on a GPU, where `None` leaves the choice to what the device reports.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Option<GpuKernel>) -> Self {
        self.kernel = kernel;
        self
    }

    /// Its shape, width and order.
    #[must_use]
    pub fn layout(&self) -> &WeightLayout {
        &self.layout
    }

    /// Bytes of the prepared codes, with those of padding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layout.words() * 4
    }

    /// Switches to `bits` bits, by shifts. Switch from the stored codes: switching twice is another rounding.
    ///
    /// # Errors
    /// A width above that of the codes.
    pub fn switch(&self, bits: BitWidth) -> Result<Self, KernelError> {
        self.layout.bits().shift_to(bits)?;
        let layout = self.layout.at(bits)?;
        if bits == self.layout.bits() {
            return Ok(self.clone());
        }
        let words = Dispatch::switch_weight(self.words.clone().into_dispatch(), self.layout, bits);
        Ok(Self { words: Tensor::from_dispatch(words), layout, kernel: self.kernel })
    }

    /// The prepared words, if they are in the memory of this computer's processor: for [`cpu::integer`](crate::cpu::integer).
    #[must_use]
    pub fn on_host(&self) -> Option<HostWords> {
        let tensor = self.words.clone().inner();
        if !is_flex(&tensor.device()) {
            return None;
        }
        match tensor.into_dispatch().kind {
            DispatchTensorKind::Flex(BackendTensor::Int(tensor)) => Some(HostWords(tensor)),
            _ => None,
        }
    }

    /// Takes some milliseconds for each megabyte to lay the words out for the fastest reading, if they are in the memory of this computer's
    /// processor and many: for weights that stay. (A [switch](IntWeight::switch) must not wait for that.)
    pub fn settle(&self) {
        if let Some(words) = self.on_host() {
            Huge::Now.ask(words.as_ptr(), words.len());
        }
    }

    /// The codes, `[outputs, inputs / groups * taps]`. They are copied from the device.
    #[must_use]
    pub fn codes(&self) -> Vec<i32> {
        let (layout, words) = (&self.layout, host::<u32, 1>(&self.words));
        let (blocks, columns) = (layout.blocks(), layout.columns());
        let row_codes = columns.len();
        let mut codes = vec![0; layout.outputs() * layout.cols()];
        let ordered: Box<dyn Fn(usize, usize) -> i32> = match is_flex(&self.words.device()) {
            true => {
                let mut bytes = vec![0; layout.elements()];
                unpack_panels(&words, layout.bits(), &mut bytes);
                Box::new(move |row, at| {
                    let (panel, lane) = (row / PANEL, row % PANEL);
                    let step = panel * blocks * BLOCK_STEPS + at / STEP;
                    i32::from(bytes[(step * PANEL + lane) * STEP + at % STEP])
                })
            }
            false => {
                let ordered = reference::unpack(&words, layout.elements(), layout.bits(), Signedness::Signed);
                Box::new(move |row, at| ordered[row * row_codes + at])
            }
        };
        for row in 0..layout.rows() {
            let Some(output) = layout.output_of(row) else { continue };
            for (at, column) in columns.iter().enumerate() {
                if let Some(column) = column {
                    codes[output * layout.cols() + column] = ordered(row, at);
                }
            }
        }
        codes
    }
}

/// The words of an [`IntWeight`], which it shares.
#[derive(Clone, Debug)]
pub struct HostWords(FlexTensor);

impl Deref for HostWords {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        self.0.as_slice().unwrap_or_default()
    }
}

/// Unsigned codes of activations, `[batch, rows, columns, channels]`.
#[derive(Clone, Debug)]
pub struct Codes {
    words: Tensor<1, Int>,
    dims: [usize; 4],
}

impl Codes {
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
}

/// What becomes of the sums of an integer layer: `multiplier * sum + addend`, plus a residual if there is one, and an
/// activation.
#[derive(Clone, Debug)]
pub struct IntEpilogue {
    /// `[scale groups * outputs]`: the products of the scales of input and weight, and of BatchNorm's.
    pub multiplier: Tensor<1>,
    /// `[outputs]`, or `[positions * outputs]`: the bias, and what makes up for the zero point of the input.
    pub addend: Tensor<1>,
    /// What is done last.
    pub activation: Activation,
}

/// Quantizes activations to codes of `bits` bits, `clip(round((x - z) / s), 0, 2^b - 1)`.
///
/// - `x`: `[batch, channels, rows, columns]`, or `[batch, rows, columns, channels]` if `channels_last`; f32, f16 or bf16.
/// - `quantizer`: `[2]`, the scale `s` and the zero point `z`.
///
/// # Errors
/// Other sizes, data types or devices.
pub fn quantize_codes(
    x: Tensor<4>, channels_last: bool, quantizer: Tensor<1>, bits: BitWidth,
) -> Result<Codes, KernelError> {
    let (x, quantizer) = (x.inner(), quantizer.inner());
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        let found = format!("{:?}", x.dtype());
        return Err(KernelError::DataType { what: "activation", found, expected: "F32, F16 or BF16" });
    }
    check("quantizer", &quantizer, &[2], &x.device())?;
    let dims = x.dims();
    let [batch, rows, columns, channels] = match channels_last {
        true => dims,
        false => [dims[0], dims[2], dims[3], dims[1]],
    };
    let format = CodesFormat { images: batch, channels, positions: rows * columns, channels_last, bits };
    let words = Dispatch::quantize_codes(x.into_dispatch(), quantizer.into_dispatch(), format);
    Ok(Codes { words: Tensor::from_dispatch(words), dims: [batch, rows, columns, channels] })
}

/// Integer convolution: `[batch, rows, columns, outputs]` in f32.
///
/// The sums are those of the codes, exactly; what is made of them in f32 is in the order of the [`IntEpilogue`].
///
/// # Errors
/// Other channels, numbers of scales, shapes or devices than the weight's; a stride or dilation of 0.
pub fn int_conv2d(
    x: &Codes, weight: &IntWeight, options: &IntConv2dOptions, epilogue: &IntEpilogue,
    residual: Option<Tensor<4>>,
) -> Result<Tensor<4>, KernelError> {
    let (format, operands) = operands(x, weight, options, epilogue, residual)?;
    let [multiplier, addend, residual] = operands.map(Tensor::into_dispatch);
    let [rows, columns] = format.shape.output();
    let dims = [x.dims[0], rows, columns, weight.layout.outputs()];
    if dims.contains(&0) {
        // Burn's reshape takes a 0 for "as before".
        return Ok(Tensor::zeros(dims, &weight.words.device()));
    }
    let (codes, weight) = (x.words.clone().into_dispatch(), weight.words.clone().into_dispatch());
    let values = Dispatch::int_conv2d(codes, weight, multiplier, addend, residual, format);
    Ok(Tensor::<1>::from_dispatch(values).reshape(dims))
}

/// [`int_conv2d`], and then [`quantize_codes`] of its result: the input of a next layer, without a float in memory.
///
/// # Errors
/// As both.
pub fn int_conv2d_codes(
    x: &Codes, weight: &IntWeight, options: &IntConv2dOptions, epilogue: &IntEpilogue,
    residual: Option<Tensor<4>>, quantizer: Tensor<1>, bits: BitWidth,
) -> Result<Codes, KernelError> {
    let quantizer = quantizer.inner();
    check("quantizer", &quantizer, &[2], &weight.words.device())?;
    let (format, operands) = operands(x, weight, options, epilogue, residual)?;
    let [multiplier, addend, residual] = operands.map(Tensor::into_dispatch);
    let [rows, columns] = format.shape.output();
    let dims = [x.dims[0], rows, columns, weight.layout.outputs()];
    let (codes, weight) = (x.words.clone().into_dispatch(), weight.words.clone().into_dispatch());
    let quantizer = quantizer.into_dispatch();
    let words =
        Dispatch::int_conv2d_codes(codes, weight, multiplier, addend, residual, quantizer, format, bits);
    Ok(Codes { words: Tensor::from_dispatch(words), dims })
}

/// [`int_conv2d`], and its result as [`int_conv2d_codes`] gives it: for what is both a residual and the input of a next layer.
///
/// # Errors
/// As these.
pub fn int_conv2d_with_codes(
    x: &Codes, weight: &IntWeight, options: &IntConv2dOptions, epilogue: &IntEpilogue,
    residual: Option<Tensor<4>>, quantizer: Tensor<1>, bits: BitWidth,
) -> Result<(Tensor<4>, Codes), KernelError> {
    let quantizer = quantizer.inner();
    check("quantizer", &quantizer, &[2], &weight.words.device())?;
    let (format, operands) = operands(x, weight, options, epilogue, residual)?;
    let [multiplier, addend, residual] = operands.map(Tensor::into_dispatch);
    let [rows, columns] = format.shape.output();
    let dims = [x.dims[0], rows, columns, weight.layout.outputs()];
    let (device, quantizer) = (weight.words.device(), quantizer.into_dispatch());
    let (codes, weight) = (x.words.clone().into_dispatch(), weight.words.clone().into_dispatch());
    let (values, words) =
        Dispatch::int_conv2d_with_codes(codes, weight, multiplier, addend, residual, quantizer, format, bits);
    let codes = Codes { words: Tensor::from_dispatch(words), dims };
    if dims.contains(&0) {
        // Burn's reshape takes a 0 for "as before".
        return Ok((Tensor::zeros(dims, &device), codes));
    }
    Ok((Tensor::<1>::from_dispatch(values).reshape(dims), codes))
}

/// The product of activations in floating point with packed weights: `[rows, outputs]` in f32, for language models
/// (`w4a16`).
///
/// - `x`: `[rows, inputs]`, f32, f16 or bf16.
/// - `scale`: `[scale groups * outputs]`, the scale of each group of each output.
///
/// # Errors
/// Another number of inputs or scales, other data types or devices; the weight of a convolution.
pub fn weight_only_linear(
    x: Tensor<2>, weight: &IntWeight, scale: Tensor<1>,
) -> Result<Tensor<2>, KernelError> {
    let (x, scale, layout) = (x.inner(), scale.inner(), weight.layout);
    if !matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16) {
        let found = format!("{:?}", x.dtype());
        return Err(KernelError::DataType { what: "activation", found, expected: "F32, F16 or BF16" });
    }
    size("taps of the weight and its groups", &[layout.taps(), layout.groups()], &[1, 1])?;
    let [rows, inputs] = x.dims();
    size("inputs", &[inputs], &[layout.inputs()])?;
    same_device("activation", &x.device(), &weight.words.device())?;
    check("scale", &scale, &[layout.scale_groups() * layout.outputs()], &weight.words.device())?;
    if rows == 0 || layout.outputs() == 0 {
        return Ok(Tensor::zeros([rows, layout.outputs()], &weight.words.device()));
    }
    let format = WeightOnlyFormat { rows, weight: layout };
    let (words, scale) = (weight.words.clone().into_dispatch(), scale.into_dispatch());
    let values = Dispatch::weight_only(x.into_dispatch(), words, scale, format);
    Ok(Tensor::<1>::from_dispatch(values).reshape([rows, layout.outputs()]))
}

/// Checks everything that a convolution is given.
fn operands(
    x: &Codes, weight: &IntWeight, options: &IntConv2dOptions, epilogue: &IntEpilogue,
    residual: Option<Tensor<4>>,
) -> Result<(IntConvFormat, [Tensor<1>; 3]), KernelError> {
    let [batch, rows, columns, channels] = x.dims;
    let shape = IntConv2dShape::new(batch, [rows, columns], *options, weight.layout)?;
    size("input channels", &[channels], &[shape.channels()])?;
    let device = weight.words.device();
    same_device("activation", &x.words.device(), &device)?;
    let (outputs, positions) = (weight.layout.outputs(), shape.positions());
    let multiplier = epilogue.multiplier.clone().inner();
    check("multiplier", &multiplier, &[weight.layout.scale_groups() * outputs], &device)?;
    let addend = epilogue.addend.clone().inner();
    let by_position = addend.dims() == [positions * outputs];
    check("addend", &addend, &[if by_position { positions * outputs } else { outputs }], &device)?;
    let has_residual = residual.is_some();
    let residual = match residual {
        None => addend.clone(),
        Some(residual) => {
            let [out_rows, out_columns] = shape.output();
            let residual = residual.inner();
            check("residual", &residual, &[batch, out_rows, out_columns, outputs], &device)?;
            if shape.results() == 0 { addend.clone() } else { residual.reshape([shape.results()]) }
        }
    };
    let format = IntConvFormat {
        shape,
        addend_by_position: by_position && positions > 1,
        residual: has_residual,
        activation: epilogue.activation,
        kernel: weight.kernel,
    };
    Ok((format, [multiplier, addend, residual]))
}

fn check<const D: usize>(
    what: &'static str, tensor: &Tensor<D>, dims: &[usize], device: &Device,
) -> Result<(), KernelError> {
    size(what, &tensor.dims(), dims)?;
    same_device(what, &tensor.device(), device)?;
    require_f32(what, tensor.dtype())
}

fn is_flex(device: &Device) -> bool {
    device.clone().inner() == Device::flex()
}

fn host<E: burn::tensor::Element, const D: usize>(tensor: &Tensor<D, Int>) -> Vec<E> {
    tensor.clone().into_data().try_into_vec().unwrap_or_default()
}

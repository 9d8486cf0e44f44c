//! [`IntWeight`]: weights prepared for integer arithmetic on their device.

use super::ops::IntOps;
use super::states::{CodeState, Narrowed, Stored};
use super::{PackedTensor, addressable, check_scales, read};
use crate::KernelError;
use crate::integer::{GpuKernel, WeightLayout};
use crate::layout::BLOCK;
use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor};
use dr_precision::{BitWidth, Granularity, Signedness};
use std::marker::PhantomData;

/// The weight of a convolution or linear layer, prepared for integer arithmetic on its device, with its scales.
///
/// Prepared codes of the stored width (`IntWeight<Stored>`, or `IntWeight` for short) give those of other widths,
/// `IntWeight<Narrowed>`; see [`IntWeight::at`]. Products take either.
#[derive(Clone, Debug)]
pub struct IntWeight<C = Stored> {
    prepared: Prepared,
    /// `[outputs * scale groups]`.
    scales: Tensor<1>,
    state: PhantomData<C>,
}

/// What kernels read.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub words: Tensor<1, Int>,
    pub layout: WeightLayout,
    pub kernel: Option<GpuKernel>,
}

impl Prepared {
    pub fn device(&self) -> Device {
        self.words.device()
    }

    /// Bytes of the codes, with those of padding.
    pub fn bytes(&self) -> usize {
        self.layout.words() * size_of::<u32>()
    }
}

impl<C: CodeState> IntWeight<C> {
    /// Prepares packed weights, `[outputs, inputs]` or `[outputs, inputs / groups, rows, columns]`, on their device.
    ///
    /// # Errors
    /// Unsigned codes, what [`WeightLayout::new`] refuses, and more codes than the device can address.
    pub fn new(packed: &PackedTensor<C>, groups: usize) -> Result<Self, KernelError> {
        let (spec, device) = (packed.spec(), packed.words().device());
        if spec.signedness == Signedness::Unsigned {
            return Err(KernelError::Unsigned);
        }
        let layout = WeightLayout::new(packed.shape(), groups, spec.bits, spec.granularity)?;
        addressable("prepared weight", &[layout.rows(), layout.blocks(), BLOCK], &device)?;
        let words = Dispatch::prepare_weight(packed.words().clone().into_dispatch(), layout);
        let prepared = Prepared { words: Tensor::from_dispatch(words), layout, kernel: None };
        Ok(Self { scales: by_output(packed.scale().clone(), &layout), prepared, state: PhantomData })
    }

    /// Asks for a kernel, on a GPU, where `None` leaves the choice to what the device reports.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Option<GpuKernel>) -> Self {
        self.prepared.kernel = kernel;
        self
    }

    /// Its shape, width and granularity.
    #[must_use]
    pub fn layout(&self) -> &WeightLayout {
        &self.prepared.layout
    }

    /// Its scales, `[outputs * scale groups]`.
    #[must_use]
    pub fn scales(&self) -> &Tensor<1> {
        &self.scales
    }

    /// Bytes of the prepared codes, with those of padding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.prepared.bytes()
    }

    /// The codes, `[outputs, inputs / groups * taps]`, copied from the device.
    ///
    /// # Errors
    /// [`KernelError::Read`] if the device does not give them.
    pub fn codes(&self) -> Result<Vec<i32>, KernelError> {
        let words = self.prepared.words.clone().into_dispatch();
        let codes = Dispatch::weight_codes(words, self.prepared.layout);
        read("weight codes", Tensor::<1, Int>::from_dispatch(codes))
    }

    pub(super) fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// The scales as kernels read them, `[scale groups * outputs]`, times a gain for each output.
    pub(super) fn scales_by_group(&self, gain: Option<Tensor<1>>) -> Tensor<1> {
        let (outputs, groups) = (self.layout().outputs(), self.layout().scale_groups());
        if outputs == 0 {
            return self.scales.clone(); // Burn's reshape takes a 0 for "as before"
        }
        let scales = self.scales.clone().reshape([outputs, groups]);
        let scales = match gain {
            Some(gain) => scales * gain.reshape([outputs, 1]),
            None => scales,
        };
        scales.transpose().reshape([groups * outputs])
    }
}

impl IntWeight {
    /// The second rounding, by shifts: the codes of `bits` bits, with the scales of that width as [`PackedTensor`] has them:
    /// `[outputs, scale groups]`, or one for the tensor. At the stored width the words are shared.
    ///
    /// Codes that were switched are not switched again:
    ///
    /// ```compile_fail,E0599
    /// use burn::tensor::{Device, Tensor};
    /// use dr_kernels::{IntWeight, quantize_pack};
    /// use dr_precision::{BitWidth, QuantSpec};
    ///
    /// let device = Device::flex();
    /// let scales = Tensor::<1>::ones([2], &device);
    /// let weight = Tensor::<2>::from_data([[0.0, 1.0], [2.0, 3.0]], &device);
    /// let packed = quantize_pack(weight, scales.clone(), None, QuantSpec::weights(BitWidth::B8))?;
    /// let four = IntWeight::new(&packed, 1)?.at(BitWidth::B4, scales.clone())?;
    /// let two = four.at(BitWidth::B2, scales)?; // no method named `at` for `IntWeight<Narrowed>`
    /// # Ok::<(), dr_kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    /// A width above the stored one; another number of scales, scales on another device or of another type than f32.
    pub fn at(&self, bits: BitWidth, scales: Tensor<1>) -> Result<IntWeight<Narrowed>, KernelError> {
        let Prepared { words, layout: stored, kernel } = &self.prepared;
        stored.bits().shift_to(bits)?;
        let (layout, scales) = (stored.at(bits)?, scales.inner());
        let expected = match layout.granularity() {
            Granularity::Tensor => 1,
            _ => layout.outputs() * layout.scale_groups(),
        };
        let shape = [layout.outputs(), layout.inputs(), layout.kernel()[0], layout.kernel()[1]];
        check_scales("scale", &scales, expected, &shape, layout.granularity(), &words.device())?;
        let words = match bits == stored.bits() {
            true => words.clone(),
            false => {
                Tensor::from_dispatch(Dispatch::switch_weight(words.clone().into_dispatch(), *stored, bits))
            }
        };
        let prepared = Prepared { words, layout, kernel: *kernel };
        Ok(IntWeight { prepared, scales: by_output(scales, &layout), state: PhantomData })
    }
}

/// The scale of a whole tensor for each of its outputs; other scales as they are.
fn by_output(scales: Tensor<1>, layout: &WeightLayout) -> Tensor<1> {
    match (layout.granularity(), layout.outputs()) {
        (Granularity::Tensor, 0) => scales.slice(0..0),
        (Granularity::Tensor, outputs) => scales.expand([outputs]),
        _ => scales,
    }
}

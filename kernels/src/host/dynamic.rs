//! Products whose input is quantized as it comes, with scales for every 32 inputs: for language models.

use crate::KernelError;
use crate::cpu::Words;
use crate::cpu::integer::{
    Codes, DotKernel, GroupedJob, RowGroup, group_codes, group_scales, group_words, grouped_products,
    quantize_rows,
};
use crate::error::{product, size};
use crate::integer::WeightLayout;
use crate::layout::BLOCK;
use dr_precision::{BitWidth, Granularity};
use std::fmt;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// The codes `q` of a linear layer at one width, with a scale `s` and an offset `z` for each output and group of
/// inputs: weights are `s q + z`.
/// Cheap to clone. It cannot be switched: a second switch is another rounding.
#[derive(Clone)]
pub struct GroupedWeight {
    layout: WeightLayout,
    words: Arc<Words>,
}

/// The codes of a linear layer at the stored width, where they lie: what a [`GroupedWeight`] of any width is made of.
#[derive(Clone, Debug)]
pub struct GroupedCodes<'a> {
    codes: Codes<'a>,
    layout: WeightLayout,
}

impl<'a> GroupedCodes<'a> {
    /// A byte for each code, `[outputs, inputs]`. They are looked at when a weight is made of them.
    ///
    /// # Errors
    /// Those of [`WeightLayout::new`].
    pub fn from_codes(
        codes: &'a [i8], shape: [usize; 2], bits: BitWidth, granularity: Granularity,
    ) -> Result<Self, KernelError> {
        Ok(Self { codes: Codes::Bytes(codes), layout: WeightLayout::new(&shape, 1, bits, granularity)? })
    }

    /// The same from packed words in the order of [`crate::layout`].
    ///
    /// # Errors
    /// Those of [`WeightLayout::new`].
    pub fn from_packed(
        words: &'a [u32], shape: [usize; 2], bits: BitWidth, granularity: Granularity,
    ) -> Result<Self, KernelError> {
        Ok(Self { codes: Codes::Packed(words), layout: WeightLayout::new(&shape, 1, bits, granularity)? })
    }

    /// The second rounding, by shifts: the codes of `bits` bits, with scales and offsets of that width, `[outputs, groups]`, for each group
    /// of [`GroupedWeight::GROUP`] inputs or a multiple of them (the last group may have fewer): what this weight's granularity says.
    ///
    /// Scales and offsets are rounded: to halves, the largest exponent being that of the largest one of their output, and at up to 4 bits to
    /// bytes, [`ByteFactors`](crate::integer::ByteFactors). [`GroupedWeight::scales`] and [`GroupedWeight::offsets`] are what becomes of them, and stay as
    /// they are when they are given again. (They lie with the codes, which are copied at the stored width, too.)
    ///
    /// # Errors
    /// [`KernelError::Size`], [`KernelError::WordCount`] or [`KernelError::CodeRange`] for codes that are not the weight's, [`KernelError::GroupSize`] for a granularity without such groups,
    /// [`KernelError::Precision`] for a width above the stored one, [`KernelError::ScaleCount`] for another number of scales or
    /// offsets, [`KernelError::GroupScale`] for an infinity, a NaN or a negative scale.
    pub fn with_offsets(
        &self, bits: BitWidth, scales: &[f32], offsets: &[f32],
    ) -> Result<GroupedWeight, KernelError> {
        self.layout.bits().shift_to(bits)?;
        let layout = self.layout.at(bits)?;
        match layout.granularity() {
            Granularity::Group(inputs) if inputs.get() % GroupedWeight::GROUP == 0 => (),
            other => {
                return Err(KernelError::GroupSize { found: other.to_string(), unit: GroupedWeight::GROUP });
            }
        }
        for (what, values) in [("scale", scales), ("offset", offsets)] {
            let expected = layout.outputs() * layout.scale_groups();
            if values.len() != expected {
                let (found, shape) = (values.len(), vec![layout.outputs(), layout.inputs()]);
                let granularity = layout.granularity().to_string();
                return Err(KernelError::ScaleCount { what, found, expected, shape, granularity });
            }
            let usable = |value: f32| value.is_finite() && (value >= 0.0 || what == "offset");
            if let Some(&found) = values.iter().find(|&&value| !usable(value)) {
                return Err(KernelError::GroupScale { what, found: found.to_string() });
            }
        }
        let words = group_words(self.codes, &self.layout, &layout, [scales, offsets])?;
        Ok(GroupedWeight { layout, words: Arc::new(words) })
    }
}

impl GroupedWeight {
    /// Inputs that share a scale in [`Rows`], and in a weight, where multiples of them may, too.
    pub const GROUP: usize = BLOCK;

    /// The smallest groups: a granularity for [`GroupedCodes::from_codes`].
    pub const GRANULARITY: Granularity = match std::num::NonZeroUsize::new(BLOCK) {
        Some(group) => Granularity::Group(group),
        None => Granularity::Tensor,
    };

    /// Shape, width and granularity.
    #[must_use]
    pub const fn layout(&self) -> &WeightLayout {
        &self.layout
    }

    /// The width of the codes.
    #[must_use]
    pub const fn bits(&self) -> BitWidth {
        self.layout.bits()
    }

    /// Bytes of codes, scales and offsets, with those of padding.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val::<[u32]>(&self.words)
    }

    /// The codes, `[outputs, inputs]`.
    #[must_use]
    pub fn codes(&self) -> Vec<i32> {
        group_codes(&self.words, &self.layout)
    }

    /// The scales, `[outputs, groups]`, as products take them: rounded.
    #[must_use]
    pub fn scales(&self) -> Vec<f32> {
        let [scales, _] = group_scales(&self.words, &self.layout);
        scales
    }

    /// The offsets, `[outputs, groups]`, as products take them: rounded.
    #[must_use]
    pub fn offsets(&self) -> Vec<f32> {
        let [_, offsets] = group_scales(&self.words, &self.layout);
        offsets
    }

    /// Takes some milliseconds for each megabyte to lay many codes out for the fastest reading: for weights that stay.
    pub fn settle(&self) {
        self.words.settle();
    }
}

impl fmt::Debug for GroupedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GroupedWeight").field(&self.layout).finish()
    }
}

/// Rows of values, quantized as they come: for each row and every 32 inputs (the last group may have fewer) signed codes `c` of 8 bits
/// and a scale `t = max |x| / 127`, so that `x` is near `t c`. One input is quantized once for all products that take it.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// `[rows, groups]`.
    groups: Vec<RowGroup>,
    rows: usize,
    inputs: usize,
}

impl Rows {
    /// No rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Quantizes `x`, `[rows, inputs]`, instead of what was there, in the same memory if it is enough. Codes are rounded half to even;
    /// those of a NaN are 0, and so are those of infinities, whose scale is infinite.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of values, [`KernelError::TooLarge`] for sizes that overflow; then nothing has
    /// changed.
    pub fn quantize(&mut self, x: &[f32], rows: usize, inputs: usize) -> Result<(), KernelError> {
        size("input of a product", &[x.len()], &[product("input of a product", &[rows, inputs])?])?;
        let groups = product("input of a product", &[rows, inputs.div_ceil(BLOCK), size_of::<RowGroup>()])?;
        self.groups.resize(groups / size_of::<RowGroup>(), RowGroup::default());
        (self.rows, self.inputs) = (rows, inputs);
        quantize_rows(x, inputs, &mut self.groups);
        Ok(())
    }

    /// How many there are.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of each.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// The codes, `[rows, inputs]`.
    #[must_use]
    pub fn codes(&self) -> Vec<i8> {
        let rows = self.groups.chunks(self.inputs.div_ceil(BLOCK).max(1));
        rows.flat_map(|row| row.iter().flat_map(|group| group.codes).take(self.inputs)).collect()
    }

    /// The scales, `[rows, groups]`.
    #[must_use]
    pub fn scales(&self) -> Vec<f32> {
        self.groups.iter().map(|group| group.scale).collect()
    }
}

/// A linear layer on quantized rows. With codes `q`, scales `s` and offsets `z` of the weight, codes `c` and scales `t` of a row, a result is
///
/// ```text
/// bias + sum over groups of t * (s * sum(q c) + z * sum(c))
/// ```
///
/// The sums of a group are exact; the rest is `f32`.
///
/// ```
/// use dr_kernels::host::{DynamicProduct, GroupedCodes, GroupedWeight, Rows};
/// use dr_precision::BitWidth;
///
/// // Two outputs of three inputs, at 8 bits; then at 6.
/// let codes = [127, -64, 0, 1, 2, -128];
/// let stored = GroupedCodes::from_codes(&codes, [2, 3], BitWidth::B8, GroupedWeight::GRANULARITY)?;
/// let weight = stored.with_offsets(BitWidth::B6, &[0.5, 0.25], &[1.0, 0.0])?;
/// assert_eq!(weight.codes(), [31, -16, 0, 0, 0, -32]);
/// let product = DynamicProduct::new(weight, Some(&[10.0, 0.0]))?;
/// let (mut rows, mut out) = (Rows::new(), [0.0; 2]);
/// rows.quantize(&[127.0, -2.0, 1.0], 1, 3)?;
/// product.run(&rows, &mut out)?;
/// assert_eq!(out, [10.0 + 0.5 * (127.0 * 31.0 + 2.0 * 16.0) + 1.0 * 126.0, 0.25 * -32.0]);
/// # Ok::<(), dr_kernels::KernelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DynamicProduct {
    weight: GroupedWeight,
    bias: Option<Vec<f32>>,
}

impl DynamicProduct {
    /// A product with `weight`; `bias` is `[outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of biases.
    pub fn new(weight: GroupedWeight, bias: Option<&[f32]>) -> Result<Self, KernelError> {
        if let Some(bias) = bias {
            size("bias", &[bias.len()], &[weight.layout.outputs()])?;
        }
        Ok(Self { weight, bias: bias.map(<[f32]>::to_vec) })
    }

    /// Its weight.
    #[must_use]
    pub const fn weight(&self) -> &GroupedWeight {
        &self.weight
    }

    /// What is added to each output.
    #[must_use]
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Bytes that a pass reads: the weight and the bias.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.weight.bytes() + self.bias.as_deref().map_or(0, size_of_val)
    }

    /// Computes the product of `rows` to `out`, `[rows, outputs]`.
    ///
    /// # Errors
    /// [`KernelError::Size`] for another number of inputs or results.
    pub fn run(&self, rows: &Rows, out: &mut [f32]) -> Result<(), KernelError> {
        Self::run_together(rows, &mut [(self, out)])
    }

    /// Computes several products of the same rows in one loop of all threads, each to its own `[rows, outputs]`: those of one input (the
    /// queries, keys and values of a language model) need not wait for each other.
    ///
    /// # Errors
    /// Those of [`DynamicProduct::run`]; then nothing has been written.
    pub fn run_together(rows: &Rows, jobs: &mut [(&Self, &mut [f32])]) -> Result<(), KernelError> {
        Self::run_on(DotKernel::detect(), rows, jobs)
    }

    pub(super) fn run_on(
        kernel: DotKernel, rows: &Rows, jobs: &mut [(&Self, &mut [f32])],
    ) -> Result<(), KernelError> {
        for (of, out) in &*jobs {
            let layout = of.weight.layout;
            size("inputs of a product", &[rows.inputs], &[layout.inputs()])?;
            let results = product("output of a product", &[rows.rows, layout.outputs()])?;
            size("output of a product", &[out.len()], &[results])?;
        }
        let jobs = jobs.iter_mut().map(|(of, out)| GroupedJob {
            words: &of.weight.words,
            layout: &of.weight.layout,
            bias: of.bias.as_deref(),
            out,
        });
        grouped_products(kernel, &rows.groups, rows.rows, jobs);
        Ok(())
    }
}

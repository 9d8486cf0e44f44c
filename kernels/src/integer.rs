//! What the integer operations are told besides their tensors: shapes, and how weights are prepared for them.
//!
//! # Codes
//!
//! Activations are unsigned codes, a byte each, `[batch, rows, columns, channels]` with the channels padded with zeros to a
//! multiple of four: four of them make a word of 32 bits, the first in the lowest byte. A matrix `[m, k]` is the case of one
//! row and one column.
//!
//! # Prepared weights
//!
//! The weights of an output channel, a *row*, are put into the order in which the products are summed: for each group that
//! shares a scale, for each tap of the kernel, the input channels in *steps* of four. Each step has one tap and
//! consecutive channels; what is missing to four, and to whole blocks of 8 steps at the end of a scale group, is zero.
//! ([`WeightLayout::columns`] lists the order.) In a depthwise convolution a step is four taps. Rows are padded to a multiple
//! of 16 in every convolution group. From this order there are two ways into memory:
//!
//! - *rows*, for GPUs: rows follow each other, packed as [`crate::layout`] says.
//! - *panels*, for CPUs: 16 rows make a panel, which is a sequence of blocks of 16 rows x 8 steps: 512 codes. In `b` bits
//!   a block is `b` vectors of 64 bytes, the planes of [`crate::layout::planes`] one after the other. Byte `4 r + j` of a
//!   vector belongs to row `r` and code `j` of a step. A plane of `p` bits has `p` vectors; vector `v` has in its bytes' lowest `p`
//!   bits the step `v * 8 / p`, in the next `p` bits the step after that, and so on. Codes of less than 8 bits have
//!   [`offset`] added, so that they are not negative. So whatever the width, shifts and masks, and no extension of signs, give the
//!   operand of one multiply-add instruction.

use crate::error::product;
use crate::{KernelError, layout::BLOCK};
use bytemuck::{Pod, Zeroable};
use dr_precision::{BitWidth, Granularity};
use half::bf16;
use std::fmt;

/// Rows of a panel.
pub const PANEL: usize = 16;

/// Codes that are multiplied and added by one instruction, in each lane.
pub const STEP: usize = 4;

/// Steps of a block.
pub const BLOCK_STEPS: usize = BLOCK / STEP;

/// What is added to the codes in panels: `2^(b-1)`, or nothing to those of 8 bits.
#[must_use]
pub const fn offset(bits: BitWidth) -> i32 {
    if bits.bits() == 8 { 0 } else { 1 << (bits.bits() - 1) }
}

/// Channels padded to whole words; `usize::MAX` for more than can be.
#[must_use]
pub const fn padded_channels(channels: usize) -> usize {
    channels.div_ceil(STEP).saturating_mul(STEP)
}

/// What an integer layer does to its results last, before they become codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// Values below zero become zero.
    Relu,
    /// The same, and values above 6 become 6.
    Relu6,
    /// Values below zero become zero, and those above 1 become 1.
    Unit,
    /// `x * clamp(x / 6 + 1/2, 0, 1)`
    HardSwish,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x / (1 + exp(-x))`
    Silu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Relu, Self::Relu6, Self::Unit, Self::HardSwish, Self::Sigmoid, Self::Silu];

    /// The value after it. NaN becomes the lowest value of the activations that have one, and stays NaN otherwise.
    #[must_use]
    #[inline(always)]
    pub fn apply(self, value: f32) -> f32 {
        match self {
            Self::None => value,
            Self::Relu => positive(value),
            Self::Relu6 => at_most(positive(value), 6.0),
            Self::Unit => unit(value),
            Self::HardSwish => value * unit(value * (1.0 / 6.0) + 0.5),
            Self::Sigmoid => 1.0 / (1.0 + exp(-value)),
            Self::Silu => value / (1.0 + exp(-value)),
        }
    }
}

#[inline(always)]
fn positive(value: f32) -> f32 {
    if value > 0.0 { value } else { 0.0 }
}

#[inline(always)]
fn at_most(value: f32, limit: f32) -> f32 {
    if value < limit { value } else { limit }
}

#[inline(always)]
fn unit(value: f32) -> f32 {
    at_most(positive(value), 1.0)
}

/// The exponential, to two units in the last place, without branches; no infinities, and zeros below -64: beside a one such a number is none, and its
/// products with others may have fewer digits, with which machines are slow.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -64.0;
    const HIGHEST: f32 = 88.0;
    /// The last digit of sums with it is one.
    const WHOLE: f32 = 1.5 * (1 << 23) as f32;
    /// ln 2 as a sum, so that products of the first part with small integers are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// 1 / n!, from the highest.
    const SERIES: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let at = if x > HIGHEST { HIGHEST } else { x };
    let whole = at * std::f32::consts::LOG2_E + WHOLE;
    let power = f32::from_bits(whole.to_bits().wrapping_add(127) << 23);
    let whole = whole - WHOLE;
    let rest = at - whole * LN_2[0] - whole * LN_2[1];
    let series = SERIES.iter().fold(0.0, |sum, factor| sum * rest + factor);
    let value = (series * rest * rest + rest + 1.0) * power;
    if at < LOWEST { 0.0 } else { value }
}

/// The weight of a convolution `[outputs, inputs / groups, kernel rows, kernel columns]`, or of a linear layer `[outputs,
/// inputs]` with a kernel of one tap, and how its codes are prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightLayout {
    outputs: usize,
    inputs: usize,
    kernel: [usize; 2],
    groups: usize,
    bits: BitWidth,
    granularity: Granularity,
}

/// Codes of an output channel, at most: lists of their order stay small.
const MOST_COLUMNS: usize = 1 << 24;

impl WeightLayout {
    /// A weight of this shape: two axes, or four.
    ///
    /// # Errors
    /// - [`KernelError::WeightShape`] for another number of axes, or groups that do not divide the outputs;
    /// - [`KernelError::Zero`] for a kernel without taps;
    /// - [`KernelError::TooLarge`] for more than 2^24 codes of an output, or as many taps of all its scale groups, or more
    ///   codes than can be addressed;
    /// - [`KernelError::DepthwiseGroups`] for a kernel of a depthwise convolution with several scales;
    /// - [`KernelError::SumOverflow`] for sums that may overflow 32 bits.
    pub fn new(
        shape: &[usize], groups: usize, bits: BitWidth, granularity: Granularity,
    ) -> Result<Self, KernelError> {
        let (outputs, inputs, kernel) = match *shape {
            [outputs, inputs] => (outputs, inputs, [1, 1]),
            [outputs, inputs, rows, cols] => (outputs, inputs, [rows, cols]),
            _ => return Err(KernelError::WeightShape { shape: shape.to_vec(), groups }),
        };
        if groups == 0 || outputs % groups != 0 {
            return Err(KernelError::WeightShape { shape: shape.to_vec(), groups });
        }
        if kernel.contains(&0) {
            return Err(KernelError::Zero("kernel"));
        }
        let too_large = || KernelError::TooLarge { what: "weight", sizes: shape.to_vec() };
        // Each tap has a sum of weights, if only of none.
        let cols = product("weight", &[inputs.max(1), kernel[0], kernel[1]])?;
        if cols > MOST_COLUMNS {
            return Err(too_large());
        }
        product("input channels", &[inputs, groups])?.checked_next_multiple_of(STEP).ok_or_else(too_large)?;
        let layout = Self { outputs, inputs, kernel, groups, bits, granularity };
        if product("weight", &[layout.scale_groups(), layout.taps()])? > MOST_COLUMNS {
            return Err(too_large());
        }
        // A row of padded codes: each scale group fills the step of each of its taps, and its last block.
        let group = product("weight", &[STEP, layout.taps().min(layout.run())])? + BLOCK;
        let row =
            product("weight", &[layout.scale_groups(), group])?.checked_add(cols).ok_or_else(too_large)?;
        let rows = if layout.is_depthwise() { 1 } else { groups };
        let rows = product("weight", &[rows, PANEL])?.checked_add(outputs).ok_or_else(too_large)?;
        if product("weight", &[rows, row])? > isize::MAX as usize {
            return Err(too_large());
        }
        if let Granularity::Group(run) = granularity
            && layout.is_depthwise()
            && run.get() < cols
        {
            return Err(KernelError::DepthwiseGroups { run: run.get(), taps: cols });
        }
        layout.at(bits)
    }

    /// The same at another width.
    ///
    /// # Errors
    /// [`KernelError::SumOverflow`] for sums that may overflow 32 bits.
    pub fn at(mut self, bits: BitWidth) -> Result<Self, KernelError> {
        self.bits = bits;
        let (found, largest) = (self.longest_sum(), self.largest_sum());
        if found > largest {
            return Err(KernelError::SumOverflow { found, largest, bits: bits.bits() });
        }
        Ok(self)
    }

    /// Output channels.
    #[must_use]
    pub const fn outputs(&self) -> usize {
        self.outputs
    }

    /// Input channels of one group.
    #[must_use]
    pub const fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows and columns of the kernel, each at least 1.
    #[must_use]
    pub const fn kernel(&self) -> [usize; 2] {
        self.kernel
    }

    /// Groups of channels that have nothing to do with each other; at least 1, and divides the outputs.
    #[must_use]
    pub const fn groups(&self) -> usize {
        self.groups
    }

    /// Width of the codes.
    #[must_use]
    pub const fn bits(&self) -> BitWidth {
        self.bits
    }

    /// Which of them share a scale.
    #[must_use]
    pub const fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Taps of the kernel.
    #[must_use]
    pub const fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Codes of an output channel.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.inputs * self.taps()
    }

    /// Whether every channel is a group.
    #[must_use]
    pub const fn is_depthwise(&self) -> bool {
        self.inputs == 1 && self.groups > 1 && self.groups == self.outputs
    }

    /// Codes of a row that share a scale; the last run may be shorter.
    #[must_use]
    pub fn run(&self) -> usize {
        match self.granularity {
            Granularity::Group(n) => n.get().min(self.cols()).max(1),
            _ => self.cols().max(1),
        }
    }

    /// Scale groups of a row; at least 1.
    #[must_use]
    pub fn scale_groups(&self) -> usize {
        self.cols().div_ceil(self.run()).max(1)
    }

    /// Codes that are summed in 32 bits.
    #[must_use]
    pub fn longest_sum(&self) -> usize {
        self.cols().min(self.run())
    }

    /// How many codes can be summed in 32 bits whatever they are: the products of 8-bit activations with weights of `b`
    /// bits are at most `255 * 2^(b-1)`. For 8 bits: 65,793.
    #[must_use]
    pub const fn largest_sum(&self) -> usize {
        i32::MAX as usize / (255 << (self.bits.bits() - 1))
    }

    /// Which column of the weight each code of a prepared row is; `None` where there is none.
    #[must_use]
    pub fn columns(&self) -> Vec<Option<usize>> {
        let (taps, cols, run) = (self.taps(), self.cols(), self.run());
        let mut order = vec![];
        if self.is_depthwise() {
            order.extend((0..cols).map(Some));
        } else {
            for start in (0..cols).step_by(run) {
                let end = cols.min(start + run);
                for tap in 0..taps {
                    // Column `channel * taps + tap`.
                    let first = start.saturating_sub(tap).div_ceil(taps);
                    let last = end.saturating_sub(tap).div_ceil(taps);
                    order.extend((first..last).map(|channel| Some(channel * taps + tap)));
                    order.resize(order.len().next_multiple_of(STEP), None);
                }
                order.resize(order.len().next_multiple_of(BLOCK), None);
            }
        }
        order.resize(order.len().next_multiple_of(BLOCK), None);
        order
    }

    /// Blocks of 32 codes of each row, by scale group.
    #[must_use]
    pub fn group_blocks(&self) -> Vec<usize> {
        let (taps, cols, run) = (self.taps(), self.cols(), self.run());
        if self.is_depthwise() {
            return vec![cols.div_ceil(BLOCK)];
        }
        let blocks = |start: usize| {
            let end = cols.min(start + run);
            let channels = |tap: usize| {
                end.saturating_sub(tap).div_ceil(taps) - start.saturating_sub(tap).div_ceil(taps)
            };
            (0..taps).map(|tap| channels(tap).div_ceil(STEP)).sum::<usize>().div_ceil(BLOCK_STEPS)
        };
        let blocks: Vec<usize> = (0..cols).step_by(run).map(blocks).collect();
        if blocks.is_empty() { vec![0] } else { blocks }
    }

    /// Blocks of 32 codes of a row.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.group_blocks().iter().sum()
    }

    /// Panels of one convolution group. All channels of a depthwise convolution lie as those of one group.
    #[must_use]
    pub const fn group_panels(&self) -> usize {
        match self.is_depthwise() {
            true => self.outputs.div_ceil(PANEL),
            false => (self.outputs / self.groups).div_ceil(PANEL),
        }
    }

    /// Rows with those of padding.
    #[must_use]
    pub const fn rows(&self) -> usize {
        let groups = if self.is_depthwise() { 1 } else { self.groups };
        groups * self.group_panels() * PANEL
    }

    /// The output channel that a row is; `None` for rows of padding, and where there is no row.
    #[must_use]
    pub const fn output_of(&self, row: usize) -> Option<usize> {
        let outputs = if self.is_depthwise() { self.outputs } else { self.outputs / self.groups };
        let rows = self.group_panels() * PANEL;
        if row < self.rows() && row % rows < outputs { Some(row / rows * outputs + row % rows) } else { None }
    }

    /// Codes with those of padding.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.rows() * self.blocks() * BLOCK
    }

    /// Words of prepared weights.
    #[must_use]
    pub fn words(&self) -> usize {
        self.words_at(self.bits)
    }

    /// The same at another width.
    pub(crate) fn words_at(&self, bits: BitWidth) -> usize {
        self.elements() / BLOCK * bits.bits() as usize
    }
}

/// What the scales and the offsets of the groups of an output are multiples of where each is a byte: scales of the squares of 0 to 255, offsets of -127 to 127. A
/// kernel holds those of weights of [up to 4 bits](Self::WIDEST) like that, and so does a file.
///
/// Factors have 8 significant bits, so that products with them are exact. The factors and the bytes of [`values`](Self::values) are the same again.
///
/// ```
/// use dr_kernels::integer::ByteFactors;
///
/// let factors = ByteFactors::of([[0.02, -0.1], [0.01, 0.05]]);
/// let [scale, offset] = factors.values(factors.bytes([0.01, 0.05]));
/// assert!((scale - 0.01).abs() < 0.02 / 253.0 && (offset - 0.05).abs() < 0.1 / 253.0);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct ByteFactors {
    /// Of scales.
    pub scale: f32,
    /// Of offsets.
    pub offset: f32,
}

impl ByteFactors {
    /// The widest codes whose scales and offsets are bytes.
    pub const WIDEST: BitWidth = BitWidth::B4;

    const LARGEST_SCALE: f32 = 255.0 * 255.0;
    const LARGEST_OFFSET: f32 = 127.0;

    /// Those of the groups of an output, `[scale, offset]` each.
    #[must_use]
    pub fn of(groups: impl IntoIterator<Item = [f32; 2]>) -> Self {
        let larger = |[a, b]: [f32; 2], [scale, offset]: [f32; 2]| [a.max(scale.abs()), b.max(offset.abs())];
        let [scale, offset] = groups.into_iter().fold([0.0; 2], larger);
        let short = |value| bf16::from_f32(value).to_f32();
        Self { scale: short(scale / Self::LARGEST_SCALE), offset: short(offset / Self::LARGEST_OFFSET) }
    }

    /// The nearest bytes: the root of a scale as a multiple of its factor, and an offset as a multiple of its own.
    #[must_use]
    pub fn bytes(self, [scale, offset]: [f32; 2]) -> [u8; 2] {
        let part = |value: f32, factor: f32| if factor > 0.0 { value / factor } else { 0.0 };
        let offset = part(offset, self.offset).round().clamp(-Self::LARGEST_OFFSET, Self::LARGEST_OFFSET);
        [part(scale, self.scale).sqrt().round() as u8, (offset as i8).cast_unsigned()]
    }

    /// The scale and the offset that bytes stand for.
    #[must_use]
    pub fn values(self, [root, offset]: [u8; 2]) -> [f32; 2] {
        let root = f32::from(root);
        [root * root * self.scale, f32::from(offset.cast_signed()) * self.offset]
    }
}

/// How a kernel moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dOptions {
    /// Steps along rows and columns.
    pub stride: [usize; 2],
    /// Rows and columns of zeros on each side.
    pub padding: [usize; 2],
    /// Distance of taps.
    pub dilation: [usize; 2],
}

impl Default for Conv2dOptions {
    /// Steps of 1, no padding.
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], dilation: [1, 1] }
    }
}

/// Sizes of an integer convolution, besides those of its weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IntConv2dShape {
    batch: usize,
    input: [usize; 2],
    options: Conv2dOptions,
    weight: WeightLayout,
}

impl IntConv2dShape {
    /// A convolution of `batch` images of `input` rows and columns.
    ///
    /// # Errors
    /// [`KernelError::Zero`] for a stride, dilation or kernel of 0, [`KernelError::TooLarge`] for sizes that overflow.
    pub fn new(
        batch: usize, input: [usize; 2], options: Conv2dOptions, weight: WeightLayout,
    ) -> Result<Self, KernelError> {
        let Conv2dOptions { stride, padding, dilation } = options;
        for (what, sizes) in [("stride", stride), ("dilation", dilation)] {
            if sizes.contains(&0) {
                return Err(KernelError::Zero(what));
            }
        }
        let mut padded = [0; 2];
        for axis in 0..2 {
            let size = padding[axis].checked_mul(2).and_then(|padding| padding.checked_add(input[axis]));
            let reach =
                (weight.kernel[axis] - 1).checked_mul(dilation[axis]).and_then(|reach| reach.checked_add(1));
            let (Some(size), Some(_)) = (size, reach) else {
                let sizes = vec![input[axis], padding[axis], weight.kernel[axis], dilation[axis]];
                return Err(KernelError::TooLarge { what: "input, padding, kernel and dilation", sizes });
            };
            padded[axis] = size;
        }
        let shape = Self { batch, input, options, weight };
        let pixel = padded_channels(shape.channels());
        product("padded input", &[batch.max(1), padded[0], padded[1], pixel])?;
        // Images are copied with their padding.
        if padding != [0, 0]
            && u32::try_from(product("padded image", &[padded[0], padded[1], pixel])?).is_err()
        {
            let sizes = vec![padded[0], padded[1], pixel];
            return Err(KernelError::TooLarge { what: "padded image", sizes });
        }
        // Steps of a window count in 32 bits.
        let reach = (weight.kernel[0] - 1) * dilation[0] + 1;
        let window = product("window of the kernel", &[reach, padded[1], pixel])?;
        if u32::try_from(window).is_err() && weight.taps() > 1 {
            let sizes = vec![reach, padded[1], pixel];
            return Err(KernelError::TooLarge { what: "window of the kernel", sizes });
        }
        let [rows, columns] = shape.output();
        product("output", &[batch.max(1), rows, columns, padded_channels(weight.outputs), size_of::<f32>()])?;
        Ok(shape)
    }

    /// The product of a matrix `[rows, inputs]` with a weight `[outputs, inputs]`, transposed.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] for sizes that overflow.
    pub fn gemm(rows: usize, weight: WeightLayout) -> Result<Self, KernelError> {
        Self::new(rows, [1, 1], Conv2dOptions::default(), weight)
    }

    /// Images.
    #[must_use]
    pub const fn batch(&self) -> usize {
        self.batch
    }

    /// Rows and columns of an input.
    #[must_use]
    pub const fn input(&self) -> [usize; 2] {
        self.input
    }

    /// How the kernel moves; strides and dilations are at least 1.
    #[must_use]
    pub const fn options(&self) -> Conv2dOptions {
        self.options
    }

    /// The weight.
    #[must_use]
    pub const fn weight(&self) -> &WeightLayout {
        &self.weight
    }

    /// Input channels.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.weight.inputs * self.weight.groups
    }

    /// Rows and columns of an output; 0 if the kernel does not fit.
    #[must_use]
    pub const fn output(&self) -> [usize; 2] {
        [self.output_size(0), self.output_size(1)]
    }

    const fn output_size(&self, axis: usize) -> usize {
        let Conv2dOptions { stride, padding, dilation } = self.options;
        let reach = (self.weight.kernel[axis] - 1) * dilation[axis];
        match (self.input[axis] + 2 * padding[axis]).checked_sub(reach + 1) {
            Some(room) => room / stride[axis] + 1,
            None => 0,
        }
    }

    /// Output positions of an image.
    #[must_use]
    pub const fn positions(&self) -> usize {
        let [rows, cols] = self.output();
        rows * cols
    }

    /// Bytes of the codes.
    #[must_use]
    pub const fn code_bytes(&self) -> usize {
        self.batch * self.input[0] * self.input[1] * padded_channels(self.channels())
    }

    /// Sizes of the result, `[batch, rows, columns, output channels]`.
    #[must_use]
    pub const fn result(&self) -> [usize; 4] {
        let [rows, columns] = self.output();
        [self.batch, rows, columns, self.weight.outputs]
    }

    /// Values of the result.
    #[must_use]
    pub const fn results(&self) -> usize {
        self.batch * self.positions() * self.weight.outputs
    }

    /// The input position that tap `tap` of output position `[row, column]` reads; `None` in the padding.
    #[must_use]
    pub fn tapped(&self, [row, column]: [usize; 2], tap: usize) -> Option<[usize; 2]> {
        let cols = self.weight.kernel[1];
        Some([self.tapped_along(0, row, tap / cols)?, self.tapped_along(1, column, tap % cols)?])
    }

    /// The same along an axis: the row of the input that a row of the kernel reads for a row of the output, or the column.
    #[must_use]
    pub(crate) fn tapped_along(&self, axis: usize, output: usize, tap: usize) -> Option<usize> {
        let Conv2dOptions { stride, padding, dilation } = self.options;
        let padded = output.checked_mul(stride[axis])?.checked_add(tap.checked_mul(dilation[axis])?)?;
        padded.checked_sub(padding[axis]).filter(|&at| at < self.input[axis])
    }
}

/// How activations become codes: unsigned ones of `bits` bits, with one scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeQuantizer {
    /// The width.
    pub bits: BitWidth,
    /// The scale.
    pub scale: f32,
    /// The zero point, as a float: the value of code 0.
    pub zero_point: f32,
}

/// Which unit of a GPU makes which results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tiling {
    /// Each unit reads what it needs, by itself.
    Direct,
    /// A cube of units shares what it reads.
    Tiled,
    /// A cube of units shares each sum, for few positions.
    Split,
}

/// How a GPU multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dot {
    /// One byte after the other.
    Multiply,
    /// Four signed bytes at once.
    Dp4a,
    /// Tiles of 16 x 8 sums of 32 bytes, by the units of a plane together: tensor cores.
    Mma,
}

impl Dot {
    /// Whether both factors are signed.
    #[must_use]
    pub const fn is_signed(self) -> bool {
        matches!(self, Self::Dp4a)
    }
}

/// A kernel of integer convolutions on GPUs. Which one runs is decided by what the device reports; tests and benchmarks may ask
/// for one, and get the chosen one if the device does not have the instruction. Depthwise convolutions have one of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpuKernel {
    /// Who computes what.
    pub tiling: Tiling,
    /// With which instruction.
    pub dot: Dot,
}

impl GpuKernel {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self { tiling: Tiling::Direct, dot: Dot::Multiply },
        Self { tiling: Tiling::Direct, dot: Dot::Dp4a },
        Self { tiling: Tiling::Tiled, dot: Dot::Multiply },
        Self { tiling: Tiling::Tiled, dot: Dot::Dp4a },
        Self { tiling: Tiling::Tiled, dot: Dot::Mma },
        Self { tiling: Tiling::Split, dot: Dot::Multiply },
        Self { tiling: Tiling::Split, dot: Dot::Dp4a },
        Self { tiling: Tiling::Split, dot: Dot::Mma },
    ];
}

impl fmt::Display for GpuKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tiling = match self.tiling {
            Tiling::Direct => "direct",
            Tiling::Tiled => "tiled",
            Tiling::Split => "split",
        };
        let dot = match self.dot {
            Dot::Multiply => "plain",
            Dot::Dp4a => "dp4a",
            Dot::Mma => "mma",
        };
        write!(f, "{tiling}-{dot}")
    }
}

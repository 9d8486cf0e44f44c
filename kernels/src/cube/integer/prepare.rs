//! Weights: from packed codes to rows in the order in which they are multiplied, and what is read from such rows.

use super::super::launch::{empty, index, one_unit_each, upload};
use super::super::pack::{code_at, put, sign_extend, write_span};
use crate::integer::WeightLayout;
use crate::layout::{BLOCK, packed_words};
use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use dr_precision::BitWidth;

/// A [`WeightLayout`] in a kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Rows {
    outputs: u32,
    /// Codes of an output.
    cols: u32,
    taps: u32,
    /// Input channels of a group of channels.
    inputs: u32,
    /// Codes of an output that share a scale.
    run: u32,
    /// Outputs of a group of channels.
    group_outputs: u32,
    /// The same in rows, with those of padding.
    group_rows: u32,
    /// Blocks of a row.
    row_blocks: u32,
    /// Blocks of all rows.
    blocks: u32,
    /// Blocks of the packed codes.
    packed_blocks: u32,
}

fn rows(layout: &WeightLayout) -> RowsLaunch {
    let channel_groups = if layout.is_depthwise() { 1 } else { layout.groups() };
    let packed = packed_words(layout.outputs() * layout.cols(), layout.bits());
    RowsLaunch {
        outputs: index(layout.outputs()),
        cols: index(layout.cols()),
        taps: index(layout.taps()),
        inputs: index(layout.inputs()),
        run: index(layout.run()),
        group_outputs: index(layout.outputs() / channel_groups),
        group_rows: index(layout.rows() / channel_groups),
        row_blocks: index(layout.blocks()),
        blocks: index(layout.blocks() * layout.rows()),
        packed_blocks: index(packed / layout.bits().bits() as usize),
    }
}

/// The column of each code of a row; [`u32::MAX`] for codes of padding.
fn columns(layout: &WeightLayout) -> Vec<u32> {
    layout.columns().into_iter().map(|column| column.map_or(u32::MAX, index)).collect()
}

/// Where the code of each column is in a row.
fn places(layout: &WeightLayout) -> Vec<u32> {
    let mut places = vec![0; layout.cols()];
    for (place, column) in layout.columns().into_iter().enumerate() {
        if let Some(column) = column {
            places[column] = index(place);
        }
    }
    places
}

/// A unit per block of a row.
#[cube(launch)]
fn prepare_kernel(packed: &[u32], columns: &[u32], out: &mut [u32], rows: Rows, #[comptime] bits: BitWidth) {
    let at = ABSOLUTE_POS;
    if at >= rows.blocks as usize {
        terminate!();
    }
    let (row, first) = (at as u32 / rows.row_blocks, at as u32 % rows.row_blocks * comptime!(BLOCK as u32));
    let (channel_group, row) = (row / rows.group_rows, row % rows.group_rows);
    let start = (channel_group * rows.group_outputs + row) * rows.cols;
    let mut codes = Array::<u32>::new(comptime!(bits.bits() as usize));
    #[unroll]
    for word in 0..comptime!(bits.bits() as usize) {
        codes[word] = 0;
    }
    if row < rows.group_outputs {
        #[unroll]
        for i in 0..BLOCK {
            let column = columns[(first + comptime!(i as u32)) as usize];
            if column != u32::MAX {
                put(&mut codes, code_at(packed, rows.packed_blocks, start + column, bits), i, BLOCK, bits);
            }
        }
    }
    write_span(&codes, out, at, rows.blocks as usize, BLOCK, bits);
}

#[cube]
impl Rows {
    /// The code of a column of an output.
    fn code(
        &self, words: &[u32], places: &[u32], output: u32, column: u32, #[comptime] bits: BitWidth,
    ) -> i32 {
        let row = output / self.group_outputs * self.group_rows + output % self.group_outputs;
        let at = row * self.row_blocks * comptime!(BLOCK as u32) + places[column as usize];
        sign_extend(code_at(words, self.blocks, at, bits), bits)
    }
}

/// A unit per code.
#[cube(launch)]
fn codes_kernel(words: &[u32], places: &[u32], out: &mut [i32], rows: Rows, #[comptime] bits: BitWidth) {
    let i = ABSOLUTE_POS as u32;
    if i >= rows.outputs * rows.cols {
        terminate!();
    }
    out[i as usize] = rows.code(words, places, i / rows.cols, i % rows.cols, bits);
}

/// `scale * code`, rounded once whether or not the device fuses multiply and add, here and in a sum of such products: both
/// products of parts of the scale are exact, and their sum is none.
#[cube]
fn scaled(scale: f32, code: i32) -> f32 {
    let code = f32::cast_from(code);
    let high = f32::reinterpret(u32::reinterpret(scale) & 0xffff_ff00u32); // 16 bits, codes have 8
    high * code + (scale - high) * code
}

/// A unit per tap and output.
#[cube(launch)]
fn tap_sums_kernel(
    words: &[u32], places: &[u32], scale: &[f32], out: &mut [f32], rows: Rows, #[comptime] bits: BitWidth,
) {
    let i = ABSOLUTE_POS as u32;
    if i >= rows.taps * rows.outputs {
        terminate!();
    }
    let (tap, output) = (i / rows.outputs, i % rows.outputs);
    let mut sum = 0.0f32;
    for channel in 0..rows.inputs {
        let column = channel * rows.taps + tap;
        let factor = scale[(column / rows.run * rows.outputs + output) as usize];
        sum += scaled(factor, rows.code(words, places, output, column, bits));
    }
    out[i as usize] = sum;
}

/// Packed words to prepared ones.
pub(super) fn prepare(packed: CubeTensor, layout: &WeightLayout) -> CubeTensor {
    let columns = upload(&packed, &columns(layout));
    let packed = into_contiguous(packed);
    let out = empty(&packed, [layout.words()], DType::U32);
    let (count, dim) = one_unit_each(&out.client, layout.blocks() * layout.rows());
    #[rustfmt::skip]
    prepare_kernel::launch(
        &out.client, count, dim,
        packed.into_buffer_arg(), columns.into_buffer_arg(), out.clone().into_buffer_arg(),
        rows(layout), layout.bits(),
    );
    out
}

/// Prepared words to codes, `[outputs * cols]`.
pub(super) fn codes(words: CubeTensor, layout: &WeightLayout) -> CubeTensor {
    let places = upload(&words, &places(layout));
    let words = into_contiguous(words);
    let codes = layout.outputs() * layout.cols();
    let out = empty(&words, [codes], DType::I32);
    let (count, dim) = one_unit_each(&out.client, codes);
    #[rustfmt::skip]
    codes_kernel::launch(
        &out.client, count, dim,
        words.into_buffer_arg(), places.into_buffer_arg(), out.clone().into_buffer_arg(),
        rows(layout), layout.bits(),
    );
    out
}

/// For each tap the sum of an output's weights: `[taps * outputs]`, with `scale` `[scale groups * outputs]`.
pub(super) fn tap_sums(words: CubeTensor, scale: CubeTensor, layout: &WeightLayout) -> CubeTensor {
    let [words, scale] = [words, scale].map(into_contiguous);
    let (places, sums) = (upload(&words, &places(layout)), layout.taps() * layout.outputs());
    let out = empty(&words, [sums], DType::F32);
    let (count, dim) = one_unit_each(&out.client, sums);
    #[rustfmt::skip]
    tap_sums_kernel::launch(
        &out.client, count, dim,
        words.into_buffer_arg(), places.into_buffer_arg(), scale.into_buffer_arg(), out.clone().into_buffer_arg(),
        rows(layout), layout.bits(),
    );
    out
}

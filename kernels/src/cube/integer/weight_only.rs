//! Products of float activations with packed weights, for few rows: what counts is that the weights are read once.

use super::words::{BLOCK_QUADS, QUAD, Quad, row_quads, signed_byte, weight_lanes, weight_quad};
use crate::burn_face::ops::WeightOnlyFormat;
use crate::cube::launch::{cubes, empty, index, summing_units};
use crate::cube::pack::readable;
use crate::cube::reduce::sum_over_cube;
use crate::integer::STEP;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use dr_precision::BitWidth;

/// The most rows of activations of a cube.
const TILE: usize = 4;

/// Sizes of a product, in codes.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Sizes {
    rows: u32,
    inputs: u32,
    outputs: u32,
    /// Codes of a scale group.
    run: u32,
    /// Quads of a scale group that is not the last.
    group_quads: u32,
    /// Quads of a row of weights.
    row_quads: u32,
    /// Blocks of the weight.
    blocks: u32,
}

/// A cube has four outputs and some rows of activations. A unit has a quad of weights of each output, and then the next
/// one that no other has. A vector of `x` never crosses the end of a row or scale group: its size divides both.
#[cube(launch)]
fn weight_only_kernel<F: Float, N: Size, W: Size>(
    x: &[Vector<F, N>], weight: &[Vector<u32, W>], scale: &[f32], out: &mut [f32], sizes: Sizes,
    #[comptime] tile: usize, #[comptime] units: u32, #[comptime] bits: BitWidth,
    #[define(F)] _dtype: ElemType,
) {
    let quads = sizes.outputs.div_ceil(4);
    let cube = CUBE_POS as u32;
    let (first, output) = (cube / quads * comptime!(tile as u32), cube % quads * 4);
    if first >= sizes.rows {
        terminate!(); // the whole cube leaves together, so the barriers below are safe
    }
    let lanes = N::value();
    let mut totals = Array::<f32>::new(comptime!(tile * STEP));
    #[unroll]
    for k in 0..comptime!(tile * STEP) {
        totals[k] = 0.0;
    }
    for quad in range_stepped(UNIT_POS, sizes.row_quads, units) {
        let group = quad / sizes.group_quads;
        let begin = group * sizes.run + quad % sizes.group_quads * comptime!((QUAD * STEP) as u32);
        let end = min((group + 1) * sizes.run, sizes.inputs);
        let mut weights = Array::<Quad>::new(STEP);
        let mut scales = Array::<f32>::new(STEP);
        #[unroll]
        for j in 0..STEP {
            let row = output + comptime!(j as u32);
            weights[j] = weight_quad(weight, sizes.blocks, row * sizes.row_quads + quad, bits);
            let row = min(row, sizes.outputs - 1);
            scales[j] = scale[(group * sizes.outputs + row) as usize];
        }
        #[unroll]
        for t in 0..tile {
            let row = min(first + comptime!(t as u32), sizes.rows - 1);
            let mut sums = Array::<f32>::new(STEP);
            #[unroll]
            for j in 0..STEP {
                sums[j] = 0.0;
            }
            #[unroll]
            for c in 0..comptime!(QUAD * STEP / lanes) {
                let at = begin + comptime!((c * lanes) as u32);
                if at < end {
                    let values = Vector::<f32, N>::cast_from(x[((row * sizes.inputs + at) as usize) / lanes]);
                    #[unroll]
                    for lane in 0..lanes {
                        let code = comptime!(c * lanes + lane);
                        #[unroll]
                        for j in 0..STEP {
                            let weight = signed_byte(
                                weights[j].extract(comptime!(code / STEP)),
                                comptime!(code % STEP),
                            );
                            sums[j] += values.extract(lane) * f32::cast_from(weight);
                        }
                    }
                }
            }
            #[unroll]
            for j in 0..STEP {
                totals[t * STEP + j] += sums[j] * scales[j];
            }
        }
    }
    let mut shared = Shared::<[f32]>::new_slice(comptime!(tile * STEP * units as usize));
    sum_over_cube(&mut totals, &mut shared, comptime!(tile * STEP), units);
    if UNIT_POS == 0 {
        #[unroll]
        for t in 0..tile {
            #[unroll]
            for j in 0..STEP {
                let (row, output) = (first + comptime!(t as u32), output + comptime!(j as u32));
                if row < sizes.rows && output < sizes.outputs {
                    out[(row * sizes.outputs + output) as usize] = totals[t * STEP + j];
                }
            }
        }
    }
}

/// `[x, weight, scale]` to `[rows * outputs]`.
pub(super) fn weight_only([x, weight, scale]: [CubeTensor; 3], format: WeightOnlyFormat) -> CubeTensor {
    let WeightOnlyFormat { rows, weight: layout } = format;
    let [x, weight, scale] = [readable(x), into_contiguous(weight), into_contiguous(scale)];
    let out = empty(&x, [rows * layout.outputs()], DType::F32);
    if rows == 0 || layout.outputs() == 0 {
        return out;
    }
    let divides = |size: usize| {
        layout.inputs().is_multiple_of(size)
            && (layout.scale_groups() == 1 || layout.run().is_multiple_of(size))
    };
    let lanes = if layout.inputs() > 0 && divides(4) { 4 } else { 1 };
    let (quads, tile) = (row_quads(&layout), rows.min(TILE));
    let units = summing_units(&out.client, quads).min(64);
    let sizes = SizesLaunch {
        rows: index(rows),
        inputs: index(layout.inputs()),
        outputs: index(layout.outputs()),
        run: index(layout.run()),
        group_quads: index(layout.group_blocks()[0] * BLOCK_QUADS),
        row_quads: index(quads),
        blocks: index(layout.blocks() * layout.rows()),
    };
    let (count, dim) = cubes(&out.client, rows.div_ceil(tile) * layout.outputs().div_ceil(STEP), units);
    let dtype = dtype_to_storage_type(x.dtype);
    #[rustfmt::skip]
    weight_only_kernel::launch(
        &out.client, count, dim, lanes, weight_lanes(layout.bits()),
        x.into_buffer_arg(), weight.into_buffer_arg(), scale.into_buffer_arg(), out.clone().into_buffer_arg(),
        sizes, tile, units, layout.bits(), dtype,
    );
    out
}

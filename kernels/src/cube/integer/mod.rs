//! Integer arithmetic on codes, see [`crate::integer`].
//!
//! | module | what |
//! |---|---|
//! | `words` | codes of packed weights, unpacked four at a time, and their products |
//! | `geometry` | which codes an output position multiplies with which weights |
//! | `conv` | convolutions and matrix products, in three tilings |
//! | `depthwise` | depthwise convolutions |
//! | `epilogue` | from sums to results |
//! | `codes` | from values to codes |
//! | `weight_only` | float activations times packed weights |

mod codes;
mod conv;
mod depthwise;
mod epilogue;
mod geometry;
mod weight_only;
mod words;

use super::launch::{cubes, empty, one_unit_each};
use super::pack;
use crate::burn_face::ops::{CodesFormat, IntConvFormat, IntOps, WeightOnlyFormat};
use crate::integer::{Dot, GpuKernel, IntConv2dShape, STEP, Tiling, WeightLayout};
use burn::tensor::DType;
use burn_cubecl::cubecl::{client::Client, prelude::*};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use conv::{Plan, Split, Tile, direct_kernel, split_kernel, tiled_kernel};
use depthwise::depthwise_kernel;
use dr_precision::BitWidth;
use epilogue::Epilogue;
use geometry::{Order, Walk, geometry, table};

/// Four lanes.
type Quad4 = Const<4>;

/// Positions of a unit that reads for itself.
const DIRECT_POSITIONS: usize = 4;

/// The most positions of a cube that splits sums.
const SPLIT_POSITIONS: usize = 4;

/// Below this many positions a tile would be nearly empty.
const FEW_POSITIONS: usize = 16;

/// Segments that a cube splits each row into, about.
const SEGMENTS: usize = 128;

/// Cubes that keep a large device busy.
const ENOUGH_CUBES: usize = 256;

impl IntOps for CubeBackend {
    fn quantize_codes(x: CubeTensor, quantizer: CubeTensor, format: CodesFormat) -> CubeTensor {
        codes::quantize(x, quantizer, format)
    }

    fn switch_weight(words: CubeTensor, layout: WeightLayout, active: BitWidth) -> CubeTensor {
        pack::switch(words, layout.elements(), layout.bits, active)
    }

    fn int_conv2d(
        codes: CubeTensor, weight: CubeTensor, multiplier: CubeTensor, addend: CubeTensor,
        residual: CubeTensor, format: IntConvFormat,
    ) -> CubeTensor {
        let quantizer = addend.clone(); // not read
        let out = empty(&codes, [format.shape.results()], DType::F32);
        convolve([codes, weight, multiplier, addend, residual, quantizer], &out, &format, None);
        out
    }

    fn int_conv2d_codes(
        codes: CubeTensor, weight: CubeTensor, multiplier: CubeTensor, addend: CubeTensor,
        residual: CubeTensor, quantizer: CubeTensor, format: IntConvFormat, bits: BitWidth,
    ) -> CubeTensor {
        let layout = &format.shape.weight;
        let whole_words = (layout.outputs / layout.groups).is_multiple_of(STEP);
        if !layout.is_depthwise() && layout.groups > 1 && !whole_words {
            // The outputs of different groups of channels share words.
            let x = Self::int_conv2d(codes, weight, multiplier, addend, residual, format);
            let IntConv2dShape { batch: images, .. } = format.shape;
            let (channels, positions) = (layout.outputs, format.shape.positions());
            let format = CodesFormat { images, channels, positions, channels_last: true, bits };
            return codes::quantize(x, quantizer, format);
        }
        let out = empty(&codes, [format.code_words()], DType::U32);
        convolve([codes, weight, multiplier, addend, residual, quantizer], &out, &format, Some(bits));
        out
    }

    fn weight_only(
        x: CubeTensor, weight: CubeTensor, scale: CubeTensor, format: WeightOnlyFormat,
    ) -> CubeTensor {
        weight_only::weight_only([x, weight, scale], format)
    }
}

/// Whether multiplying four bytes at once is an instruction. Elsewhere it is made of others, with more of them for the
/// signs of both factors than [`Dot::Multiply`] needs.
fn has_dp4a(client: &Client) -> bool {
    let target = &client.properties().identity.fingerprint;
    target.starts_with("ptx") || target.starts_with("spirv")
}

/// The kernel for `shape`, unless another one is asked for.
fn choose(client: &Client, shape: &IntConv2dShape) -> GpuKernel {
    let dot = if has_dp4a(client) { Dot::Dp4a } else { Dot::Multiply };
    let tiling = match client.properties().hardware.max_units_per_cube {
        0..64 => Tiling::Direct,
        _ if shape.batch * shape.positions() < FEW_POSITIONS => Tiling::Split,
        _ => Tiling::Tiled,
    };
    GpuKernel { tiling, dot }
}

/// The tile of a cube: the units that a device has, up to 256; fewer where there are few outputs, and fewer positions where
/// there are few of those.
fn tile(client: &Client, shape: &IntConv2dShape) -> Tile {
    let [y, x] = match client.properties().hardware.max_units_per_cube {
        0..2 => [1, 1],
        2..64 => [1, 2],
        64..256 => [8, 8],
        _ => [16, 16],
    };
    let outputs = shape.weight.outputs / shape.weight.groups;
    let units = [y, outputs.div_ceil(STEP).next_power_of_two().clamp(x.min(4), x)];
    let tiles = |tile: Tile| {
        let row_tiles = shape.weight.groups * outputs.div_ceil(tile.cube_rows());
        (shape.batch * shape.positions()).div_ceil(tile.cube_positions()) * row_tiles
    };
    let large = Tile { units, positions: 8 };
    // Large tiles read less, but there should be enough of them.
    if tiles(large) >= ENOUGH_CUBES { large } else { Tile { units, positions: 4 } }
}

/// How a cube splits sums: into parts of equal length, a power of two of them.
fn split(client: &Client, shape: &IntConv2dShape) -> Split {
    let groups = shape.weight.scale_groups();
    let quads = shape.weight.group_blocks().into_iter().max().unwrap_or(0) * words::BLOCK_QUADS;
    let parts = (SEGMENTS / groups).min(quads).max(1);
    let units = client.properties().hardware.max_units_per_cube.clamp(1, SEGMENTS as u32);
    Split {
        units: 1 << units.ilog2(),
        positions: (shape.batch * shape.positions()).min(SPLIT_POSITIONS),
        groups,
        parts: 1 << parts.ilog2(),
    }
}

/// `[codes, weight, multiplier, addend, residual, quantizer]` to `out`, as codes of `bits` bits if there are any.
fn convolve(inputs: [CubeTensor; 6], out: &CubeTensor, format: &IntConvFormat, bits: Option<BitWidth>) {
    let (client, shape) = (&out.client, &format.shape);
    if shape.results() == 0 {
        return;
    }
    let [codes, weight, multiplier, addend, residual, quantizer] = inputs.map(into_contiguous);
    let (epilogue, positions) = (Epilogue::new(format, bits), shape.batch * shape.positions());
    let layout = &shape.weight;
    let out_lanes = epilogue.lanes(layout);
    if layout.is_depthwise() {
        let units = positions.div_ceil(DIRECT_POSITIONS) * layout.outputs.div_ceil(STEP);
        let (count, dim) = one_unit_each(client, units);
        #[rustfmt::skip]
        depthwise_kernel::launch(
            client, count, dim, out_lanes,
            codes.into_buffer_arg(), weight.into_buffer_arg(), multiplier.into_buffer_arg(),
            addend.into_buffer_arg(), residual.into_buffer_arg(), quantizer.into_buffer_arg(),
            out.clone().into_buffer_arg(), geometry(shape), DIRECT_POSITIONS, layout.bits, epilogue,
        );
        return;
    }
    let GpuKernel { tiling, dot } = format.kernel.unwrap_or_else(|| choose(client, shape));
    let walk = Walk::of(shape);
    let table = match walk.order {
        Order::Table => {
            let table = table(layout);
            let handle = client.create_from_slice(bytemuck::cast_slice(&table));
            CubeTensor::new_contiguous(
                client.clone(),
                out.device.clone(),
                [table.len()].into(),
                handle,
                DType::U32,
            )
        }
        _ => weight.clone(), // not read
    };
    let plan = Plan { bits: layout.bits, dot, walk, epilogue };
    let split = split(client, shape);
    // Sums of very many scale groups do not fit.
    let split_fits = split.sums() * 4 <= client.properties().hardware.max_shared_memory_size;
    let (channel_groups, group_outputs) = (layout.groups, layout.outputs / layout.groups);
    let quads = channel_groups * group_outputs.div_ceil(STEP);
    let (lanes, sizes) = (walk.order.lanes(), geometry(shape));
    #[rustfmt::skip]
    macro_rules! launch {
        ($kernel:ident, $counts:expr, $how:expr) => {{
            let (count, dim) = $counts;
            $kernel::launch(
                client, count, dim, lanes, out_lanes,
                codes.into_buffer_arg(), weight.into_buffer_arg(), table.into_buffer_arg(),
                multiplier.into_buffer_arg(), addend.into_buffer_arg(), residual.into_buffer_arg(),
                quantizer.into_buffer_arg(), out.clone().into_buffer_arg(), sizes, $how, plan,
            );
        }};
    }
    match tiling {
        Tiling::Direct => {
            let units = positions.div_ceil(DIRECT_POSITIONS) * quads;
            launch!(direct_kernel, one_unit_each(client, units), DIRECT_POSITIONS);
        }
        Tiling::Split if split_fits => {
            let count = positions.div_ceil(split.positions) * quads;
            launch!(split_kernel, cubes(client, count, split.units as u32), split);
        }
        Tiling::Split | Tiling::Tiled => {
            let tile = tile(client, shape);
            debug_assert!(tile.is_even());
            let row_tiles = channel_groups * group_outputs.div_ceil(tile.cube_rows());
            let count = positions.div_ceil(tile.cube_positions()) * row_tiles;
            launch!(tiled_kernel, cubes(client, count, tile.all_units() as u32), tile);
        }
    }
}

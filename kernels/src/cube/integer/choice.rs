//! Which kernel convolves, and how a cube of it works.

use super::conv::{Split, Tile};
use super::mma::{self, MmaSplit, MmaTile};
use super::words;
use crate::integer::{Dot, GpuKernel, IntConv2dShape, STEP, Tiling, WeightLayout};
use burn_cubecl::cubecl::ir::features::MmaConfig;
use burn_cubecl::cubecl::{client::Client, prelude::*};
use dr_precision::BitWidth;

/// The most positions of a cube that splits sums.
const SPLIT_POSITIONS: usize = 4;

/// Below this many positions a tile would be nearly empty.
const FEW_POSITIONS: usize = 16;

/// Segments that a cube splits each row into, about.
const SEGMENTS: usize = 128;

/// Cubes that keep a large device busy.
const ENOUGH_CUBES: usize = 256;

/// How a convolution is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Direct,
    Tiled(Tile),
    Split(Split),
    /// Some [`MmaTile`]: which one is fastest is measured.
    Mma,
    MmaSplit(MmaSplit),
}

/// Whether multiplying four bytes at once is an instruction. Elsewhere it is made of others, with more of them for the
/// signs of both factors than [`Dot::Multiply`] needs.
fn has_dp4a(client: &Client) -> bool {
    let target = &client.properties().identity.fingerprint;
    target.starts_with("ptx") || target.starts_with("spirv")
}

/// Whether there are tensor cores that take unsigned and signed bytes.
fn has_mma(client: &Client) -> bool {
    let [m, n, k] = mma::SHAPE.map(|size| size as u32);
    let (a_type, b_type, cd_type) = (u8::cube_type(), i8::cube_type(), i32::cube_type());
    let config = MmaConfig { a_type, b_type, cd_type, m, n, k };
    let (properties, plane) = (client.properties(), mma::PLANE as u32);
    properties.features.matmul.mma.contains(&config)
        && (properties.hardware.plane_size_min, properties.hardware.plane_size_max) == (plane, plane)
}

/// How `shape` is convolved, and with which instruction, unless another kernel is asked for that the device has.
pub(super) fn choose(client: &Client, shape: &IntConv2dShape, wanted: Option<GpuKernel>) -> (Way, Dot) {
    // On tensor cores every code is as large as one of 8 bits.
    let mma = has_mma(client) && shape.weight().at(BitWidth::B8).is_ok();
    let without = if has_dp4a(client) { Dot::Dp4a } else { Dot::Multiply };
    let hardware = &client.properties().hardware;
    let GpuKernel { tiling, dot } = match wanted {
        Some(wanted) if mma || wanted.dot != Dot::Mma => wanted,
        _ => {
            let tiling = match hardware.max_units_per_cube {
                0..64 => Tiling::Direct,
                _ if shape.batch() * shape.positions() < FEW_POSITIONS => Tiling::Split,
                _ => Tiling::Tiled,
            };
            GpuKernel { tiling, dot: if mma { Dot::Mma } else { without } }
        }
    };
    match tiling {
        Tiling::Direct => (Way::Direct, if dot == Dot::Mma { without } else { dot }),
        Tiling::Tiled if dot == Dot::Mma => (Way::Mma, dot),
        Tiling::Split if dot == Dot::Mma && shape.weight().scale_groups() == 1 => {
            (Way::MmaSplit(mma_split(shape)), dot)
        }
        Tiling::Tiled => (Way::Tiled(tile(client, shape)), dot),
        Tiling::Split => {
            let (split, dot) = (split(client, shape), if dot == Dot::Mma { without } else { dot });
            // Sums of very many scale groups do not fit.
            match split.sums() * 4 <= hardware.max_shared_memory_size {
                true => (Way::Split(split), dot),
                false => (Way::Tiled(tile(client, shape)), dot),
            }
        }
    }
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
    let outputs = shape.weight().outputs() / shape.weight().groups();
    let units = [y, outputs.div_ceil(STEP).next_power_of_two().clamp(x.min(4), x)];
    let tiles = |tile: Tile| {
        let row_tiles = shape.weight().groups() * outputs.div_ceil(tile.cube_rows());
        (shape.batch() * shape.positions()).div_ceil(tile.cube_positions()) * row_tiles
    };
    let large = Tile { units, positions: 8 };
    // Large tiles read less, but there should be enough of them.
    if tiles(large) >= ENOUGH_CUBES { large } else { Tile { units, positions: 4 } }
}

/// How a cube splits sums: into parts of equal length, a power of two of them.
fn split(client: &Client, shape: &IntConv2dShape) -> Split {
    let groups = shape.weight().scale_groups();
    let quads = shape.weight().group_blocks().into_iter().max().unwrap_or(0) * words::BLOCK_QUADS;
    let parts = (SEGMENTS / groups).min(quads).max(1);
    let units = client.properties().hardware.max_units_per_cube.clamp(1, SEGMENTS as u32);
    Split {
        units: 1 << units.ilog2(),
        positions: (shape.batch() * shape.positions()).min(SPLIT_POSITIONS),
        groups,
        parts: 1 << parts.ilog2(),
    }
}

/// How planes split sums on tensor cores.
fn mma_split(shape: &IntConv2dShape) -> MmaSplit {
    let layout = &shape.weight();
    // Vectors of up to 16 bytes, of quads whose number is even in every row.
    let quads =
        if mma::is_packed(layout.bits()) && layout.bits() < BitWidth::B8 { words::BLOCK_QUADS } else { 1 };
    MmaSplit { planes: 8, rows: 2, quads }
}

/// Whether a tile of tensor cores is worth a try: it has no more rows than there are outputs, and a unit's sums fit its registers.
/// With several scale groups it keeps twice as many.
pub(super) fn suits(tile: &MmaTile, layout: &WeightLayout) -> bool {
    let outputs = (layout.outputs() / layout.groups()).next_multiple_of(16).max(32);
    let largest = if layout.scale_groups() > 1 { 8 } else { 16 };
    tile.cube_rows() <= outputs && tile.positions * tile.rows <= largest
}

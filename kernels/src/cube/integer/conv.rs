//! Convolution with groups of channels, which a matrix product is a case of: an implicit matrix product of positions and
//! rows of weights, in three tilings.
//!
//! In all of them a unit has some positions and four rows of weights, so that it makes whole words of codes. It adds up
//! the products of a scale group in 32 bits and the scaled sums in f32, in order.

use super::Quad4;
use super::codes::Quantizer;
use super::epilogue::{Epilogue, finish};
use super::geometry::{Geometry, Places, Walk};
use super::words::{BLOCK_QUADS, Quad, add_weights, corrected, dot_quad, operand, weight_quad};
use crate::integer::{Dot, STEP};
use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) bits: BitWidth,
    pub(super) dot: Dot,
    pub(super) walk: Walk,
    pub(super) epilogue: Epilogue,
}

/// Four rows of weights: where they are, and which outputs.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    /// The first row.
    row: u32,
    /// Its first input channel.
    channel: u32,
    /// Its output.
    pub(super) output: u32,
    /// How many of the four are outputs.
    pub(super) valid: u32,
}

/// Rows from `row` of group of channels `channel_group` on.
#[cube]
pub(super) fn rows(geometry: &Geometry, channel_group: u32, row: u32) -> Rows {
    let outputs = geometry.group_outputs;
    Rows {
        row: channel_group * geometry.group_rows + row,
        channel: geometry.first_channel(channel_group),
        output: channel_group * outputs + row,
        valid: select(row < outputs, min(outputs - row, 4u32), 0u32),
    }
}

/// Adds the products of quad `quad` at `count` places with four rows to `sums`, `[count, 4]`, and the weights to
/// `corrections`, `[4]`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_quad<N: Size, W: Size>(
    sums: &mut Array<i32>, corrections: &mut Array<i32>, codes: &[Vector<u32, N>], weight: &[Vector<u32, W>],
    table: &[u32], geometry: &Geometry, places: &Places, rows: &Rows, group: u32, quad: u32,
    #[comptime] count: usize, #[comptime] plan: Plan,
) {
    let mut weights = Array::<Quad>::new(STEP);
    #[unroll]
    for j in 0..STEP {
        let row = rows.row + comptime!(j as u32);
        let at = row * geometry.row_blocks * comptime!(BLOCK_QUADS as u32) + quad;
        weights[j] = weight_quad(weight, geometry.blocks, at, plan.bits);
        corrections[j] = add_weights(weights[j], corrections[j], plan.dot);
    }
    #[unroll]
    for i in 0..count {
        let quad = geometry.code_quad(codes, table, places, i, rows.channel, group, quad, plan.walk);
        let quad = operand(quad, plan.dot);
        #[unroll]
        for j in 0..STEP {
            sums[i * STEP + j] = dot_quad(quad, weights[j], sums[i * STEP + j], plan.dot);
        }
    }
}

#[cube]
fn set_to_zero<E: Numeric>(values: &mut Array<E>, #[comptime] count: usize) {
    #[unroll]
    for i in 0..count {
        values[i] = E::from_int(0);
    }
}

/// Units by themselves: each one has `tile` positions and four rows, and reads what it needs. For devices with few units.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn direct_kernel<N: Size, W: Size, M: Size>(
    codes: &[Vector<u32, N>], weight: &[Vector<u32, W>], table: &[u32], multiplier: &[f32], addend: &[f32],
    residual: &[f32], out: &mut [Vector<u32, M>], geometry: Geometry, quantizer: Quantizer,
    #[comptime] tile: usize, #[comptime] plan: Plan,
) {
    // Rows first, so that neighbours share codes and write side by side.
    let quads = geometry.group_outputs.div_ceil(4);
    let all_quads = geometry.outputs / geometry.group_outputs * quads;
    let i = ABSOLUTE_POS as u32;
    let first = i / all_quads * comptime!(tile as u32);
    if first >= geometry.positions {
        terminate!();
    }
    let rows = rows(&geometry, i % all_quads / quads, i % quads * 4);
    let mut places = Places::new(tile);
    #[unroll]
    for t in 0..tile {
        places.set(&geometry, t, first + comptime!(t as u32));
    }
    let mut values = Array::<f32>::new(comptime!(tile * STEP));
    set_to_zero(&mut values, comptime!(tile * STEP));
    let mut sums = Array::<i32>::new(comptime!(tile * STEP));
    let mut corrections = Array::<i32>::new(STEP);
    for group in 0..geometry.scale_groups {
        set_to_zero(&mut sums, comptime!(tile * STEP));
        set_to_zero(&mut corrections, STEP);
        let begin = geometry.first_quad(table, group, plan.walk.order);
        let end = geometry.end_quad(table, group, plan.walk.order);
        for quad in begin..end {
            add_quad(
                &mut sums,
                &mut corrections,
                codes,
                weight,
                table,
                &geometry,
                &places,
                &rows,
                group,
                quad,
                tile,
                plan,
            );
        }
        fold(&mut values, &sums, &corrections, multiplier, &geometry, &rows, group, tile, plan.dot);
    }
    finish_tile(
        &values,
        first,
        1u32,
        &rows,
        addend,
        residual,
        &quantizer,
        out,
        &geometry,
        tile,
        plan.epilogue,
    );
}

/// Adds the scaled sums of a scale group to `values`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn fold(
    values: &mut Array<f32>, sums: &Array<i32>, corrections: &Array<i32>, multiplier: &[f32],
    geometry: &Geometry, rows: &Rows, group: u32, #[comptime] tile: usize, #[comptime] dot: Dot,
) {
    #[unroll]
    for j in 0..STEP {
        if comptime!(j as u32) < rows.valid {
            let at = group * geometry.outputs + rows.output + comptime!(j as u32);
            let factor = multiplier[at as usize];
            #[unroll]
            for t in 0..tile {
                let sum = corrected(sums[t * STEP + j], corrections[j], dot);
                values[t * STEP + j] += factor * f32::cast_from(sum);
            }
        }
    }
}

/// Writes the results of four rows at `position`, if it exists.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn finish_four<M: Size>(
    values: Vector<f32, Quad4>, position: u32, rows: &Rows, addend: &[f32], residual: &[f32],
    quantizer: &Quantizer, out: &mut [Vector<u32, M>], geometry: &Geometry, #[comptime] epilogue: Epilogue,
) {
    if position < geometry.positions && rows.valid > 0 {
        finish(
            values,
            position,
            rows.output,
            rows.valid,
            addend,
            residual,
            quantizer,
            out,
            geometry,
            epilogue,
        );
    }
}

/// Writes the results of four rows at positions `first`, `first + stride`, ...
#[cube]
#[allow(clippy::too_many_arguments)]
fn finish_tile<M: Size>(
    values: &Array<f32>, first: u32, stride: u32, rows: &Rows, addend: &[f32], residual: &[f32],
    quantizer: &Quantizer, out: &mut [Vector<u32, M>], geometry: &Geometry, #[comptime] tile: usize,
    #[comptime] epilogue: Epilogue,
) {
    #[unroll]
    for t in 0..tile {
        let mut four = Vector::<f32, Quad4>::from_int(0);
        #[unroll]
        for j in 0..STEP {
            four.insert(j, values[t * STEP + j]);
        }
        let position = first + comptime!(t as u32) * stride;
        finish_four(four, position, rows, addend, residual, quantizer, out, geometry, epilogue);
    }
}

/// The tile of a cube: `units[0]` times `units[1]` units, with `positions` positions and four rows each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub(super) units: [usize; 2],
    pub(super) positions: usize,
}

impl Tile {
    /// Quads of each position and row that are in shared memory at once.
    const DEPTH: usize = 4;

    /// Quads from a row to the next, one more than there are: so eight units that read from as many rows use all
    /// banks of shared memory.
    const PITCH: usize = Self::DEPTH + 1;

    pub(super) const fn all_units(self) -> usize {
        self.units[0] * self.units[1]
    }

    /// Positions of a cube.
    pub(super) const fn cube_positions(self) -> usize {
        self.units[0] * self.positions
    }

    /// Rows of a cube.
    pub(super) const fn cube_rows(self) -> usize {
        self.units[1] * STEP
    }

    /// Quads of codes that a unit puts into shared memory.
    const fn code_quads(self) -> usize {
        (self.cube_positions() * Self::DEPTH).div_ceil(self.all_units())
    }

    /// Quads of weights that a unit puts into shared memory.
    const fn weight_quads(self) -> usize {
        (self.cube_rows() * Self::DEPTH).div_ceil(self.all_units())
    }

    /// Whether each unit has equally many to put there.
    pub(super) const fn is_even(self) -> bool {
        (self.positions * Self::DEPTH).is_multiple_of(self.units[1])
            && (STEP * Self::DEPTH).is_multiple_of(self.units[0])
    }
}

/// Rows of weights of a cube: the first one, and how many there are from it on.
#[derive(CubeType, Clone, Copy)]
struct TileRows {
    first: u32,
    count: u32,
}

/// What a unit puts into shared memory next: quads from `first` on, zeros from `end` on. First those of codes, as
/// operands, and then those of weights, which are also added to `partial`.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load_quads<N: Size, W: Size>(
    loaded: &mut Array<Quad>, partial: &mut Array<i32>, codes: &[Vector<u32, N>], weight: &[Vector<u32, W>],
    table: &[u32], geometry: &Geometry, places: &Places, rows: &Rows, tile_rows: &TileRows, group: u32,
    first: u32, end: u32, #[comptime] tile: Tile, #[comptime] plan: Plan,
) {
    let (units, depth) = comptime!((tile.all_units() as u32, Tile::DEPTH as u32));
    let (code_quads, weight_quads) = comptime!((tile.code_quads(), tile.weight_quads()));
    #[unroll]
    for k in 0..code_quads {
        let quad = first + (UNIT_POS + comptime!(k as u32) * units) % depth;
        let mut codes_of_quad = Quad::from_int(0);
        if quad < end {
            codes_of_quad = geometry.code_quad(codes, table, places, k, rows.channel, group, quad, plan.walk);
        }
        loaded[k] = operand(codes_of_quad, plan.dot);
    }
    #[unroll]
    for k in 0..weight_quads {
        let item = UNIT_POS + comptime!(k as u32) * units;
        let (row, quad) = (item / depth, first + item % depth);
        let mut weights = Quad::from_int(0);
        if quad < end && row < tile_rows.count {
            let at = (tile_rows.first + row) * geometry.row_blocks * comptime!(BLOCK_QUADS as u32) + quad;
            weights = weight_quad(weight, geometry.blocks, at, plan.bits);
        }
        partial[k] = add_weights(weights, partial[k], plan.dot);
        loaded[code_quads + k] = weights;
    }
}

/// A cube has a tile of positions and rows; their codes and weights, the latter as bytes, pass through shared memory.
///
/// Unit `(x, y)` has rows `4 x ..` and positions `y`, `y + units[0]`, ... Row `4 x + j` is at place `j * units[1] + x`, so
/// that neighbours read neighbouring places.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn tiled_kernel<N: Size, W: Size, M: Size>(
    codes: &[Vector<u32, N>], weight: &[Vector<u32, W>], table: &[u32], multiplier: &[f32], addend: &[f32],
    residual: &[f32], out: &mut [Vector<u32, M>], geometry: Geometry, quantizer: Quantizer,
    #[comptime] tile: Tile, #[comptime] plan: Plan,
) {
    let (units, depth, pitch) = comptime!((tile.all_units() as u32, Tile::DEPTH as u32, Tile::PITCH as u32));
    let (units_y, units_x) = comptime!((tile.units[0] as u32, tile.units[1] as u32));
    let (cube_positions, cube_rows) = comptime!((tile.cube_positions() as u32, tile.cube_rows() as u32));
    let (count, code_quads, weight_quads) =
        comptime!((tile.positions, tile.code_quads(), tile.weight_quads()));

    let row_tiles = geometry.group_outputs.div_ceil(cube_rows);
    let all_row_tiles = geometry.outputs / geometry.group_outputs * row_tiles;
    let cube = CUBE_POS as u32;
    let first_position = cube / all_row_tiles * cube_positions;
    if first_position >= geometry.positions {
        terminate!(); // the whole cube leaves together, so the barriers below are safe
    }
    let channel_group = cube % all_row_tiles / row_tiles;
    let first_row = cube % row_tiles * cube_rows;
    let tile_rows = TileRows {
        first: channel_group * geometry.group_rows + first_row,
        count: geometry.group_rows - first_row,
    };
    let (x, y) = (UNIT_POS % units_x, UNIT_POS / units_x);
    let rows = rows(&geometry, channel_group, first_row + 4 * x);

    let mut shared_codes = Shared::<[Quad]>::new_slice((cube_positions * pitch) as usize);
    let mut shared_weights = Shared::<[Quad]>::new_slice((cube_rows * pitch) as usize);
    let mut shared_sums = Shared::<[i32]>::new_slice((cube_rows * depth) as usize);

    let mut places = Places::new(code_quads);
    #[unroll]
    for k in 0..code_quads {
        let item = UNIT_POS + comptime!(k as u32) * units;
        places.set(&geometry, k, first_position + item / depth);
    }
    let mut values = Array::<f32>::new(comptime!(count * STEP));
    set_to_zero(&mut values, comptime!(count * STEP));
    let mut sums = Array::<i32>::new(comptime!(count * STEP));
    let mut corrections = Array::<i32>::new(STEP);
    let mut partial = Array::<i32>::new(weight_quads);
    let mut loaded = Array::<Quad>::new(comptime!(code_quads + weight_quads));
    for group in 0..geometry.scale_groups {
        set_to_zero(&mut sums, comptime!(count * STEP));
        set_to_zero(&mut corrections, STEP);
        set_to_zero(&mut partial, weight_quads);
        let begin = geometry.first_quad(table, group, plan.walk.order);
        let end = geometry.end_quad(table, group, plan.walk.order);
        load_quads(
            &mut loaded,
            &mut partial,
            codes,
            weight,
            table,
            &geometry,
            &places,
            &rows,
            &tile_rows,
            group,
            begin,
            end,
            tile,
            plan,
        );
        for first in range_stepped(begin, end, depth) {
            sync_cube(); // the last quads may still be read
            #[unroll]
            for k in 0..code_quads {
                let item = UNIT_POS + comptime!(k as u32) * units;
                shared_codes[(item / depth * pitch + item % depth) as usize] = loaded[k];
            }
            #[unroll]
            for k in 0..weight_quads {
                let item = UNIT_POS + comptime!(k as u32) * units;
                let (row, quad) = (item / depth, item % depth);
                let place = row % 4 * units_x + row / 4;
                shared_weights[(place * pitch + quad) as usize] = loaded[code_quads + k];
            }
            // The next ones come from memory while these are multiplied.
            load_quads(
                &mut loaded,
                &mut partial,
                codes,
                weight,
                table,
                &geometry,
                &places,
                &rows,
                &tile_rows,
                group,
                first + depth,
                end,
                tile,
                plan,
            );
            sync_cube();
            for quad in 0..depth {
                let mut weights = Array::<Quad>::new(STEP);
                #[unroll]
                for j in 0..STEP {
                    let place = comptime!(j as u32) * units_x + x;
                    weights[j] = shared_weights[(place * pitch + quad) as usize];
                }
                #[unroll]
                for t in 0..count {
                    let place = comptime!(t as u32) * units_y + y;
                    let loaded = shared_codes[(place * pitch + quad) as usize];
                    #[unroll]
                    for j in 0..STEP {
                        sums[t * STEP + j] = dot_quad(loaded, weights[j], sums[t * STEP + j], plan.dot);
                    }
                }
            }
        }
        if comptime!(plan.dot.is_signed()) {
            // The sums of the weights of each row, from the units that put them there.
            sync_cube();
            #[unroll]
            for k in 0..weight_quads {
                let item = UNIT_POS + comptime!(k as u32) * units;
                shared_sums[item as usize] = partial[k];
            }
            sync_cube();
            #[unroll]
            for j in 0..STEP {
                #[unroll]
                for quad in 0..depth {
                    let row = 4 * x + comptime!(j as u32);
                    corrections[j] += shared_sums[(row * depth + quad) as usize];
                }
            }
        }
        fold(&mut values, &sums, &corrections, multiplier, &geometry, &rows, group, count, plan.dot);
    }
    finish_tile(
        &values,
        first_position + y,
        units_y,
        &rows,
        addend,
        residual,
        &quantizer,
        out,
        &geometry,
        count,
        plan.epilogue,
    );
}

/// How a cube of [`split_kernel`] works: `units` units for `positions` positions and four rows, `groups` scale groups of
/// `parts` parts each. `parts` is a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Split {
    pub(super) units: usize,
    pub(super) positions: usize,
    pub(super) groups: usize,
    pub(super) parts: usize,
}

impl Split {
    /// Sums of a cube.
    pub(super) const fn sums(self) -> usize {
        self.positions * STEP * self.groups * self.parts
    }
}

/// A cube has few positions and four rows; its units share the sums. For so few positions that a tile would be empty.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn split_kernel<N: Size, W: Size, M: Size>(
    codes: &[Vector<u32, N>], weight: &[Vector<u32, W>], table: &[u32], multiplier: &[f32], addend: &[f32],
    residual: &[f32], out: &mut [Vector<u32, M>], geometry: Geometry, quantizer: Quantizer,
    #[comptime] split: Split, #[comptime] plan: Plan,
) {
    let (units, parts) = comptime!((split.units as u32, split.parts as u32));
    let (count, segments) = comptime!((split.positions, (split.groups * split.parts) as u32));
    let quads = geometry.group_outputs.div_ceil(4);
    let all_quads = geometry.outputs / geometry.group_outputs * quads;
    let cube = CUBE_POS as u32;
    let first = cube / all_quads * comptime!(count as u32);
    if first >= geometry.positions {
        terminate!(); // the whole cube leaves together, so the barriers below are safe
    }
    let rows = rows(&geometry, cube % all_quads / quads, cube % quads * 4);
    let mut places = Places::new(count);
    #[unroll]
    for t in 0..count {
        places.set(&geometry, t, first + comptime!(t as u32));
    }
    // `[positions, 4, groups, parts]`
    let mut shared = Shared::<[i32]>::new_slice(comptime!(split.sums()));
    let mut sums = Array::<i32>::new(comptime!(count * STEP));
    let mut corrections = Array::<i32>::new(STEP);
    for segment in range_stepped(UNIT_POS, segments, units) {
        let (group, part) = (segment / parts, segment % parts);
        set_to_zero(&mut sums, comptime!(count * STEP));
        set_to_zero(&mut corrections, STEP);
        let begin = geometry.first_quad(table, group, plan.walk.order);
        let end = geometry.end_quad(table, group, plan.walk.order);
        for quad in range_stepped(begin + part, end, parts) {
            add_quad(
                &mut sums,
                &mut corrections,
                codes,
                weight,
                table,
                &geometry,
                &places,
                &rows,
                group,
                quad,
                count,
                plan,
            );
        }
        #[unroll]
        for k in 0..comptime!(count * STEP) {
            let sum = corrected(sums[k], corrections[k % STEP], plan.dot);
            shared[(comptime!(k as u32) * segments + segment) as usize] = sum;
        }
    }
    sync_cube();
    // All groups at once: what is left of each is its first `half` parts.
    let mut half = CUBE_DIM / units * parts / 2; // from a run-time value, see `sum_over_cube`
    while half > 0 {
        let pairs = comptime!((count * STEP * split.groups) as u32) * half;
        for pair in range_stepped(UNIT_POS, pairs, units) {
            let at = pair / half * parts + pair % half;
            shared[at as usize] += shared[(at + half) as usize];
        }
        sync_cube();
        half /= 2;
    }
    for t in range_stepped(UNIT_POS, comptime!(count as u32), units) {
        let mut values = Array::<f32>::new(STEP);
        set_to_zero(&mut values, STEP);
        for group in 0..geometry.scale_groups {
            #[unroll]
            for j in 0..STEP {
                if comptime!(j as u32) < rows.valid {
                    let row = t * 4 + comptime!(j as u32);
                    let sum = shared[(row * segments + group * parts) as usize];
                    let factor =
                        multiplier[(group * geometry.outputs + rows.output + comptime!(j as u32)) as usize];
                    values[j] += factor * f32::cast_from(sum);
                }
            }
        }
        finish_tile(
            &values,
            first + t,
            1u32,
            &rows,
            addend,
            residual,
            &quantizer,
            out,
            &geometry,
            1usize,
            plan.epilogue,
        );
    }
}

//! Convolution with groups of channels, which a matrix product is a case of: an implicit matrix product of positions and
//! rows of weights, in three tilings.
//!
//! In all of them a unit has some positions and four rows of weights, so that it makes whole words of codes. It adds up
//! the products of a scale group in 32 bits and the scaled sums in f32, in order.

use super::Quad4;
use super::codes::Quantizer;
use super::epilogue::{Epilogue, Output, OutputExpand};
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

/// What a convolution reads.
#[derive(CubeType)]
pub(super) struct Operands<'a, N: Size, W: Size> {
    pub(super) codes: &'a [Vector<u32, N>],
    pub(super) weight: &'a [Vector<u32, W>],
    pub(super) table: &'a [u32],
    pub(super) multiplier: &'a [f32],
    pub(super) geometry: &'a Geometry,
    #[cube(comptime)]
    pub(super) plan: Plan,
}

#[cube]
impl<'a, N: Size, W: Size> Operands<'a, N, W> {
    pub(super) fn new(
        codes: &'a [Vector<u32, N>], weight: &'a [Vector<u32, W>], table: &'a [u32], multiplier: &'a [f32],
        geometry: &'a Geometry, #[comptime] plan: Plan,
    ) -> Operands<'a, N, W> {
        Operands::<'a, N, W> { codes, weight, table, multiplier, geometry, plan }
    }

    /// The first quad of scale group `group`, and the one after its last.
    pub(super) fn quads(&self, group: u32) -> (u32, u32) {
        let order = comptime!(self.plan.walk.order);
        let begin = self.geometry.first_quad(self.table, group, order);
        let end = self.geometry.end_quad(self.table, group, order);
        (begin, end)
    }

    /// The place of quad `quad` of row `row` among the weights.
    pub(super) fn weight_at(&self, row: u32, quad: u32) -> u32 {
        row * self.geometry.row_blocks * comptime!(BLOCK_QUADS as u32) + quad
    }

    /// The codes that quad `quad` of rows, whose first input channel is `channel`, is multiplied with at a place.
    pub(super) fn code_quad(
        &self, places: &Places, #[comptime] place: usize, channel: u32, group: u32, quad: u32,
    ) -> Quad {
        let walk = comptime!(self.plan.walk);
        self.geometry.code_quad(self.codes, self.table, places, place, channel, group, quad, walk)
    }

    /// Quad `quad` of row `row`, as signed bytes.
    pub(super) fn weight_quad(&self, row: u32, quad: u32) -> Quad {
        let at = self.weight_at(row, quad);
        weight_quad(self.weight, self.geometry.blocks, at, comptime!(self.plan.bits))
    }

    /// The factor of the sums of output `output` in a scale group.
    pub(super) fn factor(&self, group: u32, output: u32) -> f32 {
        self.multiplier[(group * self.geometry.outputs + output) as usize]
    }

    /// Adds the products of quad `quad` at `count` places with four rows to `sums`, `[count, 4]`, and the weights to
    /// `corrections`, `[4]`.
    #[allow(clippy::too_many_arguments)]
    fn add_quad(
        &self, sums: &mut Array<i32>, corrections: &mut Array<i32>, places: &Places, rows: &Rows, group: u32,
        quad: u32, #[comptime] count: usize,
    ) {
        let dot = comptime!(self.plan.dot);
        let mut weights = Array::<Quad>::new(STEP);
        #[unroll]
        for j in 0..STEP {
            weights[j] = self.weight_quad(rows.row + comptime!(j as u32), quad);
            corrections[j] = add_weights(weights[j], corrections[j], dot);
        }
        #[unroll]
        for i in 0..count {
            let quad = operand(self.code_quad(places, i, rows.channel, group, quad), dot);
            #[unroll]
            for j in 0..STEP {
                sums[i * STEP + j] = dot_quad(quad, weights[j], sums[i * STEP + j], dot);
            }
        }
    }

    /// Adds the scaled sums of a scale group to `values`.
    fn fold(
        &self, values: &mut Array<f32>, sums: &Array<i32>, corrections: &Array<i32>, rows: &Rows, group: u32,
        #[comptime] tile: usize,
    ) {
        #[unroll]
        for j in 0..STEP {
            if comptime!(j as u32) < rows.valid {
                let factor = self.factor(group, rows.output + comptime!(j as u32));
                #[unroll]
                for t in 0..tile {
                    let sum = corrected(sums[t * STEP + j], corrections[j], comptime!(self.plan.dot));
                    values[t * STEP + j] += factor * f32::cast_from(sum);
                }
            }
        }
    }

    /// What a unit puts into shared memory next: quads from `first` on, zeros from `end` on. First those of codes, as
    /// operands, and then those of weights, which are also added to `partial`.
    #[allow(clippy::too_many_arguments)]
    fn load(
        &self, loaded: &mut Array<Quad>, partial: &mut Array<i32>, places: &Places, rows: &TileRows,
        group: u32, first: u32, end: u32, #[comptime] tile: Tile,
    ) {
        let (units, depth) = comptime!((tile.all_units() as u32, Tile::DEPTH as u32));
        let (code_quads, weight_quads) = comptime!((tile.code_quads(), tile.weight_quads()));
        let dot = comptime!(self.plan.dot);
        #[unroll]
        for k in 0..code_quads {
            let quad = first + (UNIT_POS + comptime!(k as u32) * units) % depth;
            let mut codes_of_quad = Quad::from_int(0);
            if quad < end {
                codes_of_quad = self.code_quad(places, k, rows.channel, group, quad);
            }
            loaded[k] = operand(codes_of_quad, dot);
        }
        #[unroll]
        for k in 0..weight_quads {
            let item = UNIT_POS + comptime!(k as u32) * units;
            let (row, quad) = (item / depth, first + item % depth);
            let mut weights = Quad::from_int(0);
            if quad < end && row < rows.count {
                weights = self.weight_quad(rows.first + row, quad);
            }
            partial[k] = add_weights(weights, partial[k], dot);
            loaded[code_quads + k] = weights;
        }
    }
}

#[cube]
impl<'a, M: Size> Output<'a, M> {
    /// Writes the results of four rows at `position`, if it exists.
    pub(super) fn write_rows(&mut self, values: Vector<f32, Quad4>, position: u32, rows: &Rows) {
        if position < self.geometry.positions && rows.valid > 0 {
            self.write(values, position, rows.output, rows.valid);
        }
    }

    /// Writes the results of four rows at positions `first`, `first + stride`, ...
    fn write_tile(
        &mut self, values: &Array<f32>, first: u32, stride: u32, rows: &Rows, #[comptime] tile: usize,
    ) {
        #[unroll]
        for t in 0..tile {
            let mut four = Vector::<f32, Quad4>::from_int(0);
            #[unroll]
            for j in 0..STEP {
                four.insert(j, values[t * STEP + j]);
            }
            self.write_rows(four, first + comptime!(t as u32) * stride, rows);
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
    let operands = Operands::<N, W>::new(codes, weight, table, multiplier, &geometry, plan);
    let mut output = Output::<M>::new(addend, residual, quantizer, out, &geometry, plan.epilogue);
    // Rows first, so that neighbours share codes and write side by side.
    let (quads, all_quads) = geometry.row_tiles(4u32);
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
        let (begin, end) = operands.quads(group);
        for quad in begin..end {
            operands.add_quad(&mut sums, &mut corrections, &places, &rows, group, quad, tile);
        }
        operands.fold(&mut values, &sums, &corrections, &rows, group, tile);
    }
    output.write_tile(&values, first, 1u32, &rows, tile);
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

/// Rows of weights of a cube: the first one, how many there are from it on, and their first input channel.
#[derive(CubeType, Clone, Copy)]
pub(super) struct TileRows {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) channel: u32,
}

/// Those of group of channels `channel_group` from row `row` on.
#[cube]
pub(super) fn tile_rows(geometry: &Geometry, channel_group: u32, row: u32) -> TileRows {
    TileRows {
        first: channel_group * geometry.group_rows + row,
        count: geometry.group_rows - row,
        channel: geometry.first_channel(channel_group),
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
    let operands = Operands::<N, W>::new(codes, weight, table, multiplier, &geometry, plan);
    let mut output = Output::<M>::new(addend, residual, quantizer, out, &geometry, plan.epilogue);
    let (units, depth, pitch) = comptime!((tile.all_units() as u32, Tile::DEPTH as u32, Tile::PITCH as u32));
    let (units_y, units_x) = comptime!((tile.units[0] as u32, tile.units[1] as u32));
    let (cube_positions, cube_rows) = comptime!((tile.cube_positions() as u32, tile.cube_rows() as u32));
    let (count, code_quads, weight_quads) =
        comptime!((tile.positions, tile.code_quads(), tile.weight_quads()));

    let (row_tiles, all_row_tiles) = geometry.row_tiles(cube_rows);
    let cube = CUBE_POS as u32;
    let first_position = cube / all_row_tiles * cube_positions;
    if first_position >= geometry.positions {
        terminate!(); // the whole cube leaves together, so the barriers below are safe
    }
    let channel_group = cube % all_row_tiles / row_tiles;
    let first_row = cube % row_tiles * cube_rows;
    let tile_rows = tile_rows(&geometry, channel_group, first_row);
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
        let (begin, end) = operands.quads(group);
        operands.load(&mut loaded, &mut partial, &places, &tile_rows, group, begin, end, tile);
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
            operands.load(&mut loaded, &mut partial, &places, &tile_rows, group, first + depth, end, tile);
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
        operands.fold(&mut values, &sums, &corrections, &rows, group, count);
    }
    output.write_tile(&values, first_position + y, units_y, &rows, count);
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
    let operands = Operands::<N, W>::new(codes, weight, table, multiplier, &geometry, plan);
    let mut output = Output::<M>::new(addend, residual, quantizer, out, &geometry, plan.epilogue);
    let (units, parts) = comptime!((split.units as u32, split.parts as u32));
    let (count, segments) = comptime!((split.positions, (split.groups * split.parts) as u32));
    let (quads, all_quads) = geometry.row_tiles(4u32);
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
        let (begin, end) = operands.quads(group);
        for quad in range_stepped(begin + part, end, parts) {
            operands.add_quad(&mut sums, &mut corrections, &places, &rows, group, quad, count);
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
                    let factor = operands.factor(group, rows.output + comptime!(j as u32));
                    values[j] += factor * f32::cast_from(sum);
                }
            }
        }
        output.write_tile(&values, first + t, 1u32, &rows, 1usize);
    }
}

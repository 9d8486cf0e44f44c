//! Convolutions on tensor cores: the tiles of [`super::conv`], multiplied 16 positions x 8 rows x 32 codes at a time by all the
//! units of a plane together.
//!
//! Weights of 8, 4 and 2 bits stay packed in shared memory, and become bytes in registers, in the highest bits of each, which
//! needs no extension of signs: the sums are shifted back. Other widths become bytes before.
//!
//! An instruction does not care in which order it sums, as long as codes and weights agree. So unit `4 g + t` of a plane takes
//! quad `t` of positions `g` and `g + 8` and of row `g` in one piece: its first two steps for one instruction, the other two
//! for the next. What it needs of two positions lies in shared memory as it lies in registers: steps of both in turns.

use super::Quad4;
use super::codes::Quantizer;
use super::conv::{Plan, finish_four, rows};
use super::geometry::{Geometry, Places};
use super::words::{BLOCK_QUADS, Quad, bytes_of, in_order, packed_quad, raw_quad, weight_quad};
use crate::integer::STEP;
use burn_cubecl::cubecl::cmma::MmaDefinition;
use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// Units of a plane.
pub(super) const PLANE: usize = 32;

/// Positions, rows and codes of an instruction.
pub(super) const SHAPE: [usize; 3] = [16, 8, 32];

/// Quads of a position or row in shared memory at once: those of two instructions.
pub(super) const DEPTH: usize = 4;

const PLANE_U32: u32 = PLANE as u32;

/// Tiles of positions that take turns, so that what is read is still in the device's cache.
const BAND: u32 = 8;

/// Four bytes of one operand.
type Bytes<E> = Vector<E, Quad4>;

/// Two neighbouring sums.
type Pair = Vector<i32, Const<2>>;

/// The tile of a cube: `planes[0]` times `planes[1]` planes, each with `positions` times 16 positions and `rows` times 16 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MmaTile {
    pub(super) planes: [usize; 2],
    pub(super) positions: usize,
    pub(super) rows: usize,
}

impl MmaTile {
    /// Those that are chosen from. Larger ones read less.
    pub(super) const ALL: [Self; 9] = [
        Self::new([2, 4], 4, 4),
        Self::new([2, 2], 4, 4),
        Self::new([2, 4], 4, 2),
        Self::new([2, 4], 2, 4),
        Self::new([2, 2], 2, 4),
        Self::new([2, 2], 4, 2),
        Self::new([2, 2], 2, 2),
        Self::new([4, 1], 2, 2),
        Self::new([4, 1], 2, 1),
    ];

    const fn new(planes: [usize; 2], positions: usize, rows: usize) -> Self {
        Self { planes, positions, rows }
    }

    pub(super) const fn units(self) -> usize {
        self.planes[0] * self.planes[1] * PLANE
    }

    /// Positions of a cube.
    pub(super) const fn cube_positions(self) -> usize {
        self.planes[0] * self.positions * SHAPE[0]
    }

    /// Rows of a cube.
    pub(super) const fn cube_rows(self) -> usize {
        self.planes[1] * self.rows * 2 * SHAPE[1]
    }

    /// Quads of codes that a unit puts into shared memory; those of two positions at a time.
    const fn code_quads(self) -> usize {
        self.cube_positions() * DEPTH / self.units()
    }

    /// Whether each unit has equally many of them.
    pub(super) const fn is_even(self) -> bool {
        (self.cube_positions() * DEPTH).is_multiple_of(2 * self.units())
    }

    /// Quads of weights that a unit puts into shared memory.
    const fn weight_quads(self) -> usize {
        (self.cube_rows() * DEPTH).div_ceil(self.units())
    }

    /// Instructions of a plane for 32 codes.
    const fn products(self) -> usize {
        self.positions * self.rows * 2
    }
}

/// Whether a quad of weights is a vector.
pub(super) const fn is_packed(bits: BitWidth) -> bool {
    shared_bits(bits) == bits.bits()
}

/// The width of weights in shared memory: their own, if a quad of them is a vector.
pub(super) const fn shared_bits(bits: BitWidth) -> u32 {
    match bits.bits() {
        2 => 2,
        4 => 4,
        _ => 8,
    }
}

/// Words of a quad of weights in shared memory.
pub(super) const fn shared_words(bits: BitWidth) -> usize {
    shared_bits(bits) as usize / 2
}

/// The first words of a quad.
#[cube]
fn first_words<S: Size>(quad: Quad) -> Vector<u32, S> {
    let lanes = S::value();
    let mut words = Vector::<u32, S>::from_int(0);
    #[unroll]
    for i in 0..lanes {
        words.insert(i, quad.extract(i));
    }
    words
}

/// The row at `place` in shared memory. Column `n` of the first product of a pair is row `4 (n / 2) + n % 2`, that of the second
/// one is two further: so a unit has the sums of four neighbouring rows. In shared memory columns are neighbours.
#[cube]
fn row_of(place: u32) -> u32 {
    let (column, second) = (place % 8, place / 8 % 2);
    place / 16 * 16 + column / 2 * 4 + second * 2 + column % 2
}

/// What a unit puts into shared memory next: quads from `first` on, zeros from `end` on.
#[cube]
#[allow(clippy::too_many_arguments)]
fn load<N: Size, W: Size>(
    next_codes: &mut Array<Quad>, next_weights: &mut Array<Quad>, codes: &[Vector<u32, N>],
    weight: &[Vector<u32, W>], table: &[u32], geometry: &Geometry, places: &Places, bases: &Array<u32>,
    channel: u32, first_row: u32, row_count: u32, group: u32, first: u32, end: u32,
    #[comptime] tile: MmaTile, #[comptime] plan: Plan,
) {
    let (units, depth) = comptime!((tile.units() as u32, DEPTH as u32));
    // The number of units is a multiple of the depth.
    let quad = first + UNIT_POS % depth;
    #[unroll]
    for k in 0..comptime!(tile.code_quads()) {
        next_codes[k] = Quad::from_int(0);
    }
    #[unroll]
    for k in 0..comptime!(tile.weight_quads()) {
        next_weights[k] = Quad::from_int(0);
    }
    // All in one branch: the loads are issued here, and not where there is room for them among the products.
    if quad < end {
        #[unroll]
        for k in 0..comptime!(tile.weight_quads()) {
            let place = UNIT_POS / depth + comptime!(k as u32 * units / depth);
            // Rows that do not exist are not written either.
            let row = min(row_of(place), row_count - 1);
            let at = (first_row + row) * geometry.row_blocks * comptime!(BLOCK_QUADS as u32) + quad;
            next_weights[k] = raw_quad(weight, geometry.blocks, at, plan.bits);
        }
        #[unroll]
        for k in 0..comptime!(tile.code_quads()) {
            next_codes[k] = if comptime!(plan.walk.straight) {
                geometry.straight_quad(codes, bases[k], group, quad)
            } else {
                geometry.code_quad(codes, table, places, k, channel, group, quad, plan.walk)
            };
        }
    }
}

/// `S`: the words of a quad of weights in shared memory.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn mma_kernel<N: Size, W: Size, M: Size, S: Size>(
    codes: &[Vector<u32, N>], weight: &[Vector<u32, W>], table: &[u32], multiplier: &[f32], addend: &[f32],
    residual: &[f32], out: &mut [Vector<u32, M>], geometry: Geometry, quantizer: Quantizer,
    #[comptime] scaled: bool, #[comptime] tile: MmaTile, #[comptime] plan: Plan,
) {
    let (units, depth) = comptime!((tile.units() as u32, DEPTH as u32));
    let (cube_positions, cube_rows) = comptime!((tile.cube_positions() as u32, tile.cube_rows() as u32));
    let (code_quads, weight_quads, products) =
        comptime!((tile.code_quads(), tile.weight_quads(), tile.products()));

    // Cubes go through bands of tiles of positions, and in a band through the tiles of rows.
    let position_tiles = geometry.positions.div_ceil(cube_positions);
    let row_tiles = geometry.group_outputs.div_ceil(cube_rows);
    let all_row_tiles = geometry.outputs / geometry.group_outputs * row_tiles;
    let cube = CUBE_POS as u32;
    let first_tile = cube / (all_row_tiles * BAND) * BAND;
    if first_tile >= position_tiles {
        terminate!(); // the whole cube leaves together, so the barriers below are safe
    }
    let band = min(position_tiles - first_tile, BAND);
    let in_band = cube % (all_row_tiles * BAND);
    let first_position = (first_tile + in_band % band) * cube_positions;
    let row_tile = in_band / band;
    if row_tile >= all_row_tiles {
        terminate!();
    }
    let channel_group = row_tile / row_tiles;
    let cube_row = row_tile % row_tiles * cube_rows;
    let first_row = channel_group * geometry.group_rows + cube_row;
    let row_count = geometry.group_rows - cube_row;
    let channel = geometry.first_channel(channel_group);

    let plane = UNIT_POS / PLANE_U32;
    let (plane_y, plane_x) =
        (plane % comptime!(tile.planes[0] as u32), plane / comptime!(tile.planes[0] as u32));
    let lane = UNIT_POS % PLANE_U32;
    let (g, t) = (lane / 4, lane % 4);

    // Two stages: one is read while the other is filled.
    let mut shared_codes = Shared::<[Quad]>::new_slice((2 * cube_positions * depth) as usize);
    let mut shared_weights = Shared::<[Vector<u32, S>]>::new_slice((2 * cube_rows * depth) as usize);
    // What this unit reads there first.
    let code_at = plane_y * comptime!((tile.positions * SHAPE[0] * DEPTH) as u32) + lane;
    let weight_at = plane_x * comptime!((tile.rows * 2 * SHAPE[1] * DEPTH) as u32) + lane;

    let mut places = Places::new(code_quads);
    let mut bases = Array::<u32>::new(code_quads);
    #[unroll]
    for k in 0..code_quads {
        // The quads of a pair of positions are neighbours, and so are the pairs of 16 positions.
        let item = UNIT_POS + comptime!(k as u32 / 2) * units;
        let position = item / PLANE_U32 * 16 + item % PLANE_U32 / depth + comptime!(k as u32 % 2 * 8);
        places.set(&geometry, k, first_position + position);
        bases[k] = geometry.straight_base(&places, k, channel);
    }
    let definition = MmaDefinition::<u8, i8, i32>::new(SHAPE[0], SHAPE[1], SHAPE[2]);
    let mut sums = Sequence::<Array<Pair>>::new();
    #[unroll]
    for _ in 0..products {
        let mut pair = Array::<Pair>::new(2usize);
        pair[0] = Pair::from_int(0);
        pair[1] = Pair::from_int(0);
        sums.push(pair);
    }
    let mut values = Array::<f32>::new(comptime!(if scaled { products * 4 } else { 1 }));
    #[unroll]
    for i in 0..comptime!(if scaled { products * 4 } else { 0 }) {
        values[i] = 0.0;
    }
    let mut next_codes = Array::<Quad>::new(code_quads);
    let mut next_weights = Array::<Quad>::new(weight_quads);
    let mut stage = 0u32;
    let groups = select(comptime!(scaled), geometry.scale_groups, 1u32);
    for group in 0..groups {
        let begin = geometry.first_quad(table, group, plan.walk.order);
        let end = geometry.end_quad(table, group, plan.walk.order);
        load(
            &mut next_codes,
            &mut next_weights,
            codes,
            weight,
            table,
            &geometry,
            &places,
            &bases,
            channel,
            first_row,
            row_count,
            group,
            begin,
            end,
            tile,
            plan,
        );
        for first in range_stepped(begin, end, depth) {
            let (code_stage, weight_stage) = (stage * cube_positions * depth, stage * cube_rows * depth);
            #[unroll]
            for k in 0..comptime!(code_quads / 2) {
                let low = in_order(next_codes[comptime!(2 * k)], comptime!(shared_bits(plan.bits)));
                let high = in_order(next_codes[comptime!(2 * k + 1)], comptime!(shared_bits(plan.bits)));
                let item = UNIT_POS + comptime!(k as u32) * units;
                let at = code_stage + item / PLANE_U32 * 2 * PLANE_U32 + item % PLANE_U32;
                #[unroll]
                for half in 0..2usize {
                    let mut operand = Quad::from_int(0);
                    #[unroll]
                    for step in 0..2usize {
                        operand.insert(comptime!(2 * step), low.extract(comptime!(2 * half + step)));
                        operand.insert(comptime!(2 * step + 1), high.extract(comptime!(2 * half + step)));
                    }
                    shared_codes[(at + comptime!((half * PLANE) as u32)) as usize] = operand;
                }
            }
            #[unroll]
            for k in 0..weight_quads {
                let item = UNIT_POS + comptime!(k as u32) * units;
                if item < cube_rows * depth {
                    let mut quad = next_weights[k];
                    if comptime!(!is_packed(plan.bits)) {
                        quad = bytes_of(quad, UNIT_POS % 2, plan.bits);
                    }
                    shared_weights[(weight_stage + item) as usize] = first_words(quad);
                }
            }
            // The one barrier: a unit that fills the other stage has waited for all that read it.
            sync_cube();
            load(
                &mut next_codes,
                &mut next_weights,
                codes,
                weight,
                table,
                &geometry,
                &places,
                &bases,
                channel,
                first_row,
                row_count,
                group,
                first + depth,
                end,
                tile,
                plan,
            );
            let mut rows_of_plane = Sequence::<Array<Bytes<i8>>>::new();
            #[unroll]
            for r in 0..comptime!(tile.rows * 2) {
                let packed =
                    shared_weights[(weight_stage + weight_at + comptime!((r * PLANE) as u32)) as usize];
                let quad = packed_quad(&packed, 0usize, comptime!(shared_bits(plan.bits)));
                #[unroll]
                for half in 0..2usize {
                    let mut operand = Array::<Bytes<i8>>::new(2usize);
                    operand[0] = Bytes::<i8>::reinterpret(quad.extract(comptime!(half * 2)));
                    operand[1] = Bytes::<i8>::reinterpret(quad.extract(comptime!(half * 2 + 1)));
                    rows_of_plane.push(operand);
                }
            }
            #[unroll]
            for p in 0..comptime!(tile.positions) {
                #[unroll]
                for half in 0..2usize {
                    let at = code_stage + code_at + comptime!(((p * 2 + half) * PLANE) as u32);
                    let quad = shared_codes[at as usize];
                    let mut operand = Array::<Bytes<u8>>::new(4usize);
                    #[unroll]
                    for i in 0..4usize {
                        operand[i] = Bytes::<u8>::reinterpret(quad.extract(i));
                    }
                    #[unroll]
                    for r in 0..comptime!(tile.rows * 2) {
                        let product = comptime!(p * tile.rows * 2 + r);
                        let weights = rows_of_plane.index(comptime!(r * 2 + half));
                        definition.execute_inplace(&operand, weights, sums.index_mut(product));
                    }
                }
            }
            stage = 1 - stage;
        }
        if comptime!(scaled) {
            #[unroll]
            for r in 0..comptime!(tile.rows) {
                let row =
                    cube_row + (plane_x * comptime!(tile.rows as u32) + comptime!(r as u32)) * 16 + 4 * t;
                let rows = rows(&geometry, channel_group, row);
                #[unroll]
                for j in 0..STEP {
                    let mut factor = 0.0f32;
                    if comptime!(j as u32) < rows.valid {
                        let at = group * geometry.outputs + rows.output + comptime!(j as u32);
                        factor = multiplier[at as usize];
                    }
                    #[unroll]
                    for i in 0..comptime!(tile.positions * 2) {
                        let product = comptime!(i / 2 * tile.rows * 2 + r * 2 + j / 2);
                        let pair = sums.index_mut(product);
                        let sum = pair[comptime!(i % 2)].extract(comptime!(j % 2))
                            >> comptime!(8 - shared_bits(plan.bits) as i32);
                        values[comptime!((i * tile.rows + r) * 4 + j)] += factor * f32::cast_from(sum);
                    }
                }
            }
            #[unroll]
            for i in 0..products {
                let pair = sums.index_mut(i);
                pair[0] = Pair::from_int(0);
                pair[1] = Pair::from_int(0);
            }
        }
    }
    #[unroll]
    for r in 0..comptime!(tile.rows) {
        let row = cube_row + (plane_x * comptime!(tile.rows as u32) + comptime!(r as u32)) * 16 + 4 * t;
        let rows = rows(&geometry, channel_group, row);
        let mut factors = Array::<f32>::new(STEP);
        #[unroll]
        for j in 0..STEP {
            factors[j] = 0.0;
            if comptime!(!scaled) && comptime!(j as u32) < rows.valid {
                factors[j] = multiplier[(rows.output + comptime!(j as u32)) as usize];
            }
        }
        #[unroll]
        for i in 0..comptime!(tile.positions * 2) {
            let mut four = Vector::<f32, Quad4>::from_int(0);
            #[unroll]
            for j in 0..STEP {
                if comptime!(scaled) {
                    four.insert(j, values[comptime!((i * tile.rows + r) * 4 + j)]);
                } else {
                    let product = comptime!(i / 2 * tile.rows * 2 + r * 2 + j / 2);
                    let pair = sums.index(product);
                    let sum = pair[comptime!(i % 2)].extract(comptime!(j % 2))
                        >> comptime!(8 - shared_bits(plan.bits) as i32);
                    // From zero on, as with several scale groups.
                    four.insert(j, 0.0f32 + factors[j] * f32::cast_from(sum));
                }
            }
            let position = first_position
                + plane_y * comptime!((tile.positions * SHAPE[0]) as u32)
                + comptime!((i / 2 * SHAPE[0] + i % 2 * 8) as u32)
                + g;
            finish_four(four, position, &rows, addend, residual, &quantizer, out, &geometry, plan.epilogue);
        }
    }
}

/// How a cube of [`mma_split_kernel`] works: `planes` planes share the sums of `rows` times 16 rows; `quads` quads of weights
/// are a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MmaSplit {
    pub(super) planes: usize,
    pub(super) rows: usize,
    pub(super) quads: usize,
}

impl MmaSplit {
    pub(super) const fn units(self) -> usize {
        self.planes * PLANE
    }

    /// Rows of a cube.
    pub(super) const fn cube_rows(self) -> usize {
        self.rows * SHAPE[0]
    }

    /// Sums of a unit.
    const fn sums(self) -> usize {
        self.rows * 4
    }
}

/// For at most eight positions and one scale group: rows of weights take the place of positions, and each plane has every
/// `planes`-th piece of them, straight from memory.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn mma_split_kernel<N: Size, W: Size, M: Size>(
    codes: &[Vector<u32, N>], weight: &[Vector<u32, W>], table: &[u32], multiplier: &[f32], addend: &[f32],
    residual: &[f32], out: &mut [Vector<u32, M>], geometry: Geometry, quantizer: Quantizer,
    #[comptime] split: MmaSplit, #[comptime] plan: Plan,
) {
    let cube_rows = comptime!(split.cube_rows() as u32);
    let bits = comptime!(shared_bits(plan.bits));
    let packed = comptime!(is_packed(plan.bits));
    let row_tiles = geometry.group_outputs.div_ceil(cube_rows);
    let all_row_tiles = geometry.outputs / geometry.group_outputs * row_tiles;
    let cube = CUBE_POS as u32;
    let first_position = cube / all_row_tiles * comptime!(SHAPE[1] as u32);
    if first_position >= geometry.positions {
        terminate!(); // the whole cube leaves together, so the barrier below is safe
    }
    let channel_group = cube % all_row_tiles / row_tiles;
    let cube_row = cube % row_tiles * cube_rows;
    let channel = geometry.first_channel(channel_group);
    let plane = UNIT_POS / PLANE_U32;
    let lane = UNIT_POS % PLANE_U32;
    let (g, t) = (lane / 4, lane % 4);

    let mut places = Places::new(1usize);
    places.set(&geometry, 0usize, first_position + g);
    let valid = first_position + g < geometry.positions;
    let definition = MmaDefinition::<i8, u8, i32>::new(SHAPE[0], SHAPE[1], SHAPE[2]);
    let mut sums = Sequence::<Array<Pair>>::new();
    #[unroll]
    for _ in 0..split.rows {
        let mut pair = Array::<Pair>::new(2usize);
        pair[0] = Pair::from_int(0);
        pair[1] = Pair::from_int(0);
        sums.push(pair);
    }
    let begin = geometry.first_quad(table, 0u32, plan.walk.order);
    let end = geometry.end_quad(table, 0u32, plan.walk.order);
    let row_quads = geometry.row_blocks * comptime!(BLOCK_QUADS as u32);
    let piece = comptime!(4 * split.quads as u32);
    let base = geometry.straight_base(&places, 0usize, channel);
    // The units of a plane stay together.
    for first in range_stepped(begin + plane * piece, end, comptime!(split.planes as u32) * piece) {
        let quad = first + t * comptime!(split.quads as u32);
        let inside = quad < end;
        // The rows that this unit reads: `g` and `g + 8` of each 16.
        let mut vectors = Array::<Vector<u32, W>>::new(comptime!(split.rows * 2));
        if comptime!(packed) {
            #[unroll]
            for r in 0..comptime!(split.rows * 2) {
                let row = min(cube_row + g + comptime!(8 * r as u32), geometry.group_rows - 1);
                let at = (channel_group * geometry.group_rows + row) * row_quads + quad;
                vectors[r] = Vector::from_int(0);
                if inside {
                    vectors[r] = weight[(at / comptime!(split.quads as u32)) as usize];
                }
            }
        }
        #[unroll]
        for q in 0..split.quads {
            let mut quad_of_codes = Quad::from_int(0);
            if valid && inside {
                let quad = quad + comptime!(q as u32);
                let natural = if comptime!(plan.walk.straight) {
                    geometry.straight_quad(codes, base, 0u32, quad)
                } else {
                    geometry.code_quad(codes, table, &places, 0usize, channel, 0u32, quad, plan.walk)
                };
                quad_of_codes = in_order(natural, bits);
            }
            #[unroll]
            for r in 0..split.rows {
                let mut rows_of_unit = Array::<Quad>::new(2usize);
                #[unroll]
                for i in 0..2usize {
                    if comptime!(packed) {
                        let first_word = comptime!(q * bits as usize / 2);
                        rows_of_unit[i] = packed_quad(&vectors[comptime!(2 * r + i)], first_word, bits);
                    } else {
                        let row =
                            min(cube_row + g + comptime!((16 * r + 8 * i) as u32), geometry.group_rows - 1);
                        let at = (channel_group * geometry.group_rows + row) * row_quads + quad;
                        rows_of_unit[i] = Quad::from_int(0);
                        if inside {
                            rows_of_unit[i] = weight_quad(weight, geometry.blocks, at, plan.bits);
                        }
                    }
                }
                #[unroll]
                for half in 0..2usize {
                    let mut rows = Array::<Bytes<i8>>::new(4usize);
                    let mut positions = Array::<Bytes<u8>>::new(2usize);
                    #[unroll]
                    for step in 0..2usize {
                        let word = comptime!(2 * half + step);
                        positions[step] = Bytes::<u8>::reinterpret(quad_of_codes.extract(word));
                        #[unroll]
                        for i in 0..2usize {
                            rows[comptime!(2 * step + i)] =
                                Bytes::<i8>::reinterpret(rows_of_unit[i].extract(word));
                        }
                    }
                    definition.execute_inplace(&rows, &positions, sums.index_mut(r));
                }
            }
        }
    }
    // `[planes, sums of a unit, units]`
    let mut shared = Shared::<[i32]>::new_slice(comptime!(split.units() * split.sums()));
    #[unroll]
    for i in 0..comptime!(split.sums()) {
        let pair = sums.index(comptime!(i / 4));
        let sum = pair[comptime!(i / 2 % 2)].extract(comptime!(i % 2));
        let at = plane * comptime!((split.sums() * PLANE) as u32) + comptime!((i * PLANE) as u32) + lane;
        shared[at as usize] = sum;
    }
    sync_cube();
    // A unit has four rows and a position now.
    let items = comptime!((split.rows * 4 * SHAPE[1]) as u32);
    for item in range_stepped(UNIT_POS, items, comptime!(split.units() as u32)) {
        let (four, position) = (item / comptime!(SHAPE[1] as u32), item % comptime!(SHAPE[1] as u32));
        let rows = rows(&geometry, channel_group, cube_row + four * 4);
        let mut values = Vector::<f32, Quad4>::from_int(0);
        #[unroll]
        for j in 0..STEP {
            let row = four * 4 + comptime!(j as u32);
            // The sum's place: which of a unit's, and which unit.
            let sum_of_unit = row / 16 * 4 + row % 16 / 8 * 2 + position % 2;
            let at = sum_of_unit * PLANE_U32 + row % 8 * 4 + position / 2;
            let mut sum = 0i32;
            #[unroll]
            for p in 0..split.planes {
                sum += shared[(at + comptime!((p * split.sums() * PLANE) as u32)) as usize];
            }
            if comptime!(j as u32) < rows.valid {
                let factor = multiplier[(rows.output + comptime!(j as u32)) as usize];
                values.insert(j, factor * f32::cast_from(sum >> comptime!(8 - bits as i32)));
            }
        }
        finish_four(
            values,
            first_position + position,
            &rows,
            addend,
            residual,
            &quantizer,
            out,
            &geometry,
            plan.epilogue,
        );
    }
}

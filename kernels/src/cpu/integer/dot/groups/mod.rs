//! Tiles of products in groups: rows and weights have scales of their own for every block of 32 inputs, so the sums of a block
//! become values before the next one is summed.
//!
//! A loop is written once, over the decoder of packed codes, for vectors ([`Vectors`]) of each instruction set. Weights are
//! unsigned here, `u = q + 2^(b-1)`: that is how they lie in memory, and what `vpdpbusd` takes. With `s` and `z` the scale and the
//! offset of a group of weights, `t` the scale of a row's group and `c` its codes,
//!
//! ```text
//! value += t * (s * sum(u c) + (z - s * 2^(b-1)) * sum(c))
//! ```
//!
//! Both sums are exact. The offset is made up for in `f32`, where the product of `s` with a power of two is exact.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use super::super::decode::{self, Bytes, for_width};
use crate::integer::{ByteFactors, PANEL};
use crate::layout::BLOCK;
use bytemuck::{Pod, Zeroable};
use dr_precision::BitWidth;

/// 32 codes of a row, with a scale of their own: what a block of weights is multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct RowGroup {
    /// From -127 to 127; zeros where there are no inputs.
    pub codes: [i8; BLOCK],
    pub scale: f32,
    /// Of the codes: an integer.
    pub sum: f32,
}

/// Rows of the largest tile there is.
pub(in super::super) const GROUP_ROWS: usize = 6;
/// Panels of the largest tile there is.
pub(in super::super) const GROUP_PANELS: usize = 3;

/// What products are added to: `[rows, panels, 16]`.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(in super::super) struct Values(pub [[[f32; PANEL]; GROUP_PANELS]; GROUP_ROWS]);

/// A packed panel: factors of its 16 scales and 16 offsets in `f32`; for each block, 16 scales and 16 offsets as parts of these; for each
/// block, `b` vectors of codes.
///
/// Of up to 4 bits a scale is the square of a byte and an offset is a signed byte ([`ByteFactors`]): finer steps than those of the codes, in
/// an eighth of the memory that 4-bit codes take. Of more bits both are halves.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct PackedPanel {
    /// Width of the codes.
    pub bits: BitWidth,
    pub blocks: usize,
}

impl PackedPanel {
    /// The widest codes whose scales and offsets are bytes.
    const SMALL: u32 = ByteFactors::WIDEST.bits();
    /// Bytes of all factors.
    pub(in super::super) const FACTOR_BYTES: usize = 2 * PANEL * size_of::<f32>();

    /// Bytes of the scales and offsets of a block of codes of so many bits.
    pub(in super::super) const fn scale_bytes(bits: u32) -> usize {
        if bits <= Self::SMALL { 2 * PANEL } else { 4 * PANEL }
    }

    /// Bytes of the codes of a block.
    pub(in super::super) const fn code_bytes(self) -> usize {
        self.bits.bits() as usize * 64
    }

    /// Bytes before the codes.
    pub(in super::super) const fn codes_at(self) -> usize {
        (Self::FACTOR_BYTES + self.blocks * Self::scale_bytes(self.bits.bits())).next_multiple_of(64)
    }

    /// Bytes of the panel: whole vectors.
    pub(in super::super) const fn bytes(self) -> usize {
        self.codes_at() + self.blocks * self.code_bytes()
    }
}

/// A panel that is unpacked for several tiles: for each block, 16 scales and 16 offsets, less what makes codes unsigned, in `f32`; for each
/// block, 8 vectors of codes.
pub(in super::super) struct UnpackedPanel;

impl UnpackedPanel {
    /// Bytes of the scales and offsets of a block.
    pub(in super::super) const SCALE_BYTES: usize = 2 * PANEL * size_of::<f32>();
    /// Bytes of the codes of a block.
    pub(in super::super) const CODE_BYTES: usize = PANEL * BLOCK;
    /// Bytes of a block.
    pub(in super::super) const BLOCK_BYTES: usize = Self::SCALE_BYTES + Self::CODE_BYTES;
}

/// How panels lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum GroupForm {
    /// [`PackedPanel`].
    Packed,
    /// [`UnpackedPanel`].
    Bytes,
}

/// What a tile is computed from.
pub(in super::super) struct GroupOperands {
    /// The first group of the first row.
    pub rows: *const RowGroup,
    /// How many rows there are, at most as many as the tile has, and groups from one to the next.
    pub row_count: usize,
    pub row_groups: usize,
    /// The first panel.
    pub panels: *const u8,
    /// How many panels there are, at most as many as the tile has, and bytes from one to the next.
    pub panel_count: usize,
    pub panel_bytes: usize,
    pub form: GroupForm,
    /// Where the codes of a panel start.
    pub codes_at: usize,
    /// Blocks that are summed: all of a panel.
    pub blocks: usize,
    /// Width of the weights.
    pub bits: BitWidth,
}

/// How one instruction set computes tiles in groups.
pub(in super::super) trait GroupKernel: Sync {
    /// Rows and panels of a tile.
    fn group_tile(&self, form: GroupForm) -> [usize; 2];

    /// What is to be taken from the weights of `bits` bits as they are multiplied, so that they are the codes.
    fn group_offset(&self, bits: BitWidth) -> i32 {
        1 << (bits.bits() - 1)
    }

    /// Adds the products of a tile.
    ///
    /// # Safety
    /// The machine has the instructions. All that `operands` says can be read.
    unsafe fn add_groups(&self, operands: &GroupOperands, values: &mut Values);
}

/// Bytes between what is used and what is fetched from memory.
const AHEAD: usize = 2048;

/// The vectors of an instruction set, which is enabled by the function that all of this is compiled into.
trait Vectors {
    /// 64 bytes: four weights of each output of a panel.
    type Codes: Bytes;
    /// A sum for each output.
    type Sums: Copy;
    /// A value for each output.
    type Values: Copy;

    /// What is to be taken from weights: [`GroupKernel::group_offset`].
    #[inline(always)]
    fn offset(bits: u32) -> f32 {
        (1u32 << (bits - 1)) as f32
    }

    /// Has memory fetched.
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}

    unsafe fn zero() -> Self::Sums;

    /// Adds the products of the four codes at `codes + 4 STEP` with weights of at most `bits` bits, which is a constant where this
    /// is compiled into; steps are taken in order.
    unsafe fn add<const STEP: usize, const PANELS: usize>(
        bits: u32, sums: &mut [Self::Sums; PANELS], codes: *const i8, weights: [Self::Codes; PANELS],
    );

    unsafe fn load(at: *const f32) -> Self::Values;

    unsafe fn store(values: Self::Values, at: *mut f32);

    /// From halves.
    unsafe fn widen(at: *const u16) -> Self::Values;

    /// From bytes.
    unsafe fn unsigned(at: *const u8) -> Self::Values;

    /// From signed bytes.
    unsafe fn signed(at: *const u8) -> Self::Values;

    unsafe fn product(values: Self::Values, other: Self::Values) -> Self::Values;

    /// `values + factor * other`.
    unsafe fn multiply_add(values: Self::Values, factor: f32, other: Self::Values) -> Self::Values;

    /// `values + row.scale * (scale * sums + offset * row.sum)`.
    unsafe fn scaled(
        values: Self::Values, sums: Self::Sums, scale: Self::Values, offset: Self::Values,
        row: *const RowGroup,
    ) -> Self::Values;
}

/// How panels lie in memory.
trait Source<V: Vectors> {
    /// Width of the weights, or a larger one.
    const BITS: u32;
    /// Bytes of the codes of a block, of its scales and offsets, and what is before these.
    const CODE_BYTES: usize;
    const SCALE_BYTES: usize;
    const FACTOR_BYTES: usize;
    /// Whether weights come from memory.
    const STREAMED: bool;
    /// What all scales and offsets of a panel are multiplied by.
    type Factors: Copy;
    unsafe fn factors(panel: *const u8) -> Self::Factors;
    /// The weights of a step.
    unsafe fn step<const STEP: usize>(block: *const u8) -> V::Codes;
    /// The scales of a block, and its offsets less what makes weights unsigned.
    unsafe fn scales(at: *const u8, factors: Self::Factors) -> [V::Values; 2];
}

/// [`PackedPanel`].
struct Packed<const BITS: u32>;

impl<V: Vectors, const BITS: u32> Source<V> for Packed<BITS> {
    const BITS: u32 = BITS;
    const CODE_BYTES: usize = BITS as usize * 64;
    const SCALE_BYTES: usize = PackedPanel::scale_bytes(BITS);
    const FACTOR_BYTES: usize = PackedPanel::FACTOR_BYTES;
    const STREAMED: bool = true;
    type Factors = [V::Values; 2];

    #[inline(always)]
    unsafe fn factors(panel: *const u8) -> [V::Values; 2] {
        // SAFETY: The caller promises the panel.
        unsafe { [V::load(panel.cast()), V::load(panel.cast::<f32>().add(PANEL))] }
    }

    #[inline(always)]
    unsafe fn step<const STEP: usize>(block: *const u8) -> V::Codes {
        // SAFETY: The caller promises the block.
        unsafe { decode::step::<V::Codes, BITS>(block, STEP as u32) }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, [of_scale, of_offset]: [V::Values; 2]) -> [V::Values; 2] {
        // SAFETY: The caller promises the block's scales; halves are aligned as all blocks are.
        unsafe {
            let (scale, offset) = if BITS <= PackedPanel::SMALL {
                let root = V::unsigned(at);
                (V::product(root, root), V::signed(at.add(PANEL)))
            } else {
                (V::widen(at.cast()), V::widen(at.cast::<u16>().add(PANEL)))
            };
            let scale = V::product(scale, of_scale);
            [scale, V::multiply_add(V::product(offset, of_offset), -V::offset(BITS), scale)]
        }
    }
}

/// [`UnpackedPanel`], of weights of at most so many bits.
struct Unpacked<const BITS: u32>;

impl<V: Vectors, const BITS: u32> Source<V> for Unpacked<BITS> {
    const BITS: u32 = BITS;
    const CODE_BYTES: usize = UnpackedPanel::CODE_BYTES;
    const SCALE_BYTES: usize = UnpackedPanel::SCALE_BYTES;
    const FACTOR_BYTES: usize = 0;
    const STREAMED: bool = false;
    type Factors = ();

    #[inline(always)]
    unsafe fn factors(_: *const u8) {}

    #[inline(always)]
    unsafe fn step<const STEP: usize>(block: *const u8) -> V::Codes {
        // SAFETY: The caller promises the block.
        unsafe { block.add(STEP * 64).cast::<V::Codes>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u8, (): ()) -> [V::Values; 2] {
        // SAFETY: The caller promises the block's scales.
        unsafe { [V::load(at.cast()), V::load(at.cast::<f32>().add(PANEL))] }
    }
}

/// A tile of so many rows and panels; what is missing repeats the first.
#[expect(
    clippy::needless_range_loop,
    reason = "iterators are not always unrolled, and vectors would be in memory"
)]
#[inline(always)]
unsafe fn tile<V: Vectors, S: Source<V>, const ROWS: usize, const PANELS: usize>(
    operands: &GroupOperands, values: &mut Values,
) {
    // SAFETY: The caller promises that the operands can be read, and enables the instructions.
    unsafe {
        let (mut rows, mut panels) = ([operands.rows; ROWS], [operands.panels; PANELS]);
        for row in 1..ROWS {
            rows[row] = rows[row].add(if row < operands.row_count { row * operands.row_groups } else { 0 });
        }
        for panel in 1..PANELS {
            let start = if panel < operands.panel_count { panel * operands.panel_bytes } else { 0 };
            panels[panel] = panels[panel].add(start);
        }
        let (mut factors, mut scales, mut blocks) = ([S::factors(panels[0]); PANELS], panels, panels);
        for panel in 0..PANELS {
            factors[panel] = S::factors(panels[panel]);
            scales[panel] = panels[panel].add(S::FACTOR_BYTES);
            blocks[panel] = panels[panel].add(operands.codes_at);
        }
        let mut tile = [[V::load(values.0[0][0].as_ptr()); PANELS]; ROWS];
        for row in 0..ROWS {
            for panel in 0..PANELS {
                tile[row][panel] = V::load(values.0[row][panel].as_ptr());
            }
        }
        for _ in 0..operands.blocks {
            if S::STREAMED {
                for panel in 0..PANELS {
                    for vector in 0..S::CODE_BYTES / 64 {
                        V::prefetch(blocks[panel].wrapping_add(vector * 64 + AHEAD));
                    }
                    V::prefetch(scales[panel].wrapping_add(AHEAD / S::CODE_BYTES * S::SCALE_BYTES));
                }
            }
            let mut sums = [[V::zero(); PANELS]; ROWS];
            macro_rules! steps {
                ($($step:literal)*) => {$({
                    let mut weights = [S::step::<$step>(blocks[0]); PANELS];
                    for panel in 1..PANELS {
                        weights[panel] = S::step::<$step>(blocks[panel]);
                    }
                    for row in 0..ROWS {
                        V::add::<$step, PANELS>(S::BITS, &mut sums[row], rows[row].cast(), weights);
                    }
                })*};
            }
            steps!(0 1 2 3 4 5 6 7);
            for panel in 0..PANELS {
                let [scale, offset] = S::scales(scales[panel], factors[panel]);
                for row in 0..ROWS {
                    tile[row][panel] =
                        V::scaled(tile[row][panel], sums[row][panel], scale, offset, rows[row]);
                }
                scales[panel] = scales[panel].add(S::SCALE_BYTES);
                blocks[panel] = blocks[panel].add(S::CODE_BYTES);
            }
            for row in &mut rows {
                *row = row.add(1);
            }
        }
        for row in 0..ROWS {
            for panel in 0..PANELS {
                V::store(tile[row][panel], values.0[row][panel].as_mut_ptr());
            }
        }
    }
}

/// [`tile`] of packed weights.
#[inline(always)]
unsafe fn packed<V: Vectors, const ROWS: usize, const PANELS: usize>(
    operands: &GroupOperands, values: &mut Values,
) {
    // SAFETY: As promised by the caller.
    unsafe { for_width!(operands.bits, BITS, tile::<V, Packed<BITS>, ROWS, PANELS>(operands, values)) }
}

impl<V: Bytes, const N: usize> Bytes for [V; N] {
    #[inline(always)]
    unsafe fn or(mut self, other: Self) -> Self {
        for (vector, other) in self.iter_mut().zip(other) {
            // SAFETY: As promised by the caller.
            *vector = unsafe { vector.or(other) };
        }
        self
    }

    #[inline(always)]
    unsafe fn field(mut self, up: i32, mask: u8) -> Self {
        for vector in &mut self {
            // SAFETY: As promised by the caller.
            *vector = unsafe { vector.field(up, mask) };
        }
        self
    }
}

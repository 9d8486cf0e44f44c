//! [`DotKernel`]: sums of products of bytes, in tiles, for each instruction set that has something for it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod groups;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

pub(crate) use groups::RowGroup;
pub(super) use groups::{
    GROUP_PANELS, GROUP_ROWS, GroupForm, GroupOperands, PackedPanel, UnpackedPanel, Values,
};

use super::epilogue::{Place, RowSums};
use crate::integer::{BLOCK_STEPS, PANEL, STEP, offset};
use crate::layout::BLOCK;
use dr_precision::BitWidth;
use std::{fmt, sync::OnceLock};

/// Instructions for the products of unsigned with signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DotKernel {
    /// What the compiler makes of a plain loop.
    Portable,
    /// AVX2: `vpmaddubsw` where sums of two products fit into 16 bits, else `vpmaddwd`.
    Avx2,
    /// AVX-VNNI: `vpdpbusd` on 32 bytes.
    AvxVnni,
    /// AVX-512 VNNI: `vpdpbusd` on 64 bytes.
    Avx512Vnni,
    /// NEON with the dot-product instructions: `udot`, and `sdot` for weights of 8 bits.
    NeonDot,
}

impl DotKernel {
    /// All of them, best last.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni, Self::NeonDot];

    /// The best one that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        static BEST: OnceLock<DotKernel> = OnceLock::new();
        let best = || Self::ALL.into_iter().rfind(|kernel| kernel.is_available()).unwrap_or(Self::Portable);
        *BEST.get_or_init(best)
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        self.micro().is_some()
    }

    /// The kernel, if it is one for this processor, and this machine has it.
    pub(super) fn micro(self) -> Option<&'static dyn MicroKernel> {
        let kernel: &'static dyn MicroKernel = match self {
            Self::Portable => &portable::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => &avx2::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => &avx2::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => &avx512::Avx512Vnni,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => &neon::NeonDot,
            // Those of other processors.
            _ => return None,
        };
        kernel.is_available().then_some(kernel)
    }
}

impl fmt::Display for DotKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::NeonDot => "neon-dot",
        })
    }
}

/// How one instruction set computes tiles of sums.
pub(super) trait MicroKernel: groups::GroupKernel {
    /// Whether this machine has the instructions.
    fn is_available(&self) -> bool;

    /// Rows and panels of the tile of most panels.
    fn tile(&self) -> [usize; 2];

    /// Rows of a tile of `panels` panels.
    fn rows(&self, _panels: usize, _form: Form) -> usize {
        self.tile()[0]
    }

    /// How `rows` rows and weights of `bits` bits are best read. `pair_steps` is that of these weights as bytes.
    fn form(&self, bits: BitWidth, pair_steps: usize, rows: usize) -> Form;

    /// Whether it matters how large codes are.
    fn adds_pairs(&self) -> bool {
        false
    }

    /// The weights of [`Form::Words`] from those of [`Form::Bytes`], for kernels that read it.
    fn widen_weights(&self, _bytes: &[i8], _words: &mut [i16]) {}

    /// What scales sums and writes the results, if the kernel has something of its own for it, which needs its instructions.
    fn writer(&self) -> Option<unsafe fn(&Place, &RowSums)> {
        None
    }

    /// What sums the codes of windows, one for each base, if the kernel has something of its own for it, which needs its instructions, and that
    /// all windows end inside the codes. There are as many results as bases, or more.
    fn summer(&self) -> Option<unsafe fn(&Windows, &mut [f32])> {
        None
    }

    /// Computes a tile.
    ///
    /// # Safety
    /// The machine has the instructions. All that `operands` says can be read.
    unsafe fn run(&self, operands: &Operands, sums: &mut Sums);

    /// Computes sums of 16 channels, each of which is convolved by itself, and those of the inputs that they are of.
    ///
    /// # Safety
    /// The machine has the instructions. All that `taps` says can be read.
    unsafe fn depthwise(&self, taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>);
}

/// Positions of a tile of channels by themselves: many, as they take little time.
pub(super) const LANE_ROWS: usize = 48;

/// Sums of 16 channels at each position of such a tile.
pub(super) type LaneSums = [[i32; PANEL]; LANE_ROWS];

/// What sums of 16 channels, each by itself, are computed from.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 reads all of it"))]
pub(super) struct Taps<'a> {
    /// The codes, from the first channel on.
    pub codes: *const u8,
    /// Where each position's window starts in them: at most [`LANE_ROWS`].
    pub bases: &'a [usize],
    /// Where each tap is, from there: 16 codes.
    pub offsets: &'a [u32],
    /// Rows and columns of the taps.
    pub kernel: [usize; 2],
    /// `[steps, 16, 4]`: four taps in a step, zeros after the last one.
    pub weights: &'a [i8],
}

/// The codes that rows of sums are of.
pub(super) struct Windows<'a> {
    pub codes: &'a [u8],
    /// Where each window starts in them.
    pub bases: &'a [usize],
    /// Where each step is, from there. Those of a tap follow each other.
    pub offsets: &'a [u32],
    /// How many a tap has.
    pub steps: usize,
    pub taps: usize,
    /// How many codes a tap has.
    pub run: usize,
}

impl Windows<'_> {
    /// Where each tap is in a window.
    #[inline(always)]
    fn taps(&self) -> impl Iterator<Item = usize> {
        self.offsets.chunks(self.steps).take(self.taps).map(|steps| steps[0] as usize)
    }

    /// The codes of each tap of a window.
    #[inline(always)]
    pub fn runs(&self, base: usize) -> impl Iterator<Item = &[u8]> {
        self.taps().map(move |tap| &self.codes[base + tap..][..self.run])
    }
}

/// Bytes between what is used and what is fetched from memory.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// Rows of the largest tile there is.
pub(super) const ROWS: usize = 12;
/// Panels of the largest tile there is.
pub(super) const PANELS: usize = 3;

/// Sums of products: `[rows, panels, 16]`.
pub(super) type Sums = [[[i32; PANEL]; PANELS]; ROWS];

/// How a tile's operands lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Codes of rows are bytes, those of weights are packed and have their offset: sums are with it.
    Packed,
    /// Both are bytes.
    Bytes,
    /// Both have 16 bits.
    Words,
}

/// What a tile is computed from.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX2 reads all of it"))]
pub(super) struct Operands<'a> {
    /// What the operands are.
    pub form: Form,
    /// The codes.
    pub codes: *const u8,
    /// Where each row of the tile starts in them, counted in codes: at most as many as the tile has rows.
    pub bases: &'a [usize],
    /// Where each step's four codes are, from there.
    pub offsets: &'a [u32],
    /// The weights: of the first panel, from the first step on.
    pub weights: *const u8,
    /// Bytes from one panel to the next.
    pub panel_bytes: usize,
    /// Bytes from the end of a panel to the one in its place in the next tile.
    pub next_bytes: usize,
    /// How many: at most as many as the tile has.
    pub panels: usize,
    /// The width that [`Form::Packed`] weights have.
    pub bits: BitWidth,
    /// In how many steps the sums of two products fit into 16 bits, for kernels that [add pairs](MicroKernel::adds_pairs).
    pub pair_steps: usize,
}

/// How many sums of two products of codes up to `activation` and weights of `weights` bits fit into 16 bits.
pub(super) const fn pair_steps(weights: BitWidth, activation: u8) -> usize {
    let product = (activation as usize) << (weights.bits() - 1);
    if product == 0 { usize::MAX } else { i16::MAX as usize / (2 * product) }
}

/// The sum of a row's codes in a window, times the offset of weights of `bits` bits: what their sums of products are to be
/// lessened by.
#[inline(always)]
pub(super) fn correction(codes: &[u8], offsets: &[u32], bits: BitWidth) -> i32 {
    let sum = |codes: &[u8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
    let mut all = 0i32;
    for block in offsets.as_chunks::<BLOCK_STEPS>().0 {
        let first = block[0] as usize;
        let in_a_row = block.iter().zip(0..).all(|(&offset, step)| offset == block[0] + step * STEP as u32);
        all = all.wrapping_add(match codes[first..].first_chunk::<BLOCK>() {
            Some(codes) if in_a_row => sum(codes),
            _ => block.iter().map(|&offset| sum(&codes[offset as usize..][..STEP])).sum(),
        });
    }
    all.wrapping_mul(offset(bits))
}

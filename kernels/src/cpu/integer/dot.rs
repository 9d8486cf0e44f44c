//! [`DotKernel`]: sums of products of bytes, in tiles, for each instruction set that has something for it.

use crate::integer::{BLOCK_STEPS, PANEL, offset};
use dr_precision::BitWidth;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::{fmt, str::FromStr, sync::OnceLock};

/// Instructions for the products of unsigned with signed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DotKernel {
    /// What the compiler makes of a plain loop.
    Portable,
    /// AVX2: `vpmaddubsw` and `vpmaddwd`, so that nothing saturates.
    Avx2,
    /// AVX-VNNI: `vpdpbusd` on 32 bytes.
    AvxVnni,
    /// AVX-512 VNNI: `vpdpbusd` on 64 bytes.
    Avx512Vnni,
}

impl DotKernel {
    /// All of them, best last.
    pub const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512Vnni];

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
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Rows and panels of the largest tile.
    pub(super) const fn tile(self) -> [usize; 2] {
        match self {
            Self::Portable => [4, 1],
            Self::Avx2 | Self::AvxVnni => [4, 1],
            Self::Avx512Vnni => [8, 3],
        }
    }

    /// Whether narrow weights are multiplied as they are; else they are unpacked to bytes before.
    pub(super) const fn reads_packed(self) -> bool {
        matches!(self, Self::Avx512Vnni)
    }

    /// Computes a tile.
    ///
    /// # Safety
    /// The machine has the instructions. All that `operands` says can be read.
    pub(super) unsafe fn run(self, operands: &Operands, sums: &mut Sums) {
        // SAFETY: As promised by the caller.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Vnni => avx512_vnni(operands, sums),
                #[cfg(target_arch = "x86_64")]
                Self::AvxVnni => avx_vnni(operands, sums),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2(operands, sums),
                _ => portable(operands, sums),
            }
        }
    }
}

impl fmt::Display for DotKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
        })
    }
}

impl FromStr for DotKernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(|kernel| kernel.to_string());
        match names.iter().position(|name| name == text) {
            Some(index) => Ok(Self::ALL[index]),
            None => Err(format!("unknown kernel `{text}`: expected one of {}", names.join(", "))),
        }
    }
}

/// Bytes between what is used and what is fetched from memory.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 2048;

/// Rows of the largest tile there is.
pub(super) const ROWS: usize = 8;
/// Panels of the largest tile there is.
pub(super) const PANELS: usize = 3;

/// Sums of products: `[rows, panels, 16]`.
pub(super) type Sums = [[[i32; PANEL]; PANELS]; ROWS];

/// What a tile is computed from.
pub(super) struct Operands<'a> {
    /// The codes.
    pub codes: *const u8,
    /// Where each row of the tile starts in them: at most as many as the tile has rows.
    pub bases: &'a [usize],
    /// Where each step's four codes are, from there.
    pub offsets: &'a [u32],
    /// The weights: of the first panel, from the first step on.
    pub weights: *const u8,
    /// Bytes from one panel to the next.
    pub panel_bytes: usize,
    /// How many: at most as many as the tile has.
    pub panels: usize,
    /// The width of the codes in `weights`. Those below 8 bits have their offset, and sums are with it.
    pub bits: BitWidth,
    /// Whether the codes fit into 7 bits, in however many they are.
    pub narrow: bool,
}

impl Operands<'_> {
    fn blocks(&self) -> usize {
        self.offsets.len() / BLOCK_STEPS
    }
}

/// Plain loops.
unsafe fn portable(operands: &Operands, sums: &mut Sums) {
    for (&base, sums) in operands.bases.iter().zip(sums) {
        for (panel, sums) in sums.iter_mut().enumerate().take(operands.panels) {
            let mut sum = [0i32; PANEL];
            for (step, &offset) in operands.offsets.iter().enumerate() {
                // SAFETY: The caller promises that these can be read.
                let (x, w) = unsafe {
                    (
                        operands.codes.add(base + offset as usize).cast::<[u8; 4]>().read(),
                        operands
                            .weights
                            .add(panel * operands.panel_bytes + step * 64)
                            .cast::<[[i8; 4]; PANEL]>()
                            .read(),
                    )
                };
                for (sum, w) in sum.iter_mut().zip(w) {
                    for (x, w) in x.into_iter().zip(w) {
                        *sum += i32::from(x) * i32::from(w);
                    }
                }
            }
            *sums = sum;
        }
    }
}

/// Multiplies four unsigned with four signed bytes in each lane, and adds the products to the lane.
#[cfg(target_arch = "x86_64")]
trait MultiplyAdd {
    unsafe fn multiply_add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i;
}

#[cfg(target_arch = "x86_64")]
struct Vnni;
#[cfg(target_arch = "x86_64")]
struct Pairs;
#[cfg(target_arch = "x86_64")]
struct HalvedPairs;

#[cfg(target_arch = "x86_64")]
impl MultiplyAdd for Vnni {
    #[inline(always)]
    unsafe fn multiply_add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: Called from functions that enable AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(sum, x, w) }
    }
}

/// For weights of at most 7 bits: `2 * 255 * 64` fits into 16 bits.
#[cfg(target_arch = "x86_64")]
impl MultiplyAdd for Pairs {
    #[inline(always)]
    unsafe fn multiply_add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: Called from functions that enable AVX2.
        unsafe {
            let pairs = _mm256_maddubs_epi16(x, w);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }
}

/// For weights of 8 bits: `x = 2 * (x / 2) + x % 2`, and `2 * 127 * 128` fits into 16 bits.
#[cfg(target_arch = "x86_64")]
impl MultiplyAdd for HalvedPairs {
    #[inline(always)]
    unsafe fn multiply_add(sum: __m256i, x: __m256i, w: __m256i) -> __m256i {
        // SAFETY: Called from functions that enable AVX2.
        unsafe {
            let low = _mm256_and_si256(x, _mm256_set1_epi8(1));
            let high = _mm256_and_si256(_mm256_srli_epi16::<1>(x), _mm256_set1_epi8(127));
            let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, w), _mm256_set1_epi16(1));
            let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, w), _mm256_set1_epi16(2));
            _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
        }
    }
}

/// Four rows and a panel, in two halves.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn tile_256<M: MultiplyAdd>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: The caller promises that the operands can be read, and enables the instructions.
    unsafe {
        // Rows that are missing repeat the first.
        let bases: [usize; 4] =
            std::array::from_fn(|row| *operands.bases.get(row).unwrap_or(&operands.bases[0]));
        let mut tile = [[_mm256_setzero_si256(); 2]; 4];
        let mut weights = operands.weights;
        for &offset in operands.offsets {
            let w = [
                weights.cast::<__m256i>().read_unaligned(),
                weights.add(32).cast::<__m256i>().read_unaligned(),
            ];
            for (row, base) in tile.iter_mut().zip(bases) {
                let x = operands.codes.add(base + offset as usize).cast::<i32>().read_unaligned();
                let x = _mm256_set1_epi32(x);
                for (sum, w) in row.iter_mut().zip(w) {
                    *sum = M::multiply_add(*sum, x, w);
                }
            }
            weights = weights.add(64);
        }
        for (sums, row) in sums.iter_mut().zip(tile).take(operands.bases.len()) {
            sums.as_mut_ptr().cast::<[__m256i; 2]>().write_unaligned(row);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match operands.narrow {
            true => tile_256::<Pairs>(operands, sums),
            false => tile_256::<HalvedPairs>(operands, sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avxvnni")]
unsafe fn avx_vnni(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe { tile_256::<Vnni>(operands, sums) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn avx512_vnni(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match operands.bits {
            BitWidth::B2 => tile_512_rows::<2>(operands, sums),
            BitWidth::B3 => tile_512_rows::<3>(operands, sums),
            BitWidth::B4 => tile_512_rows::<4>(operands, sums),
            BitWidth::B5 => tile_512_rows::<5>(operands, sums),
            BitWidth::B6 => tile_512_rows::<6>(operands, sums),
            BitWidth::B7 => tile_512_rows::<7>(operands, sums),
            BitWidth::B8 => tile_512_rows::<8>(operands, sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_512_rows<const BITS: u32>(operands: &Operands, sums: &mut Sums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (operands.bases.len(), operands.panels) {
            (1, 3) => tile_512::<BITS, 1, 3>(operands, sums),
            (1, 2) => tile_512::<BITS, 1, 2>(operands, sums),
            (1, _) => tile_512::<BITS, 1, 1>(operands, sums),
            (2..=4, 3) => tile_512::<BITS, 4, 3>(operands, sums),
            (2..=4, 2) => tile_512::<BITS, 4, 2>(operands, sums),
            (2..=4, _) => tile_512::<BITS, 4, 1>(operands, sums),
            (_, 3) => tile_512::<BITS, 8, 3>(operands, sums),
            (_, 2) => tile_512::<BITS, 8, 2>(operands, sums),
            (_, _) => tile_512::<BITS, 8, 1>(operands, sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_512<const BITS: u32, const ROWS: usize, const PANELS: usize>(
    operands: &Operands, sums: &mut Sums,
) {
    // SAFETY: The caller promises that the operands can be read.
    unsafe {
        // Rows that are missing repeat the first.
        let rows: [*const u8; ROWS] = std::array::from_fn(|row| {
            operands.codes.add(*operands.bases.get(row).unwrap_or(&operands.bases[0]))
        });
        let panels: [*const u8; PANELS] =
            std::array::from_fn(|panel| operands.weights.add(panel * operands.panel_bytes));
        // One row has so few sums that additions would wait for each other: its steps take turns with two sets of sums.
        let mut tiles = [[[_mm512_setzero_si512(); PANELS]; ROWS]; 2];
        for block in 0..operands.blocks() {
            let offsets =
                operands.offsets.as_ptr().add(block * BLOCK_STEPS).cast::<[u32; BLOCK_STEPS]>().read();
            let weights = panels.map(|panel| panel.add(block * BITS as usize * 64).cast::<__m512i>());
            if ROWS == 1 {
                // Weights that are read once come from memory.
                for block in weights {
                    for vector in 0..BITS as usize {
                        _mm_prefetch::<_MM_HINT_T0>(
                            block.wrapping_add(vector).wrapping_byte_add(AHEAD).cast(),
                        );
                    }
                }
            }
            macro_rules! step {
                ($($step:literal)*) => {$({
                    let w = weights.map(|block| operand::<BITS, $step>(block));
                    let tile = &mut tiles[if ROWS == 1 { $step % 2 } else { 0 }];
                    for (row, codes) in tile.iter_mut().zip(rows) {
                        let x = codes.add(offsets[$step] as usize).cast::<i32>().read_unaligned();
                        let x = _mm512_set1_epi32(x);
                        for (sum, w) in row.iter_mut().zip(w) {
                            *sum = _mm512_dpbusd_epi32(*sum, x, w);
                        }
                    }
                })*};
            }
            step!(0 1 2 3 4 5 6 7);
        }
        let [mut tile, odd] = tiles;
        if ROWS == 1 {
            for (sum, odd) in tile[0].iter_mut().zip(odd[0]) {
                *sum = _mm512_add_epi32(*sum, odd);
            }
        }
        for (sums, row) in sums.iter_mut().zip(tile).take(operands.bases.len()) {
            sums.as_mut_ptr().cast::<[__m512i; PANELS]>().write_unaligned(row);
        }
    }
}

/// The codes of one step, from a block of `BITS` vectors.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn operand<const BITS: u32, const STEP: u32>(block: *const __m512i) -> __m512i {
    // SAFETY: The caller promises `BITS` vectors.
    unsafe {
        if BITS == 8 {
            return block.add(STEP as usize).read_unaligned();
        }
        let mut codes = _mm512_setzero_si512();
        // Planes as in `layout::planes`.
        if BITS & 4 != 0 {
            codes = field::<4, STEP>(block, BITS & 3);
        }
        if BITS & 2 != 0 {
            codes = _mm512_or_si512(codes, field::<2, STEP>(block.add((BITS & 4) as usize), BITS & 1));
        }
        if BITS & 1 != 0 {
            codes = _mm512_or_si512(codes, field::<1, STEP>(block.add((BITS & 6) as usize), 0));
        }
        codes
    }
}

/// The fields of one step in a plane, `to` bits from the lowest one of their bytes. All but the pointer is constant.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn field<const PLANE: u32, const STEP: u32>(plane: *const __m512i, to: u32) -> __m512i {
    let in_vector = 8 / PLANE;
    // SAFETY: The caller promises the vectors of the plane.
    let vector = unsafe { plane.add((STEP / in_vector) as usize).read_unaligned() };
    let from = STEP % in_vector * PLANE;
    let count = _mm_cvtsi32_si128(from.abs_diff(to) as i32);
    let vector = if from > to { _mm512_srl_epi16(vector, count) } else { _mm512_sll_epi16(vector, count) };
    _mm512_and_si512(vector, _mm512_set1_epi8((((1 << PLANE) - 1) << to) as i8))
}

/// The sum of a row's codes in a window, times the offset of weights of `bits` bits: what their sums of products are to be
/// lessened by.
pub(super) fn correction(codes: &[u8], offsets: &[u32], bits: BitWidth) -> i32 {
    let step = |&offset: &u32| {
        let codes = &codes[offset as usize..][..4];
        codes.iter().map(|&code| i32::from(code)).sum::<i32>()
    };
    offsets.iter().map(step).fold(0, i32::wrapping_add).wrapping_mul(offset(bits))
}

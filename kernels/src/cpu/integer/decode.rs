//! The codes of a step from a block of packed words, in vectors of any instruction set.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Bytes that are decoded together.
pub(super) trait Bytes: Copy {
    /// The bits of both.
    ///
    /// # Safety
    /// The caller enables the instructions of the vector.
    unsafe fn or(self, other: Self) -> Self;

    /// The bits of `mask` in every byte, after all were moved up by `up` bits, or down if that is negative: by less than 8, so that
    /// what comes from the bytes beside can be masked.
    ///
    /// # Safety
    /// The caller enables the instructions of the vector.
    unsafe fn field(self, up: i32, mask: u8) -> Self;
}

/// [`Bytes`] in a vector of x86-64, by its instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! bytes_of_x86 {
    ($vector:ty, $or:ident, $and:ident, $up:ident, $down:ident, $set:ident) => {
        impl Bytes for $vector {
            #[inline(always)]
            unsafe fn or(self, other: Self) -> Self {
                // SAFETY: The caller enables the instructions.
                unsafe { $or(self, other) }
            }

            #[inline(always)]
            unsafe fn field(self, up: i32, mask: u8) -> Self {
                // SAFETY: The caller enables the instructions.
                unsafe {
                    let count = _mm_cvtsi32_si128(up.abs());
                    let moved = if up < 0 { $down(self, count) } else { $up(self, count) };
                    $and(moved, $set(mask as i8))
                }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
bytes_of_x86!(
    __m256i,
    _mm256_or_si256,
    _mm256_and_si256,
    _mm256_sll_epi16,
    _mm256_srl_epi16,
    _mm256_set1_epi8
);
#[cfg(target_arch = "x86_64")]
bytes_of_x86!(
    __m512i,
    _mm512_or_si512,
    _mm512_and_si512,
    _mm512_sll_epi16,
    _mm512_srl_epi16,
    _mm512_set1_epi8
);

/// `for_width!(bits, BITS, call::<BITS>())`: a call that is compiled for each width.
macro_rules! for_width {
    ($bits:expr, $constant:ident, $call:expr) => {
        for_width!(@ $bits, $constant, $call, B2 2, B3 3, B4 4, B5 5, B6 6, B7 7, B8 8)
    };
    (@ $bits:expr, $constant:ident, $call:expr, $($width:ident $number:literal),*) => {
        match $bits {
            $(dr_precision::BitWidth::$width => {
                const $constant: u32 = $number;
                $call
            })*
        }
    };
}
pub(super) use for_width;

/// The codes of `step` in a block of `BITS` vectors of 64 bytes, which start at `block` or, for parts of them, inside the first.
/// All but the pointer is to be constant where this is compiled into.
///
/// # Safety
/// The vectors can be read, and the caller enables the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn step<V: Bytes, const BITS: u32>(block: *const u8, step: u32) -> V {
    // SAFETY: As promised by the caller.
    unsafe {
        if BITS == 8 {
            return block.add(step as usize * 64).cast::<V>().read_unaligned();
        }
        // Planes as in `layout::planes`: one of 4 bits, or else one of 2 first.
        let mut codes = match BITS & 4 {
            0 => field::<V, 2>(block, 0, step, BITS & 1),
            _ => field::<V, 4>(block, 0, step, BITS & 3),
        };
        if BITS & 6 == 6 {
            codes = codes.or(field::<V, 2>(block, 4, step, BITS & 1));
        }
        if BITS & 1 != 0 {
            codes = codes.or(field::<V, 1>(block, BITS & 6, step, 0));
        }
        codes
    }
}

/// The fields of a step in the plane whose first vector is `first`, `to` bits from the lowest one of their bytes.
#[inline(always)]
unsafe fn field<V: Bytes, const PLANE: u32>(block: *const u8, first: u32, step: u32, to: u32) -> V {
    let in_vector = 8 / PLANE;
    let from = step % in_vector * PLANE;
    // SAFETY: As promised by the caller.
    unsafe {
        let vector = block.add((first + step / in_vector) as usize * 64).cast::<V>().read_unaligned();
        vector.field(to as i32 - from as i32, ((1u8 << PLANE) - 1) << to)
    }
}

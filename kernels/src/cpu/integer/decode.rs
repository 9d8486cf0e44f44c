//! The codes of a step from a block of packed words, in vectors of any instruction set.

/// Bytes that are decoded together.
pub(super) trait Bytes: Copy {
    /// Zeros.
    ///
    /// # Safety
    /// The caller enables the instructions of the vector.
    unsafe fn zero() -> Self;

    /// Bytes from memory of any alignment.
    ///
    /// # Safety
    /// They can be read, and the caller enables the instructions of the vector.
    unsafe fn load(at: *const u8) -> Self;

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
            return V::load(block.add(step as usize * 64));
        }
        let mut codes = V::zero();
        // Planes as in `layout::planes`.
        if BITS & 4 != 0 {
            codes = field::<V, 4>(block, 0, step, BITS & 3);
        }
        if BITS & 2 != 0 {
            codes = codes.or(field::<V, 2>(block, BITS & 4, step, BITS & 1));
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
        let vector = V::load(block.add((first + step / in_vector) as usize * 64));
        vector.field(to as i32 - from as i32, ((1u8 << PLANE) - 1) << to)
    }
}

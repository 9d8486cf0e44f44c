//! [`Vector`]: registers of floats, for loops that keep count of them.

/// A register of `f32`.
///
/// # Safety
/// Methods may only be called by functions that are compiled for the instructions and run on a machine that has them, and
/// pointers are to [`LANES`](Self::LANES) floats.
pub(super) trait Vector: Copy {
    /// How many floats.
    const LANES: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn plus(self, other: Self) -> Self;
    unsafe fn minus(self, other: Self) -> Self;
    /// `self * factor + term`, in one rounding where that is one instruction.
    unsafe fn multiply_add(self, factor: Self, term: Self) -> Self;
}

/// What the compiler makes registers of: NEON's on AArch64, SSE's on x86-64.
pub(super) type Portable = [f32; 4];

// SAFETY of all: the caller's.
impl Vector for Portable {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: The caller's.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: The caller's.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] + other[lane])
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        std::array::from_fn(|lane| self[lane] - other[lane])
    }

    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, mut term: Self) -> Self {
        for (term, (x, factor)) in term.iter_mut().zip(self.iter().zip(factor)) {
            // One instruction on AArch64, and a call of a function on x86-64 without FMA.
            *term = if cfg!(target_arch = "aarch64") { x.mul_add(factor, *term) } else { x * factor + *term };
        }
        term
    }
}

/// A single float.
impl Vector for f32 {
    const LANES: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: The caller's.
        unsafe { *from }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: The caller's.
        unsafe { to.write(self) }
    }

    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        self + other
    }

    #[inline(always)]
    unsafe fn minus(self, other: Self) -> Self {
        self - other
    }

    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, term: Self) -> Self {
        self * factor + term
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Vector;
    use std::arch::x86_64::{__m256, __m512};
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm256_sub_ps,
    };
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps, _mm512_sub_ps,
    };

    macro_rules! vector {
        ($vector:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, $plus:ident, $minus:ident,
         $multiply_add:ident) => {
            impl Vector for $vector {
                const LANES: usize = $lanes;

                #[inline(always)]
                unsafe fn splat(x: f32) -> Self {
                    // SAFETY: The caller's.
                    unsafe { $splat(x) }
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: The caller's.
                    unsafe { $load(from) }
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: The caller's.
                    unsafe { $store(to, self) }
                }

                #[inline(always)]
                unsafe fn plus(self, other: Self) -> Self {
                    // SAFETY: The caller's.
                    unsafe { $plus(self, other) }
                }

                #[inline(always)]
                unsafe fn minus(self, other: Self) -> Self {
                    // SAFETY: The caller's.
                    unsafe { $minus(self, other) }
                }

                #[inline(always)]
                unsafe fn multiply_add(self, factor: Self, term: Self) -> Self {
                    // SAFETY: The caller's.
                    unsafe { $multiply_add(self, factor, term) }
                }
            }
        };
    }

    vector!(
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_fmadd_ps
    );
    vector!(
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_fmadd_ps
    );
}

#[cfg(target_arch = "x86_64")]
pub(super) use std::arch::x86_64::{__m256 as Avx2, __m512 as Avx512};
/// Never used: other machines have no such instructions.
#[cfg(not(target_arch = "x86_64"))]
pub(super) type Avx2 = Portable;
/// Never used: other machines have no such instructions.
#[cfg(not(target_arch = "x86_64"))]
pub(super) type Avx512 = Portable;

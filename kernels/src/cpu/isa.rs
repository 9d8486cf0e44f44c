//! [`Isa`]: which instructions the kernels are compiled for, decided at run time.

use std::{fmt, sync::OnceLock};

/// An instruction set that every kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// What the compiler may take for granted: SSE2 on x86-64, NEON on AArch64.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// All of them, best last.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The best one that this machine has.
    #[must_use]
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        let best = || Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Self::Portable);
        *BEST.get_or_init(best)
    }

    /// Whether this machine has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Calls `kernel` as compiled for this instruction set: for [`run_on`].
    ///
    /// # Panics
    /// If the machine does not have it.
    pub(super) fn run<R>(self, kernel: impl FnOnce(Self) -> R) -> R {
        assert!(self.is_available(), "this machine has no {self}");
        match self {
            // SAFETY: The machine has the instructions: asserted above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512(kernel) },
            // SAFETY: As above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(kernel) },
            _ => kernel(Self::Portable),
        }
    }
}

/// Whether sixteen divisions take less time than a few products: on AMD's processors.
pub(super) fn divides_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        static FAST: OnceLock<bool> = OnceLock::new();
        // The maker's name, in the order of these registers.
        let made_by_amd = || {
            let name = std::arch::x86_64::__cpuid(0);
            [name.ebx, name.edx, name.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
        };
        *FAST.get_or_init(made_by_amd)
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        })
    }
}

/// `run_on!(isa, |isa| kernel(isa, ..))`: calls a function that is written once, in plain Rust, as compiled (vectorised) for an
/// [`Isa`], which it may be told. It and all that it calls must be `#[inline(always)]`, not closures: only what is inlined is
/// compiled for the instruction set.
macro_rules! run_on {
    ($isa:expr, |$compiled_for:pat_param| $call:expr) => {
        $isa.run(
            #[inline(always)]
            |$compiled_for| $call,
        )
    };
}
pub(super) use run_on;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<R>(kernel: impl FnOnce(Isa) -> R) -> R {
    kernel(Isa::Avx512)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<R>(kernel: impl FnOnce(Isa) -> R) -> R {
    kernel(Isa::Avx2)
}

//! How fast the processor multiplies and adds 8-bit codes, or floats, when nothing has to be loaded: the limit of products.

use dr_kernels::cpu::Isa;
use dr_kernels::cpu::integer::DotKernel;

/// Products of a round.
const PRODUCTS: u64 = 12;

/// Does at least `products` multiplications of 8-bit codes, exact ones, with additions, in registers of one thread, by the
/// instructions of the machine's best kernel. Gives how many it did; `None` if there are no such instructions, or if they are
/// not those of x86-64.
#[must_use]
pub fn multiply(products: u64) -> Option<u64> {
    let kernel = DotKernel::detect();
    let lanes = match kernel {
        DotKernel::Avx512Vnni => 64,
        DotKernel::AvxVnni => 32,
        DotKernel::Avx2 => 16,
        DotKernel::Portable | DotKernel::NeonDot => return None,
    };
    let rounds = products.div_ceil(lanes * PRODUCTS);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `detect` says that the machine has the instructions.
    unsafe {
        match kernel {
            DotKernel::Avx512Vnni => x86::avx512_vnni(rounds),
            DotKernel::AvxVnni => x86::avx_vnni(rounds),
            _ => x86::avx2(rounds),
        }
    }
    Some(rounds * lanes * PRODUCTS)
}

/// [`multiply`] for floats of 32 bits.
#[must_use]
pub fn multiply_floats(products: u64) -> Option<u64> {
    let lanes = match Isa::detect() {
        Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Portable => return None,
    };
    let rounds = products.div_ceil(lanes * PRODUCTS);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `detect` says that the machine has the instructions.
    unsafe {
        match Isa::detect() {
            Isa::Avx512 => x86::avx512_floats(rounds),
            _ => x86::avx2_floats(rounds),
        }
    }
    Some(rounds * lanes * PRODUCTS)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;

    /// A function that runs `rounds` rounds of twelve sums that do not wait for each other.
    macro_rules! rounds {
        ($name:ident, $features:literal, [$($line:literal)*]) => {
            #[target_feature(enable = $features)]
            pub unsafe fn $name(rounds: u64) {
                // SAFETY: Works in registers only.
                unsafe {
                    asm!(
                        // Floats that happen to be tiny would be slow.
                        "vpxor xmm0, xmm0, xmm0",
                        "vpxor xmm1, xmm1, xmm1",
                        "vpxor xmm2, xmm2, xmm2",
                        "vpxor xmm3, xmm3, xmm3",
                        "vpxor xmm4, xmm4, xmm4",
                        "vpxor xmm5, xmm5, xmm5",
                        "vpxor xmm6, xmm6, xmm6",
                        "vpxor xmm7, xmm7, xmm7",
                        "vpxor xmm8, xmm8, xmm8",
                        "vpxor xmm9, xmm9, xmm9",
                        "vpxor xmm10, xmm10, xmm10",
                        "vpxor xmm11, xmm11, xmm11",
                        "vpxor xmm12, xmm12, xmm12",
                        "vpxor xmm13, xmm13, xmm13",
                        "vpxor xmm14, xmm14, xmm14",
                        "vpxor xmm15, xmm15, xmm15",
                        "2:",
                        $($line,)*
                        "dec {rounds}",
                        "jnz 2b",
                        rounds = inout(reg) rounds.max(1) => _,
                        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                        out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                        out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                        options(nomem, nostack)
                    );
                }
            }
        };
    }

    rounds!(avx512_vnni, "avx512f,avx512vnni", [
        "vpdpbusd zmm0, zmm14, zmm15" "vpdpbusd zmm1, zmm14, zmm15" "vpdpbusd zmm2, zmm14, zmm15"
        "vpdpbusd zmm3, zmm14, zmm15" "vpdpbusd zmm4, zmm14, zmm15" "vpdpbusd zmm5, zmm14, zmm15"
        "vpdpbusd zmm6, zmm14, zmm15" "vpdpbusd zmm7, zmm14, zmm15" "vpdpbusd zmm8, zmm14, zmm15"
        "vpdpbusd zmm9, zmm14, zmm15" "vpdpbusd zmm10, zmm14, zmm15" "vpdpbusd zmm11, zmm14, zmm15"
    ]);

    rounds!(avx_vnni, "avx2,avxvnni", [
        "{{vex}} vpdpbusd ymm0, ymm14, ymm15" "{{vex}} vpdpbusd ymm1, ymm14, ymm15"
        "{{vex}} vpdpbusd ymm2, ymm14, ymm15" "{{vex}} vpdpbusd ymm3, ymm14, ymm15"
        "{{vex}} vpdpbusd ymm4, ymm14, ymm15" "{{vex}} vpdpbusd ymm5, ymm14, ymm15"
        "{{vex}} vpdpbusd ymm6, ymm14, ymm15" "{{vex}} vpdpbusd ymm7, ymm14, ymm15"
        "{{vex}} vpdpbusd ymm8, ymm14, ymm15" "{{vex}} vpdpbusd ymm9, ymm14, ymm15"
        "{{vex}} vpdpbusd ymm10, ymm14, ymm15" "{{vex}} vpdpbusd ymm11, ymm14, ymm15"
    ]);

    rounds!(avx512_floats, "avx512f", [
        "vfmadd231ps zmm0, zmm14, zmm15" "vfmadd231ps zmm1, zmm14, zmm15" "vfmadd231ps zmm2, zmm14, zmm15"
        "vfmadd231ps zmm3, zmm14, zmm15" "vfmadd231ps zmm4, zmm14, zmm15" "vfmadd231ps zmm5, zmm14, zmm15"
        "vfmadd231ps zmm6, zmm14, zmm15" "vfmadd231ps zmm7, zmm14, zmm15" "vfmadd231ps zmm8, zmm14, zmm15"
        "vfmadd231ps zmm9, zmm14, zmm15" "vfmadd231ps zmm10, zmm14, zmm15" "vfmadd231ps zmm11, zmm14, zmm15"
    ]);

    rounds!(avx2_floats, "avx2,fma", [
        "vfmadd231ps ymm0, ymm14, ymm15" "vfmadd231ps ymm1, ymm14, ymm15" "vfmadd231ps ymm2, ymm14, ymm15"
        "vfmadd231ps ymm3, ymm14, ymm15" "vfmadd231ps ymm4, ymm14, ymm15" "vfmadd231ps ymm5, ymm14, ymm15"
        "vfmadd231ps ymm6, ymm14, ymm15" "vfmadd231ps ymm7, ymm14, ymm15" "vfmadd231ps ymm8, ymm14, ymm15"
        "vfmadd231ps ymm9, ymm14, ymm15" "vfmadd231ps ymm10, ymm14, ymm15" "vfmadd231ps ymm11, ymm14, ymm15"
    ]);

    rounds!(avx2, "avx2", [
        "vpmaddwd ymm12, ymm14, ymm15" "vpaddd ymm0, ymm0, ymm12" "vpmaddwd ymm13, ymm14, ymm15" "vpaddd ymm1, ymm1, ymm13"
        "vpmaddwd ymm12, ymm14, ymm15" "vpaddd ymm2, ymm2, ymm12" "vpmaddwd ymm13, ymm14, ymm15" "vpaddd ymm3, ymm3, ymm13"
        "vpmaddwd ymm12, ymm14, ymm15" "vpaddd ymm4, ymm4, ymm12" "vpmaddwd ymm13, ymm14, ymm15" "vpaddd ymm5, ymm5, ymm13"
        "vpmaddwd ymm12, ymm14, ymm15" "vpaddd ymm6, ymm6, ymm12" "vpmaddwd ymm13, ymm14, ymm15" "vpaddd ymm7, ymm7, ymm13"
        "vpmaddwd ymm12, ymm14, ymm15" "vpaddd ymm8, ymm8, ymm12" "vpmaddwd ymm13, ymm14, ymm15" "vpaddd ymm9, ymm9, ymm13"
        "vpmaddwd ymm12, ymm14, ymm15" "vpaddd ymm10, ymm10, ymm12" "vpmaddwd ymm13, ymm14, ymm15" "vpaddd ymm11, ymm11, ymm13"
    ]);
}

//! Tiles by plain loops: what the compiler makes of them.

use super::{Form, LaneSums, MicroKernel, Operands, Sums, Taps};
use crate::integer::{PANEL, STEP};
use dr_precision::BitWidth;

pub(super) struct Portable;

impl MicroKernel for Portable {
    fn is_available(&self) -> bool {
        true
    }

    fn tile(&self) -> [usize; 2] {
        [4, 1]
    }

    fn form(&self, _: BitWidth, _: usize, _: usize) -> Form {
        Form::Bytes
    }

    unsafe fn run(&self, operands: &Operands, sums: &mut Sums) {
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
    unsafe fn depthwise(&self, taps: &Taps, sums: &mut LaneSums, inputs: Option<&mut LaneSums>) {
        // SAFETY: As promised by the caller.
        unsafe { depthwise(taps, sums, inputs) }
    }
}

/// [`MicroKernel::depthwise`], as the compiler makes vectors of it.
///
/// # Safety
/// That of the method.
#[inline(always)]
pub(super) unsafe fn depthwise(taps: &Taps, sums: &mut LaneSums, mut inputs: Option<&mut LaneSums>) {
    sums.fill([0; PANEL]);
    if let Some(inputs) = &mut inputs {
        inputs.fill([0; PANEL]);
    }
    for (tap, &offset) in taps.offsets.iter().enumerate() {
        let weights = &taps.weights[tap / STEP * PANEL * STEP..][..PANEL * STEP];
        let mut weight = [0i16; PANEL];
        for lane in 0..PANEL {
            weight[lane] = i16::from(weights[lane * STEP + tap % STEP]);
        }
        for (row, &base) in taps.bases.iter().enumerate() {
            // SAFETY: The caller promises that these can be read.
            let codes = unsafe { taps.codes.add(base + offset as usize).cast::<[u8; PANEL]>().read() };
            for lane in 0..PANEL {
                // The product of a byte with a signed one has 16 bits.
                sums[row][lane] += i32::from(i16::from(codes[lane]).wrapping_mul(weight[lane]));
            }
            if let Some(inputs) = &mut inputs {
                for lane in 0..PANEL {
                    inputs[row][lane] += i32::from(codes[lane]);
                }
            }
        }
    }
}

//! Tiles by plain loops: what the compiler makes of them.

use super::{Form, MicroKernel, Operands, Sums};
use crate::integer::PANEL;
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
}

//! From floats to codes, channels last.

use super::super::codes::Quantizer;
use super::super::isa::{Isa, Kernel};
use super::super::sample::Sample;
use super::super::team;
use crate::integer::{CodeQuantizer, padded_channels};

/// Codes that a task makes: so many that it pays for another thread's attention.
const TASK: usize = 1 << 12;

/// [`crate::reference::quantize_codes`], for f32, f16 and bf16.
#[must_use]
pub fn quantize_codes<T: Sample>(
    x: &[T], [channels, positions]: [usize; 2], channels_last: bool, to: CodeQuantizer,
) -> Vec<u8> {
    let images = x.len() / (channels * positions).max(1);
    let mut codes = vec![0; images * positions * padded_channels(channels)];
    quantize_codes_into(x, [channels, positions], channels_last, to, &mut codes);
    codes
}

/// [`quantize_codes`] into `codes`, where only the codes of padding are left as they are.
///
/// # Panics
/// If `codes` has another size.
pub fn quantize_codes_into<T: Sample>(
    x: &[T], [channels, positions]: [usize; 2], channels_last: bool, to: CodeQuantizer, codes: &mut [u8],
) {
    let (len, padded) = (channels * positions, padded_channels(channels));
    assert_eq!(codes.len(), x.len() / len.max(1) * positions * padded, "a code for each value");
    if codes.is_empty() {
        return;
    }
    let isa = Isa::detect();
    if channels_last || positions == 1 {
        let pixels = (TASK / padded).max(1);
        team::for_each_chunk(codes, pixels * padded, |task, codes| {
            let x = &x[task * pixels * channels..][..codes.len() / padded * channels];
            isa.run(Rows { x, channels, padded, to, codes });
        });
    } else {
        let code_len = positions * padded;
        let images = (TASK / code_len).max(1);
        team::for_each_chunk(codes, images * code_len, |task, codes| {
            let x = x[task * images * len..].chunks_exact(len);
            for (x, codes) in x.zip(codes.chunks_exact_mut(code_len)) {
                isa.run(Image { x, positions, padded, to, codes });
            }
        });
    }
}

/// Pixels whose channels follow each other.
struct Rows<'a, T> {
    x: &'a [T],
    channels: usize,
    padded: usize,
    to: CodeQuantizer,
    codes: &'a mut [u8],
}

impl<T: Sample> Kernel for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        let quantizer = Quantizer::unsigned(self.to.scale, self.to.bits);
        let zero = self.to.zero_point;
        if self.channels == self.padded {
            for (code, x) in self.codes.iter_mut().zip(self.x) {
                *code = quantizer.byte(quantizer.quotient(x.widen() - zero));
            }
            return;
        }
        for (codes, x) in self.codes.chunks_exact_mut(self.padded).zip(self.x.chunks_exact(self.channels)) {
            for (code, x) in codes.iter_mut().zip(x) {
                *code = quantizer.byte(quantizer.quotient(x.widen() - zero));
            }
        }
    }
}

/// An image whose channels are planes.
struct Image<'a, T> {
    x: &'a [T],
    positions: usize,
    padded: usize,
    to: CodeQuantizer,
    codes: &'a mut [u8],
}

impl<T: Sample> Kernel for Image<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Isa) {
        const PIECE: usize = 64;
        let quantizer = Quantizer::unsigned(self.to.scale, self.to.bits);
        let zero = self.to.zero_point;
        let mut buffer = [0u8; PIECE];
        for (channel, plane) in self.x.chunks_exact(self.positions).enumerate() {
            for (x, codes) in plane.chunks(PIECE).zip(self.codes.chunks_mut(PIECE * self.padded)) {
                for (code, x) in buffer.iter_mut().zip(x) {
                    *code = quantizer.byte(quantizer.quotient(x.widen() - zero));
                }
                for (code, pixel) in buffer.iter().zip(codes.chunks_exact_mut(self.padded)) {
                    pixel[channel] = *code;
                }
            }
        }
    }
}

//! From floats to codes, channels last.

use super::super::codes::Quantizer;
use super::super::isa::{Isa, run_on};
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
            run_on!(isa, |_| quantize_rows(x, channels, to, codes));
        });
    } else {
        let code_len = positions * padded;
        let images = (TASK / code_len).max(1);
        team::for_each_chunk(codes, images * code_len, |task, codes| {
            let x = x[task * images * len..].chunks_exact(len);
            for (x, codes) in x.zip(codes.chunks_exact_mut(code_len)) {
                run_on!(isa, |_| quantize_planes(x, positions, padded, to, codes));
            }
        });
    }
}

/// The codes of values that follow each other.
#[inline(always)]
fn quantize<T: Sample>(x: &[T], quantizer: Quantizer, zero: f32, codes: &mut [u8]) {
    for (code, x) in codes.iter_mut().zip(x) {
        *code = quantizer.byte(quantizer.quotient(x.widen() - zero));
    }
}

/// Pixels whose channels follow each other.
#[inline(always)]
fn quantize_rows<T: Sample>(x: &[T], channels: usize, to: CodeQuantizer, codes: &mut [u8]) {
    let (quantizer, zero) = (Quantizer::unsigned(to.scale, to.bits), to.zero_point);
    let padded = padded_channels(channels);
    if channels == padded {
        return quantize(x, quantizer, zero, codes);
    }
    for (codes, x) in codes.chunks_exact_mut(padded).zip(x.chunks_exact(channels)) {
        quantize(x, quantizer, zero, codes);
    }
}

/// An image whose channels are planes.
#[inline(always)]
fn quantize_planes<T: Sample>(x: &[T], positions: usize, padded: usize, to: CodeQuantizer, codes: &mut [u8]) {
    const PIECE: usize = 64;
    let (quantizer, zero) = (Quantizer::unsigned(to.scale, to.bits), to.zero_point);
    let mut buffer = [0u8; PIECE];
    for (channel, plane) in x.chunks_exact(positions).enumerate() {
        for (x, codes) in plane.chunks(PIECE).zip(codes.chunks_mut(PIECE * padded)) {
            quantize(x, quantizer, zero, &mut buffer);
            for (code, pixel) in buffer.iter().zip(codes.chunks_exact_mut(padded)) {
                pixel[channel] = *code;
            }
        }
    }
}

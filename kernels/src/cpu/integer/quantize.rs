//! From floats to codes, channels last.

use super::super::codes::Quantizer;
use super::super::isa::{Isa, run_on};
use super::super::sample::Sample;
use super::super::team;
use crate::integer::{CodeQuantizer, STEP, padded_channels};
use std::sync::atomic::{AtomicPtr, Ordering};

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
        let (images, pixels) = (x.len() / len, (TASK / padded).max(PIECE));
        let tasks = positions.div_ceil(pixels);
        let out = AtomicPtr::new(codes.as_mut_ptr());
        team::for_each(images * tasks, |task| {
            let (image, first) = (task / tasks, task % tasks * pixels);
            let count = pixels.min(positions - first);
            // SAFETY: Pixels of an image, which no other task has.
            let codes = unsafe {
                let out = out.load(Ordering::Relaxed).add((image * positions + first) * padded);
                std::slice::from_raw_parts_mut(out, count * padded)
            };
            let planes =
                x[image * len..][..len].chunks_exact(positions).map(|plane| &plane[first..][..count]);
            run_on!(isa, |_| quantize_planes(planes, padded, to, codes));
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

/// Pixels whose codes are made at once.
const PIECE: usize = 64;

/// Pixels whose channels are planes.
#[inline(always)]
fn quantize_planes<'a, T: Sample>(
    planes: impl Iterator<Item = &'a [T]>, padded: usize, to: CodeQuantizer, codes: &mut [u8],
) {
    let (quantizer, zero) = (Quantizer::unsigned(to.scale, to.bits), to.zero_point);
    let mut buffer = [0u8; PIECE];
    for (channel, plane) in planes.enumerate() {
        for (x, codes) in plane.chunks(PIECE).zip(codes.chunks_mut(PIECE * padded)) {
            quantize(x, quantizer, zero, &mut buffer);
            if padded == STEP {
                // A word for each pixel.
                let (words, shift) = (codes.as_chunks_mut::<STEP>().0, 8 * channel as u32);
                for (code, word) in buffer.iter().zip(words) {
                    let others = u32::from_le_bytes(*word) & !(0xff << shift);
                    *word = (others | u32::from(*code) << shift).to_le_bytes();
                }
                continue;
            }
            for (code, pixel) in buffer.iter().zip(codes.chunks_exact_mut(padded)) {
                pixel[channel] = *code;
            }
        }
    }
}

//! From values to codes, four in a word.

use super::Quad4;
use crate::burn_face::ops::CodesFormat;
use crate::cube::code::{Rule, code_of};
use crate::cube::launch::{empty, one_unit_each};
use crate::cube::pack::readable;
use crate::integer::{STEP, padded_channels};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use dr_precision::BitWidth;

/// The codes of four values in a word; `valid` of them, and zeros. `quantizer` is a scale and a zero point.
#[cube]
pub(super) fn code_word(
    values: Vector<f32, Quad4>, valid: u32, quantizer: &[f32], #[comptime] bits: BitWidth,
) -> u32 {
    let ratio = (values - Vector::new(quantizer[1])) / Vector::new(quantizer[0]);
    let codes = Vector::<u32, Quad4>::cast_from(code_of(ratio, comptime!(Rule::Activation { bits })));
    let mut word = 0u32;
    #[unroll]
    for lane in 0..STEP {
        let code = select(comptime!(lane as u32) < valid, codes.extract(lane), 0u32);
        word |= code << comptime!(8 * lane as u32);
    }
    word
}

/// A unit per word. Neighbours have neighbouring values: channels if those are last, else positions.
#[cube(launch)]
fn quantize_kernel<F: Float>(
    x: &[F], quantizer: &[f32], out: &mut [u32], words: u32, channels: u32, positions: u32,
    #[comptime] channels_last: bool, #[comptime] bits: BitWidth, #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS as u32;
    if i >= words {
        terminate!();
    }
    let pixel_words = channels.div_ceil(4);
    let mut pixel = i / pixel_words; // of all images
    let mut word = i % pixel_words;
    let mut first = pixel * channels + 4 * word;
    let mut stride = 1u32;
    if comptime!(!channels_last) {
        let image = i / (pixel_words * positions);
        word = i / positions % pixel_words;
        pixel = image * positions + i % positions;
        first = (image * channels + 4 * word) * positions + i % positions;
        stride = positions;
    }
    let valid = min(channels - 4 * word, 4);
    let mut values = Vector::<f32, Quad4>::from_int(0);
    #[unroll]
    for lane in 0..STEP {
        if comptime!(lane as u32) < valid {
            values.insert(lane, f32::cast_from(x[(first + comptime!(lane as u32) * stride) as usize]));
        }
    }
    out[(pixel * pixel_words + word) as usize] = code_word(values, valid, quantizer, bits);
}

/// Codes of `x`; `quantizer` is `[2]`.
pub(super) fn quantize(x: CubeTensor, quantizer: CubeTensor, format: CodesFormat) -> CubeTensor {
    let CodesFormat { channels, positions, channels_last, bits, .. } = format;
    let (x, quantizer, words) = (readable(x), into_contiguous(quantizer), format.words());
    debug_assert!(words.is_multiple_of(padded_channels(channels).max(STEP) / STEP));
    let out = empty(&x, [words], DType::U32);
    let ((count, dim), dtype) = (one_unit_each(&out.client, words), dtype_to_storage_type(x.dtype));
    #[rustfmt::skip]
    quantize_kernel::launch(
        &out.client, count, dim,
        x.into_buffer_arg(), quantizer.into_buffer_arg(), out.clone().into_buffer_arg(),
        words as u32, channels as u32, positions as u32, channels_last, bits, dtype,
    );
    out
}

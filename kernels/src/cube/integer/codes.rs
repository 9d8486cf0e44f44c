//! From values to codes, four in a word.

use super::Quad4;
use crate::burn_face::ops::CodesFormat;
use crate::cube::code::{Rule, code_of};
use crate::cube::launch::{empty, index, one_unit_each};
use crate::cube::pack::readable;
use crate::integer::{CodeQuantizer, STEP, padded_channels};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::tensor::CubeTensor;
use dr_precision::BitWidth;

/// A [`CodeQuantizer`] in a kernel, but for its width.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Quantizer {
    scale: f32,
    zero_point: f32,
}

/// `to` for a kernel; anything for one that makes no codes.
pub(super) fn quantizer(to: Option<CodeQuantizer>) -> QuantizerLaunch {
    let (scale, zero_point) = to.map_or((1.0, 0.0), |to| (to.scale, to.zero_point));
    QuantizerLaunch { scale, zero_point }
}

/// The codes of four values in a word; `valid` of them, and zeros.
#[cube]
pub(super) fn code_word(
    values: Vector<f32, Quad4>, valid: u32, quantizer: &Quantizer, #[comptime] bits: BitWidth,
) -> u32 {
    let ratio = (values - Vector::new(quantizer.zero_point)) / Vector::new(quantizer.scale);
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
    x: &[F], out: &mut [u32], quantizer: Quantizer, words: u32, channels: u32, positions: u32,
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
    out[(pixel * pixel_words + word) as usize] = code_word(values, valid, &quantizer, bits);
}

/// Codes of `x`.
pub(super) fn quantize(x: CubeTensor, format: CodesFormat) -> CubeTensor {
    let CodesFormat { channels, positions, channels_last, to, .. } = format;
    let (x, words) = (readable(x), format.words());
    debug_assert!(words.is_multiple_of(padded_channels(channels).max(STEP) / STEP));
    let out = empty(&x, [words], DType::U32);
    let ((count, dim), dtype) = (one_unit_each(&out.client, words), dtype_to_storage_type(x.dtype));
    #[rustfmt::skip]
    quantize_kernel::launch(
        &out.client, count, dim,
        x.into_buffer_arg(), out.clone().into_buffer_arg(), quantizer(Some(to)),
        index(words), index(channels), index(positions), channels_last, to.bits, dtype,
    );
    out
}

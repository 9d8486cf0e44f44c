//! Packing, unpacking, switching and dequantizing, one code at a time. The layout is in [`crate::layout`].

use crate::layout::{ScaleLayout, packed_words, planes};
use dr_precision::{BitWidth, Signedness, semantics};

/// Packs the lowest `bits` bits of every code.
pub fn pack(codes: &[i32], bits: BitWidth) -> Vec<u32> {
    let mut words = vec![0; packed_words(codes.len(), bits)];
    let blocks = words.len() / bits.bits() as usize;
    for plane in planes(bits) {
        let start = blocks * plane.offset as usize;
        for (i, &code) in codes.iter().enumerate() {
            let field = (code as u32 >> plane.shift) & ((1 << plane.bits) - 1);
            let at = i * plane.bits as usize;
            words[start + at / 32] |= field << (at % 32);
        }
    }
    words
}

/// The first `elements` codes of `words`.
pub fn unpack(words: &[u32], elements: usize, bits: BitWidth, signedness: Signedness) -> Vec<i32> {
    let blocks = words.len() / bits.bits() as usize;
    let code = |i: usize| {
        let field = |plane: crate::layout::Plane| {
            let at = i * plane.bits as usize;
            let word = words[blocks * plane.offset as usize + at / 32];
            ((word >> (at % 32)) & ((1 << plane.bits) - 1)) << plane.shift
        };
        let code = planes(bits).map(field).sum::<u32>() as i32;
        let sign = signedness == Signedness::Signed && code > bits.signed_max();
        if sign { code - (1 << bits.bits()) } else { code }
    };
    (0..elements).map(code).collect()
}

/// The code of every element: signed and around zero without zero points, else unsigned.
pub fn quantize(
    x: &[f32], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
) -> Vec<i32> {
    let code = |(i, &x): (usize, &f32)| {
        let j = layout.scale_of(i);
        match zero_point {
            None => semantics::quantize(x, scale[j], bits),
            Some(zero) => semantics::quantize_activation(x, scale[j], zero[j], bits),
        }
    };
    x.iter().enumerate().map(code).collect()
}

/// [`quantize`], then [`pack`].
pub fn quantize_pack(
    x: &[f32], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
) -> Vec<u32> {
    pack(&quantize(x, scale, zero_point, layout, bits), bits)
}

/// Packed signed codes of `stored` bits to packed ones of `active` bits.
pub fn switch_packed(words: &[u32], elements: usize, stored: BitWidth, active: BitWidth) -> Vec<u32> {
    let codes = unpack(words, elements, stored, Signedness::Signed);
    let codes: Vec<i32> = codes.into_iter().map(|code| semantics::switch(code, stored, active)).collect();
    pack(&codes, active)
}

/// The values of packed codes: `scale * code` for signed ones, `scale * code + zero_point` for unsigned ones.
pub fn dequantize_packed(
    words: &[u32], scale: &[f32], zero_point: Option<&[f32]>, layout: &ScaleLayout, bits: BitWidth,
) -> Vec<f32> {
    let signedness = if zero_point.is_some() { Signedness::Unsigned } else { Signedness::Signed };
    let codes = unpack(words, layout.elements(), bits, signedness);
    let value = |(i, code): (usize, i32)| {
        let j = layout.scale_of(i);
        match zero_point {
            None => semantics::dequantize(code, scale[j]),
            Some(zero) => semantics::dequantize_activation(code, scale[j], zero[j]),
        }
    };
    codes.into_iter().enumerate().map(value).collect()
}

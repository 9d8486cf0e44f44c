//! Packing, switching and dequantizing: a unit per *span* of codes, as few as are whole words in every plane, so that
//! neighbours read and write neighbouring memory. A span's words are in registers, in the order of the planes; every
//! position in them is known when the kernel is compiled. The layout is in [`crate::layout`].

use super::code::{Rule, code_of};
use super::launch::{empty, index, one_unit_each, vector_size};
use super::runs::{Runs, runs};
use crate::burn_face::ops::PackFormat;
use crate::layout::{self, BLOCK, Plane, packed_words};
use burn::backend::{Backend, TensorMetadata, cubecl::dtype_to_storage_type};
use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, ops::into_data_sync, tensor::CubeTensor};
use dr_precision::BitWidth;

pub(super) fn count_planes(bits: BitWidth) -> usize {
    layout::planes(bits).count()
}

pub(super) fn plane(bits: BitWidth, n: usize) -> Plane {
    layout::planes(bits).collect::<Vec<_>>()[n]
}

/// Codes of a span: 32 bits of the narrowest plane.
fn span(bits: BitWidth) -> usize {
    layout::planes(bits).map(|plane| 32 / plane.bits as usize).max().unwrap_or(BLOCK)
}

/// Words that a span of `span` codes of `bits` bits has in all planes, or, with an offset of a plane, in those before it.
const fn span_words(span: usize, bits: usize) -> usize {
    span * bits / 32
}

/// Where the field of code `i` of a span is in plane `n`: the word, and the bit of the word.
fn word(bits: BitWidth, n: usize, i: usize, span: usize) -> usize {
    let plane = plane(bits, n);
    span_words(span, plane.offset as usize) + i * plane.bits as usize / 32
}

fn bit(bits: BitWidth, n: usize, i: usize) -> u32 {
    i as u32 * plane(bits, n).bits % 32
}

fn mask(bits: BitWidth, n: usize) -> u32 {
    (1 << plane(bits, n).bits) - 1
}

/// Code `i` of packed codes of `blocks` blocks, not sign-extended.
#[cube]
pub(super) fn code_at(words: &[u32], blocks: u32, i: u32, #[comptime] bits: BitWidth) -> u32 {
    let mut code = 0u32;
    #[unroll]
    for n in 0..comptime!(count_planes(bits)) {
        let (size, offset) = comptime!((plane(bits, n).bits, plane(bits, n).offset));
        let of_word = comptime!(32 / size);
        let word = words[(blocks * offset + i / of_word) as usize];
        code |=
            ((word >> (i % of_word * size)) & comptime!(mask(bits, n))) << comptime!(plane(bits, n).shift);
    }
    code
}

/// Adds the lowest bits of `code` to a span, as code `i`. Its words start as zero.
#[cube]
pub(super) fn put(
    words: &mut Array<u32>, code: u32, #[comptime] i: usize, #[comptime] span: usize,
    #[comptime] bits: BitWidth,
) {
    #[unroll]
    for n in 0..comptime!(count_planes(bits)) {
        let at = comptime!(word(bits, n, i, span));
        let field = (code >> comptime!(plane(bits, n).shift)) & comptime!(mask(bits, n));
        words[at] |= field << comptime!(bit(bits, n, i));
    }
}

/// Code `i` of a span, not sign-extended.
#[cube]
fn get(words: &Array<u32>, #[comptime] i: usize, #[comptime] span: usize, #[comptime] bits: BitWidth) -> u32 {
    let mut code = 0u32;
    #[unroll]
    for n in 0..comptime!(count_planes(bits)) {
        let at = comptime!(word(bits, n, i, span));
        let field = (words[at] >> comptime!(bit(bits, n, i))) & comptime!(mask(bits, n));
        code |= field << comptime!(plane(bits, n).shift);
    }
    code
}

/// The signed code whose lowest bits `code` has.
#[cube]
pub(super) fn sign_extend(code: u32, #[comptime] bits: BitWidth) -> i32 {
    let unused = comptime!(32 - bits.bits());
    i32::reinterpret(code << unused) >> comptime!(unused as i32)
}

/// Reads span `at`, of `blocks` blocks.
#[cube]
fn read_span(
    words: &[u32], at: usize, blocks: usize, #[comptime] span: usize, #[comptime] bits: BitWidth,
) -> Array<u32> {
    let mut read = Array::<u32>::new(comptime!(span_words(span, bits.bits() as usize)));
    #[unroll]
    for n in 0..comptime!(count_planes(bits)) {
        let offset = comptime!(plane(bits, n).offset as usize);
        let size = comptime!(span_words(span, plane(bits, n).bits as usize));
        #[unroll]
        for k in 0..size {
            read[comptime!(span_words(span, offset) + k)] = words[blocks * offset + at * size + k];
        }
    }
    read
}

/// Writes span `at`, of `blocks` blocks.
#[cube]
pub(super) fn write_span(
    written: &Array<u32>, words: &mut [u32], at: usize, blocks: usize, #[comptime] span: usize,
    #[comptime] bits: BitWidth,
) {
    #[unroll]
    for n in 0..comptime!(count_planes(bits)) {
        let offset = comptime!(plane(bits, n).offset as usize);
        let size = comptime!(span_words(span, plane(bits, n).bits as usize));
        #[unroll]
        for k in 0..size {
            words[blocks * offset + at * size + k] = written[comptime!(span_words(span, offset) + k)];
        }
    }
}

/// A vector of `x` (`vectors` in all) never crosses the end of a span or of a run: its size divides both.
#[cube(launch)]
fn quantize_kernel<F: Float, N: Size>(
    x: &[Vector<F, N>], scale: &[f32], zero_point: &[f32], words: &mut [u32], runs: Runs, vectors: u32,
    blocks: u32, #[comptime] span: usize, #[comptime] bits: BitWidth, #[comptime] unsigned: bool,
    #[define(F)] _dtype: ElemType,
) {
    let at = ABSOLUTE_POS;
    if at >= blocks as usize * comptime!(BLOCK / span) {
        terminate!();
    }
    let rule = comptime!(Rule::single(bits, unsigned));
    let lanes = N::value();
    let chunks = comptime!(span / lanes);
    let mut codes = Array::<u32>::new(comptime!(span_words(span, bits.bits() as usize)));
    #[unroll]
    for c in 0..chunks {
        let i = at * chunks + c;
        if i < vectors as usize {
            let j = runs.scale_of(i as u32);
            let value = Vector::<f32, N>::cast_from(x[i]);
            let scale = Vector::<f32, N>::new(scale[j]);
            let code = if comptime!(unsigned) {
                code_of((value - Vector::new(zero_point[j])) / scale, rule)
            } else {
                code_of(value / scale, rule)
            };
            let code = Vector::<i32, N>::cast_from(code);
            #[unroll]
            for lane in 0..lanes {
                let code = u32::reinterpret(code.extract(lane));
                put(&mut codes, code, comptime!(c * lanes + lane), span, bits);
            }
        }
    }
    write_span(&codes, words, at, blocks as usize, span, bits);
}

/// `q_l = min((q_h + (2^(d-1) - 1) + ((q_h >> d) & 1)) >> d, p_l)`. Fields after the last code are 0 and stay so.
#[cube(launch)]
fn switch_kernel(
    words: &[u32], out: &mut [u32], blocks: u32, #[comptime] span: usize, #[comptime] stored: BitWidth,
    #[comptime] active: BitWidth,
) {
    let at = ABSOLUTE_POS;
    if at >= blocks as usize * comptime!(BLOCK / span) {
        terminate!();
    }
    let shift = comptime!((stored.bits() - active.bits()) as i32);
    let bias = comptime!((1i32 << (shift - 1)) - 1);
    let high = comptime!(active.signed_max());
    let codes = read_span(words, at, blocks as usize, span, stored);
    let mut switched = Array::<u32>::new(comptime!(span_words(span, active.bits() as usize)));
    #[unroll]
    for i in 0..span {
        let code = sign_extend(get(&codes, i, span, stored), stored);
        let rounded = (code + bias + ((code >> shift) & 1)) >> shift;
        put(&mut switched, u32::reinterpret(min(rounded, high)), i, span, active);
    }
    write_span(&switched, out, at, blocks as usize, span, active);
}

/// Like [`quantize_kernel`], the other way round.
#[cube(launch)]
fn dequantize_kernel<N: Size>(
    words: &[u32], scale: &[f32], zero_point: &[f32], out: &mut [Vector<f32, N>], runs: Runs, vectors: u32,
    blocks: u32, #[comptime] span: usize, #[comptime] bits: BitWidth, #[comptime] unsigned: bool,
) {
    let at = ABSOLUTE_POS;
    if at >= blocks as usize * comptime!(BLOCK / span) {
        terminate!();
    }
    let words = read_span(words, at, blocks as usize, span, bits);
    let lanes = N::value();
    let chunks = comptime!(span / lanes);
    #[unroll]
    for c in 0..chunks {
        let i = at * chunks + c;
        if i < vectors as usize {
            let j = runs.scale_of(i as u32);
            let mut codes = Vector::<f32, N>::empty();
            #[unroll]
            for lane in 0..lanes {
                let code = get(&words, comptime!(c * lanes + lane), span, bits);
                if comptime!(unsigned) {
                    codes.insert(lane, f32::cast_from(code));
                } else {
                    codes.insert(lane, f32::cast_from(sign_extend(code, bits)));
                }
            }
            let value = codes * Vector::new(scale[j]);
            if comptime!(unsigned) {
                out[i] = value + Vector::new(zero_point[j]);
            } else {
                out[i] = value;
            }
        }
    }
}

/// `x` in a type that kernels on its device can read. Where f16 or bf16 can only be stored (bf16 in WGSL, which has
/// no such type), the values are widened on the host.
pub(super) fn readable(x: CubeTensor) -> CubeTensor {
    if CubeBackend::supports_dtype(&x.device, x.dtype) {
        return into_contiguous(x);
    }
    let (client, device, shape) = (x.client.clone(), x.device.clone(), x.shape());
    let data = into_data_sync(x).convert::<f32>();
    let handle = client.create_from_slice(data.as_bytes());
    CubeTensor::new_contiguous(client, device, shape, handle, DType::F32)
}

/// `[x, scale, zero_point]` to packed words.
pub(super) fn quantize([x, scale, zero_point]: [CubeTensor; 3], format: PackFormat) -> CubeTensor {
    let PackFormat { bits, layout, unsigned } = format;
    let [x, scale, zero_point] = [readable(x), into_contiguous(scale), into_contiguous(zero_point)];
    let (lanes, words) = (vector_size(&x, &layout), packed_words(layout.elements(), bits));
    let (out, blocks) = (empty(&x, [words], DType::U32), words / bits.bits() as usize);
    let (span, dtype) = (span(bits).max(lanes), dtype_to_storage_type(x.dtype));
    let (count, dim) = one_unit_each(&out.client, blocks * BLOCK / span);
    #[rustfmt::skip]
    quantize_kernel::launch(
        &out.client, count, dim, lanes,
        x.into_buffer_arg(), scale.into_buffer_arg(), zero_point.into_buffer_arg(), out.clone().into_buffer_arg(),
        runs(&layout, lanes), index(layout.elements() / lanes), index(blocks), span, bits, unsigned, dtype,
    );
    out
}

/// Packed signed codes of `stored` bits to packed ones of `active` bits.
pub(super) fn switch(words: CubeTensor, elements: usize, stored: BitWidth, active: BitWidth) -> CubeTensor {
    if stored == active {
        return words;
    }
    let (words, length) = (into_contiguous(words), packed_words(elements, active));
    let (out, blocks) = (empty(&words, [length], DType::U32), length / active.bits() as usize);
    let span = span(stored).max(span(active));
    let (count, dim) = one_unit_each(&out.client, blocks * BLOCK / span);
    #[rustfmt::skip]
    switch_kernel::launch(
        &out.client, count, dim,
        words.into_buffer_arg(), out.clone().into_buffer_arg(), index(blocks), span, stored, active,
    );
    out
}

/// `[words, scale, zero_point]` to f32 values, `[layout.elements()]`.
pub(super) fn dequantize(inputs: [CubeTensor; 3], format: PackFormat) -> CubeTensor {
    let PackFormat { bits, layout, unsigned } = format;
    let [words, scale, zero_point] = inputs.map(into_contiguous);
    let (elements, lanes) = (layout.elements(), vector_size(&scale, &layout));
    let (out, blocks) = (empty(&words, [elements], DType::F32), elements.div_ceil(BLOCK));
    let span = span(bits).max(lanes);
    let (count, dim) = one_unit_each(&out.client, blocks * BLOCK / span);
    #[rustfmt::skip]
    dequantize_kernel::launch(
        &out.client, count, dim, lanes,
        words.into_buffer_arg(), scale.into_buffer_arg(), zero_point.into_buffer_arg(), out.clone().into_buffer_arg(),
        runs(&layout, lanes), index(elements / lanes), index(blocks), span, bits, unsigned,
    );
    out
}

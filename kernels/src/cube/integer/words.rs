//! Codes in words: four bytes make a *step*, four steps a *quad*, which is what a unit reads at once and multiplies. Two quads
//! make a block.

use crate::cube::pack::{count_planes, plane};
use crate::integer::{Dot, WeightLayout};
use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// Steps of a quad.
pub(super) const QUAD: usize = 4;

/// Quads of a block.
pub(super) const BLOCK_QUADS: usize = 2;

/// Quads of a row of weights.
pub(super) fn row_quads(layout: &WeightLayout) -> usize {
    layout.blocks() * BLOCK_QUADS
}

/// Four steps.
pub(super) type Quad = Vector<u32, Const<4>>;

/// `value` in each byte.
const fn in_bytes(value: u32) -> i64 {
    value as i64 * 0x0101_0101
}

/// Four fields of `bits` bits, the lowest of each word, to the lowest bits of its four bytes.
#[cube]
fn spread(fields: Quad, #[comptime] bits: u32) -> Quad {
    if comptime!(bits == 8) {
        fields
    } else if comptime!(bits == 4) {
        let fields = fields & Quad::from_int(0xffff);
        let pairs = (fields | (fields << Quad::from_int(8))) & Quad::from_int(0x00ff_00ff);
        (pairs | (pairs << Quad::from_int(4))) & Quad::from_int(0x0f0f_0f0f)
    } else if comptime!(bits == 2) {
        let fields = fields & Quad::from_int(0xff);
        let pairs = (fields | (fields << Quad::from_int(12))) & Quad::from_int(0x000f_000f);
        (pairs | (pairs << Quad::from_int(6))) & Quad::from_int(0x0303_0303)
    } else {
        // Bit `i` is wanted at `8 i`; the products of the factor's bits do not overlap.
        let fields = fields & Quad::from_int(0xf);
        (fields * Quad::from_int(0x0020_4081)) & Quad::from_int(0x0101_0101)
    }
}

/// Codes of `bits` bits in the lowest bits of bytes, extended to signed bytes: `c - 2^(b-1)` for each code `c` with its sign
/// flipped, and 128 in every byte meanwhile, so that none borrows from its neighbour.
#[cube]
fn extend(bytes: Quad, #[comptime] bits: BitWidth) -> Quad {
    if comptime!(bits.bits() == 8) {
        bytes
    } else {
        let sign = comptime!(1 << (bits.bits() - 1));
        let high = Quad::from_int(comptime!(in_bytes(0x80)));
        let raised = bytes ^ Quad::from_int(comptime!(in_bytes(sign | 0x80)));
        (raised - Quad::from_int(comptime!(in_bytes(sign)))) ^ high
    }
}

/// Words of a vector of packed weights: those of a quad, if they follow each other in memory.
pub(super) const fn weight_lanes(bits: BitWidth) -> usize {
    match bits.bits() {
        8 => 4,
        4 => 2,
        _ => 1,
    }
}

/// Quad `quad` of the packed codes of `blocks` blocks, as it lies in memory: the words of each plane, those of the field of
/// one bit for both quads of a block. `W` is [`weight_lanes`], or more.
#[cube]
pub(super) fn raw_quad<W: Size>(
    words: &[Vector<u32, W>], blocks: u32, quad: u32, #[comptime] bits: BitWidth,
) -> Quad {
    let lanes = W::value();
    let (block, half) = (quad / 2, quad % 2);
    let mut raw = Quad::from_int(0);
    if comptime!(lanes > 1) {
        let vector = words[quad as usize];
        #[unroll]
        for i in 0..lanes {
            raw.insert(i, vector.extract(i));
        }
    } else {
        #[unroll]
        for n in 0..comptime!(count_planes(bits)) {
            let (size, offset) = comptime!((plane(bits, n).bits, plane(bits, n).offset));
            let first = blocks * offset + block * size + half * comptime!(size / 2);
            #[unroll]
            for i in 0..comptime!(size.div_ceil(2) as usize) {
                let word = words[(first + comptime!(i as u32)) as usize].extract(0usize);
                raw.insert(comptime!(offset as usize / 2 + i), word);
            }
        }
    }
    raw
}

/// The signed bytes of a [`raw_quad`]; `half`: which one of its block it is.
#[cube]
pub(super) fn bytes_of(raw: Quad, half: u32, #[comptime] bits: BitWidth) -> Quad {
    let mut bytes = Quad::from_int(0);
    #[unroll]
    for n in 0..comptime!(count_planes(bits)) {
        let (size, offset, shift) =
            comptime!((plane(bits, n).bits, plane(bits, n).offset as usize, plane(bits, n).shift as i64));
        let mut fields = Quad::from_int(0);
        #[unroll]
        for step in 0..QUAD {
            let bit = comptime!(4 * step as u32 * size);
            let mut word = raw.extract(comptime!(offset / 2 + bit as usize / 32));
            if comptime!(size == 1) {
                word >>= half * 16;
            }
            fields.insert(step, word >> comptime!(bit % 32));
        }
        bytes |= spread(fields, size) << Quad::from_int(shift);
    }
    extend(bytes, bits)
}

/// Quad `quad` of the packed codes of `blocks` blocks, as signed bytes. `W` is [`weight_lanes`].
#[cube]
pub(super) fn weight_quad<W: Size>(
    words: &[Vector<u32, W>], blocks: u32, quad: u32, #[comptime] bits: BitWidth,
) -> Quad {
    bytes_of(raw_quad(words, blocks, quad, bits), quad % 2, bits)
}

/// What codes are multiplied as. `dp4a` multiplies signed bytes, so for it they are 128 lower; [`corrected`] makes up for that.
#[cube]
pub(super) fn operand(codes: Quad, #[comptime] dot: Dot) -> Quad {
    if comptime!(dot.is_signed()) { codes ^ Quad::from_int(comptime!(in_bytes(0x80))) } else { codes }
}

/// Byte `lane` of a word, with its sign.
#[cube]
pub(super) fn signed_byte(word: u32, #[comptime] lane: usize) -> i32 {
    i32::reinterpret(word << comptime!(24 - 8 * lane as u32)) >> 24
}

/// Byte `lane` of a word.
#[cube]
pub(super) fn byte(word: u32, #[comptime] lane: usize) -> i32 {
    i32::cast_from((word >> comptime!(8 * lane as u32)) & 0xff)
}

/// `sum` and the products of sixteen codes, an [`operand`], with weights.
#[cube]
pub(super) fn dot_quad(codes: Quad, weights: Quad, sum: i32, #[comptime] dot: Dot) -> i32 {
    let mut sum = sum;
    #[unroll]
    for step in 0..QUAD {
        let (code, weight) = (codes.extract(step), weights.extract(step));
        if comptime!(dot.is_signed()) {
            sum = dp4a(i32::reinterpret(code), i32::reinterpret(weight), sum);
        } else {
            #[unroll]
            for lane in 0..4usize {
                sum += byte(code, lane) * signed_byte(weight, lane);
            }
        }
    }
    sum
}

/// `sum` and the weights themselves, for [`corrected`].
#[cube]
pub(super) fn add_weights(weights: Quad, sum: i32, #[comptime] dot: Dot) -> i32 {
    if comptime!(dot.is_signed()) { dot_quad(Quad::from_int(0x0101_0101), weights, sum, dot) } else { sum }
}

/// The sum of products of codes, from that of operands and the sum of the weights.
#[cube]
pub(super) fn corrected(sum: i32, weights: i32, #[comptime] dot: Dot) -> i32 {
    if comptime!(dot.is_signed()) { sum + weights * 128 } else { sum }
}

/// Sixteen codes of `bits` bits (8, 4 or 2) that follow each other in words, each in the highest bits of a byte: `2^(8 - bits)`
/// times its value, with its sign. So none is extended, but they are in the order of [`in_order`].
#[cube]
pub(super) fn packed_quad<W: Size>(
    words: &Vector<u32, W>, #[comptime] first: usize, #[comptime] bits: u32,
) -> Quad {
    let mut quad = Quad::from_int(0);
    let fields = comptime!(8 / bits as usize);
    #[unroll]
    for step in 0..QUAD {
        let word = words.extract(comptime!(first + step / fields));
        let shift = comptime!(8 - bits * (step % fields + 1) as u32);
        quad.insert(step, (word << shift) & comptime!(0x0101_0101 * (256 - (1 << (8 - bits))) as u32));
    }
    quad
}

/// Codes in the order of [`packed_quad`]: byte `i` of a word of weights with `n` fields in a byte has those of codes `n i`, ...
#[cube]
pub(super) fn in_order(codes: Quad, #[comptime] bits: u32) -> Quad {
    let mut quad = codes;
    let fields = comptime!(8 / bits as usize);
    if comptime!(fields > 1) {
        #[unroll]
        for step in 0..QUAD {
            let mut bytes = Vector::<u8, Const<4>>::from_int(0);
            #[unroll]
            for i in 0..4usize {
                let at = comptime!(step / fields * 4 * fields + i * fields + step % fields);
                let word = Vector::<u8, Const<4>>::reinterpret(codes.extract(comptime!(at / 4)));
                bytes.insert(i, word.extract(comptime!(at % 4)));
            }
            quad.insert(step, u32::reinterpret(bytes));
        }
    }
    quad
}

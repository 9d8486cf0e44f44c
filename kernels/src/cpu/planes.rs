//! Packing and unpacking of planes ([`crate::layout`]), eight codes at a time: a `u64` holds eight codes, one in a byte,
//! the first in the lowest. In plain integers, which vectorise.

use super::blocks::input;
use crate::layout::{Plane, planes};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use dr_precision::BitWidth;

const _: () = assert!(cfg!(target_endian = "little"), "packed words are read as little-endian bytes");

/// `byte` in each of the eight bytes.
#[inline(always)]
pub(super) const fn every_byte(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// The lowest `bits` bits of every `spacing` bits.
const fn fields(bits: u32, spacing: u32) -> u64 {
    let (mut mask, mut at) = (0, 0);
    while at < 64 {
        mask |= (u64::MAX >> (64 - bits)) << at;
        at += spacing;
    }
    mask
}

/// From the lowest `P` bits of each byte, the others being 0, to `8 P` adjacent bits, the others undefined.
#[inline(always)]
fn gather<const P: u32>(x: u64) -> u64 {
    let x = (x | x >> (8 - P)) & const { fields(2 * P, 16) };
    let x = (x | x >> (16 - 2 * P)) & const { fields(4 * P, 32) };
    x | x >> (32 - 4 * P)
}

/// The inverse of [`gather`]; `x` has no other bits.
#[inline(always)]
fn spread<const P: u32>(x: u64) -> u64 {
    let x = (x | x << (32 - 4 * P)) & const { fields(4 * P, 32) };
    let x = (x | x << (16 - 2 * P)) & const { fields(2 * P, 16) };
    (x | x << (8 - P)) & const { fields(P, 8) }
}

/// Writes `codes` to a plane, of `P` bits, `shift` bits from the codes' least significant one. `W` has `8 P` bits.
#[inline(always)]
fn pack_plane<const P: u32, W: Pod>(
    codes: &[u64], shift: u32, words: &mut [u32], truncate: impl Fn(u64) -> W,
) {
    for (word, code) in cast_slice_mut::<u32, W>(words).iter_mut().zip(codes) {
        *word = truncate(gather::<P>(code >> shift & const { fields(P, 8) }));
    }
}

/// Adds a plane to `codes`.
#[inline(always)]
fn unpack_plane<const P: u32, W: Pod + Into<u64>>(words: &[u32], shift: u32, codes: &mut [u64]) {
    for (code, &word) in codes.iter_mut().zip(cast_slice::<u32, W>(words)) {
        *code |= spread::<P>(word.into()) << shift;
    }
}

/// The words of one plane of `codes`.
#[inline(always)]
pub(super) fn pack(codes: &[u64], plane: Plane, words: &mut [u32]) {
    match plane.bits {
        8 => words.copy_from_slice(cast_slice(codes)),
        4 => pack_plane::<4, u32>(codes, plane.shift, words, |x| x as u32),
        2 => pack_plane::<2, u16>(codes, plane.shift, words, |x| x as u16),
        _ => pack_plane::<1, u8>(codes, plane.shift, words, |x| x as u8),
    }
}

/// Unpacks the codes from number `start`, a multiple of 32, on, as many as `codes` has room for. Higher bits are 0.
#[inline(always)]
pub(super) fn unpack(words: &[u32], bits: BitWidth, start: usize, codes: &mut [u64]) {
    let blocks = words.len() / bits.bits() as usize;
    codes.fill(0);
    for plane in planes(bits) {
        let first = blocks * plane.offset as usize + start / 32 * plane.bits as usize;
        let words = input(words, first, codes.len() * plane.bits as usize / 4);
        match plane.bits {
            8 => cast_slice_mut(codes).copy_from_slice(words),
            4 => unpack_plane::<4, u32>(words, plane.shift, codes),
            2 => unpack_plane::<2, u16>(words, plane.shift, codes),
            _ => unpack_plane::<1, u8>(words, plane.shift, codes),
        }
    }
}

/// The second rounding, of eight codes at once: by `shift >= 1` bits to `active` ones.
///
/// With the highest bit of the code inverted, `u = q + 2^(h-1)`, the integer formula of
/// [`semantics::switch`](dr_precision::semantics::switch) splits into `u >> d` and a carry from the low bits; neither
/// leaves its byte.
#[inline(always)]
pub(super) fn switch(codes: u64, stored: BitWidth, active: BitWidth) -> u64 {
    let shift = stored.bits() - active.bits();
    let u = codes ^ every_byte(1 << (stored.bits() - 1));
    let high = u >> shift & every_byte(((1u32 << active.bits()) - 1) as u8);
    let low = u & every_byte((1 << shift) - 1);
    let odd = high & every_byte(1);
    let carry = (low + every_byte((1 << (shift - 1)) - 1) + odd) >> shift & every_byte(1);
    let rounded = high + carry;
    let above = rounded >> active.bits() & every_byte(1);
    (rounded - above) ^ every_byte(1 << (active.bits() - 1))
}

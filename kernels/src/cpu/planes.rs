//! Packing, unpacking and switching of planes ([`crate::layout`]) by way of codes in bytes: the `u64`s that hold them here are
//! eight codes each, the first in the lowest byte. In plain integers, which vectorise.

use super::blocks::input;
use crate::layout::{Plane, planes};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use dr_precision::BitWidth;
use std::ops::BitOr;

const _: () = assert!(cfg!(target_endian = "little"), "packed words are read as little-endian bytes");

/// The lowest `bits` bits of every `spacing` bits.
const fn fields(bits: u32, spacing: u32) -> u64 {
    let (mut mask, mut at) = (0, 0);
    while at < 64 {
        mask |= (u64::MAX >> (64 - bits)) << at;
        at += spacing;
    }
    mask
}

/// What becomes one byte of a plane: the two, four or eight codes that have their fields there, one code in a byte.
trait Lane: Pod + BitOr<Output = Self> {
    /// Joins the fields, which are in the bytes' bits from `shift` on.
    fn gather(self, shift: u32) -> u8;
    /// Puts the fields into the bytes' bits from `shift` on.
    fn spread(byte: u8, shift: u32) -> Self;
}

impl Lane for u16 {
    #[inline(always)]
    fn gather(self, shift: u32) -> u8 {
        let x = self >> shift & const { fields(4, 8) as u16 };
        (x | x >> 4) as u8
    }

    #[inline(always)]
    fn spread(byte: u8, shift: u32) -> u16 {
        let x = u16::from(byte);
        ((x | x << 4) & const { fields(4, 8) as u16 }) << shift
    }
}

impl Lane for u32 {
    #[inline(always)]
    fn gather(self, shift: u32) -> u8 {
        let x = self >> shift & const { fields(2, 8) as u32 };
        let x = x | x >> 6;
        (x | x >> 12) as u8
    }

    #[inline(always)]
    fn spread(byte: u8, shift: u32) -> u32 {
        let x = u32::from(byte);
        let x = (x | x << 12) & const { fields(4, 16) as u32 };
        ((x | x << 6) & const { fields(2, 8) as u32 }) << shift
    }
}

impl Lane for u64 {
    #[inline(always)]
    fn gather(self, shift: u32) -> u8 {
        let x = self >> shift & const { fields(1, 8) };
        let x = x | x >> 7;
        let x = x | x >> 14;
        (x | x >> 28) as u8
    }

    #[inline(always)]
    fn spread(byte: u8, shift: u32) -> u64 {
        let x = u64::from(byte);
        let x = (x | x << 28) & const { fields(4, 32) };
        let x = (x | x << 14) & const { fields(2, 16) };
        ((x | x << 7) & const { fields(1, 8) }) << shift
    }
}

/// Writes a plane.
#[inline(always)]
fn pack_plane<L: Lane>(codes: &[u64], shift: u32, words: &mut [u32]) {
    let bytes = cast_slice_mut::<u32, u8>(words);
    for (byte, &codes) in bytes.iter_mut().zip(cast_slice::<u64, L>(codes)) {
        *byte = codes.gather(shift);
    }
}

/// Reads a plane: the `first` one sets the codes, the others add to them.
#[inline(always)]
fn unpack_plane<L: Lane>(words: &[u32], shift: u32, codes: &mut [u64], first: bool) {
    let codes = cast_slice_mut::<u64, L>(codes).iter_mut().zip(cast_slice::<u32, u8>(words));
    if first {
        codes.for_each(|(codes, &byte)| *codes = L::spread(byte, shift));
    } else {
        codes.for_each(|(codes, &byte)| *codes = *codes | L::spread(byte, shift));
    }
}

/// The words of one plane of `codes`.
#[inline(always)]
pub(super) fn pack(codes: &[u64], plane: Plane, words: &mut [u32]) {
    match plane.bits {
        8 => words.copy_from_slice(cast_slice(codes)),
        4 => pack_plane::<u16>(codes, plane.shift, words),
        2 => pack_plane::<u32>(codes, plane.shift, words),
        _ => pack_plane::<u64>(codes, plane.shift, words),
    }
}

/// Unpacks the codes from number `start`, a multiple of 32, on, as many as `codes` has room for, and shifts them to the left
/// by `shift`. The other bits are 0.
#[inline(always)]
pub(super) fn unpack(words: &[u32], bits: BitWidth, start: usize, shift: u32, codes: &mut [u64]) {
    let blocks = words.len() / bits.bits() as usize;
    for plane in planes(bits) {
        let first = blocks * plane.offset as usize + start / 32 * plane.bits as usize;
        let words = input(words, first, codes.len() * plane.bits as usize / 4);
        let (shift, first) = (plane.shift + shift, plane.offset == 0);
        match plane.bits {
            8 => cast_slice_mut(codes).copy_from_slice(words),
            4 => unpack_plane::<u16>(words, shift, codes, first),
            2 => unpack_plane::<u32>(words, shift, codes, first),
            _ => unpack_plane::<u64>(words, shift, codes, first),
        }
    }
}

/// The second rounding: of `stored`-bit codes at the top of their bytes, to narrower ones at the bottom.
#[inline(always)]
pub(super) fn switch(codes: &[u8], stored: BitWidth, active: BitWidth, out: &mut [u64]) {
    match active {
        BitWidth::B2 => round::<6>(codes, stored, out),
        BitWidth::B3 => round::<5>(codes, stored, out),
        BitWidth::B4 => round::<4>(codes, stored, out),
        BitWidth::B5 => round::<3>(codes, stored, out),
        BitWidth::B6 => round::<2>(codes, stored, out),
        BitWidth::B7 => round::<1>(codes, stored, out),
        BitWidth::B8 => unreachable!("no code is wider"),
    }
}

/// Drops `D` bits of every byte, as [`semantics::switch`](dr_precision::semantics::switch) does: there are a few zeros below the
/// code here, and its sign bit is inverted meanwhile, so that an addition to `u8` saturates where the code must be
/// clipped.
#[inline(always)]
fn round<const D: u32>(codes: &[u8], stored: BitWidth, out: &mut [u64]) {
    let unit = 1u8 << (8 - stored.bits());
    let below_half = (1u8 << (D - 1)) - unit;
    for (out, code) in cast_slice_mut::<u64, u8>(out).iter_mut().zip(codes) {
        let u = code ^ 0x80;
        let odd = u & (1 << D) != 0;
        let up = if odd { below_half + unit } else { below_half };
        *out = (u.saturating_add(up) >> D) ^ (0x80 >> D);
    }
}

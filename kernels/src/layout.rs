//! Where scales and packed codes lie.
//!
//! # Packed codes, bit by bit
//!
//! `N` codes of `b` bits take `ceil(N / 32) * b` words of 32 bits, so every width is read and written with exactly its
//! own number of bits (rounded up to whole blocks of 32 codes). A width is made of *planes*, fields of 8, 4, 2 or 1
//! bits, widest first:
//!
//! | width | planes |    | width | planes |
//! |---|---|---|---|---|
//! | 2 | 2 | | 6 | 4 + 2 |
//! | 3 | 2 + 1 | | 7 | 4 + 2 + 1 |
//! | 4 | 4 | | 8 | 8 |
//! | 5 | 4 + 1 | | | |
//!
//! The first plane holds the code's most significant bits, the next one the bits below, and so on: of the 7-bit code
//! `abcdefg` (two's complement, `a` the sign) the 4-bit plane holds `abcd`, the 2-bit plane `ef`, the 1-bit plane `g`.
//!
//! Planes follow each other in memory, each whole: plane of `p` bits = `ceil(N / 32) * p` words. Within a plane the
//! field of code `i` (elements counted in row-major order) is in word `i * p / 32` at bit `i * p % 32`, counted
//! from the least significant: on a little-endian machine simply a stream of bits, lowest first. The
//! fields after the last code are zero.

use crate::KernelError;
use crate::error::product;
use dr_precision::{BitWidth, Granularity};

/// How many codes make a block: every plane of a block is a whole number of words.
pub const BLOCK: usize = 32;

/// One plane of a packed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane {
    /// Bits of a field: 8, 4, 2 or 1.
    pub bits: u32,
    /// How far the field is from the code's least significant bit.
    pub shift: u32,
    /// Words of earlier planes, for each block of 32 codes.
    pub offset: u32,
}

/// The planes of a width, widest (and most significant) first.
///
/// ```
/// use dr_kernels::layout::planes;
/// use dr_precision::BitWidth;
/// let bits: Vec<u32> = planes(BitWidth::B7).map(|plane| plane.bits).collect();
/// assert_eq!(bits, [4, 2, 1]);
/// ```
pub fn planes(bits: BitWidth) -> impl Iterator<Item = Plane> + Clone {
    let total = bits.bits();
    [8, 4, 2, 1].into_iter().filter(move |plane| total & plane != 0).map(move |plane| {
        let shift = total & (plane - 1);
        Plane { bits: plane, shift, offset: total - shift - plane }
    })
}

/// Words of 32 bits that `elements` codes of `bits` bits take.
#[must_use]
pub const fn packed_words(elements: usize, bits: BitWidth) -> usize {
    elements.div_ceil(BLOCK) * bits.bits() as usize
}

/// Packs signed codes of `bits` bits.
///
/// # Errors
/// [`KernelError::CodeRange`] for a code that the width does not hold.
pub fn pack(codes: &[i8], bits: BitWidth) -> Result<Vec<u32>, KernelError> {
    let (low, high) = (bits.signed_min(), bits.signed_max());
    if let Some(&found) = codes.iter().find(|&&code| !(low..=high).contains(&i32::from(code))) {
        return Err(KernelError::CodeRange { found: found.into(), low, high, bits: bits.bits() });
    }
    let mut words = vec![0u32; packed_words(codes.len(), bits)];
    let blocks = codes.len().div_ceil(BLOCK);
    for plane in planes(bits) {
        let words = &mut words[blocks * plane.offset as usize..][..blocks * plane.bits as usize];
        let mask = (1u32 << plane.bits) - 1;
        for (word, codes) in words.iter_mut().zip(codes.chunks((32 / plane.bits) as usize)) {
            for (at, &code) in (0..).step_by(plane.bits as usize).zip(codes) {
                *word |= (i32::from(code) as u32 >> plane.shift & mask) << at;
            }
        }
    }
    Ok(words)
}

/// The first `elements` signed codes of packed words.
///
/// # Errors
/// [`KernelError::WordCount`] for another number of words than so many codes take.
pub fn unpack(words: &[u32], elements: usize, bits: BitWidth) -> Result<Vec<i8>, KernelError> {
    let (found, expected) = (words.len(), packed_words(elements, bits));
    if found != expected {
        return Err(KernelError::WordCount { found, expected, elements, bits: bits.bits() });
    }
    let mut codes = vec![0i8; elements];
    let blocks = elements.div_ceil(BLOCK);
    for plane in planes(bits) {
        let words = &words[blocks * plane.offset as usize..][..blocks * plane.bits as usize];
        let mask = (1u32 << plane.bits) - 1;
        for (word, codes) in words.iter().zip(codes.chunks_mut((32 / plane.bits) as usize)) {
            for (at, code) in (0..).step_by(plane.bits as usize).zip(codes) {
                *code |= ((word >> at & mask) << plane.shift) as i8; // bits of a byte
            }
        }
    }
    // The sign, to the top of the byte and back.
    let unused = 8 - bits.bits();
    codes.iter_mut().for_each(|code| *code = *code << unused >> unused);
    Ok(codes)
}

/// Which scale belongs to which element of a contiguous tensor: it is seen as `[outer, rows, cols]`, and every row
/// is cut into runs of `group` elements, the last of which may be shorter. The scales are `[rows, runs]`; `outer`
/// repeats them.
///
/// So element `i` has scale `(i / cols % rows) * runs + i % cols / group`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScaleLayout {
    /// How often all scales repeat: the batch, for activations with more than one scale; else 1.
    pub(crate) outer: usize,
    /// Rows with scales of their own.
    pub(crate) rows: usize,
    /// Elements of a row.
    pub(crate) cols: usize,
    /// Consecutive elements of a row that share a scale; at least 1.
    pub(crate) group: usize,
}

impl ScaleLayout {
    /// For weights `[channels out, channels in, ..]`: a channel is an index of the first axis, a group is a run of
    /// elements of one channel (the input axis and what follows it, flattened).
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] for more elements than can be addressed.
    pub fn weights(shape: &[usize], granularity: Granularity) -> Result<Self, KernelError> {
        let all = product("tensor", shape)?;
        let rows = shape.first().copied().unwrap_or(1);
        let cols = shape.iter().skip(1).product::<usize>();
        Ok(match granularity {
            Granularity::Tensor => Self { outer: 1, rows: 1, cols: all, group: all.max(1) },
            Granularity::Channel => Self { outer: 1, rows, cols, group: cols.max(1) },
            Granularity::Group(n) => Self { outer: 1, rows, cols, group: n.get() },
        })
    }

    /// For activations `[batch, channels, ..]`: a channel is an index of the second axis, a group is a run of
    /// channels. Scales do not depend on the batch.
    ///
    /// # Errors
    /// [`KernelError::TooLarge`] for more elements than can be addressed.
    pub fn activations(shape: &[usize], granularity: Granularity) -> Result<Self, KernelError> {
        let all = product("tensor", shape)?;
        let batch = shape.first().copied().unwrap_or(1);
        let inner: usize = shape.iter().skip(2).product();
        let cols = shape.get(1).copied().unwrap_or(1) * inner;
        let channels_per_scale = match granularity {
            Granularity::Tensor => return Ok(Self { outer: 1, rows: 1, cols: all, group: all.max(1) }),
            Granularity::Channel => 1,
            Granularity::Group(n) => n.get(),
        };
        // A group may name more channels than there are.
        let group = channels_per_scale.saturating_mul(inner).clamp(1, cols.max(1));
        Ok(Self { outer: batch, rows: 1, cols, group })
    }

    /// Elements of a row.
    #[must_use]
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Elements of the tensor.
    #[must_use]
    pub const fn elements(&self) -> usize {
        self.outer * self.rows * self.cols
    }

    /// Runs, and so scales, of a row; at least 1.
    #[must_use]
    pub const fn runs(&self) -> usize {
        let runs = self.cols.div_ceil(self.group);
        if runs == 0 { 1 } else { runs }
    }

    /// The number of scales.
    #[must_use]
    pub const fn scales(&self) -> usize {
        self.rows * self.runs()
    }

    /// The scale of element `i`; 0 if there are no elements.
    #[must_use]
    pub const fn scale_of(&self, i: usize) -> usize {
        if self.rows == 0 || self.cols == 0 {
            return 0;
        }
        i / self.cols % self.rows * self.runs() + i % self.cols / self.group
    }

    /// Length of the runs that have scale `j`.
    #[must_use]
    pub const fn run_length(&self, j: usize) -> usize {
        let rest = self.cols - j % self.runs() * self.group;
        if rest < self.group { rest } else { self.group }
    }

    /// N of LSQ's gradient factor `1 / sqrt(N * p)`: how many elements have scale `j`.
    #[must_use]
    pub const fn elements_of(&self, j: usize) -> usize {
        self.outer * self.run_length(j)
    }

    /// LSQ's factor `1 / sqrt(N * p)` for scale `j` and highest code `p`; 0 if no element has that scale.
    #[must_use]
    pub fn gradient_factor(&self, j: usize, highest_code: i32) -> f32 {
        let n = self.elements_of(j);
        if n == 0 { 0.0 } else { (1.0 / (n as f64 * f64::from(highest_code)).sqrt()) as f32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use dr_precision::Signedness;

    #[test]
    fn packed_codes_are_those_of_the_reference_and_come_back() {
        for bits in BitWidth::ALL {
            let count = 1usize << bits.bits();
            let codes: Vec<i8> = (0..count * 3 + 5)
                .map(|i| (i % count) as i32 + bits.signed_min())
                .map(|code| code as i8)
                .collect();
            let words = pack(&codes, bits).unwrap();
            let wide: Vec<i32> = codes.iter().map(|&code| code.into()).collect();
            assert_eq!(words, reference::pack(&wide, bits));
            assert_eq!(reference::unpack(&words, codes.len(), bits, Signedness::Signed), wide);
            assert_eq!(unpack(&words, codes.len(), bits).unwrap(), codes);
            assert!(unpack(&words[1..], codes.len(), bits).is_err());
            assert_eq!(pack(&[127], bits).is_err(), bits != BitWidth::B8);
        }
    }
}

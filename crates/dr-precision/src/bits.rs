//! [`BitWidth`].

use crate::PrecisionError;
use alloc::string::{String, ToString};
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

/// The number of bits of a code: 2 to 8. All seven work everywhere.
///
/// Serialized as the bare number; reading any other number is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
#[repr(u8)]
pub enum BitWidth {
    /// 2 bits: signed codes -2..=1.
    B2 = 2,
    /// 3 bits: signed codes -4..=3.
    B3 = 3,
    /// 4 bits: signed codes -8..=7.
    B4 = 4,
    /// 5 bits: signed codes -16..=15.
    B5 = 5,
    /// 6 bits: signed codes -32..=31.
    B6 = 6,
    /// 7 bits: signed codes -64..=63.
    B7 = 7,
    /// 8 bits: signed codes -128..=127.
    B8 = 8,
}

impl BitWidth {
    /// All widths, narrowest first.
    pub const ALL: [BitWidth; 7] = [Self::B2, Self::B3, Self::B4, Self::B5, Self::B6, Self::B7, Self::B8];

    /// The number of bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self as u32
    }

    /// The lowest signed code, `n_b = -2^(b-1)`.
    #[must_use]
    pub const fn signed_min(self) -> i32 {
        -(1 << (self.bits() - 1))
    }

    /// The highest signed code, `p_b = 2^(b-1) - 1`.
    #[must_use]
    pub const fn signed_max(self) -> i32 {
        (1 << (self.bits() - 1)) - 1
    }

    /// The highest unsigned code, `2^b - 1`. The lowest is 0.
    #[must_use]
    pub const fn unsigned_max(self) -> i32 {
        (1 << self.bits()) - 1
    }

    /// `d = self - lower`, by how many bits a switch to `lower` shifts.
    ///
    /// # Errors
    /// [`PrecisionError::AboveStored`] if `lower` is wider than `self`.
    pub fn shift_to(self, lower: BitWidth) -> Result<u32, PrecisionError> {
        self.bits()
            .checked_sub(lower.bits())
            .ok_or(PrecisionError::AboveStored { active: lower.bits(), stored: self.bits() })
    }
}

impl TryFrom<u32> for BitWidth {
    type Error = PrecisionError;

    fn try_from(bits: u32) -> Result<Self, PrecisionError> {
        Self::ALL
            .into_iter()
            .find(|width| width.bits() == bits)
            .ok_or_else(|| PrecisionError::BitWidth(bits.to_string()))
    }
}

impl From<BitWidth> for u32 {
    fn from(width: BitWidth) -> u32 {
        width.bits()
    }
}

impl fmt::Display for BitWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.bits(), f)
    }
}

impl FromStr for BitWidth {
    type Err = PrecisionError;

    fn from_str(text: &str) -> Result<Self, PrecisionError> {
        let wrong = || PrecisionError::BitWidth(String::from(text));
        // One digit: `parse` alone would also take `+4` and `04`.
        match text.as_bytes() {
            [digit @ b'2'..=b'8'] => Self::try_from(u32::from(digit - b'0')).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

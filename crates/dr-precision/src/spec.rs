//! [`Granularity`], [`Signedness`] and [`QuantSpec`].

use crate::{BitWidth, PrecisionError};
use alloc::{format, string::String};
use core::{fmt, num::NonZeroUsize, str::FromStr};
use serde::{Deserialize, Serialize};

/// Which elements of a tensor share one scale.
///
/// Text form: `tensor`, `channel`, `group:64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Granularity {
    /// All of them.
    Tensor,
    /// Those of one channel: the first axis of a weight (its output channels), the second of an activation.
    Channel,
    /// Runs of this many elements along the input axis. The last run of a row may be shorter.
    Group(NonZeroUsize),
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.pad("tensor"),
            Self::Channel => f.pad("channel"),
            Self::Group(n) => f.pad(&format!("group:{n}")),
        }
    }
}

impl FromStr for Granularity {
    type Err = PrecisionError;

    fn from_str(text: &str) -> Result<Self, PrecisionError> {
        match text {
            "tensor" => Ok(Self::Tensor),
            "channel" => Ok(Self::Channel),
            _ => text
                .strip_prefix("group:")
                .and_then(|n| n.parse().ok())
                .map(Self::Group)
                .ok_or_else(|| PrecisionError::Granularity(String::from(text))),
        }
    }
}

crate::serde_as_text!(Granularity, PrecisionError);

/// Whether codes are two's complement integers around 0 or start at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Signedness {
    /// `[-2^(b-1), 2^(b-1) - 1]`: weights.
    Signed,
    /// `[0, 2^b - 1]`: activations.
    Unsigned,
}

/// The format of one quantized tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuantSpec {
    /// `l`: the width of the codes.
    pub bits: BitWidth,
    /// `h`: the width of the stored codes they were, or would be, switched from. At least `bits`.
    pub stored: BitWidth,
    /// The range of the codes.
    pub signedness: Signedness,
    /// Which elements share a scale.
    pub granularity: Granularity,
}

impl QuantSpec {
    /// Signed codes of `bits` bits, one scale per output channel: how weights are stored.
    #[must_use]
    pub const fn weights(bits: BitWidth) -> Self {
        Self { bits, stored: bits, signedness: Signedness::Signed, granularity: Granularity::Channel }
    }

    /// Unsigned codes of `bits` bits, one scale for the tensor: how activations are quantized.
    #[must_use]
    pub const fn activations(bits: BitWidth) -> Self {
        Self { bits, stored: bits, signedness: Signedness::Unsigned, granularity: Granularity::Tensor }
    }

    /// The same with another granularity.
    #[must_use]
    pub const fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// The format after a switch to `bits`.
    ///
    /// # Errors
    /// [`PrecisionError::AboveStored`] if `bits` is wider than the codes are.
    pub fn switched(mut self, bits: BitWidth) -> Result<Self, PrecisionError> {
        self.bits.shift_to(bits)?;
        self.bits = bits;
        Ok(self)
    }
}

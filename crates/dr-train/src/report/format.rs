//! [`NumberFormat`], and how numbers are written.

use dr_precision::{Precision, PrecisionError};
use serde::{Deserialize, Serialize};
use std::cmp::{Ordering, Reverse};
use std::{fmt, str::FromStr};

/// What a network computes in: `float`, a precision such as `w4a4`, or `mixed`. Ordered as in tables: float, then the
/// highest precision, and so on down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NumberFormat {
    /// 32-bit floats.
    Float,
    /// Quantized.
    Quantized(Precision),
    /// Quantized, each layer at a precision of its own.
    Mixed,
}

impl Ord for NumberFormat {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |format: &Self| match *format {
            Self::Float => (0, None),
            Self::Quantized(precision) => (1, Some(Reverse(precision))),
            Self::Mixed => (2, None),
        };
        place(self).cmp(&place(other))
    }
}

impl PartialOrd for NumberFormat {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<Precision> for NumberFormat {
    fn from(precision: Precision) -> Self {
        Self::Quantized(precision)
    }
}

impl fmt::Display for NumberFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.pad("float"),
            Self::Quantized(precision) => precision.fmt(f),
            Self::Mixed => f.pad("mixed"),
        }
    }
}

impl FromStr for NumberFormat {
    type Err = PrecisionError;

    fn from_str(text: &str) -> Result<Self, PrecisionError> {
        match text {
            "float" => Ok(Self::Float),
            "mixed" => Ok(Self::Mixed),
            _ => text.parse().map(Self::Quantized),
        }
    }
}

dr_precision::serde_as_text!(NumberFormat, PrecisionError);

/// What stands for a mean over nothing.
pub(crate) const UNDEFINED: &str = "undefined";

/// A number with so many decimals, if it is one.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() { UNDEFINED.to_owned() } else { format!("{value:.decimals$}") }
}

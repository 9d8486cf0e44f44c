//! [`Precision`] and [`PrecisionSet`].

use crate::{BitWidth, PrecisionError};
use alloc::{format, string::String, string::ToString, vec::Vec};
use core::{fmt, str::FromStr};
use serde::{Deserialize, Serialize};

/// Bits of weights and of activations. `w4a8` is 4-bit weights with 8-bit activations; a single number stands
/// for both (`4` is `w4a4`). Prints in the long form.
///
/// Ordered by weights, then activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Precision {
    /// Bits of a weight's code.
    pub weights: BitWidth,
    /// Bits of an activation's code.
    pub activations: BitWidth,
}

impl Precision {
    /// Weights and activations of the given widths.
    #[must_use]
    pub const fn new(weights: BitWidth, activations: BitWidth) -> Self {
        Self { weights, activations }
    }

    /// The same width for both.
    #[must_use]
    pub const fn uniform(bits: BitWidth) -> Self {
        Self::new(bits, bits)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("w{}a{}", self.weights, self.activations))
    }
}

impl FromStr for Precision {
    type Err = PrecisionError;

    fn from_str(text: &str) -> Result<Self, PrecisionError> {
        let wrong = |reason: String| PrecisionError::Precision { text: String::from(text), reason };
        let width = |bits: &str| bits.parse::<BitWidth>().map_err(|error| wrong(error.to_string()));
        match text.strip_prefix('w') {
            None => width(text).map(Self::uniform),
            Some(rest) => {
                let (w, a) = rest
                    .split_once('a')
                    .ok_or_else(|| wrong(String::from("the activations' width is missing")))?;
                Ok(Self::new(width(w)?, width(a)?))
            }
        }
    }
}

crate::serde_as_text!(Precision, PrecisionError);

/// The precisions that one model is trained for, highest first and without repetition. Never empty.
///
/// The widest weights are the ones that are stored ([`PrecisionSet::stored`]): all the others are switched from
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Precision>", into = "Vec<Precision>")]
pub struct PrecisionSet(Vec<Precision>);

impl PrecisionSet {
    /// A set of the given precisions, in any order.
    ///
    /// # Errors
    /// If there is none, or one is listed twice.
    pub fn new(precisions: impl IntoIterator<Item = Precision>) -> Result<Self, PrecisionError> {
        let given: Vec<Precision> = precisions.into_iter().collect();
        let mut sorted = given.clone();
        sorted.sort_by(|a, b| b.cmp(a));
        if sorted.is_empty() {
            return Err(PrecisionError::EmptySet);
        }
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let text = given.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            return Err(PrecisionError::Repeated { text, precision: pair[0].to_string() });
        }
        Ok(Self(sorted))
    }

    /// The set of one precision.
    #[must_use]
    pub fn of(precision: Precision) -> Self {
        Self(alloc::vec![precision])
    }

    /// The precisions, highest first.
    #[must_use]
    pub fn as_slice(&self) -> &[Precision] {
        &self.0
    }

    /// The precisions, highest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Precision> + '_ {
        self.0.iter().copied()
    }

    /// How many precisions there are; at least 1.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The first in order: the widest weights, and of those the widest activations.
    #[must_use]
    pub fn highest(&self) -> Precision {
        self.0[0]
    }

    /// The last in order.
    #[must_use]
    pub fn lowest(&self) -> Precision {
        self.0[self.0.len() - 1]
    }

    /// `h`: the width of the stored codes (the master codes).
    #[must_use]
    pub fn stored(&self) -> BitWidth {
        self.highest().weights
    }

    /// The widest activations of the set; what the first and the last layer use in every precision.
    #[must_use]
    pub fn widest_activations(&self) -> BitWidth {
        self.0.iter().map(|p| p.activations).max().unwrap_or(self.highest().activations)
    }

    /// The different widths of weights, highest first.
    #[must_use]
    pub fn weights(&self) -> Vec<BitWidth> {
        self.widths(|precision| precision.weights)
    }

    /// The different widths of activations, highest first.
    #[must_use]
    pub fn activations(&self) -> Vec<BitWidth> {
        self.widths(|precision| precision.activations)
    }

    fn widths(&self, of: fn(Precision) -> BitWidth) -> Vec<BitWidth> {
        let mut widths: Vec<BitWidth> = self.iter().map(of).collect();
        widths.sort_by(|a, b| b.cmp(a));
        widths.dedup();
        widths
    }

    /// The position of a precision in the set.
    #[must_use]
    pub fn position(&self, precision: Precision) -> Option<usize> {
        self.0.iter().position(|&p| p == precision)
    }
}

impl Default for PrecisionSet {
    /// `w8a8,w6a6,w4a4,w2a2`.
    fn default() -> Self {
        let widths = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B2];
        Self(widths.into_iter().map(Precision::uniform).collect())
    }
}

impl fmt::Display for PrecisionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.pad(&names.join(","))
    }
}

impl FromStr for PrecisionSet {
    type Err = PrecisionError;

    fn from_str(text: &str) -> Result<Self, PrecisionError> {
        if text.trim().is_empty() {
            return Err(PrecisionError::EmptySet);
        }
        let precisions =
            text.split(',').map(|part| part.trim().parse()).collect::<Result<Vec<Precision>, _>>()?;
        Self::new(precisions).map_err(|error| match error {
            PrecisionError::Repeated { precision, .. } => {
                PrecisionError::Repeated { text: String::from(text), precision }
            }
            other => other,
        })
    }
}

impl TryFrom<Vec<Precision>> for PrecisionSet {
    type Error = PrecisionError;

    fn try_from(precisions: Vec<Precision>) -> Result<Self, PrecisionError> {
        Self::new(precisions)
    }
}

impl From<PrecisionSet> for Vec<Precision> {
    fn from(set: PrecisionSet) -> Vec<Precision> {
        set.0
    }
}

//! The crate's one error type.

use alloc::string::String;
use thiserror::Error;

/// A descriptor that does not describe anything this project can do.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrecisionError {
    /// A number of bits outside 2..=8, or not a number.
    #[error("bit-width `{0}`: expected a whole number of bits from 2 to 8")]
    BitWidth(String),
    /// Text that is not a precision.
    #[error(
        "precision `{text}`: {reason}; expected for example `w4a8` (4-bit weights, 8-bit activations) or `4`"
    )]
    Precision {
        /// The text as it was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A set without any precision.
    #[error("the precision set is empty: expected at least one precision, for example `8,6,4,2`")]
    EmptySet,
    /// A precision that is listed twice.
    #[error("precision set `{text}`: `{precision}` is listed twice; expected every precision once")]
    Repeated {
        /// The set as it was given.
        text: String,
        /// The precision that is repeated.
        precision: String,
    },
    /// Text that is not a granularity.
    #[error("granularity `{0}`: expected `tensor`, `channel` or `group:N` with N of at least 1")]
    Granularity(String),
    /// An active width above the stored one.
    #[error(
        "{active}-bit codes cannot be made from stored {stored}-bit ones: expected at most {stored} bits"
    )]
    AboveStored {
        /// The width that was asked for.
        active: u32,
        /// The width that is stored.
        stored: u32,
    },
    /// A layer name that a plan lists twice.
    #[error("precision plan: layer `{0}` is listed twice")]
    RepeatedLayer(String),
}

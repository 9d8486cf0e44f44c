//! What every crate of this workspace means by *bit-width*, *precision* and *code*.
//!
//! - [`BitWidth`]: a number of bits from 2 to 8; [`Precision`]: bits of weights and of activations (`w4a8`).
//! - [`Granularity`] and [`QuantSpec`]: the format of one quantized tensor.
//! - [`PrecisionSet`]: the precisions one model was trained for; [`PrecisionPlan`]: one precision per layer.
//! - [`semantics`]: *Double Rounding* (arXiv:2502.01199) for a single value. It is the specification that every
//!   kernel, on any device, is tested against.
//!
//! The crate is `no_std` (with `alloc`) and knows neither Burn nor CubeCL.
//!
//! ```
//! use dr_precision::{BitWidth, Precision, semantics};
//!
//! let precision: Precision = "w4a8".parse()?;
//! assert_eq!(precision.weights, BitWidth::B4);
//! // The stored 8-bit code 127 becomes the 4-bit code 7: 127 / 16 rounds to 8, which is clipped.
//! assert_eq!(semantics::switch(127, BitWidth::B8, BitWidth::B4), 7);
//! # Ok::<(), dr_precision::PrecisionError>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[doc(hidden)]
pub extern crate alloc;

/// What `#[serde(try_from = "String", into = "String")]` asks of a type that is read from text and printed.
#[doc(hidden)]
#[macro_export]
macro_rules! serde_as_text {
    ($type:ty, $error:ty) => {
        impl TryFrom<$crate::alloc::string::String> for $type {
            type Error = $error;

            fn try_from(text: $crate::alloc::string::String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$type> for $crate::alloc::string::String {
            fn from(value: $type) -> Self {
                $crate::alloc::string::ToString::to_string(&value)
            }
        }
    };
}

mod bits;
mod error;
mod plan;
mod precision;
pub mod semantics;
mod spec;

pub use bits::BitWidth;
pub use error::PrecisionError;
pub use plan::PrecisionPlan;
pub use precision::{Precision, PrecisionSet};
pub use spec::{Granularity, QuantSpec, Signedness};

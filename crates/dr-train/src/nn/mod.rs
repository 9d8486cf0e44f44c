//! Layers that run in float or at any precision of a set, from the same weights.
//!
//! A network is written once. What a forward pass computes is said by its [`Pass`]: float, or one precision.

mod calibration;
mod integer;
mod layers;
mod norm;
pub(crate) mod quantizers;

pub use calibration::{Observer, fit_activation};
pub use integer::{IntConv2d, IntLinear, IntegerError};
pub use layers::{Layer, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantLinearConfig};
pub use norm::{PrecisionNorm, PrecisionNormConfig};
pub use quantizers::{LayerSpec, QuantConfig, Quantizers};

use dr_precision::Precision;

/// What a forward pass computes with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pass<'a> {
    precision: Option<Precision>,
    observer: Option<&'a Observer>,
    integers: bool,
}

impl<'a> Pass<'a> {
    /// Float arithmetic, nothing quantized.
    #[must_use]
    pub const fn float() -> Self {
        Self { precision: None, observer: None, integers: false }
    }

    /// Fake-quantized at one precision of the set the network was prepared for.
    #[must_use]
    pub const fn at(precision: Precision) -> Self {
        Self { precision: Some(precision), observer: None, integers: false }
    }

    /// Float, with the inputs of all quantized layers recorded, to choose the activations' scales from.
    #[must_use]
    pub const fn observing(observer: &'a Observer) -> Self {
        Self { precision: None, observer: Some(observer), integers: false }
    }

    /// The same with convolutions computed from codes where there are kernels for that: the values are the same up to
    /// rounding, and so are the gradients.
    #[must_use]
    pub const fn in_integers(mut self) -> Self {
        self.integers = true;
        self
    }

    /// The precision; `None` is float.
    #[must_use]
    pub const fn precision(&self) -> Option<Precision> {
        self.precision
    }
}

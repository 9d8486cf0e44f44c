//! What the fake quantizers are told besides their tensors.

use crate::KernelError;
use dr_precision::{BitWidth, Granularity, PrecisionError};
use std::{fmt, str::FromStr};

/// What the straight-through gradient of the weights' fake quantizer is at an active width below the stored one
/// (`l < h`). With `v = (w / s_h) / 2^d`, `in` meaning `n_l <= v <= p_l`, and `g` the incoming gradient:
///
/// | mode | `dL/dw` | `dL/ds_l` | `dL/ds_h` |
/// |---|---|---|---|
/// | `Chained` | `g * s_l / (s_h 2^d)` where in | `sum g * q_l` | `sum -g * v * s_l / s_h` where in |
/// | `Exact` | `g` where in | `sum g * q_l` | 0 |
/// | `Lsq` | `g` where in | `sum g * (q_l - v)` where in, `g * n_l` or `g * p_l` outside | 0 |
///
/// At `l = h` all three are LSQ (arXiv:1902.08153): `dL/ds_h = sum g * (q_h - w/s_h)` where in, `g * n_h` or `g * p_h`
/// outside. The gradients of scales are multiplied by LSQ's `1 / sqrt(N * p_l)`, N being the number of elements that
/// share the scale.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleGradient {
    /// The derivative of `s_l * round(round(w / s_h) / 2^d)` with both roundings taken as the identity.
    Chained,
    /// The codes are constants to `s_l`; the grid learns at `h` bits only.
    #[default]
    Exact,
    /// As if `s_l` were also the grid.
    Lsq,
}

impl ScaleGradient {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Chained, Self::Exact, Self::Lsq];
}

impl fmt::Display for ScaleGradient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Chained => "chained",
            Self::Exact => "exact",
            Self::Lsq => "lsq",
        })
    }
}

impl FromStr for ScaleGradient {
    type Err = KernelError;

    fn from_str(text: &str) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|mode| mode.to_string() == text)
            .ok_or_else(|| KernelError::ScaleGradient(text.to_string()))
    }
}

/// How weights are fake-quantized: both roundings of Double Rounding and the gradients of the scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WeightQuantizer {
    pub(crate) stored: BitWidth,
    pub(crate) active: BitWidth,
    pub(crate) granularity: Granularity,
    pub(crate) gradient: ScaleGradient,
}

impl WeightQuantizer {
    /// From `stored` (h) to `active` (l) bits; one scale per output channel, gradient mode [`ScaleGradient::Exact`].
    ///
    /// # Errors
    /// [`PrecisionError::AboveStored`] if `active` is wider than `stored`.
    pub fn new(stored: BitWidth, active: BitWidth) -> Result<Self, PrecisionError> {
        stored.shift_to(active)?;
        Ok(Self { stored, active, granularity: Granularity::Channel, gradient: ScaleGradient::default() })
    }

    /// The same with other elements sharing a scale.
    #[must_use]
    pub const fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// The same with another gradient mode.
    #[must_use]
    pub const fn with_gradient(mut self, gradient: ScaleGradient) -> Self {
        self.gradient = gradient;
        self
    }
}

/// How activations are fake-quantized: asymmetric, with a learned scale and zero point (LSQ+, arXiv:2004.09576).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActivationQuantizer {
    pub(crate) bits: BitWidth,
    pub(crate) granularity: Granularity,
}

impl ActivationQuantizer {
    /// Codes of `bits` bits; one scale and zero point for the tensor.
    #[must_use]
    pub const fn new(bits: BitWidth) -> Self {
        Self { bits, granularity: Granularity::Tensor }
    }

    /// The same with other elements sharing a scale.
    #[must_use]
    pub const fn with_granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }
}

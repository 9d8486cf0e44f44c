//! From a value to its code, lane by lane, in `f32`. Codes have at most 8 bits, so everything after the division is exact.

use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// How values become codes; see [`dr_precision::semantics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rule {
    /// Both roundings of Double Rounding.
    Weight { stored: BitWidth, active: BitWidth },
    /// Unsigned codes around a zero point.
    Activation { bits: BitWidth },
}

impl Rule {
    /// Unsigned or signed codes of `bits` bits, rounded once.
    pub(super) const fn single(bits: BitWidth, unsigned: bool) -> Self {
        if unsigned { Self::Activation { bits } } else { Self::Weight { stored: bits, active: bits } }
    }

    /// The first rounding's lowest code.
    pub(super) const fn first_low(self) -> i64 {
        match self {
            Self::Weight { stored, .. } => stored.signed_min() as i64,
            Self::Activation { .. } => 0,
        }
    }

    /// The first rounding's highest code.
    pub(super) const fn first_high(self) -> i64 {
        match self {
            Self::Weight { stored, .. } => stored.signed_max() as i64,
            Self::Activation { bits } => bits.unsigned_max() as i64,
        }
    }

    /// The lowest code.
    pub(super) const fn low(self) -> i64 {
        match self {
            Self::Weight { active, .. } => active.signed_min() as i64,
            Self::Activation { .. } => 0,
        }
    }

    /// The highest code.
    pub(super) const fn high(self) -> i64 {
        match self {
            Self::Weight { active, .. } => active.signed_max() as i64,
            Self::Activation { bits } => bits.unsigned_max() as i64,
        }
    }

    /// `2^d`, how many stored codes make an active one.
    pub(super) const fn step(self) -> i64 {
        match self {
            Self::Weight { stored, active } => 1 << (stored.bits() - active.bits()),
            Self::Activation { .. } => 1,
        }
    }

    /// Values are taken relative to a zero point.
    pub(super) const fn has_zero_point(self) -> bool {
        matches!(self, Self::Activation { .. })
    }
}

/// Half to even, from `floor` and comparisons: what `round` does with ties is up to the driver on SPIR-V.
#[cube]
pub(super) fn round_half_even<N: Size>(v: Vector<f32, N>) -> Vector<f32, N> {
    let half = Vector::<f32, N>::new(0.5);
    let floor = Vector::floor(v);
    let rest = v - floor; // exact
    let odd = floor - Vector::floor(floor * half) * Vector::from_int(2);
    let above = select_many(rest.greater_than(&half), Vector::from_int(1), Vector::from_int(0));
    floor + select_many(rest.equal(&half), odd, above)
}

/// The code of `ratio`, a value divided by its scale (the stored one, for weights).
#[cube]
pub(super) fn code_of<N: Size>(ratio: Vector<f32, N>, #[comptime] rule: Rule) -> Vector<f32, N> {
    let (low, high) = (Vector::from_int(rule.first_low()), Vector::from_int(rule.first_high()));
    let number = select_many(ratio.is_nan(), Vector::from_int(0), ratio);
    let stored = round_half_even(clamp(number, low, high));
    second_rounding(stored, rule)
}

/// From the stored code to the active one, `clip(round(code / 2^d))`. The lower clip cannot be hit.
#[cube]
pub(super) fn second_rounding<N: Size>(stored: Vector<f32, N>, #[comptime] rule: Rule) -> Vector<f32, N> {
    if comptime!(rule.step() == 1) {
        stored
    } else {
        let active = stored * Vector::new(f32::new(comptime!(1.0 / rule.step() as f32)));
        min(round_half_even(active), Vector::from_int(rule.high()))
    }
}

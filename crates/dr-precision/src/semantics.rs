//! Double Rounding (arXiv:2502.01199) for one value: the specification of all kernels.
//!
//! With `h` the stored width, `l <= h` the active one and `d = h - l`:
//!
//! ```text
//! q_h = clip(round(w / s_h), n_h, p_h)        quantize     first rounding
//! q_l = clip(round(q_h / 2^d), n_l, p_l)      switch       second rounding, in integers
//! w^  = s_l * q_l                             dequantize
//! ```
//!
//! Both roundings are half-to-even. Activations are asymmetric: `x_b = clip(round((x - z_b) / s_b), 0, 2^b - 1)` and
//! `x^ = s_b * x_b + z_b`.
//!
//! A scale must be finite and above zero; anything else is a caller's mistake that these functions do not look
//! for. A NaN quantizes to 0 and an infinity to the end of the range on its side.

use crate::BitWidth;

/// `clip(round(x), low, high)`, half to even. Needs neither `std` nor `libm`.
fn round_clip(x: f32, low: i32, high: i32) -> i32 {
    if x.is_nan() {
        return 0;
    }
    let x = x.clamp(low as f32, high as f32);
    let floor = x as i32 - i32::from(x < (x as i32) as f32); // `as` truncates towards zero
    let rest = x - floor as f32; // exact: codes have at most 8 bits
    floor + i32::from(rest > 0.5 || (rest == 0.5 && floor & 1 == 1))
}

/// First rounding: the signed code of `w` at `bits` bits, `clip(round(w / scale), n_b, p_b)`.
///
/// ```
/// use dr_precision::{BitWidth, semantics::quantize};
/// assert_eq!(quantize(0.25, 0.1, BitWidth::B8), 2); // 2.5 rounds to the even 2
/// assert_eq!(quantize(-9.0, 1.0, BitWidth::B4), -8);
/// ```
#[must_use]
pub fn quantize(w: f32, scale: f32, bits: BitWidth) -> i32 {
    round_clip(w / scale, bits.signed_min(), bits.signed_max())
}

/// Second rounding: the `active`-bit code of a `stored`-bit one, `clip(round(q / 2^d), n_l, p_l)`, by shifts.
///
/// Always switch from the stored code: 8 to 4 to 2 bits is not the same as 8 to 2. For `active >= stored` the
/// code is returned as it is (the public interfaces reject that case before it gets here).
#[must_use]
pub const fn switch(code: i32, stored: BitWidth, active: BitWidth) -> i32 {
    let d = stored.bits().saturating_sub(active.bits());
    if d == 0 {
        return code;
    }
    let rounded = (code + ((1 << (d - 1)) - 1) + ((code >> d) & 1)) >> d;
    let high = active.signed_max();
    if rounded > high { high } else { rounded }
}

/// The value of a signed code: `scale * code`.
#[must_use]
pub fn dequantize(code: i32, scale: f32) -> f32 {
    scale * code as f32
}

/// The unsigned code of an activation, `clip(round((x - zero_point) / scale), 0, 2^b - 1)`.
#[must_use]
pub fn quantize_activation(x: f32, scale: f32, zero_point: f32, bits: BitWidth) -> i32 {
    round_clip((x - zero_point) / scale, 0, bits.unsigned_max())
}

/// The value of an activation's code: `scale * code + zero_point`, rounded after each of the two operations.
#[must_use]
pub fn dequantize_activation(code: i32, scale: f32, zero_point: f32) -> f32 {
    scale * code as f32 + zero_point
}

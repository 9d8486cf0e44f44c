//! The stored scales that a search for scales tries.

use dr_precision::BitWidth;

/// How many stored scales are tried for every group.
pub const CANDIDATES: u32 = 48;

/// Candidate `k` of the stored scale `s_h`, for weights of root mean square `rms`: from 0.008 to 0.12 `rms` for `h = 8`
/// and twice that for each bit less, 12 steps to the octave. A group of zeros gets the scales of a small deviation
/// (1e-3), from which training can go on.
#[must_use]
pub fn candidate(k: u32, rms: f32, stored: BitWidth) -> f32 {
    let rms = if rms > 0.0 { rms } else { 1e-3 };
    rms * (0.008 * 2f64.powf(f64::from(k) / 12.0 + f64::from(8 - stored.bits()))) as f32
}

//! Convolutions in which every channel is a group: there is nothing to sum over channels, so the lanes are channels.

use crate::integer::{PANEL, STEP};

/// The sums of 16 channels at one position: `codes` from the first channel on, `offsets` of the taps, `weights` in the order
/// of their steps.
#[inline(always)]
pub(super) fn sums(codes: &[u8], offsets: &[u32], weights: &[i8]) -> [i32; PANEL] {
    let mut sums = [0; PANEL];
    for (tap, &offset) in offsets.iter().enumerate() {
        let codes = &codes[offset as usize..][..PANEL];
        let weights = &weights[tap / STEP * PANEL * STEP..][..PANEL * STEP];
        for (lane, (sum, code)) in sums.iter_mut().zip(codes).enumerate() {
            *sum += i32::from(*code) * i32::from(weights[lane * STEP + tap % STEP]);
        }
    }
    sums
}

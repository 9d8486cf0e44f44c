//! Convolutions in which every channel is a group: there is nothing to sum over channels, so the lanes are channels.

use super::super::epilogue::Channels;
use super::super::panels::unpack_panels;
use super::plan::Problem;
use super::window::Segment;
use super::workspace::Vector;
use crate::integer::{PANEL, STEP};
use crate::layout::BLOCK;

impl Problem<'_> {
    #[inline(always)]
    pub(super) fn depthwise(&self, segment: &Segment, unpacked: &mut Vec<Vector>) {
        let layout = self.shape.weight();
        let unpacked = Vector::room(unpacked, layout.elements());
        unpack_panels(self.weights, layout.bits(), unpacked);
        let has_offset = self.epilogue.offset.is_some();
        for (row, base) in segment.bases.iter().enumerate() {
            let panels = unpacked.chunks_exact(self.blocks * PANEL * BLOCK);
            for (first, weights) in (0..layout.outputs()).step_by(PANEL).zip(panels) {
                let codes = &segment.codes[base + first..];
                let inputs = if has_offset { input_sums(codes, self.offsets) } else { [0; PANEL] };
                let sums = [sums(codes, self.offsets, weights), inputs];
                let channels = Channels { first, count: PANEL.min(layout.outputs() - first) };
                let constants = self.epilogue.constants(channels, layout.outputs());
                let position = segment.start + row;
                // SAFETY: As in `tile`.
                unsafe {
                    self.epilogue.write_sums(&sums, position, &constants, self.shape, self.output);
                }
            }
        }
    }
}

/// The sums of 16 channels at one position: `codes` from the first channel on, `offsets` of the taps, `weights` in the order
/// of their steps.
#[inline(always)]
fn sums(codes: &[u8], offsets: &[u32], weights: &[i8]) -> [i32; PANEL] {
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

/// The sums of 16 channels' codes at one position.
#[inline(always)]
fn input_sums(codes: &[u8], offsets: &[u32]) -> [i32; PANEL] {
    let mut sums = [0; PANEL];
    for &offset in offsets {
        let codes = &codes[offset as usize..][..PANEL];
        sums.iter_mut().zip(codes).for_each(|(sum, code)| *sum += i32::from(*code));
    }
    sums
}

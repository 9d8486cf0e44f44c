//! The tiles of one row: its weights are read once, from memory, and nothing else is to be waited for.

use super::super::dot::{Form, PANELS};
use super::plan::Problem;
use super::tile::{Rows, Weights};
use super::workspace::Tile;
use crate::integer::PANEL;
use std::ops::Range;

impl Problem<'_> {
    /// Panels of one group for one row: their weights are read from memory, as they are.
    ///
    /// All else that is read and written, little as it is, keeps the processor from fetching them ahead: it is fetched before them, and used after them.
    #[inline(always)]
    pub(super) fn stream(
        &self, rows: &Rows, position: usize, panels: Range<usize>, form: Form,
        (buffer, sums): (&mut Tile, &mut Vec<[[i32; PANEL]; PANELS]>),
    ) {
        let bits = self.shape.weight().bits();
        let panel_bytes = self.blocks * PANEL * bits.bits() as usize * size_of::<u32>();
        let [_, most] = self.kernel.tile();
        let weights = |together: Together| {
            let Together { first, count, apart } = together;
            let bytes: &[u8] = bytemuck::cast_slice(self.weights);
            let bytes = &bytes[first * panel_bytes..][..((count - 1) * apart + 1) * panel_bytes];
            Weights { bytes, form, bits, panels: count, apart, panel_bytes }
        };
        for panel in panels.clone() {
            let channels = self.channels(panel, 1, 1);
            self.epilogue.prefetch(channels);
            self.output.prefetch(position, channels, self.shape.weight().outputs());
        }
        sums.clear();
        let channels = |Together { first, count, apart }: Together| self.channels(first, count, apart);
        for tile in together(panels.clone(), most) {
            self.sum(rows, &weights(tile), channels(tile), buffer);
            match self.groups.len() {
                1 => sums.push(buffer.sums[0]),
                _ => self.finish(rows, position, channels(tile), buffer),
            }
        }
        for (tile, sums) in together(panels, most).zip(sums) {
            buffer.sums[0] = *sums;
            self.finish(rows, position, channels(tile), buffer);
        }
    }
}

/// The panels of a tile: `count`, of which each is the `apart`th after the one before.
#[derive(Clone, Copy)]
pub(in super::super) struct Together {
    pub(in super::super) first: usize,
    pub(in super::super) count: usize,
    pub(in super::super) apart: usize,
}

/// Cuts panels into tiles of up to `most`, in streams: the first panels of all tiles follow each other in memory, and so do
/// the second ones: the processor goes on fetching them where tiles end. (At 2 bits and 2048 inputs a tenth to a fifth faster.)
pub(in super::super) fn together(panels: Range<usize>, most: usize) -> impl Iterator<Item = Together> {
    let stream = panels.len() / most;
    let rest = panels.start + stream * most;
    let in_streams =
        (0..stream).map(move |at| Together { first: panels.start + at, count: most, apart: stream });
    let others = (rest < panels.end).then(|| Together { first: rest, count: panels.end - rest, apart: 1 });
    in_streams.chain(others)
}

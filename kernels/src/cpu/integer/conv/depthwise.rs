//! Convolutions in which every channel is a group: there is nothing to sum over channels, so the lanes are channels.

use super::super::dot::{LANE_ROWS, Taps};
use super::super::epilogue::{Channels, InputSums, RowSums};
use super::super::panels::unpack_panels;
use super::plan::Problem;
use super::window::Segment;
use super::workspace::{DepthwiseTile, PanelWorkspace, Vector};
use crate::integer::PANEL;
use crate::layout::BLOCK;
use dr_precision::BitWidth;

impl Problem<'_> {
    #[inline(always)]
    pub(super) fn depthwise(&self, segment: &Segment, workspace: &mut PanelWorkspace) {
        let PanelWorkspace { unpacked, depthwise: DepthwiseTile { sums, inputs }, .. } = workspace;
        let (layout, shape) = (self.shape.weight(), self.shape);
        let unpacked: &[i8] = match layout.bits() {
            BitWidth::B8 => bytemuck::cast_slice(self.weights),
            bits => {
                let unpacked = Vector::room(unpacked, layout.elements());
                unpack_panels(self.weights, bits, unpacked);
                unpacked
            }
        };
        let has_offset = self.epilogue.offset.is_some();
        let farthest = segment.bases.iter().max().map_or(0, |base| base + self.reach);
        let panels = unpacked.chunks_exact(self.blocks * PANEL * BLOCK);
        for (first, weights) in (0..layout.outputs()).step_by(PANEL).zip(panels) {
            let channels = Channels { first, count: layout.outputs() - first, panels: 1, apart: 1 };
            assert!(farthest + first + PANEL <= segment.codes.len(), "windows end inside the codes");
            let codes = segment.codes[first..].as_ptr();
            for (tile, bases) in segment.bases.chunks(LANE_ROWS).enumerate() {
                let taps = Taps { codes, bases, offsets: self.offsets, kernel: layout.kernel(), weights };
                let position = segment.start + tile * LANE_ROWS;
                // SAFETY: The machine has the instructions: `Plan::new` has asserted it. Windows end inside the codes: asserted above. The
                // rest as in `tile`.
                unsafe {
                    self.kernel.depthwise(&taps, sums, has_offset.then_some(&mut *inputs));
                    let to = self.epilogue.place(bases.len(), position, channels, shape, self.output);
                    let (corrections, inputs) = (None, InputSums::Channels(inputs));
                    to.write_sums(&RowSums { sums: &sums[..], stride: 1, corrections, inputs }, self.kernel);
                }
            }
        }
    }
}

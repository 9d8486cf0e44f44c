//! Where the codes of a window are, and copies of codes with padding around.

use super::plan::Problem;
use super::workspace::Workspace;
use crate::integer::{BLOCK_STEPS, IntConv2dShape, STEP, padded_channels};
use std::ops::Range;

/// Whether tasks work on copies of their codes: with padding, or because steps that do not begin at a word may hang over
/// the end of the codes.
pub(super) fn copies_codes(shape: &IntConv2dShape) -> bool {
    let layout = shape.weight();
    let cut = layout.scale_groups() > 1 && (layout.taps() > 1 || !layout.run().is_multiple_of(STEP));
    shape.options().padding != [0, 0] || layout.groups() > 1 || cut
}

/// Where the codes of each step are in a window of rows of `cols` pixels: tap and channels, in the order of prepared weights.
pub(super) fn window_offsets(shape: &IntConv2dShape, cols: usize) -> Vec<u32> {
    let (layout, dilation) = (shape.weight(), shape.options().dilation);
    let (taps, kernel_cols) = (layout.taps(), layout.kernel()[1]);
    let pixel_bytes = padded_channels(shape.channels());
    let row_bytes = cols * pixel_bytes;
    let tap_offset = |tap: usize| {
        tap / kernel_cols * dilation[0] * row_bytes + tap % kernel_cols * dilation[1] * pixel_bytes
    };
    if layout.is_depthwise() {
        return (0..taps).map(|tap| tap_offset(tap) as u32).collect();
    }
    let run = layout.run();
    let mut offsets = vec![];
    for start in (0..layout.cols()).step_by(run) {
        let end = layout.cols().min(start + run);
        for tap in 0..taps {
            let first = start.saturating_sub(tap).div_ceil(taps);
            let last = end.saturating_sub(tap).div_ceil(taps);
            let first_step = tap_offset(tap) + first;
            offsets.extend((0..(last - first).div_ceil(STEP)).map(|step| (first_step + step * STEP) as u32));
        }
        // Padding has weights of zero: any codes will do.
        offsets.resize(offsets.len().next_multiple_of(BLOCK_STEPS), 0);
    }
    offsets
}

/// Consecutive output positions, counted through all images, and the codes that they read.
pub(super) struct Segment<'a> {
    /// The first position.
    pub(super) start: usize,
    pub(super) codes: &'a [u8],
    /// Where the windows start.
    pub(super) bases: &'a [usize],
}

impl Problem<'_> {
    /// Computes `panels` of weights for lines of output, all images' lines in one count.
    #[inline(always)]
    pub(super) fn task(&self, lines: Range<usize>, panels: Range<usize>, workspace: &mut Workspace) {
        let shape = self.shape;
        let [out_rows, out_cols] = shape.output();
        let Workspace { codes: padded, bases, panels: workspace } = workspace;
        let pitch = padded_channels(shape.channels());
        if !self.copied {
            let [rows, cols] = shape.input();
            bases.clear();
            for line in lines.clone() {
                let first =
                    (line / out_rows * rows + line % out_rows * shape.options().stride[0]) * cols * pitch;
                bases.extend((0..out_cols).map(|col| first + col * shape.options().stride[1] * pitch));
            }
            let segment = Segment { start: lines.start * out_cols, codes: self.codes, bases };
            return self.segment(&segment, panels, workspace);
        }
        // All images' lines are one segment: small images fill tiles together, and weights are unpacked once for them.
        let cols = shape.input()[1] + 2 * shape.options().padding[1];
        padded.clear();
        bases.clear();
        let mut line = lines.start;
        while line < lines.end {
            let (image, row) = (line / out_rows, line % out_rows);
            let count = (out_rows - row).min(lines.end - line);
            let start = padded.len();
            self.pad(image, row, count, cols, padded);
            for line in 0..count {
                let first = start + line * shape.options().stride[0] * cols * pitch;
                bases.extend((0..out_cols).map(|col| first + col * shape.options().stride[1] * pitch));
            }
            line += count;
        }
        // Whatever is read after the last window is multiplied by zero.
        padded.resize(padded.len() + 64, 0);
        let segment = Segment { start: lines.start * out_cols, codes: padded, bases };
        self.segment(&segment, panels, workspace);
    }

    /// Appends what `count` lines of output from `row` on read, with zeros around: rows of `cols` pixels.
    fn pad(&self, image: usize, row: usize, count: usize, cols: usize, padded: &mut Vec<u8>) {
        let shape = self.shape;
        let pitch = padded_channels(shape.channels());
        let ([in_rows, in_cols], [pad_rows, pad_cols]) = (shape.input(), shape.options().padding);
        let reach = (shape.weight().kernel()[0] - 1) * shape.options().dilation[0];
        let rows = (count - 1) * shape.options().stride[0] + reach + 1;
        let first = row * shape.options().stride[0];
        let image = &self.codes[image * in_rows * in_cols * pitch..][..in_rows * in_cols * pitch];
        let (row_bytes, left) = (in_cols * pitch, pad_cols * pitch);
        padded.reserve(rows * cols * pitch);
        for at in 0..rows {
            let end = padded.len() + cols * pitch;
            if let Some(from) = (first + at).checked_sub(pad_rows).filter(|&from| from < in_rows) {
                padded.resize(padded.len() + left, 0);
                padded.extend_from_slice(&image[from * row_bytes..][..row_bytes]);
            }
            padded.resize(end, 0);
        }
    }
}

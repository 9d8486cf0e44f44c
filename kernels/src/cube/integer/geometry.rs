//! Which codes an output position multiplies with which weights.

use super::words::{BLOCK_QUADS, QUAD, Quad};
use crate::cube::launch::index;
use crate::integer::{IntConv2dShape, STEP, WeightLayout, padded_channels};
use burn_cubecl::cubecl::{self, prelude::*};

/// How the codes are found that a row of weights is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Walk {
    pub(super) order: Order,
    /// Whether the kernel has but one tap.
    pub(super) single_tap: bool,
    /// Whether a row of weights is multiplied with all codes of an input position in order, as in a matrix product: a single
    /// tap, vectors, no padding.
    pub(super) straight: bool,
}

impl Walk {
    /// That of `shape`.
    pub(super) fn of(shape: &IntConv2dShape) -> Self {
        let (order, single_tap) = (Order::of(shape), shape.weight().taps() == 1);
        let straight = single_tap && order.is_quads() && shape.options().padding == [0, 0];
        Self { order, single_tap, straight }
    }
}

/// How the steps of a row of weights are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Order {
    /// By division, where all scale groups are alike. A quad has one tap, and its codes are one vector of four words.
    Quads,
    /// By division, and the codes of a step are a word.
    Words,
    /// By division; the codes of a step may lie across two words.
    Bytes,
    /// In a table: scale groups that start between the taps of a channel. Codes may lie across two words.
    Table,
}

impl Order {
    /// That of `shape`.
    pub(super) fn of(shape: &IntConv2dShape) -> Self {
        let layout = shape.weight();
        let (taps, runs) = (layout.taps(), layout.scale_groups());
        if taps > 1 && runs > 1 {
            return Self::Table;
        }
        // Channels at which scale groups and groups of channels start.
        let starts = |unit: usize| {
            (layout.groups() == 1 || layout.inputs().is_multiple_of(unit))
                && (runs == 1 || layout.run().is_multiple_of(unit))
        };
        let quad = QUAD * STEP;
        let whole_taps = taps == 1 || layout.inputs().is_multiple_of(quad);
        if starts(quad) && whole_taps && shape.channels().is_multiple_of(quad) {
            Self::Quads
        } else if starts(STEP) {
            Self::Words
        } else {
            Self::Bytes
        }
    }

    /// Words of a vector of codes.
    pub(super) const fn lanes(self) -> usize {
        if matches!(self, Self::Quads) { QUAD } else { 1 }
    }

    const fn is_table(self) -> bool {
        matches!(self, Self::Table)
    }

    const fn is_quads(self) -> bool {
        matches!(self, Self::Quads)
    }

    const fn is_shifted(self) -> bool {
        matches!(self, Self::Bytes | Self::Table)
    }
}

/// What [`Order::Table`] reads: for each scale group the block after its last, then for each step its tap and first
/// channel. Steps of padding have a tap after the last.
pub(super) fn table(layout: &WeightLayout) -> Vec<u32> {
    let mut blocks = 0;
    let end = |group: usize| {
        blocks += group;
        index(blocks)
    };
    let mut table: Vec<u32> = layout.group_blocks().into_iter().map(end).collect();
    let taps = layout.taps();
    for step in layout.columns().chunks_exact(STEP) {
        table.extend(step[0].map_or([index(taps), 0], |column| [index(column % taps), index(column / taps)]));
    }
    table
}

/// An [`IntConv2dShape`] in a kernel. A *position* is one of all images.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) positions: u32,
    /// Positions of one image.
    pub(super) image_positions: u32,
    out_cols: u32,
    in_rows: u32,
    in_cols: u32,
    stride_rows: u32,
    stride_cols: u32,
    padding_rows: u32,
    padding_cols: u32,
    dilation_rows: u32,
    dilation_cols: u32,
    kernel_cols: u32,
    pub(super) taps: u32,
    /// Words of an input position.
    pub(super) pixel_words: u32,
    /// Input channels of a group of channels.
    inputs: u32,
    /// Steps of a tap.
    tap_steps: u32,
    /// Channels of a scale group, if there are several and one tap.
    run: u32,
    /// Scale groups of a row.
    pub(super) scale_groups: u32,
    /// Blocks of a scale group that is not the last.
    group_blocks: u32,
    /// Blocks of a row.
    pub(super) row_blocks: u32,
    /// Blocks of the weight.
    pub(super) blocks: u32,
    pub(super) outputs: u32,
    /// Outputs of a group of channels.
    pub(super) group_outputs: u32,
    /// The same in rows of weights, with those of padding.
    pub(super) group_rows: u32,
    /// Words of codes of an output position.
    pub(super) out_words: u32,
}

/// `shape` for a kernel.
pub(super) fn geometry(shape: &IntConv2dShape) -> GeometryLaunch {
    let layout = shape.weight();
    let channel_groups = if layout.is_depthwise() { 1 } else { layout.groups() };
    let scale_groups = layout.scale_groups();
    let per_tap = if scale_groups > 1 { layout.run() } else { layout.inputs() };
    GeometryLaunch {
        positions: index(shape.batch() * shape.positions()),
        image_positions: index(shape.positions()),
        out_cols: index(shape.output()[1]),
        in_rows: index(shape.input()[0]),
        in_cols: index(shape.input()[1]),
        stride_rows: index(shape.options().stride[0]),
        stride_cols: index(shape.options().stride[1]),
        padding_rows: index(shape.options().padding[0]),
        padding_cols: index(shape.options().padding[1]),
        dilation_rows: index(shape.options().dilation[0]),
        dilation_cols: index(shape.options().dilation[1]),
        kernel_cols: index(layout.kernel()[1]),
        taps: index(layout.taps()),
        pixel_words: index(padded_channels(shape.channels()) / STEP),
        inputs: index(layout.inputs()),
        tap_steps: index(per_tap.div_ceil(STEP).max(1)),
        run: index(layout.run()),
        scale_groups: index(scale_groups),
        group_blocks: index(layout.group_blocks()[0]),
        row_blocks: index(layout.blocks()),
        blocks: index(layout.blocks() * layout.rows()),
        outputs: index(layout.outputs()),
        group_outputs: index(layout.outputs() / channel_groups),
        group_rows: index(layout.rows() / channel_groups),
        out_words: index(padded_channels(layout.outputs()) / STEP),
    }
}

/// Where the kernel lies for some output positions: the first row of the image among those of all images, and row and
/// column of its first tap, which wrap around in the padding.
#[derive(CubeType)]
pub(super) struct Places {
    image: Array<u32>,
    row: Array<u32>,
    col: Array<u32>,
}

#[cube]
impl Places {
    pub(super) fn new(#[comptime] count: usize) -> Places {
        Places { image: Array::new(count), row: Array::new(count), col: Array::new(count) }
    }

    /// Place `i` is that of `position`, or of the last one.
    pub(super) fn set(&mut self, geometry: &Geometry, #[comptime] i: usize, position: u32) {
        let position = min(position, geometry.positions - 1);
        let (image, rest) = (position / geometry.image_positions, position % geometry.image_positions);
        self.image[i] = image * geometry.in_rows;
        self.row[i] = rest / geometry.out_cols * geometry.stride_rows - geometry.padding_rows;
        self.col[i] = rest % geometry.out_cols * geometry.stride_cols - geometry.padding_cols;
    }
}

#[cube]
impl Geometry {
    /// The first quad of scale group `group`.
    pub(super) fn first_quad(&self, table: &[u32], group: u32, #[comptime] order: Order) -> u32 {
        let mut block = group * self.group_blocks;
        if comptime!(order.is_table()) {
            block = 0;
            if group > 0 {
                block = table[(group - 1) as usize];
            }
        }
        block * comptime!(BLOCK_QUADS as u32)
    }

    /// The quad after the last one of scale group `group`.
    pub(super) fn end_quad(&self, table: &[u32], group: u32, #[comptime] order: Order) -> u32 {
        let mut block = min((group + 1) * self.group_blocks, self.row_blocks);
        if comptime!(order.is_table()) {
            block = table[group as usize];
        }
        block * comptime!(BLOCK_QUADS as u32)
    }

    /// The input position that a tap reads at a place, or [`u32::MAX`] in the padding. `single`: there are no other taps.
    pub(super) fn pixel(
        &self, places: &Places, #[comptime] place: usize, tap: u32, #[comptime] single: bool,
    ) -> u32 {
        let mut row = places.row[place];
        let mut col = places.col[place];
        if comptime!(!single) {
            row += tap / self.kernel_cols * self.dilation_rows;
            col += tap % self.kernel_cols * self.dilation_cols;
        }
        let inside = tap < self.taps && row < self.in_rows && col < self.in_cols;
        let pixel = (places.image[place] + row) * self.in_cols + col;
        select(inside, pixel, u32::MAX)
    }

    /// The tap of step `step` of a scale group, and its place among the steps of that tap.
    fn tap_of(&self, step: u32, #[comptime] single: bool) -> (u32, u32) {
        let mut tap = select(step < self.tap_steps, 0u32, 1u32);
        let mut rest = step;
        if comptime!(!single) {
            tap = step / self.tap_steps;
            rest = step % self.tap_steps;
        }
        (tap, rest)
    }

    /// The codes that quad `quad` of a row, in scale group `group`, is multiplied with at a place. `channel` is the first
    /// input channel of the row. Codes in the padding are 0; what weights of padding are multiplied with does not matter.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn code_quad<N: Size>(
        &self, codes: &[Vector<u32, N>], table: &[u32], places: &Places, #[comptime] place: usize,
        channel: u32, group: u32, quad: u32, #[comptime] walk: Walk,
    ) -> Quad {
        let order = comptime!(walk.order);
        let single = comptime!(walk.single_tap);
        let mut words = Quad::from_int(0);
        let first = quad - self.first_quad(table, group, order);
        let first = first * comptime!(QUAD as u32);
        if comptime!(order.is_quads()) {
            let (tap, step) = self.tap_of(first, single);
            let pixel = self.pixel(places, place, tap, single);
            let word = (channel + group * self.run) / 4 + step;
            if pixel != u32::MAX && word < self.pixel_words {
                let vector = codes[((pixel * self.pixel_words + word) / 4) as usize];
                #[unroll]
                for step in 0..QUAD {
                    words.insert(step, vector.extract(step));
                }
            }
        } else {
            #[unroll]
            for step in 0..QUAD {
                let (mut tap, rest) = self.tap_of(first + comptime!(step as u32), single);
                let mut at = channel + group * self.run + rest * 4;
                if comptime!(order.is_table()) {
                    let entry =
                        self.scale_groups + (quad * comptime!(QUAD as u32) + comptime!(step as u32)) * 2;
                    tap = table[entry as usize];
                    at = channel + table[(entry + 1) as usize];
                }
                let pixel = self.pixel(places, place, tap, single);
                let word = at / 4;
                if pixel != u32::MAX && word < self.pixel_words {
                    let address = pixel * self.pixel_words + word;
                    let mut code = codes[address as usize].extract(0usize);
                    if comptime!(order.is_shifted()) {
                        let shift = at % 4 * 8;
                        let mut next = 0u32;
                        if word + 1 < self.pixel_words {
                            next = codes[(address + 1) as usize].extract(0usize);
                        }
                        // In two shifts, since none is by 32.
                        code = (code >> shift) | ((next << 1) << (31 - shift));
                    }
                    words.insert(step, code);
                }
            }
        }
        words
    }

    /// The vector of codes in which the channels of a place start, for [`Walk::straight`].
    pub(super) fn straight_base(&self, places: &Places, #[comptime] place: usize, channel: u32) -> u32 {
        let pixel = (places.image[place] + places.row[place]) * self.in_cols + places.col[place];
        (pixel * self.pixel_words + channel / 4) / 4
    }

    /// [`Geometry::code_quad`] for [`Walk::straight`]. What weights of padding are multiplied with are some codes of the same channels.
    pub(super) fn straight_quad<N: Size>(
        &self, codes: &[Vector<u32, N>], base: u32, group: u32, quad: u32,
    ) -> Quad {
        // Scale groups are whole quads, and so are padded ones.
        let in_group = quad - group * self.group_blocks * comptime!(BLOCK_QUADS as u32);
        let last = self.inputs / 16 - 1;
        let vector = codes[(base + min(group * (self.run / 16) + in_group, last)) as usize];
        let mut words = Quad::from_int(0);
        #[unroll]
        for step in 0..QUAD {
            words.insert(step, vector.extract(step));
        }
        words
    }

    /// The first input channel of the rows of a group of channels.
    pub(super) fn first_channel(&self, channel_group: u32) -> u32 {
        channel_group * self.inputs
    }
}

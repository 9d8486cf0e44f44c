//! What a thread keeps from one task to the next.

use super::super::dot::{LANE_ROWS, LaneSums, PANELS, ROWS, Sums};
use super::super::epilogue::Lanes;
use crate::integer::PANEL;

/// What a thread keeps from one task to the next.
#[derive(Default)]
pub(super) struct Workspace {
    /// Padded codes.
    pub(super) codes: Vec<u8>,
    /// Where the window of each row starts in the codes.
    pub(super) bases: Vec<usize>,
    pub(super) panels: PanelWorkspace,
}

/// What a vector instruction reads, without crossing cache lines.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(in super::super) struct Vector([u8; 64]);

impl Vector {
    /// `len` elements in `vectors`.
    pub(in super::super) fn room<T: bytemuck::Pod>(vectors: &mut Vec<Self>, len: usize) -> &mut [T] {
        vectors.resize((len * size_of::<T>()).div_ceil(64), Self([0; 64]));
        &mut bytemuck::cast_slice_mut(vectors)[..len]
    }
}

/// What the panels of a segment need.
#[derive(Default)]
pub(super) struct PanelWorkspace {
    /// Unpacked panels, in bytes and in words.
    pub(super) unpacked: Vec<Vector>,
    pub(super) words: Vec<Vector>,
    /// Codes in words.
    pub(super) wide_codes: Vec<i16>,
    /// What sums are too large by, because narrow codes have offsets: `[rows, scale groups]`.
    pub(super) corrections: Vec<i32>,
    /// The sum of each row's codes, for weights with offsets.
    pub(super) inputs: Vec<f32>,
    /// Of the tile under way.
    pub(super) tile: Tile,
    /// Of the tile of a depthwise convolution under way.
    pub(super) depthwise: DepthwiseTile,
    /// Of one row's tiles, before their results are written.
    pub(super) sums: Vec<[[i32; PANEL]; PANELS]>,
}

/// Sums and values of a tile: `[rows, panels, 16]`. Vectors do not cross cache lines.
#[repr(C, align(64))]
pub(super) struct Tile {
    pub(super) sums: Sums,
    pub(super) values: [[Lanes; PANELS]; ROWS],
}

/// Sums of a depthwise convolution, and of its inputs.
#[repr(C, align(64))]
pub(super) struct DepthwiseTile {
    pub(super) sums: LaneSums,
    pub(super) inputs: LaneSums,
}

impl Default for DepthwiseTile {
    fn default() -> Self {
        Self { sums: [[0; PANEL]; LANE_ROWS], inputs: [[0; PANEL]; LANE_ROWS] }
    }
}

impl Default for Tile {
    fn default() -> Self {
        Self { sums: [[[0; PANEL]; PANELS]; ROWS], values: [[[0.0; PANEL]; PANELS]; ROWS] }
    }
}

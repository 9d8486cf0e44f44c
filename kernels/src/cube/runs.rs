//! [`ScaleLayout`] in a kernel.

use super::launch::index;
use crate::layout::ScaleLayout;
use burn_cubecl::cubecl::{self, prelude::*};

/// How a vector's scale is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lookup {
    /// There is but one.
    Single,
    /// Each row has one.
    Row,
    /// Rows have several, or they repeat.
    Any,
}

/// A [`ScaleLayout`] counted in vectors of elements that share a scale.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Runs {
    /// How often all scales repeat.
    outer: u32,
    rows: u32,
    /// Vectors of a row.
    cols: u32,
    /// Vectors of a run.
    group: u32,
    /// Runs of a row.
    per_row: u32,
    #[cube(comptime)]
    lookup: Lookup,
}

/// `layout` in vectors of `lanes` elements; `lanes` divides rows and runs.
pub(super) fn runs(layout: &ScaleLayout, lanes: usize) -> RunsLaunch {
    let lookup = match layout.runs() {
        1 if layout.rows == 1 => Lookup::Single,
        1 if layout.outer == 1 => Lookup::Row,
        _ => Lookup::Any,
    };
    // A group may be longer than any row.
    let group = layout.group.min(layout.cols.max(1));
    RunsLaunch {
        outer: index(layout.outer),
        rows: index(layout.rows),
        cols: index(layout.cols / lanes),
        group: index(group.div_ceil(lanes)),
        per_row: index(layout.runs()),
        lookup,
    }
}

#[cube]
impl Runs {
    /// The scale of vector `i`.
    pub(super) fn scale_of(&self, i: u32) -> usize {
        let scale = match comptime!(self.lookup) {
            Lookup::Single => 0u32,
            Lookup::Row => i / self.cols,
            Lookup::Any => i / self.cols % self.rows * self.per_row + i % self.cols / self.group,
        };
        scale as usize
    }

    /// Vectors of each run that has scale `j`.
    pub(super) fn run_length(&self, j: u32) -> u32 {
        min(self.group, self.cols - j % self.per_row * self.group)
    }

    /// Vectors that have scale `j`.
    pub(super) fn vectors_of(&self, j: u32) -> u32 {
        self.outer * self.run_length(j)
    }

    /// The `k`th vector with scale `j`, counted over repetitions, each of them `length = run_length(j)` vectors.
    pub(super) fn vector(&self, j: u32, k: u32, length: u32) -> usize {
        let row = k / length * self.rows + j / self.per_row;
        let at = row * self.cols + j % self.per_row * self.group + k % length;
        at as usize
    }

    /// Whether the runs of scale `j` are the last of their rows, and so perhaps shorter.
    pub(super) fn is_last(&self, j: u32) -> bool {
        j % self.per_row == self.per_row - 1
    }
}

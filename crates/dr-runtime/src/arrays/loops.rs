//! Walks over arrays with strides, as rows that are as long as possible.

use super::{ArrayError, volume};
use rayon::prelude::*;

/// Elements that one thread takes at a time.
pub(super) const BLOCK: usize = 1 << 14;

/// How the elements of `N` arrays lie to those of a row-major one.
pub(super) struct Loops<const N: usize> {
    /// Sizes of the outer axes, and strides of each array.
    outer: Vec<(usize, [usize; N])>,
    /// The size of the last axis.
    row: usize,
    /// The strides of it.
    pub(super) steps: [usize; N],
}

impl<const N: usize> Loops<N> {
    /// Over these sizes; each array has a stride for each of them.
    pub(super) fn new(dims: &[usize], strides: &[Vec<usize>; N]) -> Self {
        let mut outer: Vec<(usize, [usize; N])> = Vec::new();
        for (axis, &size) in dims.iter().enumerate().filter(|(_, size)| **size != 1) {
            let steps: [usize; N] = std::array::from_fn(|array| strides[array][axis]);
            match outer.last_mut() {
                Some((before, last))
                    if (0..N).all(|array| last[array] == steps[array].wrapping_mul(size)) =>
                {
                    *before = before.saturating_mul(size);
                    *last = steps;
                }
                _ => outer.push((size, steps)),
            }
        }
        let (row, steps) = outer.pop().unwrap_or((1, [0; N]));
        Self { outer, row, steps }
    }

    /// Calls a function for pieces of rows, with the place of the first element in each array, in parallel if there are many.
    pub(super) fn run<O: Send>(&self, out: &mut [O], of: &(dyn Fn([usize; N], &mut [O]) + Sync)) {
        if out.is_empty() {
            return;
        }
        let rows = (BLOCK / self.row).max(1);
        let chunk = |index: usize, out: &mut [O]| {
            let mut starts = self.starts(index * rows);
            for row in out.chunks_mut(self.row) {
                let start = starts.next();
                row_pieces(row, &|from, piece| {
                    of(std::array::from_fn(|array| start[array] + from * self.steps[array]), piece);
                });
            }
        };
        if out.len() <= 2 * BLOCK {
            out.chunks_mut(rows * self.row).enumerate().for_each(|(index, out)| chunk(index, out));
        } else {
            out.par_chunks_mut(rows * self.row).enumerate().for_each(|(index, out)| chunk(index, out));
        }
    }

    /// The places of the rows from one on.
    fn starts(&self, mut row: usize) -> Starts<'_, N> {
        let mut at = vec![0; self.outer.len()];
        let mut start = [0; N];
        for (at, (size, steps)) in at.iter_mut().zip(&self.outer).rev() {
            *at = row % size;
            row /= size;
            (0..N).for_each(|array| start[array] += *at * steps[array]);
        }
        Starts { outer: &self.outer, at, start }
    }
}

/// Places of rows.
struct Starts<'a, const N: usize> {
    outer: &'a [(usize, [usize; N])],
    at: Vec<usize>,
    start: [usize; N],
}

impl<const N: usize> Starts<'_, N> {
    fn next(&mut self) -> [usize; N] {
        let now = self.start;
        for (at, (size, steps)) in self.at.iter_mut().zip(self.outer).rev() {
            *at += 1;
            if *at < *size {
                (0..N).for_each(|array| self.start[array] += steps[array]);
                break;
            }
            *at = 0;
            (0..N).for_each(|array| self.start[array] -= steps[array] * (size - 1));
        }
        now
    }
}

/// Calls a function for pieces of a row with the number of the first element, in parallel if there are several.
pub(super) fn row_pieces<O: Send>(row: &mut [O], of: &(dyn Fn(usize, &mut [O]) + Sync)) {
    if row.len() <= 2 * BLOCK {
        return of(0, row);
    }
    row.par_chunks_mut(BLOCK).enumerate().for_each(|(index, piece)| of(index * BLOCK, piece));
}

/// Calls a function for rows of `len` elements with their numbers, in parallel if there are many elements.
pub(super) fn rows<O: Send>(out: &mut [O], len: usize, of: &(dyn Fn(usize, &mut [O]) + Sync)) {
    let len = len.max(1);
    let least = (BLOCK / len).max(1);
    if out.len() <= 2 * BLOCK {
        return out.chunks_mut(len).enumerate().for_each(|(index, row)| of(index, row));
    }
    out.par_chunks_mut(len).with_min_len(least).enumerate().for_each(|(index, row)| of(index, row));
}

/// Strides of a row-major array.
pub(super) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    let mut stride = 1usize;
    for (at, &size) in strides.iter_mut().zip(dims).rev() {
        *at = stride;
        stride = stride.saturating_mul(size);
    }
    strides
}

/// Strides of a row-major array that is broadcast: 0 where the only element stands for all.
pub(super) fn broadcast_strides(dims: &[usize], to: &[usize]) -> Vec<usize> {
    let own = dims.iter().zip(strides(dims)).map(|(size, stride)| if *size == 1 { 0 } else { stride });
    std::iter::repeat_n(0, to.len().saturating_sub(dims.len())).chain(own).collect()
}

/// The common sizes of two arrays.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, ArrayError> {
    let rank = a.len().max(b.len());
    let size = |dims: &[usize], axis: usize| {
        if axis + dims.len() < rank { 1 } else { dims[axis + dims.len() - rank] }
    };
    let common = |axis| match (size(a, axis), size(b, axis)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    let dims = (0..rank).map(common).collect::<Option<Vec<_>>>();
    let dims = dims.ok_or_else(|| ArrayError::Broadcast { found: a.to_vec(), other: b.to_vec() })?;
    volume(&dims).map(|_| dims)
}

//! Products of matrices.

use super::loops::{broadcast, broadcast_strides, rows};
use super::{Array, ArrayError, build, dense, filled};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use rayon::prelude::*;

/// Elements of a result that one thread computes at least, times the length of the sums.
const LEAST: usize = 1 << 16;

/// Adds a product to a matrix, times a factor, in parallel if it is large.
pub(super) fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, mut out: ArrayViewMut2<'_, f32>) {
    let (m, k) = a.dim();
    let n = b.ncols();
    let parts = (m.saturating_mul(n).saturating_mul(k) / LEAST).clamp(1, rayon::current_num_threads());
    if parts == 1 || m.max(n) == 0 {
        return general_mat_mul(1.0, &a, &b, 0.0, &mut out);
    }
    if m >= n {
        let rows = m.div_ceil(parts);
        let out: Vec<_> = out.axis_chunks_iter_mut(Axis(0), rows).collect();
        let a: Vec<_> = a.axis_chunks_iter(Axis(0), rows).collect();
        out.into_par_iter().zip(a).for_each(|(mut out, a)| general_mat_mul(1.0, &a, &b, 0.0, &mut out));
    } else {
        let columns = n.div_ceil(parts);
        let out: Vec<_> = out.axis_chunks_iter_mut(Axis(1), columns).collect();
        let b: Vec<_> = b.axis_chunks_iter(Axis(1), columns).collect();
        out.into_par_iter().zip(b).for_each(|(mut out, b)| general_mat_mul(1.0, &a, &b, 0.0, &mut out));
    }
}

/// A matrix that lies row by row.
pub(super) fn matrix(values: &[f32], dims: [usize; 2]) -> Result<ArrayView2<'_, f32>, ArrayError> {
    ArrayView2::from_shape(dims, values).map_err(|_| ArrayError::dims(&dims, "those of a matrix"))
}

/// The same, to write to.
pub(super) fn matrix_mut(values: &mut [f32], dims: [usize; 2]) -> Result<ArrayViewMut2<'_, f32>, ArrayError> {
    ArrayViewMut2::from_shape(dims, values).map_err(|_| ArrayError::dims(&dims, "those of a matrix"))
}

/// Sizes of products of matrices, `[m, k]` times `[k, n]`.
pub(crate) struct Matrices {
    /// Of the batch on the left.
    pub(crate) left: Vec<usize>,
    /// Of the batch on the right.
    pub(crate) right: Vec<usize>,
    /// Of both, broadcast.
    pub(crate) batch: Vec<usize>,
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
    /// Of the result.
    pub(crate) dims: Vec<usize>,
}

impl Matrices {
    /// Those of arrays of these sizes. A vector is a row on the left, and a column on the right.
    pub(crate) fn of(a: &[usize], b: &[usize]) -> Result<Self, ArrayError> {
        let (left, m, k) = match a {
            [] => return Err(ArrayError::Rank { found: 0, expected: "at least 1".into() }),
            &[k] => (&[][..], 1, k),
            &[ref batch @ .., m, k] => (batch, m, k),
        };
        let (right, rows, n) = match b {
            [] => return Err(ArrayError::Rank { found: 0, expected: "at least 1".into() }),
            &[k] => (&[][..], k, 1),
            &[ref batch @ .., k, n] => (batch, k, n),
        };
        if k != rows {
            return Err(ArrayError::dims(b, format!("those of {k} rows, as many as columns of {a:?}")));
        }
        let batch = broadcast(left, right)?;
        let mut dims = batch.clone();
        dims.extend((a.len() > 1).then_some(m));
        dims.extend((b.len() > 1).then_some(n));
        Ok(Self { left: left.to_vec(), right: right.to_vec(), batch, m, k, n, dims })
    }
}

/// [`TensorOp::MatMul`](crate::graph::TensorOp::MatMul)
pub(super) fn matmul([a, b]: [Array; 2]) -> Result<Array, ArrayError> {
    let Matrices { left, right, batch, m, k, n, dims } = Matrices::of(a.dims(), b.dims())?;
    let places = [(&left, m * k), (&right, k * n)].map(|(own, len)| places(own, &batch, len));
    match (&a, &b) {
        (Array::F32(a), Array::F32(b)) => {
            let (a, b) = (dense(a), dense(b));
            let mut out = filled(&dims, 0f32)?;
            if right.iter().product::<usize>() == 1 && left == batch && !out.is_empty() {
                // One matrix on the right: one product.
                let m = out.len() / n;
                product(matrix(&a, [m, k])?, matrix(&b, [k, n])?, matrix_mut(&mut out, [m, n])?);
            } else if !out.is_empty() && k > 0 {
                let of = |(at, out): (usize, &mut [f32])| -> Result<(), ArrayError> {
                    let a = matrix(&a[places[0](at)..][..m * k], [m, k])?;
                    let b = matrix(&b[places[1](at)..][..k * n], [k, n])?;
                    product(a, b, matrix_mut(out, [m, n])?);
                    Ok(())
                };
                out.par_chunks_mut(m * n).enumerate().try_for_each(of)?;
            }
            build(out, &dims)
        }
        (Array::I64(a), b) => {
            let (a, b) = (dense(a), dense(b.as_i64()?));
            let mut out = filled(&dims, 0i64)?;
            rows(&mut out, n, &|row, out| {
                let a = &a[places[0](row / m) + row % m * k..][..k];
                for (at, &a) in a.iter().enumerate() {
                    let b = &b[places[1](row / m) + at * n..][..n];
                    out.iter_mut().zip(b).for_each(|(out, b)| *out = out.wrapping_add(a.wrapping_mul(*b)));
                }
            });
            build(out, &dims)
        }
        (Array::F32(_), other) | (other, _) => {
            Err(ArrayError::Element { found: other.element(), expected: "F32 or I64, both the same" })
        }
    }
}

/// Where the matrix of a batch starts in an array that is broadcast to it.
fn places(own: &[usize], batch: &[usize], len: usize) -> impl Fn(usize) -> usize + Sync + use<> {
    let strides = broadcast_strides(own, batch);
    let batch = batch.to_vec();
    move |mut at| {
        let mut place = 0;
        for (size, stride) in batch.iter().zip(&strides).rev() {
            place += at % size * stride;
            at /= size;
        }
        place * len
    }
}

/// A matrix that lies row by row, to write to, as blocks of so many columns.
pub(super) fn column_blocks(
    values: &mut [f32], dims: [usize; 2], columns: usize,
) -> Result<Vec<ArrayViewMut2<'_, f32>>, ArrayError> {
    let mut whole = matrix_mut(values, dims)?;
    let mut blocks = Vec::new();
    while whole.ncols() > columns {
        let (block, rest) = whole.split_at(Axis(1), columns);
        blocks.push(block);
        whole = rest;
    }
    blocks.push(whole);
    Ok(blocks)
}

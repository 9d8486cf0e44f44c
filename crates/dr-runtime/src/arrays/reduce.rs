//! One value of many, and what is computed from such values.

use super::elementwise::{exp, larger, smaller};
use super::layout::{permuted, with_dims};
use super::loops::{BLOCK, row_pieces, rows};
use super::{Array, ArrayError, Element, axes, axis, build, dense, filled, list, owned};
use crate::graph::{ElementType, Reduction};
use ndarray::{ArcArray, IxDyn};
use rayon::prelude::*;

/// Sums of a row that are independent of each other.
const LANES: usize = 8;

/// Which axes of so many a [`TensorOp::Reduce`](crate::graph::TensorOp::Reduce) is over.
pub(crate) fn reduced(
    rank: usize, among: Option<&Array>, empty_is_none: bool,
) -> Result<Vec<bool>, ArrayError> {
    let among = among.map(|among| list("axes", among)).transpose()?.unwrap_or_default();
    if among.is_empty() { Ok(vec![!empty_is_none; rank]) } else { axes(&among, rank) }
}

/// Which axes of so many a [`TensorOp::GlobalPool`](crate::graph::TensorOp::GlobalPool) is over.
pub(crate) fn reduced_globally(rank: usize) -> Result<Vec<bool>, ArrayError> {
    if rank < 2 {
        return Err(ArrayError::Rank { found: rank, expected: "at least 2".into() });
    }
    Ok((0..rank).map(|axis| axis >= 2).collect())
}

/// One value for all elements along some axes.
pub(super) fn reduce(reduction: Reduction, x: Array, gone: &[bool], keep: bool) -> Result<Array, ArrayError> {
    let Groups { order, sizes: groups, dims } = Groups::of(x.dims(), gone, keep);
    let x = match order {
        Some(order) => permuted(&x, &order)?,
        None => x,
    };
    let out = match x {
        Array::F32(x) => reduce_f32(reduction, &x, groups)?,
        Array::I64(x) => reduce_i64(reduction, &x, groups)?,
        Array::Bool(x) => match reduction {
            Reduction::Max => folded(&x, groups, false, |x| x, |a, b| a | b, |x| x)?,
            Reduction::Min => folded(&x, groups, true, |x| x, |a, b| a & b, |x| x)?,
            _ => return Err(ArrayError::Element { found: ElementType::Bool, expected: "F32 or I64" }),
        },
    };
    with_dims(out, &dims)
}

/// How the elements that become one value lie.
pub(crate) struct Groups {
    /// The order of axes in which those to reduce follow each other, if they do not.
    pub(crate) order: Option<Vec<usize>>,
    /// Sizes before, of, and after the axes to reduce.
    pub(crate) sizes: [usize; 3],
    /// The sizes of the result.
    pub(crate) dims: Vec<usize>,
}

impl Groups {
    /// Those of an array, of which some axes go, or stay with size 1.
    pub(crate) fn of(dims: &[usize], gone: &[bool], keep: bool) -> Self {
        let kept = dims.iter().zip(gone).filter(|(_, gone)| keep || !**gone);
        let kept = kept.map(|(&size, &gone)| if gone { 1 } else { size }).collect();
        let real = |axis: &usize| dims[*axis] != 1 && gone[*axis];
        let first = (0..dims.len()).find(real).unwrap_or(dims.len());
        let end = (0..dims.len()).rfind(real).map_or(first, |last| last + 1);
        if (first..end).all(|axis| gone[axis] || dims[axis] == 1) {
            let of = |sizes: &[usize]| sizes.iter().product();
            let sizes = [of(&dims[..first]), of(&dims[first..end]), of(&dims[end..])];
            return Self { order: None, sizes, dims: kept };
        }
        let (last, outer): (Vec<usize>, Vec<usize>) = (0..dims.len()).partition(|&axis| gone[axis]);
        let of = |axes: &[usize]| axes.iter().map(|&axis| dims[axis]).product();
        let sizes = [of(&outer), of(&last), 1];
        Self { order: Some([outer, last].concat()), sizes, dims: kept }
    }
}

/// Values of all elements of a group, merged from a first one on.
fn folded<T: Element, A: Copy + Send + Sync, O: Element>(
    x: &ArcArray<T, IxDyn>, [outer, len, inner]: [usize; 3], first: A, lift: impl Fn(T) -> A + Sync,
    merge: impl Fn(A, A) -> A + Sync, finish: impl Fn(A) -> O + Sync,
) -> Result<Array, ArrayError> {
    let values = dense(x);
    let mut sums = filled(&[outer, inner], first)?;
    if inner == 1 {
        by_work(&mut sums, len, |at, sum| *sum = merged(&values[at * len..][..len], first, &lift, &merge));
    } else {
        rows(&mut sums, inner, &|at, sums| {
            row_pieces(sums, &|from, sums| {
                for row in 0..len {
                    let row = &values[(at * len + row) * inner + from..][..sums.len()];
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = merge(*sum, lift(*x)));
                }
            });
        });
    }
    let out: Vec<O> = sums.into_iter().map(finish).collect();
    build(out, &[outer, inner])
}

/// The elements of a row, merged from a first value on.
#[inline(always)]
fn merged<T: Copy, A: Copy>(row: &[T], first: A, lift: impl Fn(T) -> A, merge: impl Fn(A, A) -> A) -> A {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [first; LANES];
    for block in blocks {
        (0..LANES).for_each(|lane| lanes[lane] = merge(lanes[lane], lift(block[lane])));
    }
    let rest = rest.iter().fold(first, |value, x| merge(value, lift(*x)));
    lanes.into_iter().fold(rest, merge)
}

/// Sets values that each take the work of `len` elements.
fn by_work<A: Send>(out: &mut [A], len: usize, of: impl Fn(usize, &mut A) + Sync) {
    if out.len().saturating_mul(len) <= 2 * BLOCK {
        return out.iter_mut().enumerate().for_each(|(at, out)| of(at, out));
    }
    let least = (BLOCK / len.max(1)).max(1);
    out.par_iter_mut().with_min_len(least).enumerate().for_each(|(at, out)| of(at, out));
}

/// `ln(exp(a) + exp(b))`
fn log_add_exp(a: f64, b: f64) -> f64 {
    if a == b { a + std::f64::consts::LN_2 } else { a.max(b) + (-(a - b).abs()).exp().ln_1p() }
}

fn reduce_f32(
    reduction: Reduction, x: &ArcArray<f32, IxDyn>, groups: [usize; 3],
) -> Result<Array, ArrayError> {
    let add = |a: f64, b: f64| a + b;
    let squared = |x: f32| f64::from(x) * f64::from(x);
    let count = groups[1] as f64;
    match reduction {
        Reduction::Sum => folded(x, groups, 0.0, f64::from, add, |sum| sum as f32),
        Reduction::Mean => folded(x, groups, 0.0, f64::from, add, |sum| (sum / count) as f32),
        Reduction::Max => folded(x, groups, f32::NEG_INFINITY, |x| x, larger, |x| x),
        Reduction::Min => folded(x, groups, f32::INFINITY, |x| x, smaller, |x| x),
        Reduction::Prod => folded(x, groups, 1.0, f64::from, |a, b| a * b, |product| product as f32),
        Reduction::L1 => folded(x, groups, 0.0, |x: f32| f64::from(x.abs()), add, |sum| sum as f32),
        Reduction::L2 => folded(x, groups, 0.0, squared, add, |sum| sum.sqrt() as f32),
        Reduction::SumSquare => folded(x, groups, 0.0, squared, add, |sum| sum as f32),
        Reduction::LogSum => folded(x, groups, 0.0, f64::from, add, |sum| sum.ln() as f32),
        Reduction::LogSumExp => {
            folded(x, groups, f64::NEG_INFINITY, f64::from, log_add_exp, |sum| sum as f32)
        }
    }
}

fn reduce_i64(
    reduction: Reduction, x: &ArcArray<i64, IxDyn>, groups: [usize; 3],
) -> Result<Array, ArrayError> {
    let add = i64::wrapping_add;
    let squared = |x: i64| x.wrapping_mul(x);
    let count = groups[1] as i64;
    match reduction {
        Reduction::Sum => folded(x, groups, 0, |x| x, add, |sum| sum),
        Reduction::Mean if count == 0 => Err(ArrayError::value("a number of elements", 0, "1 or more")),
        Reduction::Mean => folded(x, groups, 0, |x| x, add, |sum| sum / count),
        Reduction::Max => folded(x, groups, i64::MIN, |x| x, larger, |x| x),
        Reduction::Min => folded(x, groups, i64::MAX, |x| x, smaller, |x| x),
        Reduction::Prod => folded(x, groups, 1, |x| x, i64::wrapping_mul, |product| product),
        Reduction::L1 => folded(x, groups, 0, i64::wrapping_abs, add, |sum| sum),
        Reduction::L2 => folded(x, groups, 0, squared, add, |sum| (sum as f64).sqrt() as i64),
        Reduction::SumSquare => folded(x, groups, 0, squared, add, |sum| sum),
        Reduction::LogSum => folded(x, groups, 0, |x| x, add, |sum| (sum as f64).ln() as i64),
        Reduction::LogSumExp => {
            folded(x, groups, f64::NEG_INFINITY, |x| x as f64, log_add_exp, |sum| sum as i64)
        }
    }
}

/// [`TensorOp::ArgMax`](crate::graph::TensorOp::ArgMax)
pub(super) fn arg_max(
    x: &Array, at: isize, keep: bool, last: bool, smallest: bool,
) -> Result<Array, ArrayError> {
    fn of<T: Element>(
        x: &ArcArray<T, IxDyn>, at: usize, better: impl Fn(T, T) -> bool,
    ) -> Result<Vec<i64>, ArrayError> {
        let dims = x.shape();
        let (outer, len): (usize, usize) = (dims[..at].iter().product(), dims[at]);
        let inner: usize = dims[at + 1..].iter().product();
        if len == 0 {
            return Err(ArrayError::dims(dims, format!("1 or more of axis {at}")));
        }
        let values = dense(x);
        let mut out = filled(&[outer, inner], 0)?;
        for (row, out) in out.chunks_mut(inner.max(1)).enumerate() {
            let values = &values[row * len * inner..][..len * inner];
            for (column, out) in out.iter_mut().enumerate() {
                let best = (1..len).fold(0, |best, at| {
                    let [a, b] = [at, best].map(|at| values[at * inner + column]);
                    if better(a, b) { at } else { best }
                });
                *out = best as i64;
            }
        }
        Ok(out)
    }
    let at = axis(at as i64, x.dims().len())?;
    // What is not a number is better than any number.
    let nan = |a: f32, b: f32| a.is_nan() && (last || !b.is_nan());
    let out = match (x, smallest, last) {
        (Array::F32(x), false, false) => of(x, at, |a, b| a > b || nan(a, b))?,
        (Array::F32(x), false, true) => of(x, at, |a, b| a >= b || nan(a, b))?,
        (Array::F32(x), true, false) => of(x, at, |a, b| a < b || nan(a, b))?,
        (Array::F32(x), true, true) => of(x, at, |a, b| a <= b || nan(a, b))?,
        (Array::I64(x), false, false) => of(x, at, |a, b| a > b)?,
        (Array::I64(x), false, true) => of(x, at, |a, b| a >= b)?,
        (Array::I64(x), true, false) => of(x, at, |a, b| a < b)?,
        (Array::I64(x), true, true) => of(x, at, |a, b| a <= b)?,
        (Array::Bool(_), ..) => {
            return Err(ArrayError::Element { found: ElementType::Bool, expected: "F32 or I64" });
        }
    };
    let mut dims = x.dims().to_vec();
    dims[at] = 1;
    if !keep {
        dims.remove(at);
    }
    build(out, &dims)
}

/// [`TensorOp::Softmax`](crate::graph::TensorOp::Softmax)
pub(super) fn softmax(x: Array, at: isize, log: bool) -> Result<Array, ArrayError> {
    let rank = x.dims().len();
    let at = axis(at as i64, rank)?;
    x.as_f32()?;
    if x.dims()[at + 1..].iter().any(|&size| size != 1) {
        let mut swapped: Vec<usize> = (0..rank).collect();
        swapped.swap(at, rank - 1);
        return permuted(&softmax(permuted(&x, &swapped)?, -1, log)?, &swapped);
    }
    let len = x.dims()[at];
    rowwise(x, len, |row| {
        let max = merged(row, f32::NEG_INFINITY, |x| x, larger);
        if log {
            let sum = merged(row, 0.0, |x| exp(x - max), |a, b| a + b);
            let log = sum.ln();
            row.iter_mut().for_each(|x| *x = (*x - max) - log);
        } else {
            row.iter_mut().for_each(|x| *x = exp(*x - max));
            let scale = merged(row, 0.0, |x| x, |a: f32, b| a + b).recip();
            row.iter_mut().for_each(|x| *x *= scale);
        }
    })
}

/// [`TensorOp::Normalize`](crate::graph::TensorOp::Normalize)
pub(super) fn normalize(x: Array, at: isize, epsilon: f32) -> Result<Array, ArrayError> {
    let at = axis(at as i64, x.dims().len())?;
    let len: usize = x.dims()[at..].iter().product();
    rowwise(x, len, |row| {
        let count = row.len() as f64;
        let add = |a: f64, b: f64| a + b;
        let mean = merged(row, 0.0, f64::from, add) / count;
        let square = |x: f32| (f64::from(x) - mean) * (f64::from(x) - mean);
        let variance = merged(row, 0.0, square, add) / count;
        let (mean, scale) = (mean as f32, (variance + f64::from(epsilon)).sqrt().recip() as f32);
        row.iter_mut().for_each(|x| *x = (*x - mean) * scale);
    })
}

/// Changes each row of so many floats.
fn rowwise(x: Array, len: usize, of: impl Fn(&mut [f32]) + Sync) -> Result<Array, ArrayError> {
    let dims = x.dims().to_vec();
    let Array::F32(x) = x else {
        return Err(ArrayError::Element { found: x.element(), expected: "F32" });
    };
    let mut values = owned(x);
    rows(&mut values, len, &|_, row| of(row));
    build(values, &dims)
}

/// [`TensorOp::Lrn`](crate::graph::TensorOp::Lrn)
pub(super) fn lrn(x: &Array, alpha: f32, beta: f32, bias: f32, size: usize) -> Result<Array, ArrayError> {
    let dims = x.dims();
    let &[_, channels, ref rest @ ..] = dims else {
        return Err(ArrayError::Rank { found: dims.len(), expected: "at least 2".into() });
    };
    if size == 0 {
        return Err(ArrayError::value("a number of channels", 0, "1 or more"));
    }
    let inner: usize = rest.iter().product();
    let values = dense(x.as_f32()?);
    let mut out = filled(dims, 0f32)?;
    rows(&mut out, inner, &|row, out| {
        let channel = row % channels;
        let first = channel.saturating_sub((size - 1) / 2);
        let end = channel.saturating_add((size - 1).div_ceil(2)).min(channels - 1) + 1;
        for other in row - channel + first..row - channel + end {
            let other = &values[other * inner..][..inner];
            out.iter_mut().zip(other).for_each(|(sum, x)| *sum += x * x);
        }
        let own = &values[row * inner..][..inner];
        let scale = alpha / size as f32;
        out.iter_mut().zip(own).for_each(|(out, x)| *out = x / (bias + scale * *out).powf(beta));
    });
    build(out, dims)
}

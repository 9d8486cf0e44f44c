//! Operations that move elements, or only say otherwise how they lie.

use super::elementwise::broadcast_to;
use super::loops::{BLOCK, Loops, broadcast, rows, strides};
use super::{Array, ArrayError, Element, axes, axis, build, dense, each, filled, list, scalar, size, volume};
use crate::graph::PadMode;
use ndarray::{ArcArray, IxDyn};

/// The elements of an axis that a result has.
pub(super) struct Picked<'a> {
    /// How many there are.
    len: usize,
    /// The place in the input of each of them; none for a value from elsewhere.
    of: Box<dyn Fn(usize) -> Option<usize> + Sync + 'a>,
}

impl<'a> Picked<'a> {
    /// So many elements from these places.
    pub(super) fn new(len: usize, of: impl Fn(usize) -> Option<usize> + Sync + 'a) -> Self {
        Self { len, of: Box::new(of) }
    }
}

/// Elements that follow each other in the input and in the result.
struct Run {
    to: usize,
    from: usize,
    len: usize,
}

/// An array of elements of each axis: all of them where nothing is picked.
pub(super) fn pick<T: Element>(
    x: &ArcArray<T, IxDyn>, picked: &[Option<Picked<'_>>], outside: T,
) -> Result<Array, ArrayError> {
    let from = x.shape();
    let sizes =
        from.iter().zip(picked).map(|(&size, picked)| picked.as_ref().map_or(size, |picked| picked.len));
    let dims: Vec<usize> = sizes.collect();
    let Some(last) = picked.iter().rposition(Option::is_some) else {
        return Ok(T::array(x.clone()));
    };
    let mut out = filled(&dims, outside)?;
    if out.is_empty() {
        return build(out, &dims);
    }
    let place = |axis: usize, at: usize| picked[axis].as_ref().map_or(Some(at), |picked| (picked.of)(at));
    let block: usize = dims[last + 1..].iter().product();
    let values = dense(x);
    for first in (0..dims[last]).step_by(BLOCK) {
        let mut runs: Vec<Run> = Vec::new();
        for at in first..dims[last].min(first + BLOCK) {
            let Some(place) = place(last, at) else { continue };
            let (to, from) = (at * block, place * block);
            match runs.last_mut() {
                Some(run) if run.to + run.len == to && run.from + run.len == from => run.len += block,
                _ => runs.push(Run { to, from, len: block }),
            }
        }
        rows(&mut out, dims[last] * block, &|mut row, out| {
            let (mut start, mut stride) = (0, from[last] * block);
            for axis in (0..last).rev() {
                let Some(place) = place(axis, row % dims[axis]) else { return };
                start += place * stride;
                stride *= from[axis];
                row /= dims[axis];
            }
            for run in &runs {
                out[run.to..run.to + run.len].copy_from_slice(&values[start + run.from..][..run.len]);
            }
        });
    }
    build(out, &dims)
}

/// The same of elements of any type, none of which are from elsewhere.
fn pick_any(x: &Array, picked: &[Option<Picked<'_>>]) -> Result<Array, ArrayError> {
    each!(x, x => pick(x, picked, Default::default()))
}

/// Nothing picked of so many axes, but of one.
fn along<'a>(rank: usize, axis: usize, picked: Picked<'a>) -> Vec<Option<Picked<'a>>> {
    let mut all: Vec<_> = (0..rank).map(|_| None).collect();
    all[axis] = Some(picked);
    all
}

/// Other sizes of as many elements.
pub(super) fn with_dims(x: Array, dims: &[usize]) -> Result<Array, ArrayError> {
    if volume(dims)? != x.dims().iter().product::<usize>() {
        return Err(ArrayError::dims(dims, format!("those of as many elements as {:?}", x.dims())));
    }
    fn of<T: Element>(x: ArcArray<T, IxDyn>, dims: &[usize]) -> Result<Array, ArrayError> {
        if !x.is_standard_layout() {
            return build(dense(&x).into_owned(), dims);
        }
        let shaped = x.into_shape_with_order(IxDyn(dims));
        shaped.map(T::array).map_err(|_| ArrayError::dims(dims, "those of as many elements"))
    }
    each!(x, x => of(x, dims))
}

/// Its axes in another order.
pub(super) fn permuted(x: &Array, perm: &[usize]) -> Result<Array, ArrayError> {
    fn of<T: Element>(x: &ArcArray<T, IxDyn>, perm: &[usize]) -> Result<Array, ArrayError> {
        let own = strides(x.shape());
        let dims: Vec<usize> = perm.iter().map(|&axis| x.shape()[axis]).collect();
        let mut out = filled(&dims, T::default())?;
        let values = dense(x);
        let loops = Loops::new(&dims, &[perm.iter().map(|&axis| own[axis]).collect()]);
        loops.run(&mut out, &|[start], out| match loops.steps[0] {
            0 | 1 => out.copy_from_slice(&values[start..][..out.len()]),
            step => {
                let from = values[start..].iter().step_by(step);
                out.iter_mut().zip(from).for_each(|(out, x)| *out = *x);
            }
        });
        build(out, &dims)
    }
    each!(x, x => of(x, perm))
}

/// [`TensorOp::Transpose`](crate::graph::TensorOp::Transpose)
pub(super) fn transpose(x: &Array, perm: &[usize]) -> Result<Array, ArrayError> {
    let rank = x.dims().len();
    if perm.is_empty() {
        return permuted(x, &(0..rank).rev().collect::<Vec<_>>());
    }
    let numbers: Vec<i64> = perm.iter().map(|&axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect();
    axes(&numbers, rank)?;
    if perm.len() != rank {
        return Err(ArrayError::Rank { found: rank, expected: format!("{}, as in the order", perm.len()) });
    }
    permuted(x, perm)
}

/// [`TensorOp::Reshape`](crate::graph::TensorOp::Reshape)
pub(super) fn reshape([x, shape]: [Array; 2], allow_zero: bool) -> Result<Array, ArrayError> {
    let shape = list("a shape", &shape)?;
    let mut dims = Vec::with_capacity(shape.len());
    let mut open = None;
    for (at, &found) in shape.iter().enumerate() {
        dims.push(match found {
            0 if !allow_zero => *x.dims().get(at).ok_or(ArrayError::Axis {
                found: i64::try_from(at).unwrap_or(i64::MAX),
                rank: x.dims().len(),
            })?,
            -1 if open.is_none() => {
                open = Some(at);
                1
            }
            found => size("a size", found)?,
        });
    }
    if let Some(at) = open {
        let elements: usize = x.dims().iter().product();
        let others = volume(&dims)?;
        if others == 0 || !elements.is_multiple_of(others) {
            return Err(ArrayError::dims(&dims, format!("ones that {elements} elements can be divided by")));
        }
        dims[at] = elements / others;
    }
    with_dims(x, &dims)
}

/// [`TensorOp::Flatten`](crate::graph::TensorOp::Flatten)
pub(super) fn flatten(x: Array, at: isize) -> Result<Array, ArrayError> {
    let rank = x.dims().len();
    let at = if usize::try_from(at) == Ok(rank) { rank } else { axis(at as i64, rank)? };
    let (before, after) = x.dims().split_at(at);
    let dims = [before.iter().product(), after.iter().product()];
    with_dims(x, &dims)
}

/// [`TensorOp::Squeeze`](crate::graph::TensorOp::Squeeze)
pub(super) fn squeeze(x: Array, among: Option<&Array>) -> Result<Array, ArrayError> {
    let dims = x.dims();
    let gone = match among {
        None => dims.iter().map(|&size| size == 1).collect(),
        Some(among) => axes(&list("axes", among)?, dims.len())?,
    };
    if dims.iter().zip(&gone).any(|(&size, &gone)| gone && size != 1) {
        return Err(ArrayError::dims(dims, "1 of each axis to remove"));
    }
    let kept: Vec<usize> =
        dims.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(&size, _)| size).collect();
    with_dims(x, &kept)
}

/// [`TensorOp::Unsqueeze`](crate::graph::TensorOp::Unsqueeze)
pub(super) fn unsqueeze([x, among]: [Array; 2]) -> Result<Array, ArrayError> {
    let among = list("axes", &among)?;
    let new = axes(&among, x.dims().len() + among.len())?;
    let mut sizes = x.dims().iter();
    let dims: Vec<usize> = new
        .iter()
        .map(|&new| if new { Some(1) } else { sizes.next().copied() })
        .map(|x| x.unwrap_or(1))
        .collect();
    with_dims(x, &dims)
}

/// [`TensorOp::Expand`](crate::graph::TensorOp::Expand)
pub(super) fn expand([x, shape]: [Array; 2]) -> Result<Array, ArrayError> {
    let shape = list("a shape", &shape)?;
    let shape = shape.iter().map(|&found| size("a size", found)).collect::<Result<Vec<_>, _>>()?;
    let dims = broadcast(x.dims(), &shape)?;
    each!(x, x => build(broadcast_to(x, &dims)?, &dims))
}

/// [`TensorOp::Concat`](crate::graph::TensorOp::Concat)
pub(super) fn concat(inputs: &[Array], at: isize) -> Result<Array, ArrayError> {
    fn of<T: Element>(inputs: &[Array], at: usize) -> Result<Array, ArrayError> {
        let mut dims = inputs[0].dims().to_vec();
        let same = |dims: &[usize]| {
            let others = |dims: &[usize]| [&dims[..at], &dims[at + 1..]].concat();
            dims.len() == inputs[0].dims().len() && others(dims) == others(inputs[0].dims())
        };
        if let Some(other) = inputs.iter().find(|x| !same(x.dims())) {
            let expected = format!("those of {dims:?}, but of axis {at}");
            return Err(ArrayError::dims(other.dims(), expected));
        }
        dims[at] = inputs.iter().fold(0usize, |sum, x| sum.saturating_add(x.dims()[at]));
        let mut out = filled(&dims, T::default())?;
        let block: usize = dims[at + 1..].iter().product();
        let parts = inputs.iter().map(|x| T::of(x).map(|values| (dense(values), x.dims()[at] * block)));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        rows(&mut out, dims[at] * block, &|row, mut out| {
            for (values, len) in &parts {
                let (part, rest) = out.split_at_mut(*len);
                part.copy_from_slice(&values[row * len..][..*len]);
                out = rest;
            }
        });
        build(out, &dims)
    }
    let Some(first) = inputs.first() else {
        return Err(ArrayError::Inputs { found: 0, expected: "at least 1".into() });
    };
    let at = axis(at as i64, first.dims().len())?;
    match first {
        Array::F32(_) => of::<f32>(inputs, at),
        Array::I64(_) => of::<i64>(inputs, at),
        Array::Bool(_) => of::<bool>(inputs, at),
    }
}

/// [`TensorOp::Slice`](crate::graph::TensorOp::Slice)
pub(super) fn slice([x, starts, ends, among, steps]: &[Array; 5]) -> Result<Array, ArrayError> {
    let dims = x.dims();
    let (starts, ends) = (list("starts", starts)?, list("ends", ends)?);
    let (among, steps) = (list("axes", among)?, list("steps", steps)?);
    axes(&among, dims.len())?;
    for other in [&starts, &ends, &steps] {
        if other.len() != among.len() {
            let expected = format!("{}, as many as axes", among.len());
            return Err(ArrayError::value("a number of starts, ends or steps", other.len(), expected));
        }
    }
    let mut picked: Vec<Option<Picked<'_>>> = dims.iter().map(|_| None).collect();
    for (at, &among) in among.iter().enumerate() {
        let axis = axis(among, dims.len())?;
        let (len, step) = (dims[axis] as i128, i128::from(steps[at]));
        // Before the first element for steps backwards, behind the last one for the others.
        let (low, high) = if step < 0 { (-1, len - 1) } else { (0, len) };
        let bound = |at: i64| {
            let at = i128::from(at) + if at < 0 { len } else { 0 };
            at.clamp(low, high.max(low))
        };
        let (start, end) = (bound(starts[at]), bound(ends[at]));
        let count = match step {
            0 => return Err(ArrayError::value("a step", 0, "another number")),
            1.. => (end - start + step - 1) / step,
            _ => (start - end - step - 1) / -step,
        };
        let count = usize::try_from(count.max(0)).unwrap_or(0);
        if (start, step, count) != (0, 1, dims[axis]) {
            picked[axis] =
                Some(Picked::new(count, move |at| usize::try_from(start + at as i128 * step).ok()));
        }
    }
    pick_any(x, &picked)
}

/// [`TensorOp::Part`](crate::graph::TensorOp::Part)
pub(super) fn part(
    x: &Array, sizes: Option<&Array>, at: isize, index: usize, of: usize,
) -> Result<Array, ArrayError> {
    let rank = x.dims().len();
    let at = axis(at as i64, rank)?;
    let all = x.dims()[at];
    if index >= of {
        return Err(ArrayError::value("a part", index, format!("one of {of}")));
    }
    let (start, len) = match sizes {
        None => {
            let most = all.div_ceil(of);
            let start = most.saturating_mul(index).min(all);
            (start, most.min(all - start))
        }
        Some(sizes) => {
            let sizes = list("sizes", sizes)?;
            let sizes = sizes.iter().map(|&found| size("a size", found)).collect::<Result<Vec<_>, _>>()?;
            let sum = |sizes: &[usize]| sizes.iter().fold(0usize, |sum, size| sum.saturating_add(*size));
            if sizes.len() != of || sum(&sizes) != all {
                return Err(ArrayError::dims(&sizes, format!("{of} parts of {all} elements")));
            }
            (sum(&sizes[..index]), sizes[index])
        }
    };
    pick_any(x, &along(rank, at, Picked::new(len, move |at| Some(start + at))))
}

/// [`TensorOp::Gather`](crate::graph::TensorOp::Gather)
pub(super) fn gather([x, indices]: &[Array; 2], at: isize) -> Result<Array, ArrayError> {
    let rank = x.dims().len();
    let at = axis(at as i64, rank)?;
    let len = x.dims()[at];
    let places: Vec<usize> = dense(indices.as_i64()?)
        .iter()
        .map(|&found| {
            let place = i128::from(found) + if found < 0 { len as i128 } else { 0 };
            let place = usize::try_from(place).ok().filter(|place| *place < len);
            place.ok_or_else(|| ArrayError::value("an index", found, format!("-{len} to before {len}")))
        })
        .collect::<Result<_, _>>()?;
    let dims = [&x.dims()[..at], indices.dims(), &x.dims()[at + 1..]].concat();
    let picked = pick_any(x, &along(rank, at, Picked::new(places.len(), |at| Some(places[at]))))?;
    with_dims(picked, &dims)
}

/// [`TensorOp::Pad`](crate::graph::TensorOp::Pad)
pub(super) fn pad(
    x: &Array, pads: &Array, value: &Array, among: Option<&Array>, mode: PadMode,
) -> Result<Array, ArrayError> {
    let value = &value.clone().cast(x.element())?;
    let dims = x.dims();
    let rank = dims.len();
    let among = match among {
        None => (0..rank as i64).collect(),
        Some(among) => list("axes", among)?.into_owned(),
    };
    axes(&among, rank)?;
    let pads = list("pads", pads)?;
    if pads.len() != 2 * among.len() {
        let expected = format!("{}, two for each axis", 2 * among.len());
        return Err(ArrayError::value("a number of pads", pads.len(), expected));
    }
    let mut picked: Vec<Option<Picked<'_>>> = dims.iter().map(|_| None).collect();
    for (at, &among_at) in among.iter().enumerate() {
        let axis = axis(among_at, rank)?;
        let (begin, end) = (i128::from(pads[at]), i128::from(pads[among.len() + at]));
        // What is cut off is gone before anything is added.
        let (first, len) = ((-begin).max(0), dims[axis] as i128 + begin.min(0) + end.min(0));
        let all = usize::try_from(len + begin.max(0) + end.max(0)).unwrap_or(usize::MAX);
        if len < 0 || (len == 0 && all > 0 && mode != PadMode::Constant) {
            let expected = format!("ones that leave elements of the {} of axis {axis}", dims[axis]);
            return Err(ArrayError::value("pads", (begin, end), expected));
        }
        if (begin, end) == (0, 0) {
            continue;
        }
        picked[axis] = Some(Picked::new(all, move |at| {
            let at = at as i128 - begin.max(0);
            let at = match mode {
                PadMode::Constant => Some(at).filter(|at| (0..len).contains(at)),
                PadMode::Edge => Some(at.clamp(0, len - 1)),
                PadMode::Wrap => Some(at.rem_euclid(len)),
                PadMode::Reflect => {
                    let at = at.rem_euclid((2 * (len - 1)).max(1));
                    Some(at.min(2 * (len - 1) - at).max(0))
                }
            };
            at.and_then(|at| usize::try_from(first + at).ok())
        }));
    }
    fn of<T: Element>(
        x: &ArcArray<T, IxDyn>, picked: &[Option<Picked<'_>>], value: &Array,
    ) -> Result<Array, ArrayError> {
        pick(x, picked, scalar("a value", value)?)
    }
    each!(x, x => of(x, &picked, value))
}

/// [`TensorOp::Tile`](crate::graph::TensorOp::Tile)
pub(super) fn tile([x, repeats]: &[Array; 2]) -> Result<Array, ArrayError> {
    let (dims, repeats) = (x.dims(), list("repeats", repeats)?);
    if repeats.len() != dims.len() {
        return Err(ArrayError::Rank {
            found: dims.len(),
            expected: format!("{}, as repeats", repeats.len()),
        });
    }
    let picked = dims.iter().zip(repeats.iter()).map(|(&len, &found)| {
        let repeats = size("a number of repeats", found)?;
        let picked = Picked::new(len.saturating_mul(repeats), move |at| Some(at % len));
        Ok(Some(picked).filter(|_| repeats != 1))
    });
    pick_any(x, &picked.collect::<Result<Vec<_>, _>>()?)
}

/// [`TensorOp::Shape`](crate::graph::TensorOp::Shape)
pub(super) fn shape(x: &Array, start: isize, end: Option<isize>) -> Result<Array, ArrayError> {
    let rank = x.dims().len();
    let bound = |at: isize| {
        let at = at.saturating_add(if at < 0 { rank as isize } else { 0 });
        at.clamp(0, rank as isize) as usize
    };
    let (start, end) = (bound(start), end.map_or(rank, bound));
    let sizes: Vec<i64> = x.dims()[start.min(end)..end].iter().map(|&size| size as i64).collect();
    let len = sizes.len();
    build(sizes, &[len])
}

/// [`TensorOp::Range`](crate::graph::TensorOp::Range)
pub(super) fn range([start, limit, delta]: &[Array; 3]) -> Result<Array, ArrayError> {
    let step = |found: &dyn std::fmt::Debug| ArrayError::value("a step", found, "another number");
    let large = |start: &dyn std::fmt::Debug| ArrayError::value("a range from", start, "a shorter one");
    match start {
        Array::I64(_) => {
            let [start, limit, delta]: [i64; 3] =
                [scalar("a start", start)?, scalar("a limit", limit)?, scalar("a step", delta)?];
            let (span, by) = (i128::from(limit) - i128::from(start), i128::from(delta));
            let count = match by {
                0 => return Err(step(&delta)),
                1.. => (span + by - 1) / by,
                _ => (-span - by - 1) / -by,
            };
            let count = usize::try_from(count.max(0)).map_err(|_| large(&start))?;
            let mut out = filled(&[count], start)?;
            let mut next = start;
            for out in &mut out {
                *out = next;
                next = next.wrapping_add(delta);
            }
            build(out, &[count])
        }
        _ => {
            let [start, limit, delta]: [f32; 3] =
                [scalar("a start", start)?, scalar("a limit", limit)?, scalar("a step", delta)?];
            let count = ((f64::from(limit) - f64::from(start)) / f64::from(delta)).ceil().max(0.0);
            if delta == 0.0 || !(start.is_finite() && limit.is_finite() && delta.is_finite()) {
                return Err(step(&delta));
            }
            let count = count as usize;
            let mut out = filled(&[count], start)?;
            out.iter_mut().enumerate().for_each(|(at, out)| *out = start + at as f32 * delta);
            build(out, &[count])
        }
    }
}

/// [`TensorOp::DepthToSpace`](crate::graph::TensorOp::DepthToSpace)
pub(super) fn depth_to_space(x: Array, block: usize, channels_first: bool) -> Result<Array, ArrayError> {
    let &[n, c, h, w] = x.dims() else {
        return Err(ArrayError::Rank { found: x.dims().len(), expected: "4".into() });
    };
    let area = block.checked_mul(block).filter(|area| *area > 0 && c % area == 0);
    let Some(area) = area else {
        return Err(ArrayError::value("a block", block, format!("one that divides {c} channels")));
    };
    let c = c / area;
    let (split, perm) = if channels_first {
        ([n, c, block, block, h, w], [0, 1, 4, 2, 5, 3])
    } else {
        ([n, block, block, c, h, w], [0, 3, 4, 1, 5, 2])
    };
    let to = [n, c, h.saturating_mul(block), w.saturating_mul(block)];
    with_dims(permuted(&with_dims(x, &split)?, &perm)?, &to)
}

//! Operations that move elements, or only say otherwise how they lie.

use super::elementwise::broadcast_to;
use super::loops::{BLOCK, Loops, broadcast, rows, strides};
use super::resize::nearest_places;
use super::{Array, ArrayError, Element, axes, axis, build, dense, each, filled, list, scalar, size, volume};
use crate::graph::{Interpolation, PadMode, TensorOp};
use ndarray::{ArcArray, IxDyn};

/// The elements of an axis that a result has.
pub(crate) struct Picked {
    /// How many there are.
    pub(crate) len: usize,
    of: Box<dyn Fn(usize) -> Option<usize> + Sync>,
}

impl Picked {
    /// So many elements from these places.
    pub(crate) fn new(len: usize, of: impl Fn(usize) -> Option<usize> + Sync + 'static) -> Self {
        Self { len, of: Box::new(of) }
    }

    /// The place in the input of each of them; none for a value from elsewhere.
    #[cfg(feature = "burn")]
    pub(crate) fn places(&self) -> impl Iterator<Item = Option<usize>> {
        (0..self.len).map(&self.of)
    }
}

/// A step of an operation that moves elements, or only says otherwise how they lie.
pub(crate) enum Move {
    /// Other sizes for as many elements, in their order.
    Sizes(Vec<usize>),
    /// Axes in another order: axis `i` of the result is this one of the input.
    Order(Vec<usize>),
    /// Broadcast to these sizes.
    Broadcast(Vec<usize>),
    /// Elements of each axis, all where there is nothing; and one element, which stands where they come from elsewhere.
    Pick(Vec<Option<Picked>>, Array),
}

impl Move {
    /// What it makes of an array.
    pub(super) fn of(self, x: Array) -> Result<Array, ArrayError> {
        fn picked<T: Element>(
            x: &ArcArray<T, IxDyn>, picked: &[Option<Picked>], outside: &Array,
        ) -> Result<Array, ArrayError> {
            pick(x, picked, scalar("a value", outside)?)
        }
        match self {
            Self::Sizes(dims) => with_dims(x, &dims),
            Self::Order(order) => permuted(&x, &order),
            Self::Broadcast(dims) => each!(x, x => build(broadcast_to(x, &dims)?, &dims)),
            Self::Pick(of, outside) => {
                let outside = outside.cast(x.element())?;
                each!(x, x => picked(&x, &of, &outside))
            }
        }
    }

    /// Elements that all come from the input.
    fn within(picked: Vec<Option<Picked>>) -> Self {
        Self::Pick(picked, Array::integer(0))
    }
}

/// The steps of an operation on an array of these sizes, with the arrays that it takes besides; none if it is no such operation.
pub(crate) fn moves(
    op: &TensorOp, dims: &[usize], others: &[Array],
) -> Result<Option<Vec<Move>>, ArrayError> {
    Ok(Some(match (op, others) {
        (TensorOp::Transpose(perm), []) => vec![Move::Order(order(dims.len(), perm)?)],
        (TensorOp::Reshape { allow_zero }, [shape]) => vec![Move::Sizes(reshape(dims, shape, *allow_zero)?)],
        (TensorOp::Flatten { axis }, []) => vec![Move::Sizes(flatten(dims, *axis)?)],
        (TensorOp::Squeeze, []) => vec![Move::Sizes(squeeze(dims, None)?)],
        (TensorOp::Squeeze, [axes]) => vec![Move::Sizes(squeeze(dims, Some(axes))?)],
        (TensorOp::Unsqueeze, [axes]) => vec![Move::Sizes(unsqueeze(dims, axes)?)],
        (TensorOp::Expand, [shape]) => vec![Move::Broadcast(expand(dims, shape)?)],
        (TensorOp::Slice, [starts, ends, axes, steps]) => {
            vec![Move::within(slice(dims, [starts, ends, axes, steps])?)]
        }
        (TensorOp::Part { axis, index, of }, []) => {
            vec![Move::within(part(dims, None, *axis, *index, *of)?)]
        }
        (TensorOp::Part { axis, index, of }, [sizes]) => {
            vec![Move::within(part(dims, Some(sizes), *axis, *index, *of)?)]
        }
        (TensorOp::Gather { axis }, [indices]) => gather(dims, indices, *axis)?.into(),
        (TensorOp::Pad(mode), [pads, value]) => {
            vec![Move::Pick(pad(dims, pads, None, *mode)?, value.clone())]
        }
        (TensorOp::Pad(mode), [pads, value, axes]) => {
            vec![Move::Pick(pad(dims, pads, Some(axes), *mode)?, value.clone())]
        }
        (TensorOp::Tile, [repeats]) => vec![Move::within(tile(dims, repeats)?)],
        (TensorOp::DepthToSpace { block, channels_first }, []) => {
            depth_to_space(dims, *block, *channels_first)?.into()
        }
        (TensorOp::Resize(resize), [by, region @ ..]) => match resize.mode {
            Interpolation::Nearest(mode) => {
                let (picked, outside) = nearest_places(dims, by, region.first(), resize, mode)?;
                vec![Move::Pick(picked, Array::scalar(outside))]
            }
            Interpolation::Linear | Interpolation::Cubic { .. } => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

/// Elements that follow each other in the input and in the result.
struct Run {
    to: usize,
    from: usize,
    len: usize,
}

/// An array of elements of each axis: all of them where nothing is picked.
pub(super) fn pick<T: Element>(
    x: &ArcArray<T, IxDyn>, picked: &[Option<Picked>], outside: T,
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

/// Nothing picked of so many axes, but of one.
fn along(rank: usize, axis: usize, picked: Picked) -> Vec<Option<Picked>> {
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

/// [`TensorOp::Transpose`]: the order of the axes.
fn order(rank: usize, perm: &[usize]) -> Result<Vec<usize>, ArrayError> {
    if perm.is_empty() {
        return Ok((0..rank).rev().collect());
    }
    let numbers: Vec<i64> = perm.iter().map(|&axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect();
    axes(&numbers, rank)?;
    if perm.len() != rank {
        return Err(ArrayError::Rank { found: rank, expected: format!("{}, as in the order", perm.len()) });
    }
    Ok(perm.to_vec())
}

/// [`TensorOp::Reshape`]: the sizes of the result.
fn reshape(from: &[usize], shape: &Array, allow_zero: bool) -> Result<Vec<usize>, ArrayError> {
    let shape = list("a shape", shape)?;
    let mut dims = Vec::with_capacity(shape.len());
    let mut open = None;
    for (at, &found) in shape.iter().enumerate() {
        dims.push(match found {
            0 if !allow_zero => *from
                .get(at)
                .ok_or(ArrayError::Axis { found: i64::try_from(at).unwrap_or(i64::MAX), rank: from.len() })?,
            -1 if open.is_none() => {
                open = Some(at);
                1
            }
            found => size("a size", found)?,
        });
    }
    if let Some(at) = open {
        let elements: usize = from.iter().product();
        let others = volume(&dims)?;
        if others == 0 || !elements.is_multiple_of(others) {
            return Err(ArrayError::dims(&dims, format!("ones that {elements} elements can be divided by")));
        }
        dims[at] = elements / others;
    }
    Ok(dims)
}

/// [`TensorOp::Flatten`]: the sizes of the result.
fn flatten(from: &[usize], at: isize) -> Result<Vec<usize>, ArrayError> {
    let rank = from.len();
    let at = if usize::try_from(at) == Ok(rank) { rank } else { axis(at as i64, rank)? };
    let (before, after) = from.split_at(at);
    Ok(vec![before.iter().product(), after.iter().product()])
}

/// [`TensorOp::Squeeze`]: the sizes of the result.
fn squeeze(dims: &[usize], among: Option<&Array>) -> Result<Vec<usize>, ArrayError> {
    let gone = match among {
        None => dims.iter().map(|&size| size == 1).collect(),
        Some(among) => axes(&list("axes", among)?, dims.len())?,
    };
    if dims.iter().zip(&gone).any(|(&size, &gone)| gone && size != 1) {
        return Err(ArrayError::dims(dims, "1 of each axis to remove"));
    }
    Ok(dims.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(&size, _)| size).collect())
}

/// [`TensorOp::Unsqueeze`]: the sizes of the result.
fn unsqueeze(from: &[usize], among: &Array) -> Result<Vec<usize>, ArrayError> {
    let among = list("axes", among)?;
    let new = axes(&among, from.len() + among.len())?;
    let mut sizes = from.iter();
    let size = |new| if new { 1 } else { sizes.next().copied().unwrap_or(1) };
    Ok(new.into_iter().map(size).collect())
}

/// [`TensorOp::Expand`]: the sizes of the result.
fn expand(from: &[usize], shape: &Array) -> Result<Vec<usize>, ArrayError> {
    let shape = list("a shape", shape)?;
    let shape = shape.iter().map(|&found| size("a size", found)).collect::<Result<Vec<_>, _>>()?;
    broadcast(from, &shape)
}

/// [`TensorOp::Concat`]: the axis, and the sizes of the result.
pub(crate) fn concatenated(inputs: &[&[usize]], at: isize) -> Result<(usize, Vec<usize>), ArrayError> {
    let Some(first) = inputs.first() else {
        return Err(ArrayError::Inputs { found: 0, expected: "at least 1".into() });
    };
    let at = axis(at as i64, first.len())?;
    let others = |dims: &[usize]| [&dims[..at], &dims[at + 1..]].concat();
    let same = |dims: &[usize]| dims.len() == first.len() && others(dims) == others(first);
    if let Some(other) = inputs.iter().find(|dims| !same(dims)) {
        return Err(ArrayError::dims(other, format!("those of {first:?}, but of axis {at}")));
    }
    let mut dims = first.to_vec();
    dims[at] = inputs.iter().fold(0usize, |sum, dims| sum.saturating_add(dims[at]));
    Ok((at, dims))
}

/// [`TensorOp::Concat`]
pub(super) fn concat(inputs: &[Array], at: isize) -> Result<Array, ArrayError> {
    fn of<T: Element>(inputs: &[Array], at: usize, dims: &[usize]) -> Result<Array, ArrayError> {
        let mut out = filled(dims, T::default())?;
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
        build(out, dims)
    }
    let (at, dims) = concatenated(&inputs.iter().map(Array::dims).collect::<Vec<_>>(), at)?;
    match inputs[0] {
        Array::F32(_) => of::<f32>(inputs, at, &dims),
        Array::I64(_) => of::<i64>(inputs, at, &dims),
        Array::Bool(_) => of::<bool>(inputs, at, &dims),
    }
}

/// [`TensorOp::Slice`]: the elements of each axis.
fn slice(
    dims: &[usize], [starts, ends, among, steps]: [&Array; 4],
) -> Result<Vec<Option<Picked>>, ArrayError> {
    let (starts, ends) = (list("starts", starts)?, list("ends", ends)?);
    let (among, steps) = (list("axes", among)?, list("steps", steps)?);
    axes(&among, dims.len())?;
    for other in [&starts, &ends, &steps] {
        if other.len() != among.len() {
            let expected = format!("{}, as many as axes", among.len());
            return Err(ArrayError::value("a number of starts, ends or steps", other.len(), expected));
        }
    }
    let mut picked: Vec<Option<Picked>> = dims.iter().map(|_| None).collect();
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
    Ok(picked)
}

/// [`TensorOp::Part`]: the elements of each axis.
fn part(
    dims: &[usize], sizes: Option<&Array>, at: isize, index: usize, of: usize,
) -> Result<Vec<Option<Picked>>, ArrayError> {
    let rank = dims.len();
    let at = axis(at as i64, rank)?;
    let all = dims[at];
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
    Ok(along(rank, at, Picked::new(len, move |at| Some(start + at))))
}

/// [`TensorOp::Gather`]
fn gather(dims: &[usize], indices: &Array, at: isize) -> Result<[Move; 2], ArrayError> {
    let rank = dims.len();
    let at = axis(at as i64, rank)?;
    let len = dims[at];
    let places: Vec<usize> = dense(indices.as_i64()?)
        .iter()
        .map(|&found| {
            let place = i128::from(found) + if found < 0 { len as i128 } else { 0 };
            let place = usize::try_from(place).ok().filter(|place| *place < len);
            place.ok_or_else(|| ArrayError::value("an index", found, format!("-{len} to before {len}")))
        })
        .collect::<Result<_, _>>()?;
    let to = [&dims[..at], indices.dims(), &dims[at + 1..]].concat();
    let picked = Picked::new(places.len(), move |at| Some(places[at]));
    Ok([Move::within(along(rank, at, picked)), Move::Sizes(to)])
}

/// [`TensorOp::Pad`]: the elements of each axis.
fn pad(
    dims: &[usize], pads: &Array, among: Option<&Array>, mode: PadMode,
) -> Result<Vec<Option<Picked>>, ArrayError> {
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
    let mut picked: Vec<Option<Picked>> = dims.iter().map(|_| None).collect();
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
    Ok(picked)
}

/// [`TensorOp::Tile`]: the elements of each axis.
fn tile(dims: &[usize], repeats: &Array) -> Result<Vec<Option<Picked>>, ArrayError> {
    let repeats = list("repeats", repeats)?;
    if repeats.len() != dims.len() {
        return Err(ArrayError::Rank {
            found: dims.len(),
            expected: format!("{}, as repeats", repeats.len()),
        });
    }
    let picked = |(&len, &found): (&usize, &i64)| {
        let repeats = size("a number of repeats", found)?;
        let picked = Picked::new(len.saturating_mul(repeats), move |at| Some(at % len));
        Ok(Some(picked).filter(|_| repeats != 1))
    };
    dims.iter().zip(repeats.iter()).map(picked).collect()
}

/// [`TensorOp::Shape`]
pub(crate) fn shape(dims: &[usize], start: isize, end: Option<isize>) -> Array {
    let rank = dims.len();
    let bound = |at: isize| {
        let at = at.saturating_add(if at < 0 { rank as isize } else { 0 });
        at.clamp(0, rank as isize) as usize
    };
    let (start, end) = (bound(start), end.map_or(rank, bound));
    let sizes: Vec<i64> = dims[start.min(end)..end].iter().map(|&size| size as i64).collect();
    Array::integers(&sizes)
}

/// [`TensorOp::Range`]
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

/// [`TensorOp::DepthToSpace`]
fn depth_to_space(dims: &[usize], block: usize, channels_first: bool) -> Result<[Move; 3], ArrayError> {
    let &[n, c, h, w] = dims else {
        return Err(ArrayError::Rank { found: dims.len(), expected: "4".into() });
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
    Ok([Move::Sizes(split.into()), Move::Order(perm.into()), Move::Sizes(to.into())])
}

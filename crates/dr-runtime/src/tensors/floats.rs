//! [`Floats`]: arrays of floats on a device, and how their elements move.

use super::wrong;
use crate::RuntimeError;
use crate::arrays::layout::{Move, Picked};
use crate::arrays::loops::broadcast;
use crate::arrays::{Array, ArrayError, scalar, volume};
use crate::graph::ElementType;
use burn::tensor::{Device, Int, Slice, Tensor, TensorData};

/// An array of floats of any rank on a device, with gradients where the device tracks them.
#[derive(Clone, Debug)]
pub struct Floats {
    /// The elements, row-major.
    values: Tensor<1>,
    dims: Vec<usize>,
}

impl<const D: usize> From<Tensor<D>> for Floats {
    fn from(x: Tensor<D>) -> Self {
        Self { dims: x.dims().to_vec(), values: flat(x) }
    }
}

/// The elements in one row.
fn flat<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let count: usize = x.dims().iter().product();
    shaped(x, [count])
}

/// The elements with these sizes; a 0 among them would mean something else to tensors.
fn shaped<const D: usize, const E: usize>(x: Tensor<D>, dims: [usize; E]) -> Tensor<E> {
    if dims.contains(&0) { Tensor::zeros(dims, &x.device()) } else { x.reshape(dims) }
}

impl Floats {
    /// Those of an array, on a device.
    ///
    /// # Errors
    /// Elements that are no floats.
    pub fn new(array: &Array, device: &Device) -> Result<Self, ArrayError> {
        let values = TensorData::new(array.floats()?.into_owned(), [array.len()]);
        Ok(Self { values: Tensor::from_data(values, device), dims: array.dims().to_vec() })
    }

    /// The sizes of its axes.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Its elements, row-major.
    #[must_use]
    pub fn into_values(self) -> Tensor<1> {
        self.values
    }

    /// Whether gradients go back through it.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.values.is_tracked()
    }

    /// The device that it is on.
    #[must_use]
    pub fn device(&self) -> Device {
        self.values.device()
    }

    /// The same in this computer's memory.
    ///
    /// # Errors
    /// Elements that cannot be read.
    pub fn to_array(&self) -> Result<Array, RuntimeError> {
        let data = self.values.clone().into_data().convert::<f32>();
        let unread = |error| wrong(&format!("{error:?}"), "values that can be read");
        Ok(Array::from_f32(data.try_into_vec().map_err(unread)?, &self.dims)?)
    }

    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// As a tensor of as many axes as it has.
    ///
    /// # Errors
    /// Another number of axes.
    pub fn tensor<const D: usize>(self) -> Result<Tensor<D>, ArrayError> {
        let wrong = |_| ArrayError::Rank { found: self.dims.len(), expected: D.to_string() };
        let dims: [usize; D] = self.dims.as_slice().try_into().map_err(wrong)?;
        Ok(shaped(self.values, dims))
    }

    /// A row for each run of its last axis: `[runs, size of the last axis]`.
    #[must_use]
    pub fn rows(self) -> Tensor<2> {
        let features = self.dims.last().copied().unwrap_or(1);
        let runs: usize = self.dims.iter().rev().skip(1).product();
        shaped(self.values, [runs, features])
    }

    /// The same axes but for the last one, which a function of rows makes.
    #[must_use]
    pub fn map_rows(self, of: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        let mut dims = self.dims.clone();
        let rows = of(self.rows());
        dims.pop();
        dims.push(rows.dims()[1]);
        Self { values: flat(rows), dims }
    }

    /// A function of its elements, whichever axes they lie along.
    #[must_use]
    pub fn map(self, of: impl FnOnce(Tensor<1>) -> Tensor<1>) -> Self {
        Self { values: of(self.values), dims: self.dims }
    }

    /// Parts of its first axis of so many elements each, the last one of what is left.
    #[must_use]
    pub fn split(self, items: usize) -> Vec<Self> {
        let Some(&all) = self.dims.first() else { return vec![self] };
        let part = |first: usize| {
            let range = Slice::new(first as isize, Some((first + items).min(all) as isize), 1);
            self.clone().along(0, |x| x.slice([Slice::full(), range, Slice::full()]))
        };
        (0..all).step_by(items.max(1)).map(part).collect()
    }

    /// Elements with these sizes.
    pub(super) fn of<const D: usize>(x: Tensor<D>, dims: Vec<usize>) -> Self {
        Self { values: flat(x), dims }
    }

    /// What a function makes of an axis, given `[before, axis, after]`.
    pub(super) fn along(self, axis: usize, of: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Self {
        let Self { values, mut dims } = self;
        let (before, after) = (dims[..axis].iter().product(), dims[axis + 1..].iter().product());
        let y = of(values.reshape([before, dims[axis], after]));
        dims[axis] = y.dims()[1];
        Self { values: flat(y), dims }
    }

    /// What a step of an operation that moves elements makes of it.
    pub(super) fn moved(self, step: Move) -> Result<Self, ArrayError> {
        match step {
            Move::Sizes(dims) => self.sized(dims),
            Move::Order(order) => Ok(self.ordered(&order)),
            Move::Broadcast(dims) => self.broadcast(&dims),
            Move::Pick(picked, outside) => {
                let outside = scalar("a value", &outside.cast(ElementType::F32)?)?;
                let size = |(&size, of): (&usize, &Option<Picked>)| of.as_ref().map_or(size, |of| of.len);
                let dims: Vec<usize> = self.dims.iter().zip(&picked).map(size).collect();
                if volume(&dims)? == 0 {
                    return Ok(self.without_elements(dims));
                }
                let all = picked.into_iter().enumerate();
                let picked = all.filter_map(|(axis, picked)| Some((axis, picked?)));
                Ok(picked.fold(self, |x, (axis, picked)| {
                    let places: Vec<Option<usize>> = picked.places().collect();
                    x.along(axis, |x| pick(x, &places, outside))
                }))
            }
        }
    }

    /// The same elements with other sizes.
    ///
    /// # Errors
    /// Sizes of more or fewer elements.
    pub fn sized(self, dims: Vec<usize>) -> Result<Self, ArrayError> {
        match volume(&dims)? == self.len() {
            true => Ok(Self { dims, ..self }),
            false => {
                let expected = format!("those of as many elements as {:?}", self.dims);
                Err(ArrayError::Dims { found: dims, expected })
            }
        }
    }

    /// Its axes in another order: axis `i` is `order[i]`. Those that stay together are put in their place together.
    pub(super) fn ordered(self, order: &[usize]) -> Self {
        let Self { mut values, mut dims } = self;
        let mut axes: Vec<usize> = (0..dims.len()).collect();
        let mut to = 0;
        while to < order.len() {
            let from = axes.iter().position(|axis| *axis == order[to]).unwrap_or(to);
            let together = order[to..].iter().zip(&axes[from..]).take_while(|(a, b)| a == b).count().max(1);
            let of = |sizes: &[usize]| sizes.iter().product::<usize>();
            let (between, own) = (of(&dims[to..from]), of(&dims[from..from + together]));
            if between != 1 && own != 1 {
                let sizes = [of(&dims[..to]), between, own, of(&dims[from + together..])];
                values = flat(values.reshape(sizes).permute([0, 2, 1, 3]));
            }
            dims[to..from + together].rotate_left(from - to);
            axes[to..from + together].rotate_left(from - to);
            to += together;
        }
        Self { values, dims }
    }

    /// Nothing, of sizes of which one is 0.
    pub(super) fn without_elements(self, dims: Vec<usize>) -> Self {
        Self { values: Tensor::zeros([0], &self.device()), dims }
    }

    /// Broadcast to sizes that its own have in common with others.
    pub(super) fn broadcast(self, to: &[usize]) -> Result<Self, ArrayError> {
        if broadcast(&self.dims, to)? != to {
            return Err(ArrayError::Broadcast { found: self.dims, other: to.to_vec() });
        }
        if to.contains(&0) {
            return Ok(self.without_elements(to.to_vec()));
        }
        let Self { mut values, dims } = self;
        let mut dims = aligned(&dims, to.len());
        for axis in (0..to.len()).filter(|&axis| to[axis] != 1).rev() {
            if dims[axis] == 1 {
                let (before, after) = (dims[..axis].iter().product(), dims[axis + 1..].iter().product());
                let one: Tensor<3> = values.reshape([before, 1, after]);
                values = flat(one.expand::<3, _>([before, to[axis], after]));
                dims[axis] = to[axis];
            }
        }
        Ok(Self { values, dims })
    }
}

/// Sizes with ones before them.
fn aligned(dims: &[usize], rank: usize) -> Vec<usize> {
    [&vec![1; rank - dims.len()], dims].concat()
}

/// The elements at places of an axis, `[before, axis, after]`, and a value where there is none. There are some places.
pub(super) fn pick(x: Tensor<3>, places: &[Option<usize>], outside: f32) -> Tensor<3> {
    let [before, _, after] = x.dims();
    let device = x.device();
    let full = |count: usize| Tensor::full([before, count, after], outside, &device);
    let part = |run: &[Option<usize>]| match run.iter().flatten().copied().collect::<Vec<usize>>() {
        from if from.is_empty() => full(run.len()),
        from => taken(x.clone(), &from),
    };
    let mut parts: Vec<Tensor<3>> = places.chunk_by(|a, b| a.is_none() == b.is_none()).map(part).collect();
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 1) }
}

/// The elements at places of an axis, of which there are some.
fn taken(x: Tensor<3>, from: &[usize]) -> Tensor<3> {
    let (first, last) = (from[0], from[from.len() - 1]);
    let step = from.get(1).map_or(1, |second| second.saturating_sub(first));
    if step > 0 && from.iter().enumerate().all(|(at, &place)| place == first + at * step) {
        let range = Slice::new(first as isize, Some(last as isize + 1), step as isize);
        return x.slice([Slice::full(), range, Slice::full()]);
    }
    let places: Vec<i32> = from.iter().map(|&place| place as i32).collect();
    let device = x.device();
    x.select(1, Tensor::<1, Int>::from_data(&places[..], &device))
}

/// Two arrays as tensors that broadcast against each other, and the sizes that they have in common: axes along which the same one
/// repeats are one.
pub(super) fn pair(a: Floats, b: Floats) -> Result<(Tensor<4>, Tensor<4>, Vec<usize>), ArrayError> {
    let dims = broadcast(&a.dims, &b.dims)?;
    let (of_a, of_b) = (aligned(&a.dims, dims.len()), aligned(&b.dims, dims.len()));
    let mut groups: Vec<[usize; 2]> = vec![];
    for (&a, &b) in of_a.iter().zip(&of_b).filter(|(a, b)| (**a, **b) != (1, 1)) {
        let repeats = |a: usize, b: usize| (a == 1, b == 1);
        match groups.last_mut() {
            Some([before, with]) if repeats(*before, *with) == repeats(a, b) => {
                *before *= a;
                *with *= b;
            }
            _ => groups.push([a, b]),
        }
    }
    if groups.len() > 4 {
        return pair(a.broadcast(&dims)?, b.broadcast(&dims)?);
    }
    let sizes = |of: usize| {
        let missing = 4 - groups.len();
        std::array::from_fn::<usize, 4, _>(|axis| axis.checked_sub(missing).map_or(1, |at| groups[at][of]))
    };
    Ok((a.values.reshape(sizes(0)), b.values.reshape(sizes(1)), dims))
}

//! [`resize`]: other sizes by interpolation, one axis after the other.

use super::layout::Picked;
use super::loops::{BLOCK, rows};
use super::{Array, ArrayError, MOST, axes, axis, build, dense, filled, list, size, volume};
use crate::graph::{Coordinates, Interpolation, Nearest, Resize, ResizeBy};

/// An axis and its new size.
pub(crate) struct Resized {
    pub(crate) axis: usize,
    pub(crate) input: usize,
    pub(crate) output: usize,
    scale: f64,
    /// The new size, before it was made an integer.
    width: f64,
    /// Begin and end of the part that is shown, as parts of the whole.
    region: [f64; 2],
}

/// [`TensorOp::Resize`](crate::graph::TensorOp::Resize) to the nearest elements: those of each axis, and the value outside.
pub(super) fn nearest_places(
    dims: &[usize], by: &Array, region: Option<&Array>, resize: &Resize, mode: Nearest,
) -> Result<(Vec<Option<Picked>>, f32), ArrayError> {
    let (changed, outside) = changed(dims, by, region, resize)?;
    let mut picked: Vec<Option<Picked>> = dims.iter().map(|_| None).collect();
    for axis in changed {
        let (at, output, coordinates) = (axis.axis, axis.output, resize.coordinates);
        let of = move |at| axis.place(at, coordinates).map(|place| nearest(place, mode, axis.input));
        picked[at] = Some(Picked::new(output, of));
    }
    Ok((picked, outside))
}

/// The axes whose elements are others after it, and the value outside.
pub(crate) fn changed(
    dims: &[usize], by: &Array, region: Option<&Array>, resize: &Resize,
) -> Result<(Vec<Resized>, f32), ArrayError> {
    let mut resized = resized(dims, by, region, resize)?;
    let mut to = dims.to_vec();
    resized.iter().for_each(|axis| to[axis.axis] = axis.output);
    volume(&to)?;
    Ok(match resize.coordinates {
        Coordinates::Crop { outside } => (resized, outside),
        _ => {
            resized.retain(|axis| axis.input != axis.output || axis.scale != 1.0);
            (resized, 0.0)
        }
    })
}

/// The axes that get other sizes.
fn resized(
    dims: &[usize], by: &Array, region: Option<&Array>, resize: &Resize,
) -> Result<Vec<Resized>, ArrayError> {
    let rank = dims.len();
    let among: Vec<usize> = if resize.axes.is_empty() {
        (0..rank).collect()
    } else {
        let numbers: Vec<i64> = resize.axes.iter().map(|&axis| axis as i64).collect();
        axes(&numbers, rank)?;
        numbers.iter().map(|&at| axis(at, rank)).collect::<Result<_, _>>()?
    };
    let as_many = |name, found: usize, expected: usize| {
        let wrong = || ArrayError::value(name, found, format!("{expected}, for {} axes", among.len()));
        (found == expected).then_some(()).ok_or_else(wrong)
    };
    as_many("a number of factors or sizes", by.dims().iter().product(), among.len())?;
    let factors: Vec<f64> = if resize.by == ResizeBy::Scales {
        dense(by.as_f32()?).iter().map(|&scale| f64::from(scale)).collect()
    } else {
        let ratio = |(&axis, &found): (&usize, &i64)| match (size("a size", found)?, dims[axis]) {
            (0, 0) => Ok(1.0),
            (found, 0) => Err(ArrayError::dims(dims, format!("elements to make {found} of"))),
            (found, input) => Ok(found as f64 / input as f64),
        };
        among.iter().zip(list("sizes", by)?.iter()).map(ratio).collect::<Result<_, _>>()?
    };
    let common = match resize.by {
        ResizeBy::Scales | ResizeBy::Sizes => None,
        ResizeBy::NotLarger => factors.iter().copied().reduce(f64::min),
        ResizeBy::NotSmaller => factors.iter().copied().reduce(f64::max),
    };
    let region: Vec<f64> = match (resize.coordinates, region) {
        (Coordinates::Crop { .. }, Some(region)) => {
            dense(region.as_f32()?).iter().map(|&at| f64::from(at)).collect()
        }
        (Coordinates::Crop { .. }, None) => {
            return Err(ArrayError::Inputs { found: 2, expected: "3".into() });
        }
        _ => [vec![0.0; among.len()], vec![1.0; among.len()]].concat(),
    };
    as_many("a number of places of a region", region.len(), 2 * among.len())?;
    let of = |(at, &axis): (usize, &usize)| {
        let (input, scale) = (dims[axis], common.unwrap_or(factors[at]));
        let width = scale * input as f64;
        let output = match resize.by {
            // In 32 bits, like the inference of sizes: a factor of 0.7 makes 7 of 10.
            ResizeBy::Scales => f64::from(scale as f32 * input as f32).floor(),
            ResizeBy::Sizes => width.round(),
            ResizeBy::NotLarger | ResizeBy::NotSmaller => (width + 0.5).floor(),
        };
        let zero = scale == 0.0 && resize.by != ResizeBy::Scales;
        if !(scale > 0.0 || zero) || !(0.0..=MOST as f64).contains(&output) {
            return Err(ArrayError::value("a factor", scale, format!("one that makes 0 to {MOST} elements")));
        }
        let region = [region[at], region[among.len() + at]];
        let width = if resize.by == ResizeBy::Sizes { output } else { width };
        Ok(Resized { axis, input, output: output as usize, scale, width, region })
    };
    among.iter().enumerate().map(of).collect()
}

impl Resized {
    /// The place in the input of an element of the result; none if it lies outside the region's array.
    fn place(&self, at: usize, coordinates: Coordinates) -> Option<f64> {
        let (x, last) = (at as f64, self.input as f64 - 1.0);
        let half_pixel = (x + 0.5) / self.scale - 0.5;
        Some(match coordinates {
            Coordinates::HalfPixel => half_pixel,
            Coordinates::HalfPixelSymmetric => {
                half_pixel + self.input as f64 / 2.0 * (1.0 - self.output as f64 / self.width)
            }
            Coordinates::PytorchHalfPixel if self.output == 1 => 0.0,
            Coordinates::PytorchHalfPixel => half_pixel,
            Coordinates::AlignCorners if self.width == 1.0 => 0.0,
            Coordinates::AlignCorners => x * last / (self.width - 1.0),
            Coordinates::Asymmetric => x / self.scale,
            Coordinates::Crop { .. } => {
                let [begin, end] = self.region;
                let part = if self.width == 1.0 { 0.5 } else { x / (self.width - 1.0) };
                let place = (begin + part * (end - begin)) * last;
                return Some(place).filter(|place| (0.0..=last).contains(place));
            }
        })
    }

    /// The first element that one of the result is a sum of, and the weights of it and the following ones. Some may lie outside.
    pub(crate) fn taps(&self, at: usize, resize: &Resize) -> Option<(i64, Vec<f32>)> {
        let place = self.place(at, resize.coordinates)?;
        // A whole number is the right one of two neighbours.
        let left = place.ceil() - 1.0;
        let scale = if resize.antialias { self.scale.min(1.0) } else { 1.0 };
        let reach = if resize.mode == Interpolation::Linear { 1.0 } else { 2.0 };
        let first = (-reach / scale).floor() as i64 + 1;
        let weight = |at: i64| {
            let outside = !(0.0..self.input as f64).contains(&(left + at as f64));
            let distance = ((at as f64 - (place - left)) * scale).abs();
            if outside && resize.exclude_outside { 0.0 } else { falloff(distance, resize.mode) }
        };
        let weights: Vec<f64> = (first..2 - first).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let sum = if sum == 0.0 { 1.0 } else { sum };
        let weights = weights.iter().map(|weight| (weight / sum) as f32).collect();
        Some(((left as i64).saturating_add(first), weights))
    }
}

/// The weight of an element at a distance.
fn falloff(x: f64, mode: Interpolation) -> f64 {
    match mode {
        Interpolation::Cubic { a } => {
            let a = f64::from(a);
            if x <= 1.0 {
                ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
            } else if x < 2.0 {
                a * (((x - 5.0) * x + 8.0) * x - 4.0)
            } else {
                0.0
            }
        }
        _ => (1.0 - x).max(0.0),
    }
}

/// The element at a place, or at the edge next to it.
fn clamped(place: f64, len: usize) -> usize {
    (place.max(0.0) as usize).min(len - 1)
}

/// The nearest element.
fn nearest(place: f64, mode: Nearest, len: usize) -> usize {
    let place = match mode {
        Nearest::RoundPreferFloor => (place - 0.5).ceil(),
        Nearest::RoundPreferCeil => (place + 0.5).floor(),
        Nearest::Floor => place.floor(),
        Nearest::Ceil => place.ceil(),
    };
    clamped(place, len)
}

/// [`TensorOp::Resize`](crate::graph::TensorOp::Resize) by sums of neighbours, one axis after the other.
pub(super) fn interpolated(
    x: &Array, by: &Array, region: Option<&Array>, resize: &Resize,
) -> Result<Array, ArrayError> {
    let (changed, outside) = changed(x.dims(), by, region, resize)?;
    let x = x.as_f32()?;
    let mut dims = x.shape().to_vec();
    let mut values = dense(x);
    for axis in changed {
        dims[axis.axis] = axis.output;
        let mut out = filled(&dims, 0f32)?;
        if !out.is_empty() && !values.is_empty() {
            let inner: usize = dims[axis.axis + 1..].iter().product();
            let last = axis.input as i64 - 1;
            for first in (0..axis.output).step_by(BLOCK) {
                let end = axis.output.min(first + BLOCK);
                let taps: Vec<_> = (first..end).map(|at| axis.taps(at, resize)).collect();
                rows(&mut out, axis.output * inner, &|row, out| {
                    let values = &values[row * axis.input * inner..][..axis.input * inner];
                    for (out, taps) in out[first * inner..end * inner].chunks_mut(inner).zip(&taps) {
                        let Some((first, weights)) = taps else {
                            out.fill(outside);
                            continue;
                        };
                        for (at, weight) in (*first..).zip(weights) {
                            let from = &values[at.clamp(0, last) as usize * inner..][..inner];
                            out.iter_mut().zip(from).for_each(|(out, x)| *out += weight * x);
                        }
                    }
                });
            }
        }
        values = out.into();
    }
    build(values.into_owned(), &dims)
}

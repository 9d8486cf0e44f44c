//! BatchNorm on a CPU, in training and with running statistics, of tensors whose channels are last, with what follows it in a network: a residual that is
//! added, and a ReLU or ReLU6. In each direction one pass over memory is for the sums of each channel and one for the result. Of
//! single operations, as Burn has it on `flex`, it takes a pass for each.

use super::blocks::TASK;
use super::conv2d::written;
use super::isa::{Isa, run_on};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// A tensor `[positions, channels]` whose channels are normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormShape {
    /// Values of a channel: images times rows times columns.
    pub positions: usize,
    /// Channels.
    pub channels: usize,
    /// What is added to the variance.
    pub epsilon: f64,
    /// Results are clipped to `0..=clip`, if there is one: infinity for a ReLU, 6 for a ReLU6.
    pub clip: Option<f32>,
}

impl BatchNormShape {
    const fn elements(&self) -> usize {
        self.positions * self.channels
    }

    /// The end of the range that results are clipped to.
    fn high(&self) -> f32 {
        self.clip.unwrap_or(f32::INFINITY)
    }

    /// `1 / sqrt(variance + epsilon)`.
    fn inverse_deviation(&self, variance: f32) -> f64 {
        1.0 / (f64::from(variance) + self.epsilon).sqrt()
    }

    /// Floats that one task computes: whole positions. They do not depend on the number of threads, and so sums do not.
    fn task(&self) -> usize {
        (TASK / self.channels.max(1)).max(1) * self.channels
    }
}

/// Positions that are computed one after the other, for some channels side by side, and added up in f32.
const POSITIONS: usize = 64;

/// Calls a function with as many channels side by side as divide them: its first generic argument.
macro_rules! side_by_side {
    ($channels:expr, $function:ident::<$($rest:tt),*>($($argument:expr),*)) => {
        run_on!(Isa::detect(), |_| match $channels % 16 {
            0 => $function::<16, $($rest),*>($($argument),*),
            _ => $function::<8, $($rest),*>($($argument),*),
        })
    };
}

/// `y = gamma (x - mean) / sqrt(variance + epsilon) + beta + residual`, clipped, with the mean and the
/// (population) variance of each channel of `x`; and these, `(y, mean, variance)`.
///
/// # Panics
/// If a slice has not the length of the shape, or there are no values.
#[must_use]
pub fn batch_norm(
    x: &[f32], gamma: &[f32], beta: &[f32], residual: Option<&[f32]>, shape: &BatchNormShape,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    check(x, [gamma, beta], residual, shape);
    assert!(!x.is_empty(), "values to normalize");
    let n = shape.positions as f64;
    // Of differences to the first value, which do not cancel where a channel is far from zero.
    let near = &x[..shape.channels];
    let moments = |([sum, squares], &near): ([f64; 2], &f32)| {
        let mean = sum / n;
        ((f64::from(near) + mean) as f32, (squares / n - mean * mean).max(0.0) as f32)
    };
    let parts: Vec<_> = x
        .par_chunks(shape.task())
        .map(|x| side_by_side!(shape.channels, sums::<_>(shape.channels, [x, x], Moments { near })))
        .collect();
    let (mean, variance): (Vec<f32>, Vec<f32>) = total(parts).into_iter().zip(near).map(moments).unzip();
    let y = normalized(x, gamma, beta, [&mean, &variance], residual, shape);
    (y, mean, variance)
}

/// [`batch_norm`] with a given mean and variance of each channel: BatchNorm in inference, with its running statistics.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn batch_norm_inference(
    x: &[f32], gamma: &[f32], beta: &[f32], [mean, variance]: [&[f32]; 2], residual: Option<&[f32]>,
    shape: &BatchNormShape,
) -> Vec<f32> {
    check(x, [gamma, beta, mean, variance], residual, shape);
    normalized(x, gamma, beta, [mean, variance], residual, shape)
}

fn check<const N: usize>(x: &[f32], terms: [&[f32]; N], residual: Option<&[f32]>, shape: &BatchNormShape) {
    assert_eq!(x.len(), shape.elements(), "values of another number");
    assert_eq!(terms.map(<[f32]>::len), [shape.channels; N], "terms for each channel");
    assert!(residual.is_none_or(|residual| residual.len() == x.len()), "a residual of another size");
}

fn normalized(
    x: &[f32], gamma: &[f32], beta: &[f32], [mean, variance]: [&[f32]; 2], residual: Option<&[f32]>,
    shape: &BatchNormShape,
) -> Vec<f32> {
    let gain = |c: usize| (f64::from(gamma[c]) * shape.inverse_deviation(variance[c])) as f32;
    let gain: Vec<f32> = (0..shape.channels).map(gain).collect();
    let (y, ()) = written(x.len(), |y| {
        let tasks = y.par_chunks_mut(shape.task()).enumerate();
        tasks.for_each(|(task, y)| {
            let part =
                |values: &'_ [f32]| task * shape.task()..(task * shape.task() + y.len()).min(values.len());
            let (x, residual) = (&x[part(x)], residual.map(|residual| &residual[part(residual)]));
            let (terms, high) = ([mean, &gain, beta], shape.high());
            match (residual, shape.clip.is_some()) {
                (None, false) => side_by_side!(shape.channels, scale::<false, false>(x, x, terms, high, y)),
                (None, true) => side_by_side!(shape.channels, scale::<false, true>(x, x, terms, high, y)),
                (Some(r), false) => side_by_side!(shape.channels, scale::<true, false>(x, r, terms, high, y)),
                (Some(r), true) => side_by_side!(shape.channels, scale::<true, true>(x, r, terms, high, y)),
            }
        });
    });
    y
}

/// The gradients of [`batch_norm`] from that of its `y`.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNormGradients {
    /// Of `x`.
    pub x: Vec<f32>,
    /// Of `gamma`, `[channels]`.
    pub gamma: Vec<f32>,
    /// Of `beta`, `[channels]`.
    pub beta: Vec<f32>,
    /// Of the residual, if that is wanted and is not `dy`, as without a clip.
    pub residual: Option<Vec<f32>>,
}

/// The gradients of [`batch_norm`] from that of its result `y`, `dy`. Only the clip makes a difference of `y`.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn batch_norm_backward(
    x: &[f32], gamma: &[f32], [mean, variance]: [&[f32]; 2], y: &[f32], dy: &[f32], residual: bool,
    shape: &BatchNormShape,
) -> BatchNormGradients {
    let lengths = [x.len(), y.len(), dy.len()];
    assert_eq!(lengths, [shape.elements(); 3], "values of another number");
    // What goes into the sum of both.
    let into = (residual && shape.clip.is_some()).then(|| {
        let (into, ()) = written(x.len(), |into| {
            let tasks = into.par_chunks_mut(TASK).zip(y.par_chunks(TASK)).zip(dy.par_chunks(TASK));
            tasks.for_each(|((into, y), dy)| run_on!(Isa::detect(), |_| masked(y, dy, shape.high(), into)));
        });
        into
    });
    let (dy, masked) = (into.as_deref().unwrap_or(dy), shape.clip.is_some() && into.is_none());
    let (task, high) = (shape.task(), shape.high());
    let parts: Vec<_> = (x.par_chunks(task).zip(y.par_chunks(task)).zip(dy.par_chunks(task)))
        .map(|((x, y), dy)| match masked {
            true => {
                side_by_side!(
                    shape.channels,
                    sums::<_>(shape.channels, [x, dy], Products::<true> { mean, y, high })
                )
            }
            false => {
                side_by_side!(
                    shape.channels,
                    sums::<_>(shape.channels, [x, dy], Products::<false> { mean, y, high })
                )
            }
        })
        .collect();
    let sums = total(parts);
    // With `x^ = (x - mean) i`: dx = gamma i (dy - sum(dy) / n - x^ sum(dy x^) / n).
    let n = shape.positions as f64;
    let inverse: Vec<f64> = variance.iter().map(|&variance| shape.inverse_deviation(variance)).collect();
    let of_channels =
        |f: &dyn Fn(usize) -> f64| (0..shape.channels).map(|c| f(c) as f32).collect::<Vec<f32>>();
    let gain = of_channels(&|c| f64::from(gamma[c]) * inverse[c]);
    let mean_dy = of_channels(&|c| sums[c][0] / n);
    let slope = of_channels(&|c| sums[c][1] * inverse[c] * inverse[c] / n);
    let (dx, ()) = written(x.len(), |dx| {
        let inputs = x.par_chunks(task).zip(y.par_chunks(task)).zip(dy.par_chunks(task));
        dx.par_chunks_mut(task).zip(inputs).for_each(|(dx, ((x, y), dy))| {
            let terms = [mean, &gain, &mean_dy, &slope];
            match masked {
                true => side_by_side!(shape.channels, input_gradient::<true>([x, y, dy], terms, high, dx)),
                false => side_by_side!(shape.channels, input_gradient::<false>([x, y, dy], terms, high, dx)),
            }
        });
    });
    BatchNormGradients {
        x: dx,
        gamma: of_channels(&|c| sums[c][1] * inverse[c]),
        beta: of_channels(&|c| sums[c][0]),
        residual: into,
    }
}

/// Two sums for each channel, added up in the order of the tasks.
fn total(parts: Vec<Vec<[f64; 2]>>) -> Vec<[f64; 2]> {
    let mut parts = parts.into_iter();
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        for (total, part) in total.iter_mut().zip(part) {
            total[0] += part[0];
            total[1] += part[1];
        }
    }
    total
}

/// What is added up in two sums.
trait Terms: Copy {
    /// Of values `a` and `b` of channels `first..`, with number `at` in the task. Must be `#[inline(always)]`.
    fn terms<const L: usize>(self, first: usize, at: usize, a: [f32; L], b: [f32; L]) -> [[f32; L]; 2];
}

/// The differences of values to others, and their squares.
#[derive(Clone, Copy)]
struct Moments<'a> {
    near: &'a [f32],
}

impl Terms for Moments<'_> {
    #[inline(always)]
    fn terms<const L: usize>(self, first: usize, _at: usize, x: [f32; L], _: [f32; L]) -> [[f32; L]; 2] {
        let near = lanes::<L>(self.near, first);
        let (mut differences, mut squares) = ([0.0; L], [0.0; L]);
        for lane in 0..L {
            differences[lane] = x[lane] - near[lane];
            squares[lane] = differences[lane] * differences[lane];
        }
        [differences, squares]
    }
}

/// `dy` and `dy (x - mean)`, where `y` is inside the range or everywhere.
#[derive(Clone, Copy)]
struct Products<'a, const MASKED: bool> {
    mean: &'a [f32],
    y: &'a [f32],
    high: f32,
}

impl<const MASKED: bool> Terms for Products<'_, MASKED> {
    #[inline(always)]
    fn terms<const L: usize>(self, first: usize, at: usize, x: [f32; L], mut dy: [f32; L]) -> [[f32; L]; 2] {
        let mean = lanes::<L>(self.mean, first);
        if MASKED {
            dy = inside(lanes::<L>(self.y, at), dy, self.high);
        }
        let mut products = [0.0; L];
        for lane in 0..L {
            products[lane] = dy[lane] * (x[lane] - mean[lane]);
        }
        [dy, products]
    }
}

/// `dy` where `y` is between 0 and `high`.
#[inline(always)]
fn inside<const L: usize>(y: [f32; L], mut dy: [f32; L], high: f32) -> [f32; L] {
    for lane in 0..L {
        dy[lane] = if y[lane] > 0.0 && y[lane] < high { dy[lane] } else { 0.0 };
    }
    dy
}

/// Values from `at` on; zeros behind the last.
#[inline(always)]
fn lanes<const L: usize>(values: &[f32], at: usize) -> [f32; L] {
    match values.get(at..).and_then(|values| values.first_chunk::<L>()) {
        Some(values) => *values,
        None => {
            let mut lanes = [0.0; L];
            for (lane, value) in lanes.iter_mut().zip(values.get(at..).unwrap_or_default()) {
                *lane = *value;
            }
            lanes
        }
    }
}

/// Writes the first lanes of a vector, as many as there is room for or there are channels left.
#[inline(always)]
fn put<const L: usize>(values: [f32; L], out: &mut [MaybeUninit<f32>], left: usize) {
    match out.first_chunk_mut::<L>() {
        Some(out) if left >= L => *out = values.map(MaybeUninit::new),
        _ => {
            for (out, value) in out.iter_mut().zip(values).take(left) {
                out.write(value);
            }
        }
    }
}

/// The sums of each channel. Where channels are not whole vectors, a vector has also the next position's first ones, which are
/// not used.
#[inline(always)]
fn sums<const L: usize, T: Terms>(channels: usize, [a, b]: [&[f32]; 2], terms: T) -> Vec<[f64; 2]> {
    let mut total = vec![[0.0; 2]; channels];
    for start in (0..a.len()).step_by(POSITIONS * channels) {
        let end = (start + POSITIONS * channels).min(a.len());
        for (first, total) in (0..channels).step_by(L).zip(total.chunks_mut(L)) {
            let mut sums = [[0.0; L]; 2];
            for at in (start + first..end).step_by(channels) {
                let terms = terms.terms::<L>(first, at, lanes(a, at), lanes(b, at));
                for lane in 0..L {
                    sums[0][lane] += terms[0][lane];
                    sums[1][lane] += terms[1][lane];
                }
            }
            for (lane, total) in total.iter_mut().enumerate() {
                total[0] += f64::from(sums[0][lane]);
                total[1] += f64::from(sums[1][lane]);
            }
        }
    }
    total
}

/// `gain (x - mean) + beta`, plus the residual, clipped.
#[inline(always)]
fn scale<const L: usize, const RESIDUAL: bool, const CLIP: bool>(
    x: &[f32], residual: &[f32], [mean, gain, beta]: [&[f32]; 3], high: f32, out: &mut [MaybeUninit<f32>],
) {
    let channels = mean.len();
    for start in (0..x.len()).step_by(POSITIONS * channels) {
        let end = (start + POSITIONS * channels).min(x.len());
        for first in (0..channels).step_by(L) {
            let [mean, gain, beta] = [lanes::<L>(mean, first), lanes(gain, first), lanes(beta, first)];
            for at in (start + first..end).step_by(channels) {
                let mut y = lanes::<L>(x, at);
                for lane in 0..L {
                    y[lane] = gain[lane] * (y[lane] - mean[lane]) + beta[lane];
                }
                if RESIDUAL {
                    let residual = lanes::<L>(residual, at);
                    for lane in 0..L {
                        y[lane] += residual[lane];
                    }
                }
                if CLIP {
                    for y in &mut y {
                        *y = if *y > 0.0 { *y } else { 0.0 };
                        *y = if *y < high { *y } else { high };
                    }
                }
                put(y, &mut out[at..], channels - first);
            }
        }
    }
}

/// `dy` where `y` is between 0 and `high`.
#[inline(always)]
fn masked(y: &[f32], dy: &[f32], high: f32, out: &mut [MaybeUninit<f32>]) {
    for (out, (y, dy)) in out.iter_mut().zip(y.iter().zip(dy)) {
        out.write(if *y > 0.0 && *y < high { *dy } else { 0.0 });
    }
}

/// `gain (dy - mean of dy - slope (x - mean))`, with the `dy` where `y` is between 0 and `high` or with all.
#[inline(always)]
fn input_gradient<const L: usize, const MASKED: bool>(
    [x, y, dy]: [&[f32]; 3], [mean, gain, mean_dy, slope]: [&[f32]; 4], high: f32,
    out: &mut [MaybeUninit<f32>],
) {
    let channels = mean.len();
    for start in (0..x.len()).step_by(POSITIONS * channels) {
        let end = (start + POSITIONS * channels).min(x.len());
        for first in (0..channels).step_by(L) {
            let [mean, gain] = [lanes::<L>(mean, first), lanes::<L>(gain, first)];
            let [mean_dy, slope] = [lanes::<L>(mean_dy, first), lanes::<L>(slope, first)];
            for at in (start + first..end).step_by(channels) {
                let (x, mut dx) = (lanes::<L>(x, at), lanes::<L>(dy, at));
                if MASKED {
                    dx = inside(lanes(y, at), dx, high);
                }
                for lane in 0..L {
                    dx[lane] = gain[lane] * (dx[lane] - mean_dy[lane] - slope[lane] * (x[lane] - mean[lane]));
                }
                put(dx, &mut out[at..], channels - first);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use proptest::prelude::*;

    fn values(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 0.7).collect()
    }

    fn close(got: &[f32], want: &[f64]) -> Result<(), TestCaseError> {
        prop_assert_eq!(got.len(), want.len());
        let largest = want.iter().fold(1e-3f64, |largest, want| largest.max(want.abs()));
        for (got, want) in got.iter().zip(want) {
            prop_assert!((f64::from(*got) - want).abs() <= 1e-5 * largest, "{} {}", got, want);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn agrees_with_the_reference(
            positions in 1usize..200, channels in 1usize..40, clip in 0usize..3, residual: bool,
        ) {
            let clip = [None, Some(f32::INFINITY), Some(0.5)][clip];
            let shape = BatchNormShape { positions, channels, epsilon: 1e-5, clip };
            let (x, dy) = (values(shape.elements(), 1), values(shape.elements(), 2));
            let (gamma, beta) = (values(channels, 3), values(channels, 4));
            let added = residual.then(|| values(shape.elements(), 5));
            let (y, mean, variance) = batch_norm(&x, &gamma, &beta, added.as_deref(), &shape);
            let expected = reference::batch_norm(&x, &gamma, &beta, added.as_deref(), &shape);
            close(&y, &expected.0)?;
            close(&mean, &expected.1)?;
            close(&variance, &expected.2)?;
            // With the statistics of the batch, inference is the same.
            let moments = [&mean[..], &variance];
            prop_assert_eq!(&batch_norm_inference(&x, &gamma, &beta, moments, added.as_deref(), &shape), &y);
            // Of a few values the gradients cancel, to far less than what they are made of.
            if positions >= 16 {
                let found = batch_norm_backward(&x, &gamma, moments, &y, &dy, residual, &shape);
                let expected = reference::batch_norm_backward(&x, &gamma, &y, &dy, &shape);
                close(&found.x, &expected.0)?;
                close(&found.gamma, &expected.1)?;
                close(&found.beta, &expected.2)?;
                prop_assert_eq!(found.residual.is_some(), residual && clip.is_some());
                if let Some(found) = found.residual {
                    close(&found, &expected.3)?;
                }
            }
        }
    }
}

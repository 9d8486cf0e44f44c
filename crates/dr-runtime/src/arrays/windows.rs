//! Convolutions and pools over any number of axes.

use super::elementwise::larger;
use super::loops::rows;
use super::matmul::{column_blocks, matrix};
use super::{Array, ArrayError, Element, MOST, build, dense, filled, volume};
use crate::graph::{Padding, Pool, Window};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArcArray, IxDyn, s};
use rayon::prelude::*;
use std::ops::Range;

/// Elements of a block of columns, which products are computed of.
const COLUMNS: usize = 1 << 18;

/// How windows lie on an axis. Element `k` of window `o` is element `o * stride + k * dilation - begin` of the axis.
#[derive(Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) input: usize,
    /// Windows.
    pub(crate) output: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    pub(crate) begin: usize,
    pub(crate) end: usize,
}

/// Which of `count` places `shift + i * step` lie before `size`.
fn inside(shift: i64, step: usize, size: usize, count: usize) -> Range<usize> {
    let least = |bound: i64| if bound <= 0 { 0 } else { (bound as usize).div_ceil(step).min(count) };
    let (first, end) = (least(-shift), least(size as i64 - shift));
    first.min(end)..end
}

impl Axis {
    /// The windows whose element `k` is not padding.
    fn windows(&self, k: usize) -> Range<usize> {
        inside((k * self.dilation) as i64 - self.begin as i64, self.stride, self.input, self.output)
    }

    /// The elements of a window that are not padding.
    fn taps(&self, window: usize) -> Range<usize> {
        inside((window * self.stride) as i64 - self.begin as i64, self.dilation, self.input, self.kernel)
    }

    /// The place of an element of a window; of padding, none of the axis.
    pub(crate) fn place(&self, window: usize, k: usize) -> usize {
        (window * self.stride + k * self.dilation).wrapping_sub(self.begin)
    }
}

/// Numbers of each axis: a list of them, or the same one if there is none.
fn numbers(
    name: &'static str, found: &[usize], axes: usize, other: usize, least: usize,
) -> Result<Vec<usize>, ArrayError> {
    if found.is_empty() {
        return Ok(vec![other; axes]);
    }
    if found.len() != axes || found.iter().any(|size| !(least..=MOST).contains(size)) {
        return Err(ArrayError::value(name, found, format!("{axes} numbers from {least} to {MOST}")));
    }
    Ok(found.to_vec())
}

/// The axes from the third on.
fn spatial(dims: &[usize]) -> Result<&[usize], ArrayError> {
    match dims {
        [_, _, spatial @ ..] if !spatial.is_empty() => Ok(spatial),
        _ => Err(ArrayError::Rank { found: dims.len(), expected: "at least 3".into() }),
    }
}

/// Axes with windows, but for how many there are.
fn axes(window: &Window, inputs: &[usize], kernel: &[usize]) -> Result<Vec<Axis>, ArrayError> {
    let count = inputs.len();
    let kernel = match numbers("a kernel", &window.kernel, count, 0, 1)? {
        given if !window.kernel.is_empty() && kernel.is_empty() => given,
        given if !window.kernel.is_empty() && given != kernel => {
            return Err(ArrayError::dims(kernel, format!("those of the kernel, {given:?}")));
        }
        _ => numbers("a kernel", kernel, count, 0, 1)?,
    };
    if kernel.contains(&0) {
        return Err(ArrayError::value("a kernel", kernel, "sizes from 1 on"));
    }
    let stride = numbers("a stride", &window.stride, count, 1, 1)?;
    let dilation = numbers("a dilation", &window.dilation, count, 1, 1)?;
    let padding = match &window.padding {
        Padding::Sizes(sizes) => numbers("padding", sizes, 2 * count, 0, 0)?,
        Padding::SameUpper | Padding::SameLower => vec![0; 2 * count],
    };
    volume(inputs)?;
    let axis = |at: usize| Axis {
        input: inputs[at],
        output: 0,
        kernel: kernel[at],
        stride: stride[at],
        dilation: dilation[at],
        begin: padding[at],
        end: padding[count + at],
    };
    Ok((0..count).map(axis).collect())
}

/// The windows of a convolution or a pool.
fn windows(window: &Window, inputs: &[usize], kernel: &[usize], ceil: bool) -> Result<Vec<Axis>, ArrayError> {
    let mut axes = axes(window, inputs, kernel)?;
    for axis in &mut axes {
        let extent = (axis.kernel - 1) * axis.dilation + 1;
        if matches!(window.padding, Padding::Sizes(_)) {
            let padded = axis.begin + axis.input + axis.end;
            let left = padded as i64 - extent as i64;
            let stride = axis.stride as i64;
            // A part of a window is one more, unless it starts in the padding at the end.
            let last = if ceil { -(-left).div_euclid(stride) } else { left.div_euclid(stride) };
            let Ok(last) = usize::try_from(last) else {
                return Err(ArrayError::value("a window", extent, format!("at most {padded}, with padding")));
            };
            let starts = !ceil || last * axis.stride < axis.begin + axis.input;
            axis.output = last + usize::from(starts);
        } else {
            axis.output = axis.input.div_ceil(axis.stride);
            let covered = axis.output.saturating_sub(1) * axis.stride + extent;
            (axis.begin, axis.end) = halves(covered.saturating_sub(axis.input), &window.padding);
        }
    }
    Ok(axes)
}

/// Padding of both ends: the odd one at the end if there is more of it there.
fn halves(all: usize, padding: &Padding) -> (usize, usize) {
    let end = if *padding == Padding::SameUpper { all.div_ceil(2) } else { all / 2 };
    (all - end, end)
}

/// Coordinates of an element of a row-major array.
fn coordinates(mut at: usize, sizes: impl DoubleEndedIterator<Item = usize>) -> Vec<usize> {
    let reversed = sizes.rev().map(|size| {
        let own = at % size;
        at /= size;
        own
    });
    let mut coordinates: Vec<usize> = reversed.collect();
    coordinates.reverse();
    coordinates
}

/// Calls a function for the windows among some whose element `tap` is not padding: for those that follow each other along the last axis,
/// with their numbers from the first one on, and the place of the element in the input for the first of them. From one to the next it
/// moves by the stride of the last axis.
fn segments(axes: &[Axis], tap: usize, among: Range<usize>, mut of: impl FnMut(Range<usize>, usize)) {
    let Some((last, outer)) = axes.split_last().filter(|_| !among.is_empty()) else { return };
    let tap = coordinates(tap, axes.iter().map(|axis| axis.kernel));
    let last_tap = tap[outer.len()];
    let valid = last.windows(last_tap);
    'rows: for row in among.start / last.output..among.end.div_ceil(last.output) {
        let (mut rest, mut place, mut stride) = (row, 0, last.input);
        for (axis, &k) in outer.iter().zip(&tap).rev() {
            let at = axis.place(rest % axis.output, k);
            if at >= axis.input {
                continue 'rows;
            }
            place += at * stride;
            rest /= axis.output;
            stride *= axis.input;
        }
        let first = (row * last.output + valid.start).max(among.start);
        let end = (row * last.output + valid.end).min(among.end);
        if first < end {
            let place = place + last.place(first - row * last.output, last_tap);
            of(first - among.start..end - among.start, place);
        }
    }
}

/// What a convolution is of, in either direction.
struct Channels {
    groups: usize,
    /// Those of a group of the first array.
    x: usize,
    /// Those of a group of the result.
    out: usize,
    taps: usize,
}

/// A result that consists of a bias.
fn with_bias(bias: Option<&Array>, dims: &[usize], places: usize) -> Result<Vec<f32>, ArrayError> {
    let mut out = filled(dims, 0f32)?;
    if let Some(bias) = bias {
        let bias = dense(bias.as_f32()?);
        rows(&mut out, places, &|row, out| out.fill(bias[row % bias.len()]));
    }
    Ok(out)
}

/// Checks that a bias has one element for each channel of a result.
fn check_bias(bias: Option<&[usize]>, dims: &[usize]) -> Result<(), ArrayError> {
    match bias {
        Some(bias) if bias != &dims[1..2] => {
            Err(ArrayError::dims(bias, format!("{:?}, one for each channel", &dims[1..2])))
        }
        _ => Ok(()),
    }
}

/// Groups that a number of channels has.
fn check_groups(groups: usize, channels: usize) -> Result<(), ArrayError> {
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(ArrayError::value(
            "groups",
            groups,
            format!("a number that divides {channels} channels"),
        ));
    }
    Ok(())
}

/// A convolution of arrays of some sizes, in either direction.
pub(crate) struct Convolution {
    pub(crate) axes: Vec<Axis>,
    channels: Channels,
    /// The sizes of the result.
    pub(crate) dims: Vec<usize>,
}

impl Convolution {
    /// [`TensorOp::Conv`](crate::graph::TensorOp::Conv)
    pub(crate) fn of(
        x: &[usize], weight: &[usize], bias: Option<&[usize]>, window: &Window,
    ) -> Result<Self, ArrayError> {
        let inputs = spatial(x)?;
        let kernel = spatial(weight)?;
        let (batch, outputs, groups) = (x[0], weight[0], window.groups);
        check_groups(groups, outputs)?;
        let channels =
            Channels { groups, x: weight[1], out: outputs / groups, taps: kernel.iter().product() };
        if channels.x.checked_mul(groups) != Some(x[1]) {
            return Err(ArrayError::dims(weight, format!("those for {} channels", x[1])));
        }
        let axes = windows(window, inputs, kernel, false)?;
        let mut dims = vec![batch, outputs];
        dims.extend(axes.iter().map(|axis| axis.output));
        volume(&dims)?;
        check_bias(bias, &dims)?;
        Ok(Self { axes, channels, dims })
    }
}

/// [`TensorOp::Conv`](crate::graph::TensorOp::Conv)
pub(super) fn conv(
    x: &Array, weight: &Array, bias: Option<&Array>, window: &Window,
) -> Result<Array, ArrayError> {
    let Convolution { axes, channels, dims } =
        Convolution::of(x.dims(), weight.dims(), bias.map(Array::dims), window)?;
    let places: usize = dims[2..].iter().product();
    let (values, weights) = (dense(x.as_f32()?), dense(weight.as_f32()?));
    let mut out = with_bias(bias, &dims, places)?;
    if !out.is_empty() {
        if channels.x == 1 {
            depthwise(&values, &weights, &axes, &channels, places, &mut out);
        } else {
            by_columns(&values, &weights, &axes, &channels, places, &mut out)?;
        }
    }
    build(out, &dims)
}

/// Adds the convolution of one channel to each output, element by element of the kernel.
fn depthwise(x: &[f32], weight: &[f32], axes: &[Axis], channels: &Channels, places: usize, out: &mut [f32]) {
    let input: usize = axes.iter().map(|axis| axis.input).product();
    let stride = axes.last().map_or(1, |axis| axis.stride);
    rows(out, places, &|row, out| {
        let (image, output) =
            (row / (channels.groups * channels.out), row % (channels.groups * channels.out));
        let x = &x[(image * channels.groups + output / channels.out) * input..][..input];
        let weight = &weight[output * channels.taps..][..channels.taps];
        for (tap, &weight) in weight.iter().enumerate() {
            segments(axes, tap, 0..places, |to, from| {
                add_strided(&mut out[to], &x[from..], stride, |x| weight * x);
            });
        }
    });
}

/// Adds a function of every `stride`-th element.
fn add_strided(out: &mut [f32], x: &[f32], stride: usize, of: impl Fn(f32) -> f32) {
    if stride == 1 {
        out.iter_mut().zip(x).for_each(|(out, x)| *out += of(*x));
    } else {
        out.iter_mut().zip(x.iter().step_by(stride)).for_each(|(out, x)| *out += of(*x));
    }
}

/// Adds a convolution as products of the weight with the elements that windows lie on.
fn by_columns(
    x: &[f32], weight: &[f32], axes: &[Axis], channels: &Channels, places: usize, out: &mut [f32],
) -> Result<(), ArrayError> {
    let input: usize = axes.iter().map(|axis| axis.input).product();
    let len = channels.x * channels.taps;
    let stride = axes.last().map_or(1, |axis| axis.stride);
    let same = axes.iter().all(|axis| axis.kernel == 1 && axis.stride == 1 && axis.begin + axis.end == 0);
    let block = block(len, places, out.len() / (channels.out * places));
    let mut tasks = Vec::new();
    for (at, out) in out.chunks_mut(channels.out * places).enumerate() {
        let blocks = column_blocks(out, [channels.out, places], block)?;
        tasks.extend(blocks.into_iter().enumerate().map(|(index, out)| (at, index * block, out)));
    }
    tasks.into_par_iter().try_for_each(|(at, first, mut out)| {
        let group = at % channels.groups;
        let weight =
            matrix(&weight[group * channels.out * len..][..channels.out * len], [channels.out, len])?;
        let x = &x[at * channels.x * input..][..channels.x * input];
        let width = out.ncols();
        if same {
            let x = matrix(x, [channels.x, input])?;
            general_mat_mul(1.0, &weight, &x.slice(s![.., first..first + width]), 1.0, &mut out);
            return Ok(());
        }
        let mut columns = filled(&[len, width], 0f32)?;
        for tap in 0..channels.taps {
            segments(axes, tap, first..first + width, |to, from| {
                for (channel, x) in x.chunks_exact(input).enumerate() {
                    let row = &mut columns[(channel * channels.taps + tap) * width..][..width];
                    let (row, x) = (&mut row[to.clone()], &x[from..]);
                    if stride == 1 {
                        row.copy_from_slice(&x[..row.len()]);
                    } else {
                        row.iter_mut().zip(x.iter().step_by(stride)).for_each(|(to, x)| *to = *x);
                    }
                }
            });
        }
        general_mat_mul(1.0, &weight, &matrix(&columns, [len, width])?, 1.0, &mut out);
        Ok(())
    })
}

/// How many windows a thread computes at a time, if each has `len` elements, there are so many, and there are other tasks.
fn block(len: usize, places: usize, others: usize) -> usize {
    let threads = rayon::current_num_threads().div_ceil(others.max(1));
    (COLUMNS / len.max(1)).max(16).min(places.div_ceil(threads).max(16)).min(places).max(1)
}

impl Convolution {
    /// [`TensorOp::ConvTranspose`](crate::graph::TensorOp::ConvTranspose): its windows lie on the result, one for each element of the input.
    pub(crate) fn transposed(
        x: &[usize], weight: &[usize], bias: Option<&[usize]>, window: &Window, output_padding: &[usize],
        output_shape: &[usize],
    ) -> Result<Self, ArrayError> {
        let inputs = spatial(x)?;
        let kernel = spatial(weight)?;
        let (batch, inputs_channels, groups) = (x[0], x[1], window.groups);
        check_groups(groups, inputs_channels)?;
        if weight[0] != inputs_channels {
            return Err(ArrayError::dims(weight, format!("those for {inputs_channels} channels")));
        }
        let channels =
            Channels { groups, x: inputs_channels / groups, out: weight[1], taps: kernel.iter().product() };
        let mut axes = axes(window, inputs, kernel)?;
        let more = numbers("output padding", output_padding, axes.len(), 0, 0)?;
        let given = numbers("an output shape", output_shape, axes.len(), 0, 0)?;
        for (at, axis) in axes.iter_mut().enumerate() {
            axis.output = axis.input;
            let extent = (axis.kernel - 1) * axis.dilation + 1;
            let full = axis.output.saturating_sub(1) * axis.stride + extent + more[at];
            axis.input = if !output_shape.is_empty() {
                given[at]
            } else if let Padding::Sizes(_) = window.padding {
                let all = axis.begin + axis.end;
                full.checked_sub(all).ok_or_else(|| {
                    ArrayError::value("padding", all, format!("at most {full}, the whole result"))
                })?
            } else {
                axis.output * axis.stride
            };
            if !output_shape.is_empty() || !matches!(window.padding, Padding::Sizes(_)) {
                (axis.begin, axis.end) = halves(full.saturating_sub(axis.input), &window.padding);
            }
        }
        let mut dims = vec![batch, channels.out.saturating_mul(groups)];
        dims.extend(axes.iter().map(|axis| axis.input));
        volume(&dims)?;
        check_bias(bias, &dims)?;
        Ok(Self { axes, channels, dims })
    }
}

/// [`TensorOp::ConvTranspose`](crate::graph::TensorOp::ConvTranspose)
pub(super) fn conv_transpose(
    x: &Array, weight: &Array, bias: Option<&Array>, window: &Window, output_padding: &[usize],
    output_shape: &[usize],
) -> Result<Array, ArrayError> {
    let bias_dims = bias.map(Array::dims);
    let Convolution { axes, channels, dims } =
        Convolution::transposed(x.dims(), weight.dims(), bias_dims, window, output_padding, output_shape)?;
    let size: usize = dims[2..].iter().product();
    let places: usize = axes.iter().map(|axis| axis.output).product();
    let (values, weights) = (dense(x.as_f32()?), dense(weight.as_f32()?));
    let mut out = with_bias(bias, &dims, size)?;
    if out.is_empty() || places == 0 || channels.x == 0 {
        return build(out, &dims);
    }
    let stride = axes.last().map_or(1, |axis| axis.stride);
    // So many channels at a time that products are worth their name.
    let together = (64 / channels.taps).max(1);
    let scatter = |at: usize, first: usize, out: &mut [f32]| -> Result<(), ArrayError> {
        let rows = out.len() / size * channels.taps;
        let all = channels.out * channels.taps;
        let weight = matrix(
            &weights[at % channels.groups * channels.x * all..][..channels.x * all],
            [channels.x, all],
        )?;
        let weight = weight.slice(s![.., first * channels.taps..first * channels.taps + rows]);
        let x = matrix(&values[at * channels.x * places..][..channels.x * places], [channels.x, places])?;
        let block = (COLUMNS / rows).max(16).min(places);
        for from in (0..places).step_by(block) {
            let among = from..(from + block).min(places);
            let products = weight.t().dot(&x.slice(s![.., among.clone()]));
            for (row, products) in products.outer_iter().enumerate() {
                let out = &mut out[row / channels.taps * size..][..size];
                segments(&axes, row % channels.taps, among.clone(), |of, to| {
                    let products = products.slice(s![of]);
                    out[to..].iter_mut().step_by(stride).zip(&products).for_each(|(out, x)| *out += x);
                });
            }
        }
        Ok(())
    };
    out.par_chunks_mut(channels.out * size).enumerate().try_for_each(|(at, out)| {
        let parts = out.par_chunks_mut(together * size).enumerate();
        parts.try_for_each(|(part, out)| scatter(at, part * together, out))
    })?;
    build(out, &dims)
}

/// The windows of a [`TensorOp::Pool`](crate::graph::TensorOp::Pool), and the sizes of the result.
pub(crate) fn pool_windows(
    x: &[usize], window: &Window, ceil: bool,
) -> Result<(Vec<Axis>, Vec<usize>), ArrayError> {
    let axes = windows(window, spatial(x)?, &[], ceil)?;
    let mut dims = x[..2].to_vec();
    dims.extend(axes.iter().map(|axis| axis.output));
    volume(&dims)?;
    Ok((axes, dims))
}

/// [`TensorOp::Pool`](crate::graph::TensorOp::Pool)
pub(super) fn pool(x: &Array, kind: Pool, window: &Window, ceil: bool) -> Result<Array, ArrayError> {
    let (axes, dims) = pool_windows(x.dims(), window, ceil)?;
    match (kind, x) {
        (Pool::Max, Array::F32(x)) => build(pooled(x, &axes, f32::NEG_INFINITY, larger)?, &dims),
        (Pool::Max, Array::I64(x)) => build(pooled(x, &axes, i64::MIN, larger)?, &dims),
        (Pool::Average { count_padding }, Array::F32(x)) => {
            let mut out = pooled(x, &axes, 0.0, |a, b| a + b)?;
            let counts: Vec<Vec<f32>> = axes.iter().map(|axis| axis.counts(count_padding)).collect();
            let places: usize = dims[2..].iter().product();
            let count = |at: usize| {
                let at = coordinates(at, axes.iter().map(|axis| axis.output));
                at.iter().zip(&counts).map(|(&at, counts)| counts[at]).product::<f32>()
            };
            let counts: Vec<f32> = if out.is_empty() { Vec::new() } else { (0..places).map(count).collect() };
            rows(&mut out, places, &|_, out| {
                out.iter_mut().zip(&counts).for_each(|(sum, count)| *sum /= count)
            });
            build(out, &dims)
        }
        (_, x) => Err(ArrayError::Element { found: x.element(), expected: "F32, or I64 for a maximum" }),
    }
}

impl Axis {
    /// How many elements of each window a mean is of.
    pub(crate) fn counts(&self, padding: bool) -> Vec<f32> {
        let count = |window: usize| {
            if padding {
                let all = self.begin + self.input + self.end;
                inside((window * self.stride) as i64, self.dilation, all, self.kernel).len()
            } else {
                self.taps(window).len()
            }
        };
        (0..self.output).map(|window| count(window) as f32).collect()
    }
}

/// The elements of each window merged, axis by axis.
fn pooled<T: Element>(
    x: &ArcArray<T, IxDyn>, axes: &[Axis], first: T, merge: impl Fn(T, T) -> T + Sync,
) -> Result<Vec<T>, ArrayError> {
    let mut outer: usize = x.shape()[..2].iter().product();
    let mut values = dense(x);
    for (at, axis) in axes.iter().enumerate() {
        let inner: usize = axes[at + 1..].iter().map(|axis| axis.input).product();
        let mut out = filled(&[outer, axis.output, inner], first)?;
        rows(&mut out, inner, &|row, out| {
            let (group, window) = (row / axis.output, row % axis.output);
            for k in axis.taps(window) {
                let from = &values[(group * axis.input + axis.place(window, k)) * inner..][..inner];
                out.iter_mut().zip(from).for_each(|(out, x)| *out = merge(*out, *x));
            }
        });
        values = out.into();
        outer *= axis.output;
    }
    Ok(values.into_owned())
}

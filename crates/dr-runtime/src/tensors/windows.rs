//! Convolutions, pools and interpolation of [`Floats`].

use super::floats::{Floats, pick};
use crate::arrays::resize::changed;
use crate::arrays::windows::{Axis, Convolution, pool_windows};
use crate::arrays::{Array, ArrayError};
use crate::graph::{Pool, Resize, Window};
use burn::tensor::module::{conv_transpose1d, conv_transpose2d, conv_transpose3d, conv1d, conv2d, conv3d};
use burn::tensor::ops::{ConvOptions, ConvTransposeOptions};
use burn::tensor::{Tensor, TensorData};

/// A number of each axis.
fn each<const N: usize>(axes: &[Axis], of: impl Fn(&Axis) -> usize) -> [usize; N] {
    std::array::from_fn(|at| of(&axes[at]))
}

/// [`TensorOp::Conv`](crate::graph::TensorOp::Conv) over one to three axes.
pub(super) fn conv(
    x: Floats, weight: Floats, bias: Option<Floats>, window: &Window,
) -> Result<Floats, ArrayError> {
    let Convolution { axes, .. } =
        Convolution::of(x.dims(), weight.dims(), bias.as_ref().map(Floats::dims), window)?;
    let bias = bias.map(Floats::into_values);
    // Padding that differs at both ends is put around before.
    let alike = axes.iter().all(|axis| axis.begin == axis.end);
    let padding = |axis: &Axis| if alike { axis.begin } else { 0 };
    let x = if alike { x } else { axes.iter().enumerate().fold(x, |x, (at, axis)| padded(x, 2 + at, axis)) };
    macro_rules! convolved {
        ($conv:ident) => {{
            let stride = each(&axes, |axis| axis.stride);
            let dilation = each(&axes, |axis| axis.dilation);
            let options = ConvOptions::new(stride, each(&axes, padding), dilation, window.groups);
            Ok($conv(x.tensor()?, weight.tensor()?, bias, options).into())
        }};
    }
    match axes.len() {
        1 => convolved!(conv1d),
        2 => convolved!(conv2d),
        3 => convolved!(conv3d),
        found => Err(ArrayError::Rank { found: found + 2, expected: "3 to 5".into() }),
    }
}

/// Zeros around an axis.
fn padded(x: Floats, at: usize, axis: &Axis) -> Floats {
    x.along(at, |x| {
        let [before, _, after] = x.dims();
        let zeros = |count| Tensor::zeros([before, count, after], &x.device());
        let (begin, end) = (zeros(axis.begin), zeros(axis.end));
        let parts = [(axis.begin, begin), (axis.input, x), (axis.end, end)].into_iter();
        Tensor::cat(parts.filter(|(size, _)| *size > 0).map(|(_, part)| part).collect(), 1)
    })
}

/// [`TensorOp::ConvTranspose`](crate::graph::TensorOp::ConvTranspose) over one to three axes.
pub(super) fn conv_transpose(
    x: Floats, weight: Floats, bias: Option<Floats>, window: &Window, output_padding: &[usize],
    output_shape: &[usize],
) -> Result<Floats, ArrayError> {
    let of_bias = bias.as_ref().map(Floats::dims);
    let Convolution { axes, .. } =
        Convolution::transposed(x.dims(), weight.dims(), of_bias, window, output_padding, output_shape)?;
    macro_rules! convolved {
        ($conv:ident) => {{
            let stride = each(&axes, |axis| axis.stride);
            let dilation = each(&axes, |axis| axis.dilation);
            let none = |_: &Axis| 0;
            let options = ConvTransposeOptions::new(
                stride,
                each(&axes, none),
                each(&axes, none),
                dilation,
                window.groups,
            );
            Floats::from($conv(x.tensor()?, weight.tensor()?, None, options))
        }};
    }
    let whole = match axes.len() {
        1 => convolved!(conv_transpose1d),
        2 => convolved!(conv_transpose2d),
        3 => convolved!(conv_transpose3d),
        found => return Err(ArrayError::Rank { found: found + 2, expected: "3 to 5".into() }),
    };
    // Of the whole result, without what is padding; there may be less of it than is asked for.
    let y = axes.iter().enumerate().fold(whole, |y, (at, axis)| {
        let size = y.dims()[2 + at];
        let places = (axis.begin..axis.begin + axis.input).map(|place| Some(place).filter(|&at| at < size));
        let places: Vec<Option<usize>> = places.collect();
        y.along(2 + at, |y| pick(y, &places, 0.0))
    });
    Ok(match bias {
        Some(bias) => {
            let channels = bias.len();
            y.along(1, |y| y + bias.into_values().reshape([1, channels, 1]))
        }
        None => y,
    })
}

/// [`TensorOp::Pool`](crate::graph::TensorOp::Pool): the elements of each window merged, axis by axis.
pub(super) fn pool(x: Floats, kind: Pool, window: &Window, ceil: bool) -> Result<Floats, ArrayError> {
    let (axes, _) = pool_windows(x.dims(), window, ceil)?;
    let outside = if kind == Pool::Max { f32::NEG_INFINITY } else { 0.0 };
    Ok(axes.iter().enumerate().fold(x, |x, (at, axis)| {
        x.along(2 + at, |x| {
            let tap = |k: usize| {
                let place = |window| Some(axis.place(window, k)).filter(|&place| place < axis.input);
                let places: Vec<Option<usize>> = (0..axis.output).map(place).collect();
                pick(x.clone(), &places, outside)
            };
            let rest = 1..axis.kernel;
            match kind {
                Pool::Max => rest.fold(tap(0), |most, k| most.max_pair(tap(k))),
                Pool::Average { count_padding } => {
                    let counts = TensorData::new(axis.counts(count_padding), [1, axis.output, 1]);
                    let counts = Tensor::<3>::from_data(counts, &x.device());
                    rest.fold(tap(0), |sum, k| sum + tap(k)) / counts
                }
            }
        })
    }))
}

/// [`TensorOp::Resize`](crate::graph::TensorOp::Resize) by sums of neighbours, axis by axis.
pub(super) fn interpolated(
    x: Floats, by: &Array, region: Option<&Array>, resize: &Resize,
) -> Result<Floats, ArrayError> {
    let (changed, outside) = changed(x.dims(), by, region, resize)?;
    Ok(changed.into_iter().fold(x, |x, axis| {
        let last = axis.input as i64 - 1;
        let taps: Vec<_> = (0..axis.output).map(|at| axis.taps(at, resize)).collect();
        let count = taps.iter().flatten().map(|(_, weights)| weights.len()).max().unwrap_or(0);
        x.along(axis.axis, |x| {
            let device = x.device();
            let factors = |values: Vec<f32>| {
                Tensor::<3>::from_data(TensorData::new(values, [1, axis.output, 1]), &device)
            };
            let values = taps.iter().map(|taps| if taps.is_none() { outside } else { 0.0 }).collect();
            let values = factors(values);
            let sum = (0..count).map(|tap| {
                let place = |(first, _): &(i64, Vec<f32>)| (first + tap as i64).clamp(0, last) as usize;
                let places: Vec<Option<usize>> = taps.iter().map(|taps| taps.as_ref().map(place)).collect();
                let weight = |taps: &Option<(i64, Vec<f32>)>| taps.as_ref().map_or(0.0, |(_, of)| of[tap]);
                pick(x.clone(), &places, 0.0) * factors(taps.iter().map(weight).collect())
            });
            let [before, _, after] = x.dims();
            let values = values.expand::<3, _>([before, axis.output, after]);
            sum.fold(values, |sum, part| sum + part)
        })
    }))
}

//! Max pooling of images with their channels last, and its gradient: channels side by side, one pass over memory.

use super::isa::{Isa, run_on};
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of a max pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPoolShape {
    /// Images.
    pub batch: usize,
    /// Channels, each pooled for itself.
    pub channels: usize,
    /// Rows and columns of an input.
    pub input: [usize; 2],
    /// Rows and columns of a window.
    pub kernel: [usize; 2],
    /// Steps; at least 1.
    pub stride: [usize; 2],
    /// Rows and columns around the input that are lower than every number.
    pub padding: [usize; 2],
}

impl MaxPoolShape {
    /// Rows and columns of an output: `(size + 2 padding - kernel) / stride + 1`; 0 if the window does not fit.
    #[must_use]
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| match (self.input[axis] + 2 * self.padding[axis]).checked_sub(self.kernel[axis]) {
            Some(room) => room / self.stride[axis] + 1,
            None => 0,
        })
    }

    /// Floats of an input and of an output.
    fn lengths(&self) -> [usize; 2] {
        [self.input, self.output()].map(|[rows, cols]| rows * cols * self.channels)
    }

    /// The inputs of an output along an axis.
    #[inline(always)]
    fn window(&self, axis: usize, output: usize) -> Range<usize> {
        let (start, padding) = (output * self.stride[axis], self.padding[axis]);
        let end = (start + self.kernel[axis]).saturating_sub(padding).min(self.input[axis]);
        start.saturating_sub(padding)..end
    }

    /// Where the channels of an input are that are in the window of an output, row by row.
    #[inline(always)]
    fn taps(&self, [row, col]: [usize; 2]) -> impl Iterator<Item = Range<usize>> {
        let cols = self.window(1, col);
        let (width, channels) = (self.input[1], self.channels);
        self.window(0, row).flat_map(move |row| {
            cols.clone().map(move |col| {
                let first = (row * width + col) * channels;
                first..first + channels
            })
        })
    }
}

/// The largest value of each window, `[batch, rows out, cols out, channels]`, of `x` `[batch, rows, cols, channels]`; NaN where there is
/// one.
///
/// # Panics
/// If the slice has not the length of the shape.
#[must_use]
pub fn max_pool2d(x: &[f32], shape: &MaxPoolShape) -> Vec<f32> {
    max_pool2d_on(Isa::detect(), x, shape)
}

fn max_pool2d_on(isa: Isa, x: &[f32], shape: &MaxPoolShape) -> Vec<f32> {
    let ([input, output], [rows, cols]) = (shape.lengths(), shape.output());
    assert_eq!(x.len(), shape.batch * input, "images of other sizes");
    let mut y = vec![f32::NEG_INFINITY; shape.batch * output];
    y.par_chunks_mut((cols * shape.channels).max(1)).enumerate().for_each(|(index, y)| {
        let (image, row) = (index / rows, index % rows);
        let x = &x[image * input..][..input];
        run_on!(isa, |_| pool_row(x, shape, row, y));
    });
    y
}

#[inline(always)]
fn pool_row(x: &[f32], shape: &MaxPoolShape, row: usize, y: &mut [f32]) {
    for (col, y) in y.chunks_exact_mut(shape.channels).enumerate() {
        for tap in shape.taps([row, col]) {
            for (y, x) in y.iter_mut().zip(&x[tap]) {
                *y = if *x > *y || x.is_nan() { *x } else { *y };
            }
        }
    }
}

/// The gradient of the input from that of the result `y`, `dy`. Of equal values in a window, the first one has it.
///
/// # Panics
/// If the slices have not the lengths of the shape.
#[must_use]
pub fn max_pool2d_backward(x: &[f32], y: &[f32], dy: &[f32], shape: &MaxPoolShape) -> Vec<f32> {
    max_pool2d_backward_on(Isa::detect(), x, y, dy, shape)
}

fn max_pool2d_backward_on(isa: Isa, x: &[f32], y: &[f32], dy: &[f32], shape: &MaxPoolShape) -> Vec<f32> {
    let [input, output] = shape.lengths();
    assert_eq!(x.len(), shape.batch * input, "images of other sizes");
    assert_eq!([y.len(), dy.len()], [shape.batch * output; 2], "results of other sizes");
    let mut dx = vec![0.0; x.len()];
    if output == 0 || input == 0 {
        return dx;
    }
    let outputs = y.par_chunks(output).zip(dy.par_chunks(output));
    dx.par_chunks_mut(input).zip(x.par_chunks(input)).zip(outputs).for_each_init(
        || vec![0.0; shape.channels],
        |left, ((dx, x), (y, dy))| run_on!(isa, |_| gradient_of_image(x, [y, dy], shape, left, dx)),
    );
    dx
}

/// `left` is the gradient of an output until the input that it comes from is found.
#[inline(always)]
fn gradient_of_image(
    x: &[f32], [y, dy]: [&[f32]; 2], shape: &MaxPoolShape, left: &mut [f32], dx: &mut [f32],
) {
    let ([rows, cols], channels) = (shape.output(), shape.channels);
    for row in 0..rows {
        for col in 0..cols {
            let at = (row * cols + col) * channels;
            let y = &y[at..][..channels];
            left.copy_from_slice(&dy[at..][..channels]);
            for tap in shape.taps([row, col]) {
                let values = dx[tap.clone()].iter_mut().zip(&x[tap]).zip(y);
                for (((dx, x), y), left) in values.zip(left.iter_mut()) {
                    let found = x == y || (x.is_nan() && y.is_nan());
                    *dx += if found { *left } else { 0.0 };
                    *left = if found { 0.0 } else { *left };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// By the definition: for each window the first of the largest values.
        #[test]
        fn the_first_largest_value_has_the_gradient(
            batch in 0usize..4, channels in 1usize..40, input in [1usize..9, 1usize..9],
            kernel in [1usize..4, 1usize..4], stride in [1usize..4, 1usize..4], pads in [0usize..3, 0usize..3],
        ) {
            let padding = [0, 1].map(|axis| pads[axis].min(kernel[axis] - 1));
            let shape = MaxPoolShape { batch, channels, input, kernel, stride, padding };
            let ([rows, cols], [height, width]) = (shape.output(), input);
            let len = batch * height * width * channels;
            // Few different values: many are equal.
            let x: Vec<f32> = (0..len).map(|i| (i * 7919 % 11) as f32 - 5.0).collect();
            let dy: Vec<f32> = (0..batch * rows * cols * channels).map(|i| (i * 31 % 17) as f32 - 8.0).collect();
            let (mut y, mut dx) = (vec![], vec![0.0; len]);
            for output in 0..batch * rows * cols {
                let (image, row, col) = (output / (rows * cols), output / cols % rows, output % cols);
                for channel in 0..channels {
                    let mut best: Option<usize> = None;
                    for tap in 0..kernel[0] * kernel[1] {
                        let row = (row * stride[0] + tap / kernel[1]).wrapping_sub(padding[0]);
                        let col = (col * stride[1] + tap % kernel[1]).wrapping_sub(padding[1]);
                        if row < height && col < width {
                            let at = ((image * height + row) * width + col) * channels + channel;
                            best = best.filter(|best| x[*best] >= x[at]).or(Some(at));
                        }
                    }
                    let best = best.expect("a window with an input");
                    y.push(x[best]);
                    dx[best] += dy[output * channels + channel];
                }
            }
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                prop_assert_eq!(&max_pool2d_on(isa, &x, &shape), &y);
                prop_assert_eq!(&max_pool2d_backward_on(isa, &x, &y, &dy, &shape), &dx);
            }
        }
    }

    #[test]
    fn a_nan_stays() {
        let shape = MaxPoolShape {
            batch: 1,
            channels: 1,
            input: [1, 4],
            kernel: [1, 2],
            stride: [1, 2],
            padding: [0, 0],
        };
        let y = max_pool2d(&[f32::NAN, 1.0, 2.0, 3.0], &shape);
        assert!(y[0].is_nan());
        assert_eq!(y[1], 3.0);
    }
}

//! BatchNorm in training, on a CPU: in each direction one pass over memory for the sums of each channel and one for the
//! result. Of single operations, as Burn has it on `flex`, it takes a pass for each.

use super::isa::{Isa, run_on};
use rayon::prelude::*;

/// A tensor `[images, channels, positions]` whose channels are normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormShape {
    /// Images.
    pub images: usize,
    /// Channels.
    pub channels: usize,
    /// Values of a channel in an image: rows times columns.
    pub positions: usize,
    /// What is added to the variance.
    pub epsilon: f64,
}

impl BatchNormShape {
    const fn image(&self) -> usize {
        self.channels * self.positions
    }

    const fn elements(&self) -> usize {
        self.images * self.image()
    }

    /// Values of a channel.
    const fn count(&self) -> f64 {
        (self.images * self.positions) as f64
    }

    /// `1 / sqrt(variance + epsilon)`.
    fn inverse_deviation(&self, variance: f32) -> f64 {
        1.0 / (f64::from(variance) + self.epsilon).sqrt()
    }
}

/// `y = gamma (x - mean) / sqrt(variance + epsilon) + beta` with the mean and the (population) variance of each channel of
/// `x`; and these, `(y, mean, variance)`. Sums are in f64.
///
/// # Panics
/// If a slice has not the length of the shape, or there are no values.
#[must_use]
pub fn batch_norm(
    x: &[f32], gamma: &[f32], beta: &[f32], shape: &BatchNormShape,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    assert_eq!(x.len(), shape.elements(), "values of another number");
    assert_eq!((gamma.len(), beta.len()), (shape.channels, shape.channels), "terms for each channel");
    assert!(!x.is_empty(), "values to normalize");
    let moments = |[sum, squares]: [f64; 2]| {
        let mean = sum / shape.count();
        (mean as f32, (squares / shape.count() - mean * mean).max(0.0) as f32)
    };
    let sums = sums(shape, |image, out| {
        let x = part(x, shape, image);
        run_on!(Isa::detect(), |_| moment_sums(x, shape.positions, out));
    });
    let (mean, variance): (Vec<f32>, Vec<f32>) = sums.into_iter().map(moments).unzip();
    let gain = |c: usize| (f64::from(gamma[c]) * shape.inverse_deviation(variance[c])) as f32;
    let terms: Vec<[f32; 3]> = (0..shape.channels).map(|c| [mean[c], gain(c), beta[c]]).collect();
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(shape.image()).zip(x.par_chunks(shape.image())).for_each(|(out, x)| {
        run_on!(Isa::detect(), |_| scale(x, shape.positions, &terms, out));
    });
    (y, mean, variance)
}

/// The gradients of [`batch_norm`] from that of its `y`: `(dx, dgamma, dbeta)`.
///
/// # Panics
/// If a slice has not the length of the shape.
#[must_use]
pub fn batch_norm_backward(
    x: &[f32], gamma: &[f32], mean: &[f32], variance: &[f32], dy: &[f32], shape: &BatchNormShape,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    assert_eq!((x.len(), dy.len()), (shape.elements(), shape.elements()), "values of another number");
    let sums = sums(shape, |image, out| {
        let (x, dy) = (part(x, shape, image), part(dy, shape, image));
        run_on!(Isa::detect(), |_| product_sums(x, dy, mean, shape.positions, out));
    });
    // With `x^ = (x - mean) i`: dx = gamma i (dy - sum(dy) / n - x^ sum(dy x^) / n).
    let terms = |c: usize| {
        let [sum, product] = sums[c];
        let (inverse, n) = (shape.inverse_deviation(variance[c]), shape.count());
        let gain = f64::from(gamma[c]) * inverse;
        let slope = product * inverse * inverse / n;
        [mean[c], gain as f32, (sum / n) as f32, slope as f32]
    };
    let terms: Vec<[f32; 4]> = (0..shape.channels).map(terms).collect();
    let mut dx = vec![0.0; x.len()];
    let images = dx.par_chunks_mut(shape.image()).zip(x.par_chunks(shape.image()));
    images.zip(dy.par_chunks(shape.image())).for_each(|((out, x), dy)| {
        run_on!(Isa::detect(), |_| input_gradient([x, dy], shape.positions, &terms, out));
    });
    let dgamma = |c: usize| (sums[c][1] * shape.inverse_deviation(variance[c])) as f32;
    let dbeta = sums.iter().map(|sums| sums[0] as f32).collect();
    (dx, (0..shape.channels).map(dgamma).collect(), dbeta)
}

fn part<'a>(x: &'a [f32], shape: &BatchNormShape, image: usize) -> &'a [f32] {
    &x[image * shape.image()..][..shape.image()]
}

/// Two sums for each channel, added up in the order of the images: the number of threads does not matter.
fn sums(shape: &BatchNormShape, of_image: impl Fn(usize, &mut [[f64; 2]]) + Sync) -> Vec<[f64; 2]> {
    let mut parts = vec![[0.0; 2]; shape.images * shape.channels];
    let images = parts.par_chunks_mut(shape.channels).enumerate();
    images.for_each(|(image, out)| of_image(image, out));
    let mut total = vec![[0.0; 2]; shape.channels];
    for part in parts.chunks(shape.channels) {
        for (total, part) in total.iter_mut().zip(part) {
            total[0] += part[0];
            total[1] += part[1];
        }
    }
    total
}

const LANES: usize = 8;

/// Adds terms to the sums of a lane.
#[inline(always)]
fn add(lanes: &mut [[f64; LANES]; 2], lane: usize, terms: [f64; 2]) {
    lanes[0][lane] += terms[0];
    lanes[1][lane] += terms[1];
}

/// The sums of the lanes.
#[inline(always)]
fn add_up(lanes: [[f64; LANES]; 2]) -> [f64; 2] {
    let mut sums = [0.0; 2];
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        for lane in lanes {
            *sum += lane;
        }
    }
    sums
}

/// The sums of `x` and of its squares.
#[inline(always)]
fn moment_sums(x: &[f32], positions: usize, out: &mut [[f64; 2]]) {
    for (x, out) in x.chunks_exact(positions).zip(out) {
        let mut lanes = [[0.0; LANES]; 2];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for x in chunks {
            for lane in 0..LANES {
                let x = f64::from(x[lane]);
                add(&mut lanes, lane, [x, x * x]);
            }
        }
        for (lane, &x) in rest.iter().enumerate() {
            let x = f64::from(x);
            add(&mut lanes, lane, [x, x * x]);
        }
        *out = add_up(lanes);
    }
}

/// The sums of `dy` and of `dy (x - mean)`.
#[inline(always)]
fn product_sums(x: &[f32], dy: &[f32], mean: &[f32], positions: usize, out: &mut [[f64; 2]]) {
    let planes = x.chunks_exact(positions).zip(dy.chunks_exact(positions));
    for (((x, dy), &mean), out) in planes.zip(mean).zip(out) {
        let mut lanes = [[0.0; LANES]; 2];
        let ((xs, x_rest), (dys, dy_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        for (x, dy) in xs.iter().zip(dys) {
            for lane in 0..LANES {
                let dy = f64::from(dy[lane]);
                add(&mut lanes, lane, [dy, dy * f64::from(x[lane] - mean)]);
            }
        }
        for (lane, (&x, &dy)) in x_rest.iter().zip(dy_rest).enumerate() {
            let dy = f64::from(dy);
            add(&mut lanes, lane, [dy, dy * f64::from(x - mean)]);
        }
        *out = add_up(lanes);
    }
}

/// `gain (x - mean) + beta` of an image.
#[inline(always)]
fn scale(x: &[f32], positions: usize, terms: &[[f32; 3]], out: &mut [f32]) {
    let planes = x.chunks_exact(positions).zip(out.chunks_exact_mut(positions));
    for ((x, out), &[mean, gain, beta]) in planes.zip(terms) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = gain * (x - mean) + beta;
        }
    }
}

/// `gain (dy - mean of dy - slope (x - mean))` of an image.
#[inline(always)]
fn input_gradient([x, dy]: [&[f32]; 2], positions: usize, terms: &[[f32; 4]], out: &mut [f32]) {
    let inputs = x.chunks_exact(positions).zip(dy.chunks_exact(positions));
    let planes = inputs.zip(out.chunks_exact_mut(positions));
    for (((x, dy), out), &[mean, gain, mean_dy, slope]) in planes.zip(terms) {
        for ((out, x), dy) in out.iter_mut().zip(x).zip(dy) {
            *out = gain * (dy - mean_dy - slope * (x - mean));
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
        fn agrees_with_the_reference(images in 1usize..6, channels in 1usize..7, positions in 1usize..40) {
            let shape = BatchNormShape { images, channels, positions, epsilon: 1e-5 };
            let (x, dy) = (values(shape.elements(), 1), values(shape.elements(), 2));
            let (gamma, beta) = (values(channels, 3), values(channels, 4));
            let (y, mean, variance) = batch_norm(&x, &gamma, &beta, &shape);
            let expected = reference::batch_norm(&x, &gamma, &beta, &shape);
            close(&y, &expected.0)?;
            close(&mean, &expected.1)?;
            close(&variance, &expected.2)?;
            // Of a few values the gradients cancel, to far less than what they are made of.
            if images * positions >= 16 {
                let (dx, dgamma, dbeta) = batch_norm_backward(&x, &gamma, &mean, &variance, &dy, &shape);
                let expected = reference::batch_norm_backward(&x, &gamma, &dy, &shape);
                close(&dx, &expected.0)?;
                close(&dgamma, &expected.1)?;
                close(&dbeta, &expected.2)?;
            }
        }
    }
}

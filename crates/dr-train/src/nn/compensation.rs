//! [`compensated`]: weights that make up for each other's rounding.

use dr_kernels::layout::ScaleLayout;
use dr_precision::{BitWidth, semantics};
use nalgebra::{Cholesky, DMatrix};
use rayon::prelude::*;

/// How weights are rounded at one of a layer's widths: first to the stored one, then to this one.
#[derive(Clone, Copy, Debug)]
pub struct Rounding<'a> {
    /// The stored width.
    pub stored: BitWidth,
    /// This width.
    pub active: BitWidth,
    /// Scales of the stored width, as the layout says.
    pub stored_scale: &'a [f32],
    /// Scales of this width.
    pub scale: &'a [f32],
    /// Which scale belongs to which weight, `[features out, features in]`.
    pub layout: ScaleLayout,
}

impl Rounding<'_> {
    /// What becomes of the weight at position `i`.
    fn round(&self, i: usize, weight: f32) -> f32 {
        let at = self.layout.scale_of(i);
        let code = semantics::quantize(weight, self.stored_scale[at], self.stored);
        semantics::dequantize(semantics::switch(code, self.stored, self.active), self.scale[at])
    }
}

/// What is added to the diagonal, as a part of its mean: inputs that hardly differ would make the inverse meaningless.
const DAMPING: f64 = 0.01;

/// Moves the weights of a linear layer so that its outputs at one width are near those that it has in floats, in the manner of
/// GPTQ (arXiv:2210.17323, algorithm 1): input by input, what rounding changes is made up for by the weights of the
/// inputs that follow, as far as inputs are correlated. What is returned is not rounded: a network that has other widths too
/// is then quantized as always, and at this width comes out as computed here.
///
/// - `weights`: `[features out, features in]`.
/// - `products`: the sum over many inputs `x` of `x^T x`, `[features in, features in]`.
///
/// `None` if the products are not those of finite inputs.
#[must_use]
pub fn compensated(weights: &[f32], products: &[f32], rounding: &Rounding) -> Option<Vec<f32>> {
    let features = rounding.layout.cols();
    if features == 0 || products.len() != features * features {
        return None;
    }
    let mut hessian = DMatrix::from_iterator(features, features, products.iter().map(|&x| f64::from(x)));
    let mean = hessian.trace() / features as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return None;
    }
    for i in 0..features {
        hessian[(i, i)] += DAMPING * mean;
    }
    // Row `i` says how the weights after input `i` move for an error of 1 there, and its diagonal the unit of errors.
    let moves = Cholesky::new(Cholesky::new(hessian)?.inverse())?.l();
    let mut weights = weights.to_vec();
    weights.par_chunks_exact_mut(features).enumerate().for_each(|(row, weights)| {
        for i in 0..features {
            let error = f64::from(weights[i] - rounding.round(row * features + i, weights[i]));
            let column = moves.column(i);
            let units = error / column[i];
            for (weight, step) in weights[i + 1..].iter_mut().zip(&column.as_slice()[i + 1..]) {
                *weight -= (units * step) as f32;
            }
        }
    });
    Some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dr_precision::Granularity;
    use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

    /// Inputs `[rows, features]` that have much in common.
    fn inputs(rows: usize, features: usize, rng: &mut impl Rng) -> Vec<f32> {
        let common: Vec<f32> = (0..rows).map(|_| rng.random_range(-1.0..1.0)).collect();
        (0..rows * features).map(|i| common[i / features] + rng.random_range(-0.3..0.3)).collect()
    }

    fn products(x: &[f32], features: usize) -> Vec<f32> {
        let sum =
            |i: usize| x.chunks_exact(features).map(|row| row[i / features] * row[i % features]).sum::<f32>();
        (0..features * features).map(sum).collect()
    }

    /// Squared errors of a layer's outputs at 3 bits: as it is, and compensated.
    fn errors(seed: u64, features: usize, group: usize) -> [f64; 2] {
        let mut rng = StdRng::seed_from_u64(seed);
        let (rows, outputs) = (200, 8);
        let x = inputs(rows, features, &mut rng);
        let weights: Vec<f32> = (0..outputs * features).map(|_| rng.random_range(-1.0..1.0)).collect();
        let group = Granularity::Group(group.try_into().unwrap());
        let layout = ScaleLayout::weights(&[outputs, features], group).unwrap();
        let (stored_scale, scale) = (vec![1.0 / 127.0; layout.scales()], vec![1.0 / 3.0; layout.scales()]);
        let rounding = Rounding {
            stored: BitWidth::B8,
            active: BitWidth::B3,
            stored_scale: &stored_scale,
            scale: &scale,
            layout,
        };
        let moved = compensated(&weights, &products(&x, features), &rounding).unwrap();
        [&weights, &moved].map(|from| {
            let rounded: Vec<f32> = from.iter().enumerate().map(|(i, &w)| rounding.round(i, w)).collect();
            let of = |(row, output): (&[f32], usize)| -> f64 {
                let range = output * features..(output + 1) * features;
                let pairs = weights[range.clone()].iter().zip(&rounded[range]);
                f64::from(row.iter().zip(pairs).map(|(x, (w, q))| x * (w - q)).sum::<f32>()).powi(2)
            };
            x.chunks_exact(features).flat_map(|row| (0..outputs).map(move |o| (row, o))).map(of).sum()
        })
    }

    #[test]
    fn outputs_are_nearer_to_the_floats() {
        for (features, group) in [(8, 8), (16, 50), (33, 8), (40, 12)] {
            // One step after the other, it is not better for every single layer.
            let [plain, better] = (0..40)
                .map(|seed| errors(seed, features, group))
                .fold([0.0; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
            assert!(better < 0.7 * plain, "{features} features: {better} of {plain}");
        }
    }

    #[test]
    fn inputs_that_say_nothing_change_nothing() {
        let layout = ScaleLayout::weights(&[1, 2], Granularity::Channel).unwrap();
        let (stored_scale, scale) = (vec![0.1], vec![0.5]);
        let rounding = Rounding {
            stored: BitWidth::B8,
            active: BitWidth::B4,
            stored_scale: &stored_scale,
            scale: &scale,
            layout,
        };
        assert_eq!(compensated(&[0.3, 0.4], &[0.0; 4], &rounding), None);
        assert_eq!(compensated(&[0.3, 0.4], &[f32::NAN; 4], &rounding), None);
        let moved = compensated(&[0.3, 0.4], &[1.0, 0.0, 0.0, 1.0], &rounding).unwrap();
        assert_eq!(moved, [0.3, 0.4], "independent inputs have nothing to make up for");
    }
}

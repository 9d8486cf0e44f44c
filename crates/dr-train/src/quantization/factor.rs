//! [`Factor`]: how weights make up for each other's errors.

use nalgebra::{Cholesky, DMatrix};

/// The upper Cholesky factor `U` of the inverse of a layer's damped Hessian, `U^T U = (H + 0.01 mean(diag H) I)^-1`: an error `e`
/// of the weight of input `i` is made up for by adding `-e / U_ii * U_ij` to those of the inputs `j` that follow.
#[derive(Clone, Debug)]
pub struct Factor {
    upper: DMatrix<f32>,
    /// The diagonal of the damped Hessian.
    diagonal: Vec<f32>,
}

/// What is added to the diagonal, as a part of its mean: inputs that hardly differ would make the inverse meaningless.
const DAMPING: f64 = 0.01;

impl Factor {
    /// Of a Hessian `[inputs, inputs]`: a weighted sum over inputs `x` of `x^T x`. `None` if it is not one of finite inputs, some of them not zero.
    #[must_use]
    pub fn new(hessian: &[f32], inputs: usize) -> Option<Self> {
        if inputs == 0 || hessian.len() != inputs * inputs {
            return None;
        }
        // From the last input to the first: then `H = R R^T` with an upper triangle, and its inverse is the factor.
        let mut reversed =
            DMatrix::from_iterator(inputs, inputs, hessian.iter().rev().map(|&x| f64::from(x)));
        let mean = reversed.trace() / inputs as f64;
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        reversed /= mean;
        for i in 0..inputs {
            reversed[(i, i)] += DAMPING;
        }
        let diagonal = reversed.diagonal().iter().rev().map(|&x| x as f32).collect();
        let lower = inverse_factor(&reversed)?;
        let upper = DMatrix::from_iterator(inputs, inputs, lower.iter().rev().map(|&x| x as f32));
        Some(Self { upper, diagonal })
    }

    /// The factor, of the Hessian divided by the mean of its diagonal.
    pub(super) const fn upper(&self) -> &DMatrix<f32> {
        &self.upper
    }

    /// How much an error of each input's weight counts.
    #[must_use]
    pub fn importance(&self) -> &[f32] {
        &self.diagonal
    }
}

/// `product (hessian + damping)^-1`, where `damping` is added to the diagonal as a part of its mean; `None` if that is not positive definite.
pub(super) fn divided(product: &DMatrix<f32>, hessian: &DMatrix<f32>, damping: f64) -> Option<DMatrix<f32>> {
    let mut damped = hessian.map(f64::from);
    let mean = damped.trace() / damped.nrows() as f64;
    if !(mean.is_finite() && mean > 0.0) {
        return None;
    }
    (0..damped.nrows()).for_each(|i| damped[(i, i)] += damping * mean);
    let lower = inverse_factor(&damped)?;
    Some((product.map(f64::from) * lower.transpose() * lower).map(|x| x as f32))
}

/// Rows up to which matrices are not divided.
const SMALL: usize = 48;

/// The inverse of the lower Cholesky factor of a symmetric matrix, by halves, so that nearly all work is products of matrices.
/// `None` if the matrix is not positive definite.
fn inverse_factor(matrix: &DMatrix<f64>) -> Option<DMatrix<f64>> {
    let n = matrix.nrows();
    if n <= SMALL {
        let lower = Cholesky::new(matrix.clone())?.l();
        return lower.solve_lower_triangular(&DMatrix::identity(n, n));
    }
    let (half, rest) = (n / 2, n - n / 2);
    let first = inverse_factor(&matrix.view((0, 0), (half, half)).into_owned())?;
    let below = matrix.view((half, 0), (rest, half)) * first.transpose();
    let last = matrix.view((half, half), (rest, rest)) - &below * below.transpose();
    let last = inverse_factor(&last)?;
    let corner = -(&last * (below * &first));
    let mut whole = DMatrix::zeros(n, n);
    whole.view_mut((0, 0), (half, half)).copy_from(&first);
    whole.view_mut((half, 0), (rest, half)).copy_from(&corner);
    whole.view_mut((half, half), (rest, rest)).copy_from(&last);
    Some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let mut rng = StdRng::seed_from_u64(3);
        for n in [1, 5, SMALL, SMALL + 1, 131] {
            let x = DMatrix::from_fn(2 * n, n, |_, _| rng.random_range(-1.0f32..1.0));
            let hessian = x.transpose() * &x;
            let factor = Factor::new(hessian.as_slice(), n).expect("a factor");
            let upper = factor.upper();
            assert!((0..n).all(|i| (0..i).all(|j| upper[(i, j)] == 0.0)), "an upper triangle");
            let mut damped = &hessian / (hessian.trace() / n as f32);
            (0..n).for_each(|i| damped[(i, i)] += DAMPING as f32);
            let error = (upper.transpose() * upper * damped - DMatrix::identity(n, n)).amax();
            assert!(error < 1e-2, "{n} inputs: {error}");
        }
    }

    #[test]
    fn what_has_no_factor() {
        assert!(Factor::new(&[], 0).is_none());
        assert!(Factor::new(&[1.0, 0.0], 2).is_none());
        for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(Factor::new(&[wrong; 4], 2).is_none(), "{wrong}");
        }
    }
}

//! Products in 16-bit floats, of numbers and into numbers of 32 bits.

use crate::config::ComputeKind;
use burn::tensor::{FloatDType, Tensor};

impl ComputeKind {
    /// The type, if it is one of 16 bits.
    #[must_use]
    pub const fn half(self) -> Option<FloatDType> {
        match self {
            Self::F32 => None,
            Self::F16 => Some(FloatDType::F16),
            Self::Bf16 => Some(FloatDType::BF16),
        }
    }
}

/// What `x` and `w` are multiplied by in [`ComputeKind::F16`]; the result is divided by both. Backwards, the gradient of the result
/// then comes in multiplied by 1024, as losses are scaled elsewhere so that small gradients do not become zero. Powers of two
/// change no digit.
const FACTORS: [f32; 2] = [1.0 / 256.0, 1.0 / 4.0];

/// `product(x, w)`, computed in the type.
pub(super) fn product<const X: usize, const W: usize, const Y: usize>(
    compute: ComputeKind, x: Tensor<X>, w: Tensor<W>, product: impl FnOnce(Tensor<X>, Tensor<W>) -> Tensor<Y>,
) -> Tensor<Y> {
    match compute {
        ComputeKind::F32 => product(x, w),
        ComputeKind::Bf16 => {
            product(x.cast(FloatDType::BF16), w.cast(FloatDType::BF16)).cast(FloatDType::F32)
        }
        ComputeKind::F16 => {
            let [of_x, of_w] = FACTORS;
            let (x, w) = ((x * of_x).cast(FloatDType::F16), (w * of_w).cast(FloatDType::F16));
            product(x, w).cast(FloatDType::F32) / (of_x * of_w)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    #[test]
    fn halves_give_nearly_the_same_products_and_gradients() {
        let device = Device::flex().autodiff();
        let tensor = |shape: [usize; 2], scale: f32| {
            let values: Vec<f32> =
                (0..shape[0] * shape[1]).map(|i| ((i * 37 % 23) as f32 - 11.0) * scale).collect();
            Tensor::<2>::from_data(TensorData::new(values, shape), &device).require_grad()
        };
        let (x, w) = (tensor([5, 24], 0.1), tensor([24, 7], 0.01));
        // As small as the gradient of a loss over a batch: less than the least normal number of f16.
        let run = |compute| {
            let y: Tensor<2> = product(compute, x.clone(), w.clone(), |x, w| x.matmul(w));
            let mut grads = (y.clone() * 1e-6).sum().backward();
            [y.inner(), x.grad_remove(&mut grads).unwrap(), w.grad_remove(&mut grads).unwrap()]
        };
        let exact = run(ComputeKind::F32);
        for (compute, tolerance) in [(ComputeKind::F16, 1e-2), (ComputeKind::Bf16, 1e-2)] {
            for (found, exact) in run(compute).into_iter().zip(&exact) {
                let largest = exact.clone().abs().max().into_scalar::<f32>();
                let error = (found - exact.clone()).abs().max().into_scalar::<f32>();
                assert!(error <= tolerance * largest, "{compute}: {error} of {largest}");
            }
        }
    }
}

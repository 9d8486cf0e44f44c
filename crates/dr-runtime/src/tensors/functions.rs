//! Functions of elements of [`Floats`], and of all elements along axes.

use super::floats::{Floats, pair};
use super::{Value, wrong};
use crate::RuntimeError;
use crate::arrays::elementwise::broadcast_to;
use crate::arrays::layout::concatenated;
use crate::arrays::loops::broadcast;
use crate::arrays::matmul::Matrices;
use crate::arrays::reduce::Groups;
use crate::arrays::{Array, ArrayError, axis};
use crate::graph::{Binary, ElementType, Reduction, Unary};
use burn::tensor::activation::{self, relu, sigmoid};
use burn::tensor::{Bool, Tensor, TensorData};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// A function of each element.
pub(super) fn unary(function: Unary, x: Floats) -> Result<Floats, ArrayError> {
    if function == Unary::Not {
        return Err(ArrayError::Element { found: ElementType::F32, expected: "Bool" });
    }
    Ok(x.map(|x| match function {
        Unary::Not => x,
        Unary::Abs => x.abs(),
        Unary::Neg => x.neg(),
        Unary::Sign => x.sign(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round(),
        Unary::Exp => x.exp(),
        Unary::Log => x.log(),
        Unary::Sqrt => root(x),
        Unary::Reciprocal => x.recip(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Erf => x.erf(),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::Relu => relu(x),
        Unary::Silu => x.clone() * sigmoid(x),
        // Of which neither part is large where it does not count.
        Unary::Softplus => x.clone().clamp_min(0.0) + x.abs().neg().exp().log1p(),
        Unary::HardSwish => x.clone() * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Unary::Gelu => x.clone() / 2.0 * ((x * FRAC_1_SQRT_2).erf() + 1.0),
        Unary::GeluTanh => {
            let cube = x.clone().square() * x.clone();
            x.clone() * sigmoid((cube * 0.044715 + x) * (8.0 / PI).sqrt())
        }
        Unary::HardSigmoid { alpha, beta } => (x * alpha + beta).clamp(0.0, 1.0),
        Unary::LeakyRelu { alpha } => x.clone().clamp_min(0.0) + x.clamp_max(0.0) * alpha,
        Unary::Elu { alpha } => x.clone().clamp_min(0.0) + (x.clamp_max(0.0).exp() - 1.0) * alpha,
    }))
}

/// The root, with a gradient of 0 where it is 0: an infinite one makes those of all that it depends on no numbers, also where they are 0.
fn root<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !x.is_tracked() {
        return x.sqrt();
    }
    let zero = x.clone().equal_scalar(0.0);
    x.mask_fill(zero.clone(), 1.0).sqrt().mask_fill(zero, 0.0)
}

/// [`Binary::Pow`]: of one number, or of a number for each element.
pub(super) fn power(a: Floats, b: Value) -> Result<Floats, RuntimeError> {
    match b {
        Value::Array(array) => {
            let exponents = array.cast(ElementType::F32)?;
            match exponents.floats()?[..] {
                [exponent] if exponents.dims().len() <= a.dims().len() => {
                    Ok(a.map(|a| a.powf_scalar(exponent)))
                }
                _ => {
                    let b = Floats::new(&exponents, &a.device())?;
                    Ok(binary(Binary::Pow, a, b)?)
                }
            }
        }
        Value::Floats(b) => Ok(binary(Binary::Pow, a, b)?),
        other => Err(wrong(other.name(), "an array")),
    }
}

/// A function of two elements.
pub(super) fn binary(function: Binary, a: Floats, b: Floats) -> Result<Floats, ArrayError> {
    if function == Binary::Prelu && broadcast(a.dims(), b.dims())? != a.dims() {
        return Err(ArrayError::Broadcast { found: a.dims().to_vec(), other: b.dims().to_vec() });
    }
    // Masks are not broadcast.
    let (a, b) = match function {
        Binary::Min | Binary::Max => {
            let dims = broadcast(a.dims(), b.dims())?;
            (a.broadcast(&dims)?, b.broadcast(&dims)?)
        }
        _ => (a, b),
    };
    let (a, b, dims) = pair(a, b)?;
    let y = match function {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Pow => a.powf(b),
        Binary::Min => a.min_pair(b),
        Binary::Max => a.max_pair(b),
        Binary::Mod => a.remainder(b),
        Binary::Fmod => a.fmod(b),
        Binary::Prelu => a.clone().clamp_min(0.0) + a.clamp_max(0.0) * b,
        Binary::Equal
        | Binary::Less
        | Binary::LessOrEqual
        | Binary::Greater
        | Binary::GreaterOrEqual
        | Binary::And
        | Binary::Or
        | Binary::Xor => return Err(ArrayError::Element { found: ElementType::F32, expected: "Bool" }),
    };
    Ok(Floats::of(y, dims))
}

/// [`TensorOp::Where`](crate::graph::TensorOp::Where)
pub(super) fn choose(condition: &Array, a: Floats, b: Floats) -> Result<Floats, ArrayError> {
    let dims = broadcast(&broadcast(condition.dims(), a.dims())?, b.dims())?;
    if dims.contains(&0) {
        return Ok(a.without_elements(dims));
    }
    let chosen = broadcast_to(condition.as_bool()?.clone(), &dims)?;
    let chosen = TensorData::new(chosen, [dims.iter().product::<usize>()]);
    let chosen = Tensor::<1, Bool>::from_data(chosen, &a.device());
    let (a, b) = (a.broadcast(&dims)?, b.broadcast(&dims)?);
    Ok(b.map(|b| b.mask_where(chosen, a.into_values())))
}

/// [`TensorOp::ChannelAffine`](crate::graph::TensorOp::ChannelAffine)
pub(super) fn channel_affine(x: Floats, gain: Floats, shift: Floats) -> Result<Floats, ArrayError> {
    let channels = channels(&x)?;
    for found in [gain.dims(), shift.dims()] {
        if found != [channels] {
            return Err(ArrayError::dims(found, format!("one for each of {channels} channels")));
        }
    }
    let along = |of: Floats| of.into_values().reshape([1, channels, 1]);
    Ok(x.along(1, |x| x * along(gain) + along(shift)))
}

/// The size of axis 1.
fn channels(x: &Floats) -> Result<usize, ArrayError> {
    let wrong = || ArrayError::Rank { found: x.dims().len(), expected: "at least 2".into() };
    x.dims().get(1).copied().ok_or_else(wrong)
}

/// [`TensorOp::MatMul`](crate::graph::TensorOp::MatMul)
pub(super) fn matmul(a: Floats, b: Floats) -> Result<Floats, ArrayError> {
    let Matrices { left, right, batch, m, k, n, dims } = Matrices::of(a.dims(), b.dims())?;
    let count = |batch: &[usize]| batch.iter().product::<usize>();
    if count(&right) == 1 && left == batch {
        // One matrix on the right: one product.
        let a = a.into_values().reshape([count(&left) * m, k]);
        let b = b.into_values().reshape([k, n]);
        return Ok(Floats::of(a.matmul(b), dims));
    }
    let batched = |x: Floats, own: Vec<usize>, matrix: [usize; 2]| {
        let x = x.sized([&own[..], &matrix].concat())?.broadcast(&[&batch[..], &matrix].concat())?;
        Ok::<_, ArrayError>(x.into_values().reshape([count(&batch), matrix[0], matrix[1]]))
    };
    let (a, b) = (batched(a, left, [m, k])?, batched(b, right, [k, n])?);
    Ok(Floats::of(a.matmul(b), dims))
}

/// [`TensorOp::Concat`](crate::graph::TensorOp::Concat)
pub(super) fn concat(inputs: Vec<Floats>, at: isize) -> Result<Floats, ArrayError> {
    let (at, dims) = concatenated(&inputs.iter().map(Floats::dims).collect::<Vec<_>>(), at)?;
    let (before, after) = (dims[..at].iter().product(), dims[at + 1..].iter().product());
    let inputs = inputs.into_iter().filter(|x| !x.is_empty());
    let part = |x: Floats| {
        let size = x.dims()[at];
        x.into_values().reshape([before, size, after])
    };
    let parts: Vec<Tensor<3>> = inputs.map(part).collect();
    Ok(Floats::of(Tensor::cat(parts, 1), dims))
}

/// One value for all elements along some axes.
pub(super) fn reduce(reduction: Reduction, x: Floats, gone: &[bool], keep: bool) -> Floats {
    let Groups { order, sizes, dims } = Groups::of(x.dims(), gone, keep);
    let x = match order {
        Some(order) => x.ordered(&order),
        None => x,
    };
    let x: Tensor<3> = x.into_values().reshape(sizes);
    let y = match reduction {
        Reduction::Sum => x.sum_dim(1),
        Reduction::Mean => x.mean_dim(1),
        Reduction::Max => x.max_dim(1),
        Reduction::Min => x.min_dim(1),
        Reduction::Prod => x.prod_dim(1),
        Reduction::L1 => x.abs().sum_dim(1),
        Reduction::L2 => root(x.square().sum_dim(1)),
        Reduction::SumSquare => x.square().sum_dim(1),
        Reduction::LogSum => x.sum_dim(1).log(),
        Reduction::LogSumExp => {
            // Finite, so that infinities stay what they are.
            let largest = x.clone().max_dim(1).detach().clamp(f32::MIN, f32::MAX);
            (x - largest.clone()).exp().sum_dim(1).log() + largest
        }
    };
    Floats::of(y, dims)
}

/// [`TensorOp::Softmax`](crate::graph::TensorOp::Softmax)
pub(super) fn softmax(x: Floats, at: isize, log: bool) -> Result<Floats, ArrayError> {
    let at = axis(at as i64, x.dims().len())?;
    Ok(x.along(at, |x| if log { activation::log_softmax(x, 1) } else { activation::softmax(x, 1) }))
}

/// [`TensorOp::Normalize`](crate::graph::TensorOp::Normalize)
pub(super) fn normalize(x: Floats, at: isize, epsilon: f32) -> Result<Floats, ArrayError> {
    let at = axis(at as i64, x.dims().len())?;
    let dims = x.dims().to_vec();
    let sizes: [usize; 2] = [dims[..at].iter().product(), dims[at..].iter().product()];
    let x = x.into_values().reshape(sizes);
    let x = x.clone() - x.mean_dim(1);
    let deviation = (x.clone().square().mean_dim(1) + epsilon).sqrt();
    Ok(Floats::of(x / deviation, dims))
}

/// [`TensorOp::Lrn`](crate::graph::TensorOp::Lrn)
pub(super) fn lrn(x: Floats, alpha: f32, beta: f32, bias: f32, size: usize) -> Result<Floats, ArrayError> {
    let channels = channels(&x)?;
    if size == 0 {
        return Err(ArrayError::value("a number of channels", 0, "1 or more"));
    }
    // As many on each side as there can be.
    let (before, after) = (((size - 1) / 2).min(channels), (size - 1).div_ceil(2).min(channels));
    Ok(x.along(1, |x| {
        let [n, _, rest] = x.dims();
        let zeros = |count| Tensor::zeros([n, count, rest], &x.device());
        let squares = Tensor::cat(vec![zeros(before), x.clone().square(), zeros(after)], 1);
        let sum = (1..=before + after).fold(squares.clone().narrow(1, 0, channels), |sum, at| {
            sum + squares.clone().narrow(1, at, channels)
        });
        x / (sum * (alpha / size as f32) + bias).powf_scalar(beta)
    }))
}

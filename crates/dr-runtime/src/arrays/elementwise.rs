//! Functions of each element, and of elements of several arrays broadcast against each other.

use super::loops::{Loops, broadcast, broadcast_strides, row_pieces};
use super::{Array, ArrayError, Element, build, dense, each, filled, owned};
use crate::graph::{Binary, ElementType, Unary};
use ndarray::{ArcArray, IxDyn};
use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E, PI};

type Values<T> = ArcArray<T, IxDyn>;

/// A function of each element, in its memory if that has no other owner.
pub(super) fn map<T: Element>(x: Values<T>, of: impl Fn(T) -> T + Sync) -> Values<T> {
    let dims = x.raw_dim();
    let mut values = owned(x);
    row_pieces(&mut values, &|_, piece| piece.iter_mut().for_each(|x| *x = of(*x)));
    // There are as many as before.
    ArcArray::from_shape_vec(dims, values).unwrap_or_default()
}

/// The same to elements of another type.
pub(super) fn convert<A: Element, B: Element>(
    x: &Values<A>, of: impl Fn(A) -> B + Sync,
) -> Result<Array, ArrayError> {
    let mut out = filled(x.shape(), B::default())?;
    let values = dense(x);
    row_pieces(&mut out, &|from, piece| {
        piece.iter_mut().zip(&values[from..]).for_each(|(out, x)| *out = of(*x));
    });
    build(out, x.shape())
}

/// A row of an array that is broadcast.
enum Row<'a, T> {
    Each(&'a [T]),
    All(T),
}

impl<'a, T: Copy> Row<'a, T> {
    fn new(values: &'a [T], start: usize, step: usize, len: usize) -> Self {
        if step == 0 { Self::All(values[start]) } else { Self::Each(&values[start..start + len]) }
    }
}

/// Changes each element of a row-major array by that of one that is broadcast to it.
fn merge<O: Send, A: Element>(out: &mut [O], dims: &[usize], a: &Values<A>, of: impl Fn(&mut O, A) + Sync) {
    let values = dense(a);
    let loops = Loops::new(dims, &[broadcast_strides(a.shape(), dims)]);
    loops.run(out, &|[start], out| match Row::new(&values, start, loops.steps[0], out.len()) {
        Row::Each(a) => out.iter_mut().zip(a).for_each(|(out, a)| of(out, *a)),
        Row::All(a) => out.iter_mut().for_each(|out| of(out, a)),
    });
}

/// The same by those of two.
fn merge_two<O: Send, A: Element, B: Element>(
    out: &mut [O], dims: &[usize], a: &Values<A>, b: &Values<B>, of: impl Fn(&mut O, A, B) + Sync,
) {
    let (first, second) = (dense(a), dense(b));
    let loops = Loops::new(dims, &[broadcast_strides(a.shape(), dims), broadcast_strides(b.shape(), dims)]);
    loops.run(out, &|[a, b], out| {
        let a = Row::new(&first, a, loops.steps[0], out.len());
        let b = Row::new(&second, b, loops.steps[1], out.len());
        match (a, b) {
            (Row::Each(a), Row::Each(b)) => {
                out.iter_mut().zip(a).zip(b).for_each(|((out, a), b)| of(out, *a, *b));
            }
            (Row::Each(a), Row::All(b)) => out.iter_mut().zip(a).for_each(|(out, a)| of(out, *a, b)),
            (Row::All(a), Row::Each(b)) => out.iter_mut().zip(b).for_each(|(out, b)| of(out, a, *b)),
            (Row::All(a), Row::All(b)) => out.iter_mut().for_each(|out| of(out, a, b)),
        }
    });
}

/// The elements broadcast to sizes, in their memory if that has no other owner and they have these sizes.
pub(crate) fn broadcast_to<T: Element>(x: Values<T>, dims: &[usize]) -> Result<Vec<T>, ArrayError> {
    if x.shape() == dims {
        return Ok(owned(x));
    }
    let mut out = filled(dims, T::default())?;
    merge(&mut out, dims, &x, |out, x| *out = x);
    Ok(out)
}

/// A function of two elements of a type to one of the same type.
fn arithmetic<T: Element>(
    a: Values<T>, b: Values<T>, of: impl Fn(T, T) -> T + Sync,
) -> Result<Array, ArrayError> {
    let dims = broadcast(a.shape(), b.shape())?;
    let out = if a.shape() == dims || b.shape() != dims {
        let mut out = broadcast_to(a, &dims)?;
        merge(&mut out, &dims, &b, |out, b| *out = of(*out, b));
        out
    } else {
        let mut out = owned(b);
        merge(&mut out, &dims, &a, |out, a| *out = of(a, *out));
        out
    };
    build(out, &dims)
}

/// A function of two elements to one of another type.
fn relation<A: Element, B: Element, O: Element>(
    a: &Values<A>, b: &Values<B>, of: impl Fn(A, B) -> O + Sync,
) -> Result<Array, ArrayError> {
    let dims = broadcast(a.shape(), b.shape())?;
    let mut out = filled(&dims, O::default())?;
    merge_two(&mut out, &dims, a, b, |out, a, b| *out = of(a, b));
    build(out, &dims)
}

/// [`TensorOp::Where`](crate::graph::TensorOp::Where)
pub(super) fn choose([condition, a, b]: [Array; 3]) -> Result<Array, ArrayError> {
    fn of<T: Element>(condition: &Values<bool>, a: &Values<T>, b: Values<T>) -> Result<Array, ArrayError> {
        let dims = broadcast(&broadcast(condition.shape(), a.shape())?, b.shape())?;
        let mut out = broadcast_to(b, &dims)?;
        merge_two(&mut out, &dims, condition, a, |out, condition, a| {
            *out = if condition { a } else { *out };
        });
        build(out, &dims)
    }
    let condition = condition.as_bool()?;
    each!(b, b => of(condition, Element::of(&a)?, b))
}

/// [`TensorOp::ChannelAffine`](crate::graph::TensorOp::ChannelAffine)
pub(super) fn channel_affine([x, gain, shift]: [Array; 3]) -> Result<Array, ArrayError> {
    let dims = x.dims().to_vec();
    let &[_, channels, ..] = &dims[..] else {
        return Err(ArrayError::Rank { found: dims.len(), expected: "at least 2".into() });
    };
    let mut along = vec![1; dims.len() - 1];
    along[0] = channels;
    let channel = |values: &Array| match values.dims() {
        [size] if *size == channels => build(dense(values.as_f32()?).into_owned(), &along),
        found => Err(ArrayError::dims(found, format!("one for each of {channels} channels"))),
    };
    let (gain, shift) = (channel(&gain)?, channel(&shift)?);
    let Array::F32(x) = x else {
        return Err(ArrayError::Element { found: x.element(), expected: "F32" });
    };
    let mut out = owned(x);
    merge_two(&mut out, &dims, gain.as_f32()?, shift.as_f32()?, |out, gain, shift| {
        *out = gain * *out + shift;
    });
    build(out, &dims)
}

/// `exp(x)` to two units in the last place, which becomes vector code in loops, unlike that of the standard library.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// The last digit of sums with it is one.
    const WHOLE: f32 = 1.5 * (1 << 23) as f32;
    /// ln 2 as a sum, so that products of the first part with small integers are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// 1 / n!, from the highest.
    const SERIES: [f32; 6] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5];
    let power = |of: i32| f32::from_bits((of.wrapping_add(127) as u32) << 23);
    // From zero to infinity.
    let x = x.clamp(-104.0, 89.0);
    let whole = x * LOG2_E + WHOLE;
    let exponent = (whole.to_bits() as i32).wrapping_sub(WHOLE.to_bits() as i32);
    let whole = whole - WHOLE;
    let rest = x - whole * LN_2[0] - whole * LN_2[1];
    let series = SERIES.iter().fold(0.0, |sum, factor| sum * rest + factor);
    let half = exponent >> 1;
    (series * rest * rest + rest + 1.0) * power(half) * power(exponent.wrapping_sub(half))
}

/// `1 / (1 + exp(-x))`
#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)`: for small numbers a quotient of polynomials that has their digits.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let square = x * x;
    let above = 10395.0 + square * (1260.0 + square * 21.0);
    let below = 10395.0 + square * (4725.0 + square * (210.0 + square));
    let large = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.6 { x * above / below } else { large.copysign(x) }
}

/// A function of each element.
pub(super) fn unary(function: Unary, x: Array) -> Result<Array, ArrayError> {
    match x {
        Array::F32(x) => unary_f32(function, x),
        Array::I64(x) => match function {
            Unary::Abs => Ok(Array::I64(map(x, i64::wrapping_abs))),
            Unary::Neg => Ok(Array::I64(map(x, i64::wrapping_neg))),
            Unary::Sign => Ok(Array::I64(map(x, i64::signum))),
            Unary::Relu => Ok(Array::I64(map(x, |x| x.max(0)))),
            _ => Err(ArrayError::Element { found: ElementType::I64, expected: "F32" }),
        },
        Array::Bool(x) if function == Unary::Not => Ok(Array::Bool(map(x, |x| !x))),
        Array::Bool(_) => Err(ArrayError::Element { found: ElementType::Bool, expected: "F32" }),
    }
}

fn unary_f32(function: Unary, x: Values<f32>) -> Result<Array, ArrayError> {
    Ok(Array::F32(match function {
        Unary::Not => {
            return Err(ArrayError::Element { found: ElementType::F32, expected: "Bool" });
        }
        Unary::Abs => map(x, f32::abs),
        Unary::Neg => map(x, |x| -x),
        Unary::Sign => map(x, |x| {
            if x > 0.0 {
                1.0
            } else if x < 0.0 {
                -1.0
            } else {
                x
            }
        }),
        Unary::Floor => map(x, f32::floor),
        Unary::Ceil => map(x, f32::ceil),
        Unary::Round => map(x, f32::round_ties_even),
        Unary::Exp => map(x, exp),
        Unary::Log => map(x, f32::ln),
        Unary::Sqrt => map(x, f32::sqrt),
        Unary::Reciprocal => map(x, f32::recip),
        Unary::Sin => map(x, f32::sin),
        Unary::Cos => map(x, f32::cos),
        Unary::Erf => map(x, libm::erff),
        Unary::Tanh => map(x, tanh),
        Unary::Sigmoid => map(x, sigmoid),
        Unary::Relu => map(x, |x| if x < 0.0 { 0.0 } else { x }),
        Unary::Silu => map(x, |x| x * sigmoid(x)),
        Unary::Softplus => map(x, |x| x.max(0.0) + exp(-x.abs()).ln_1p()),
        Unary::HardSwish => map(x, |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0)),
        Unary::Gelu => map(x, |x| x / 2.0 * (1.0 + libm::erff(x * FRAC_1_SQRT_2))),
        // `(1 + tanh(x)) / 2` is `sigmoid(2 x)`.
        Unary::GeluTanh => map(x, |x| x * sigmoid((8.0 / PI).sqrt() * (x + 0.044715 * x * x * x))),
        Unary::HardSigmoid { alpha, beta } => map(x, |x| (alpha * x + beta).clamp(0.0, 1.0)),
        Unary::LeakyRelu { alpha } => map(x, |x| if x < 0.0 { alpha * x } else { x }),
        Unary::Elu { alpha } => map(x, |x| if x < 0.0 { alpha * x.exp_m1() } else { x }),
    }))
}

/// The larger one, or what is not a number.
pub(super) fn larger<T: PartialOrd + Copy>(a: T, b: T) -> T {
    if a > b || a.partial_cmp(&a).is_none() { a } else { b }
}

/// The smaller one, or what is not a number.
pub(super) fn smaller<T: PartialOrd + Copy>(a: T, b: T) -> T {
    if a < b || a.partial_cmp(&a).is_none() { a } else { b }
}

/// A function of two elements.
pub(super) fn binary(function: Binary, [a, b]: [Array; 2]) -> Result<Array, ArrayError> {
    match function {
        Binary::Equal => return compare(&a, &b, |a, b| a == b, |a, b| a == b, |a, b| a == b),
        Binary::Less => return compare(&a, &b, |a, b| a < b, |a, b| a < b, |a, b| !a & b),
        Binary::LessOrEqual => return compare(&a, &b, |a, b| a <= b, |a, b| a <= b, |a, b| !a | b),
        Binary::Greater => return compare(&a, &b, |a, b| a > b, |a, b| a > b, |a, b| a & !b),
        Binary::GreaterOrEqual => return compare(&a, &b, |a, b| a >= b, |a, b| a >= b, |a, b| a | !b),
        Binary::Prelu if broadcast(a.dims(), b.dims())? != a.dims() => {
            return Err(ArrayError::Broadcast { found: a.dims().to_vec(), other: b.dims().to_vec() });
        }
        _ => {}
    }
    match (a, b) {
        (Array::F32(a), Array::F32(b)) => binary_f32(function, a, b),
        (Array::I64(a), Array::I64(b)) => binary_i64(function, a, b),
        (Array::F32(a), Array::I64(b)) if function == Binary::Pow => {
            relation(&a, &b, |a, b| i32::try_from(b).map_or_else(|_| a.powf(b as f32), |b| a.powi(b)))
        }
        (Array::I64(a), Array::F32(b)) if function == Binary::Pow => {
            relation(&a, &b, |a, b| (a as f64).powf(f64::from(b)) as i64)
        }
        (Array::Bool(a), Array::Bool(b)) => match function {
            Binary::And => arithmetic(a, b, |a, b| a & b),
            Binary::Or => arithmetic(a, b, |a, b| a | b),
            Binary::Xor => arithmetic(a, b, |a, b| a ^ b),
            _ => Err(ArrayError::Element { found: ElementType::Bool, expected: "F32 or I64" }),
        },
        (_, b) => Err(ArrayError::Element { found: b.element(), expected: "that of the first input" }),
    }
}

fn compare(
    a: &Array, b: &Array, floats: impl Fn(f32, f32) -> bool + Sync,
    integers: impl Fn(i64, i64) -> bool + Sync, booleans: impl Fn(bool, bool) -> bool + Sync,
) -> Result<Array, ArrayError> {
    match a {
        Array::F32(a) => relation(a, b.as_f32()?, floats),
        Array::I64(a) => relation(a, b.as_i64()?, integers),
        Array::Bool(a) => relation(a, b.as_bool()?, booleans),
    }
}

fn binary_f32(function: Binary, a: Values<f32>, b: Values<f32>) -> Result<Array, ArrayError> {
    match function {
        Binary::Add => arithmetic(a, b, |a, b| a + b),
        Binary::Sub => arithmetic(a, b, |a, b| a - b),
        Binary::Mul => arithmetic(a, b, |a, b| a * b),
        Binary::Div => arithmetic(a, b, |a, b| a / b),
        Binary::Pow if b.len() == 1 && b.first() == Some(&2.0) => arithmetic(a, b, |a, _| a * a),
        Binary::Pow => arithmetic(a, b, f32::powf),
        Binary::Min => arithmetic(a, b, smaller),
        Binary::Max => arithmetic(a, b, larger),
        Binary::Mod => arithmetic(a, b, |a, b| {
            let rest = a % b;
            if rest == 0.0 {
                0f32.copysign(b)
            } else if (rest < 0.0) == (b < 0.0) {
                rest
            } else {
                rest + b
            }
        }),
        Binary::Fmod => arithmetic(a, b, |a, b| a % b),
        Binary::Prelu => arithmetic(a, b, |a, b| if a < 0.0 { a * b } else { a }),
        _ => Err(ArrayError::Element { found: ElementType::F32, expected: "Bool" }),
    }
}

fn binary_i64(function: Binary, a: Values<i64>, b: Values<i64>) -> Result<Array, ArrayError> {
    let division = matches!(function, Binary::Div | Binary::Mod | Binary::Fmod);
    if division && b.iter().any(|&b| b == 0) {
        return Err(ArrayError::value("a divisor", 0, "another number"));
    }
    match function {
        Binary::Add => arithmetic(a, b, i64::wrapping_add),
        Binary::Sub => arithmetic(a, b, i64::wrapping_sub),
        Binary::Mul => arithmetic(a, b, i64::wrapping_mul),
        Binary::Div => arithmetic(a, b, i64::wrapping_div),
        Binary::Pow => match b.iter().find(|b| **b < 0) {
            Some(b) => Err(ArrayError::value("an exponent of integers", b, "0 or more")),
            None => arithmetic(a, b, power),
        },
        Binary::Min => arithmetic(a, b, smaller),
        Binary::Max => arithmetic(a, b, larger),
        Binary::Mod => arithmetic(a, b, |a, b| {
            let rest = a.wrapping_rem(b);
            if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
        }),
        Binary::Fmod => arithmetic(a, b, i64::wrapping_rem),
        Binary::Prelu => arithmetic(a, b, |a, b| if a < 0 { a.wrapping_mul(b) } else { a }),
        _ => Err(ArrayError::Element { found: ElementType::I64, expected: "Bool" }),
    }
}

/// `base^exponent`, wrapped, for exponents from 0 on.
fn power(mut base: i64, mut exponent: i64) -> i64 {
    let mut product = 1i64;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product = product.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    product
}

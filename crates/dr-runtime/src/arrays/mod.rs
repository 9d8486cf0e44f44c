//! [`Array`]: an array of any rank in memory, and the operations on such arrays.

pub(crate) mod elementwise;
mod error;
pub(crate) mod layout;
pub(crate) mod loops;
pub(crate) mod matmul;
pub(crate) mod reduce;
pub(crate) mod resize;
#[cfg(test)]
mod tests;
pub(crate) mod windows;

pub use error::ArrayError;

use crate::graph::{ElementType, TensorOp};
use half::{bf16, f16};
use ndarray::{ArcArray, IxDyn};
use std::borrow::Cow;

/// The most elements that an array can have; few where files are made up, so that what they ask for is soon done.
pub(crate) const MOST: usize = if cfg!(fuzzing) { 1 << 16 } else { 1 << 28 };

/// An array of any rank, row-major or a view of one. A clone shares the elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Floats.
    F32(ArcArray<f32, IxDyn>),
    /// Integers.
    I64(ArcArray<i64, IxDyn>),
    /// Booleans.
    Bool(ArcArray<bool, IxDyn>),
}

/// The same expression for elements of each type.
macro_rules! each {
    ($array:expr, $x:ident => $of:expr) => {
        match $array {
            $crate::arrays::Array::F32($x) => $of,
            $crate::arrays::Array::I64($x) => $of,
            $crate::arrays::Array::Bool($x) => $of,
        }
    };
}
use each;

/// Elements of an [`Array`].
pub(crate) trait Element: Copy + Default + PartialOrd + Send + Sync + 'static {
    /// As an array.
    fn array(values: ArcArray<Self, IxDyn>) -> Array;
    /// What an array must be.
    fn of(array: &Array) -> Result<&ArcArray<Self, IxDyn>, ArrayError>;
}

macro_rules! element {
    ($type:ty, $variant:ident, $expected:literal) => {
        impl Element for $type {
            fn array(values: ArcArray<Self, IxDyn>) -> Array {
                Array::$variant(values)
            }

            fn of(array: &Array) -> Result<&ArcArray<Self, IxDyn>, ArrayError> {
                match array {
                    Array::$variant(values) => Ok(values),
                    _ => Err(ArrayError::Element { found: array.element(), expected: $expected }),
                }
            }
        }
    };
}
element!(f32, F32, "F32");
element!(i64, I64, "I64");
element!(bool, Bool, "Bool");

impl Array {
    /// Floats of these sizes.
    ///
    /// # Errors
    ///
    /// Fails if there are more or fewer than the sizes say.
    pub fn from_f32(values: Vec<f32>, dims: &[usize]) -> Result<Self, ArrayError> {
        build(values, dims)
    }

    /// Integers of these sizes.
    ///
    /// # Errors
    ///
    /// Fails if there are more or fewer than the sizes say.
    pub fn from_i64(values: Vec<i64>, dims: &[usize]) -> Result<Self, ArrayError> {
        build(values, dims)
    }

    /// Booleans of these sizes.
    ///
    /// # Errors
    ///
    /// Fails if there are more or fewer than the sizes say.
    pub fn from_bool(values: Vec<bool>, dims: &[usize]) -> Result<Self, ArrayError> {
        build(values, dims)
    }

    /// One float.
    #[must_use]
    pub fn scalar(value: f32) -> Self {
        Self::F32(ArcArray::from_elem(IxDyn(&[]), value))
    }

    /// A list of floats.
    #[must_use]
    pub fn vector(values: Vec<f32>) -> Self {
        Self::F32(ArcArray::from_vec(values).into_dyn())
    }

    /// One integer.
    #[must_use]
    pub fn integer(value: i64) -> Self {
        Self::I64(ArcArray::from_elem(IxDyn(&[]), value))
    }

    /// A list of integers.
    #[must_use]
    pub fn integers(values: &[i64]) -> Self {
        Self::I64(ArcArray::from_vec(values.to_vec()).into_dyn())
    }

    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        each!(self, x => x.len())
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sizes of its axes.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        each!(self, x => x.shape())
    }

    /// The type of its elements: `F32`, `I64` or `Bool`.
    #[must_use]
    pub fn element(&self) -> ElementType {
        match self {
            Self::F32(_) => ElementType::F32,
            Self::I64(_) => ElementType::I64,
            Self::Bool(_) => ElementType::Bool,
        }
    }

    /// Its floats.
    ///
    /// # Errors
    ///
    /// Fails if its elements are others.
    pub fn as_f32(&self) -> Result<&ArcArray<f32, IxDyn>, ArrayError> {
        Element::of(self)
    }

    /// Its integers.
    ///
    /// # Errors
    ///
    /// Fails if its elements are others.
    pub fn as_i64(&self) -> Result<&ArcArray<i64, IxDyn>, ArrayError> {
        Element::of(self)
    }

    /// The same elements, row-major in memory.
    #[must_use]
    pub fn contiguous(self) -> Self {
        fn laid<T: Element>(x: ArcArray<T, IxDyn>) -> Array {
            T::array(if x.is_standard_layout() { x } else { x.as_standard_layout().into_shared() })
        }
        each!(self, x => laid(x))
    }

    /// Its floats, row-major.
    ///
    /// # Errors
    ///
    /// Fails if its elements are others.
    pub fn floats(&self) -> Result<Cow<'_, [f32]>, ArrayError> {
        Ok(in_order(self.as_f32()?))
    }

    /// Its integers, row-major.
    ///
    /// # Errors
    ///
    /// Fails if its elements are others.
    pub fn to_integers(&self) -> Result<Cow<'_, [i64]>, ArrayError> {
        Ok(in_order(self.as_i64()?))
    }

    /// Its booleans.
    ///
    /// # Errors
    ///
    /// Fails if its elements are others.
    pub fn as_bool(&self) -> Result<&ArcArray<bool, IxDyn>, ArrayError> {
        Element::of(self)
    }

    /// Its elements as others: floats to integers are truncated, integers wrapped to the width of the type, and floats rounded to it
    /// (those of 64 bits stay as they are).
    ///
    /// # Errors
    ///
    /// Fails if there is no memory for them.
    pub fn cast(self, to: ElementType) -> Result<Self, ArrayError> {
        use ElementType::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        use elementwise::{convert, map};
        let wrap: Option<fn(i64) -> i64> = match to {
            I8 => Some(|x| i64::from(x as i8)),
            I16 => Some(|x| i64::from(x as i16)),
            I32 => Some(|x| i64::from(x as i32)),
            U8 => Some(|x| i64::from(x as u8)),
            U16 => Some(|x| i64::from(x as u16)),
            U32 => Some(|x| i64::from(x as u32)),
            _ => None,
        };
        let other = match (self, to) {
            (x @ Self::F32(_), F16 | Bf16 | F32 | F64) | (x @ Self::Bool(_), Bool) => x,
            (Self::I64(x), F16 | Bf16 | F32 | F64) => convert(&x, |x| x as f32)?,
            (Self::Bool(x), F16 | Bf16 | F32 | F64) => convert(&x, f32::from)?,
            (Self::F32(x), Bool) => convert(&x, |x| x != 0.0)?,
            (Self::I64(x), Bool) => convert(&x, |x| x != 0)?,
            (Self::F32(x), U64) => convert(&x, |x| if x < 0.0 { x as i64 } else { x as u64 as i64 })?,
            (Self::F32(x), _) => convert(&x, |x| x as i64)?,
            (x @ Self::I64(_), I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64) => x,
            (Self::Bool(x), _) => convert(&x, i64::from)?,
        };
        Ok(match (other, wrap) {
            (Self::I64(x), Some(wrap)) => Self::I64(map(x, wrap)),
            (Self::F32(x), None) if to == F16 => Self::F32(map(x, |x| f16::from_f32(x).to_f32())),
            (Self::F32(x), None) if to == Bf16 => Self::F32(map(x, |x| bf16::from_f32(x).to_f32())),
            (x, _) => x,
        })
    }
}

/// Elements row by row.
fn in_order<T: Element>(x: &ArcArray<T, IxDyn>) -> Cow<'_, [T]> {
    x.as_slice().map_or_else(|| x.iter().copied().collect::<Vec<_>>().into(), Cow::Borrowed)
}

/// What an operation makes of arrays, in the memory of one of them if that has no other owner.
///
/// # Errors
///
/// Fails if they are not what it takes, if the result is too large, and if the operation is one of those that only a network has an
/// answer to: inputs, constants, and the changes between arrays, images and rows.
pub fn evaluate(op: &TensorOp, mut inputs: Vec<Array>) -> Result<Array, ArrayError> {
    if let Some((x, others)) = inputs.split_first()
        && let Some(moves) = layout::moves(op, x.dims(), others)?
    {
        let x = inputs.swap_remove(0);
        return moves.into_iter().try_fold(x, |x, step| step.of(x));
    }
    match op {
        TensorOp::Input(_) | TensorOp::Constant(_) | TensorOp::Array | TensorOp::Images { .. } => {
            Err(ArrayError::Operation)
        }
        TensorOp::Rows { .. } => Err(ArrayError::Operation),
        TensorOp::Cast(to) => one(inputs)?.cast(*to),
        TensorOp::Unary(function) => elementwise::unary(*function, one(inputs)?),
        TensorOp::Binary(function) => elementwise::binary(*function, exactly(inputs)?),
        TensorOp::Where => elementwise::choose(exactly(inputs)?),
        TensorOp::MatMul => matmul::matmul(exactly(inputs)?),
        TensorOp::Reduce { reduction, keep, empty_is_none } => {
            let ([x], [axes]) = optional(inputs)?;
            let gone = reduce::reduced(x.dims().len(), axes.as_ref(), *empty_is_none)?;
            reduce::reduce(*reduction, x, &gone, *keep)
        }
        TensorOp::GlobalPool(reduction) => {
            let x = one(inputs)?;
            let gone = reduce::reduced_globally(x.dims().len())?;
            reduce::reduce(*reduction, x, &gone, true)
        }
        TensorOp::ArgMax { axis, keep, last, smallest } => {
            reduce::arg_max(&one(inputs)?, *axis, *keep, *last, *smallest)
        }
        TensorOp::Softmax { axis, log } => reduce::softmax(one(inputs)?, *axis, *log),
        TensorOp::Normalize { axis, epsilon } => reduce::normalize(one(inputs)?, *axis, *epsilon),
        TensorOp::ChannelAffine => elementwise::channel_affine(exactly(inputs)?),
        TensorOp::Lrn { alpha, beta, bias, size } => reduce::lrn(&one(inputs)?, *alpha, *beta, *bias, *size),
        TensorOp::Concat { axis } => layout::concat(&inputs, *axis),
        TensorOp::Shape { start, end } => Ok(layout::shape(one(inputs)?.dims(), *start, *end)),
        TensorOp::Range => layout::range(&exactly(inputs)?),
        TensorOp::Conv(window) => {
            let ([x, weight], [bias]) = optional(inputs)?;
            windows::conv(&x, &weight, bias.as_ref(), window)
        }
        TensorOp::ConvTranspose { window, output_padding, output_shape } => {
            let ([x, weight], [bias]) = optional(inputs)?;
            windows::conv_transpose(&x, &weight, bias.as_ref(), window, output_padding, output_shape)
        }
        TensorOp::Pool { kind, window, ceil } => windows::pool(&one(inputs)?, *kind, window, *ceil),
        TensorOp::Resize(resize) => {
            let ([x, by], [region]) = optional(inputs)?;
            resize::interpolated(&x, &by, region.as_ref(), resize)
        }
        TensorOp::Transpose(_)
        | TensorOp::Reshape { .. }
        | TensorOp::Flatten { .. }
        | TensorOp::Squeeze
        | TensorOp::Unsqueeze
        | TensorOp::Expand
        | TensorOp::Slice
        | TensorOp::Part { .. }
        | TensorOp::Gather { .. }
        | TensorOp::Pad(_)
        | TensorOp::Tile
        | TensorOp::DepthToSpace { .. } => {
            // Not as many as it takes; else its steps are known.
            let takes = op.takes();
            let expected = format!("{} to {}", takes.start(), takes.end());
            Err(ArrayError::Inputs { found: inputs.len(), expected })
        }
    }
}

/// The only input.
fn one(inputs: Vec<Array>) -> Result<Array, ArrayError> {
    exactly(inputs).map(|[x]| x)
}

/// So many inputs.
fn exactly<const N: usize>(inputs: Vec<Array>) -> Result<[Array; N], ArrayError> {
    let wrong = |inputs: Vec<Array>| ArrayError::Inputs { found: inputs.len(), expected: N.to_string() };
    inputs.try_into().map_err(wrong)
}

/// So many inputs, and one more if there is one.
fn optional<const N: usize>(mut inputs: Vec<Array>) -> Result<([Array; N], [Option<Array>; 1]), ArrayError> {
    let found = inputs.len();
    let more = if found == N + 1 { inputs.pop() } else { None };
    let wrong = |_| ArrayError::Inputs { found, expected: format!("{N} or {}", N + 1) };
    Ok((inputs.try_into().map_err(wrong)?, [more]))
}

/// Elements of these sizes.
fn build<T: Element>(values: Vec<T>, dims: &[usize]) -> Result<Array, ArrayError> {
    let found = values.len();
    if volume(dims)? != found {
        return Err(ArrayError::dims(dims, format!("those of {found} elements")));
    }
    let array = ArcArray::from_shape_vec(IxDyn(dims), values);
    array.map(T::array).map_err(|_| ArrayError::dims(dims, format!("those of {found} elements")))
}

/// How many elements there are. Sizes whose product is too large are an error even next to a size of 0.
pub(crate) fn volume(dims: &[usize]) -> Result<usize, ArrayError> {
    match dims.iter().try_fold(1usize, |volume, size| volume.checked_mul(*size.max(&1))) {
        Some(volume) if volume <= MOST => Ok(if dims.contains(&0) { 0 } else { volume }),
        _ => Err(ArrayError::Size { found: format!("{dims:?}"), expected: MOST }),
    }
}

/// As many values as sizes say.
fn filled<T: Clone>(dims: &[usize], value: T) -> Result<Vec<T>, ArrayError> {
    let len = volume(dims)?;
    let mut values = Vec::new();
    let full = |_| ArrayError::Size { found: format!("{dims:?}"), expected: MOST };
    values.try_reserve_exact(len).map_err(full)?;
    values.resize(len, value);
    Ok(values)
}

/// The elements, row-major.
fn dense<T: Clone>(x: &ArcArray<T, IxDyn>) -> Cow<'_, [T]> {
    x.as_slice().map_or_else(|| Cow::Owned(x.iter().cloned().collect()), Cow::Borrowed)
}

/// The elements, row-major: the memory of an array that has no other owner, or a copy.
fn owned<T: Clone>(x: ArcArray<T, IxDyn>) -> Vec<T> {
    let len = x.len();
    match x.try_into_owned_nocopy() {
        Ok(x) if x.is_standard_layout() => match x.into_raw_vec_and_offset() {
            (values, None | Some(0)) if values.len() == len => values,
            (values, first) => values[first.unwrap_or(0)..][..len].to_vec(),
        },
        Ok(x) => x.iter().cloned().collect(),
        Err(x) => dense(&x).into_owned(),
    }
}

/// An axis that may be counted from the last one.
pub(crate) fn axis(found: i64, rank: usize) -> Result<usize, ArrayError> {
    let from = if found < 0 { rank } else { 0 };
    let at = usize::try_from(from as i128 + i128::from(found)).ok().filter(|at| *at < rank);
    at.ok_or(ArrayError::Axis { found, rank })
}

/// Axes by number, each at most once: whether each of them is among them.
fn axes(found: &[i64], rank: usize) -> Result<Vec<bool>, ArrayError> {
    let mut among = vec![false; rank];
    for &found in found {
        if std::mem::replace(&mut among[axis(found, rank)?], true) {
            return Err(ArrayError::Axis { found, rank });
        }
    }
    Ok(among)
}

/// A list of integers.
fn list<'a>(name: &'static str, x: &'a Array) -> Result<Cow<'a, [i64]>, ArrayError> {
    match x.dims().len() {
        0 | 1 => x.as_i64().map(dense),
        found => Err(ArrayError::Rank { found, expected: format!("1, {name}") }),
    }
}

/// A size, which is neither negative nor too large.
fn size(name: &'static str, found: i64) -> Result<usize, ArrayError> {
    let most = format!("0 to {MOST}");
    usize::try_from(found).ok().filter(|size| *size <= MOST).ok_or(ArrayError::value(name, found, most))
}

/// The only element.
pub(crate) fn scalar<T: Element>(name: &'static str, x: &Array) -> Result<T, ArrayError> {
    let values = T::of(x)?;
    let wrong = || ArrayError::dims(x.dims(), format!("one element, {name}"));
    if values.len() == 1 { values.first().copied().ok_or_else(wrong) } else { Err(wrong()) }
}

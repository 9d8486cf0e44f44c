//! [`evaluate`]: operations on arrays where some of them are on a device.

use super::floats::Floats;
use super::{Value, functions, windows, wrong};
use crate::RuntimeError;
use crate::arrays::layout::{moves, shape};
use crate::arrays::reduce::{reduced, reduced_globally};
use crate::arrays::{self, Array, ArrayError};
use crate::graph::{Binary, ElementType, Interpolation, TensorOp};
use burn::tensor::{Device, FloatDType};

/// What an operation on arrays makes of values. Where one of them is on a device, results that are floats are computed there, with
/// gradients if the device tracks them; arrays in this computer's memory are constants. Functions of each element leave images images, and
/// rows rows.
///
/// # Errors
/// Inputs that the operation does not take, and [`RuntimeError::Gradient`] for one that has no gradient but would need it.
pub fn evaluate(op: &TensorOp, inputs: Vec<Value>) -> Result<Value, RuntimeError> {
    let layered = inputs.iter().find(|value| matches!(value, Value::Images(_) | Value::Rows(_)));
    let (images, rows) = (matches!(layered, Some(Value::Images(_))), matches!(layered, Some(Value::Rows(_))));
    let inputs = inputs.into_iter().map(Value::into_arrays).collect::<Result<Vec<_>, _>>()?;
    let floats = |value| floats(value, &Device::flex());
    Ok(match op {
        TensorOp::Array => only(inputs)?,
        TensorOp::Images { .. } => floats(only(inputs)?)?.tensor::<4>()?.into(),
        TensorOp::Rows { .. } => Value::Rows(floats(only(inputs)?)?.tensor()?),
        op if images => floats(on_arrays(op, inputs)?)?.tensor::<4>()?.into(),
        op if rows => Value::Rows(floats(on_arrays(op, inputs)?)?.tensor()?),
        op => on_arrays(op, inputs)?,
    })
}

/// The only input.
fn only(inputs: Vec<Value>) -> Result<Value, ArrayError> {
    let wrong = |inputs: Vec<Value>| ArrayError::Inputs { found: inputs.len(), expected: "1".into() };
    inputs.try_into().map(|[value]: [Value; 1]| value).map_err(wrong)
}

/// An array of floats on a device.
fn floats(value: Value, device: &Device) -> Result<Floats, RuntimeError> {
    match value {
        Value::Floats(x) => Ok(x),
        Value::Array(array) => Ok(Floats::new(&array, device)?),
        other => Err(wrong(other.name(), "an array")),
    }
}

/// The same of arrays only.
fn on_arrays(op: &TensorOp, inputs: Vec<Value>) -> Result<Value, RuntimeError> {
    let on_device = inputs.iter().find_map(|value| match value {
        Value::Floats(x) => Some(x.device()),
        _ => None,
    });
    let device = match on_device {
        Some(device) if op.gives_floats() => device,
        _ => return on_host(op, &inputs),
    };
    // Convolutions of tensors are over up to three axes.
    let is_large = |value: &Value| matches!(value, Value::Floats(x) if x.dims().len() > 5);
    let beyond =
        matches!(op, TensorOp::Conv(_) | TensorOp::ConvTranspose { .. }) && inputs.iter().any(is_large);
    let constants = if beyond { 0..inputs.len() } else { op.constants() };
    let is_tracked = |(at, value): (usize, &Value)| {
        constants.contains(&at) && matches!(value, Value::Floats(x) if x.is_tracked())
    };
    if inputs.iter().enumerate().any(is_tracked) {
        return Err(RuntimeError::Gradient(format!("{op:?}")));
    }
    // Without elements nothing has a gradient, but for what stands beside it.
    let is_empty = |value: &Value| match value {
        Value::Floats(x) => x.is_empty(),
        Value::Array(x) => x.is_empty(),
        _ => false,
    };
    let empty = match op {
        TensorOp::Concat { .. } => inputs.iter().all(is_empty),
        op => inputs.iter().enumerate().any(|(at, value)| !op.constants().contains(&at) && is_empty(value)),
    };
    if beyond || empty {
        return on_host(op, &inputs);
    }
    let (found, takes) = (inputs.len(), op.takes());
    if !takes.contains(&found) {
        let expected = format!("{} to {}", takes.start(), takes.end());
        return Err(ArrayError::Inputs { found, expected }.into());
    }
    let mut given = Given { values: inputs.into_iter(), device };
    let y = match *op {
        TensorOp::Cast(to) => {
            let x = given.floats()?;
            match to {
                ElementType::F16 => x.map(|x| x.cast(FloatDType::F16).cast(FloatDType::F32)),
                ElementType::Bf16 => x.map(|x| x.cast(FloatDType::BF16).cast(FloatDType::F32)),
                _ => x,
            }
        }
        TensorOp::Unary(function) => functions::unary(function, given.floats()?)?,
        TensorOp::Binary(Binary::Pow) => functions::power(given.floats()?, given.value()?)?,
        TensorOp::Binary(function) => functions::binary(function, given.floats()?, given.floats()?)?,
        TensorOp::Where => functions::choose(&given.array()?, given.floats()?, given.floats()?)?,
        TensorOp::MatMul => functions::matmul(given.floats()?, given.floats()?)?,
        TensorOp::Reduce { reduction, keep, empty_is_none } => {
            let x = given.floats()?;
            let gone = reduced(x.dims().len(), given.array_if_any()?.as_ref(), empty_is_none)?;
            functions::reduce(reduction, x, &gone, keep)
        }
        TensorOp::GlobalPool(reduction) => {
            let x = given.floats()?;
            let gone = reduced_globally(x.dims().len())?;
            functions::reduce(reduction, x, &gone, true)
        }
        TensorOp::Softmax { axis, log } => functions::softmax(given.floats()?, axis, log)?,
        TensorOp::Normalize { axis, epsilon } => functions::normalize(given.floats()?, axis, epsilon)?,
        TensorOp::ChannelAffine => {
            functions::channel_affine(given.floats()?, given.floats()?, given.floats()?)?
        }
        TensorOp::Lrn { alpha, beta, bias, size } => {
            functions::lrn(given.floats()?, alpha, beta, bias, size)?
        }
        TensorOp::Concat { axis } => {
            functions::concat((0..found).map(|_| given.floats()).collect::<Result<_, _>>()?, axis)?
        }
        TensorOp::Conv(ref window) => {
            windows::conv(given.floats()?, given.floats()?, given.floats_if_any()?, window)?
        }
        TensorOp::ConvTranspose { ref window, ref output_padding, ref output_shape } => {
            let (x, weight, bias) = (given.floats()?, given.floats()?, given.floats_if_any()?);
            windows::conv_transpose(x, weight, bias, window, output_padding, output_shape)?
        }
        TensorOp::Pool { kind, ref window, ceil } => windows::pool(given.floats()?, kind, window, ceil)?,
        TensorOp::Resize(ref resize) if !matches!(resize.mode, Interpolation::Nearest(_)) => {
            let (x, by) = (given.floats()?, given.array()?);
            windows::interpolated(x, &by, given.array_if_any()?.as_ref(), resize)?
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
        | TensorOp::DepthToSpace { .. }
        | TensorOp::Resize(_) => {
            let x = given.floats()?;
            let others = (1..found).map(|_| given.array()).collect::<Result<Vec<_>, _>>()?;
            let steps = moves(op, x.dims(), &others)?.unwrap_or_default();
            steps.into_iter().try_fold(x, Floats::moved)?
        }
        TensorOp::Input(_)
        | TensorOp::Constant(_)
        | TensorOp::Array
        | TensorOp::Images { .. }
        | TensorOp::Rows { .. }
        | TensorOp::ArgMax { .. }
        | TensorOp::Shape { .. }
        | TensorOp::Range => return on_host(op, &given.values.collect::<Vec<_>>()),
    };
    Ok(Value::Floats(y))
}

/// What an operation is given, in order.
struct Given {
    values: std::vec::IntoIter<Value>,
    device: Device,
}

impl Given {
    fn value(&mut self) -> Result<Value, RuntimeError> {
        let missing = || ArrayError::Inputs { found: 0, expected: "one more".into() };
        Ok(self.values.next().ok_or_else(missing)?)
    }

    /// Floats on the device.
    fn floats(&mut self) -> Result<Floats, RuntimeError> {
        floats(self.value()?, &self.device)
    }

    fn floats_if_any(&mut self) -> Result<Option<Floats>, RuntimeError> {
        self.values.next().map(|value| floats(value, &self.device)).transpose()
    }

    /// An array of which the numbers count.
    fn array(&mut self) -> Result<Array, RuntimeError> {
        self.value()?.to_array()
    }

    fn array_if_any(&mut self) -> Result<Option<Array>, RuntimeError> {
        self.values.next().map(|value| value.to_array()).transpose()
    }
}

/// What the operation makes of the values in this computer's memory.
fn on_host(op: &TensorOp, inputs: &[Value]) -> Result<Value, RuntimeError> {
    if let (TensorOp::Shape { start, end }, [Value::Floats(x)]) = (op, inputs) {
        return Ok(shape(x.dims(), *start, *end).into());
    }
    let inputs = inputs.iter().map(Value::to_array).collect::<Result<_, _>>()?;
    Ok(arrays::evaluate(op, inputs)?.into())
}

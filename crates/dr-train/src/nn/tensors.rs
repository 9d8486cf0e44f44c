//! [`Tensors`]: networks on Burn tensors, in floats or fake-quantized, with gradients where the device tracks them.

use super::executor::{Executor, Table};
use super::{Pass, PrecisionNorm, QuantConv2d, QuantLinear};
use crate::data::Input;
use burn::nn::RmsNorm;
use burn::tensor::activation::{relu, silu};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor, TensorData};
use dr_runtime::arrays::{Array, evaluate};
use dr_runtime::graph::{Activation, Op, TensorOp};
pub use dr_runtime::tensors::{TensorCache, Value};
use dr_runtime::tensors::{Text, enlarge};

/// The images.
///
/// # Panics
/// If it is something else.
fn images(value: Value) -> Tensor<4> {
    match value {
        Value::Images(images) => images,
        other => panic!("{}: expected images", other.name()),
    }
}

/// The rows.
///
/// # Panics
/// If it is something else.
pub(super) fn rows(value: Value) -> Tensor<2> {
    match value {
        Value::Rows(rows) => rows,
        other => panic!("{}: expected rows", other.name()),
    }
}

/// Does the same with the tensor, whichever it is, or something with an array.
macro_rules! with_tensor {
    ($value:expr, $tensor:ident => $result:expr, $array:ident => $other:expr) => {
        match $value {
            Value::Images($tensor) => $result,
            Value::Rows($tensor) => $result,
            Value::Tokens($tensor) => $result,
            Value::Array($array) => $other,
        }
    };
}

/// What a network takes, whichever it is.
impl Input for Value {
    fn items(&self) -> usize {
        with_tensor!(self, x => x.dims()[0], array => array.dims().first().copied().unwrap_or(1))
    }

    fn split(self, items: usize) -> Vec<Self> {
        with_tensor!(
            self,
            x => x.split(items, 0).into_iter().map(Self::from).collect(),
            array => array.split(items).into_iter().map(Self::from).collect()
        )
    }

    fn inner(self) -> Self {
        with_tensor!(self, x => x.inner().into(), array => array.into())
    }

    fn autodiff(self) -> Self {
        with_tensor!(self, x => x.autodiff().into(), array => array.into())
    }

    fn device(&self) -> Device {
        with_tensor!(self, x => x.device(), _array => Device::flex())
    }
}

/// Computes a [`Pass`] on tensors.
#[derive(Debug)]
pub struct Tensors<'a> {
    pass: &'a Pass<'a>,
    text: Option<Text>,
    cache: Option<&'a mut TensorCache>,
}

impl<'a> Tensors<'a> {
    /// For a pass over whole inputs.
    #[must_use]
    pub const fn new(pass: &'a Pass<'a>) -> Self {
        Self { pass, text: None, cache: None }
    }

    /// For a pass over the tokens that follow those of `cache` in one text.
    #[must_use]
    pub const fn reading(pass: &'a Pass<'a>, cache: &'a mut TensorCache) -> Self {
        Self { pass, text: None, cache: Some(cache) }
    }
}

impl Executor for Tensors<'_> {
    type Value = Value;

    fn conv2d(&mut self, x: Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Value {
        let x = images(x);
        Value::Images(match norm {
            Some(norm) => norm.forward(layer.forward(x, self.pass), self.pass, layer.weight_id()),
            None => layer.forward(x, self.pass),
        })
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        let Value::Array(array) = x else { return Value::Rows(layer.forward(rows(x), self.pass)) };
        // Of each run of its last axis.
        let mut dims = array.dims().to_vec();
        let [inputs, outputs] = layer.features();
        let x = Tensor::<1>::from_data(TensorData::from(&*expect(array.floats())), &Device::flex());
        let y = layer.forward(x.reshape([-1, inputs as i32]), self.pass);
        dims.pop();
        dims.push(outputs);
        let y = expect(
            Value::Rows(y).to_array().map(|y| y.floats().map(|y| Array::from_f32(y.into_owned(), &dims))),
        );
        Value::Array(expect(expect(y)))
    }

    fn constant(&mut self, array: &Array) -> Value {
        Value::Array(array.clone())
    }

    fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Value {
        let x = rows(x);
        let ([n, all], [features]) = (x.dims(), norm.gamma.lazy_shape().dims::<1>());
        Value::Rows(match all == features {
            true => norm.forward(x),
            false => norm.forward(x.reshape([n * all / features, features])).reshape([n, all]),
        })
    }

    fn embedding(&mut self, tokens: Value, table: Table<'_>) -> Value {
        let Value::Tokens(tokens) = tokens else { panic!("{}: expected tokens", tokens.name()) };
        let [batch, positions] = tokens.dims();
        let start = self.cache.as_ref().map_or(0, |cache| cache.positions());
        self.text = Some(Text::new(batch, positions, start));
        let table = match table {
            Table::Own(embedding) => embedding.weight.val(),
            Table::Layer(layer) => layer.weight(),
        };
        Value::Rows(table.select(0, tokens.reshape([batch * positions])))
    }

    fn op(&mut self, op: Op, inputs: Vec<Value>) -> Value {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().unwrap_or_else(|| panic!("{op:?}: too few inputs"));
        match op {
            Op::Activation(activation) => match next() {
                Value::Images(x) => Value::Images(activate(x, activation)),
                x => Value::Rows(activate(rows(x), activation)),
            },
            Op::Add => match (next(), next()) {
                (Value::Images(a), Value::Images(b)) => Value::Images(a + b),
                (a, b) => Value::Rows(rows(a) + rows(b)),
            },
            Op::Multiply => match (next(), next()) {
                (Value::Images(a), Value::Images(b)) => Value::Images(a * b),
                // Each pixel with the row of its image.
                (Value::Images(images), Value::Rows(rows)) => {
                    let [n, features] = rows.dims();
                    Value::Images(images * rows.reshape([n, features, 1, 1]))
                }
                (a, b) => Value::Rows(rows(a) * rows(b)),
            },
            Op::MaxPool { kernel, stride, padding } => {
                let options = MaxPoolOptions::new(kernel).with_stride(stride).with_padding(padding);
                Value::Images(max_pool2d(images(next()), options))
            }
            Op::Mean => {
                let x = images(next());
                Value::Rows(x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2))
            }
            Op::Enlarge => {
                let (x, like) = (images(next()), images(next()));
                let [.., height, width] = like.dims();
                Value::Images(enlarge(x, [height, width], 2))
            }
            Op::Attention(ref of) => {
                let inputs = [next(), next(), next()].map(rows);
                let text = self.text.as_mut().expect("a network with attention embeds its tokens first");
                Value::Rows(text.attention(inputs, of, self.cache.as_deref_mut()))
            }
            Op::Concat => Value::Images(Tensor::cat(inputs.map(images).collect(), 1)),
            Op::Rows => {
                let flat = |x: Value| {
                    let x = images(x).permute([0, 2, 3, 1]);
                    let [batch, rows, columns, channels] = x.dims();
                    x.reshape([batch, rows * columns, channels])
                };
                let all: Tensor<3> = Tensor::cat(inputs.map(flat).collect(), 1);
                let [batch, positions, channels] = all.dims();
                Value::Rows(all.reshape([batch * positions, channels]))
            }
            Op::Flatten => Value::Rows(images(next()).flatten(1, 3)),
            Op::Images { .. }
            | Op::Tokens
            | Op::Layer(_)
            | Op::BatchNorm(_)
            | Op::RmsNorm(_)
            | Op::Embedding(_) => unreachable!("{op:?} has a method of its own"),
            Op::Array(op) => on_arrays(&op, inputs.collect()),
        }
    }
}

/// An operation on arrays, without gradients.
///
/// # Panics
/// On arrays that the operation does not take.
fn on_arrays(op: &TensorOp, inputs: Vec<Value>) -> Value {
    let layered = inputs.iter().find(|value| !matches!(value, Value::Array(_))).map(Value::name);
    let device = inputs.first().map_or_else(Device::flex, Input::device);
    let arrays: Vec<Array> = inputs.iter().map(|value| expect(value.to_array())).collect();
    let images = |array: &Array| {
        let values = expect(array.floats());
        let dims: [usize; 4] =
            array.dims().try_into().unwrap_or_else(|_| panic!("{op:?} of {:?}", array.dims()));
        Value::Images(Tensor::from_data(TensorData::new(values.into_owned(), dims), &device))
    };
    let rows = |array: &Array| {
        let values = expect(array.floats());
        let dims: [usize; 2] =
            array.dims().try_into().unwrap_or_else(|_| panic!("{op:?} of {:?}", array.dims()));
        Value::Rows(Tensor::from_data(TensorData::new(values.into_owned(), dims), &device))
    };
    match op {
        TensorOp::Array => Value::Array(arrays[0].clone()),
        TensorOp::Images { .. } => images(&arrays[0]),
        TensorOp::Rows { .. } => rows(&arrays[0]),
        op => {
            let result = expect(evaluate(op, arrays));
            // Functions of each element leave images images.
            match layered {
                Some("images") => images(&result),
                Some(_) => rows(&result),
                None => Value::Array(result),
            }
        }
    }
}

/// What graphs that were checked, with inputs of the sizes that they are for, cannot go wrong with.
///
/// # Panics
/// If it did.
fn expect<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Relu => relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::Silu => silu(x),
    }
}

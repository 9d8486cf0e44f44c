//! [`Tensors`]: networks on Burn tensors, in floats or fake-quantized, with gradients where the device tracks them.

use super::executor::{Executor, Table};
use super::{Pass, PrecisionNorm, QuantConv2d, QuantLinear};
use crate::data::Input;
use burn::nn::RmsNorm;
use burn::tensor::activation::{relu, silu};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor};
use dr_kernels::max_pool2d_channels_last;
use dr_runtime::arrays::Array;
use dr_runtime::graph::{Activation, Op};
use dr_runtime::tensors::{Floats, Text, enlarge, evaluate};
pub use dr_runtime::tensors::{Images, TensorCache, Value};

/// The images.
///
/// # Panics
/// If it is something else.
fn images(value: Value) -> Images {
    match value {
        Value::Images(images) => images,
        other => panic!("{}: expected images", other.name()),
    }
}

/// The rows; of an array of floats, one for each run of its last axis.
///
/// # Panics
/// If it is something else.
pub(crate) fn rows(value: Value) -> Tensor<2> {
    match value {
        Value::Rows(rows) => rows,
        Value::Floats(floats) => floats.rows(),
        Value::Array(array) => expect(Floats::new(&array, &Device::flex())).rows(),
        other => panic!("{}: expected rows", other.name()),
    }
}

/// What a network takes, whichever it is.
impl Input for Value {
    fn items(&self) -> usize {
        match self {
            Self::Images(x) => x.dims()[0],
            Self::Rows(x) => x.dims()[0],
            Self::Tokens(x) => x.dims()[0],
            Self::Floats(x) => x.dims().first().copied().unwrap_or(1),
            Self::Array(x) => x.dims().first().copied().unwrap_or(1),
        }
    }

    fn split(self, items: usize) -> Vec<Self> {
        match self {
            Self::Images(x) => x.channels_first().split(items, 0).into_iter().map(Self::from).collect(),
            Self::Rows(x) => x.split(items, 0).into_iter().map(Self::from).collect(),
            Self::Tokens(x) => x.split(items, 0).into_iter().map(Self::from).collect(),
            Self::Floats(x) => x.split(items).into_iter().map(Self::from).collect(),
            Self::Array(x) => x.split(items).into_iter().map(Self::from).collect(),
        }
    }

    fn inner(self) -> Self {
        match self {
            Self::Images(x) => x.map(Tensor::inner).into(),
            Self::Rows(x) => x.inner().into(),
            Self::Tokens(x) => x.inner().into(),
            Self::Floats(x) => x.map(Tensor::inner).into(),
            array @ Self::Array(_) => array,
        }
    }

    fn autodiff(self) -> Self {
        match self {
            Self::Images(x) => x.map(Tensor::autodiff).into(),
            Self::Rows(x) => x.autodiff().into(),
            Self::Tokens(x) => x.autodiff().into(),
            Self::Floats(x) => x.map(Tensor::autodiff).into(),
            // What becomes of floats is tracked where they are on a device that does.
            Self::Array(x) => match Floats::new(&x, &Device::flex().autodiff()) {
                Ok(floats) => floats.into(),
                Err(_) => x.into(),
            },
        }
    }

    fn device(&self) -> Device {
        match self {
            Self::Images(x) => x.device(),
            Self::Rows(x) => x.device(),
            Self::Tokens(x) => x.device(),
            Self::Floats(x) => x.device(),
            Self::Array(_) => Device::flex(),
        }
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
        match norm {
            Some(norm) => self.conv2d_then(x, layer, norm, None, None),
            None => layer.forward(images(x), self.pass).into(),
        }
    }

    fn conv2d_then(
        &mut self, x: Value, layer: &QuantConv2d, norm: &PrecisionNorm, residual: Option<Value>,
        activation: Option<Activation>,
    ) -> Value {
        let (x, residual) = (layer.forward(images(x), self.pass), residual.map(images));
        norm.forward(x, residual, activation, self.pass, layer.weight_id()).into()
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        match x {
            Value::Floats(x) => x.map_rows(|x| layer.forward(x, self.pass)).into(),
            Value::Array(x) => {
                let x = expect(Floats::new(&x, &layer.weight().device()));
                x.map_rows(|x| layer.forward(x, self.pass)).into()
            }
            x => Value::Rows(layer.forward(rows(x), self.pass)),
        }
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
                Value::Images(x) => x.map(|x| activate(x, activation)).into(),
                x => Value::Rows(activate(rows(x), activation)),
            },
            Op::Add => match (next(), next()) {
                (Value::Images(a), Value::Images(b)) => a.zip(b, |a, b| a + b).into(),
                (a, b) => Value::Rows(rows(a) + rows(b)),
            },
            Op::Multiply => match (next(), next()) {
                (Value::Images(a), Value::Images(b)) => a.zip(b, |a, b| a * b).into(),
                // Each pixel with the row of its image.
                (Value::Images(images), Value::Rows(rows)) => {
                    let [n, features] = rows.dims();
                    images.zip(rows.reshape([n, features, 1, 1]).into(), |a, b| a * b).into()
                }
                (a, b) => Value::Rows(rows(a) * rows(b)),
            },
            Op::MaxPool { kernel, stride, padding } => {
                let x = images(next());
                if x.has_channels_last() && x.device().inner() == Device::flex() {
                    let y = max_pool2d_channels_last(x.channels_last(), kernel, stride, padding);
                    return Images::with_channels_last(y).into();
                }
                let options = MaxPoolOptions::new(kernel).with_stride(stride).with_padding(padding);
                max_pool2d(x.channels_first(), options).into()
            }
            Op::Mean => {
                let x = images(next());
                // In one order on a CPU, so that sums are the same to the last digit.
                Value::Rows(match x.has_channels_last() || x.device().inner() == Device::flex() {
                    true => x.channels_last().flatten::<3>(1, 2).mean_dim(1).squeeze_dim::<2>(1),
                    false => x.channels_first().flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2),
                })
            }
            Op::Enlarge => {
                let (x, like) = (images(next()), images(next()));
                let [.., height, width] = like.dims();
                enlarge(x.channels_first(), [height, width], 2).into()
            }
            Op::Attention(ref of) => {
                let inputs = [next(), next(), next()].map(rows);
                let text = self.text.as_mut().expect("a network with attention embeds its tokens first");
                Value::Rows(text.attention(inputs, of, self.cache.as_deref_mut()))
            }
            Op::Concat => {
                let planes = inputs.map(|x| images(x).channels_first());
                Tensor::cat(planes.collect(), 1).into()
            }
            Op::Rows => {
                let flat = |x: Value| {
                    let x = images(x).channels_last();
                    let [batch, rows, columns, channels] = x.dims();
                    x.reshape([batch, rows * columns, channels])
                };
                let all: Tensor<3> = Tensor::cat(inputs.map(flat).collect(), 1);
                let [batch, positions, channels] = all.dims();
                Value::Rows(all.reshape([batch * positions, channels]))
            }
            Op::Flatten => Value::Rows(images(next()).channels_first().flatten(1, 3)),
            Op::Images { .. }
            | Op::Tokens
            | Op::Layer(_)
            | Op::BatchNorm(_)
            | Op::RmsNorm(_)
            | Op::Embedding(_) => unreachable!("{op:?} has a method of its own"),
            Op::Array(op) => expect(evaluate(&op, inputs.collect())),
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

pub(super) fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Relu => relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::Silu => silu(x),
    }
}

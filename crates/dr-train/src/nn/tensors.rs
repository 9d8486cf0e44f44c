//! [`Tensors`]: networks on Burn tensors, in floats or fake-quantized, with gradients where the device tracks them.

use super::executor::{Executor, Table};
use super::{Pass, PrecisionNorm, QuantConv2d, QuantLinear};
use crate::data::Input;
use burn::nn::RmsNorm;
use burn::tensor::activation::{relu, silu, softmax};
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use dr_runtime::graph::{Activation, Attention, Op};

/// What goes from operation to operation.
#[derive(Clone, Debug)]
pub enum Value {
    /// `[batch, channels, rows, columns]`
    Images(Tensor<4>),
    /// `[n, features]`
    Rows(Tensor<2>),
    /// `[batch, positions]`
    Tokens(Tensor<2, Int>),
}

impl From<Tensor<4>> for Value {
    fn from(images: Tensor<4>) -> Self {
        Self::Images(images)
    }
}

impl From<Tensor<2>> for Value {
    fn from(rows: Tensor<2>) -> Self {
        Self::Rows(rows)
    }
}

impl From<Tensor<2, Int>> for Value {
    fn from(tokens: Tensor<2, Int>) -> Self {
        Self::Tokens(tokens)
    }
}

impl Value {
    /// # Panics
    /// If it is something else.
    fn images(self) -> Tensor<4> {
        match self {
            Self::Images(images) => images,
            other => panic!("{}: expected images", other.name()),
        }
    }

    /// The rows.
    ///
    /// # Panics
    /// If it is something else.
    #[must_use]
    pub fn rows(self) -> Tensor<2> {
        match self {
            Self::Rows(rows) => rows,
            other => panic!("{}: expected rows", other.name()),
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Images(_) => "images",
            Self::Rows(_) => "rows",
            Self::Tokens(_) => "tokens",
        }
    }
}

/// Does the same with the tensor, whichever it is.
macro_rules! with_tensor {
    ($value:expr, $tensor:ident => $result:expr) => {
        match $value {
            Value::Images($tensor) => $result,
            Value::Rows($tensor) => $result,
            Value::Tokens($tensor) => $result,
        }
    };
}

/// What a network takes, whichever it is.
impl Input for Value {
    fn items(&self) -> usize {
        with_tensor!(self, x => x.dims()[0])
    }

    fn split(self, items: usize) -> Vec<Self> {
        with_tensor!(self, x => x.split(items, 0).into_iter().map(Self::from).collect())
    }

    fn inner(self) -> Self {
        with_tensor!(self, x => x.inner().into())
    }

    fn autodiff(self) -> Self {
        with_tensor!(self, x => x.autodiff().into())
    }

    fn device(&self) -> Device {
        with_tensor!(self, x => x.device())
    }
}

/// Keys and values of a text so far, as tensors: `[1, kv heads, capacity, head dim]` of each attention.
#[derive(Clone, Debug, Default)]
pub struct TensorCache {
    slots: Vec<[Tensor<4>; 2]>,
    positions: usize,
}

impl TensorCache {
    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }
}

/// Computes a [`Pass`] on tensors.
#[derive(Debug)]
pub struct Tensors<'a> {
    pass: &'a Pass<'a>,
    text: Option<Text>,
    cache: Option<&'a mut TensorCache>,
}

/// Where in a text the tokens are, and what attention derives from that, the same in all blocks.
#[derive(Debug)]
struct Text {
    batch: usize,
    positions: usize,
    /// Of the first token.
    start: usize,
    /// Attentions so far in this pass.
    attentions: usize,
    /// Those of the last attention.
    angles: Option<(Attention, Angles)>,
    /// `[1, 1, queries, keys]`, where a query must not look; `None` if it may everywhere.
    mask: Option<Tensor<4, Bool>>,
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

    fn attend(&mut self, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, of: Attention) -> Tensor<2> {
        let text = self.text.as_mut().expect("a network with attention begins with an embedding of tokens");
        let Attention { heads, kv_heads, head_dim, .. } = of;
        if text.angles.as_ref().is_none_or(|(known, _)| *known != of) {
            text.angles = Some((of, Angles::new(&of, text.start, text.positions, &q.device())));
        }
        let Some((_, angles)) = &text.angles else { unreachable!("made above") };
        let by_head = |x: Tensor<2>, heads: usize| {
            x.reshape([text.batch, text.positions, heads, head_dim]).swap_dims(1, 2)
        };
        let q = angles.rotate(by_head(q, heads));
        let (mut k, mut v) = (angles.rotate(by_head(k, kv_heads)), by_head(v, kv_heads));
        if let Some(cache) = &mut self.cache {
            if cache.slots.len() == text.attentions {
                let empty = || Tensor::zeros([1, kv_heads, FIRST, head_dim], &q.device());
                cache.slots.push([empty(), empty()]);
            }
            let [keys, values] = &mut cache.slots[text.attentions];
            (k, v) = (extend(keys, text.start, k), extend(values, text.start, v));
            // After the last attention of a pass, all have these positions.
            cache.positions = text.start + text.positions;
        }
        text.attentions += 1;
        attention(q, k, v, text.mask.as_ref()).swap_dims(1, 2).reshape([-1, (heads * head_dim) as i32])
    }
}

/// Positions that a cache has room for at first.
const FIRST: usize = 64;

/// Puts new keys or values `[1, kv heads, new, head dim]` at their positions and gives all so far back.
fn extend(slot: &mut Tensor<4>, start: usize, new: Tensor<4>) -> Tensor<4> {
    let [_, heads, count, dim] = new.dims();
    let [_, _, capacity, _] = slot.dims();
    let end = start + count;
    // Taken out, so that nobody else has it and it is written to in place.
    let mut whole = std::mem::replace(slot, Tensor::empty([1, 1, 1, 1], &new.device()));
    if end > capacity {
        let more = end.next_power_of_two().max(FIRST) - capacity;
        whole = Tensor::cat(vec![whole, Tensor::zeros([1, heads, more, dim], &new.device())], 2);
    }
    whole = whole.slice_assign([0..1, 0..heads, start..end, 0..dim], new);
    *slot = whole.clone();
    whole.slice([0..1, 0..heads, 0..end, 0..dim])
}

/// Softmax attention of queries `[batch, heads, positions, head dim]` to keys and values of `[batch, kv heads, all positions, head
/// dim]`, each of which serves `heads / kv heads` heads of queries.
fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<&Tensor<4, Bool>>) -> Tensor<4> {
    let ([batch, heads, positions, head_dim], [_, kv_heads, keys, _]) = (q.dims(), k.dims());
    let sharing = heads / kv_heads;
    // The queries that share keys follow each other in one matrix.
    let q = q.reshape([batch, kv_heads, sharing * positions, head_dim]);
    let scores = q.matmul(k.transpose()) / (head_dim as f64).sqrt();
    let scores = match mask {
        Some(mask) => {
            let scores = scores.reshape([batch, heads, positions, keys]);
            let mask = mask.clone().expand([batch, heads, positions, keys]);
            let masked = scores.mask_fill(mask, f32::NEG_INFINITY);
            masked.reshape([batch, kv_heads, sharing * positions, keys])
        }
        None => scores,
    };
    softmax(scores, 3).matmul(v).reshape([batch, heads, positions, head_dim])
}

/// The cosines and sines of positions.
#[derive(Clone, Debug)]
struct Angles {
    /// `[positions, head dim]`; the second half of a row repeats the first.
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Angles {
    fn new(of: &Attention, start: usize, positions: usize, device: &Device) -> Self {
        let [cos, sin] = of.rope.tables(of.head_dim, start, positions).map(|table| {
            let half = Tensor::<2>::from_data(TensorData::new(table, [positions, of.head_dim / 2]), device);
            Tensor::cat(vec![half.clone(), half], 1)
        });
        Self { cos, sin }
    }

    /// Turns `[batch, heads, positions, head dim]`: feature `i` and feature `i + head dim / 2` are a pair.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let [.., dim] = x.dims();
        let halves = x.clone().split(dim / 2, 3);
        let turned = Tensor::cat(vec![halves[1].clone().neg(), halves[0].clone()], 3);
        x * self.cos.clone().unsqueeze() + turned * self.sin.clone().unsqueeze()
    }
}

impl Executor for Tensors<'_> {
    type Value = Value;

    fn conv2d(&mut self, x: Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Value {
        let x = x.images();
        Value::Images(match norm {
            Some(norm) => layer.forward_norm(x, norm, self.pass),
            None => layer.forward(x, self.pass),
        })
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        Value::Rows(layer.forward(x.rows(), self.pass))
    }

    fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Value {
        let x = x.rows();
        let ([rows, all], [features]) = (x.dims(), norm.gamma.lazy_shape().dims::<1>());
        Value::Rows(match all == features {
            true => norm.forward(x),
            false => norm.forward(x.reshape([rows * all / features, features])).reshape([rows, all]),
        })
    }

    fn embedding(&mut self, tokens: Value, table: Table<'_>) -> Value {
        let Value::Tokens(tokens) = tokens else { panic!("{}: expected tokens", tokens.name()) };
        let [batch, positions] = tokens.dims();
        let start = self.cache.as_ref().map_or(0, |cache| cache.positions);
        let mask = (positions > 1).then(|| {
            let (shape, offset) = ([positions, start + positions], start as i64);
            Tensor::<2, Bool>::tril_mask(shape, offset, &tokens.device()).unsqueeze()
        });
        self.text = Some(Text { batch, positions, start, attentions: 0, angles: None, mask });
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
                x => Value::Rows(activate(x.rows(), activation)),
            },
            Op::Add => match (next(), next()) {
                (Value::Images(a), Value::Images(b)) => Value::Images(a + b),
                (a, b) => Value::Rows(a.rows() + b.rows()),
            },
            Op::Multiply => match (next(), next()) {
                (Value::Images(a), Value::Images(b)) => Value::Images(a * b),
                (a, b) => Value::Rows(a.rows() * b.rows()),
            },
            Op::MaxPool { kernel, stride, padding } => {
                let options = MaxPoolOptions::new(kernel).with_stride(stride).with_padding(padding);
                Value::Images(max_pool2d(next().images(), options))
            }
            Op::Mean => {
                let x = next().images();
                Value::Rows(x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim::<2>(2))
            }
            Op::Enlarge => {
                let (x, like) = (next().images(), next().images());
                let [.., rows, columns] = like.dims();
                Value::Images(enlarge(x, [rows, columns]))
            }
            Op::Attention(of) => {
                let [q, k, v] = [next(), next(), next()].map(Value::rows);
                Value::Rows(self.attend(q, k, v, of))
            }
            Op::Concat => Value::Images(Tensor::cat(inputs.map(Value::images).collect(), 1)),
            Op::Rows => {
                let flat = |x: Value| {
                    let x = x.images().permute([0, 2, 3, 1]);
                    let [batch, rows, columns, channels] = x.dims();
                    x.reshape([batch, rows * columns, channels])
                };
                let all: Tensor<3> = Tensor::cat(inputs.map(flat).collect(), 1);
                let [batch, positions, channels] = all.dims();
                Value::Rows(all.reshape([batch * positions, channels]))
            }
            Op::Flatten => Value::Rows(next().images().flatten(1, 3)),
            Op::Images { .. }
            | Op::Tokens
            | Op::Layer(_)
            | Op::BatchNorm(_)
            | Op::RmsNorm(_)
            | Op::Embedding(_) => unreachable!("{op:?} has a method of its own"),
        }
    }
}

fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::Relu => relu(x),
        Activation::Relu6 => x.clamp(0.0, 6.0),
        Activation::Silu => silu(x),
    }
}

/// Repeats rows and columns of `[batch, channels, rows, columns]` to at least `size`, of which the first ones are taken.
fn enlarge(mut x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    for (axis, size) in [(2, size[0]), (3, size[1])] {
        let dims = x.dims();
        let times = size.div_ceil(dims[axis]);
        if times > 1 {
            let mut whole = dims;
            whole[axis] = dims[axis] * times;
            let before: usize = dims[..=axis].iter().product();
            let after: usize = dims[axis + 1..].iter().product();
            x = x.reshape([before, 1, after]).expand([before, times, after]).reshape(whole);
        }
        x = x.narrow(axis, 0, size);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarged_maps_repeat_their_rows_and_columns() {
        let values = TensorData::new(vec![1.0f32, 2.0, 3.0, 4.0], [1, 1, 2, 2]);
        let larger = enlarge(Tensor::from_data(values, &Device::flex()), [4, 3]);
        let larger: Vec<f32> = larger.into_data().try_into_vec().expect("floats");
        assert_eq!(larger, [1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 4.0, 3.0, 3.0, 4.0]);
    }
}

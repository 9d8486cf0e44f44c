//! [`Dynamic`]: fake quantization of the inputs of linear layers, as they come.

use crate::nn::{Executor, PrecisionNorm, QuantConv2d, QuantLinear, Table, Tensors, Value};
use burn::nn::RmsNorm;
use burn::tensor::Tensor;
use dr_runtime::graph::Op;

/// Inputs that share a scale.
const GROUP: usize = 32;

/// Networks on tensors whose linear layers take inputs in signed codes of 8 bits, with a scale `max |x| / 127` for each row and every 32
/// inputs; the last ones may be fewer.
#[derive(Debug)]
pub struct Dynamic<'a>(pub Tensors<'a>);

impl Executor for Dynamic<'_> {
    type Value = Value;

    fn conv2d(&mut self, x: Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Value {
        self.0.conv2d(x, layer, norm)
    }

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        let x = match x {
            Value::Rows(x) => Value::Rows(in_codes(x)),
            other => other,
        };
        self.0.linear(x, layer)
    }

    fn rms_norm(&mut self, x: Value, norm: &RmsNorm) -> Value {
        self.0.rms_norm(x, norm)
    }

    fn embedding(&mut self, tokens: Value, table: Table<'_>) -> Value {
        self.0.embedding(tokens, table)
    }

    fn op(&mut self, op: Op, inputs: Vec<Value>) -> Value {
        self.0.op(op, inputs)
    }
}

/// What the codes of rows stand for.
fn in_codes(x: Tensor<2>) -> Tensor<2> {
    let [rows, inputs] = x.dims();
    let groups = inputs.div_ceil(GROUP);
    let room = Tensor::zeros([rows, groups * GROUP - inputs], &x.device());
    let x = Tensor::cat(vec![x, room], 1).reshape([rows * groups, GROUP]);
    // Of groups of zeros, too, something that divides.
    let scale = x.clone().abs().max_dim(1).clamp_min(f32::MIN_POSITIVE) / 127.0;
    let x = (x / scale.clone()).round() * scale;
    x.reshape([rows, groups * GROUP]).slice([0..rows, 0..inputs])
}

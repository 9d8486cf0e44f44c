//! [`Dynamic`]: fake quantization of the inputs of linear layers, as they come.

use crate::nn::{Executor, QuantLinear, Tensors, Value, tensors_do};
use burn::tensor::Tensor;

/// Inputs that share a scale.
const GROUP: usize = 32;

/// Networks on tensors whose linear layers take inputs in signed codes of 8 bits, with a scale `max |x| / 127` for each row and every 32
/// inputs; the last ones may be fewer.
#[derive(Debug)]
pub struct Dynamic<'a>(pub Tensors<'a>);

impl Executor for Dynamic<'_> {
    type Value = Value;

    tensors_do!(0: conv2d, rms_norm, embedding, constant, op);

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        let x = match x {
            Value::Rows(x) => Value::Rows(in_codes(x)),
            other => other,
        };
        self.0.linear(x, layer)
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

//! [`gradient_sizes`]: how much the loss depends on what layers give, position by position.

use crate::data::Target;
use crate::nn::{Executor, Model, Pass, QuantLinear, Tensors, Value, tensors_do};
use burn::module::{Module, ParamId};
use burn::tensor::{Int, Tensor};
use std::collections::{HashMap, HashSet};

/// For each of these linear layers, by its weight, `||g||^2` of each row `g` of the gradient of the mean loss at the layer's output: `[rows, 1]`. One pass
/// forward and one backward, in floats.
pub(super) fn gradient_sizes(
    model: &Model, tokens: Tensor<2, Int>, labels: Tensor<1, Int>, layers: &HashSet<ParamId>,
) -> HashMap<ParamId, Tensor<2>> {
    // Gradients are tracked, but those of no weight.
    let model = model.valid().freeze().train();
    let pass = Pass::float();
    let mut probe = Probe { tensors: Tensors::new(&pass), layers, added: vec![] };
    let Value::Rows(logits) = model.run(&mut probe, Value::from(tokens.autodiff())) else {
        return HashMap::new();
    };
    if probe.added.is_empty() {
        return HashMap::new();
    }
    let mut gradients = labels.autodiff().loss(logits).backward();
    let size = |(id, zeros): (ParamId, Tensor<2>)| {
        Some((id, zeros.grad_remove(&mut gradients)?.square().sum_dim(1)))
    };
    probe.added.into_iter().filter_map(size).collect()
}

/// Computes in floats, and adds zeros to what some linear layers give: their gradient is that of the output.
struct Probe<'a> {
    tensors: Tensors<'a>,
    layers: &'a HashSet<ParamId>,
    added: Vec<(ParamId, Tensor<2>)>,
}

impl Executor for Probe<'_> {
    type Value = Value;

    tensors_do!(tensors: conv2d, rms_norm, embedding, constant, op);

    fn linear(&mut self, x: Value, layer: &QuantLinear) -> Value {
        match self.tensors.linear(x, layer) {
            Value::Rows(y) if self.layers.contains(&layer.weight_id()) => {
                let zeros = Tensor::<2>::zeros(y.dims(), &y.device()).require_grad();
                self.added.push((layer.weight_id(), zeros.clone()));
                Value::Rows(y + zeros)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::quantizers::host;
    use crate::nn::{Embedding, Network, QuantLinearConfig, Table, normal};
    use burn::tensor::activation::softmax;
    use burn::tensor::{Device, TensorData};
    use dr_runtime::graph::Op;
    use rand::{SeedableRng, rngs::StdRng};

    /// Logits straight from the embeddings.
    #[derive(Module, Debug)]
    struct Bigrams {
        table: Embedding,
        head: QuantLinear,
    }

    impl Network for Bigrams {
        fn input(&self) -> Op {
            Op::Tokens
        }

        fn forward<E: Executor>(&self, on: &mut E, tokens: E::Value) -> E::Value {
            let x = on.embedding(tokens, Table::Own(&self.table));
            on.linear(x, &self.head)
        }
    }

    /// The gradient of cross entropy is known: probabilities less one for the right token.
    #[test]
    fn gradients_of_logits() {
        let (mut rng, device) = (StdRng::seed_from_u64(1), Device::flex());
        let table = Embedding { weight: normal([7, 4], 1.0, &mut rng, &device) };
        let network = Bigrams { table, head: QuantLinearConfig::new([4, 7]).init(&mut rng, &device) };
        let model = Model::trace(&network).expect("a graph");
        let (tokens, labels) = ([3i64, 0, 6, 2, 2], [0i64, 6, 2, 2, 5]);
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens.to_vec(), [1, 5]), &device);
        let right = Tensor::<1, Int>::from_data(TensorData::new(labels.to_vec(), [5]), &device);
        let head = network.head.weight_id();
        let found = gradient_sizes(&model, tokens.clone(), right.clone(), &HashSet::from([head]));
        let logits = softmax(model.forward(tokens.clone(), &Pass::float()), 1);
        let one_hot = right.clone().one_hot::<2>(7).float();
        let expected = ((logits - one_hot) / 5.0).square().sum_dim(1);
        assert_eq!(found[&head].dims(), [5, 1]);
        for (found, expected) in host(&found[&head]).iter().zip(host(&expected)) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert!(gradient_sizes(&model, tokens, right, &HashSet::new()).is_empty());
    }
}

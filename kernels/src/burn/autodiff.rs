//! The gradients' registration, once for every backend that has the operations.

use super::ops::{ActivationFormat, FakeQuantizeGradOps, FakeQuantizeOps, WeightFormat};
use burn::backend::Backend;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId, grads::Gradients};
use burn::backend::tensor::FloatTensor;
use std::fmt::Debug;

/// An operation of three float tensors and a format, one output.
trait Ternary<B: FakeQuantizeGradOps>: Debug + Send + Copy + 'static {
    type Format: Debug + Copy + Send + 'static;
    fn gradients(
        inputs: [FloatTensor<B>; 3], grad: FloatTensor<B>, format: Self::Format,
    ) -> [FloatTensor<B>; 3];
}

#[derive(Debug, Clone, Copy)]
struct Weight;
#[derive(Debug, Clone, Copy)]
struct Activation;
#[derive(Debug)]
struct Step<T>(T);

impl<B: FakeQuantizeGradOps> Ternary<B> for Weight {
    type Format = WeightFormat;
    fn gradients(
        [w, stored, scale]: [FloatTensor<B>; 3], g: FloatTensor<B>, f: WeightFormat,
    ) -> [FloatTensor<B>; 3] {
        B::fake_quantize_weight_backward(w, stored, scale, g, f).into()
    }
}

impl<B: FakeQuantizeGradOps> Ternary<B> for Activation {
    type Format = ActivationFormat;
    fn gradients(
        [x, scale, zero]: [FloatTensor<B>; 3], g: FloatTensor<B>, f: ActivationFormat,
    ) -> [FloatTensor<B>; 3] {
        B::fake_quantize_activation_backward(x, scale, zero, g, f).into()
    }
}

impl<B: FakeQuantizeGradOps, T: Ternary<B>> Backward<B, 3> for Step<T> {
    // Node ids only: the checkpointer keeps the inputs, or recomputes them.
    type State = ([NodeId; 3], T::Format);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let (inputs, format) = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let inputs = inputs.map(|node| -> FloatTensor<B> { checkpointer.retrieve_node_output(node) });
        let nodes = ops.parents.map(|node| node.map(|node| node.id));
        register::<B, 3>(nodes, T::gradients(inputs, grad, format), grads);
    }
}

/// Registers the gradients of an operation's inputs; `None` needs no gradient.
pub(super) fn register<B: Backend, const N: usize>(
    nodes: [Option<NodeId>; N], gradients: [FloatTensor<B>; N], grads: &mut Gradients,
) {
    for (node, grad) in nodes.into_iter().zip(gradients) {
        if let Some(node) = node {
            grads.register::<B>(node, grad);
        }
    }
}

fn record<B: FakeQuantizeGradOps, C: CheckpointStrategy, T: Ternary<B>>(
    operation: T, inputs: [&FloatTensor<Autodiff<B, C>>; 3], format: T::Format, out: FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let guards = inputs.map(|input| input.node());
    match Step(operation).prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let state = (inputs.map(|input| prep.checkpoint(input)), format);
            prep.finish(state, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(out),
    }
}

impl<B: FakeQuantizeOps + FakeQuantizeGradOps, C: CheckpointStrategy> FakeQuantizeOps for Autodiff<B, C> {
    fn fake_quantize_weight(
        w: FloatTensor<Self>, stored_scale: FloatTensor<Self>, scale: FloatTensor<Self>, format: WeightFormat,
    ) -> FloatTensor<Self> {
        let inputs = [&w, &stored_scale, &scale].map(|input| input.primitive().clone());
        let [a, b, c] = inputs;
        let out = B::fake_quantize_weight(a, b, c, format);
        record::<B, C, _>(Weight, [&w, &stored_scale, &scale], format, out)
    }

    fn fake_quantize_activation(
        x: FloatTensor<Self>, scale: FloatTensor<Self>, zero_point: FloatTensor<Self>,
        format: ActivationFormat,
    ) -> FloatTensor<Self> {
        let [a, b, c] = [&x, &scale, &zero_point].map(|input| input.primitive().clone());
        let out = B::fake_quantize_activation(a, b, c, format);
        record::<B, C, _>(Activation, [&x, &scale, &zero_point], format, out)
    }
}

//! [`Executor`]: what computes a network, so that a network is written once.

use super::{PrecisionNorm, QuantConv2d, QuantLinear};
use burn::module::{Module, Param};
use burn::nn::RmsNorm;
use burn::tensor::Tensor;
use dr_runtime::arrays::Array;
use dr_runtime::graph::{Activation, Attention, Op};

/// A network as its parameters and one forward pass, which any [`Executor`] computes: tensors in floats or fake-quantized
/// ([`Tensors`](super::Tensors)), or the tracer that makes a graph of it ([`Model::trace`](super::Model::trace)).
///
/// What is quantized are the layers of this module; parameters of other Burn modules cannot be part of a graph.
pub trait Network: Module {
    /// What the network takes: [`Op::Images`] or [`Op::Tokens`].
    fn input(&self) -> Op;

    /// From the input to the result. What is done must not depend on values.
    fn forward<E: Executor>(&self, on: &mut E, input: E::Value) -> E::Value;
}

/// A row of features for each token.
#[derive(Module, Debug)]
pub struct Embedding {
    /// `[vocabulary, features]`
    pub weight: Param<Tensor<2>>,
}

/// Where the features of tokens come from.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// A table of its own.
    Own(&'a Embedding),
    /// The weight of a linear layer.
    Layer(&'a QuantLinear),
}

/// Computes networks, operation by operation.
pub trait Executor {
    /// Images, rows of features, tokens or arrays.
    type Value: Clone;

    /// A convolution of images, and the BatchNorm that follows it.
    fn conv2d(&mut self, x: Self::Value, layer: &QuantConv2d, norm: Option<&PrecisionNorm>) -> Self::Value;

    /// A convolution of images, the BatchNorm that follows it, the sum with `residual` and an activation, where there are.
    fn conv2d_then(
        &mut self, x: Self::Value, layer: &QuantConv2d, norm: &PrecisionNorm, residual: Option<Self::Value>,
        activation: Option<Activation>,
    ) -> Self::Value {
        let mut y = self.conv2d(x, layer, Some(norm));
        if let Some(residual) = residual {
            y = self.add(y, residual);
        }
        match activation {
            Some(activation) => self.activation(y, activation),
            None => y,
        }
    }

    /// A linear layer of rows.
    fn linear(&mut self, x: Self::Value, layer: &QuantLinear) -> Self::Value;

    /// RMSNorm of each run of as many features as it has.
    fn rms_norm(&mut self, x: Self::Value, norm: &RmsNorm) -> Self::Value;

    /// Tokens `[batch, positions]` to rows of features.
    fn embedding(&mut self, tokens: Self::Value, table: Table<'_>) -> Self::Value;

    /// An array that does not depend on the input.
    fn constant(&mut self, array: &Array) -> Self::Value;

    /// An operation without parameters.
    fn op(&mut self, op: Op, inputs: Vec<Self::Value>) -> Self::Value;

    /// [`Op::Activation`].
    fn activation(&mut self, x: Self::Value, activation: Activation) -> Self::Value {
        self.op(Op::Activation(activation), vec![x])
    }

    /// [`Activation::Relu`].
    fn relu(&mut self, x: Self::Value) -> Self::Value {
        self.activation(x, Activation::Relu)
    }

    /// [`Op::Add`].
    fn add(&mut self, a: Self::Value, b: Self::Value) -> Self::Value {
        self.op(Op::Add, vec![a, b])
    }

    /// [`Op::Multiply`].
    fn multiply(&mut self, a: Self::Value, b: Self::Value) -> Self::Value {
        self.op(Op::Multiply, vec![a, b])
    }

    /// [`Op::MaxPool`] of square windows.
    fn max_pool(&mut self, x: Self::Value, kernel: usize, stride: usize, padding: usize) -> Self::Value {
        let op = Op::MaxPool { kernel: [kernel; 2], stride: [stride; 2], padding: [padding; 2] };
        self.op(op, vec![x])
    }

    /// [`Op::Mean`].
    fn mean(&mut self, x: Self::Value) -> Self::Value {
        self.op(Op::Mean, vec![x])
    }

    /// [`Op::Enlarge`].
    fn enlarge(&mut self, x: Self::Value, like: Self::Value) -> Self::Value {
        self.op(Op::Enlarge, vec![x, like])
    }

    /// [`Op::Attention`].
    fn attention(&mut self, [q, k, v]: [Self::Value; 3], of: Attention) -> Self::Value {
        self.op(Op::Attention(of), vec![q, k, v])
    }

    /// [`Op::Concat`].
    fn concat(&mut self, images: Vec<Self::Value>) -> Self::Value {
        self.op(Op::Concat, images)
    }

    /// [`Op::Rows`].
    fn rows(&mut self, images: Vec<Self::Value>) -> Self::Value {
        self.op(Op::Rows, images)
    }

    /// [`Op::Flatten`].
    fn flatten(&mut self, x: Self::Value) -> Self::Value {
        self.op(Op::Flatten, vec![x])
    }
}

/// Methods of an [`Executor`] that are those of the [`Tensors`](super::Tensors) in a field of it.
macro_rules! tensors_do {
    ($field:tt: $($method:ident),+) => {
        $($crate::nn::tensors_do!(@ $field $method);)+
    };
    (@ $field:tt conv2d) => {
        fn conv2d(
            &mut self, x: $crate::nn::Value, layer: &$crate::nn::QuantConv2d,
            norm: Option<&$crate::nn::PrecisionNorm>,
        ) -> $crate::nn::Value {
            self.$field.conv2d(x, layer, norm)
        }
    };
    (@ $field:tt rms_norm) => {
        fn rms_norm(&mut self, x: $crate::nn::Value, norm: &burn::nn::RmsNorm) -> $crate::nn::Value {
            self.$field.rms_norm(x, norm)
        }
    };
    (@ $field:tt embedding) => {
        fn embedding(&mut self, tokens: $crate::nn::Value, table: $crate::nn::Table<'_>) -> $crate::nn::Value {
            self.$field.embedding(tokens, table)
        }
    };
    (@ $field:tt constant) => {
        fn constant(&mut self, array: &dr_runtime::arrays::Array) -> $crate::nn::Value {
            self.$field.constant(array)
        }
    };
    (@ $field:tt op) => {
        fn op(&mut self, op: dr_runtime::graph::Op, inputs: Vec<$crate::nn::Value>) -> $crate::nn::Value {
            self.$field.op(op, inputs)
        }
    };
}
pub(crate) use tensors_do;

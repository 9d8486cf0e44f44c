//! What a graph may be: [`GraphError`] says what it may not.

use super::node::read;
use super::{
    Attention, Embedding, Graph, Kind, LayerKind, Norm, Op, Parts, Readers, RopeError, TensorOp, Value,
};
use thiserror::Error;

/// Why something is no graph.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GraphError {
    /// A node that reads what is not there yet.
    #[error("node {node}: reads value {value}: expected one of the {node} before it")]
    Value {
        /// The node.
        node: Value,
        /// What it reads.
        value: Value,
    },
    /// A node that names a layer or the like that is not there.
    #[error("node {node}: {what} {found}: expected one of {count}")]
    Table {
        /// The node.
        node: Value,
        /// What it names.
        what: &'static str,
        /// Which.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// Inputs that an operation does not take.
    #[error("node {node}, {op}: of {found}: expected {expected}")]
    Inputs {
        /// The node.
        node: Value,
        /// The operation.
        op: String,
        /// Its inputs.
        found: String,
        /// What it takes.
        expected: String,
    },
    /// An operation that gradients of layers do not go back through.
    #[error(
        "node {node}, {op}: has no gradient: expected sizes, places and conditions that do not depend on layers, and at most three axes of windows"
    )]
    Gradient {
        /// The node.
        node: Value,
        /// The operation.
        op: String,
    },
    /// An attention whose positions give no angles.
    #[error("node {node}, attention: {error}")]
    Rope {
        /// The node.
        node: Value,
        /// Why.
        error: RopeError,
    },
    /// A layer or normalization of sizes that make no sense.
    #[error("{name}: {found}: expected {expected}")]
    Sizes {
        /// Its name.
        name: String,
        /// What is there.
        found: String,
        /// What can be.
        expected: &'static str,
    },
    /// Two parameters of one name.
    #[error("the name `{0}` stands for two parts: expected names that differ")]
    Name(String),
    /// No node.
    #[error("a graph without a result: expected at least an input and a layer")]
    Empty,
}

/// Above every size that makes sense; keeps products of two from overflow.
pub(super) const LARGEST: usize = 1 << 22;

impl Graph {
    /// The kind of a node's value.
    pub(super) fn result(
        &self, node: Value, op: &Op, inputs: &[Value], kinds: &[Kind],
    ) -> Result<Kind, GraphError> {
        let wrong = |expected: String| {
            let (op, found) = (format!("{op:?}"), format!("{kinds:?}"));
            Err(GraphError::Inputs { node, op, found, expected })
        };
        if read(op, inputs).iter().any(|&value| self.readers[value] == Readers::BatchNorm) {
            return wrong("values that no BatchNorm reads".into());
        }
        let fits = |found: Option<usize>, wanted: usize| found.is_none_or(|found| found == wanted);
        match (op, kinds) {
            (&Op::Images { channels }, []) if node == 0 && (1..=LARGEST).contains(&channels) => {
                Ok(Kind::Images(channels))
            }
            (Op::Tokens, []) if node == 0 => Ok(Kind::Tokens),
            (Op::Images { .. } | Op::Tokens, _) => wrong("an input as the first node".into()),
            (&Op::Layer(layer), _) => {
                let of = entry(&self.parts.layers, node, "layer", layer)?;
                match (of.kind, kinds) {
                    (LayerKind::Conv2d { channels: [input, output], .. }, [Kind::Images(found)])
                        if *found == input =>
                    {
                        Ok(Kind::Images(output))
                    }
                    (LayerKind::Linear { features: [input, output] }, [Kind::Rows(found)])
                        if fits(*found, input) =>
                    {
                        Ok(Kind::Rows(Some(output)))
                    }
                    // The last axis has the features.
                    (LayerKind::Linear { .. }, [Kind::Array]) => Ok(Kind::Array),
                    _ => wrong(format!("the input of `{}`, {:?}", of.name, of.kind)),
                }
            }
            (&Op::BatchNorm(norm), _) => {
                let of = entry(&self.parts.batch_norms, node, "BatchNorm", norm)?;
                let after = |value: &Value| {
                    matches!(self.nodes()[*value].op, Op::Layer(_)) && self.readers[*value] == Readers::Nobody
                };
                match kinds {
                    [Kind::Images(found)] if *found == of.features && inputs.iter().all(after) => {
                        Ok(kinds[0])
                    }
                    _ => wrong(format!(
                        "the result of a convolution with {} channels, that nothing else reads",
                        of.features
                    )),
                }
            }
            (&Op::RmsNorm(norm), _) => {
                let of = entry(&self.parts.rms_norms, node, "RMSNorm", norm)?;
                match kinds {
                    [Kind::Rows(Some(found))] if found.is_multiple_of(of.features) => Ok(kinds[0]),
                    _ => wrong(format!("rows of runs of {} features", of.features)),
                }
            }
            (&Op::Embedding(embedding), _) => {
                let of = entry(&self.parts.embeddings, node, "embedding", embedding)?;
                match kinds {
                    [Kind::Tokens] => Ok(Kind::Rows(Some(self.embedding_size(of)[1]))),
                    _ => wrong("tokens".into()),
                }
            }
            (Op::Activation(_), [kind @ (Kind::Images(_) | Kind::Rows(_))]) => Ok(*kind),
            (Op::Activation(_), _) => wrong("images or rows".into()),
            (Op::Add | Op::Multiply, [a, b]) if a == b && !matches!(a, Kind::Tokens | Kind::Array) => Ok(*a),
            (Op::Multiply, [Kind::Images(channels), Kind::Rows(Some(features))]) if channels == features => {
                Ok(kinds[0])
            }
            (Op::Add | Op::Multiply, _) => wrong("two values of one kind".into()),
            (Op::MaxPool { kernel, stride, padding }, [Kind::Images(_)])
                if kernel.iter().chain(stride).all(|size| (1..=LARGEST).contains(size))
                    && padding.iter().zip(kernel).all(|(padding, kernel)| padding < kernel) =>
            {
                Ok(kinds[0])
            }
            (Op::MaxPool { .. }, _) => wrong("images, and a window that is larger than its padding".into()),
            (Op::Mean, [Kind::Images(channels)]) => Ok(Kind::Rows(Some(*channels))),
            (Op::Enlarge, [kind @ Kind::Images(_), Kind::Images(_)]) => Ok(*kind),
            (Op::Mean, _) => wrong("images".into()),
            (Op::Enlarge, _) => wrong("images, and others of the size that is wanted".into()),
            (&Op::Attention(Attention { heads, kv_heads, head_dim, ref rope, .. }), _) => {
                let angles = rope.as_ref().map_or(Ok(()), |rope| rope.check(head_dim));
                angles.map_err(|error| GraphError::Rope { node, error })?;
                let sound = [heads, kv_heads, head_dim].iter().all(|size| (1..=LARGEST).contains(size))
                    && heads.is_multiple_of(kv_heads)
                    && head_dim.is_multiple_of(2)
                    && self.input() == Some(&Op::Tokens);
                let (queries, keys) = (heads.saturating_mul(head_dim), kv_heads.saturating_mul(head_dim));
                match kinds {
                    [Kind::Rows(Some(q)), Kind::Rows(Some(k)), Kind::Rows(Some(v))]
                        if sound && [*q, *k, *v] == [queries, keys, keys] =>
                    {
                        Ok(kinds[0])
                    }
                    _ => {
                        wrong(format!("rows of {queries}, {keys} and {keys} features of tokens, even heads"))
                    }
                }
            }
            (Op::Concat, [Kind::Images(_), ..]) => {
                let mut channels = kinds.iter().map(|kind| match kind {
                    Kind::Images(channels) => Some(*channels),
                    _ => None,
                });
                let sum = channels.try_fold(0usize, |sum, channels| sum.checked_add(channels?));
                match sum.filter(|channels| *channels <= LARGEST) {
                    Some(channels) => Ok(Kind::Images(channels)),
                    None => wrong(format!("images, of at most {LARGEST} channels in all")),
                }
            }
            (Op::Rows, [Kind::Images(channels), rest @ ..]) if rest.iter().all(|kind| *kind == kinds[0]) => {
                Ok(Kind::Rows(Some(*channels)))
            }
            (Op::Concat | Op::Rows, _) => wrong("images, for rows of the same number of channels".into()),
            (Op::Flatten, [Kind::Images(_)]) => Ok(Kind::Rows(None)),
            (Op::Flatten, _) => wrong("images".into()),
            (Op::Array(op), _) if !op.is_finite() => wrong("finite numbers".into()),
            (Op::Array(op), _) => match self.result_of_arrays(op, inputs, kinds) {
                Some(kind) => Ok(kind),
                None => wrong("as many inputs as it takes, of arrays, and sizes of at least 1".into()),
            },
        }
    }

    /// What an operation on arrays makes, if it takes such inputs.
    fn result_of_arrays(&self, op: &TensorOp, inputs: &[Value], kinds: &[Kind]) -> Option<Kind> {
        let is_array = |kind: &Kind| *kind == Kind::Array;
        let size = |size: usize| (1..=LARGEST).contains(&size);
        let constant = |value: Value| match &self.nodes()[value].op {
            Op::Array(TensorOp::Constant(constant)) => Some(&constant.dims[..]),
            _ => None,
        };
        let one = |value: Value| constant(value).is_some_and(|dims| dims.iter().all(|&size| size == 1));
        match (op, kinds) {
            (TensorOp::Array, [Kind::Images(_) | Kind::Rows(_)]) => Some(Kind::Array),
            (&TensorOp::Images { channels }, [Kind::Array]) if size(channels) => Some(Kind::Images(channels)),
            (&TensorOp::Rows { features }, [Kind::Array]) if features.is_none_or(size) => {
                Some(Kind::Rows(features))
            }
            (TensorOp::Unary(_), [kind @ (Kind::Images(_) | Kind::Rows(_))]) => Some(*kind),
            (TensorOp::Binary(_), [kind @ (Kind::Images(_) | Kind::Rows(_)), Kind::Array])
                if one(inputs[1]) =>
            {
                Some(*kind)
            }
            (TensorOp::Binary(_), [Kind::Array, kind @ (Kind::Images(_) | Kind::Rows(_))])
                if one(inputs[0]) =>
            {
                Some(*kind)
            }
            (TensorOp::ChannelAffine, &[kind @ Kind::Images(channels), Kind::Array, Kind::Array])
                if inputs[1..].iter().all(|&value| constant(value) == Some(&[channels][..])) =>
            {
                Some(kind)
            }
            (TensorOp::Array | TensorOp::Images { .. } | TensorOp::Rows { .. }, _) => None,
            _ => (op.takes().contains(&kinds.len()) && kinds.iter().all(is_array)).then_some(Kind::Array),
        }
    }

    pub(super) fn check_norm(&self, norm: &Norm) -> Result<(), GraphError> {
        let Norm { name, features, epsilon } = norm;
        if !((1..=LARGEST).contains(features) && *epsilon >= 0.0 && *epsilon < 1.0) {
            let (name, found) = (name.clone(), format!("{features} features, epsilon {epsilon}"));
            return Err(GraphError::Sizes { name, found, expected: "at least 1, and a number from 0 to 1" });
        }
        self.check_name(name)
    }

    pub(super) fn check_name(&self, name: &str) -> Result<(), GraphError> {
        let Parts { layers, batch_norms, rms_norms, embeddings, .. } = &self.parts;
        let own = embeddings.iter().filter_map(|embedding| match embedding {
            Embedding::Own { name, .. } => Some(name),
            Embedding::Layer(_) => None,
        });
        let norms = batch_norms.iter().chain(rms_norms).map(|norm| &norm.name);
        let mut names = layers.iter().map(|layer| &layer.name).chain(norms).chain(own);
        match names.any(|taken| taken == name) {
            true => Err(GraphError::Name(name.to_owned())),
            false => Ok(()),
        }
    }
}

fn entry<'a, T>(table: &'a [T], node: Value, what: &'static str, found: usize) -> Result<&'a T, GraphError> {
    table.get(found).ok_or(GraphError::Table { node, what, found, count: table.len() })
}

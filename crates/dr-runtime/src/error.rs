use crate::arrays::ArrayError;
use crate::file::{ArtifactError, PlanFitError};
use crate::graph::GraphError;
use dr_kernels::KernelError;
use dr_precision::Precision;
use thiserror::Error;

/// Why a network cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The file.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Sizes or devices that do not fit.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Nothing in it is quantized.
    #[error("a float network: expected a quantized one")]
    Float,
    /// A precision that the network does not have.
    #[error("the network has no precision {precision}: expected {expected}")]
    Precision {
        /// What was asked for.
        precision: Precision,
        /// What it has.
        expected: String,
    },
    /// A plan that does not fit the network.
    #[error(transparent)]
    Plan(#[from] PlanFitError),
    /// An input that the network does not take.
    #[error("an input of {found}: expected {expected}")]
    Input {
        /// What it is.
        found: String,
        /// What the network takes.
        expected: String,
    },
    /// More of a text than a language model can look at, or nothing of it.
    #[error("a text of {found} tokens: expected 1 to {expected}, the model's context")]
    Context {
        /// Tokens.
        found: usize,
        /// The most there can be.
        expected: usize,
    },
    /// A token that there is not.
    #[error("the token {found}: expected one of the {vocabulary} that the model knows")]
    Token {
        /// The token.
        found: u32,
        /// How many there are.
        vocabulary: usize,
    },
    /// Operations that do not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Arrays that an operation does not take.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// What only linear layers can do.
    #[error("`{0}` is a convolution: expected linear layers only, for packed weights and inputs in floats")]
    WeightOnly(String),
    /// What only integers on slices do.
    #[error("nested weights: expected the integer engine on a CPU, which alone computes them")]
    Nested,
    /// What only slices do.
    #[error("operations on arrays: expected the engine on a CPU, which alone computes them")]
    Arrays,
    /// An operation between parameters and what is trained that gradients do not go back through.
    #[error(
        "{0} has no gradient with respect to what depends on layers here: expected sizes, places and conditions that do not"
    )]
    Gradient(String),
    /// What only integers on slices do, with static ranges.
    #[error("calibrated layers: expected the integer engine on a CPU, which alone computes them")]
    Calibrated,
    /// A cache of another network.
    #[error("a cache of another network: expected one that this network, or a new one, has filled")]
    Cache,
}

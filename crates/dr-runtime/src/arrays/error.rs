//! [`ArrayError`].

use crate::graph::ElementType;
use thiserror::Error;

/// Why an operation cannot be evaluated on arrays.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ArrayError {
    /// An operation that has no meaning for arrays alone.
    #[error("an input, a constant, or a change between arrays and images: expected an operation on arrays")]
    Operation,
    /// A number of inputs that the operation does not take.
    #[error("{found} inputs: expected {expected}")]
    Inputs {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: String,
    },
    /// Elements that the operation does not take.
    #[error("elements of type {found:?}: expected {expected}")]
    Element {
        /// What they are.
        found: ElementType,
        /// What they should be.
        expected: &'static str,
    },
    /// A number of axes that the operation does not take.
    #[error("an array of {found} axes: expected {expected}")]
    Rank {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: String,
    },
    /// An axis that the array does not have, or one that is named twice.
    #[error("axis {found} of {rank}: expected each axis once at most, from -{rank} to before {rank}")]
    Axis {
        /// Its number.
        found: i64,
        /// How many there are.
        rank: usize,
    },
    /// Sizes that do not fit.
    #[error("sizes {found:?}: expected {expected}")]
    Dims {
        /// What they are.
        found: Vec<usize>,
        /// What they should be.
        expected: String,
    },
    /// Sizes of two arrays that have no common ones.
    #[error("sizes {found:?} and {other:?}: expected the same ones, or ones, from the last axis on")]
    Broadcast {
        /// Those of the first array.
        found: Vec<usize>,
        /// Those of the second one.
        other: Vec<usize>,
    },
    /// A number that the operation does not take.
    #[error("{name} of {found}: expected {expected}")]
    Value {
        /// What it is.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// An array that is too large.
    #[error("an array of {found}: expected at most {expected} elements, and memory for them")]
    Size {
        /// Its sizes.
        found: String,
        /// The most there can be.
        expected: usize,
    },
}

impl ArrayError {
    /// A number that the operation does not take.
    pub(crate) fn value(
        name: &'static str, found: impl std::fmt::Debug, expected: impl Into<String>,
    ) -> Self {
        Self::Value { name, found: format!("{found:?}"), expected: expected.into() }
    }

    /// Sizes that do not fit.
    pub(crate) fn dims(found: &[usize], expected: impl Into<String>) -> Self {
        Self::Dims { found: found.to_vec(), expected: expected.into() }
    }
}

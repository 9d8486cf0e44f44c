//! ONNX files, read: a [`Model`] is what a file says, checked as far as that takes no knowledge of operators, and [`lower`] makes a
//! [`Graph`](crate::graph::Graph) of it.
//!
//! Whatever the bytes are, reading them yields a model or an error, in memory that grows with the file. Weights stay in the file, which is
//! mapped, until [`Initializer::to_array`] converts one.

mod attributes;
mod error;
mod file;
mod lower;
mod operators;
mod order;
#[doc(hidden)]
pub mod proto;
mod tensor;
#[cfg(test)]
mod tests;
mod values;

pub use error::{Definer, OnnxImportError, OnnxReadError, RefusedNode};
pub use file::{Attribute, Dim, Model, NodeInfo, ValueInfo};
pub use lower::{Imported, Layout, lower};
pub use tensor::Initializer;

/// The versions of the default operators (`ai.onnx`) that are read.
pub const OPSETS: std::ops::RangeInclusive<i64> = 7..=24;

/// The versions of the format that are read.
pub const IR_VERSIONS: std::ops::RangeInclusive<i64> = 3..=13;

//! Saved networks, executed: the graph that describes them, the file that holds them, and the engines that run them.

#[macro_use]
mod named;
mod error;
pub mod file;
mod float;
pub mod graph;
mod host;
mod layers;
mod program;
#[cfg(feature = "burn")]
pub mod tensors;
#[cfg(feature = "text")]
pub mod text;

pub use error::RuntimeError;
pub use file::Artifact;
pub use host::{Arithmetic, Cache, Input, LayerParts, Network, Output};
pub use named::UnknownName;

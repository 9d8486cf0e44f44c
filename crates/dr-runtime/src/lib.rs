//! Saved networks, executed: the graph that describes them, the file that holds them, and the engines that run them.

#[macro_use]
mod named;
pub mod arrays;
mod constants;
mod error;
pub mod file;
pub mod graph;
mod host;
#[cfg(feature = "npy")]
pub mod npy;
#[cfg(feature = "onnx")]
pub mod onnx;
mod pointer;
mod program;
mod source;
mod table;
#[cfg(feature = "burn")]
pub mod tensors;
#[cfg(feature = "text")]
pub mod text;

pub use error::RuntimeError;
pub use file::Artifact;
pub use host::{Cache, Input, LayerParts, Network, Output};
pub use named::UnknownName;
pub use pointer::{read_file, refuse_lfs_pointer};
pub use source::Arithmetic;

//! Objects in images: what a [`Detector`](crate::models::Detector) learns, and what its output says.

mod decode;
mod targets;

pub use decode::{DecodeOptions, Found, decode};
pub use targets::{BoxTargets, Positions};

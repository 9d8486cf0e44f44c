//! Objects in images: what a [`Detector`](crate::models::Detector) learns, and what its output says.

mod decode;
mod targets;

pub use decode::{DecodeOptions, Found, SHOWN, decode, decode_rows};
pub use targets::{BoxTargets, Positions};

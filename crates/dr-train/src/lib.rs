//! Trains one network that runs at several precisions, switched at run time (Double Rounding, arXiv:2502.01199).
//!
//! # Features
//! Without default features the crate is a library for a Burn project: layers and networks written once ([`nn`], [`models`]), quantization and
//! joint training ([`training`]), quantization without training ([`quantization`]), saved files ([`artifact`]), Hessian traces and draws for mixed precision ([`mixed`]). `program`, the
//! default, adds the program `dr-train`: datasets and image formats, texts, plots, the search of plans, ONNX, the command line. `remote` lets the program train on devices of other machines, and serve its own.

#[cfg(feature = "program")]
pub mod agreement;
pub mod artifact;
#[cfg(feature = "program")]
pub mod cli;
mod compilation;
pub mod config;
pub mod data;
#[cfg(feature = "program")]
pub mod detection;
#[cfg(feature = "program")]
pub mod device;
#[cfg(feature = "program")]
pub mod evaluation;
#[cfg(feature = "program")]
pub mod experiment;
pub mod files;
#[cfg(feature = "program")]
pub mod generation;
#[cfg(feature = "program")]
pub mod latency;
#[cfg(feature = "program")]
pub mod metrics;
pub mod mixed;
pub mod models;
pub mod names;
pub mod nn;
mod note;
#[cfg(feature = "program")]
pub mod onnx;
#[cfg(feature = "program")]
pub mod prediction;
mod progress;
pub mod quantization;
pub mod report;
#[cfg(feature = "program")]
pub mod samples;
#[cfg(feature = "program")]
pub mod text;
pub mod training;
mod values;
#[cfg(feature = "program")]
pub mod weights;
#[cfg(feature = "program")]
pub mod workers;

/// The Rust of the book compiles.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../../docs/src/own_network.md")]
    struct OwnNetwork;

    #[doc = include_str!("../../../docs/src/run.md")]
    struct Run;
}

//! Trains one network that runs at several precisions, switched at run time (Double Rounding, arXiv:2502.01199).

pub mod artifact;
pub mod cli;
pub mod config;
pub mod data;
pub mod detection;
pub mod device;
pub mod evaluation;
pub mod experiment;
pub mod files;
pub mod generation;
pub mod latency;
pub mod metrics;
pub mod mixed;
pub mod models;
pub mod nn;
pub mod onnx;
pub mod report;
pub mod samples;
pub mod text;
pub mod training;
mod values;
pub mod weights;

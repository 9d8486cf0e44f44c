//! Trains one network that runs at several precisions, switched at run time (Double Rounding, arXiv:2502.01199).

pub mod config;
pub mod data;
mod files;
pub mod models;
pub mod nn;
pub mod training;

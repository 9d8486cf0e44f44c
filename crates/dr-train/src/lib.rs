//! Trains one network that runs at several precisions, switched at run time (Double Rounding, arXiv:2502.01199).

pub mod artifact;
pub mod cli;
pub mod config;
pub mod files;
pub mod report;

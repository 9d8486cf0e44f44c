//! The tests of the program, of files of other networks and of the workspace, in one program.

mod bad_input;
mod cli;
mod data;
mod docs;
mod hessian;
mod mixed;
mod modules;
mod onnx;
mod own;
mod predict;
mod resume;
mod search;
mod tasks;
mod training;
#[cfg(feature = "remote")]
mod workers;

//! The tests of `dr-train` from outside, in one program: what they share is linked once.

mod arrays;
mod artifact;
mod augment;
mod calibrated;
mod data;
mod devices;
mod export;
mod folder;
mod gguf;
mod hessian;
mod integer_network;
mod llama;
mod metrics;
mod mixed;
mod plans;
mod quantization;
mod report;
mod samples;
mod scenes;
mod search;
mod settings;
mod torchvision;
mod trace;
mod training;

//! Training-free quantization of trained networks: one stored 8-bit code for each weight, chosen for all widths at once.
//!
//! # Networks for images
//! [`calibrate`] takes a float network and images like those that it is for. BatchNorm is [`folded`] into weights and biases. Then one pass goes over the layers in their
//! order, with all images in floats and at each precision, with the layers before already quantized:
//!
//! 1. Inputs get a static range: all that they are in floats at 8 bits, and 0; at fewer bits the one with the least squared error.
//!    Channels of an input are divided by how large they are, and the weights multiplied by it, where that is free: functions of each element of networks with operations on
//!    arrays make room for the factors, and a layer that only a depthwise convolution reads takes them itself.
//! 2. [`Nest`] fits what codes of an output stand for at each width, a scale and an offset, weighted by how large inputs are.
//! 3. Targets of the weights know the quantized inputs: what gives the outputs in floats from these, by least squares.
//! 4. Codes are chosen input by input, the largest first, for all widths at once, and at each width weights of later inputs make up for errors.
//! 5. Each output gets a factor and a bias at each precision, by least squares over all images and positions: rounding leaves constant errors, above all in depthwise
//!    convolutions, which cost more than all others together.
//!
//! Before, each layer is quantized alone at the highest precision, for a few of the inputs, and the outputs of the network are compared with those in floats. Layers for which they
//! differ by more than a hundredth stay in floats, the worst for their multiply-adds first, as long as they have few of these. A filter bank before a logarithm
//! is an example: what 8 bits leave of quiet frequencies is noise, in inputs and weights alike, whatever their ranges are.
//!
//! The first and the last layer and depthwise convolutions keep 8 bits unless they are to switch; they have a factor and a bias for each precision, too.
//! [`CalibratedLayer`](dr_runtime::file::CalibratedLayer) is what is stored, and [`CalibratedModel`] computes it in floats.
//!
//! [`distill`] then trains codes and all that is stored of each precision against the float network, without labels.
//!
//! # Language models
//! - [`Nest`] says which widths the stored codes serve, and fits what they stand for at each of them: a scale and an offset
//!   for each group of inputs, in the few bytes of [`StoredGrid`](dr_runtime::file::StoredGrid) and [`NarrowGrid`](dr_runtime::file::NarrowGrid).
//! - [`Factor`] is made of a layer's Hessian, and [`compensated`] chooses the codes of a layer with it. These need no Burn.
//! - [`quantize_language`] takes a traced language model and tokens of a text: it collects the Hessians layer by layer while it computes the
//!   texts, and quantizes each layer as soon as its Hessian is known.
//!
//! # Hessians
//! The Hessian of a layer's weights is the mean of two, each divided by the mean of its diagonal: the sum of `x x^T` over the inputs of
//! many windows of the text, and the sum of `||g||^2 x x^T` over the inputs of fewer, where `g` is the gradient of the loss
//! at the layer's output. Inputs that do not come out of a normalization differ in size by orders of magnitude, so in the first sum they are divided by
//! their length there, without those of the first position, which takes no part in what the text says but attracts the attention of all others.
//!
//! # Sensitivities
//! Where gradients are taken, the second sum also predicts what each layer costs at each of its widths, without any evaluation
//! ([`NestedWeight::sensitivity`](dr_runtime::file::NestedWeight::sensitivity)): `dr-train search` makes plans of it.
//!
//! # Tuning
//! [`tune`] then trains the scales and offsets of narrow widths, and nothing else, against the predictions of the float model.

mod alone;
mod calibrated;
mod distillation;
mod dynamic;
mod factor;
mod fold;
mod gradients;
mod grid;
mod language;
mod model;
mod moments;
mod network;
mod patches;
mod planes;
mod store;
mod tuning;
mod weight;

pub use calibrated::CalibratedModel;
pub use distillation::{DistillationError, DistillationOptions, DistillationProgress, Distilled, distill};
pub use dynamic::Dynamic;
pub use factor::Factor;
pub use fold::folded;
pub use grid::Nest;
pub use language::{CalibrationOptions, Progress, QuantizationError, quantize_language};
pub use model::NestedModel;
pub use network::{CalibrationError, LayerNoise, NetworkOptions, calibrate};
pub use tuning::{TuningOptions, TuningProgress, tune};
pub use weight::{compensated, nearest, quadratic_losses};

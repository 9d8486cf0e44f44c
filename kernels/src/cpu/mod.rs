//! The operations on a CPU: in parallel (rayon) over blocks, vectorised for the instruction set of the machine.
//!
//! Large results are [`Operation`]s: new vectors, or slices that are written to. What is computed does not depend on the
//! number of threads, and codes and values not on the instruction set.
//!
//! | file | what |
//! |---|---|
//! | `vector` | registers of floats, where loops keep count of them |
//! | `isa` | compiles a loop for each instruction set, and chooses |
//! | `blocks` | parallel loops over blocks of an output |
//! | `runs` | loops over the elements that share a scale |
//! | `codes`, `planes`, `sample`, `halves` | the arithmetic: codes in `f32`, packed codes in `u64`, halves |
//! | `fake_quantize`, `packed`, `scale_search` | the operations |
//! | `conv2d`, `winograd`, `depthwise`, `batch_norm`, `max_pool` | float convolution, BatchNorm and max pooling for training |
//! | `optimizer` | steps of optimizers |
//! | `language` | what language models compute between their linear layers |
//! | `pages`, `team` | how memory and threads come from the system |

mod batch_norm;
mod blocks;
mod codes;
mod conv2d;
mod depthwise;
mod fake_quantize;
mod halves;
pub mod integer;
mod isa;
pub mod language;
mod max_pool;
mod optimizer;
mod packed;
mod pages;
mod planes;
mod runs;
mod sample;
mod scale_search;
mod team;
mod vector;
mod winograd;

pub use batch_norm::{
    BatchNormGradients, BatchNormShape, batch_norm, batch_norm_backward, batch_norm_inference,
};
pub use blocks::Operation;
pub use conv2d::{
    Conv2dShape, Images, conv2d, conv2d_input_gradient, conv2d_quantized_input_gradient,
    conv2d_weight_gradient,
};
pub use fake_quantize::{
    FakeQuantizer, fake_quantize_activation, fake_quantize_activation_backward, fake_quantize_weight,
    fake_quantize_weight_backward,
};
pub use isa::Isa;
pub use max_pool::{MaxPoolShape, max_pool2d, max_pool2d_backward};
pub use optimizer::{AdamStep, OptimizerStep, SgdStep};
pub use packed::{dequantize_packed, quantize_pack, switch_packed};
pub(crate) use pages::Words;
pub use sample::Sample;
pub use scale_search::search_scales;

//! Integer convolutions and matrix products: unsigned activation codes times packed signed weights, summed in 32 bits, with
//! scales, zero points, BatchNorm, residual, ReLU and the next layer's quantization in the epilogue.
//!
//! The layouts are in [`crate::integer`]. There is no `im2col` matrix: output position `m` and step `s` of the sum meet at byte
//! `base(m) + offset(s)` of the (padded) codes, so a convolution is a matrix product that reads its left side through
//! two tables. A product of matrices is the convolution of images of one pixel.
//!
//! | file | what |
//! |---|---|
//! | `dot` | tiles of sums, for each instruction set |
//! | `decode` | codes from the planes of a block, for each instruction set |
//! | `panels` | weights: preparing, unpacking, switching |
//! | `conv` | the loops around tiles: tasks, padding, depthwise convolutions |
//! | `grouped` | rows and weights with scales for every 32 inputs |
//! | `epilogue` | from sums to results |
//! | `quantize` | from floats to codes |
//! | `training` | a convolution of fake-quantized values, from their codes |
//! | `zero_point` | what makes up for the zero point of the input |
//! | `weight_only` | packed weights times floats |

mod conv;
mod decode;
mod dot;
mod epilogue;
mod grouped;
mod panels;
mod quantize;
mod training;
mod weight_only;
mod zero_point;

pub use conv::{Job, Plan, Results, int_conv2d, int_conv2d_together};
pub use dot::DotKernel;
pub(crate) use dot::RowGroup;
pub use epilogue::Epilogue;
pub(crate) use grouped::{
    GroupedJob, group_codes, group_scales, group_words, grouped_products, quantize_rows,
};
pub use panels::{Codes, prepare, switch_panels, unpack_panels};
pub(crate) use panels::{codes_of, prepare_words, switch_words};
pub use quantize::{quantize_codes, quantize_codes_into};
pub use training::conv2d_of_codes;
pub use weight_only::weight_only;
pub use zero_point::Addends;
pub(crate) use zero_point::tap_sums;

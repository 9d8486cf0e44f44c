//! Straight loops over slices, slow and obviously right. Everything else is tested against these.
//!
//! Tensors are contiguous, in row-major order; which scale belongs to which element is a
//! [`ScaleLayout`](crate::layout::ScaleLayout).
//! Lengths are the caller's business here: the functions over tensors in the crate's root check them.

mod batch_norm;
mod conv2d;
mod dynamic;
mod fake_quantize;
mod integer;
mod pack;
mod scale_search;

pub use crate::candidates::{CANDIDATES, candidate};
pub use batch_norm::{batch_norm, batch_norm_backward};
pub use conv2d::{conv2d, conv2d_input_gradient, conv2d_weight_gradient};
pub use dynamic::{Grouped, dynamic_product, quantize_rows};
pub use fake_quantize::{
    fake_quantize_activation, fake_quantize_activation_backward, fake_quantize_weight,
    fake_quantize_weight_backward,
};
pub use integer::{epilogue, int_conv2d, prepare_panels, quantize_codes, weight_only, zero_point_addends};
pub use pack::{dequantize_packed, pack, quantize, quantize_pack, switch_packed, unpack};
pub use scale_search::search_scales;

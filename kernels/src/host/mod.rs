//! Products and quantization over slices of this computer's memory, without Burn.
//!
//! | type | what |
//! |---|---|
//! | [`StoredWeight`] | codes of the stored width, which can be switched |
//! | [`Weight`] | codes of one width with their scales |
//! | [`Product`] | a weight, how its input is quantized, and what follows: gain, shift, activation |
//! | [`WeightOnly`] | a weight whose input stays in floats |
//! | [`GroupedWeight`] | codes of one width with a scale and an offset for every 32 inputs |
//! | [`Rows`] | an input in floats, quantized as it comes |
//! | [`DynamicProduct`] | the product of the two |
//! | [`language`] | what language models compute between their products |
//!
//! Values are `[batch, rows, columns, channels]` in row-major order; a matrix `[m, k]` has `m` images of one pixel. Codes are
//! bytes in the same order, their channels padded to whole words of four ([`code_len`]); what stands in the padding does not
//! matter.
//!
//! ```
//! use dr_kernels::host::{Product, Results, StoredWeight, code_len};
//! use dr_kernels::{Activation, CodeQuantizer, Conv2dOptions};
//! use dr_precision::{BitWidth, Granularity};
//!
//! // Two outputs of three inputs, at 8 bits; then at 4.
//! let stored = StoredWeight::from_codes(&[127, -64, 0, 1, 2, -128], &[2, 3], 1, BitWidth::B8, Granularity::Channel)?;
//! let weight = stored.at(BitWidth::B4, &[0.5, 0.25])?;
//! assert_eq!(weight.codes(), [7, -4, 0, 0, 0, -8]);
//! let input = CodeQuantizer { bits: BitWidth::B8, scale: 0.1, zero_point: 0.0 };
//! let product =
//!     Product::new(weight, Conv2dOptions::default(), input, &[1.0; 2], &[10.0, 0.0], Activation::Relu)?;
//! let dims = [1, 1, 1, 3];
//! let (mut codes, mut out) = (vec![0; code_len(dims)], vec![0.0; 2]);
//! product.quantize(&[0.2, 0.3, 1.0], dims, true, &mut codes)?;
//! product.run(&codes, dims, None, Results { values: Some(&mut out), codes: None })?;
//! assert_eq!(out, [10.0 + 0.1 * 0.5 * (2.0 * 7.0 - 3.0 * 4.0), 0.0]);
//! # Ok::<(), dr_kernels::KernelError>(())
//! ```

mod dynamic;
mod product;
#[cfg(test)]
mod tests;
mod weight;
mod weight_only;

pub use crate::integer::Conv2dOptions;
pub use dynamic::{DynamicProduct, GroupedCodes, GroupedWeight, Rows};
pub use product::{Job, Product, Results, run_together};
pub use weight::{StoredWeight, Weight};
pub use weight_only::WeightOnly;

use crate::integer::padded_channels;

/// What language models compute between their products: norms, rotary positions, gates, attention; and how
/// well they predict.
pub mod language {
    pub use crate::cpu::language::{
        AttentionCache, attention, cross_entropy, divergence, rms_norm, rotate, swiglu,
    };
}

/// Bytes of the codes of `[batch, rows, columns, channels]`: channels are padded to whole words. Sizes that no memory has
/// are `usize::MAX`.
#[must_use]
pub const fn code_len([batch, rows, columns, channels]: [usize; 4]) -> usize {
    batch.saturating_mul(rows).saturating_mul(columns).saturating_mul(padded_channels(channels))
}

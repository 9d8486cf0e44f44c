//! The arithmetic of Double Rounding quantization (arXiv:2502.01199) for Burn: fused fake quantization with its
//! gradients, packing, switching between bit-widths by a shift, dequantization and scale initialisation.
//!
//! | module | what | for |
//! |---|---|---|
//! | this one | functions over Burn tensors, with autodiff and under Fusion | a Burn project |
//! | [`host`] | integer products over slices, and what language models compute between them | programs without Burn |
//! | [`integer`], [`layout`] | what weights and products are, and how codes lie in memory | both |
//!
//! Behind these every operation exists three times, in private modules, and the three agree (see `tests/`): `reference` has
//! straight loops, for tests; `cpu` loops over tiles, in parallel, with SIMD chosen at run time, for slices and for Burn's
//! `flex`; `cube` CubeCL kernels, for GPUs.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use dr_kernels::WeightQuantizer;
//! use dr_precision::{BitWidth, Granularity};
//!
//! let device = Device::flex();
//! let weight = Tensor::<2>::from_data([[0.1, -0.4, 0.8], [1.0, 2.0, -3.0]], &device);
//! let widths = [BitWidth::B8, BitWidth::B2];
//! let [s8, s2]: [Tensor<1>; 2] =
//!     dr_kernels::search_scales(weight.clone(), &widths, Granularity::Channel)?.try_into().unwrap();
//! let two_bit = WeightQuantizer::new(BitWidth::B8, BitWidth::B2)?;
//! let w2 = dr_kernels::fake_quantize_weight(weight, s8, s2, &two_bit)?;
//! assert_eq!(w2.dims(), [2, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//! `burn`, the default: the functions over tensors, on CPUs through Burn's `flex`. `wgpu`, `vulkan`, `cuda` and `cpu` (CubeCL's
//! CPU runtime) each add the CubeCL kernels and Burn's backend of that name. `persistence` keeps on disk what these tune and compile. `remote` adds the operations that training needs on
//! devices of other machines. `unstable` opens `cpu` and `reference` to the tests and benchmarks of this workspace.

#[cfg(feature = "burn")]
#[path = "burn/mod.rs"]
mod burn_face;
mod candidates;
#[cfg(feature = "unstable")]
#[doc(hidden)]
pub mod cpu;
#[cfg(not(feature = "unstable"))]
#[allow(dead_code, unused_imports, reason = "tests, benchmarks and tensors use more of it than slices do")]
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod error;
mod format;
pub mod host;
pub mod integer;
pub mod layout;
#[cfg(any(test, feature = "unstable"))]
#[doc(hidden)]
pub mod reference;

#[cfg(feature = "remote")]
pub use burn_face::remote;
#[cfg(feature = "burn")]
pub use burn_face::{
    CodeState, Codes, ConvQuantizer, IntProduct, IntWeight, LaunchCounter, Narrowed, PackedTensor, Results,
    Stored, Wanted, WeightOnlyProduct, adam_step, batch_norm_channels_last,
    batch_norm_channels_last_inference, conv2d, conv2d_channels_last, conv2d_quantized, dequantize,
    fake_quantize_activation, fake_quantize_weight, keep_compiled_kernels, max_pool2d_channels_last,
    quantize_pack, search_scales, sgd_step, switch, takes_channels_last,
};
#[cfg(feature = "burn")]
pub use cpu::{AdamStep, OptimizerStep, SgdStep};
pub use error::KernelError;
pub use format::{ActivationQuantizer, ScaleGradient, WeightQuantizer};
pub use integer::{Activation, CodeQuantizer, Conv2dOptions, WeightLayout};

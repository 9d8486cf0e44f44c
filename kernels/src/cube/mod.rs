//! CubeCL kernels, compiled at run time for CUDA, wgpu, Vulkan and CubeCL's CPU runtime.
//!
//! | module | what |
//! |---|---|
//! | `code` | from a value to its code: rounding and clipping |
//! | `runs` | which scale belongs to which element, and the other way round |
//! | `launch` | buffers, vector sizes and numbers of cubes |
//! | `reduce` | sums over the units of a cube |
//! | `fake_quantize`, `gradient` | the differentiable operations and their gradients |
//! | `pack` | packed codes |
//! | `scale_search` | the scales that weights start from |
//! | `integer` | convolutions and matrix products of codes |
//!
//! Bit-widths are part of a kernel's identity: one source, compiled once for each width that is used.
//!
//! Codes are those of `f32` arithmetic with correctly rounded division. CUDA and CubeCL's CPU runtime divide so. WGSL and
//! SPIR-V allow a driver 2.5 units in the last place, so there a value that close to the middle between two codes
//! may get the other one.

mod code;
mod fake_quantize;
mod gradient;
mod integer;
mod launch;
mod pack;
mod reduce;
mod runs;
mod scale_search;

use crate::burn_face::ops::{
    ActivationFormat, FakeQuantizeGradOps, FakeQuantizeOps, PackFormat, PackOps, SearchOps, WeightFormat,
};
use crate::layout::ScaleLayout;
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use code::Rule;
use dr_precision::BitWidth;
use gradient::Backward;

impl FakeQuantizeOps for CubeBackend {
    fn fake_quantize_weight(
        w: CubeTensor, stored_scale: CubeTensor, scale: CubeTensor, format: WeightFormat,
    ) -> CubeTensor {
        let rule = Rule::Weight { stored: format.stored, active: format.active };
        fake_quantize::fake_quantize([w, stored_scale, scale], &format.layout, rule)
    }

    fn fake_quantize_activation(
        x: CubeTensor, scale: CubeTensor, zero_point: CubeTensor, format: ActivationFormat,
    ) -> CubeTensor {
        let rule = Rule::Activation { bits: format.bits };
        fake_quantize::fake_quantize([x, scale, zero_point], &format.layout, rule)
    }
}

impl FakeQuantizeGradOps for CubeBackend {
    fn fake_quantize_weight_backward(
        w: CubeTensor, stored_scale: CubeTensor, scale: CubeTensor, grad: CubeTensor, format: WeightFormat,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let WeightFormat { stored, active, layout, gradient } = format;
        let operation = Backward::Weight { stored, active, mode: gradient };
        gradient::backward([w, stored_scale, scale, grad], &layout, operation)
    }

    fn fake_quantize_activation_backward(
        x: CubeTensor, scale: CubeTensor, zero_point: CubeTensor, grad: CubeTensor, format: ActivationFormat,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let operation = Backward::Activation { bits: format.bits };
        gradient::backward([x, scale, zero_point, grad], &format.layout, operation)
    }
}

impl SearchOps for CubeBackend {
    fn search_scales(w: CubeTensor, layout: ScaleLayout, widths: Vec<BitWidth>) -> CubeTensor {
        scale_search::search(w, &layout, widths)
    }
}

impl PackOps for CubeBackend {
    fn quantize_pack(
        x: CubeTensor, scale: CubeTensor, zero_point: CubeTensor, format: PackFormat,
    ) -> CubeTensor {
        pack::quantize([x, scale, zero_point], format)
    }

    fn switch_packed(words: CubeTensor, elements: usize, stored: BitWidth, active: BitWidth) -> CubeTensor {
        pack::switch(words, elements, stored, active)
    }

    fn dequantize_packed(
        words: CubeTensor, scale: CubeTensor, zero_point: CubeTensor, format: PackFormat,
    ) -> CubeTensor {
        pack::dequantize([words, scale, zero_point], format)
    }
}

//! Fake quantization, forward: one pass, a unit per vector.

use super::code::{Rule, code_of};
use super::launch::{empty_like, one_unit_each, vector_size};
use super::runs::{Runs, runs};
use crate::layout::ScaleLayout;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};

/// `first` and `second` are `s_h` and `s_l` for weights, scale and zero point for activations.
#[cube(launch)]
fn forward_kernel<N: Size>(
    x: &[Vector<f32, N>], first: &[f32], second: &[f32], out: &mut [Vector<f32, N>], runs: Runs,
    vectors: u32, #[comptime] rule: Rule,
) {
    let i = ABSOLUTE_POS as u32;
    if i >= vectors {
        terminate!();
    }
    let (at, j) = (i as usize, runs.scale_of(i));
    let scale = Vector::<f32, N>::new(first[j]);
    if comptime!(rule.has_zero_point()) {
        let zero = Vector::<f32, N>::new(second[j]);
        out[at] = code_of((x[at] - zero) / scale, rule) * scale + zero;
    } else if comptime!(rule.step() == 1) {
        out[at] = code_of(x[at] / scale, rule) * scale;
    } else {
        out[at] = code_of(x[at] / scale, rule) * Vector::new(second[j]);
    }
}

/// `[x, first, second]` to what has the shape of `x`.
pub(super) fn fake_quantize(inputs: [CubeTensor; 3], layout: &ScaleLayout, rule: Rule) -> CubeTensor {
    let [x, first, second] = inputs.map(into_contiguous);
    let (out, lanes) = (empty_like(&x), vector_size(&x, layout));
    let vectors = layout.elements() / lanes;
    let (count, dim) = one_unit_each(&out.client, vectors);
    #[rustfmt::skip]
    forward_kernel::launch(
        &out.client, count, dim, lanes,
        x.into_buffer_arg(), first.into_buffer_arg(), second.into_buffer_arg(), out.clone().into_buffer_arg(),
        runs(layout, lanes), vectors as u32, rule,
    );
    out
}

//! Fake quantization, forward: one pass, some vectors for each unit.

use super::code::{Rule, code_of};
use super::launch::{empty_like, index, one_unit_each, vector_size};
use super::runs::{Runs, runs};
use crate::layout::ScaleLayout;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};

/// `first` and `second` are `s_h` and `s_l` for weights, scale and zero point for activations.
#[cube(launch)]
fn forward_kernel<N: Size>(
    x: &[Vector<f32, N>], first: &[f32], second: &[f32], out: &mut [Vector<f32, N>], runs: Runs,
    vectors: u32, #[comptime] count: usize, #[comptime] rule: Rule,
) {
    // Neighbouring units have neighbouring vectors, and each unit reads all of its own before it works on one.
    let first_vector = CUBE_POS as u32 * CUBE_DIM * comptime!(count as u32) + UNIT_POS;
    let mut values = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for k in 0..count {
        let i = first_vector + CUBE_DIM * comptime!(k as u32);
        if i < vectors {
            values[k] = x[i as usize];
        }
    }
    #[unroll]
    for k in 0..count {
        let i = first_vector + CUBE_DIM * comptime!(k as u32);
        if i < vectors {
            let (at, j) = (i as usize, runs.scale_of(i));
            let scale = Vector::<f32, N>::new(first[j]);
            if comptime!(rule.has_zero_point()) {
                let zero = Vector::<f32, N>::new(second[j]);
                out[at] = code_of((values[k] - zero) / scale, rule) * scale + zero;
            } else if comptime!(rule.step() == 1) {
                out[at] = code_of(values[k] / scale, rule) * scale;
            } else {
                out[at] = code_of(values[k] / scale, rule) * Vector::new(second[j]);
            }
        }
    }
}

/// Vectors of a unit where there are very many.
const VECTORS: usize = 4;

/// So many that all units of a large GPU have some.
const MANY: usize = 1 << 20;

/// `[x, first, second]` to what has the shape of `x`.
pub(super) fn fake_quantize(inputs: [CubeTensor; 3], layout: &ScaleLayout, rule: Rule) -> CubeTensor {
    let [x, first, second] = inputs.map(into_contiguous);
    let (out, lanes) = (empty_like(&x), vector_size(&x, layout));
    let vectors = layout.elements() / lanes;
    let each = if vectors >= MANY { VECTORS } else { 1 };
    let (count, dim) = one_unit_each(&out.client, vectors.div_ceil(each));
    #[rustfmt::skip]
    forward_kernel::launch(
        &out.client, count, dim, lanes,
        x.into_buffer_arg(), first.into_buffer_arg(), second.into_buffer_arg(), out.clone().into_buffer_arg(),
        runs(layout, lanes), index(vectors), each, rule,
    );
    out
}

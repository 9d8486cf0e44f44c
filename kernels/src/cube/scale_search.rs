//! The search of [`crate::reference::search_scales`], a cube per scale.
//!
//! In `f32` the error `|w|^2 - <w, q>^2 / <q, q>` would be a small difference of large sums. So the deviations from a scale near
//! the best one are summed: with `s_0 = s_h 2^d` and `e = w - s_0 q`, the best scale is `s_0 + <e, q> / <q, q>` and its error
//! `<e, e> - <e, q>^2 / <q, q>`.

use super::code::{Rule, code_of, second_rounding};
use super::launch::{cubes, empty, index, summing_units, upload, vector_size};
use super::reduce::sum_over_cube;
use super::runs::{Runs, runs};
use crate::candidates::{CANDIDATES, candidate};
use crate::cpu::{self, Isa};
use crate::layout::ScaleLayout;
use burn::tensor::DType;
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, tensor::CubeTensor};
use dr_precision::BitWidth;

/// The second rounding from the first of `widths` to number `b`.
fn rule(widths: &[BitWidth], b: usize) -> Rule {
    Rule::Weight { stored: widths[0], active: widths[b] }
}

/// `multipliers` are the candidates for weights of deviation 1; `found` is `[widths, scales]`, and the first of `widths` the
/// stored one.
#[cube(launch)]
fn search_kernel<N: Size>(
    w: &[Vector<f32, N>], multipliers: &[f32], found: &mut [f32], runs: Runs, scales: u32, candidates: u32,
    #[comptime] widths: Vec<BitWidth>, #[comptime] units: u32,
) {
    let j = CUBE_POS as u32;
    if j >= scales {
        terminate!();
    }
    let count = comptime!(widths.len());
    let (vectors, length) = (runs.vectors_of(j), runs.run_length(j));
    // `<e, e>`, `<e, q>` and `<q, q>` for each width.
    let mut shared = Shared::<[f32]>::new_slice(3 * count * units as usize);
    let mut sums = Array::<f32>::new(3 * count);

    let mut squares = Vector::<f32, N>::new(0.0);
    for k in range_stepped(UNIT_POS, vectors, units) {
        let value = w[runs.vector(j, k, length)];
        squares += value * value;
    }
    sums[0] = squares.vector_sum();
    sum_over_cube(&mut sums, &mut shared, 1usize, units);
    let mean = sums[0] / f32::cast_from(vectors * N::value() as u32);
    // Zeros get the scales of a small deviation, and so do weights that are not finite.
    let fallback = 1e-3f32;
    let rms = select(mean > 0.0, mean.sqrt(), fallback);

    let mut least = f32::max_value();
    let mut best = Array::<f32>::new(count);
    #[unroll]
    for b in 0..count {
        best[b] = multipliers[0] * fallback;
    }
    for k in 0..candidates {
        let s_h = multipliers[k as usize] * rms;
        let mut partial = Array::<Vector<f32, N>>::new(3 * count);
        #[unroll]
        for a in 0..3 * count {
            partial[a] = Vector::new(0.0);
        }
        for i in range_stepped(UNIT_POS, vectors, units) {
            let value = w[runs.vector(j, i, length)];
            let stored = code_of(value / Vector::new(s_h), comptime!(rule(&widths, 0)));
            #[unroll]
            for b in 0..count {
                let step = f32::new(comptime!(rule(&widths, b).step() as f32));
                let q = second_rounding(stored, comptime!(rule(&widths, b)));
                let e = value - q * Vector::new(s_h * step);
                partial[3 * b] += e * e;
                partial[3 * b + 1] += e * q;
                partial[3 * b + 2] += q * q;
            }
        }
        #[unroll]
        for a in 0..3 * count {
            sums[a] = partial[a].vector_sum();
        }
        sum_over_cube(&mut sums, &mut shared, 3 * count, units);
        let mut objective = sums[0] * f32::new(comptime!(weight(widths[0])));
        #[unroll]
        for b in 1..count {
            let (ee, eq, qq) = (sums[3 * b], sums[3 * b + 1], sums[3 * b + 2]);
            let gain = select(qq > 0.0, eq / max(qq, 1.0f32) * eq, 0.0f32);
            objective += (ee - gain) * f32::new(comptime!(weight(widths[b])));
        }
        if objective < least {
            least = objective;
            best[0] = s_h;
            #[unroll]
            for b in 1..count {
                let step = f32::new(comptime!(rule(&widths, b).step() as f32));
                let (eq, qq) = (sums[3 * b + 1], sums[3 * b + 2]);
                best[b] = s_h * step + select(qq > 0.0, eq / max(qq, 1.0f32), 0.0f32);
            }
        }
    }
    if UNIT_POS == 0 {
        #[unroll]
        for b in 0..count {
            found[b * scales as usize + j as usize] = best[b];
        }
    }
}

/// `4^b`: the error is measured in what a quantizer of that width alone can about attain.
fn weight(bits: BitWidth) -> f32 {
    4f32.powi(bits.bits() as i32)
}

/// Scales `[widths, scales]` for `w`.
pub(super) fn search(w: CubeTensor, layout: &ScaleLayout, widths: Vec<BitWidth>) -> CubeTensor {
    let (w, scales) = (into_contiguous(w), layout.scales());
    if layout.elements() == 0 {
        return upload(&w, &cpu::search_scales(Isa::detect(), &[], layout, &widths));
    }
    let multipliers: Vec<f32> = (0..CANDIDATES).map(|k| candidate(k, 1.0, widths[0])).collect();
    let (client, multipliers) = (w.client.clone(), upload(&w, &multipliers));
    let found = empty(&w, [widths.len() * scales], DType::F32);
    let lanes = vector_size(&w, layout);
    let units = summing_units(&client, layout.elements_of(0) / lanes);
    let (count, dim) = cubes(&client, scales, units);
    #[rustfmt::skip]
    search_kernel::launch(
        &client, count, dim, lanes,
        w.into_buffer_arg(), multipliers.into_buffer_arg(), found.clone().into_buffer_arg(),
        runs(layout, lanes), index(scales), CANDIDATES, widths, units,
    );
    found
}

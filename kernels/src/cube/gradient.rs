//! Fake quantization, backward: one pass over memory for the gradient of the values and those of both vectors of scales
//! (or zero points). A cube sums what shares a scale; many elements with one scale are split into parts, a cube
//! each, and a second kernel adds up the parts. No atomics, so the same input gives the same bits.

use super::code::{Rule, code_of};
use super::launch::{cubes, empty, empty_like, index, summing_units, vector_size};
use super::reduce::sum_over_cube;
use super::runs::{Runs, runs};
use crate::{ScaleGradient, layout::ScaleLayout};
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::{kernel::into_contiguous, ops::numeric, tensor::CubeTensor};
use dr_precision::BitWidth;

/// Terms that one unit adds up in a row. Rounding errors grow with this number, not with that of the elements.
const SERIAL: usize = 32;

/// The operation whose gradient is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Backward {
    Weight { stored: BitWidth, active: BitWidth, mode: ScaleGradient },
    Activation { bits: BitWidth },
}

impl Backward {
    const fn rule(self) -> Rule {
        match self {
            Self::Weight { stored, active, .. } => Rule::Weight { stored, active },
            Self::Activation { bits } => Rule::Activation { bits },
        }
    }

    /// The gradient mode. At `l = h` all modes are the same kernel.
    const fn normalised(self) -> Self {
        match self {
            Self::Weight { stored, active, .. } if stored.bits() == active.bits() => {
                Self::Weight { stored, active, mode: ScaleGradient::Lsq }
            }
            other => other,
        }
    }

    const fn is_activation(self) -> bool {
        matches!(self, Self::Activation { .. })
    }

    /// The stored scale is the only one.
    const fn is_stored(self) -> bool {
        self.rule().step() == 1
    }

    /// The scale's gradient is `g` times the code.
    const fn sums_codes(self) -> bool {
        matches!(self, Self::Weight { mode: ScaleGradient::Exact | ScaleGradient::Chained, .. })
    }

    const fn is_chained(self) -> bool {
        matches!(self, Self::Weight { mode: ScaleGradient::Chained, .. })
    }
}

/// What one vector gives: its gradient, and its terms of the two sums.
#[derive(CubeType, Clone, Copy)]
struct Terms<N: Size> {
    dx: Vector<f32, N>,
    first: Vector<f32, N>,
    second: Vector<f32, N>,
}

/// `code - x / unit` with an error of the order of its own rounding, not of that of `x / unit`: most of `unit * code` is
/// formed and subtracted exactly, whether or not the device fuses multiply and add, and the rest is added at the end.
/// (It is divided first, since a driver that may reorder would otherwise join both products again.)
#[cube]
fn residual<N: Size>(code: Vector<f32, N>, x: Vector<f32, N>, unit: f32) -> Vector<f32, N> {
    let high = f32::reinterpret(u32::reinterpret(unit) & 0xffff_ff00u32); // 16 bits, codes have 8
    let rest = (unit - high) / unit;
    (code * Vector::new(high) - x) / Vector::new(unit) + code * Vector::new(rest)
}

/// The table at [`ScaleGradient`], and LSQ+'s gradients for activations.
#[cube]
fn terms<N: Size>(
    x: Vector<f32, N>, first: f32, second: f32, g: Vector<f32, N>, #[comptime] operation: Backward,
) -> Terms<N> {
    let rule = comptime!(operation.rule());
    let zero = Vector::<f32, N>::from_int(0);
    let (low, high) = (Vector::from_int(rule.low()), Vector::from_int(rule.high()));
    let unit = first * f32::new(comptime!(rule.step() as f32));
    if comptime!(operation.is_activation()) {
        let centred = x - Vector::new(second);
        let v = centred / Vector::new(first);
        let inside = clamp(v, low, high).equal(&v);
        let code = code_of(v, rule);
        let lsq = select_many(inside, residual(code, centred, unit), code);
        Terms::<N> { dx: select_many(inside, g, zero), first: g * lsq, second: select_many(inside, zero, g) }
    } else {
        let ratio = x / Vector::new(first);
        let v = ratio * Vector::new(f32::new(comptime!(1.0 / rule.step() as f32)));
        let inside = clamp(v, low, high).equal(&v);
        let code = code_of(ratio, rule);
        let dx = select_many(inside, g, zero);
        if comptime!(operation.is_chained()) {
            let slope = Vector::new(second / unit);
            let stored = v * Vector::new(second / first);
            Terms::<N> { dx: dx * slope, first: zero - dx * stored, second: g * code }
        } else if comptime!(operation.sums_codes()) {
            Terms::<N> { dx, first: zero, second: g * code }
        } else {
            let lsq = g * select_many(inside, residual(code, x, unit), code);
            if comptime!(operation.is_stored()) {
                Terms::<N> { dx, first: lsq, second: zero }
            } else {
                Terms::<N> { dx, first: zero, second: lsq }
            }
        }
    }
}

/// LSQ's factors: those of a run of full length and of the last run of a row.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Factors {
    full: f32,
    last: f32,
}

/// Cube `part + parts * j` takes part `part` of what has scale `j`, in parts of `per_part` vectors, and writes its sums at
/// its own place. `factors` are 1 if there is a second kernel.
#[cube(launch)]
fn backward_kernel<N: Size>(
    x: &[Vector<f32, N>], first: &[f32], second: &[f32], grad: &[Vector<f32, N>], dx: &mut [Vector<f32, N>],
    dfirst: &mut [f32], dsecond: &mut [f32], runs: Runs, factors: Factors, sums: u32, parts: u32,
    per_part: u32, #[comptime] operation: Backward, #[comptime] units: u32,
) {
    let place = CUBE_POS as u32;
    if place >= sums {
        terminate!(); // the whole cube leaves together, so the barriers below are safe
    }
    let (j, part) = (place / parts, place % parts);
    let (s, t) = (first[j as usize], second[j as usize]);
    let length = runs.run_length(j);
    let begin = part * per_part;
    let end = min(begin + per_part, runs.vectors_of(j));
    let mut sum_first = Vector::<f32, N>::new(0.0);
    let mut sum_second = Vector::<f32, N>::new(0.0);
    for k in range_stepped(begin + UNIT_POS, end, units) {
        let at = runs.vector(j, k, length);
        let terms = terms::<N>(x[at], s, t, grad[at], operation);
        dx[at] = terms.dx;
        sum_first += terms.first;
        sum_second += terms.second;
    }
    let mut totals = Array::<f32>::new(2usize);
    totals[0] = sum_first.vector_sum();
    totals[1] = sum_second.vector_sum();
    let mut shared = Shared::<[f32]>::new_slice(2 * units as usize);
    sum_over_cube(&mut totals, &mut shared, 2usize, units);
    if UNIT_POS == 0 {
        let factor = select(runs.is_last(j), factors.last, factors.full);
        dfirst[place as usize] = totals[0] * factor;
        dsecond[place as usize] = totals[1] * factor;
    }
}

/// A cube per scale: adds up its `parts` sums, `[scales, parts]` to `[scales]`.
#[cube(launch)]
fn add_parts_kernel(
    first: &[f32], second: &[f32], dfirst: &mut [f32], dsecond: &mut [f32], runs: Runs, factors: Factors,
    scales: u32, parts: u32, #[comptime] units: u32,
) {
    let j = CUBE_POS as u32;
    if j >= scales {
        terminate!();
    }
    let mut totals = Array::<f32>::new(2usize);
    totals[0] = 0.0;
    totals[1] = 0.0;
    for part in range_stepped(UNIT_POS, parts, units) {
        let at = (j * parts + part) as usize;
        totals[0] += first[at];
        totals[1] += second[at];
    }
    let mut shared = Shared::<[f32]>::new_slice(2 * units as usize);
    sum_over_cube(&mut totals, &mut shared, 2usize, units);
    if UNIT_POS == 0 {
        let factor = select(runs.is_last(j), factors.last, factors.full);
        dfirst[j as usize] = totals[0] * factor;
        dsecond[j as usize] = totals[1] * factor;
    }
}

/// The gradients of `[x, first, second]`, given those and the gradient of the output.
pub(super) fn backward(
    inputs: [CubeTensor; 4], layout: &ScaleLayout, operation: Backward,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [x, first, second, grad] = inputs.map(into_contiguous);
    let dx = empty_like(&x);
    let (client, device, scales) = (dx.client.clone(), dx.device.clone(), layout.scales());
    if layout.elements() == 0 {
        let zeros = || numeric::zeros_client(client.clone(), device.clone(), [scales].into(), dx.dtype);
        return (dx.clone(), zeros(), zeros());
    }
    let (dfirst, dsecond) = (empty_like(&first), empty_like(&second));
    let operation = operation.normalised();
    let highest = operation.rule().high() as i32;
    // All runs but the last of a row have the length of the first.
    let factors = || {
        let [full, last] = [0, layout.runs() - 1].map(|j| layout.gradient_factor(j, highest));
        FactorsLaunch::new(full, last)
    };
    let lanes = vector_size(&x, layout);
    let longest = layout.elements_of(0) / lanes;
    let units = summing_units(&client, longest);
    let per_part = units as usize * SERIAL;
    let parts = longest.div_ceil(per_part);
    let (sum_first, sum_second, first_factors) = match parts {
        1 => (dfirst.clone(), dsecond.clone(), factors()),
        _ => {
            let partial = || empty(&dx, [scales * parts], dx.dtype);
            (partial(), partial(), FactorsLaunch::new(1.0, 1.0))
        }
    };
    let (count, dim) = cubes(&client, scales * parts, units);
    #[rustfmt::skip]
    backward_kernel::launch(
        &client, count, dim, lanes,
        x.into_buffer_arg(), first.into_buffer_arg(), second.into_buffer_arg(), grad.into_buffer_arg(),
        dx.clone().into_buffer_arg(), sum_first.clone().into_buffer_arg(), sum_second.clone().into_buffer_arg(),
        runs(layout, lanes), first_factors, index(scales * parts), index(parts), index(per_part),
        operation, units,
    );
    if parts > 1 {
        let units = summing_units(&client, parts);
        let (count, dim) = cubes(&client, scales, units);
        #[rustfmt::skip]
        add_parts_kernel::launch(
            &client, count, dim,
            sum_first.into_buffer_arg(), sum_second.into_buffer_arg(),
            dfirst.clone().into_buffer_arg(), dsecond.clone().into_buffer_arg(),
            runs(layout, lanes), factors(), index(scales), index(parts), units,
        );
    }
    (dx, dfirst, dsecond)
}

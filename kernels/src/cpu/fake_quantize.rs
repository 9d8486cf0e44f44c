//! Fake quantization and its gradients, each one pass over memory.

use super::blocks::{collect, fill};
use super::codes::{Quantizer, Switch};
use super::isa::Isa;
use super::runs::{Gradient, GradientRuns, Map, MapRuns, RunSums};
use crate::{ScaleGradient, layout::ScaleLayout};
use dr_precision::BitWidth;

/// [`crate::reference::fake_quantize_weight`].
#[must_use]
pub fn fake_quantize_weight(
    w: &[f32], stored_scale: &[f32], scale: &[f32], layout: &ScaleLayout, stored: BitWidth, active: BitWidth,
) -> Vec<f32> {
    let map = WeightMap::new(stored_scale, scale, stored, active);
    collect(w.len(), forward(Isa::detect(), &map, w, layout)).0
}

/// [`fake_quantize_weight`] on `isa` into `out`.
///
/// # Panics
/// If `out` is not as long as `w`, or the machine has no `isa`.
#[expect(clippy::too_many_arguments, reason = "four tensors and a format")]
pub fn fake_quantize_weight_into(
    isa: Isa, w: &[f32], stored_scale: &[f32], scale: &[f32], layout: &ScaleLayout, stored: BitWidth,
    active: BitWidth, out: &mut [f32],
) {
    assert_eq!(out.len(), w.len());
    let map = WeightMap::new(stored_scale, scale, stored, active);
    fill(out, forward(isa, &map, w, layout));
}

/// [`crate::reference::fake_quantize_activation`].
#[must_use]
pub fn fake_quantize_activation(
    x: &[f32], scale: &[f32], zero_point: &[f32], layout: &ScaleLayout, bits: BitWidth,
) -> Vec<f32> {
    let map = ActivationMap { scale, zero_point, bits };
    collect(x.len(), forward(Isa::detect(), &map, x, layout)).0
}

/// [`fake_quantize_activation`] on `isa` into `out`.
///
/// # Panics
/// If `out` is not as long as `x`, or the machine has no `isa`.
pub fn fake_quantize_activation_into(
    isa: Isa, x: &[f32], scale: &[f32], zero_point: &[f32], layout: &ScaleLayout, bits: BitWidth,
    out: &mut [f32],
) {
    assert_eq!(out.len(), x.len());
    let map = ActivationMap { scale, zero_point, bits };
    fill(out, forward(isa, &map, x, layout));
}

/// What computes a block of an elementwise operation.
fn forward<M: Map>(
    isa: Isa, map: &M, x: &[M::In], layout: &ScaleLayout,
) -> impl Fn(usize, &mut [M::Out]) + Sync {
    assert_eq!(x.len(), layout.elements());
    move |start, out| {
        let x = &x[start..start + out.len()];
        isa.run(MapRuns { map, layout, start, x, out });
    }
}

struct WeightMap<'a> {
    stored_scale: &'a [f32],
    scale: &'a [f32],
    stored: BitWidth,
    switch: Switch,
}

impl<'a> WeightMap<'a> {
    fn new(stored_scale: &'a [f32], scale: &'a [f32], stored: BitWidth, active: BitWidth) -> Self {
        let scale = if active == stored { stored_scale } else { scale };
        Self { stored_scale, scale, stored, switch: Switch::new(stored, active) }
    }
}

impl Map for WeightMap<'_> {
    type In = f32;
    type Out = f32;
    type Constants = (Quantizer, Switch, f32);

    #[inline(always)]
    fn constants(&self, j: usize) -> Self::Constants {
        (Quantizer::signed(self.stored_scale[j], self.stored), self.switch, self.scale[j])
    }

    #[inline(always)]
    fn apply((quantizer, switch, scale): Self::Constants, w: f32) -> f32 {
        scale * switch.code(quantizer.code(w))
    }
}

struct ActivationMap<'a> {
    scale: &'a [f32],
    zero_point: &'a [f32],
    bits: BitWidth,
}

impl Map for ActivationMap<'_> {
    type In = f32;
    type Out = f32;
    type Constants = (Quantizer, f32);

    #[inline(always)]
    fn constants(&self, j: usize) -> Self::Constants {
        (Quantizer::unsigned(self.scale[j], self.bits), self.zero_point[j])
    }

    #[inline(always)]
    fn apply((quantizer, zero): Self::Constants, x: f32) -> f32 {
        quantizer.scale * quantizer.code(x - zero) + zero
    }
}

/// [`crate::reference::fake_quantize_weight_backward`]: `(dL/dw, dL/ds_h, dL/ds_l)`.
#[must_use]
#[expect(clippy::too_many_arguments, reason = "three tensors, a gradient and a format")]
pub fn fake_quantize_weight_backward(
    w: &[f32], stored_scale: &[f32], scale: &[f32], grad: &[f32], layout: &ScaleLayout, stored: BitWidth,
    active: BitWidth, mode: ScaleGradient,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let backward = WeightBackward { stored_scale, scale, layout, stored, active, mode };
    let (dw, sums) = collect(w.len(), backward.block(Isa::detect(), w, grad));
    let (dstored, dscale) = backward.scale_gradients(&sums);
    (dw, dstored, dscale)
}

/// [`fake_quantize_weight_backward`] on `isa`, `dL/dw` into `dw`; gives `(dL/ds_h, dL/ds_l)`.
///
/// # Panics
/// If `dw` or `grad` is not as long as `w`, or the machine has no `isa`.
#[expect(clippy::too_many_arguments, reason = "four tensors, a gradient and a format")]
pub fn fake_quantize_weight_backward_into(
    isa: Isa, w: &[f32], stored_scale: &[f32], scale: &[f32], grad: &[f32], layout: &ScaleLayout,
    stored: BitWidth, active: BitWidth, mode: ScaleGradient, dw: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(dw.len(), w.len());
    let backward = WeightBackward { stored_scale, scale, layout, stored, active, mode };
    backward.scale_gradients(&fill(dw, backward.block(isa, w, grad)))
}

/// [`crate::reference::fake_quantize_activation_backward`]: `(dL/dx, dL/ds, dL/dz)`.
#[must_use]
pub fn fake_quantize_activation_backward(
    x: &[f32], scale: &[f32], zero_point: &[f32], grad: &[f32], layout: &ScaleLayout, bits: BitWidth,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let backward = ActivationGradient { scale, zero_point, bits };
    let (dx, sums) = collect(x.len(), backward_block(Isa::detect(), &backward, x, grad, layout));
    let (dscale, dzero) = activation_scale_gradients(&sums, layout, bits);
    (dx, dscale, dzero)
}

/// [`fake_quantize_activation_backward`] on `isa`, `dL/dx` into `dx`; gives `(dL/ds, dL/dz)`.
///
/// # Panics
/// If `dx` or `grad` is not as long as `x`, or the machine has no `isa`.
#[expect(clippy::too_many_arguments, reason = "four tensors, a gradient and a format")]
pub fn fake_quantize_activation_backward_into(
    isa: Isa, x: &[f32], scale: &[f32], zero_point: &[f32], grad: &[f32], layout: &ScaleLayout,
    bits: BitWidth, dx: &mut [f32],
) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(dx.len(), x.len());
    let backward = ActivationGradient { scale, zero_point, bits };
    let sums = fill(dx, backward_block(isa, &backward, x, grad, layout));
    activation_scale_gradients(&sums, layout, bits)
}

/// What computes a block of a gradient.
fn backward_block<G: Gradient>(
    isa: Isa, gradient: &G, x: &[f32], grad: &[f32], layout: &ScaleLayout,
) -> impl Fn(usize, &mut [f32]) -> Vec<RunSums> + Sync {
    assert_eq!((x.len(), grad.len()), (layout.elements(), layout.elements()));
    move |start, dx| {
        let (x, grad) = (&x[start..start + dx.len()], &grad[start..start + dx.len()]);
        isa.run(GradientRuns { gradient, layout, start, x, grad, dx })
    }
}

/// The two sums of every scale: over its runs, in their order.
fn sums_of_scales(sums: &[Vec<RunSums>], layout: &ScaleLayout) -> Vec<(f64, f64)> {
    let mut total = vec![(0.0, 0.0); layout.scales()];
    for run in sums.iter().flatten() {
        total[run.scale].0 += run.first;
        total[run.scale].1 += run.second;
    }
    total
}

/// The arguments of [`fake_quantize_weight_backward`] besides the tensor and its gradient.
struct WeightBackward<'a> {
    stored_scale: &'a [f32],
    scale: &'a [f32],
    layout: &'a ScaleLayout,
    stored: BitWidth,
    active: BitWidth,
    mode: ScaleGradient,
}

impl WeightBackward<'_> {
    fn block(&self, isa: Isa, w: &[f32], grad: &[f32]) -> impl Fn(usize, &mut [f32]) -> Vec<RunSums> + Sync {
        let mode = if self.active == self.stored { ScaleGradient::Lsq } else { self.mode };
        move |start, dw| match mode {
            ScaleGradient::Lsq => {
                backward_block(isa, &WeightGradient::<true, false>(self), w, grad, self.layout)(start, dw)
            }
            ScaleGradient::Exact => {
                backward_block(isa, &WeightGradient::<false, false>(self), w, grad, self.layout)(start, dw)
            }
            ScaleGradient::Chained => {
                backward_block(isa, &WeightGradient::<false, true>(self), w, grad, self.layout)(start, dw)
            }
        }
    }

    /// `(dL/ds_h, dL/ds_l)`.
    fn scale_gradients(&self, sums: &[Vec<RunSums>]) -> (Vec<f32>, Vec<f32>) {
        let gradients = |(j, (first, second)): (usize, (f64, f64))| {
            let factor = f64::from(self.layout.gradient_factor(j, self.active.signed_max()));
            let first = (first * factor) as f32;
            if self.active == self.stored {
                return (first, 0.0);
            }
            // The terms of the second sum are g * w.
            let slope = self.slope(j) / f64::from(self.stored_scale[j]);
            ((-second * slope * factor) as f32, first)
        };
        sums_of_scales(sums, self.layout).into_iter().enumerate().map(gradients).unzip()
    }

    /// `s_l / (s_h 2^d)`.
    #[inline(always)]
    fn slope(&self, j: usize) -> f64 {
        let step = f64::from(Switch::new(self.stored, self.active).step);
        f64::from(self.scale[j]) / f64::from(self.stored_scale[j]) * step
    }
}

/// The gradient of weights. `RESIDUAL`: the first sum is LSQ's, of `g (q_l - v)` where in range, else of `g q_l`. (Out of
/// range `q_l` is the end of the range.) `CHAINED`: the second sum is of `g w` where in range, else there is none.
struct WeightGradient<'a, const RESIDUAL: bool, const CHAINED: bool>(&'a WeightBackward<'a>);

/// The constants of [`WeightGradient`].
#[derive(Clone, Copy)]
struct WeightConstants {
    quantizer: Quantizer,
    switch: Switch,
    /// The lowest active code.
    low: f32,
    /// `1 / (s_h 2^d)`
    inverse: f64,
    /// `dL/dw` in range is `g` times this.
    slope: f32,
}

impl<const RESIDUAL: bool, const CHAINED: bool> Gradient for WeightGradient<'_, RESIDUAL, CHAINED> {
    type Constants = WeightConstants;
    const SECOND: bool = CHAINED;

    #[inline(always)]
    fn constants(&self, j: usize) -> WeightConstants {
        let Self(WeightBackward { stored_scale, stored, active, .. }) = *self;
        let switch = Switch::new(*stored, *active);
        WeightConstants {
            quantizer: Quantizer::signed(stored_scale[j], *stored),
            switch,
            low: active.signed_min() as f32,
            inverse: f64::from(switch.step) / f64::from(stored_scale[j]),
            slope: if CHAINED { self.0.slope(j) as f32 } else { 1.0 },
        }
    }

    #[inline(always)]
    fn apply(c: WeightConstants, w: f32, g: f32) -> (f32, f64, f64) {
        let v = w / c.quantizer.scale * c.switch.step;
        let inside = v >= c.low && v <= c.switch.high;
        let code = f64::from(c.switch.code(c.quantizer.code(w)));
        let (w, wide_g) = (f64::from(w), f64::from(g));
        let residual = if RESIDUAL && inside { code - w * c.inverse } else { code };
        let dw = if inside { g * c.slope } else { 0.0 };
        (dw, wide_g * residual, if CHAINED && inside { wide_g * w } else { 0.0 })
    }
}

/// The gradient of activations. The sums are of `g (code - v)` where in range, `g code` outside; and of `g` outside.
struct ActivationGradient<'a> {
    scale: &'a [f32],
    zero_point: &'a [f32],
    bits: BitWidth,
}

/// The constants of [`ActivationGradient`].
#[derive(Clone, Copy)]
struct ActivationConstants {
    quantizer: Quantizer,
    zero: f32,
    /// `1 / s`
    inverse: f64,
}

impl Gradient for ActivationGradient<'_> {
    type Constants = ActivationConstants;
    const SECOND: bool = true;

    #[inline(always)]
    fn constants(&self, j: usize) -> ActivationConstants {
        let scale = self.scale[j];
        ActivationConstants {
            quantizer: Quantizer::unsigned(scale, self.bits),
            zero: self.zero_point[j],
            inverse: 1.0 / f64::from(scale),
        }
    }

    #[inline(always)]
    fn apply(c: ActivationConstants, x: f32, g: f32) -> (f32, f64, f64) {
        let centred = x - c.zero;
        let v = centred / c.quantizer.scale;
        let inside = v >= c.quantizer.low && v <= c.quantizer.high;
        let code = f64::from(c.quantizer.code(centred));
        let residual = if inside { code - f64::from(centred) * c.inverse } else { code };
        let wide_g = f64::from(g);
        (if inside { g } else { 0.0 }, wide_g * residual, if inside { 0.0 } else { wide_g })
    }
}

/// `(dL/ds, dL/dz)`.
fn activation_scale_gradients(
    sums: &[Vec<RunSums>], layout: &ScaleLayout, bits: BitWidth,
) -> (Vec<f32>, Vec<f32>) {
    let gradients = |(j, (first, second)): (usize, (f64, f64))| {
        let factor = f64::from(layout.gradient_factor(j, bits.unsigned_max()));
        ((first * factor) as f32, (second * factor) as f32)
    };
    sums_of_scales(sums, layout).into_iter().enumerate().map(gradients).unzip()
}

//! Fake quantization and its gradients, each one pass over memory.

use super::blocks::{Operation, PIECE};
use super::codes::{Quantizer, Switch};
use super::runs::{Gradient, GradientPieces, Map, MapPieces, gradient_of_run};
use crate::{ScaleGradient, layout::ScaleLayout};
use dr_precision::BitWidth;

/// [`crate::reference::fake_quantize_weight`].
///
/// # Panics
/// If `w` has not as many elements as `layout`.
pub fn fake_quantize_weight<'a>(
    w: &'a [f32], stored_scale: &'a [f32], scale: &'a [f32], layout: &'a ScaleLayout, stored: BitWidth,
    active: BitWidth,
) -> impl Operation<f32, Rest = ()> + 'a {
    forward(WeightMap::new(stored_scale, scale, stored, active), w, layout)
}

/// [`crate::reference::fake_quantize_activation`].
///
/// # Panics
/// If `x` has not as many elements as `layout`.
pub fn fake_quantize_activation<'a>(
    x: &'a [f32], scale: &'a [f32], zero_point: &'a [f32], layout: &'a ScaleLayout, bits: BitWidth,
) -> impl Operation<f32, Rest = ()> + 'a {
    forward(ActivationMap { scale, zero_point, bits }, x, layout)
}

fn forward<'a, M: Map>(map: M, x: &'a [M::In], layout: &'a ScaleLayout) -> MapPieces<'a, M> {
    assert_eq!(x.len(), layout.elements());
    MapPieces { map, layout, x }
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
        scale * switch.code(quantizer.code(quantizer.quotient(w)))
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
    /// With the zero point.
    type Constants = (Quantizer, f32);

    #[inline(always)]
    fn constants(&self, j: usize) -> Self::Constants {
        (Quantizer::unsigned(self.scale[j], self.bits), self.zero_point[j])
    }

    #[inline(always)]
    fn apply((quantizer, zero): Self::Constants, x: f32) -> f32 {
        quantizer.scale * quantizer.code(quantizer.quotient(x - zero)) + zero
    }
}

/// [`crate::reference::fake_quantize_weight_backward`]: `dL/dw`, with `(dL/ds_h, dL/ds_l)`.
///
/// # Panics
/// If `w` or `grad` has not as many elements as `layout`.
#[expect(clippy::too_many_arguments, reason = "three tensors, a gradient and a format")]
pub fn fake_quantize_weight_backward<'a>(
    w: &'a [f32], stored_scale: &'a [f32], scale: &'a [f32], grad: &'a [f32], layout: &'a ScaleLayout,
    stored: BitWidth, active: BitWidth, mode: ScaleGradient,
) -> impl Operation<f32, Rest = (Vec<f32>, Vec<f32>)> + 'a {
    backward(WeightGradient { stored_scale, scale, stored, active, mode }, w, grad, layout)
}

/// [`crate::reference::fake_quantize_activation_backward`]: `dL/dx`, with `(dL/ds, dL/dz)`.
///
/// # Panics
/// If `x` or `grad` has not as many elements as `layout`.
pub fn fake_quantize_activation_backward<'a>(
    x: &'a [f32], scale: &'a [f32], zero_point: &'a [f32], grad: &'a [f32], layout: &'a ScaleLayout,
    bits: BitWidth,
) -> impl Operation<f32, Rest = (Vec<f32>, Vec<f32>)> + 'a {
    backward(ActivationGradient { scale, zero_point, bits }, x, grad, layout)
}

fn backward<'a, G: Gradient>(
    gradient: G, x: &'a [f32], grad: &'a [f32], layout: &'a ScaleLayout,
) -> GradientPieces<'a, G> {
    assert_eq!((x.len(), grad.len()), (layout.elements(), layout.elements()));
    GradientPieces { gradient, layout, x, grad }
}

/// The gradient of weights. The first sum is LSQ's, of `g (q_l - v)` where in range, `g q_l` outside (where `q_l` is the end
/// of the range), or in the other modes of `g q_l` everywhere. The second sum is of `g w` where in range.
struct WeightGradient<'a> {
    stored_scale: &'a [f32],
    scale: &'a [f32],
    stored: BitWidth,
    active: BitWidth,
    mode: ScaleGradient,
}

impl WeightGradient<'_> {
    /// At `l = h` all modes are [`ScaleGradient::Lsq`].
    #[inline(always)]
    fn mode(&self) -> ScaleGradient {
        if self.active == self.stored { ScaleGradient::Lsq } else { self.mode }
    }

    /// `1 / (s_h 2^d)`.
    #[inline(always)]
    fn inverse(&self, j: usize) -> f64 {
        f64::from(Switch::new(self.stored, self.active).step) / f64::from(self.stored_scale[j])
    }
}

/// The constants of [`WeightGradient`].
#[derive(Clone, Copy)]
struct WeightConstants {
    quantizer: Quantizer,
    switch: Switch,
    /// The lowest active code.
    low: f32,
    /// `dL/dw` in range is `g` times this.
    slope: f32,
    /// `1 / (s_h 2^d)`, for which the first sum is LSQ's; else 0.
    inverse: f64,
}

impl Gradient for WeightGradient<'_> {
    type Constants = WeightConstants;

    #[inline(always)]
    fn constants(&self, j: usize) -> WeightConstants {
        let (slope, inverse) = match self.mode() {
            ScaleGradient::Lsq => (1.0, self.inverse(j)),
            ScaleGradient::Exact => (1.0, 0.0),
            ScaleGradient::Chained => ((f64::from(self.scale[j]) * self.inverse(j)) as f32, 0.0),
        };
        WeightConstants {
            quantizer: Quantizer::signed(self.stored_scale[j], self.stored),
            switch: Switch::new(self.stored, self.active),
            low: self.active.signed_min() as f32,
            slope,
            inverse,
        }
    }

    #[inline(always)]
    fn apply(c: WeightConstants, w: f32, g: f32) -> (f32, f64, f64) {
        let quotient = c.quantizer.quotient(w);
        let v = quotient * c.switch.step;
        let inside = v >= c.low && v <= c.switch.high;
        let code = f64::from(c.switch.code(c.quantizer.code(quotient)));
        let (inner, w) = if inside { (g * c.slope, w) } else { (0.0, 0.0) };
        let (g, w) = (f64::from(g), f64::from(w));
        (inner, g * (code - w * c.inverse), g * w)
    }

    fn of_scale(&self, j: usize, [first, second]: [f64; 2], layout: &ScaleLayout) -> (f32, f32) {
        let factor = f64::from(layout.gradient_factor(j, self.active.signed_max()));
        let first = (first * factor) as f32;
        match self.mode() {
            _ if self.active == self.stored => (first, 0.0),
            ScaleGradient::Lsq | ScaleGradient::Exact => (0.0, first),
            ScaleGradient::Chained => {
                let of_stored =
                    second * self.inverse(j) * f64::from(self.scale[j]) / f64::from(self.stored_scale[j]);
                ((-of_stored * factor) as f32, first)
            }
        }
    }
}

/// The gradient of activations. The sums are of `g (code - v)` where in range, `g code` outside; and of `g` outside.
struct ActivationGradient<'a> {
    scale: &'a [f32],
    zero_point: &'a [f32],
    bits: BitWidth,
}

impl Gradient for ActivationGradient<'_> {
    /// With the zero point and `1 / s`.
    type Constants = (Quantizer, f32, f64);

    #[inline(always)]
    fn constants(&self, j: usize) -> Self::Constants {
        let scale = self.scale[j];
        (Quantizer::unsigned(scale, self.bits), self.zero_point[j], 1.0 / f64::from(scale))
    }

    #[inline(always)]
    fn apply((quantizer, zero, inverse): Self::Constants, x: f32, g: f32) -> (f32, f64, f64) {
        let x = x - zero;
        let v = quantizer.quotient(x);
        let inside = v >= quantizer.low && v <= quantizer.high;
        let code = f64::from(quantizer.code(v));
        let (inner, outer, x) = if inside { (g, 0.0, x) } else { (0.0, g, 0.0) };
        (inner, f64::from(g) * (code - f64::from(x) * inverse), f64::from(outer))
    }

    fn of_scale(&self, j: usize, [first, second]: [f64; 2], layout: &ScaleLayout) -> (f32, f32) {
        let factor = f64::from(layout.gradient_factor(j, self.bits.unsigned_max()));
        ((first * factor) as f32, (second * factor) as f32)
    }
}

/// Fake quantization of activations with one scale and one zero point, for operations that read or write them anyway: the
/// values and gradients are those of [`fake_quantize_activation`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FakeQuantizer {
    scale: f32,
    zero_point: f32,
    bits: BitWidth,
}

impl FakeQuantizer {
    /// To unsigned codes of `bits` bits.
    #[must_use]
    pub const fn new(scale: f32, zero_point: f32, bits: BitWidth) -> Self {
        Self { scale, zero_point, bits }
    }

    /// Writes the quantized values.
    #[inline(always)]
    pub(super) fn forward(&self, x: &[f32], quantized: &mut [f32]) {
        let (scale, zero_point) = (&[self.scale], &[self.zero_point]);
        let constants = ActivationMap { scale, zero_point, bits: self.bits }.constants(0);
        for (quantized, x) in quantized.iter_mut().zip(x) {
            *quantized = ActivationMap::apply(constants, *x);
        }
    }

    /// Makes the gradient of the quantized values that of `x`, and gives the [sums](ActivationGradient) for scale and zero point.
    #[inline(always)]
    pub(super) fn backward(&self, x: &[f32], gradient: &mut [f32]) -> [f64; 2] {
        let constants = self.gradient(&[self.scale], &[self.zero_point]).constants(0);
        let mut total = [0.0; 2];
        let mut incoming = [0.0; PIECE];
        for (x, gradient) in x.chunks(PIECE).zip(gradient.chunks_mut(PIECE)) {
            let incoming = &mut incoming[..gradient.len()];
            incoming.copy_from_slice(gradient);
            let (first, second) = gradient_of_run::<ActivationGradient<'_>>(constants, x, incoming, gradient);
            total = [total[0] + first, total[1] + second];
        }
        total
    }

    /// The gradients of scale and zero point of a tensor with these sums.
    #[cfg(any(feature = "burn", test))]
    pub(crate) fn of_scale(&self, sums: [f64; 2], layout: &ScaleLayout) -> [f32; 2] {
        self.gradient(&[self.scale], &[self.zero_point]).of_scale(0, sums, layout).into()
    }

    #[inline(always)]
    const fn gradient<'a>(&self, scale: &'a [f32], zero_point: &'a [f32]) -> ActivationGradient<'a> {
        ActivationGradient { scale, zero_point, bits: self.bits }
    }
}

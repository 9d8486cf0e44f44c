//! Fake quantization of weights and activations, forward and backward. Codes are those of `f32` arithmetic, so that
//! every implementation agrees on them; gradients are summed in `f64`.

use crate::{ScaleGradient, layout::ScaleLayout};
use dr_precision::{BitWidth, semantics};

/// `w^ = s_l * clip(round(clip(round(w / s_h)) / 2^d))`. At `l = h` this is `s_h * q_h`, and `scale` is not read.
pub fn fake_quantize_weight(
    w: &[f32], stored_scale: &[f32], scale: &[f32], layout: &ScaleLayout, stored: BitWidth, active: BitWidth,
) -> Vec<f32> {
    let scale = if active == stored { stored_scale } else { scale };
    let value = |(i, &w): (usize, &f32)| {
        let j = layout.scale_of(i);
        let code = semantics::switch(semantics::quantize(w, stored_scale[j], stored), stored, active);
        semantics::dequantize(code, scale[j])
    };
    w.iter().enumerate().map(value).collect()
}

/// The gradients `(dL/dw, dL/ds_h, dL/ds_l)` of [`fake_quantize_weight`], as the table at [`ScaleGradient`] has them.
/// At `l = h` the last one is zero: the one scale is `s_h`.
#[expect(clippy::too_many_arguments, reason = "three tensors, a gradient and a format")]
pub fn fake_quantize_weight_backward(
    w: &[f32], stored_scale: &[f32], scale: &[f32], grad: &[f32], layout: &ScaleLayout, stored: BitWidth,
    active: BitWidth, mode: ScaleGradient,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (low, high) = (f64::from(active.signed_min()), f64::from(active.signed_max()));
    let shift = 2f64.powi((stored.bits() - active.bits()) as i32);
    let mut dw = vec![0.0; w.len()];
    let (mut dstored, mut dscale) = (vec![0.0; layout.scales()], vec![0.0; layout.scales()]);
    for (i, (&w, &g)) in w.iter().zip(grad).enumerate() {
        let j = layout.scale_of(i);
        let (s_h, g) = (f64::from(stored_scale[j]), f64::from(g));
        let v = f64::from(w) / s_h / shift;
        let inside = f64::from(w / stored_scale[j]) / shift; // whether in range is decided as in f32
        let inside = (low..=high).contains(&inside);
        let code = semantics::switch(semantics::quantize(w, stored_scale[j], stored), stored, active);
        let lsq = g * if inside { f64::from(code) - v } else { v.clamp(low, high) };
        dw[i] = if inside { g } else { 0.0 };
        if active == stored {
            dstored[j] += lsq;
            continue;
        }
        match mode {
            ScaleGradient::Lsq => dscale[j] += lsq,
            ScaleGradient::Exact => dscale[j] += g * f64::from(code),
            ScaleGradient::Chained => {
                let s_l = f64::from(scale[j]);
                dscale[j] += g * f64::from(code);
                dstored[j] -= if inside { g * v * s_l / s_h } else { 0.0 };
                dw[i] *= s_l / (s_h * shift);
            }
        }
    }
    for j in 0..layout.scales() {
        let factor = f64::from(layout.gradient_factor(j, active.signed_max()));
        dstored[j] *= factor;
        dscale[j] *= factor;
    }
    (dw, dstored, dscale)
}

/// `x^ = s * clip(round((x - z) / s), 0, 2^b - 1) + z`.
pub fn fake_quantize_activation(
    x: &[f32], scale: &[f32], zero_point: &[f32], layout: &ScaleLayout, bits: BitWidth,
) -> Vec<f32> {
    let value = |(i, &x): (usize, &f32)| {
        let j = layout.scale_of(i);
        let code = semantics::quantize_activation(x, scale[j], zero_point[j], bits);
        semantics::dequantize_activation(code, scale[j], zero_point[j])
    };
    x.iter().enumerate().map(value).collect()
}

/// The gradients `(dL/dx, dL/ds, dL/dz)` of [`fake_quantize_activation`] (LSQ+, arXiv:2004.09576): with `v = (x - z) / s`
/// inside the range `g`, `sum g * (code - v)` and 0; outside 0, `g` times the code and `g`. Those of scales and zero points
/// are multiplied by `1 / sqrt(N * (2^b - 1))`.
pub fn fake_quantize_activation_backward(
    x: &[f32], scale: &[f32], zero_point: &[f32], grad: &[f32], layout: &ScaleLayout, bits: BitWidth,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let high = f64::from(bits.unsigned_max());
    let mut dx = vec![0.0; x.len()];
    let (mut dscale, mut dzero) = (vec![0.0; layout.scales()], vec![0.0; layout.scales()]);
    for (i, (&x, &g)) in x.iter().zip(grad).enumerate() {
        let j = layout.scale_of(i);
        let g = f64::from(g);
        let centred = x - zero_point[j]; // rounded to f32, as the code is made from it
        let v = f64::from(centred) / f64::from(scale[j]);
        let inside = (0.0..=high).contains(&f64::from(centred / scale[j]));
        let code = f64::from(semantics::quantize_activation(x, scale[j], zero_point[j], bits));
        dx[i] = if inside { g } else { 0.0 };
        dscale[j] += g * if inside { code - v } else { code };
        dzero[j] += if inside { 0.0 } else { g };
    }
    for j in 0..layout.scales() {
        let factor = f64::from(layout.gradient_factor(j, bits.unsigned_max()));
        dscale[j] *= factor;
        dzero[j] *= factor;
    }
    (dx, dscale, dzero)
}

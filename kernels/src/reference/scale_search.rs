//! The scales that weights start from, and the whole of training-free quantization.

use crate::candidates::{CANDIDATES, candidate};
use crate::layout::ScaleLayout;
use dr_precision::{BitWidth, semantics};

/// Scales of all `widths` (highest, the stored one, first) for every group of `layout`: `[widths, scales]`.
///
/// Tries [`CANDIDATES`] stored scales. For each the error at the stored width is `|w - s_h q_h|^2`, and at a lower one
/// that of the best `s_l`, which has a closed form: `s_l = <w, q_l> / <q_l, q_l>`, error `|w|^2 - <w, q_l>^2 / <q_l, q_l>`. The
/// candidate with the least `sum over b of error_b * 4^b` is taken: each error is measured in what a quantizer of that
/// width alone can about attain.
pub fn search_scales(w: &[f32], layout: &ScaleLayout, widths: &[BitWidth]) -> Vec<f32> {
    let scales = layout.scales();
    let mut found = vec![0.0; widths.len() * scales];
    for j in 0..scales {
        let group: Vec<f32> =
            w.iter().enumerate().filter(|(i, _)| layout.scale_of(*i) == j).map(|(_, &w)| w).collect();
        for (b, scale) in search_group(&group, widths).into_iter().enumerate() {
            found[b * scales + j] = scale;
        }
    }
    found
}

/// [`search_scales`] for the weights of one group: a scale for each width.
fn search_group(w: &[f32], widths: &[BitWidth]) -> Vec<f32> {
    let stored = widths[0];
    let energy: f64 = w.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    let rms = (energy / w.len().max(1) as f64).sqrt() as f32;
    let mut best = (f64::INFINITY, vec![]);
    for k in 0..CANDIDATES {
        let s_h = candidate(k, rms, stored);
        let (mut objective, mut scales) = (0.0, vec![]);
        for &bits in widths {
            let (mut wq, mut qq) = (0.0, 0.0);
            for &w in w {
                let q = f64::from(semantics::switch(semantics::quantize(w, s_h, stored), stored, bits));
                wq += f64::from(w) * q;
                qq += q * q;
            }
            let s = match bits {
                _ if bits == stored => f64::from(s_h),
                _ if qq > 0.0 => wq / qq,
                _ => f64::from(s_h) * f64::from(1u32 << (stored.bits() - bits.bits())),
            };
            objective += (energy - 2.0 * s * wq + s * s * qq) * 4f64.powi(bits.bits() as i32);
            scales.push(s as f32);
        }
        if objective < best.0 {
            best = (objective, scales);
        }
    }
    // Nothing compares less if a weight is not finite.
    if best.1.is_empty() { widths.iter().map(|_| candidate(0, 0.0, stored)).collect() } else { best.1 }
}

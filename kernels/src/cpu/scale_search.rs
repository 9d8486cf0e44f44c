//! The search for scales.

use super::codes::{Quantizer, Switch};
use super::isa::{Isa, run_on};
use crate::candidates::{CANDIDATES, candidate};
use crate::layout::ScaleLayout;
use dr_precision::BitWidth;
use rayon::prelude::*;

/// Elements that one thread looks at, at a time.
const CHUNK: usize = 1 << 14;

/// Elements that are quantized in a buffer.
const BUFFER: usize = 256;

/// Lanes of sums.
const LANES: usize = 16;

/// [`crate::reference::search_scales`] on `isa`.
///
/// # Panics
/// If the machine has no `isa`.
#[must_use]
pub fn search_scales(isa: Isa, w: &[f32], layout: &ScaleLayout, widths: &[BitWidth]) -> Vec<f32> {
    assert_eq!(w.len(), layout.elements());
    let scales = layout.scales();
    let group = |j: usize| search_group(isa, &chunks_of(w, layout, j), widths);
    let groups: Vec<Vec<f32>> = (0..scales).into_par_iter().map(group).collect();
    (0..widths.len()).flat_map(|b| groups.iter().map(move |scales| scales[b])).collect()
}

/// The elements of scale `j`, in pieces of at most [`CHUNK`].
fn chunks_of<'a>(w: &'a [f32], layout: &ScaleLayout, j: usize) -> Vec<&'a [f32]> {
    let start = j / layout.runs() * layout.cols + j % layout.runs() * layout.group;
    let repeat = |i: usize| w[i * layout.rows * layout.cols + start..][..layout.run_length(j)].chunks(CHUNK);
    (0..layout.outer).flat_map(repeat).collect()
}

/// `<w, q>` and `<q, q>`.
#[derive(Clone, Copy, Default)]
struct Moments {
    wq: f64,
    qq: f64,
}

/// The scales of the weights of one group: one for each width. The choice is explained at
/// [`crate::reference::search_scales`].
fn search_group(isa: Isa, chunks: &[&[f32]], widths: &[BitWidth]) -> Vec<f32> {
    let stored = widths[0];
    let elements: usize = chunks.iter().map(|chunk| chunk.len()).sum();
    let energy: f64 = chunks.iter().copied().flatten().map(|&w| f64::from(w) * f64::from(w)).sum();
    let rms = (energy / elements.max(1) as f64).sqrt() as f32;
    let candidates: Vec<f32> = (0..CANDIDATES).map(|k| candidate(k, rms, stored)).collect();

    let of_chunk = |w: &&[f32]| run_on!(isa, |_| moments_of(w, &candidates, widths));
    let parts: Vec<Vec<Moments>> = match chunks {
        [chunk] => vec![of_chunk(chunk)],
        _ => chunks.par_iter().map(of_chunk).collect(),
    };
    let mut moments = vec![Moments::default(); candidates.len() * widths.len()];
    for part in &parts {
        for (sum, part) in moments.iter_mut().zip(part) {
            sum.wq += part.wq;
            sum.qq += part.qq;
        }
    }

    let scale = |s_h: f32, bits: BitWidth, &Moments { wq, qq }: &Moments| match bits {
        _ if bits == stored => f64::from(s_h),
        _ if qq > 0.0 => wq / qq,
        _ => f64::from(s_h) * f64::from(1u32 << (stored.bits() - bits.bits())),
    };
    let objective = |(&s_h, moments): (&f32, &[Moments])| {
        let error = |(&bits, m): (&BitWidth, &Moments)| {
            let s = scale(s_h, bits, m);
            (energy - 2.0 * s * m.wq + s * s * m.qq) * f64::from(1u32 << (2 * bits.bits()))
        };
        widths.iter().zip(moments).map(error).sum::<f64>()
    };
    let tried = candidates.iter().zip(moments.chunks_exact(widths.len()));
    let mut best = (f64::INFINITY, None);
    for candidate in tried {
        let objective = objective(candidate);
        if objective < best.0 {
            best = (objective, Some(candidate));
        }
    }
    match best.1 {
        Some((&s_h, moments)) => {
            widths.iter().zip(moments).map(|(&bits, m)| scale(s_h, bits, m) as f32).collect()
        }
        // Nothing compares less if a weight is not finite.
        None => widths.iter().map(|_| candidate(0, 0.0, stored)).collect(),
    }
}

/// Of each candidate, of each width.
#[inline(always)]
fn moments_of(w: &[f32], candidates: &[f32], widths: &[BitWidth]) -> Vec<Moments> {
    let stored = widths[0];
    let mut moments = vec![Moments::default(); candidates.len() * widths.len()];
    // Zeros in the rest of a buffer add nothing.
    let (mut weights, mut codes) = ([0.0f32; BUFFER], [0.0f32; BUFFER]);
    for w in w.chunks(BUFFER) {
        let padded = w.len().next_multiple_of(LANES);
        let (weights, codes) = (&mut weights[..padded], &mut codes[..padded]);
        weights[..w.len()].copy_from_slice(w);
        weights[w.len()..].fill(0.0);
        for (&scale, moments) in candidates.iter().zip(moments.chunks_exact_mut(widths.len())) {
            let quantizer = Quantizer::signed(scale, stored);
            for (code, &w) in codes.iter_mut().zip(&*weights) {
                *code = quantizer.code(quantizer.quotient(w));
            }
            for (&bits, moments) in widths.iter().zip(moments) {
                let (wq, qq) = products(weights, codes, Switch::new(stored, bits));
                moments.wq += wq;
                moments.qq += qq;
            }
        }
    }
    moments
}

/// `<w, q>` and `<q, q>` with `q` the switched `codes`.
#[inline(always)]
fn products(w: &[f32], codes: &[f32], switch: Switch) -> (f64, f64) {
    let (mut wq, mut qq) = ([0.0f64; LANES], [0.0f32; LANES]);
    for (w, codes) in w.as_chunks::<LANES>().0.iter().zip(codes.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let q = switch.code(codes[i]);
            wq[i] += f64::from(w[i]) * f64::from(q);
            qq[i] += q * q; // exact: an integer below 2^14 * BUFFER / LANES
        }
    }
    (wq.iter().sum(), qq.iter().map(|&q| f64::from(q)).sum())
}

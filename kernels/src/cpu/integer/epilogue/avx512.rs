//! Results of sixteen channels in a register, with AVX-512.

use super::super::super::codes::ByteQuantizer;
use super::{InputSums, PANEL, Place, RowSums};
use crate::integer::{Activation, padded_channels};
use std::arch::x86_64::*;

/// [`Place::write_sums`].
///
/// # Safety
/// That of the method, and the machine has AVX-512 F, BW and VL.
pub(in super::super) unsafe fn write(place: &Place, of: &RowSums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match (place.epilogue.activation, place.channels.count == PANEL) {
            (Activation::None, true) => rows::<0, true>(place, of),
            (Activation::None, false) => rows::<0, false>(place, of),
            (Activation::Relu, true) => rows::<1, true>(place, of),
            (Activation::Relu, false) => rows::<1, false>(place, of),
            (Activation::Relu6, true) => rows::<2, true>(place, of),
            (Activation::Relu6, false) => rows::<2, false>(place, of),
            (Activation::Unit, _) => rows::<3, false>(place, of),
            (Activation::HardSwish, true) => rows::<4, true>(place, of),
            (Activation::HardSwish, false) => rows::<4, false>(place, of),
            (Activation::Sigmoid, _) => rows::<5, false>(place, of),
            (Activation::Silu, _) => rows::<6, false>(place, of),
        }
    }
}

/// `ACTIVATION` is the position in [`Activation::ALL`]; if they are `WHOLE`, there are 16 channels, and nothing is to be masked.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn rows<const ACTIVATION: usize, const WHOLE: bool>(place: &Place, of: &RowSums) {
    let (epilogue, first) = (place.epilogue, place.channels.first);
    let mask = if WHOLE { u16::MAX } else { u16::MAX >> (PANEL - place.channels.count.clamp(1, PANEL)) };
    assert!(of.sums.len() > place.rows.saturating_sub(1) * of.stride);
    // SAFETY: Slices have the lengths of the shape: `Epilogue::check` has asserted it; and the caller promises the rest.
    unsafe {
        let load = |from: &[f32], at: usize| match WHOLE {
            true => _mm512_loadu_ps(from.as_ptr().add(at)),
            false => _mm512_maskz_loadu_ps(mask, from.as_ptr().add(at)),
        };
        let multiplier = load(epilogue.multiplier, first);
        let offset = epilogue.offset.map(|offset| load(offset, first));
        let last = epilogue.last.map(|[gain, shift]| [load(gain, first), load(shift, first)]);
        let everywhere = epilogue.addend.is_everywhere().then(|| load(place.addends(0), 0));
        let codes = place.codes.as_ref().map(|(out, to)| (*out, Divisor::new(to)));
        let pitch = padded_channels(place.outputs);
        for start in (0..place.rows).step_by(4) {
            // Of the last rows, some are computed twice.
            let row = |at: usize| (start + at).min(place.rows - 1);
            let mut values = [_mm512_setzero_ps(); 4];
            for (at, values) in values.iter_mut().enumerate() {
                let sums = _mm512_loadu_si512(of.sums.as_ptr().add(row(at) * of.stride).cast());
                let sums = _mm512_sub_epi32(sums, _mm512_set1_epi32(of.corrections[row(at)]));
                *values = _mm512_mul_ps(multiplier, _mm512_cvtepi32_ps(sums));
            }
            if let Some(offset) = offset {
                for (at, values) in values.iter_mut().enumerate() {
                    let inputs = match &of.inputs {
                        InputSums::Positions(inputs) => _mm512_set1_epi32(inputs[row(at)]),
                        InputSums::Channels(inputs) => _mm512_loadu_si512(inputs[row(at)].as_ptr().cast()),
                    };
                    *values = _mm512_add_ps(*values, _mm512_mul_ps(offset, _mm512_cvtepi32_ps(inputs)));
                }
            }
            for (at, values) in values.iter_mut().enumerate() {
                let addend = everywhere.unwrap_or_else(|| load(place.addends(row(at)), 0));
                *values = _mm512_add_ps(*values, addend);
            }
            if let Some(residual) = place.residual {
                for (at, values) in values.iter_mut().enumerate() {
                    *values = _mm512_add_ps(*values, load(residual, row(at) * place.outputs));
                }
            }
            values.iter_mut().for_each(|values| *values = activated::<ACTIVATION>(*values));
            if let Some([gain, shift]) = last {
                values
                    .iter_mut()
                    .for_each(|values| *values = _mm512_add_ps(_mm512_mul_ps(gain, *values), shift));
            }
            if let Some(out) = place.values {
                for (at, values) in values.into_iter().enumerate() {
                    _mm512_mask_storeu_ps(out.add(row(at) * place.outputs), mask, values);
                }
            }
            if let Some((out, to)) = codes {
                let [a, b, c, d] = values.map(|values| _mm512_cvtps_epi32(to.quotient(values)));
                // Values below zero and NaNs are below zero, and become 0.
                let codes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
                // Each quarter has four channels of each row.
                let by_row = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
                let codes = _mm512_permutexvar_epi32(by_row, codes);
                let codes = [
                    _mm512_castsi512_si128(codes),
                    _mm512_extracti32x4_epi32::<1>(codes),
                    _mm512_extracti32x4_epi32::<2>(codes),
                    _mm512_extracti32x4_epi32::<3>(codes),
                ];
                for (at, codes) in codes.into_iter().enumerate() {
                    let out = out.add(row(at) * pitch);
                    match WHOLE {
                        true => _mm_storeu_si128(out.cast(), codes),
                        false => _mm_mask_storeu_epi8(out.cast(), mask, codes),
                    }
                }
            }
        }
    }
}

/// Divides by a scale. A division takes as long as all else that becomes of a sum, so it is a product with the inverse, corrected: `inverse` and `rest` are together exact
/// enough for a quotient that is one of the two floats around, and of these a correction gives the nearer one (P. Markstein, *Computation of elementary functions on the
/// IBM RISC System/6000 processor*, 1990).
#[derive(Clone, Copy)]
struct Divisor {
    zero_point: __m512,
    scale: __m512,
    /// What the highest code stands for.
    top: __m512,
    /// 0 if it is better to divide.
    inverse: __m512,
    rest: __m512,
    divides: bool,
}

impl Divisor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(to: &ByteQuantizer) -> Self {
        let inverse = to.inverse.unwrap_or_default();
        let rest = inverse * (-inverse).mul_add(to.scale, 1.0);
        let [zero_point, scale, top, inverse, rest] =
            [to.zero_point, to.scale, to.top, inverse, rest].map(|value| _mm512_set1_ps(value));
        Self { zero_point, scale, top, inverse, rest, divides: to.inverse.is_none() }
    }

    /// How many scales values are above the zero point, at most as many as the highest code.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quotient(&self, values: __m512) -> __m512 {
        // A NaN stays one.
        let x = _mm512_min_ps(self.top, _mm512_sub_ps(values, self.zero_point));
        if self.divides {
            return _mm512_div_ps(x, self.scale);
        }
        let quotient = _mm512_fmadd_ps(x, self.inverse, _mm512_mul_ps(x, self.rest));
        _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, self.scale, x), self.inverse, quotient)
    }
}

/// [`Activation::apply`].
#[inline]
#[target_feature(enable = "avx512f")]
fn activated<const ACTIVATION: usize>(x: __m512) -> __m512 {
    let zero = _mm512_setzero_ps();
    let within = |x: __m512, limit: f32| _mm512_min_ps(_mm512_max_ps(x, zero), _mm512_set1_ps(limit));
    match Activation::ALL[ACTIVATION] {
        Activation::None => x,
        Activation::Relu => _mm512_max_ps(x, zero),
        Activation::Relu6 => within(x, 6.0),
        Activation::Unit => within(x, 1.0),
        Activation::HardSwish => {
            let gate = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.0 / 6.0)), _mm512_set1_ps(0.5));
            _mm512_mul_ps(x, within(gate, 1.0))
        }
        activation => {
            let mut values = [0.0f32; PANEL];
            // SAFETY: There is room for 16 floats.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), x) };
            for value in &mut values {
                *value = activation.apply(*value);
            }
            // SAFETY: There are 16 floats.
            unsafe { _mm512_loadu_ps(values.as_ptr()) }
        }
    }
}

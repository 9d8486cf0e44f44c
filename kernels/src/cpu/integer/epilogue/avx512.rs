//! Results of sixteen channels in a register, with AVX-512.

use super::super::super::codes::ByteQuantizer;
use super::{Channels, InputSums, PANEL, Place, RowSums};
use crate::integer::{Activation, padded_channels};
use std::arch::x86_64::*;

/// [`Place::write_sums`].
///
/// # Safety
/// That of the method, and the machine has AVX-512 F, BW and VL.
pub(in super::super) unsafe fn write(place: &Place, of: &RowSums) {
    // SAFETY: As promised by the caller.
    unsafe {
        match within_codes(place) {
            Activation::None => panels::<0>(place, of),
            Activation::Relu => panels::<1>(place, of),
            Activation::Relu6 => panels::<2>(place, of),
            Activation::Unit => panels::<3>(place, of),
            Activation::HardSwish => panels::<4>(place, of),
            Activation::Sigmoid => panels::<5>(place, of),
            Activation::Silu => panels::<6>(place, of),
        }
    }
}

/// The activation, or none if the limits of codes, which are all that is wanted, do the same.
#[inline(always)]
fn within_codes(place: &Place) -> Activation {
    let activation = place.epilogue.activation;
    match (activation, &place.codes) {
        (Activation::Relu | Activation::Relu6 | Activation::Unit, Some((_, to)))
            if place.values.is_none() && place.epilogue.last.is_none() && to.zero_point == 0.0 =>
        {
            Activation::None
        }
        _ => activation,
    }
}

/// `ACTIVATION` is the position in [`Activation::ALL`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn panels<const ACTIVATION: usize>(place: &Place, of: &RowSums) {
    let (Channels { first, count, panels, apart }, rows) = (place.channels, place.rows);
    if rows == 0 || panels == 0 {
        return;
    }
    assert!(of.sums.len() >= (rows - 1) * of.stride + panels);
    // What an activation that is left to the limits of codes lets through.
    let limit = match (Activation::ALL[ACTIVATION], place.epilogue.activation) {
        (Activation::None, Activation::Relu6) => 6.0,
        (Activation::None, Activation::Unit) => 1.0,
        _ => f32::INFINITY,
    };
    let divisor = place.codes.as_ref().map(
        #[inline(always)]
        |(_, to)| Divisor::new(to, limit),
    );
    let more = place.values.is_some() || place.residual.is_some() || place.epilogue.last.is_some();
    let plain = !more && of.corrections.is_none() && rows >= 4;
    for panel in 0..panels {
        let at = panel * apart * PANEL;
        let sums = of.sums.as_ptr().wrapping_add(panel);
        let panel = Panel { first: first + at, at, count: count - at, sums };
        // SAFETY: As promised by the caller; there are as many sums.
        unsafe {
            match (panel.count >= PANEL, plain) {
                (true, true) => write_panel::<ACTIVATION, true, true>(place, of, &panel, divisor.as_ref()),
                (true, false) => write_panel::<ACTIVATION, true, false>(place, of, &panel, divisor.as_ref()),
                (false, _) => write_panel::<ACTIVATION, false, false>(place, of, &panel, divisor.as_ref()),
            }
        }
    }
}

/// One of the panels of a tile.
struct Panel {
    /// Its first channel, counted from the first one of all, and of the tile.
    first: usize,
    at: usize,
    /// How many channels there are from it on.
    count: usize,
    /// Of the first row.
    sums: *const [i32; PANEL],
}

/// If the panel is `WHOLE`, it has 16 channels, and nothing is to be masked. If the task is `PLAIN`, there are four rows or more, whose sums are right,
/// and their codes are all that is wanted: no values, residuals or last factors.
///
/// # Safety
/// That of [`write`]; there are rows, and sums for them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[expect(clippy::manual_map, reason = "the compiler leaves closures of vectors as calls")]
unsafe fn write_panel<const ACTIVATION: usize, const WHOLE: bool, const PLAIN: bool>(
    place: &Place, of: &RowSums, panel: &Panel, divisor: Option<&Divisor>,
) {
    let (epilogue, &Panel { first, at, count, sums }) = (place.epilogue, panel);
    let mask = if WHOLE { u16::MAX } else { u16::MAX >> (PANEL - count.clamp(1, PANEL)) };
    // Four rows at once, of which some are computed twice if there are fewer.
    let rows: [usize; 4] = [0, 1, 2, 3].map(
        #[inline(always)]
        |row: usize| if PLAIN { row } else { row.min(place.rows - 1) },
    );
    let [of_sums, of_values, of_codes] = [of.stride, place.outputs, padded_channels(place.outputs)].map(
        #[inline(always)]
        |pitch| [rows[0] * pitch, rows[1] * pitch, rows[2] * pitch, rows[3] * pitch],
    );
    // SAFETY: Slices have the lengths of the shape: `Epilogue::check` has asserted it; and the caller promises the rest.
    unsafe {
        let multiplier = load::<WHOLE>(epilogue.multiplier.as_ptr().add(first), mask);
        let offset = match epilogue.offset {
            Some(offset) => Some(load::<WHOLE>(offset.as_ptr().add(first), mask)),
            None => None,
        };
        let last = match epilogue.last {
            Some([gain, shift]) if !PLAIN => Some([
                load::<WHOLE>(gain.as_ptr().add(first), mask),
                load::<WHOLE>(shift.as_ptr().add(first), mask),
            ]),
            _ => None,
        };
        let everywhere = match epilogue.addend.is_everywhere() {
            true => Some(load::<WHOLE>(epilogue.addend.values().as_ptr().add(first), mask)),
            false => None,
        };
        let mut start = 0;
        loop {
            let sums = sums.add(start * of.stride);
            let mut values = [_mm512_setzero_ps(); 4];
            for (at, values) in values.iter_mut().enumerate() {
                let mut sums = _mm512_loadu_si512(sums.add(of_sums[at]).cast());
                if let (Some(corrections), false) = (of.corrections, PLAIN) {
                    let correction = *corrections.as_ptr().add(start + rows[at]);
                    sums = _mm512_sub_epi32(sums, _mm512_set1_epi32(correction));
                }
                *values = _mm512_mul_ps(multiplier, _mm512_cvtepi32_ps(sums));
            }
            if let Some(offset) = offset {
                match &of.inputs {
                    InputSums::Positions(inputs) => {
                        let inputs = inputs.as_ptr().add(start);
                        for (at, values) in values.iter_mut().enumerate() {
                            let inputs = _mm512_set1_ps(*inputs.add(rows[at]));
                            *values = _mm512_add_ps(*values, _mm512_mul_ps(offset, inputs));
                        }
                    }
                    InputSums::Channels(inputs) => {
                        let inputs = inputs.as_ptr().add(start);
                        for (at, values) in values.iter_mut().enumerate() {
                            let inputs = _mm512_loadu_si512(inputs.add(rows[at]).cast());
                            let inputs = _mm512_mul_ps(offset, _mm512_cvtepi32_ps(inputs));
                            *values = _mm512_add_ps(*values, inputs);
                        }
                    }
                }
            }
            match everywhere {
                Some(addend) => {
                    values.iter_mut().for_each(|values| *values = _mm512_add_ps(*values, addend));
                }
                None => {
                    for (row, values) in values.iter_mut().enumerate() {
                        let addends = place.addends(start + rows[row]).as_ptr().add(at);
                        *values = _mm512_add_ps(*values, load::<WHOLE>(addends, mask));
                    }
                }
            }
            if let (Some(residual), false) = (place.residual, PLAIN) {
                let residual = residual.as_ptr().add(at + start * place.outputs);
                for (at, values) in values.iter_mut().enumerate() {
                    *values = _mm512_add_ps(*values, load::<WHOLE>(residual.add(of_values[at]), mask));
                }
            }
            values.iter_mut().for_each(|values| *values = activated::<ACTIVATION>(*values));
            if let Some([gain, shift]) = last {
                for values in &mut values {
                    *values = _mm512_add_ps(_mm512_mul_ps(gain, *values), shift);
                }
            }
            if let (Some(out), false) = (place.values, PLAIN) {
                let out = out.add(at + start * place.outputs);
                for (at, values) in values.iter().enumerate() {
                    _mm512_mask_storeu_ps(out.add(of_values[at]), mask, *values);
                }
            }
            if let (Some((out, _)), Some(divisor)) = (place.codes, divisor) {
                let out = out.add(at + start * padded_channels(place.outputs));
                for (at, codes) in bytes(divisor.quotients(values)).into_iter().enumerate() {
                    match WHOLE {
                        true => _mm_storeu_si128(out.add(of_codes[at]).cast(), codes),
                        false => _mm_mask_storeu_epi8(out.add(of_codes[at]).cast(), mask, codes),
                    }
                }
            }
            start += 4;
            if start >= place.rows {
                return;
            }
            start = start.min(place.rows - 4);
        }
    }
}

/// Elements of `mask`, all if they are `WHOLE`.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const WHOLE: bool>(from: *const f32, mask: u16) -> __m512 {
    // SAFETY: As promised by the caller.
    unsafe {
        match WHOLE {
            true => _mm512_loadu_ps(from),
            false => _mm512_maskz_loadu_ps(mask, from),
        }
    }
}

/// The nearest integers, those below zero and NaNs as 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn bytes([a, b, c, d]: [__m512; 4]) -> [__m128i; 4] {
    // NaNs become the lowest integer.
    let low = _mm512_packus_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    let high = _mm512_packus_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
    // Each quarter has four channels of each row.
    let by_row = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let codes = _mm512_permutexvar_epi32(by_row, _mm512_packus_epi16(low, high));
    [
        _mm512_castsi512_si128(codes),
        _mm512_extracti32x4_epi32::<1>(codes),
        _mm512_extracti32x4_epi32::<2>(codes),
        _mm512_extracti32x4_epi32::<3>(codes),
    ]
}

/// Divides by a scale. Where a division takes as long as all else that becomes of a sum, it is a product with the inverse, corrected: `inverse` and `rest` are together exact
/// enough for a quotient that is one of the two floats around, and of these a correction gives the nearer one (P. Markstein, *Computation of elementary functions on the
/// IBM RISC System/6000 processor*, 1990).
struct Divisor {
    /// `None` for zero.
    zero_point: Option<__m512>,
    scale: __m512,
    /// What the highest code stands for, from the zero point on, or less.
    top: __m512,
    inverse: __m512,
    rest: __m512,
    /// Whether it is better to divide.
    divides: bool,
}

impl Divisor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(to: &ByteQuantizer, limit: f32) -> Self {
        let [inverse, rest] = to.inverse.unwrap_or_default();
        let top = if limit - to.zero_point < to.top { limit - to.zero_point } else { to.top };
        let [scale, top, inverse, rest] = [to.scale, top, inverse, rest].map(|value| _mm512_set1_ps(value));
        let zero_point = (to.zero_point != 0.0).then_some(_mm512_set1_ps(to.zero_point));
        Self { zero_point, scale, top, inverse, rest, divides: to.inverse.is_none() }
    }

    /// How many scales values are above the zero point, at most as many as the highest code.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quotients(&self, mut x: [__m512; 4]) -> [__m512; 4] {
        if let Some(zero_point) = self.zero_point {
            x.iter_mut().for_each(|x| *x = _mm512_sub_ps(*x, zero_point));
        }
        // A NaN stays one.
        x.iter_mut().for_each(|x| *x = _mm512_min_ps(self.top, *x));
        if self.divides {
            x.iter_mut().for_each(|x| *x = _mm512_div_ps(*x, self.scale));
            return x;
        }
        for x in &mut x {
            let quotient = _mm512_fmadd_ps(*x, self.inverse, _mm512_mul_ps(*x, self.rest));
            *x = _mm512_fmadd_ps(_mm512_fnmadd_ps(quotient, self.scale, *x), self.inverse, quotient);
        }
        x
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

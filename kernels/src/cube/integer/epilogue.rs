//! What becomes of the sums, see [`crate::reference::epilogue`].

use super::Quad4;
use super::codes::{Quantizer, code_word};
use super::geometry::Geometry;
use crate::burn_face::ops::IntConvFormat;
use crate::integer::{Activation, STEP, WeightLayout};
use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Epilogue {
    by_position: bool,
    residual: bool,
    activation: Activation,
    /// The width of the results as codes.
    pub(super) codes: Option<BitWidth>,
}

impl Epilogue {
    /// That of a convolution with values or codes, not both.
    pub(super) fn new(format: &IntConvFormat) -> Self {
        let IntConvFormat { addend_by_position, residual, activation, codes, .. } = *format;
        Self { by_position: addend_by_position, residual, activation, codes: codes.map(|to| to.bits) }
    }

    /// Values of a vector of results: four where all of four outputs exist and start at a multiple of four.
    pub(super) fn lanes(self, layout: &WeightLayout) -> usize {
        let outputs =
            if layout.is_depthwise() { layout.outputs() } else { layout.outputs() / layout.groups() };
        if !self.is_codes() && outputs.is_multiple_of(STEP) { STEP } else { 1 }
    }

    const fn is_codes(self) -> bool {
        self.codes.is_some()
    }

    fn bits(self) -> BitWidth {
        self.codes.unwrap_or(BitWidth::B8)
    }
}

/// Writes the results of four outputs at `position`, of which `valid` exist. `values` are the scaled sums. Results are
/// f32, one by one or in vectors of four; or codes, and then `output` is a multiple of four.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn finish<M: Size>(
    values: Vector<f32, Quad4>, position: u32, output: u32, valid: u32, addend: &[f32], residual: &[f32],
    quantizer: &Quantizer, out: &mut [Vector<u32, M>], geometry: &Geometry, #[comptime] epilogue: Epilogue,
) {
    let lanes = M::value();
    let vectors = comptime!(lanes == STEP);
    let mut results = values;
    let at = position * geometry.outputs + output;
    let mut addend_at = output;
    if comptime!(epilogue.by_position) {
        addend_at = position % geometry.image_positions * geometry.outputs + output;
    }
    #[unroll]
    for lane in 0..STEP {
        let lane_u32 = comptime!(lane as u32);
        if lane_u32 < valid {
            let mut value = values.extract(lane) + addend[(addend_at + lane_u32) as usize];
            if comptime!(epilogue.residual) {
                value += residual[(at + lane_u32) as usize];
            }
            value = activated(value, comptime!(epilogue.activation));
            if comptime!(epilogue.is_codes() || vectors) {
                results.insert(lane, value);
            } else {
                out[(at + lane_u32) as usize] = Vector::new(u32::reinterpret(value));
            }
        }
    }
    if comptime!(epilogue.is_codes()) {
        let word = code_word(results, valid, quantizer, comptime!(epilogue.bits()));
        out[(position * geometry.out_words + output / 4) as usize] = Vector::new(word);
    } else if comptime!(vectors) {
        let mut words = Vector::<u32, M>::from_int(0);
        #[unroll]
        for lane in 0..STEP {
            words.insert(lane, u32::reinterpret(results.extract(lane)));
        }
        out[(at / 4) as usize] = words;
    }
}

/// [`Activation::apply`].
#[cube]
fn activated(value: f32, #[comptime] activation: Activation) -> f32 {
    let mut result = value;
    if comptime!(matches!(activation, Activation::Relu | Activation::Relu6 | Activation::Unit)) {
        result = max(result, 0.0f32);
    }
    if comptime!(activation == Activation::Relu6) {
        result = min(result, 6.0f32);
    }
    if comptime!(activation == Activation::Unit) {
        result = min(result, 1.0f32);
    }
    if comptime!(activation == Activation::HardSwish) {
        result *= min(max(value * (1.0f32 / 6.0f32) + 0.5f32, 0.0f32), 1.0f32);
    }
    if comptime!(activation == Activation::Sigmoid) {
        result = 1.0f32 / (1.0f32 + (0.0f32 - value).exp());
    }
    if comptime!(activation == Activation::Silu) {
        result /= 1.0f32 + (0.0f32 - value).exp();
    }
    result
}

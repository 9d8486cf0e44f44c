//! What becomes of the sums, see [`crate::reference::epilogue`].

use super::Quad4;
use super::codes::code_word;
use super::geometry::Geometry;
use crate::burn_face::ops::IntConvFormat;
use crate::integer::STEP;
use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Epilogue {
    by_position: bool,
    residual: bool,
    relu: bool,
    /// The width of the results as codes.
    pub(super) codes: Option<BitWidth>,
}

impl Epilogue {
    pub(super) const fn new(format: &IntConvFormat, codes: Option<BitWidth>) -> Self {
        let IntConvFormat { addend_by_position, residual, relu, .. } = *format;
        Self { by_position: addend_by_position, residual, relu, codes }
    }

    const fn is_codes(self) -> bool {
        self.codes.is_some()
    }

    fn bits(self) -> BitWidth {
        self.codes.unwrap_or(BitWidth::B8)
    }
}

/// Writes the results of four outputs at `position`, of which `valid` exist. `values` are the scaled sums. Results are
/// f32, or codes; then `output` is a multiple of four.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn finish(
    values: Vector<f32, Quad4>, position: u32, output: u32, valid: u32, addend: &[f32], residual: &[f32],
    quantizer: &[f32], out: &mut [u32], geometry: &Geometry, #[comptime] epilogue: Epilogue,
) {
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
            if comptime!(epilogue.relu) {
                value = max(value, 0.0f32);
            }
            if comptime!(epilogue.is_codes()) {
                results.insert(lane, value);
            } else {
                out[(at + lane_u32) as usize] = u32::reinterpret(value);
            }
        }
    }
    if comptime!(epilogue.is_codes()) {
        let word = code_word(results, valid, quantizer, comptime!(epilogue.bits()));
        out[(position * geometry.out_words + output / 4) as usize] = word;
    }
}

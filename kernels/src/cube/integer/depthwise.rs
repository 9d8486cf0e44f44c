//! Depthwise convolution: every channel has weights of its own, so there is nothing to share between outputs. A unit
//! has four channels, a word of codes, at some positions.

use super::Quad4;
use super::codes::Quantizer;
use super::epilogue::{Epilogue, finish};
use super::geometry::{Geometry, Places};
use super::words::{BLOCK_QUADS, QUAD, byte, signed_byte, weight_quad};
use crate::integer::STEP;
use burn_cubecl::cubecl::{self, prelude::*};
use dr_precision::BitWidth;

/// Neighbouring units have neighbouring words of the same positions. In a row of weights a step is four taps.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn depthwise_kernel<W: Size, M: Size>(
    codes: &[u32], weight: &[Vector<u32, W>], multiplier: &[f32], addend: &[f32], residual: &[f32],
    out: &mut [Vector<u32, M>], geometry: Geometry, quantizer: Quantizer, #[comptime] tile: usize,
    #[comptime] bits: BitWidth, #[comptime] epilogue: Epilogue,
) {
    let words = geometry.pixel_words;
    let i = ABSOLUTE_POS as u32;
    let (first, word) = (i / words * comptime!(tile as u32), i % words);
    if first >= geometry.positions {
        terminate!();
    }
    let mut places = Places::new(tile);
    let mut sums = Array::<i32>::new(comptime!(tile * STEP));
    #[unroll]
    for t in 0..tile {
        places.set(&geometry, t, first + comptime!(t as u32));
        #[unroll]
        for lane in 0..STEP {
            sums[t * STEP + lane] = 0;
        }
    }
    let tap_quads = geometry.taps.div_ceil(16);
    for quad in 0..tap_quads {
        let mut weights = Array::<Vector<u32, Quad4>>::new(STEP);
        #[unroll]
        for lane in 0..STEP {
            let row = word * 4 + comptime!(lane as u32);
            let at = row * geometry.row_blocks * comptime!(BLOCK_QUADS as u32) + quad;
            weights[lane] = weight_quad(weight, geometry.blocks, at, bits);
        }
        #[unroll]
        for step in 0..QUAD {
            #[unroll]
            for in_step in 0..STEP {
                let tap = quad * 16 + comptime!((step * STEP + in_step) as u32);
                if tap < geometry.taps {
                    #[unroll]
                    for t in 0..tile {
                        let pixel = geometry.pixel(&places, t, tap, false);
                        if pixel != u32::MAX {
                            let code = codes[(pixel * words + word) as usize];
                            #[unroll]
                            for lane in 0..STEP {
                                let factor = signed_byte(weights[lane].extract(step), in_step);
                                sums[t * STEP + lane] += byte(code, lane) * factor;
                            }
                        }
                    }
                }
            }
        }
    }
    let output = word * 4;
    let valid = min(geometry.outputs - output, 4);
    #[unroll]
    for t in 0..tile {
        let position = first + comptime!(t as u32);
        if position < geometry.positions {
            let mut values = Vector::<f32, Quad4>::from_int(0);
            #[unroll]
            for lane in 0..STEP {
                if comptime!(lane as u32) < valid {
                    let factor = multiplier[(output + comptime!(lane as u32)) as usize];
                    values.insert(lane, factor * f32::cast_from(sums[t * STEP + lane]));
                }
            }
            finish(values, position, output, valid, addend, residual, &quantizer, out, &geometry, epilogue);
        }
    }
}

//! Sums over the units of a cube, always in the same order.

use burn_cubecl::cubecl::{self, prelude::*};

/// Replaces each of the first `count` values of every unit by its sum over the cube. All units must take part. `units`
/// is `CUBE_DIM`, a power of two; `shared` has at least `count * units` places.
#[cube]
pub(super) fn sum_over_cube(
    values: &mut Array<f32>, shared: &mut Shared<[f32]>, #[comptime] count: usize, #[comptime] units: u32,
) {
    sync_cube(); // the places may still be read from an earlier sum
    #[unroll]
    for a in 0..count {
        shared[a * units as usize + UNIT_POS as usize] = values[a];
    }
    sync_cube();
    let mut half = CUBE_DIM / 2; // from a run-time value: `units / 2` would be a constant, not a variable
    while half > 0 {
        if UNIT_POS < half {
            #[unroll]
            for a in 0..count {
                let at = a * units as usize + UNIT_POS as usize;
                shared[at] += shared[at + half as usize];
            }
        }
        sync_cube();
        half /= 2;
    }
    #[unroll]
    for a in 0..count {
        values[a] = shared[a * units as usize];
    }
}

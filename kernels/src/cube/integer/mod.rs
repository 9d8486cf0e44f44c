//! Integer arithmetic on codes, see [`crate::integer`].
//!
//! | module | what |
//! |---|---|
//! | `words` | codes of packed weights, unpacked four at a time, and their products |
//! | `geometry` | which codes an output position multiplies with which weights |
//! | `conv` | convolutions and matrix products, in three tilings |
//! | `mma` | the same on tensor cores |
//! | `choice` | which of them, and how a cube works |
//! | `tune` | what of that is measured |
//! | `depthwise` | depthwise convolutions |
//! | `epilogue` | from sums to results |
//! | `codes` | from values to codes |
//! | `prepare` | from packed weights to prepared ones, and back |
//! | `weight_only` | float activations times packed weights |

mod choice;
mod codes;
mod conv;
mod depthwise;
mod epilogue;
mod geometry;
mod mma;
mod prepare;
mod tune;
mod weight_only;
mod words;

use super::launch::{cubes, empty, one_unit_each, upload};
use super::pack;
use crate::burn_face::ops::{CodesFormat, IntConvFormat, IntOps, WeightOnlyFormat};
use crate::integer::{Dot, STEP, WeightLayout};
use burn::tensor::DType;
use burn_cubecl::cubecl::{client::Client, prelude::*};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use choice::{Way, choose};
use codes::quantizer;
use conv::{Plan, Split, Tile, direct_kernel, split_kernel, tiled_kernel};
use depthwise::depthwise_kernel;
use dr_precision::BitWidth;
use epilogue::Epilogue;
use geometry::{Order, Walk, geometry, table};
use mma::{MmaSplit, MmaTile, mma_kernel, mma_split_kernel};
use words::weight_lanes;

/// Four lanes.
type Quad4 = Const<4>;

/// Positions of a unit that reads for itself.
const DIRECT_POSITIONS: usize = 4;

impl IntOps for CubeBackend {
    fn quantize_codes(x: CubeTensor, format: CodesFormat) -> CubeTensor {
        codes::quantize(x, format)
    }

    fn prepare_weight(words: CubeTensor, layout: WeightLayout) -> CubeTensor {
        prepare::prepare(words, &layout)
    }

    fn switch_weight(words: CubeTensor, layout: WeightLayout, active: BitWidth) -> CubeTensor {
        pack::switch(words, layout.elements(), layout.bits(), active)
    }

    fn weight_codes(words: CubeTensor, layout: WeightLayout) -> CubeTensor {
        prepare::codes(words, &layout)
    }

    fn tap_sums(words: CubeTensor, scale: CubeTensor, layout: WeightLayout) -> CubeTensor {
        prepare::tap_sums(words, scale, &layout)
    }

    fn int_conv2d(
        codes: CubeTensor, weight: CubeTensor, multiplier: CubeTensor, addend: CubeTensor,
        residual: CubeTensor, format: IntConvFormat,
    ) -> (CubeTensor, CubeTensor) {
        let layout = format.shape.weight();
        // The outputs of different groups of channels may share words.
        let groups = if layout.is_depthwise() { 1 } else { layout.groups() };
        let whole_words = groups == 1 || (layout.outputs() / groups).is_multiple_of(STEP);
        let inputs = [codes, weight, multiplier, addend, residual];
        match format.codes {
            Some(_) if !format.values && whole_words => {
                let out = empty(&inputs[0], [format.code_words()], DType::U32);
                let none = empty(&out, [0], DType::F32);
                convolve(inputs, &out, format);
                (none, out)
            }
            to => {
                let out = empty(&inputs[0], [format.shape.results()], DType::F32);
                convolve(inputs, &out, IntConvFormat { codes: None, ..format });
                let codes = match to {
                    Some(to) => codes::quantize(out.clone(), format.as_codes(to)),
                    None => empty(&out, [0], DType::U32),
                };
                (if format.values { out } else { empty(&out, [0], DType::F32) }, codes)
            }
        }
    }

    fn weight_only(
        x: CubeTensor, weight: CubeTensor, scale: CubeTensor, format: WeightOnlyFormat,
    ) -> CubeTensor {
        weight_only::weight_only([x, weight, scale], format)
    }
}

/// A convolution to be done: `[codes, weight, multiplier, addend, residual]` to `out`, as codes if the format has any.
#[derive(Clone)]
struct Job {
    inputs: [CubeTensor; 5],
    table: CubeTensor,
    out: CubeTensor,
    format: IntConvFormat,
}

/// Does the convolution of a [`Job`], whose result is not empty.
fn convolve(inputs: [CubeTensor; 5], out: &CubeTensor, format: IntConvFormat) {
    let (client, shape) = (&out.client, &format.shape);
    let inputs = inputs.map(into_contiguous);
    let table = match Order::of(shape) {
        Order::Table => upload(out, &table(shape.weight())),
        _ => inputs[1].clone(), // not read
    };
    let job = Job { inputs, table, out: out.clone(), format };
    if shape.weight().is_depthwise() {
        return job.depthwise();
    }
    match choose(client, shape, format.kernel) {
        (Way::Direct, dot) => job.direct(dot),
        (Way::Tiled(tile), dot) => job.tiled(tile, dot),
        (Way::Split(split), dot) => job.split(split, dot),
        (Way::Mma, _) => tune::convolve(job),
        (Way::MmaSplit(split), _) => job.mma_split(split),
    }
}

/// Launches a kernel that is not the depthwise one.
#[rustfmt::skip]
macro_rules! launch {
    (
        $job:ident, $kernel:ident, $dot:expr, $counts:expr, [$($how:expr),+],
        $weight_lanes:expr $(, $shared_lanes:expr)?
    ) => {{
        let Job { inputs: [codes, weight, multiplier, addend, residual], table, out, format } = $job.clone();
        let (shape, epilogue, (count, dim)) = (&format.shape, Epilogue::new(&format), $counts);
        let (layout, walk) = (shape.weight(), Walk::of(shape));
        let plan = Plan { bits: layout.bits(), dot: $dot, walk, epilogue };
        $kernel::launch(
            &out.client, count, dim, walk.order.lanes(), $weight_lanes, epilogue.lanes(layout), $($shared_lanes,)?
            codes.into_buffer_arg(), weight.into_buffer_arg(), table.into_buffer_arg(),
            multiplier.into_buffer_arg(), addend.into_buffer_arg(), residual.into_buffer_arg(),
            out.clone().into_buffer_arg(), geometry(shape), quantizer(format.codes), $($how,)+ plan,
        );
    }};
}

impl Job {
    fn client(&self) -> &Client {
        &self.out.client
    }

    fn layout(&self) -> &WeightLayout {
        self.format.shape.weight()
    }

    /// Output positions of all images.
    fn positions(&self) -> usize {
        self.format.shape.batch() * self.format.shape.positions()
    }

    /// Cubes of `units` units that have `positions` positions and `rows` rows each.
    fn cubes(&self, positions: usize, rows: usize, units: usize) -> (CubeCount, CubeDim) {
        let (outputs, groups) = (self.layout().outputs(), self.layout().groups());
        let row_tiles = groups * (outputs / groups).div_ceil(rows);
        cubes(self.client(), self.positions().div_ceil(positions) * row_tiles, units as u32)
    }

    fn direct(self, dot: Dot) {
        let (outputs, groups, bits) = (self.layout().outputs(), self.layout().groups(), self.layout().bits());
        let units = self.positions().div_ceil(DIRECT_POSITIONS) * groups * (outputs / groups).div_ceil(STEP);
        let counts = one_unit_each(self.client(), units);
        launch!(self, direct_kernel, dot, counts, [DIRECT_POSITIONS], weight_lanes(bits));
    }

    fn tiled(self, tile: Tile, dot: Dot) {
        debug_assert!(tile.is_even());
        let counts = self.cubes(tile.cube_positions(), tile.cube_rows(), tile.all_units());
        launch!(self, tiled_kernel, dot, counts, [tile], weight_lanes(self.layout().bits()));
    }

    fn split(self, split: Split, dot: Dot) {
        let counts = self.cubes(split.positions, STEP, split.units);
        launch!(self, split_kernel, dot, counts, [split], weight_lanes(self.layout().bits()));
    }

    fn mma(self, tile: MmaTile) {
        debug_assert!(tile.is_even());
        let (bits, scaled) = (self.layout().bits(), self.layout().scale_groups() > 1);
        let counts = self.cubes(tile.cube_positions(), tile.cube_rows(), tile.units());
        let how = (weight_lanes(bits), mma::shared_words(bits));
        launch!(self, mma_kernel, Dot::Mma, counts, [scaled, tile], how.0, how.1);
    }

    fn mma_split(self, split: MmaSplit) {
        let counts = self.cubes(mma::SHAPE[1], split.cube_rows(), split.units());
        let lanes = weight_lanes(self.layout().bits()) * split.quads;
        launch!(self, mma_split_kernel, Dot::Mma, counts, [split], lanes);
    }

    fn depthwise(self) {
        let units = self.positions().div_ceil(DIRECT_POSITIONS) * self.layout().outputs().div_ceil(STEP);
        let (count, dim) = one_unit_each(self.client(), units);
        let Self { inputs: [codes, weight, multiplier, addend, residual], out, format, .. } = self;
        let (shape, epilogue) = (&format.shape, Epilogue::new(&format));
        let layout = shape.weight();
        #[rustfmt::skip]
        depthwise_kernel::launch(
            &out.client, count, dim, weight_lanes(layout.bits()), epilogue.lanes(layout),
            codes.into_buffer_arg(), weight.into_buffer_arg(), multiplier.into_buffer_arg(),
            addend.into_buffer_arg(), residual.into_buffer_arg(), out.clone().into_buffer_arg(),
            geometry(shape), quantizer(format.codes), DIRECT_POSITIONS, layout.bits(), epilogue,
        );
    }
}

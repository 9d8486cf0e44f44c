//! [`products`]: sums of products of what a layer's weights are multiplied by.

use super::planes::Planes;
use super::store::Held;
use dr_kernels::integer::CodeQuantizer;
use dr_precision::semantics;
use dr_runtime::graph::LayerKind;
use nalgebra::DMatrix;
use rayon::prelude::*;

/// Sums over output positions of products of the inputs of a layer: `x` in floats, `x_b` at a precision. Both are `[inputs, inputs]`, of weights in their order.
pub(super) struct Products {
    /// `sum x_b x_b^T`
    pub hessian: DMatrix<f32>,
    /// `sum x x_b^T`
    pub cross: DMatrix<f32>,
}

/// About so many output positions are looked at, evenly over all inputs.
const POSITIONS: usize = 1 << 16;

/// So many at a time.
const CHUNK: usize = 1 << 11;

/// The products of a layer that reads all inputs for each output, for some precisions, each of which has its inputs and how they are quantized.
pub(super) fn products(kind: &LayerKind, x: &[Held], streams: &[(&[Held], CodeQuantizer)]) -> Vec<Products> {
    let shape = kind.weight_shape();
    let inputs: usize = shape[1..].iter().product();
    let zeros = || DMatrix::zeros(inputs, inputs);
    let mut sums: Vec<_> = streams.iter().map(|_| Products { hessian: zeros(), cross: zeros() }).collect();
    let mut before = 0usize;
    let all = positions(kind, x);
    // An odd step visits all columns of the usual, even, image sizes.
    let step = if all <= POSITIONS { 1 } else { all.div_ceil(POSITIONS) | 1 };
    for (batch, x) in x.iter().enumerate() {
        let x = Windows { planes: x.planes(), kind, quantizer: None };
        let quantized = streams.iter().map(|&(values, quantizer)| Windows {
            planes: values[batch].planes(),
            kind,
            quantizer: Some(quantizer),
        });
        let quantized: Vec<_> = quantized.collect();
        let count = x.positions();
        let chosen: Vec<usize> = (before.next_multiple_of(step) - before..count).step_by(step).collect();
        before += count;
        for positions in chosen.chunks(CHUNK) {
            let x = x.at(positions, inputs);
            sums.par_iter_mut().zip(&quantized).for_each(|(sums, quantized)| {
                let of = quantized.at(positions, inputs);
                let turned = of.transpose();
                sums.hessian.gemm(1.0, &of, &turned, 1.0);
                sums.cross.gemm(1.0, &x, &turned, 1.0);
            });
        }
    }
    sums
}

/// How many output positions a layer has for some inputs.
pub(super) fn positions(kind: &LayerKind, x: &[Held]) -> usize {
    let of = |x: &Held| {
        let [batch, _, rows, columns] = x.dims();
        batch * kind.output_size([rows, columns]).iter().product::<usize>()
    };
    x.iter().map(of).sum()
}

/// What a layer reads of a batch, window by window.
struct Windows<'a> {
    planes: Planes,
    kind: &'a LayerKind,
    /// What values become before.
    quantizer: Option<CodeQuantizer>,
}

impl Windows<'_> {
    fn output(&self) -> [usize; 2] {
        self.kind.output_size([self.planes.dims[2], self.planes.dims[3]])
    }

    fn positions(&self) -> usize {
        self.planes.dims[0] * self.output().iter().product::<usize>()
    }

    /// The windows of these positions, `[inputs, positions]`.
    fn at(&self, positions: &[usize], inputs: usize) -> DMatrix<f32> {
        let ([_, channels, rows, columns], [out_rows, out_columns]) = (self.planes.dims, self.output());
        let (kernel, stride, padding) = match *self.kind {
            LayerKind::Conv2d { kernel, stride, padding, .. } => (kernel, stride, padding),
            LayerKind::Linear { .. } => ([1; 2], [1; 2], [0; 2]),
        };
        let mut windows = DMatrix::zeros(inputs, positions.len());
        let of_position = windows.as_mut_slice().par_chunks_mut(inputs).zip(positions);
        of_position.for_each(|(window, &position)| {
            let (image, at) = (position / (out_rows * out_columns), position % (out_rows * out_columns));
            let image = &self.planes.values[image * channels * rows * columns..];
            let first = [at / out_columns * stride[0], at % out_columns * stride[1]];
            for (at, value) in window.iter_mut().enumerate() {
                let (channel, tap) = (at / (kernel[0] * kernel[1]), at % (kernel[0] * kernel[1]));
                let row = (first[0] + tap / kernel[1]).checked_sub(padding[0]).filter(|&row| row < rows);
                let column = (first[1] + tap % kernel[1]).checked_sub(padding[1]);
                if let (Some(row), Some(column)) = (row, column.filter(|&column| column < columns)) {
                    *value = self.quantized(image[(channel * rows + row) * columns + column]);
                }
            }
        });
        windows
    }

    fn quantized(&self, x: f32) -> f32 {
        let Some(CodeQuantizer { bits, scale, zero_point }) = self.quantizer else { return x };
        let code = semantics::quantize_activation(x, scale, zero_point, bits);
        semantics::dequantize_activation(code, scale, zero_point)
    }
}

#[cfg(test)]
mod tests {
    use super::super::store::Store;
    use super::*;
    use burn::tensor::{Device, Tensor, TensorData};
    use dr_precision::BitWidth;

    /// A convolution is the product of its weights with the windows: their sums of products are those of its outputs.
    #[test]
    fn products_are_those_of_windows() {
        let (channels, rows, columns) = (3, 5, 4);
        let store = Store::new(u64::MAX, std::env::temp_dir());
        let of = |seed: usize| {
            let values: Vec<f32> =
                (0..2 * channels * rows * columns).map(|at| ((at * seed) % 17) as f32 - 8.0).collect();
            let data = TensorData::new(values, [2, channels, rows, columns]);
            store.hold(Tensor::<4>::from_data(data, &Device::flex()).into())
        };
        let x = [of(5), of(7)];
        let kind = LayerKind::Conv2d {
            channels: [channels, 1],
            kernel: [2, 3],
            stride: [2, 1],
            padding: [1, 1],
            groups: 1,
        };
        // Codes that stand for all of these values, and one that does not hold those above 3.
        let exact = CodeQuantizer { bits: BitWidth::B8, scale: 1.0, zero_point: -8.0 };
        let cut = CodeQuantizer { bits: BitWidth::B2, scale: 1.0, zero_point: 0.0 };
        let sums = products(&kind, &x, &[(&x, exact), (&x, cut)]);
        let mut expected = [DMatrix::<f32>::zeros(18, 18), DMatrix::zeros(18, 18), DMatrix::zeros(18, 18)];
        for x in &x {
            let Planes { values, .. } = x.planes();
            for (image, row, column) in
                (0..2).flat_map(|i| (0..3).flat_map(move |r| (0..4).map(move |c| (i, r, c))))
            {
                let window = nalgebra::DVector::from_fn(18, |at, _| {
                    let (channel, tap) = (at / 6, at % 6);
                    let at = [row * 2 + tap / 3, column + tap % 3].map(|at| at.wrapping_sub(1));
                    let inside = at[0] < rows && at[1] < columns;
                    if inside {
                        values[((image * channels + channel) * rows + at[0]) * columns + at[1]]
                    } else {
                        0.0
                    }
                });
                let of_cut = window.map(|x| x.clamp(0.0, 3.0));
                expected[0] += &window * window.transpose();
                expected[1] += &of_cut * of_cut.transpose();
                expected[2] += &window * of_cut.transpose();
            }
        }
        assert_eq!(positions(&kind, &x), 48);
        assert_eq!((&sums[0].hessian, &sums[0].cross), (&expected[0], &expected[0]));
        assert_eq!((&sums[1].hessian, &sums[1].cross), (&expected[1], &expected[2]));
    }
}

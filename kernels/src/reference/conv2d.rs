//! Float 2D convolution and its gradients, summed in `f64`.

use crate::cpu::Conv2dShape;

/// Calls `f` with the indices of input, weight and output of every product of the convolution.
fn products(shape: &Conv2dShape, mut f: impl FnMut(usize, usize, usize)) {
    let ([channels_in, channels_out], [in_rows, in_cols], k) = (shape.channels, shape.input, shape.kernel);
    let [height, width] = shape.output();
    for index in 0..shape.batch * channels_out * height * width {
        let (o, x) = (index % channels_out, index / channels_out % width);
        let (y, n) = (index / (channels_out * width) % height, index / (channels_out * width * height));
        let inputs = if shape.depthwise { 1 } else { channels_in };
        for tap in 0..inputs * k * k {
            let (c, ky, kx) = (tap / (k * k), tap / k % k, tap % k);
            let row = (y * shape.stride + ky).checked_sub(shape.padding).filter(|&row| row < in_rows);
            let col = (x * shape.stride + kx).checked_sub(shape.padding).filter(|&col| col < in_cols);
            if let (Some(row), Some(col)) = (row, col) {
                let channel = if shape.depthwise { o } else { c };
                f(
                    ((n * in_rows + row) * in_cols + col) * channels_in + channel,
                    o * inputs * k * k + tap,
                    index,
                );
            }
        }
    }
}

/// See [`crate::cpu::conv2d`].
pub fn conv2d(x: &[f32], w: &[f32], shape: &Conv2dShape) -> Vec<f64> {
    let [height, width] = shape.output();
    let mut out = vec![0.0; shape.batch * shape.channels[1] * height * width];
    products(shape, |i, j, o| out[o] += f64::from(x[i]) * f64::from(w[j]));
    out
}

/// See [`crate::cpu::conv2d_input_gradient`].
pub fn conv2d_input_gradient(dy: &[f32], w: &[f32], shape: &Conv2dShape) -> Vec<f64> {
    let mut dx = vec![0.0; shape.batch * shape.channels[0] * shape.input[0] * shape.input[1]];
    products(shape, |i, j, o| dx[i] += f64::from(dy[o]) * f64::from(w[j]));
    dx
}

/// See [`crate::cpu::conv2d_weight_gradient`].
pub fn conv2d_weight_gradient(x: &[f32], dy: &[f32], shape: &Conv2dShape) -> Vec<f64> {
    let inputs = if shape.depthwise { 1 } else { shape.channels[0] };
    let mut dw = vec![0.0; inputs * shape.channels[1] * shape.kernel * shape.kernel];
    products(shape, |i, j, o| dw[j] += f64::from(x[i]) * f64::from(dy[o]));
    dw
}

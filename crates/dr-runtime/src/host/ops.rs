//! What networks compute on slices besides products. Sizes are `[batch, rows, columns, channels]`.

use dr_kernels::integer;

/// The last elements.
pub(super) fn tail(values: &[f32], len: usize) -> &[f32] {
    &values[values.len().saturating_sub(len)..]
}

/// A function of two values, or of the ends of them that `out` has room for.
pub(super) fn pairs(a: &[f32], b: &[f32], out: &mut [f32], of: impl Fn(f32, f32) -> f32) {
    let pairs = tail(a, out.len()).iter().zip(tail(b, out.len()));
    out.iter_mut().zip(pairs).for_each(|(out, (a, b))| *out = of(*a, *b));
}

/// A function of each pixel of images and the row of its image.
pub(super) fn pixels(
    x: &[f32], rows: &[f32], [_, height, width, channels]: [usize; 4], out: &mut [f32],
    of: impl Fn(f32, f32) -> f32,
) {
    let image = (height * width * channels).max(1);
    let images = out.chunks_exact_mut(image).zip(x.chunks_exact(image));
    for ((out, x), row) in images.zip(rows.chunks_exact(channels.max(1))) {
        let pixels = out.chunks_exact_mut(channels.max(1)).zip(x.chunks_exact(channels.max(1)));
        pixels.for_each(|(out, x)| {
            out.iter_mut().zip(x.iter().zip(row)).for_each(|(out, (a, b))| *out = of(*a, *b));
        });
    }
}

/// `gain * x + shift` of each channel, the last axis.
pub(super) fn channels(x: &[f32], gain: &[f32], shift: &[f32], out: &mut [f32]) {
    let channels = gain.len().max(1);
    for (out, x) in out.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
        let terms = x.iter().zip(gain.iter().zip(shift));
        out.iter_mut().zip(terms).for_each(|(out, (x, (gain, shift)))| *out = gain * x + shift);
    }
}

/// What is done to the results of a product.
#[derive(Clone, Debug)]
pub(super) struct Finish {
    /// A factor and an addend before the activation.
    pub slope: [f32; 2],
    pub activation: integer::Activation,
    /// A factor and an addend of each output after it.
    pub last: Option<[Vec<f32>; 2]>,
}

impl Finish {
    /// Adds a residual, and does the rest.
    pub fn run(&self, out: &mut [f32], residual: Option<&[f32]>) {
        if let Some(residual) = residual {
            out.iter_mut().zip(residual).for_each(|(out, residual)| *out += residual);
        }
        if self.slope != [1.0, 0.0] {
            out.iter_mut().for_each(|out| *out = self.slope[0] * *out + self.slope[1]);
        }
        activate(out, self.activation);
        if let Some([gain, shift]) = &self.last {
            for out in out.chunks_exact_mut(gain.len().max(1)) {
                let terms = out.iter_mut().zip(gain.iter().zip(shift));
                terms.for_each(|(out, (gain, shift))| *out = gain * *out + shift);
            }
        }
    }
}

/// An activation of each value.
pub(super) fn activate(out: &mut [f32], activation: integer::Activation) {
    use integer::Activation as A;
    let each = |of: A, out: &mut [f32]| out.iter_mut().for_each(|x| *x = of.apply(*x));
    match activation {
        A::None => {}
        A::Relu => each(A::Relu, out),
        A::Relu6 => each(A::Relu6, out),
        A::Unit => each(A::Unit, out),
        A::HardSwish => each(A::HardSwish, out),
        A::Sigmoid => each(A::Sigmoid, out),
        A::Silu => each(A::Silu, out),
    }
}

/// `[batch, channels, rows, columns]` to `dims`, with the channels last.
pub(super) fn channels_last(x: &[f32], [batch, rows, columns, channels]: [usize; 4], out: &mut [f32]) {
    let positions = rows * columns;
    for image in 0..batch {
        for channel in 0..channels {
            let from = &x[(image * channels + channel) * positions..][..positions];
            let to = &mut out[image * positions * channels..][..positions * channels];
            to.iter_mut().skip(channel).step_by(channels).zip(from).for_each(|(to, from)| *to = *from);
        }
    }
}

/// The way back.
pub(super) fn channels_first(x: &[f32], [batch, rows, columns, channels]: [usize; 4], out: &mut [f32]) {
    let positions = rows * columns;
    for image in 0..batch {
        for channel in 0..channels {
            let from = &x[image * positions * channels..][..positions * channels];
            let to = &mut out[(image * channels + channel) * positions..][..positions];
            to.iter_mut().zip(from.iter().skip(channel).step_by(channels)).for_each(|(to, from)| *to = *from);
        }
    }
}

/// The maximum of windows: `[kernel, stride, padding]`.
pub(super) fn max_pool(
    x: &[f32], [_, rows, columns, channels]: [usize; 4], [_, to_rows, to_columns, _]: [usize; 4],
    [kernel, stride, padding]: [[usize; 2]; 3], out: &mut [f32],
) {
    let window = |at: usize, axis: usize, size: usize| {
        let first = at * stride[axis];
        first.saturating_sub(padding[axis])..size.min((first + kernel[axis]).saturating_sub(padding[axis]))
    };
    for (at, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
        let (image, row, column) = (at / (to_rows * to_columns), at / to_columns % to_rows, at % to_columns);
        out.fill(f32::NEG_INFINITY);
        for y in window(row, 0, rows) {
            for z in window(column, 1, columns) {
                let pixel = &x[((image * rows + y) * columns + z) * channels..][..channels];
                out.iter_mut().zip(pixel).for_each(|(max, &value)| *max = max.max(value));
            }
        }
    }
}

/// The mean of all pixels.
pub(super) fn mean(x: &[f32], [_, rows, columns, channels]: [usize; 4], out: &mut [f32]) {
    out.fill(f32::NAN); // of no pixels
    let image = (rows * columns * channels).max(1);
    for (out, image) in out.chunks_exact_mut(channels.max(1)).zip(x.chunks_exact(image)) {
        out.fill(0.0);
        for pixel in image.chunks_exact(channels) {
            out.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        out.iter_mut().for_each(|sum| *sum /= (rows * columns) as f32);
    }
}

/// Rows and columns repeated, of which the first ones are taken.
pub(super) fn enlarge(
    x: &[f32], [_, rows, columns, channels]: [usize; 4], [_, to_rows, to_columns, _]: [usize; 4],
    out: &mut [f32],
) {
    let times = [to_rows.div_ceil(rows.max(1)), to_columns.div_ceil(columns.max(1))];
    for (at, out) in out.chunks_exact_mut(channels.max(1)).enumerate() {
        let (image, row, column) = (at / (to_rows * to_columns), at / to_columns % to_rows, at % to_columns);
        let from = (image * rows + row / times[0]) * columns + column / times[1];
        out.copy_from_slice(&x[from * channels..][..channels]);
    }
}

/// Pieces of several values in turn: of each, the first one, then the second one, and so on. Those of a value have `len` elements.
pub(super) fn join<'a>(parts: impl Iterator<Item = (&'a [f32], usize)> + Clone, out: &mut [f32]) {
    let all: usize = parts.clone().map(|(_, len)| len).sum();
    let mut first = 0;
    for (values, len) in parts {
        let pieces = values.chunks_exact(len.max(1));
        for (out, piece) in out.chunks_exact_mut(all.max(1)).zip(pieces) {
            out[first..first + len].copy_from_slice(piece);
        }
        first += len;
    }
}

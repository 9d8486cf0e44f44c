//! Float convolutions in training: the three products of a layer.

use criterion::{Criterion, Throughput};
use dr_bench::peak::multiply_floats;
use dr_bench::{Work, on_host, threads, weights};
use dr_kernels::cpu::{Conv2dShape, Images, conv2d, conv2d_input_gradient, conv2d_weight_gradient};

/// Convolutions of ResNet-20 at 32 x 32, of ResNet-18 at 96 x 96 and of MobileNetV2 at 96 x 96: channels in and out, size of the
/// input, kernel, stride and whether it is depthwise.
const CONVOLUTIONS: [([usize; 2], usize, usize, usize, bool); 8] = [
    ([3, 16], 32, 3, 1, false),
    ([16, 16], 32, 3, 1, false),
    ([16, 32], 32, 3, 2, false),
    ([32, 32], 16, 3, 1, false),
    ([64, 64], 8, 3, 1, false),
    ([64, 64], 24, 3, 1, false),
    ([24, 144], 24, 1, 1, false),
    ([144, 144], 24, 3, 1, true),
];

/// Batches of 64, on slices. The limit is multiplications and additions in registers.
pub fn convolutions(criterion: &mut Criterion) {
    if !on_host() {
        return;
    }
    for (channels, size, kernel, stride, depthwise) in CONVOLUTIONS {
        let (input, padding) = ([size; 2], kernel / 2);
        let shape = Conv2dShape { batch: 64, channels, input, kernel, stride, padding, depthwise };
        let [rows, cols] = shape.output();
        let inputs = if depthwise { 1 } else { channels[0] };
        let products = 64 * rows * cols * channels[1] * inputs * kernel * kernel;
        let x = weights(64 * size * size * channels[0]);
        let w = weights(channels[1] * inputs * kernel * kernel);
        let dy = weights(64 * rows * cols * channels[1]);
        let kind = if depthwise { "depthwise" } else { "dense" };
        let name =
            format!("training/{kind} {kernel}x{kernel} {}to{} of {size}x{size}", channels[0], channels[1]);
        let mut work = |product: &str, run: &dyn Fn() -> Vec<f32>| {
            let amount = Throughput::Elements(2 * products as u64);
            let mut work = Work::new(criterion, format!("{name}, {product}"), amount);
            work.measure("dr-kernels f32", run);
            let of_thread = (products / threads()) as u64;
            if multiply_floats(1).is_some() {
                work.measure("registers", || rayon::broadcast(|_| multiply_floats(of_thread)));
            }
        };
        work("forward", &|| conv2d(Images::floats(&x), &w, &shape));
        work("gradient of the input", &|| conv2d_input_gradient(&dy, &w, &shape));
        work("gradient of the weight", &|| conv2d_weight_gradient(Images::floats(&x), &dy, &shape));
    }
}

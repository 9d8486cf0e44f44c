//! Fake quantization and its gradients. `cargo bench -- fake_quantize`

use burn::tensor::{Device, Tensor, TensorData};
use criterion::Criterion;
use dr_bench::{LARGE, LAYER, Work, device, emulated, on_host, weights};
use dr_kernels::cpu::{self, Isa, Operation};
use dr_kernels::layout::ScaleLayout;
use dr_kernels::{ActivationQuantizer, ScaleGradient, WeightQuantizer};
use dr_precision::{BitWidth, Granularity};

const STORED: BitWidth = BitWidth::B8;
const ACTIVE: BitWidth = BitWidth::B4;
/// `2^-(8 - 4)`
const STEP: f32 = 0.0625;

/// Weights, their stored scale for each row and that of the codes of a narrower width, and how they are laid out.
fn switched(shape: [usize; 2]) -> (Vec<f32>, [Vec<f32>; 2], ScaleLayout) {
    let scales = |scale: f32| (0..shape[0]).map(|row| scale * (1.0 + (row % 7) as f32 / 10.0)).collect();
    let layout = ScaleLayout::weights(&shape, Granularity::Channel).unwrap();
    (weights(layout.elements()), [0.02, 0.3].map(scales), layout)
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn weight_forward(criterion: &mut Criterion) {
    let device = device();
    for shape in [LARGE, LAYER] {
        let [rows, cols] = shape;
        let (w, [stored_scale, scale], layout) = switched(shape);
        let mut work = Work::elementwise(criterion, "fake_quantize/forward w8->w4", shape, rows * cols * 8);
        if on_host() {
            let mut out = vec![1.0; w.len()];
            work.measure("dr-kernels, slices", || {
                let isa = Isa::detect();
                cpu::fake_quantize_weight(&w, &stored_scale, &scale, &layout, STORED, ACTIVE)
                    .fill(isa, &mut out);
            });
        }
        let w = tensor(&w, shape, &device);
        let [stored_scale, scale] = [stored_scale, scale].map(|scale| tensor(&scale, [rows], &device));
        let quantizer = WeightQuantizer::new(STORED, ACTIVE).unwrap();
        work.on_device("dr-kernels", &device, || {
            let (w, stored_scale, scale) = (w.clone(), stored_scale.clone(), scale.clone());
            dr_kernels::fake_quantize_weight(w, stored_scale, scale, &quantizer).unwrap()
        });
        if emulated(shape) {
            let [stored_scale, scale] = [stored_scale, scale].map(|scale| scale.reshape([rows, 1]));
            work.on_device("tensor operations", &device, || {
                let codes = w.clone().div(stored_scale.clone()).round().clamp(-128.0, 127.0);
                codes.mul_scalar(STEP).round().clamp(-8.0, 7.0).mul(scale.clone())
            });
        }
        work.on_device("copy, a tensor operation", &device, || w.clone().mul_scalar(1.0));
        work.copies(rows * cols * 4);
    }
}

pub fn activation_forward(criterion: &mut Criterion) {
    let device = device();
    for shape in [LARGE, LAYER] {
        let [rows, cols] = shape;
        let x = weights(rows * cols);
        let mut work = Work::elementwise(criterion, "fake_quantize/forward a4", shape, rows * cols * 8);
        if on_host() {
            let layout = ScaleLayout::activations(&shape, Granularity::Tensor).unwrap();
            let mut out = vec![1.0; x.len()];
            work.measure("dr-kernels, slices", || {
                let isa = Isa::detect();
                cpu::fake_quantize_activation(&x, &[0.2], &[-1.0], &layout, ACTIVE).fill(isa, &mut out);
            });
        }
        let x = tensor(&x, shape, &device);
        let [scale, zero] = [0.2, -1.0].map(|value| tensor(&[value], [1], &device));
        let quantizer = ActivationQuantizer::new(ACTIVE);
        work.on_device("dr-kernels", &device, || {
            let (x, scale, zero) = (x.clone(), scale.clone(), zero.clone());
            dr_kernels::fake_quantize_activation(x, scale, zero, &quantizer).unwrap()
        });
        if emulated(shape) {
            let [scale, zero] = [scale, zero].map(|value| value.reshape([1, 1]));
            work.on_device("tensor operations", &device, || {
                let codes = x.clone().sub(zero.clone()).div(scale.clone()).round().clamp(0.0, 15.0);
                codes.mul(scale.clone()).add(zero.clone())
            });
        }
        work.copies(rows * cols * 4);
    }
}

/// Gradient mode `exact`: `g` where in range, and `sum g q_l` for each scale.
pub fn weight_backward(criterion: &mut Criterion) {
    let device = device();
    for shape in [LARGE, LAYER] {
        let [rows, cols] = shape;
        let (w, [stored_scale, scale], layout) = switched(shape);
        let grad = w.clone();
        let mut work = Work::elementwise(criterion, "fake_quantize/backward w8->w4", shape, rows * cols * 12);
        if on_host() {
            let (mut dw, mode) = (vec![1.0; w.len()], ScaleGradient::Exact);
            let (w, stored, scale, grad) = (&w, &stored_scale, &scale, &grad);
            work.measure("dr-kernels, slices", || {
                cpu::fake_quantize_weight_backward(w, stored, scale, grad, &layout, STORED, ACTIVE, mode)
                    .fill(Isa::detect(), &mut dw)
            });
        }
        if emulated(shape) {
            let [w, grad] = [w, grad].map(|values| tensor(&values, shape, &device));
            let stored_scale = tensor(&stored_scale, [rows, 1], &device);
            work.on_device("tensor operations", &device, || {
                let v = w.clone().div(stored_scale.clone());
                let codes = v.clone().round().clamp(-128.0, 127.0).mul_scalar(STEP).round().clamp(-8.0, 7.0);
                let v = v.mul_scalar(STEP);
                let outside = v.clone().lower_elem(-8.0).bool_or(v.greater_elem(7.0));
                (grad.clone().mask_fill(outside, 0.0), grad.clone().mul(codes).sum_dim(1))
            });
        }
        work.copies(rows * cols * 6);
    }
}

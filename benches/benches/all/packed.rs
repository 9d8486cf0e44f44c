//! Packed codes: quantizing to them, switching and dequantizing them.
//! `cargo bench -- quantize_pack` (or `switch`, `dequantize`)

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use criterion::Criterion;
use dr_bench::{LARGE, LAYER, Work, device, emulated, on_host, weights};
use dr_kernels::cpu::{self, Isa, Operation};
use dr_kernels::layout::{ScaleLayout, packed_words};
use dr_kernels::{PackedTensor, dequantize, quantize_pack, switch};
use dr_precision::{BitWidth, Granularity, QuantSpec};

const SCALE: f32 = 0.02;

/// Weights and a scale for each row, on the device.
fn tensors([rows, cols]: [usize; 2], device: &Device) -> (Tensor<2>, Tensor<1>) {
    let w = TensorData::new(weights(rows * cols), [rows, cols]);
    (Tensor::from_data(w, device), Tensor::full([rows], SCALE, device))
}

/// The same weights, quantized to `bits` bits by this machine's CPU.
fn packed_slice(shape: [usize; 2], bits: BitWidth) -> Vec<u32> {
    let layout = ScaleLayout::weights(&shape, Granularity::Channel).unwrap();
    cpu::quantize_pack(&weights(layout.elements()), &vec![SCALE; shape[0]], None, &layout, bits).collect().0
}

fn packed_tensor(shape: [usize; 2], bits: BitWidth, device: &Device) -> PackedTensor {
    let (w, scale) = tensors(shape, device);
    quantize_pack(w, scale, None, QuantSpec::weights(bits)).unwrap()
}

/// Codes as a user without packing has them.
fn int_codes(shape: [usize; 2], bits: BitWidth, device: &Device) -> Tensor<2, Int> {
    let (w, scale) = tensors(shape, device);
    let (low, high) = (f64::from(bits.signed_min()), f64::from(bits.signed_max()));
    w.div(scale.reshape([shape[0], 1])).round().clamp(low, high).int().cast(DType::I32)
}

pub fn quantizing(criterion: &mut Criterion) {
    let device = device();
    for (shape, bits) in
        [(LARGE, BitWidth::B8), (LARGE, BitWidth::B4), (LAYER, BitWidth::B8), (LAYER, BitWidth::B4)]
    {
        let [rows, cols] = shape;
        let layout = ScaleLayout::weights(&shape, Granularity::Channel).unwrap();
        let bytes = rows * cols * 4 + packed_words(rows * cols, bits) * 4;
        let mut work = Work::elementwise(criterion, &format!("quantize_pack/w{bits}"), shape, bytes);
        if on_host() {
            let (w, scale) = (weights(layout.elements()), vec![SCALE; rows]);
            let mut out = vec![1; packed_words(w.len(), bits)];
            work.measure("dr-kernels, slices", || {
                cpu::quantize_pack(&w, &scale, None, &layout, bits).fill(Isa::detect(), &mut out);
            });
        }
        let (w, scale) = tensors(shape, &device);
        work.on_device("dr-kernels", &device, || {
            quantize_pack(w.clone(), scale.clone(), None, QuantSpec::weights(bits)).unwrap()
        });
        if emulated(shape) {
            let scale = scale.reshape([rows, 1]);
            let (low, high) = (f64::from(bits.signed_min()), f64::from(bits.signed_max()));
            work.on_device("tensor operations, to i32", &device, || {
                w.clone().div(scale.clone()).round().clamp(low, high).int().cast(DType::I32)
            });
        }
        work.copies(bytes / 2);
    }
}

pub fn switching(criterion: &mut Criterion) {
    let device = device();
    let stored = BitWidth::B8;
    for (shape, active) in
        [(LARGE, BitWidth::B4), (LARGE, BitWidth::B2), (LAYER, BitWidth::B4), (LAYER, BitWidth::B2)]
    {
        let [rows, cols] = shape;
        let bytes = (packed_words(rows * cols, stored) + packed_words(rows * cols, active)) * 4;
        let mut work = Work::elementwise(criterion, &format!("switch/w8->w{active}"), shape, bytes);
        if on_host() {
            let words = packed_slice(shape, stored);
            let mut out = vec![1; packed_words(rows * cols, active)];
            work.measure("dr-kernels, slices", || {
                cpu::switch_packed(&words, rows * cols, stored, active).fill(Isa::detect(), &mut out);
            });
        }
        let packed = packed_tensor(shape, stored, &device);
        let scale = packed.scale().clone();
        work.on_device("dr-kernels", &device, || switch(&packed, active, scale.clone()).unwrap());
        if emulated(shape) {
            let codes = int_codes(shape, stored, &device);
            let shift = stored.bits() - active.bits();
            work.on_device("tensor operations, i32 to i32", &device, || {
                let odd = codes.clone().bitwise_right_shift_scalar(shift).bitwise_and_scalar(1);
                let sum = codes.clone().add_scalar((1 << (shift - 1)) - 1).add(odd);
                sum.bitwise_right_shift_scalar(shift).clamp_max(active.signed_max())
            });
        }
        work.copies(bytes / 2);
    }
}

pub fn dequantizing(criterion: &mut Criterion) {
    let device = device();
    for (shape, bits) in
        [(LARGE, BitWidth::B8), (LARGE, BitWidth::B4), (LAYER, BitWidth::B8), (LAYER, BitWidth::B4)]
    {
        let [rows, cols] = shape;
        let layout = ScaleLayout::weights(&shape, Granularity::Channel).unwrap();
        let bytes = rows * cols * 4 + packed_words(rows * cols, bits) * 4;
        let mut work = Work::elementwise(criterion, &format!("dequantize/w{bits}"), shape, bytes);
        if on_host() {
            let (words, scale) = (packed_slice(shape, bits), vec![SCALE; rows]);
            let mut out = vec![1.0; rows * cols];
            work.measure("dr-kernels, slices", || {
                cpu::dequantize_packed(&words, &scale, None, &layout, bits).fill(Isa::detect(), &mut out);
            });
        }
        let packed = packed_tensor(shape, bits, &device);
        work.on_device("dr-kernels", &device, || dequantize::<2>(&packed).unwrap());
        if emulated(shape) {
            let (codes, scale) = (int_codes(shape, bits, &device), packed.scale().clone().reshape([rows, 1]));
            work.on_device("tensor operations, from i32", &device, || {
                codes.clone().float().mul(scale.clone())
            });
        }
        work.copies(bytes / 2);
    }
}

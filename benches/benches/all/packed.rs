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

/// The width of the codes that are switched.
const STORED: BitWidth = BitWidth::B8;

/// Weights, a scale for each row, and how they are laid out.
fn slices(shape: [usize; 2]) -> (Vec<f32>, Vec<f32>, ScaleLayout) {
    let layout = ScaleLayout::weights(&shape, Granularity::Channel).unwrap();
    (weights(layout.elements()), vec![SCALE; shape[0]], layout)
}

/// The codes of `bits` bits of the same weights, by this machine's CPU, their scales, and how they are laid out.
fn packed_slices(shape: [usize; 2], bits: BitWidth) -> (Vec<u32>, Vec<f32>, ScaleLayout) {
    let (w, scale, layout) = slices(shape);
    let words = cpu::quantize_pack(&w, &scale, None, &layout, bits).collect().0;
    (words, scale, layout)
}

/// Weights and scales on the device.
fn tensors(shape: [usize; 2], device: &Device) -> (Tensor<2>, Tensor<1>) {
    let w = TensorData::new(weights(shape[0] * shape[1]), shape);
    (Tensor::from_data(w, device), Tensor::full([shape[0]], SCALE, device))
}

fn packed_tensor(shape: [usize; 2], bits: BitWidth, device: &Device) -> PackedTensor {
    let (w, scale) = tensors(shape, device);
    quantize_pack(w, scale, None, QuantSpec::weights(bits)).unwrap()
}

/// Codes as a user without packing has them.
fn int_codes(w: &Tensor<2>, scale: &Tensor<1>, bits: BitWidth) -> Tensor<2, Int> {
    let (low, high) = (f64::from(bits.signed_min()), f64::from(bits.signed_max()));
    let scaled = w.clone().div(scale.clone().unsqueeze_dim(1));
    scaled.round().clamp(low, high).int().cast(DType::I32)
}

/// Works on weights of both sizes between numbers of `other` bits and codes of each of `widths`; `measure` measures one.
fn works(
    criterion: &mut Criterion, name: &str, other: usize, widths: [BitWidth; 2],
    measure: impl Fn(&mut Work, [usize; 2], BitWidth, &Device),
) {
    let device = device();
    for (shape, bits) in [LARGE, LAYER].into_iter().flat_map(|shape| widths.map(|bits| (shape, bits))) {
        let elements = shape[0] * shape[1];
        let bytes = elements * other / 8 + packed_words(elements, bits) * 4;
        let mut work = Work::elementwise(criterion, &format!("{name}{bits}"), shape, bytes);
        measure(&mut work, shape, bits, &device);
        work.copies(bytes / 2);
    }
}

pub fn quantizing(criterion: &mut Criterion) {
    works(criterion, "quantize_pack/w", 32, [BitWidth::B8, BitWidth::B4], |work, shape, bits, device| {
        if on_host() {
            let (w, scale, layout) = slices(shape);
            let mut out = vec![1; packed_words(w.len(), bits)];
            work.measure("dr-kernels, slices", || {
                cpu::quantize_pack(&w, &scale, None, &layout, bits).fill(Isa::detect(), &mut out);
            });
        }
        let (w, scale) = tensors(shape, device);
        work.on_device("dr-kernels", device, || {
            quantize_pack(w.clone(), scale.clone(), None, QuantSpec::weights(bits)).unwrap()
        });
        if emulated(shape) {
            work.on_device("tensor operations, to i32", device, || int_codes(&w, &scale, bits));
        }
    });
}

pub fn switching(criterion: &mut Criterion) {
    works(criterion, "switch/w8->w", 8, [BitWidth::B4, BitWidth::B2], |work, shape, active, device| {
        if on_host() {
            let (words, _, layout) = packed_slices(shape, STORED);
            let elements = layout.elements();
            let mut out = vec![1; packed_words(elements, active)];
            work.measure("dr-kernels, slices", || {
                cpu::switch_packed(&words, elements, STORED, active).fill(Isa::detect(), &mut out);
            });
        }
        let packed = packed_tensor(shape, STORED, device);
        let scale = packed.scale().clone();
        work.on_device("dr-kernels", device, || switch(&packed, active, scale.clone()).unwrap());
        if emulated(shape) {
            let ((w, scale), shift) = (tensors(shape, device), STORED.bits() - active.bits());
            let codes = int_codes(&w, &scale, STORED);
            work.on_device("tensor operations, i32 to i32", device, || {
                let odd = codes.clone().bitwise_right_shift_scalar(shift).bitwise_and_scalar(1);
                let sum = codes.clone().add_scalar((1 << (shift - 1)) - 1).add(odd);
                sum.bitwise_right_shift_scalar(shift).clamp_max(active.signed_max())
            });
        }
    });
}

pub fn dequantizing(criterion: &mut Criterion) {
    works(criterion, "dequantize/w", 32, [BitWidth::B8, BitWidth::B4], |work, shape, bits, device| {
        if on_host() {
            let (words, scale, layout) = packed_slices(shape, bits);
            let mut out = vec![1.0; layout.elements()];
            work.measure("dr-kernels, slices", || {
                cpu::dequantize_packed(&words, &scale, None, &layout, bits).fill(Isa::detect(), &mut out);
            });
        }
        let packed = packed_tensor(shape, bits, device);
        work.on_device("dr-kernels", device, || dequantize::<2>(&packed).unwrap());
        if emulated(shape) {
            let (w, scale) = tensors(shape, device);
            let (codes, scale) = (int_codes(&w, &scale, bits), scale.reshape([shape[0], 1]));
            work.on_device("tensor operations, from i32", device, || {
                codes.clone().float().mul(scale.clone())
            });
        }
    });
}

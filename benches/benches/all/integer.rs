//! Integer matrix products and convolutions beside `rten-gemm` and Burn's floats, on this machine's CPU.
//! `cargo bench -- gemm` (or `gemv`, `conv`, `switch_panels`)
//!
//! What is limited by memory takes turns with copies of its weights that are larger than the caches together.

use burn::tensor::{Device, Tensor, TensorData, module, ops::ConvOptions};
use criterion::{Criterion, Throughput};
use dr_bench::peak::multiply;
use dr_bench::report::PEAK;
use dr_bench::{CACHES, LARGE, Work, device, full, read, threads, weights};
use dr_kernels::host::{Conv2dOptions, Product, Results, StoredWeight, Weight, WeightOnly, code_len};
use dr_kernels::{Activation, CodeQuantizer};
use dr_precision::{BitWidth, Granularity};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use std::num::NonZeroUsize;

/// Which of them are measured.
fn widths() -> &'static [BitWidth] {
    let all = &[BitWidth::B8, BitWidth::B4, BitWidth::B2, BitWidth::B6, BitWidth::B3];
    if full() { all } else { &all[..3] }
}

/// Codes from low to high, in no order.
fn codes(len: usize, low: i32, high: i32) -> Vec<i32> {
    let count = (high - low + 1) as usize;
    (0..len).map(|i| low + ((i.wrapping_mul(104_729) >> 4) % count) as i32).collect()
}

fn bytes(len: usize) -> Vec<u8> {
    codes(len, 0, 255).into_iter().map(|code| code as u8).collect()
}

/// Codes of a weight, prepared.
fn stored(shape: &[usize], bits: BitWidth, granularity: Granularity) -> StoredWeight {
    let codes = codes(shape.iter().product(), bits.signed_min(), bits.signed_max());
    let codes: Vec<i8> = codes.into_iter().map(|code| code as i8).collect();
    StoredWeight::from_codes(&codes, shape, 1, bits, granularity).unwrap()
}

/// A weight of its own memory for every turn: as many as no cache holds if they are to come from memory.
fn weights_of(shape: &[usize], bits: BitWidth, granularity: Granularity, from_memory: bool) -> Vec<Weight> {
    let weight = || {
        let stored = stored(shape, bits, granularity);
        stored.settle();
        stored.at(bits, &vec![1e-3; shape[0] * stored.layout().scale_groups()]).unwrap()
    };
    let first = weight();
    let others = if from_memory { CACHES / first.bytes() } else { 0 };
    std::iter::once(first).chain((0..others).map(|_| weight())).collect()
}

/// A work of `products` multiplications.
fn products(criterion: &mut Criterion, name: String, products: usize) -> Work<'_> {
    Work::new(criterion, name, Throughput::Elements(2 * products as u64))
}

/// One convolution, or a product of matrices, at all widths; with weights from memory, or from the cache.
fn ours(work: &mut Work, weight: &[usize], dims: [usize; 4], options: Conv2dOptions, from_memory: bool) {
    let x = bytes(code_len(dims));
    let (gain, shift) = (vec![1.0; weight[0]], vec![0.0; weight[0]]);
    let input = CodeQuantizer { bits: BitWidth::B8, scale: 1.0, zero_point: 0.0 };
    for &bits in widths() {
        let product = |weight| Product::new(weight, options, input, &gain, &shift, Activation::None).unwrap();
        let products: Vec<_> =
            weights_of(weight, bits, Granularity::Channel, from_memory).into_iter().map(product).collect();
        let mut out = vec![0.0; products[0].output(dims).unwrap().iter().product()];
        let mut turn = products.iter().cycle();
        work.measure(format!("dr-kernels w{bits}a8"), || {
            let results = Results { values: Some(&mut out), codes: None };
            turn.next().unwrap().run(&x, dims, None, results).unwrap();
        });
    }
}

/// `rten-gemm` with weights packed beforehand, as ours are.
fn rten(work: &mut Work, [m, n, k]: [usize; 3], from_memory: bool) {
    let x = NdTensor::from_data([m, k], bytes(m * k));
    let w: Vec<i8> = codes(n * k, -128, 127).into_iter().map(|code| code as i8).collect();
    let w = NdTensor::from_data([k, n], w);
    let executor = GemmExecutor::<u8, i8, i32>::new();
    let count = if from_memory { CACHES.div_ceil(n * k).max(1) } else { 1 };
    let packed: Vec<_> = (0..count).map(|_| executor.prepack_b(w.view())).collect();
    let mut turn = (0..count).cycle();
    let mut out = vec![0; m * n];
    work.measure("rten-gemm u8 x i8", || {
        let (x, w) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&packed[turn.next().unwrap()]));
        executor.gemm(&mut out, x, w, GemmOptions::default()).unwrap();
    });
}

/// Burn's product of floats.
fn floats(work: &mut Work, [m, n, k]: [usize; 3], device: &Device, from_memory: bool) {
    let x = Tensor::<2>::from_data(TensorData::new(weights(m * k), [m, k]), device);
    let w = || Tensor::<2>::from_data(TensorData::new(weights(n * k), [k, n]), device);
    let count = if from_memory { CACHES.div_ceil(n * k * 4).max(1) } else { 1 };
    let copies: Vec<_> = (0..count).map(|_| w()).collect();
    let mut turn = (0..count).cycle();
    work.measure("burn flex f32", || x.clone().matmul(copies[turn.next().unwrap()].clone()));
}

pub fn gemm(criterion: &mut Criterion) {
    let device = device();
    let sizes = [[1024, 1024, 1024], [196, 512, 4608], [128, 4096, 4096]];
    for &[m, n, k] in if full() { &sizes[..] } else { &sizes[..2] } {
        let mut work = products(criterion, format!("gemm/{m}x{n}x{k}"), m * n * k);
        ours(&mut work, &[n, k], [m, 1, 1, k], Conv2dOptions::default(), false);
        rten(&mut work, [m, n, k], false);
        floats(&mut work, [m, n, k], &device, false);
    }
}

pub fn gemv(criterion: &mut Criterion) {
    let device = device();
    let (n, k) = (8192, 8192);
    let mut work = products(criterion, format!("gemv/{n}x{k}"), n * k);
    ours(&mut work, &[n, k], [1, 1, 1, k], Conv2dOptions::default(), true);
    for bits in [BitWidth::B8, BitWidth::B4, BitWidth::B2] {
        let granularity = Granularity::Group(NonZeroUsize::new(32).unwrap());
        let product = |weight| WeightOnly::new(weight, None).unwrap();
        let products: Vec<_> =
            weights_of(&[n, k], bits, granularity, true).into_iter().map(product).collect();
        let (x, mut out) = (weights(k), vec![0.0; n]);
        let mut turn = products.iter().cycle();
        work.measure(format!("dr-kernels w{bits}a32, groups of 32"), || {
            turn.next().unwrap().run(&x, 1, &mut out).unwrap();
        });
    }
    // What memory can give: the weights of 8 bits, only read.
    let memory = vec![1u32; CACHES / 4 / (n * k / 4) * (n * k / 4) + n * k / 4];
    let mut turn = memory.chunks_exact(n * k / 4).cycle();
    work.measure("reading 8 bits a weight", || read(turn.next().unwrap()));
    drop(memory);
    rten(&mut work, [1, n, k], true);
    floats(&mut work, [1, n, k], &device, true);
}

/// What arithmetic can give: products of 8-bit codes in registers, on all threads.
pub fn limit(criterion: &mut Criterion) {
    let _ = device();
    let (threads, products_of_thread) = (threads() as u64, 1 << 26);
    let Some(done) = multiply(products_of_thread) else { return };
    let mut work = products(criterion, PEAK.to_string(), (threads * done) as usize);
    work.measure("registers", || rayon::broadcast(|_| multiply(products_of_thread)));
}

/// The three kinds of 3x3 convolutions of ResNet-20 for 32x32 images.
pub fn conv(criterion: &mut Criterion) {
    let device = device();
    for batch in [1, 64] {
        for (channels, size) in [(16, 32), (32, 16), (64, 8)] {
            let weight = [channels, channels, 3, 3];
            let options = Conv2dOptions { padding: [1, 1], ..Conv2dOptions::default() };
            let name = format!("conv/{batch}x{channels}x{size}x{size}");
            let mut work = products(criterion, name, batch * size * size * channels * channels * 9);
            ours(&mut work, &weight, [batch, size, size, channels], options, false);
            let x = [batch, channels, size, size];
            let x = Tensor::<4>::from_data(TensorData::new(weights(x.iter().product()), x), &device);
            let w = [channels, channels, 3, 3];
            let w = Tensor::<4>::from_data(TensorData::new(weights(w.iter().product()), w), &device);
            work.measure("burn flex f32", || {
                module::conv2d(x.clone(), w.clone(), None, ConvOptions::new([1, 1], [1, 1], [1, 1], 1))
            });
            work.measure("dr-kernels f32", || dr_kernels::conv2d(x.clone(), w.clone(), 1, 1));
        }
    }
}

/// Switching prepared weights.
pub fn switch(criterion: &mut Criterion) {
    let _ = device();
    let stored = stored(&[8192, 8192], BitWidth::B8, Granularity::Channel);
    let scales = vec![1e-3; 8192];
    for active in [BitWidth::B4, BitWidth::B2] {
        let [from, to] = [BitWidth::B8, active].map(|bits| stored.layout().at(bits).unwrap().words() * 4);
        let (bytes, name) = (from + to, format!("switch_panels/w8->w{active}"));
        let mut work = Work::elementwise(criterion, &name, LARGE, bytes);
        work.measure("dr-kernels", || stored.at(active, &scales).unwrap());
        work.copies(bytes / 2);
    }
}

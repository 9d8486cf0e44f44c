//! Integer matrix products and convolutions beside `rten-gemm` and Burn's floats, on this machine's CPU.
//! `cargo bench -p dr-bench -- gemm` (or `gemv`, `conv`, `switch_panels`)
//!
//! What is limited by memory takes turns with copies of its weights that are larger than the caches together.

use burn::tensor::{Device, Tensor, TensorData, module, ops::ConvOptions};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use dr_bench::peak::multiply;
use dr_bench::report::PEAK;
use dr_bench::{CACHES, copies, device, group, read, threads, weights};
use dr_kernels::cpu::Isa;
use dr_kernels::cpu::integer::{
    DotKernel, Epilogue, int_conv2d_into, prepare_panels, switch_panels, switch_panels_into, weight_only_into,
};
use dr_kernels::integer::{Activation, Conv2dOptions, IntConv2dShape, WeightLayout};
use dr_precision::{BitWidth, Granularity};
use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
use rten_tensor::NdTensor;
use rten_tensor::prelude::*;
use std::num::NonZeroUsize;
use std::time::Duration;

const WIDTHS: [BitWidth; 5] = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3, BitWidth::B2];

/// Codes from low to high, in no order.
fn codes(len: usize, low: i32, high: i32) -> Vec<i32> {
    (0..len).map(|i| low + (i.wrapping_mul(104_729) >> 4) as i32 % (high - low + 1)).collect()
}

fn bytes(len: usize) -> Vec<u8> {
    codes(len, 0, 255).into_iter().map(|code| code as u8).collect()
}

fn panels(layout: &WeightLayout) -> Vec<u32> {
    let len = layout.outputs() * layout.cols();
    prepare_panels(&codes(len, layout.bits().signed_min(), layout.bits().signed_max()), layout)
}

/// Weights for all widths to take turns through, as many as no cache holds. They share the memory, since some of a virtual
/// machine's is slower than other: any words are codes of any width.
fn memory() -> Vec<u32> {
    panels(&layout(CACHES / 8192, 8192, BitWidth::B8))
}

/// A group of products of `products` multiplications.
fn products<'a>(criterion: &'a mut Criterion, name: String, products: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(2 * products as u64));
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500));
    group
}

/// One convolution, or a product of matrices, at all widths; with weights from this memory, or from the cache.
fn ours(
    group: &mut BenchmarkGroup<WallTime>, shape: IntConv2dShape, options: Conv2dOptions,
    memory: Option<&[u32]>,
) {
    let x = bytes(shape.code_bytes());
    let outputs = shape.weight().outputs();
    let (multiplier, addend) = (vec![1e-3; outputs], vec![0.0; outputs]);
    let epilogue =
        Epilogue { multiplier: &multiplier, addend: &addend, residual: None, activation: Activation::None };
    let mut out = vec![0.0; shape.results()];
    for bits in WIDTHS {
        let weight = shape.weight().at(bits).unwrap();
        let shape = IntConv2dShape::new(shape.batch(), shape.input(), options, weight).unwrap();
        let cached = if memory.is_none() { panels(&shape.weight()) } else { vec![] };
        let mut turn = memory.unwrap_or(&cached).chunks_exact(shape.weight().words()).cycle();
        group.bench_function(format!("dr-kernels w{bits}a8"), |bencher| {
            bencher.iter(|| {
                let panels = turn.next().unwrap();
                int_conv2d_into(DotKernel::detect(), &x, panels, &shape, &epilogue, &mut out);
            });
        });
    }
}

fn layout(outputs: usize, inputs: usize, bits: BitWidth) -> WeightLayout {
    WeightLayout::new(&[outputs, inputs], 1, bits, Granularity::Channel).unwrap()
}

/// `rten-gemm` with weights packed beforehand, as ours are.
fn rten(group: &mut BenchmarkGroup<WallTime>, [m, n, k]: [usize; 3], from_memory: bool) {
    let x = NdTensor::from_data([m, k], bytes(m * k));
    let w: Vec<i8> = codes(n * k, -128, 127).into_iter().map(|code| code as i8).collect();
    let w = NdTensor::from_data([k, n], w);
    let executor = GemmExecutor::<u8, i8, i32>::new();
    let count = if from_memory { CACHES.div_ceil(n * k).max(1) } else { 1 };
    let packed: Vec<_> = (0..count).map(|_| executor.prepack_b(w.view())).collect();
    let mut turn = (0..count).cycle();
    let mut out = vec![0; m * n];
    group.bench_function("rten-gemm u8 x i8", |bencher| {
        bencher.iter(|| {
            let (x, w) = (GemmInputA::Unpacked(x.view()), GemmInputB::Packed(&packed[turn.next().unwrap()]));
            executor.gemm(&mut out, x, w, GemmOptions::default()).unwrap();
        });
    });
}

/// Burn's product of floats.
fn floats(group: &mut BenchmarkGroup<WallTime>, [m, n, k]: [usize; 3], device: &Device, from_memory: bool) {
    let x = Tensor::<2>::from_data(TensorData::new(weights(m * k), [m, k]), device);
    let w = || Tensor::<2>::from_data(TensorData::new(weights(n * k), [k, n]), device);
    let count = if from_memory { CACHES.div_ceil(n * k * 4).max(1) } else { 1 };
    let copies: Vec<_> = (0..count).map(|_| w()).collect();
    let mut turn = (0..count).cycle();
    group.bench_function("burn flex f32", |bencher| {
        bencher.iter(|| x.clone().matmul(copies[turn.next().unwrap()].clone()));
    });
}

fn gemm(criterion: &mut Criterion) {
    let device = device();
    for [m, n, k] in [[1024, 1024, 1024], [128, 4096, 4096], [196, 512, 4608]] {
        let mut group = products(criterion, format!("gemm/{m}x{n}x{k}"), m * n * k);
        ours(
            &mut group,
            IntConv2dShape::gemm(m, layout(n, k, BitWidth::B8)).unwrap(),
            Conv2dOptions::default(),
            None,
        );
        rten(&mut group, [m, n, k], false);
        floats(&mut group, [m, n, k], &device, false);
    }
}

fn gemv(criterion: &mut Criterion) {
    let device = device();
    let (n, k) = (8192, 8192);
    let mut group = products(criterion, format!("gemv/{n}x{k}"), n * k);
    let memory = memory();
    ours(
        &mut group,
        IntConv2dShape::gemm(1, layout(n, k, BitWidth::B8)).unwrap(),
        Conv2dOptions::default(),
        Some(&memory),
    );
    for bits in [BitWidth::B8, BitWidth::B4, BitWidth::B2] {
        let granularity = Granularity::Group(NonZeroUsize::new(32).unwrap());
        let layout = WeightLayout::new(&[n, k], 1, bits, granularity).unwrap();
        let (x, scale) = (weights(k), vec![1e-3; layout.scale_groups() * n]);
        let mut turn = memory.chunks_exact(layout.words()).cycle();
        let mut out = vec![0.0; n];
        group.bench_function(format!("dr-kernels w{bits}a32, groups of 32"), |bencher| {
            bencher.iter(|| {
                weight_only_into(Isa::detect(), &x, turn.next().unwrap(), &scale, 1, &layout, &mut out);
            });
        });
    }
    // What memory can give: the weights of 8 bits, only read.
    let mut turn = memory.chunks_exact(n * k / 4).cycle();
    group.bench_function("reading 8 bits a weight", |bencher| bencher.iter(|| read(turn.next().unwrap())));
    drop(memory);
    rten(&mut group, [1, n, k], true);
    floats(&mut group, [1, n, k], &device, true);
}

/// What arithmetic can give: products of 8-bit codes in registers, on all threads.
fn limit(criterion: &mut Criterion) {
    let _ = device();
    let (threads, products_of_thread) = (threads() as u64, 1 << 26);
    let Some(done) = multiply(products_of_thread) else { return };
    let mut group = products(criterion, PEAK.to_string(), (threads * done) as usize);
    group.bench_function("registers", |bencher| {
        bencher.iter(|| rayon::broadcast(|_| multiply(products_of_thread)));
    });
}

/// The three kinds of 3x3 convolutions of ResNet-20 for 32x32 images.
fn conv(criterion: &mut Criterion) {
    let device = device();
    for batch in [1, 64] {
        for (channels, size) in [(16, 32), (32, 16), (64, 8)] {
            let weight =
                WeightLayout::new(&[channels, channels, 3, 3], 1, BitWidth::B8, Granularity::Channel);
            let options = Conv2dOptions { padding: [1, 1], ..Conv2dOptions::default() };
            let shape = IntConv2dShape::new(batch, [size, size], options, weight.unwrap()).unwrap();
            let name = format!("conv/{batch}x{channels}x{size}x{size}");
            let mut group = products(criterion, name, shape.results() * channels * 9);
            ours(&mut group, shape, options, None);
            let x = [batch, channels, size, size];
            let x = Tensor::<4>::from_data(TensorData::new(weights(x.iter().product()), x), &device);
            let w = [channels, channels, 3, 3];
            let w = Tensor::<4>::from_data(TensorData::new(weights(w.iter().product()), w), &device);
            group.bench_function("burn flex f32", |bencher| {
                let options = || ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
                bencher.iter(|| module::conv2d(x.clone(), w.clone(), None, options()));
            });
            group.bench_function("dr-kernels f32", |bencher| {
                bencher.iter(|| dr_kernels::conv2d(x.clone(), w.clone(), 1, 1));
            });
        }
    }
}

/// Switching prepared weights.
fn switch(criterion: &mut Criterion) {
    let _ = device();
    let layout = layout(8192, 8192, BitWidth::B8);
    let stored = panels(&layout);
    for active in [BitWidth::B4, BitWidth::B2] {
        let bytes = (layout.words() + layout.at(active).unwrap().words()) * 4;
        let mut group = group(criterion, &format!("switch_panels/w8->w{active}"), [8192, 8192], bytes);
        let mut out = vec![1; layout.at(active).unwrap().words()];
        group.bench_function("dr-kernels, slices", |bencher| {
            bencher.iter(|| switch_panels_into(&stored, BitWidth::B8, active, &mut out));
        });
        group.bench_function("dr-kernels", |bencher| {
            bencher.iter(|| switch_panels(&stored, BitWidth::B8, active));
        });
        copies(&mut group, bytes / 2);
    }
}

criterion_group!(benches, limit, gemm, gemv, conv, switch);
criterion_main!(benches);

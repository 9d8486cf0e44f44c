//! Integer matrix products through Burn tensors, on any device, and on a GPU with each of its kernels.
//! `DR_BENCH_DEVICE=cuda cargo bench -p dr-bench --features cuda -- device`
//!
//! The sizes are those of a large GPU, those of a CPU on `flex`, or what `DR_BENCH_SIZE` says: `m` of the `m x m x m` products. What is limited by memory
//! takes turns with copies of its weights that are larger than the caches together.

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use criterion::{Criterion, Throughput};
use dr_bench::{Work, device, on_host};
use dr_kernels::integer::GpuKernel;
use dr_kernels::{
    Activation, CodeQuantizer, Codes, Conv2dOptions, IntProduct, IntWeight, PackedTensor, Wanted,
    WeightLayout,
};
use dr_precision::{BitWidth, Granularity, QuantSpec};

/// Bytes that no GPU's cache holds.
const CACHE: usize = 1 << 28;

const WIDTHS: [BitWidth; 4] = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B2];

fn size() -> usize {
    let usual = if on_host() { 1024 } else { 8192 };
    std::env::var("DR_BENCH_SIZE").map_or(usual, |size| size.parse().expect("a number"))
}

/// `[outputs, inputs]` codes in no order.
fn weight(outputs: usize, inputs: usize, bits: BitWidth, device: &Device) -> IntWeight {
    let layout = WeightLayout::new(&[outputs, inputs], 1, bits, Granularity::Channel).unwrap();
    let words: Vec<u32> =
        (0..layout.words() as u32).map(|i| i.wrapping_mul(0x9E37_79B9) ^ (i >> 3)).collect();
    let words = Tensor::<1, Int>::from_data(TensorData::from(words.as_slice()), (device, DType::U32));
    let scale = Tensor::ones([outputs], device);
    let spec = QuantSpec::weights(bits).with_granularity(Granularity::Channel);
    IntWeight::new(&PackedTensor::new(words, scale, None, &[outputs, inputs], spec).unwrap(), 1).unwrap()
}

const INPUT: CodeQuantizer = CodeQuantizer { bits: BitWidth::B8, scale: 1.0, zero_point: 0.0 };

fn codes(rows: usize, inputs: usize, device: &Device) -> Codes {
    let x = Tensor::<4>::random([rows, 1, 1, inputs], Distribution::Uniform(0.0, 255.0), device);
    Codes::quantize(x, true, INPUT).unwrap()
}

/// `[m, k]` codes times `[n, k]` weights at all widths, with the chosen kernel and, at 8 bits, with all of them.
fn products(criterion: &mut Criterion, name: &str, [m, n, k]: [usize; 3], from_memory: bool) {
    let device = device();
    let operations = Throughput::Elements(2 * (m * n * k) as u64);
    let mut work = Work::new(criterion, format!("{name}/{m}x{n}x{k}"), operations);
    let x = codes(m, k, &device);
    let stored = weight(n, k, BitWidth::B8, &device);
    let scales = stored.scales();
    for bits in WIDTHS {
        // Each switch gives new words.
        let bytes = stored.at(bits, scales.clone()).unwrap().bytes();
        let count = if from_memory { CACHE.div_ceil(bytes).max(1) } else { 1 };
        let copies: Vec<_> = (0..count).map(|_| stored.at(bits, scales.clone()).unwrap()).collect();
        let kernels = if on_host() { &[] } else { GpuKernel::ALL.as_slice() };
        let others = kernels.iter().copied().filter(|_| bits == BitWidth::B8 && m * n * k <= 1 << 36);
        for kernel in std::iter::once(None).chain(others.map(Some)) {
            let product = |copy: &IntWeight<_>| {
                let (weight, options) = (copy.clone().with_kernel(kernel), Conv2dOptions::default());
                IntProduct::new(&weight, options, INPUT, &vec![1e-3; n], &vec![0.0; n], Activation::None)
                    .unwrap()
            };
            let products: Vec<_> = copies.iter().map(product).collect();
            let mut turn = products.iter().cycle();
            let name = kernel.map_or(String::new(), |kernel| format!(", {kernel}"));
            work.queued(format!("dr-kernels w{bits}a8{name}"), &device, || {
                turn.next().unwrap().run(&x, None, Wanted::Values).unwrap().values.unwrap()
            });
        }
    }
    let x = Tensor::<2>::random([m, k], Distribution::Default, &device);
    let w = Tensor::<2>::random([k, n], Distribution::Default, &device);
    for dtype in [DType::F32, DType::F16] {
        let (x, w) = (x.clone().cast(dtype), w.clone().cast(dtype));
        work.on_device(format!("burn {dtype:?}").to_lowercase(), &device, || x.clone().matmul(w.clone()));
    }
}

fn gemm(criterion: &mut Criterion) {
    products(criterion, "device gemm", [size(); 3], false);
}

fn gemv(criterion: &mut Criterion) {
    products(criterion, "device gemv", [1, 2 * size(), 2 * size()], true);
}

/// What the memory of the device can give: bytes read and written.
fn copy(criterion: &mut Criterion) {
    let device = device();
    let elements = 4 * size() * size();
    let x = Tensor::<1>::random([elements], Distribution::Default, &device);
    let mut work = Work::new(criterion, "device copy", Throughput::Bytes(8 * elements as u64));
    work.on_device("a tensor operation", &device, || x.clone().mul_scalar(1.5));
}

/// A product that takes no time: what a call costs on the host.
fn launch(criterion: &mut Criterion) {
    products(criterion, "device launch", [1, 64, 64], false);
}

pub fn all(criterion: &mut Criterion) {
    for measure in [gemm, gemv, copy, launch] {
        measure(criterion);
    }
}

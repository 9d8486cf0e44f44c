//! What the benchmarks share: a device, data, and copies to compare with.
//!
//! The device is `flex`, on two threads or `DR_BENCH_THREADS`, unless `DR_BENCH_DEVICE` names another one (`cpu`, `wgpu`,
//! `vulkan` or `cuda`, each a feature of this package).

pub mod peak;
pub mod report;

use burn::tensor::Device;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Threads of everything that is measured on a CPU: `DR_BENCH_THREADS`, or 2.
///
/// # Panics
/// If that is not a number.
#[must_use]
pub fn threads() -> usize {
    std::env::var("DR_BENCH_THREADS").map_or(2, |threads| threads.parse().expect("a number of threads"))
}

/// Sets the number of threads, and gives the device that `DR_BENCH_DEVICE` names.
///
/// # Panics
/// If there is no such device in this build.
#[must_use]
pub fn device() -> Device {
    // Criterion may come here again: then the pool exists.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads()).build_global();
    match device_name().as_str() {
        "flex" => Device::flex(),
        #[cfg(feature = "cpu")]
        "cpu" => Device::cpu(),
        #[cfg(feature = "wgpu")]
        "wgpu" => Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "vulkan")]
        "vulkan" => Device::vulkan(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        "cuda" => Device::cuda(0),
        other => panic!("DR_BENCH_DEVICE={other}: not a device of this build"),
    }
}

/// The value of `DR_BENCH_DEVICE`, or `flex`.
#[must_use]
pub fn device_name() -> String {
    std::env::var("DR_BENCH_DEVICE").unwrap_or_else(|_| "flex".into())
}

/// Whether slices in this machine's memory are what the device works on: then slices and `memcpy` are measured too.
#[must_use]
pub fn on_host() -> bool {
    device_name() == "flex"
}

/// Values that look like weights: roughly Gaussian around 0, deviation 1.
#[must_use]
pub fn weights(len: usize) -> Vec<f32> {
    let value = |i: usize| {
        let mut hash = i as u64 ^ 0x9E37_79B9_7F4A_7C15;
        let mut uniform = || {
            hash = (hash ^ (hash >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (hash >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        uniform() + uniform() + uniform()
    };
    (0..len).into_par_iter().map(value).collect()
}

/// A copy in one thread.
fn memcpy(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}

/// A copy, half of it in another thread.
fn memcpy_parallel(from: &[u8], to: &mut [u8]) {
    let (from_low, from_high) = from.split_at(from.len() / 2);
    let (to_low, to_high) = to.split_at_mut(from_low.len());
    rayon::join(|| to_low.copy_from_slice(from_low), || to_high.copy_from_slice(from_high));
}

/// A tensor of 64 Mi elements: more than any cache holds.
pub const LARGE: [usize; 2] = [8192, 8192];

/// The weights of a convolution, `[512, 512, 3, 3]`.
pub const LAYER: [usize; 2] = [512, 512 * 3 * 3];

/// Whether all is measured, and for longer: `DR_BENCH_FULL=1`. What is measured otherwise takes four minutes on two threads.
#[must_use]
pub fn full() -> bool {
    std::env::var_os("DR_BENCH_FULL").is_some_and(|value| value != "0")
}

/// Whether the same result is also measured from Burn's own operations: a call takes up to 1.4 s at the size [`LARGE`].
#[must_use]
pub fn emulated(shape: [usize; 2]) -> bool {
    full() || shape != LARGE
}

/// One work, measured as several do it.
pub struct Work<'a> {
    group: BenchmarkGroup<'a, WallTime>,
    samples: u32,
}

impl<'a> Work<'a> {
    /// A work with its name and what a call does: bytes that are read and written, or operations.
    #[must_use]
    pub fn new(criterion: &'a mut Criterion, name: impl Into<String>, amount: Throughput) -> Self {
        let (samples, warm_up) = if full() { (30, 300) } else { (10, 100) };
        let mut group = criterion.benchmark_group(name);
        group.throughput(amount).sampling_mode(SamplingMode::Flat).nresamples(10_000);
        group.sample_size(samples as usize).warm_up_time(Duration::from_millis(warm_up));
        Self { group, samples }
    }

    /// A work on `[rows, cols]` elements, named after their number, that moves `bytes` bytes.
    #[must_use]
    pub fn elementwise(
        criterion: &'a mut Criterion, what: &str, [rows, cols]: [usize; 2], bytes: usize,
    ) -> Self {
        Self::new(criterion, format!("{what}/{}", rows * cols), Throughput::Bytes(bytes as u64))
    }

    /// Measures calls of `f`, which is called twice before.
    pub fn measure<T>(&mut self, name: impl Into<String>, mut f: impl FnMut() -> T) {
        f();
        let start = Instant::now();
        f();
        self.group(start.elapsed()).bench_function(name.into(), |bencher| bencher.iter(&mut f));
    }

    /// Measures `f` until the device has done it. A GPU is waited for after every 32 times only, so that it is kept busy; the
    /// results are kept until then, since what nobody asks for may not be computed.
    ///
    /// # Panics
    /// If the device fails.
    pub fn on_device<T>(&mut self, name: impl Into<String>, device: &Device, mut f: impl FnMut() -> T) {
        let at_once = if on_host() { 1 } else { 32 };
        self.timed(name.into(), device, |times| {
            let mut results = Vec::with_capacity(at_once);
            for i in 1..=times {
                results.push(f());
                if results.len() == at_once || i == times {
                    device.sync().expect("the device works");
                    results.clear();
                }
            }
        });
    }

    /// Measures calls of what a device does even if nobody asks for the results, as those of `dr-kernels`: it is waited for once.
    ///
    /// # Panics
    /// If the device fails.
    pub fn queued<T>(&mut self, name: impl Into<String>, device: &Device, mut f: impl FnMut() -> T) {
        self.timed(name.into(), device, |times| {
            for _ in 0..times {
                f();
            }
            device.sync().expect("the device works");
        });
    }

    /// Measures `run`, which does its work so many times as it is told and waits for the device.
    fn timed(&mut self, name: String, device: &Device, mut run: impl FnMut(u64)) {
        let mut time = |times| {
            device.sync().expect("the device works");
            let start = Instant::now();
            run(times);
            start.elapsed()
        };
        time(1);
        let once = time(1);
        self.group(once).bench_function(name, |bencher| bencher.iter_custom(&mut time));
    }

    /// Measures copies of `bytes` bytes, which move twice as many: with one thread and, if there are more, with two, from one buffer
    /// to another, both used before.
    pub fn copies(&mut self, bytes: usize) {
        if !on_host() {
            return;
        }
        let (from, mut to) = (vec![1u8; bytes], vec![2u8; bytes]);
        self.measure("memcpy, 1 thread", || memcpy(&from, &mut to));
        if threads() > 1 {
            self.measure("memcpy, 2 threads", || memcpy_parallel(&from, &mut to));
        }
    }

    /// The group, with time for two calls in each sample: Criterion warns where there is less.
    fn group(&mut self, once: Duration) -> &mut BenchmarkGroup<'a, WallTime> {
        let usual = Duration::from_millis(if full() { 1500 } else { 400 });
        self.group.measurement_time(usual.max(once * self.samples * 3 / 2))
    }
}

/// Bytes that no processor's caches hold: what takes turns through so many comes from memory.
pub const CACHES: usize = 1 << 29;

/// Reads all of it, and gives the sum: with as many threads as there are.
#[must_use]
pub fn read(memory: &[u32]) -> u32 {
    let sum = |part: &[u32]| part.iter().copied().fold(0, u32::wrapping_add);
    memory.par_chunks(1 << 17).map(sum).reduce(|| 0, u32::wrapping_add)
}

//! What the tests of parity between devices share.

use burn::tensor::{Device, Tensor, TensorData};
use libtest_mimic::{Arguments, Trial};
use std::panic;

/// Reproducible values in -1..1.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

pub fn float(values: &[f32], device: &Device) -> Tensor<1> {
    Tensor::from_data(TensorData::from(values), device)
}

/// Not by a reshape, which takes a 0 for "as before".
pub fn shaped<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

pub fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().expect("f32")
}

/// A test and its name.
pub type Test = (&'static str, fn(&Device));

/// The tests of one device. `None`: this machine lacks it.
fn suite(tests: &[Test], backend: &str, device: Option<Device>) -> Vec<Trial> {
    if device.is_none() {
        println!("{backend}: skipped: no adapter");
    }
    let trial = |&(name, test): &Test| {
        let name = format!("{backend}::{name}");
        match device.clone() {
            None => Trial::test(name, || Err("skipped: no adapter".into())).with_ignored_flag(true),
            Some(device) => Trial::test(name, move || {
                test(&device);
                Ok(())
            }),
        }
    };
    tests.iter().map(trial).collect()
}

/// The device, unless it cannot even hold a tensor.
#[cfg_attr(not(any(feature = "wgpu", feature = "cuda")), expect(dead_code, reason = "every CPU is there"))]
fn probe(device: impl FnOnce() -> Device + panic::UnwindSafe) -> Option<Device> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| ()));
    let found = panic::catch_unwind(|| {
        let device = device();
        read(float(&[1.0], &device));
        device
    });
    panic::set_hook(hook);
    found.ok()
}

/// Runs all tests on every compiled backend.
pub fn run(tests: &[Test]) -> ! {
    let suites = [
        suite(tests, "flex", Some(Device::flex())),
        #[cfg(feature = "cpu")]
        suite(tests, "cpu", Some(Device::cpu())),
        #[cfg(feature = "wgpu")]
        suite(tests, "wgpu", probe(|| Device::wgpu(Default::default()))),
        #[cfg(feature = "cuda")]
        suite(tests, "cuda", probe(|| Device::cuda(0))),
    ];
    libtest_mimic::run(&Arguments::from_args(), suites.into_iter().flatten().collect()).exit()
}

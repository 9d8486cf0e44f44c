//! Joint training on a GPU, or on a software adapter, beside the same on the CPU. A device that this machine lacks counts as ignored,
//! not as passed.

#[path = "../../crates/dr-train/examples/branches/mod.rs"]
mod branches;

use branches::BranchesKind;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use burn::train::Interrupter;
use dr_kernels::LaunchCounter;
use dr_precision::PrecisionSet;
use dr_train::artifact::{Described, Description};
use dr_train::data::{self, Augmentation, DataSource, Digits, ImageLoader, TrainingLoader};
use dr_train::experiment::calibration_batches;
use dr_train::models::ModelKind;
use dr_train::nn::{Model, QuantConfig};
use dr_train::report::{NumberFormat, TrainPhase};
use dr_train::training::{Objective, Phase, run_phase};
use libtest_mimic::{Arguments, Trial};
use std::sync::Arc;

/// A GPU by name, and how to open it.
type Gpu = (&'static str, fn() -> Device);

const GPUS: &[Gpu] = &[
    #[cfg(feature = "wgpu")]
    ("wgpu", || Device::wgpu(Default::default())),
    #[cfg(feature = "cuda")]
    ("cuda", || Device::cuda(0)),
];

fn main() {
    let trial = |&(name, open): &Gpu| {
        let (name, device) = (format!("{name}::a_joint_epoch_learns_as_on_the_cpu"), there(open));
        match device {
            None => Trial::test(name, || Err("skipped: no adapter".into())).with_ignored_flag(true),
            Some(device) => Trial::test(name, move || {
                learns_as_on_the_cpu(&device);
                Ok(())
            }),
        }
    };
    libtest_mimic::run(&Arguments::from_args(), GPUS.iter().map(trial).collect()).exit()
}

/// The device, unless it cannot even hold a tensor.
fn there(open: fn() -> Device) -> Option<Device> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let found = std::panic::catch_unwind(|| {
        let device = open();
        // Not by an operation: where there is no device, it panics with a lock in its hands that all devices need.
        let one = Tensor::<1>::from_data([1.0], &device).into_data();
        (one.try_to_vec::<f32>() == Ok(vec![1.0])).then_some(device)
    });
    std::panic::set_hook(hook);
    found.ok().flatten()
}

fn learns_as_on_the_cpu(device: &Device) {
    let mut counter = LaunchCounter::start().expect("a device with kernels");
    let gpu = losses(device);
    let kernels = counter.count();
    assert!(kernels > 0, "kernels that were compiled or read");
    let cpu = losses(&Device::flex());
    assert_eq!(counter.count(), kernels, "the CPU has none");
    assert_eq!(gpu.len(), 3, "a float loss, and one for each precision: {gpu:?}");
    for (gpu, cpu) in gpu.iter().zip(&cpu) {
        assert!(gpu.is_finite() && (gpu - cpu).abs() < 0.05 * cpu, "{gpu} on the GPU, {cpu} on the CPU");
    }
}

/// The training losses of a float epoch and of a joint epoch at 8 and 4 bits, on few images.
fn losses(device: &Device) -> Vec<f64> {
    let data = data::load(&DataSource::new(&Digits, None, 1), Some(96)).expect("the embedded digits");
    let (normalization, tracked) = (&data.normalization, device.clone().autodiff());
    let training = |epochs_before: u64| {
        let images = data.train.clone();
        ImageLoader::training(images, normalization.clone(), 32, 1, Augmentation::default(), tracked.clone())
            .starting_at(epochs_before)
    };
    let validation = || {
        let images = data.valid.range(0..32);
        Arc::new(ImageLoader::evaluation(images, normalization.clone(), 32, device.clone()))
    };
    let (folder, stop) = (tempfile::tempdir().expect("a folder"), Interrupter::new());
    let run = |kind, model: Model, passes: Vec<NumberFormat>, before: u64| {
        let phase = Phase::new("phase", kind, folder.path().join(before.to_string()), 1, 0.02);
        run_phase(&phase, model, Objective::new(passes), training(before), validation(), &stop)
            .expect("an epoch that runs to its end")
    };
    let precisions: PrecisionSet = "8,4".parse().expect("two precisions");
    let (input, classes) = (data.train.shape().into(), data.train.classes());
    let description = Description::new("digits", &BranchesKind, input, classes, precisions.clone());
    let model = BranchesKind.init(&description.sizes(), 1, &tracked).expect("a network");
    let float = run(TrainPhase::Float, model, vec![NumberFormat::Float], 0);
    let batches = calibration_batches(&data.train, normalization, device).expect("batches");
    let model = float.model.quantize(&QuantConfig::new(precisions.clone()), batches);
    let passes = precisions.iter().map(NumberFormat::from).collect();
    let joint = run(TrainPhase::Joint, model.fork(&tracked).train(), passes, 1);
    let epochs = float.history.epochs.iter().chain(&joint.history.epochs);
    epochs.flat_map(|epoch| epoch.curves.values().map(|point| point.train_loss)).collect()
}

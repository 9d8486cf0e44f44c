//! Samples that other runtimes are checked by.

use burn::tensor::Device;
use dr_precision::PrecisionSet;
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, SavedModel, TensorEntry};
use dr_train::data::{DataSource, Digits, Splits, load};
use dr_train::evaluation::formats;
use dr_train::experiment::calibration_batches;
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::{Model, QuantConfig};
use dr_train::samples::{Samples, compare};
use std::collections::BTreeMap;
use std::path::Path;

const IMAGES: usize = 50;

/// Samples of an untrained network at one precision.
fn samples(path: &Path) {
    let (device, set) = (Device::flex(), PrecisionSet::of("w4a8".parse().unwrap()));
    let source = DataSource::new(&Digits, None, 1);
    let Splits { train, test, normalization, .. } = load(&source, None).unwrap();
    let network = ConvNetConfig::new(RESNET8, 1, 10).init(1, &device);
    let input = train.shape().into();
    let description = Description {
        kind: ArtifactKind::Float,
        normalization: normalization.clone(),
        ..Description::new("digits", &RESNET8, input, 10, set.clone())
    };
    let batches = calibration_batches(&train, &normalization, &device).unwrap();
    let artifact = Artifact::of(&Model::trace(&network).unwrap(), description)
        .unwrap()
        .quantize(&QuantConfig::new(set), batches, &device)
        .unwrap();
    let format = formats(&artifact)[0];
    Samples::new(&artifact, format, &test.range(0..IMAGES), &device).unwrap().save(path).unwrap();
}

#[test]
fn logits_are_compared_image_by_image() {
    let folder = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["samples.safetensors", "logits.safetensors"].map(|name| folder.path().join(name));
    samples(&ours);
    let same = compare(&ours, &ours).unwrap();
    assert_eq!((same.images, same.same, same.largest_difference), (IMAGES, 100.0, 0.0));
    assert_eq!(same.top1, same.their_top1);

    let bytes = std::fs::read(&ours).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("images").unwrap().shape(), [IMAGES, 1, 8, 8]);
    let logits = file.tensor("logits").unwrap();
    let mut values: Vec<f32> =
        logits.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    // Another class for the first image.
    let (row, other) = (&mut values[..10], largest + 1.0);
    let best = (0..10).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    let changed = f64::from((other - row[(best + 1) % 10]) / largest);
    row[(best + 1) % 10] = other;
    let write = |shape: [usize; 2], values: Vec<f32>| {
        let tensors = BTreeMap::from([("logits", TensorEntry::f32(shape, values))]);
        std::fs::write(&theirs, safetensors::serialize(&tensors, None).unwrap()).unwrap();
    };
    write([IMAGES, 10], values.clone());
    let found = compare(&ours, &theirs).unwrap();
    assert_eq!(found.same, 98.0);
    assert!((found.largest_difference - changed).abs() < 1e-6, "{found:?}");

    values[0] = f32::NAN;
    write([IMAGES, 10], values.clone());
    assert_eq!(compare(&ours, &theirs).unwrap().largest_difference, f64::INFINITY);
    write([10, IMAGES], values);
    let message = compare(&ours, &theirs).unwrap_err().to_string();
    assert!(message.ends_with("`logits` is F32 [10, 50]: expected F32 [50, 10]"), "{message}");
    std::fs::write(&theirs, &bytes[..bytes.len() / 2]).unwrap();
    assert!(compare(&ours, &theirs).unwrap_err().to_string().contains("not a sound safetensors file"));
}

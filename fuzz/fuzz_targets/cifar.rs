//! Any bytes as a CIFAR file: an error or whole records, and no panic.
#![no_main]

use dr_train::data::{cifar, records};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for format in [cifar::CIFAR10.format, cifar::CIFAR100.format] {
        if let Ok(images) = records::parse(bytes, format) {
            assert_eq!(images.len() * (format.label_bytes + format.shape.bytes()), bytes.len());
            assert!(images.labels.iter().all(|&label| usize::from(label) < format.classes));
        }
    }
});

//! Any bytes as an IDX file: an error or what the header announces, and no panic.
#![no_main]

use dr_train::data::idx::{parse_images, parse_labels};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(images) = parse_images(bytes) {
        assert_eq!(images.pixels.len(), images.count * images.height * images.width);
    }
    if let Ok(labels) = parse_labels(bytes) {
        assert!(!labels.is_empty());
    }
});

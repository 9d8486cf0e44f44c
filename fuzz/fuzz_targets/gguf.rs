//! Any bytes are a model in GGUF or an error, without more memory than a file of their size can need.
#![no_main]

use dr_precision::PrecisionSet;
use dr_train::weights::gguf::from_bytes;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let _ = from_bytes(bytes, Path::new("fuzz.gguf"), PrecisionSet::default());
});

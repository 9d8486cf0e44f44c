//! Any bytes either are an artifact, which is then written as it was read, or an error.
#![no_main]

use dr_train::artifact::Artifact;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(artifact) = Artifact::from_bytes(bytes) {
        let again = artifact.to_bytes().and_then(|bytes| Artifact::from_bytes(&bytes));
        assert!(again.is_ok(), "what was read can be written and read again");
    }
});

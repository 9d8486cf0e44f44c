//! Any text either is the configuration of a Llama, whose sizes then fit together, or an error.
#![no_main]

use dr_train::models::LlamaConfig;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = LlamaConfig::from_hugging_face(text) {
        assert!(config.check().is_ok(), "what was read was checked");
    }
});

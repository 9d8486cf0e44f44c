//! Any bytes are a network in ONNX or an error, and so is every array in it; a network is a graph, or it is refused.
#![no_main]

use dr_runtime::onnx::{Attribute, Model, lower};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = Model::from_bytes(bytes.to_vec(), None) else { return };
    for initializer in model.initializers.values() {
        let _ = initializer.to_array();
    }
    for attribute in model.nodes.iter().flat_map(|node| node.attributes.values()) {
        if let Attribute::Tensor(tensor) = attribute {
            let _ = tensor.to_array();
        }
    }
    let _ = lower(&model);
});

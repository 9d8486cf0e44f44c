//! Loads a saved network of images, runs it, switches it, and runs it again.
//!
//! ```text
//! cargo run --release -p dr-runtime --example run -- model.safetensors
//! ```

use dr_runtime::{Artifact, Input, Network};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: run MODEL")?;
    let artifact = Artifact::load(path.as_ref())?;
    let input = artifact.description.input;
    let image = vec![0.5; input.channels * input.height * input.width];
    let precisions = artifact.description.precisions().ok_or("a float model")?;
    let mut network = Network::load(&artifact, precisions.highest())?;
    for precision in precisions.iter() {
        network.switch(precision)?;
        let shape = [1, input.channels, input.height, input.width];
        let output = network.forward(Input::Images { values: &image, shape })?;
        println!("{precision}: {} bytes, {:?}", network.model_bytes(), output.values);
    }
    Ok(())
}

//! Runs an ONNX file in floats: `onnx MODEL.onnx OUT_DIR INPUT.npy...`, with an input for each of the graph's, writes each output as
//! `OUT_DIR/N.npy`. `onnx --list CASES` does so for each line `MODEL.onnx<tab>OUT_DIR<tab>INPUT.npy...` of a file, and writes what goes
//! wrong with a case to `OUT_DIR/error.txt`.

use dr_runtime::arrays::Array;
use dr_runtime::onnx::{Layout, Model, lower};
use dr_runtime::{Arithmetic, Network, npy};
use std::error::Error;
use std::fs::{self, File};
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [list, cases] if list == "--list" => {
            for line in fs::read_to_string(cases)?.lines() {
                let parts: Vec<&str> = line.split('\t').collect();
                if let [model, out, inputs @ ..] = &parts[..]
                    && let Err(error) = run(model, out, inputs)
                {
                    fs::create_dir_all(out)?;
                    fs::write(Path::new(out).join("error.txt"), error.to_string())?;
                }
            }
            Ok(())
        }
        [model, out, inputs @ ..] => run(model, out, &inputs.iter().map(String::as_str).collect::<Vec<_>>()),
        _ => Err("expected MODEL.onnx OUT_DIR INPUT.npy...".into()),
    }
}

fn run(model: &str, out: &str, inputs: &[&str]) -> Result<(), Box<dyn Error>> {
    let imported = lower(&Model::read(model)?, Layout::Nchw)?;
    let network = Network::load_with(&imported.into_artifact("onnx", [224; 2]), None, Arithmetic::Integer)?;
    let mut arrays: Vec<Array> = vec![];
    for input in inputs {
        arrays.extend(npy::read(Path::new(input))?.into_iter().map(|(_, array)| array));
    }
    let outputs = network.forward_arrays(&arrays)?;
    fs::create_dir_all(out)?;
    for (at, array) in outputs.iter().enumerate() {
        npy::write(array, File::create(Path::new(out).join(format!("{at}.npy")))?)?;
    }
    Ok(())
}

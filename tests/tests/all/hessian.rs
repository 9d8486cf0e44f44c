//! `dr-train hessian` on a model that the program trained.

use dr_tests::Program;
use serde_json::Value;
use std::fs;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder with a finished run in `run`.
fn finished() -> Program {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let program = |folder: &TempDir| Program::new(env!("CARGO_BIN_EXE_program"), folder.path());
    let folder = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments =
            ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "128", "--out", "run"];
        let _ = program(&folder).outputs(&arguments);
        folder
    });
    program(folder)
}

const FLOAT: [&str; 3] = ["hessian", "--model", "run/float.safetensors"];
/// The shortest estimate.
const SHORT: [&str; 6] = ["--limit-train", "64", "--batch-size", "32", "--max-samples", "8"];

fn hessian(program: &Program, more: &[&str]) -> String {
    program.output(&[&FLOAT[..], &SHORT, more].concat())
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_table_a_file_and_a_picture() {
    let program = finished();
    let table = hessian(&program, &["--out", "traces.json", "--plot", "traces.svg"]);
    for part in [
        "average trace",
        "stem",
        "stages.2.0.shortcut",
        "head",
        "8 directions of 32 images (digits)",
        "step 2^-",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    assert!(table.ends_with("wrote traces.json and traces.svg\n"), "{table}");
    let written = json(&fs::read_to_string(program.at("traces.json")).expect("traces"));
    for (name, value) in [("model", "run/float.safetensors"), ("dataset", "digits"), ("device", "flex")] {
        assert_eq!(written[name], value);
    }
    assert_eq!(
        (&written["images"], &written["batch_size"], &written["samples"]),
        (&64.into(), &32.into(), &8.into())
    );
    assert!(written["seconds"].as_f64() > Some(0.0));
    let layers = written["layers"].as_array().expect("layers");
    assert_eq!(layers.len(), 10);
    assert_eq!(layers[0]["parameters"], 144);
    for layer in layers {
        assert!(layer["average_trace"].is_f64() && layer["standard_error"].as_f64() > Some(0.0), "{layer}");
    }
    assert_eq!(written["steps"].as_array().map(Vec::len), Some(6));
    assert_eq!(written["steps"][0]["estimates"].as_array().map(Vec::len), Some(10));
    let picture = fs::read_to_string(program.at("traces.svg")).expect("a picture");
    assert!(picture.starts_with("<svg") && picture.contains("stages.2.0.shortcut"));
}

#[test]
fn seeds_decide() {
    let program = finished();
    let layers = |seed| json(&hessian(&program, &["--json", "--seed", seed]))["layers"].clone();
    assert_eq!(layers("1"), layers("1"));
    assert_ne!(layers("1"), layers("2"));
}

#[test]
fn quantized_models_are_taken_with_their_codes() {
    let program = finished();
    let export = ["export", "--model", "run/model.safetensors", "--precision", "4", "--out", "w4a4"];
    let _ = program.output(&export);
    for model in ["run/model.safetensors", "w4a4"] {
        let arguments = [&["hessian", "--json", "--model", model], &SHORT[..]].concat();
        let traces = json(&program.output(&arguments));
        assert_eq!(traces["layers"].as_array().map(Vec::len), Some(10));
    }
    // More images than there are in a batch are no error.
    let arguments = ["--limit-train", "20", "--max-samples", "8", "--json"];
    let traces = json(&program.output(&[&FLOAT[..], &arguments].concat()));
    assert_eq!((&traces["images"], &traces["batch_size"]), (&20.into(), &20.into()));
}

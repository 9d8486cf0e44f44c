//! Networks of ONNX files in the program.

use dr_runtime::npy;
use dr_tests::Program;
use std::fs;
use std::path::{Path, PathBuf};

fn fixture(name: &str, file: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/dr-runtime/tests/onnx").join(name).join(file);
    assert!(path.exists(), "{}", path.display());
    path
}

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

#[test]
fn arrays_in_arrays_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name, file| fixture(name, file).display().to_string();
    for name in ["squeeze-new-18", "encoder-old-17"] {
        let (model, input) = (path(name, "model.onnx"), path(name, "input_0.npy"));
        let text = program(folder.path()).output(&["predict", "--model", &model, &input, "--out", name]);
        assert!(text.contains("wrote 1 arrays"), "{text}");
        let read = |path: &Path| npy::read(path).unwrap().remove(0).1;
        let found = read(&folder.path().join(name).join("input_0.npy"));
        let expected = read(&fixture(name, "output_0.npy"));
        assert_eq!(found.dims(), expected.dims());
        for (found, expected) in found.floats().unwrap().iter().zip(expected.floats().unwrap().iter()) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }
}

#[test]
fn a_network_of_images_is_like_one_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("residual-new-18", "model.onnx").display().to_string();
    let run = |arguments: &[&str]| program(folder.path()).output(arguments);
    let text = run(&["import", "--onnx", &model, "--mean", "0.5,0.5,0.5", "--out", "float.safetensors"]);
    assert!(text.starts_with("wrote float.safetensors: float"), "{text}");
    let info = run(&["info", "float.safetensors"]);
    assert!(info.contains("float"), "{info}");
}

#[test]
fn quantized_without_training() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| program(folder.path()).output(arguments);
    for name in ["squeeze-new-18", "encoder-old-17"] {
        let [model, input] =
            ["model.onnx", "input_0.npy"].map(|file| fixture(name, file).display().to_string());
        fs::create_dir_all(folder.path().join("in")).unwrap();
        fs::copy(&input, folder.path().join("in/input_0.npy")).unwrap();
        let precisions = ["quantize", "--precisions", "w8a8,w4a8", "--switch-edge"];
        let text =
            run(&[&precisions[..], &["--model", &model, "--calibration", "in", "--out", "q"]].concat());
        assert!(text.contains("signal to noise") && text.contains("calibrated"), "{text}");
        let json = run(&["eval", "--model", "q", "--inputs", "in", "--compare", &model, "--json"]);
        let found: serde_json::Value = serde_json::from_str(&json).unwrap();
        let error = |precision: &str| found[precision]["relative_error"].as_f64().unwrap();
        assert!(error("w8a8") < 0.05 && error("w4a8") < 0.2, "{name}: {json}");
        // One precision as a file gives the same.
        run(&["export", "--model", "q", "--precision", "w4a8", "--out", "w4a8.safetensors"]);
        run(&["predict", "--model", "q", "--precision", "w4a8", "--out", "all", &input]);
        run(&["predict", "--model", "w4a8.safetensors", "--out", "one", &input]);
        let read = |of: &str| fs::read(folder.path().join(of).join("input_0.npy")).unwrap();
        assert_eq!(read("all"), read("one"), "{name}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("no.onnx"), "not a network").unwrap();
    fs::write(folder.path().join("x.npy"), "no array").unwrap();
    let model = fixture("squeeze-new-18", "model.onnx").display().to_string();
    let tokens = fixture("encoder-old-17", "model.onnx").display().to_string();
    // Two axes where the network takes four.
    let small = npy::read(&fixture("squeeze-new-18", "output_0.npy")).unwrap().remove(0).1;
    fs::create_dir(folder.path().join("small")).unwrap();
    npy::write(&small, fs::File::create(folder.path().join("small/x.npy")).unwrap()).unwrap();
    let error = |arguments: &[&str]| {
        program(folder.path()).error(arguments).replace(&model, "net.onnx").replace(&tokens, "tokens.onnx")
    };
    let errors = [
        error(&["predict", "--model", "no.onnx", "x.npy"]),
        error(&["predict", "--model", "missing.onnx", "x.npy"]),
        error(&["predict", "--model", &model, "x.npy"]),
        error(&["predict", "--model", &model, "missing.npy"]),
        error(&["import", "--onnx", &model, "--mean", "1", "--out", "out.safetensors"]),
        error(&["quantize", "--model", &model, "--calibration", "small", "--out", "out.safetensors"]),
        error(&["eval", "--model", &model, "--inputs", "small", "--compare", &model]),
        error(&["latency", "--model", &tokens]),
        error(&["hessian", "--model", &tokens, "--out", "h.json"]),
        error(&["import", "--out", "out.safetensors"]),
    ];
    insta::assert_snapshot!("wrong_onnx", errors.join("\n"));
}

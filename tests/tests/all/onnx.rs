//! Networks of ONNX files in the program.

use dr_runtime::arrays::Array;
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

/// Twelve variants of the input of a network, in a folder.
fn inputs(name: &str, folder: &Path) {
    let input = npy::read(&fixture(name, "input_0.npy")).unwrap().remove(0).1;
    fs::create_dir(folder).unwrap();
    for at in 0..12usize {
        let values = input.floats().unwrap();
        let values = values.iter().enumerate().map(|(i, x)| x * (1.0 + ((i * (at + 3)) % 7) as f32 / 9.0));
        let array = Array::from_f32(values.collect(), input.dims()).unwrap();
        npy::write(&array, fs::File::create(folder.join(format!("{at:02}.npy"))).unwrap()).unwrap();
    }
}

#[test]
fn trained_without_labels() {
    // One with operations on arrays among its layers.
    for name in ["residual-new-18", "squeeze-new-18"] {
        let folder = tempfile::tempdir().unwrap();
        let model = fixture(name, "model.onnx").display().to_string();
        inputs(name, &folder.path().join("in"));
        let run = |arguments: &[&str]| program(folder.path()).output(arguments);
        let train = [
            "train",
            "--model",
            &model,
            "--distill",
            "--data-dir",
            "in",
            "--switch-edge",
            "--out",
            "trained",
        ];
        let steps = ["--precisions", "w8a8,w3a4", "--epochs", "8", "--batch-size", "6"];
        let (text, epochs) = program(folder.path()).outputs(&[&train[..], &steps].concat());
        assert!(text.contains("wrote trained/model.safetensors: calibrated"), "{text}");
        assert!(epochs.contains("epoch 8 of 8: held out w8a8 "), "{epochs}");
        // In integers.
        let trained = "trained/model.safetensors";
        let json = run(&["eval", "--model", trained, "--inputs", "in", "--compare", &model, "--json"]);
        let found: serde_json::Value = serde_json::from_str(&json).unwrap();
        let error = |precision: &str| found[precision]["relative_error"].as_f64().unwrap();
        assert!(error("w8a8") < 0.05 && error("w3a4") < 0.3, "{name}: {json}");
        let text = run(&["export", "--model", trained, "--precision", "w3a4", "--out", "w3a4.safetensors"]);
        assert!(text.contains("calibrated"), "{text}");
    }
}

#[test]
fn what_cannot_be_trained_without_labels() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| fixture(name, "model.onnx").display().to_string();
    let [images, tokens] = ["residual-new-18", "encoder-old-17"].map(path);
    inputs("residual-new-18", &folder.path().join("in"));
    fs::create_dir_all(folder.path().join("empty")).unwrap();
    fs::create_dir_all(folder.path().join("run")).unwrap();
    fs::write(folder.path().join("run/model.safetensors"), "a model").unwrap();
    fs::write(folder.path().join("settings.toml"), "clip-norm = 1").unwrap();
    let _ = program(folder.path()).output(&[
        "quantize",
        "--model",
        &images,
        "--precisions",
        "8",
        "--calibration",
        "in",
        "--out",
        "q.safetensors",
    ]);
    let error = |model: &str, arguments: &[&str]| {
        let all = [&["train", "--model", model][..], arguments].concat();
        let text = program(folder.path()).error(&all);
        text.replace(&images, "net.onnx").replace(&tokens, "tokens.onnx")
    };
    let with = |arguments: &[&'static str]| [&["--distill", "--data-dir", "in"][..], arguments].concat();
    let errors = [
        error(&images, &["--data-dir", "in"]),
        error(&images, &["--distill"]),
        error(&images, &["--distill", "highest", "--data-dir", "in"]),
        error(&images, &["--distill", "--data-dir", "missing"]),
        error(&images, &["--distill", "--data-dir", "empty"]),
        error(&images, &["--distill", "--data-dir", "in", "--dataset", "mnist"]),
        error(&images, &with(&["--float-epochs", "3"])),
        error(&images, &with(&["--dashboard"])),
        error(&images, &with(&["--config", "settings.toml"])),
        error(&images, &with(&["--resume", "run"])),
        error(&images, &with(&["--epochs", "0"])),
        error(&images, &with(&["--limit-train", "1"])),
        error(&images, &with(&["--scale-lr", "2"])),
        error(&images, &with(&["--out", "run"])),
        error(&images, &with(&["--out", "q.safetensors"])),
        error("missing.onnx", &with(&[])),
        error("q.safetensors", &with(&[])),
        error(&tokens, &["--distill", "--data-dir", "in"]),
    ];
    insta::assert_snapshot!("wrong_distillation", errors.join("\n"));
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

#[test]
fn pointers_of_git_lfs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pointer.onnx"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let message = program(folder.path()).error(&["import", "--onnx", "pointer.onnx", "--out", "x"]);
    assert!(message.starts_with("error: `pointer.onnx`: cannot be read: a pointer of Git LFS"), "{message}");
}

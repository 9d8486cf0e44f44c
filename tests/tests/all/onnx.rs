//! Networks of ONNX files in the program.

use dr_runtime::arrays::Array;
use dr_runtime::npy;
use dr_tests::{Program, text};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

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
        // In floats, of codes.
        run(&["export", "--model", "w4a8.safetensors", "--precision", "w4a8", "--out", "w4a8.onnx"]);
        run(&["export", "--model", &model, "--out", "float.onnx"]);
        for (exported, of, most) in [("w4a8.onnx", "w4a8.safetensors", 1e-2), ("float.onnx", &model, 1e-5)] {
            let compare = ["eval", "--model", of, "--inputs", "in", "--compare", exported, "--json"];
            let found: serde_json::Value = serde_json::from_str(&run(&compare)).unwrap();
            let error =
                found.as_object().unwrap().values().next().unwrap()["relative_error"].as_f64().unwrap();
            assert!(error < most, "{name}: {exported} {error}");
        }
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
fn two_trainings_without_labels_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let program = program(folder.path());
    let model = fixture("squeeze-new-18", "model.onnx").display().to_string();
    inputs("squeeze-new-18", &folder.path().join("in"));
    let train =
        ["train", "--model", &model, "--distill", "--data-dir", "in", "--precisions", "8,4", "--out", "run"];
    let mut first = program.start(&[&train[..], &["--epochs", "100000"]].concat(), "log");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !fs::read_to_string(program.at("log")).unwrap().contains("epoch 1 of") {
        assert!(Instant::now() < deadline, "no training in time");
        sleep(Duration::from_millis(5));
    }
    let second = program.run(&train);
    let running = first.try_wait().unwrap().is_none();
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(running, "the first training goes on");
    let expected = "error: `run`: another training writes to this folder: expected one of its own, or that the other ends\n";
    assert_eq!((text(second.stderr).as_str(), second.status.code()), (expected, Some(1)));
    // A training that was killed has let go of it.
    let (text, _) = program.outputs(&[&train[..], &["--epochs", "1"]].concat());
    assert!(text.contains("wrote run/model.safetensors: calibrated"), "{text}");
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

/// What a layer costs in a search is what `eval` measures of a plan with that layer alone at fewer bits.
#[test]
fn a_precision_for_each_layer() {
    // One with operations on arrays among its layers.
    for name in ["residual-new-18", "squeeze-new-18"] {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| program(folder.path()).output(arguments);
        let model = fixture(name, "model.onnx").display().to_string();
        inputs(name, &folder.path().join("in"));
        let to = ["--out", "q", "--precisions", "w8a8,w4a8"];
        run(&[&["quantize", "--model", &model, "--calibration", "in"][..], &to].concat());
        let search = |budget: &str, out: &str| {
            let of = ["search", "--model", "q", "--inputs", "in", "--json", "--budget", budget, "--out", out];
            serde_json::from_str::<serde_json::Value>(&run(&of)).unwrap()
        };
        let narrow = search("avg-bits=7", "narrow.toml");
        // Layers that switch, at the highest precision, and then the one that costs the most.
        let plan = fs::read_to_string(folder.path().join("narrow.toml")).unwrap().replace("w4a8", "w8a8");
        fs::write(folder.path().join("wide.toml"), &plan).unwrap();
        let switched = narrow["layers"].as_array().unwrap().iter().filter(|of| of["precision"] == "w4a8");
        let loss = |of: &&serde_json::Value| of["predicted_loss"].as_f64().unwrap();
        let of = switched.max_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
        let layer = of["layer"].as_str().unwrap();
        let quoted = format!("{layer:?}");
        let key = if plan.contains(&quoted) { &quoted } else { layer };
        let line = |bits: &str| format!("\n{key} = \"{bits}\"");
        fs::write(folder.path().join("one.toml"), plan.replace(&line("w8a8"), &line("w4a8"))).unwrap();
        let eval = |plan: &str| {
            let of = ["eval", "--model", "q", "--inputs", "in", "--compare", "q", "--json", "--plan", plan];
            serde_json::from_str::<serde_json::Value>(&run(&of)).unwrap()["mixed"].clone()
        };
        // All at the highest precision is what the model is at that.
        assert_eq!(eval("wide.toml")["relative_error"], 0.0);
        let (found, expected) = (&of["predicted_loss"], &eval("one.toml")["divergence"]);
        assert!((found.as_f64().unwrap() - expected.as_f64().unwrap()).abs() < 1e-9, "{found} {expected}");
        // As a file.
        run(&["export", "--model", "q", "--plan", "narrow.toml", "--out", "narrow.safetensors"]);
        let compared = ["--compare", "q", "--inputs", "in", "--json"];
        let exported = run(&[&["eval", "--model", "narrow.safetensors"][..], &compared].concat());
        let exported: serde_json::Value = serde_json::from_str(&exported).unwrap();
        assert_eq!(exported["mixed"], eval("narrow.toml"));
        let bytes = fs::metadata(folder.path().join("narrow.safetensors")).unwrap().len();
        assert!(bytes < fs::metadata(folder.path().join("q")).unwrap().len());
        let error = program(folder.path()).error(&["eval", "--model", "q", "--plan", "bad.toml"]);
        assert!(error.contains("bad.toml"), "{error}");
    }
}

/// Any network, in floats and in integers.
#[test]
fn latencies_of_networks_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| fixture(name, "model.onnx").display().to_string();
    let latency = |model: &str| {
        let of = ["latency", "--samples", "1", "--batch", "2", "--json", "--model", model];
        serde_json::from_str::<serde_json::Value>(&program(folder.path()).output(&of)).unwrap()
    };
    for name in ["residual-new-18", "squeeze-new-18", "channels-last-13"] {
        let found = latency(&path(name));
        assert!(found["float"]["ms"].as_f64().unwrap() > 0.0, "{found}");
        assert_eq!(found["precisions"].as_array().unwrap().len(), 0);
    }
    inputs("squeeze-new-18", &folder.path().join("in"));
    let quantize = ["quantize", "--calibration", "in", "--precisions", "w8a8,w4a8", "--out", "q", "--model"];
    let _ = program(folder.path()).output(&[&quantize[..], &[&path("squeeze-new-18")]].concat());
    let found = latency("q");
    assert_eq!(found["precisions"].as_array().unwrap().len(), 2, "{found}");
    assert!(found["precisions"][1]["model_bytes"].as_u64() < found["precisions"][0]["model_bytes"].as_u64());
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
        error(&["import", "--onnx", &model, "--mean", "1,2", "--out", "out.safetensors"]),
        error(&["quantize", "--model", &model, "--calibration", "small", "--out", "out.safetensors"]),
        error(&["eval", "--model", &model, "--inputs", "small", "--compare", &model]),
        error(&["hessian", "--model", &tokens, "--out", "h.json"]),
        error(&["import", "--out", "out.safetensors"]),
        error(&["export", "--model", &model, "--out", "out.pt"]),
        error(&["export", "--model", &model, "--out", "out.safetensors"]),
        error(&["export", "--model", &model, "--precision", "w4a8", "--out", "out.onnx"]),
    ];
    insta::assert_snapshot!("wrong_onnx", errors.join("\n"));
}

/// A network of images whose channels are last, 4 x 6 of them, that multiplies these by 1, 10 and 100.
#[test]
fn pictures_become_images_as_the_network_takes_them() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| program(folder.path()).output(arguments);
    let model = fixture("channels-last-13", "model.onnx").display().to_string();
    let pixel = |x: u32, y: u32| [(20 + 30 * x) as u8, (10 + 40 * y) as u8, (9 * x * y) as u8];
    fs::create_dir(folder.path().join("photos")).unwrap();
    let picture = image::RgbImage::from_fn(6, 4, |x, y| image::Rgb(pixel(x, y)));
    picture.save(folder.path().join("photos/a.png")).unwrap();
    let said = ["--layout", "nhwc", "--resize", "stretch", "--mean", "0.5,0.25,0", "--std", "0.5"];
    let check = |arguments: &[&str], order: [usize; 3], error: f32| {
        run(&[&["predict", "--out", "out", "photos/a.png", "--model"], arguments].concat());
        let output = npy::read(&folder.path().join("out/a.npy")).unwrap().remove(0).1;
        assert_eq!(output.dims(), [1, 4, 6, 3]);
        let output = output.floats().unwrap();
        for (at, found) in output.iter().enumerate() {
            let (x, y, channel) = (at / 3 % 6, at / 18, at % 3);
            let value = f32::from(pixel(x as u32, y as u32)[order[channel]]) / 255.0;
            let (gain, mean) = ([1.0, 10.0, 100.0][channel], [0.5, 0.25, 0.0][channel]);
            let expected = gain * (value - mean) / 0.5;
            assert!((found - expected).abs() <= error * gain, "{at}: {found} {expected}");
        }
    };
    check(&[&[&model[..]], &said[..]].concat(), [0, 1, 2], 1e-5);
    check(&[&[&model[..]], &said[..], &["--channel-order", "bgr"]].concat(), [2, 1, 0], 1e-5);
    // The file says it then, and that which is made of it.
    let import = ["import", "--channel-order", "bgr", "--out", "float.safetensors", "--onnx", &model];
    run(&[&import[..], &said].concat());
    check(&["float.safetensors"], [2, 1, 0], 1e-5);
    let calibrate = ["--precisions", "w8a8,w4a8", "--calibration", "photos", "--float-share", "0"];
    let quantize = ["quantize", "--model", "float.safetensors", "--out", "q.safetensors"];
    run(&[&quantize[..], &calibrate].concat());
    check(&["q.safetensors"], [2, 1, 0], 0.02);
    let info = run(&["info", "q.safetensors"]);
    for line in
        ["input       3x4x6", "mean        0.5, 0.25, 0\n", "channels    bgr\n", "pictures    stretched\n"]
    {
        assert!(info.contains(line), "{line}: {info}");
    }
    // What the model says is of the network that it is compared with, too.
    let eval =
        ["eval", "--model", "q.safetensors", "--inputs", "photos", "--layout", "nhwc", "--json", "--compare"];
    let found: serde_json::Value = serde_json::from_str(&run(&[&eval[..], &[&model]].concat())).unwrap();
    assert!(found["w8a8"]["relative_error"].as_f64().unwrap() < 0.02, "{found}");
}

#[test]
fn what_pictures_cannot_become() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name| fixture(name, "model.onnx").display().to_string();
    let [last, first, tokens] = ["channels-last-13", "residual-new-18", "encoder-old-17"].map(path);
    image::RgbImage::new(6, 4).save(folder.path().join("a.png")).unwrap();
    let _ = program(folder.path()).output(&["import", "--onnx", &first, "--out", "float.safetensors"]);
    let error = |model: &str, flags: &[&str]| {
        let text = program(folder.path()).error(&[&["predict", "a.png", "--model", model], flags].concat());
        text.replace(&last, "last.onnx").replace(&first, "first.onnx").replace(&tokens, "tokens.onnx")
    };
    let errors = [
        error(&last, &[]),
        error(&last, &["--layout", "nchw", "--channel-order", "bgr"]),
        error(&last, &["--layout", "nhwc", "--image-size", "8"]),
        error(&last, &["--layout", "nhwc", "--image-size", "4x"]),
        error(&last, &["--layout", "nhwc", "--mean", "0.5,0.5"]),
        error(&last, &["--layout", "nhwc", "--mean", "NaN"]),
        error(&last, &["--layout", "nhwc", "--std", "1,0,1"]),
        error(&last, &["--layout", "nhwc", "--resize", "0"]),
        error(&last, &["--layout", "hwc"]),
        error(&tokens, &["--layout", "nhwc"]),
        error(&tokens, &["--mean", "0"]),
        error("float.safetensors", &["--mean", "0"]),
        program(folder.path()).error(&[
            "import",
            "--model",
            "resnet8",
            "--weights",
            "x",
            "--std",
            "1",
            "--out",
            "y",
        ]),
        program(folder.path()).error(&["eval", "--model", "float.safetensors", "--resize", "9"]),
    ];
    insta::assert_snapshot!("wrong_pictures", errors.join("\n"));
}

#[test]
fn pointers_of_git_lfs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("pointer.onnx"), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let message = program(folder.path()).error(&["import", "--onnx", "pointer.onnx", "--out", "x"]);
    assert!(message.starts_with("error: `pointer.onnx`: cannot be read: a pointer of Git LFS"), "{message}");
    for (name, command) in
        [("pointer.safetensors", "info"), ("pointer.safetensors", "eval"), ("pointer.gguf", "info")]
    {
        fs::copy(folder.path().join("pointer.onnx"), folder.path().join(name)).unwrap();
        let message = program(folder.path()).error(&[command, name]);
        let says = [format!("error: `{name}`: "), "a pointer of Git LFS".to_owned()];
        assert!(says.iter().all(|part| message.contains(part)), "{message}");
    }
}

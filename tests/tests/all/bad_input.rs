//! Whatever is wrong with the input is one line and exit code 1 or 2, before anything is written.

use dr_tests::{Program, listing, text};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use tempfile::TempDir;

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

/// A folder with a finished run in `run`. Commands that fail leave it as it is.
fn finished() -> Program {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    Program::shared(env!("CARGO_BIN_EXE_program"), &RUN, |program| {
        let arguments =
            ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "64", "--out", "run"];
        let _ = program.outputs(&arguments);
    })
}

/// An IDX file of bytes, `announced` items of `sizes`.
fn idx(announced: u32, sizes: &[u32], content: usize) -> Vec<u8> {
    let dimensions = 1 + sizes.len() as u8;
    let mut bytes = vec![0, 0, 8, dimensions];
    for size in std::iter::once(&announced).chain(sizes) {
        bytes.extend(size.to_be_bytes());
    }
    bytes.extend((0..content).map(|i| (i % 10) as u8));
    bytes
}

/// MNIST's files with `count` images of which `present` are there.
fn mnist(folder: &Path, announced: u32, present: usize) {
    for part in ["train", "t10k"] {
        let images = idx(announced, &[28, 28], present * 784);
        fs::write(folder.join(format!("{part}-images-idx3-ubyte")), images).expect("it can be written");
        let labels = idx(50, &[], 50);
        fs::write(folder.join(format!("{part}-labels-idx1-ubyte")), labels).expect("it can be written");
    }
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

#[test]
fn datasets() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    let train =
        |dataset| program.error(&["train", "--dataset", dataset, "--data-dir", "data", "--out", "run"]);

    assert_says(&train("mnist"), &["mnist: found no train-images", "data"]);
    mnist(&data, 50, 49);
    assert_says(&train("mnist"), &["data/train-images-idx3-ubyte", "38416 bytes", "expected 39200"]);
    mnist(&data, u32::MAX, 50);
    assert_says(&train("fashion-mnist"), &["data/train-images-idx3-ubyte", "expected"]);
    mnist(&data, 40, 40);
    assert_says(&train("mnist"), &["data/train-labels-idx1-ubyte", "50 labels", "expected 40"]);
    fs::write(data.join("train-images-idx3-ubyte"), "not one").expect("it can be written");
    assert_says(&train("mnist"), &["data/train-images-idx3-ubyte"]);

    assert_says(&train("cifar10"), &["cifar10: found no data_batch_1.bin"]);
    for batch in 1..=5 {
        fs::write(data.join(format!("data_batch_{batch}.bin")), vec![1; 3073 * 3 - batch / 5])
            .expect("it can");
    }
    assert_says(&train("cifar10"), &["data/data_batch_5.bin", "expected a multiple of 3073"]);
    assert_says(
        &program.error(&["train", "--limit-train", "5000", "--out", "run"]),
        &["digits: a limit of 5000 training images"],
    );

    // As many classes of the same size, which are called otherwise.
    mnist(&data, 50, 50);
    let train = ["train", "--dataset", "mnist", "--data-dir", "data", "--float-epochs", "1", "--epochs", "1"];
    let _ = program.outputs(&[&train[..], &["--batch-size", "16", "--out", "mnist"]].concat());
    let eval =
        ["eval", "--model", "mnist/model.safetensors", "--dataset", "fashion-mnist", "--data-dir", "data"];
    assert_says(&program.error(&eval), &["class 0 is `", "expected `0`, as the model has it"]);
}

#[test]
fn settings() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("file"), "a file").expect("it can be written");
    let error = |arguments: &[&str]| program(folder.path()).error(&[&["train"], arguments].concat());
    assert_says(&error(&["--precisions", "w9a4"]), &["w9a4"]);
    assert_says(&error(&["--precisions", "4,4"]), &["4,4"]);
    assert_says(&error(&["--model", "resnet9"]), &["--model", "resnet9", "resnet8, resnet20, resnet32"]);
    assert_says(&error(&["--out", "file"]), &["--out `file`", "not a folder"]);
    assert_says(&error(&["--lr", "1.5"]), &["lr 1.5", "at most 1"]);
    assert_says(&error(&["--device", "cuda"]), &["device `cuda`", "expected one of auto, flex"]);
    assert_says(&error(&["--devices", "0,0"]), &["devices `0,0`", "expected `all`"]);
    assert_says(
        &error(&["--device", "flex", "--devices", "1"]),
        &["device 1 of `flex`", "this machine has 1"],
    );
}

#[test]
fn runs_to_resume() {
    let program = finished();
    for (flag, value) in
        [("--model", "resnet20"), ("--precisions", "w8a8,w4a4"), ("--dataset", "mnist"), ("--seed", "2")]
    {
        let message = program.error(&["train", "--resume", "run", flag, value]);
        assert_says(&message, &[flag, value, "which cannot change"]);
    }
    assert_says(&program.error(&["train", "--resume", "run", "--out", "other"]), &["--out `other`", "`run`"]);
    assert_says(
        &program.error(&["train", "--resume", "elsewhere"]),
        &["--resume `elsewhere`", "config.json"],
    );

    // Settings of one architecture beside the networks of another.
    let folder = tempfile::tempdir().expect("a folder");
    let other = self::program(folder.path());
    fs::create_dir(other.at("run")).expect("a folder");
    let config = fs::read_to_string(program.at("run/config.json")).expect("settings");
    fs::write(other.at("run/config.json"), config.replace("resnet8", "resnet20")).expect("it can be written");
    fs::copy(program.at("run/float.safetensors"), other.at("run/float.safetensors"))
        .expect("it can be copied");
    let message = other.error(&["train", "--resume", "run"]);
    assert_says(&message, &["run/float.safetensors", "float resnet8", "expected float resnet20"]);
}

#[test]
fn models() {
    let program = finished();
    let good = fs::read(program.at("run/model.safetensors")).expect("a model");
    let folder = tempfile::tempdir().expect("a folder");
    let program = self::program(folder.path());
    fs::write(program.at("model"), &good).expect("it can be written");
    fs::copy(finished().at("run/float.safetensors"), program.at("float")).expect("it can be copied");
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 4;
    fs::write(program.at("damaged"), damaged).expect("it can be written");
    fs::write(program.at("cut"), &good[..good.len() / 2]).expect("it can be written");
    fs::write(program.at("foreign"), b"\x89PNG\r\n\x1a\n and so on").expect("it can be written");

    for model in ["damaged", "cut", "foreign", "missing", "."] {
        for command in [
            &["eval", "--model", model][..],
            &["eval", "--model", model, "--json", "--all"],
            &["export", "--model", model, "--precision", "4", "--out", "out"],
            &["quantize", "--model", model, "--out", "out"],
            &["info", model],
            &["latency", "--model", model],
            &["hessian", "--model", model, "--out", "out"],
        ] {
            assert_says(&program.error(command), &[&format!("`{model}`: ")]);
        }
    }
    assert_says(
        &program.error(&["eval", "--model", "model", "--precision", "3"]),
        &["`model`: the model has no precision w3a3: expected one of w8a8,w6a6,w4a4,w2a2"],
    );
    assert_says(
        &program.error(&["eval", "--model", "float", "--precision", "4"]),
        &["`float`: a float model: expected a multi-precision or packed one"],
    );
    assert_says(
        &program.error(&["eval", "--engine", "integer", "--model", "float"]),
        &["`float`: a float model: expected a multi-precision or packed one"],
    );
    assert_says(
        &program.error(&["eval", "--model", "model", "--precision", "3", "--engine", "integer"]),
        &["`model`: the model has no precision w3a3: expected one of w8a8,w6a6,w4a4,w2a2"],
    );
    assert_says(&program.error(&["latency", "--model", "model", "--device", "vulkan"]), &["device `vulkan`"]);
    assert_says(
        &program.error(&["export", "--model", "float", "--precision", "4", "--out", "out"]),
        &["`float`: a float model: expected a quantized one"],
    );
    assert_says(
        &program.error(&["quantize", "--model", "model", "--out", "out"]),
        &["`model`: a multi-precision model: expected a float one"],
    );
    assert_says(&program.error(&["eval", "--model", "model", "--device", "vulkan"]), &["device `vulkan`"]);

    for (flag, value, parts) in [
        ("--limit-train", "0", ["a limit of 0 training images", "expected"]),
        ("--batch-size", "20000", ["a batch of 20000 images of 1x8x8", "expected at most 16384"]),
        ("--device", "vulkan", ["device `vulkan`", "expected"]),
    ] {
        assert_says(&program.error(&["hessian", "--model", "float", "--out", "out", flag, value]), &parts);
    }

    // Data that are not asked for with a dataset of files, or not for the task.
    for command in [
        &["quantize", "--model", "float", "--out", "out"][..],
        &["export", "--model", "model", "--precision", "4", "--out", "out", "--samples", "samples"],
        &["eval", "--model", "model"],
        &["hessian", "--model", "float", "--out", "out"],
    ] {
        assert_says(
            &program.error(&[command, &["--data-dir", "photos"]].concat()),
            &["--data-dir: the dataset digits has no use for it: expected it with --dataset ", " or folder"],
        );
        let message = program.error(&[command, &["--dataset", "text"]].concat());
        assert_says(&message, &["--task classify with --dataset text", "expected images with a class each"]);
    }
    assert_says(
        &program.error(&["eval", "--model", "model", "--window", "8"]),
        &["`model`: a model for the task classify: expected one for lm"],
    );
    assert_says(
        &program.error(&["eval", "--model", "model", "--tokens", "8"]),
        &["`model`: a model for the task classify: expected one for lm"],
    );

    // Images of another size.
    let data = folder.path().join("data");
    fs::create_dir(&data).expect("a folder");
    mnist(&data, 50, 50);
    for command in [
        &["eval", "--model", "model"][..],
        &["quantize", "--model", "float", "--out", "out"],
        &["hessian", "--model", "float", "--out", "out"],
    ] {
        let message = program.error(&[command, &["--dataset", "mnist", "--data-dir", "data"]].concat());
        assert_says(&message, &["1x28x28", "expects 1x8x8"]);
    }

    // Images without classes.
    let photos = folder.path().join("photos");
    fs::create_dir_all(photos.join("empty")).expect("a folder");
    let calibrate =
        |flags: &[&str]| program.error(&[&["quantize", "--model", "float", "--out", "out"], flags].concat());
    let compare = |flags: &[&str]| program.error(&[&["eval", "--model", "model"], flags].concat());
    let nothing = "has no images: expected .jpg, .jpeg or .png files";
    assert_says(&calibrate(&["--calibration", "photos"]), &["`photos`: ", nothing]);
    assert_says(&compare(&["--inputs", "photos", "--compare", "float"]), &["`photos`: ", nothing]);
    assert_says(&calibrate(&["--calibration", "nowhere"]), &["`nowhere`: cannot be listed"]);
    assert_says(&compare(&["--inputs", "photos"]), &["--compare"]);
    assert_says(&calibrate(&["--group-size", "32"]), &["--group-size", "expected a network for tokens"]);
    assert_says(&calibrate(&["--calibration-images", "0"]), &["--calibration-images", "0"]);
    let tokens = ["--calibration", "photos", "--calibration-tokens", "9"];
    assert_says(
        &calibrate(&tokens),
        &["--calibration-tokens: `float` has no use for it: expected a network for tokens"],
    );
}

fn fixture(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/dr-train/tests/fixtures").join(path)
}

/// A language model of others, with what can be wrong around it.
#[test]
fn texts() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    fs::create_dir(program.at("theirs")).expect("a folder");
    for entry in fs::read_dir(fixture("llama/grouped")).expect("a fixture") {
        let path = entry.expect("a file").path();
        fs::copy(&path, program.at("theirs").join(path.file_name().expect("a name"))).expect("a copy");
    }
    let write = |name: &str, content: &[u8]| fs::write(program.at(name), content).expect("it can be written");
    write("short.txt", b"the cat sat on the mat");
    write("empty.txt", b"");
    write("bytes.txt", b"the \xff cat");
    write("text.txt", "the cat sat on the mat, and the hat. ".repeat(40).as_bytes());
    let with =
        |command: &[&str], rest: &[&str]| program.error(&[command, &["--model", "theirs"], rest].concat());

    let calibrated = |text: &str| with(&["quantize"], &["--calibration", text, "--out", "x"]);
    let import = ["import", "--model", "llama", "--weights", "theirs", "--image-size", "8", "--out", "x"];
    assert_says(&program.error(&import), &["--image-size", "expected a network for images"]);
    for flag in [
        &["--switch-depthwise"][..],
        &["--calibration-images", "9"],
        &["--float-share", "50"],
        &["--memory", "1"],
    ] {
        let message = with(&["quantize"], &[&["--calibration", "text.txt", "--out", "x"], flag].concat());
        assert_says(&message, &[flag[0], "expected a network for images"]);
    }
    let message = with(&["quantize"], &["--calibration", "text.txt", "--switch-edge", "--out", "x"]);
    assert_says(&message, &["--switch-edge", "keep 8 bits"]);
    assert_says(&calibrated("short.txt"), &["`short.txt`: the text has", "tokens: expected at least 65"]);
    assert_says(&calibrated("empty.txt"), &["`empty.txt`: the text has 0 tokens: expected at least 65"]);
    assert_says(&calibrated("bytes.txt"), &["`bytes.txt`: not UTF-8 from byte 4 on: expected a text"]);
    assert_says(&calibrated("nowhere.txt"), &["`nowhere.txt`"]);

    let long = "the cat sat on the mat ".repeat(60);
    assert_says(
        &with(&["generate"], &["--prompt", &long]),
        &["the prompt has", "tokens: expected less than 64, the model's context"],
    );
    let measured = |text: &str, window: &str| with(&["eval"], &["--text", text, "--window", window]);
    let error = measured("text.txt", "65");
    assert_says(&error, &["`theirs`: pieces of 65 tokens: expected 1 to 64, the model's context"]);
    assert_says(&measured("empty.txt", "64"), &["text has 0 tokens: expected at least 2"]);
    assert_says(&measured("text.txt", "0"), &["--window", "0"]);
    assert_says(&measured("text.txt", "-1"), &["--window", "-1"]);
    let whole = ["eval", "--model", "theirs", "--text", "text.txt"];
    let default = program.output(&whole);
    assert_eq!(program.output(&[&whole[..], &["--window", "64"]].concat()), default);
    // A part of it.
    assert_eq!(program.output(&[&whole[..], &["--tokens", "1000000"]].concat()), default);
    let part = program.output(&[&whole[..], &["--tokens", "70", "--json"]].concat());
    let part: serde_json::Value = serde_json::from_str(&part).expect("JSON");
    assert_eq!(part["test_images"], 70);
    assert_says(&with(&["eval"], &["--text", "text.txt", "--tokens", "0"]), &["--tokens", "0"]);

    // A tokenizer of a few tokens more than the model has.
    let path = program.at("theirs/tokenizer.json");
    let usual = fs::read_to_string(&path).expect("a tokenizer");
    let mut json: serde_json::Value = serde_json::from_str(&usual).expect("JSON");
    let count = json["model"]["vocab"].as_object().expect("an object").len();
    for id in count..67 {
        json["added_tokens"].as_array_mut().expect("a list").push(serde_json::json!({
            "id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    fs::write(&path, json.to_string()).expect("it can be written");
    let generate = ["generate", "--model", "theirs", "--tokens", "2", "--prompt"];
    let (_, said) = program.outputs(&[&generate[..], &["the cat"]].concat());
    let warning = "the tokenizer has 67 tokens, the model 64: texts that need one of the other 3 are refused";
    assert_says(&said, &[warning]);
    let refused = program.run(&[&generate[..], &["the cat<65>"]].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert_says(&text(refused.stderr), &[warning, "token 65: the model has 64"]);
    fs::write(&path, usual).expect("it can be written");

    // Templates: what cannot be read, what fails, what refuses, and what never ends.
    for (template, says) in [
        ("{{ messages", "syntax error: unexpected end of input"),
        ("{{ strftime() }}", "unknown function: strftime is unknown"),
        ("{{ messages[7].content }}", "undefined value: `messages[7]` is undefined"),
        ("{{ raise_exception('alternate roles') }}", "alternate roles"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion limit exceeded"),
        (
            "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "engine ran out of fuel",
        ),
    ] {
        write("theirs/chat_template.jinja", template.as_bytes());
        assert_says(
            &with(&["generate"], &["--chat", "--prompt", "cat"]),
            &["`theirs`: chat template: ", says],
        );
    }
    write("theirs/chat_template.jinja", b"");
    assert_says(&with(&["generate"], &["--chat", "--prompt", "cat"]), &["the prompt has no tokens"]);

    // Types of GGUF that are not read, all that have them named.
    let mut gguf = fs::read(fixture("gguf/types.gguf")).expect("a fixture");
    let name = b"blk.0.attn_q.weight";
    let at = gguf.windows(name.len()).position(|part| part == name).expect("a tensor");
    // After the number of axes and their sizes.
    gguf[at + name.len() + 4 + 2 * 8] = 11;
    write("q3.gguf", &gguf);
    assert_says(
        &program.error(&["generate", "--model", "q3.gguf", "--prompt", "cat"]),
        &["`q3.gguf`: `blk.0.attn_q.weight` is of type Q3_K: expected F32, F16"],
    );
}

#[test]
fn nobody_reads_what_is_printed() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let short = ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "64", "--out"];
    assert_eq!(program.unheard(&[&short[..], &["unheard"]].concat()), Some(0));
    assert!(program.at("unheard/report.json").is_file());
    let grouped = fixture("llama/grouped");
    let generate = ["generate", "--model", grouped.to_str().expect("UTF-8"), "--tokens", "60", "--prompt"];
    assert_eq!(program.unheard(&[&generate[..], &["the\ncat"]].concat()), Some(0));
    assert_eq!(program.unheard(&["info", "nowhere"]), Some(1));
    let float = "unheard/float.safetensors";
    for command in [
        &["eval", "--model", "unheard/model.safetensors", "--json"][..],
        &["quantize", "--model", float, "--out", "q", "--json"],
        &["hessian", "--model", float, "--limit-train", "64", "--tolerance", "0.9"],
        &["completions", "bash"],
        &["--help"],
    ] {
        assert_eq!(program.unheard(command), Some(0), "{command:?}");
    }
    assert!(program.at("q").is_file());
}

/// Also those of `ulimit -f`: the file that was asked for is named, and nothing half-written stays.
#[cfg(target_os = "linux")]
#[test]
fn files_that_cannot_be_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    fs::create_dir(program.at("run")).expect("a folder");
    fs::copy(finished().at("run/model.safetensors"), program.at("run/model.safetensors")).expect("a copy");
    let before = listing(folder.path());
    let said = |arguments: &[&str]| {
        let output = program.limited(8, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        text(output.stderr)
    };
    let too_large = "File too large (os error 27)\n";
    let model = ["--model", "run/model.safetensors"];
    let export = |rest: &[&str]| said(&[&["export"], &model[..], rest].concat());
    assert_eq!(
        export(&["--precision", "4", "--out", "x.safetensors"]),
        format!("error: `x.safetensors`: cannot be written: {too_large}")
    );
    assert_eq!(export(&["--precision", "4", "--out", "x.onnx"]), format!("error: `x.onnx`: {too_large}"));
    assert_eq!(listing(folder.path()), before);
    let message =
        said(&["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "64", "--out", "limited"]);
    assert_says(
        &message,
        &["stopped: `limited/float/checkpoint/", "-1.bpk`: File too large (os error 27)\n"],
    );
    fs::copy(finished().at("run/float.safetensors"), program.at("float")).expect("a copy");
    for (command, name) in [
        (&["quantize", "--model", "float", "--out", "x"][..], "x"),
        (
            &["scenes", "--size", "64", "--train", "1", "--val", "1", "--test", "1", "--out", "s"],
            "s/train/000001.png",
        ),
    ] {
        assert_says(&said(command), &[&format!("`{name}`: "), "File too large"]);
        assert!(!program.at(name).exists(), "{command:?}");
    }
    let written = listing(&program.at("limited"));
    for path in written.keys().map(|path| path.display().to_string()) {
        assert!(!message.contains(".writing-") && !path.contains(".writing-"), "{message} {path}");
    }
}

/// An ending that says another format than what is written.
#[test]
fn names_of_other_formats() {
    let program = finished();
    let (model, float) = ("run/model.safetensors", "run/float.safetensors");
    let search = ["search", "--model", model, "--budget", "avg-bits=4"];
    for (command, flag, name, expected) in [
        (&["quantize", "--model", float][..], "--out", "x.onnx", ".safetensors"),
        (
            &["export", "--model", model, "--precision", "4"],
            "--out",
            "x.pt",
            "one of .safetensors, .onnx, .gguf",
        ),
        (
            &["export", "--model", model, "--precision", "4", "--out", "x"],
            "--samples",
            "s.npz",
            ".safetensors",
        ),
        (&["import", "--model", "resnet18", "--weights", float], "--out", "x.pt", ".safetensors"),
        (&["draw", "--model", model], "--out", "x.jpg", ".png"),
        (&["hessian", "--model", float], "--out", "x.csv", ".json"),
        (&["hessian", "--model", float], "--plot", "x.png", ".svg"),
        (&search, "--out", "x.json", ".toml"),
        (&search, "--pareto", "x.png", ".svg"),
    ] {
        let message = program.error(&[command, &[flag, name]].concat());
        assert_says(&message, &[&format!("{flag} `{name}`: expected a name that ends in {expected}\n")]);
    }
    let draw = program.error(&["draw", "--model", model, "--out", "nowhere/x.png"]);
    assert_says(&draw, &["--out `nowhere/x.png`: its folder does not exist"]);
}

#[test]
fn exit_codes() {
    let program = finished();
    let code = |arguments: &[&str]| program.run(arguments).status.code();
    for wrong_use in [
        &["train", "--no-such-flag"][..],
        &["evil"],
        &["train", "--lr", "2"],
        &["train", "--dataset", "coco"],
        &["train", "--out", "run"],
        &["train", "--mixed", "--batch-norm", "shared"],
        &["export", "--model", "run/model.safetensors", "--out", "x"],
    ] {
        assert_eq!(code(wrong_use), Some(2), "{wrong_use:?}");
    }
    for failure in [
        &["info", "nowhere"][..],
        &["train", "--dataset", "mnist", "--data-dir", "nowhere"],
        &["eval", "--model", "run/config.json"],
        &["export", "--model", "run/float.safetensors", "--precision", "4", "--out", "x"],
    ] {
        assert_eq!(code(failure), Some(1), "{failure:?}");
    }
}

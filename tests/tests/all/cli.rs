//! The program's help and its one-line errors, as a user sees them.

use dr_precision::PrecisionSet;
use dr_tests::Program;
use dr_train::artifact::{
    Artifact, ArtifactKind, Described, Description, InputShape, SavedModel, TensorEntry,
};
use dr_train::data::Normalization;
use dr_train::models::RESNET8;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

fn error(folder: &Path, arguments: &[&str]) -> String {
    format!("$ dr-train {}\n{}", arguments.join(" "), program(folder).error(arguments))
}

fn errors(folder: &Path, calls: &[&[&str]]) -> String {
    calls.iter().map(|arguments| error(folder, arguments)).collect::<Vec<_>>().join("\n")
}

fn model(folder: &Path) -> Artifact {
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let (dataset, model) = ("digits", RESNET8);
    let description = Description {
        kind: ArtifactKind::MultiPrecision,
        normalization: Normalization { mean: vec![0.305], std: vec![0.376], ..Normalization::none(1) },
        seed: 1,
        ..Description::new(dataset, &model, input, 10, PrecisionSet::default())
    };
    let tensors = BTreeMap::from([
        ("conv1.weight".to_owned(), TensorEntry::i8([16, 1, 3, 3], vec![1; 144])),
        ("conv1.weight.scale.w8a8".to_owned(), TensorEntry::f32([16], vec![0.5; 16])),
    ]);
    let artifact = Artifact { description, tensors };
    artifact.save(&folder.join("model.safetensors")).unwrap();
    artifact
}

#[test]
fn help() {
    let folder = tempfile::tempdir().unwrap();
    let help = |arguments: &[&str]| program(folder.path()).output(arguments);
    insta::assert_snapshot!("help", help(&["--help"]));
    assert_eq!(help(&["help"]), help(&["--help"]));
    for command in [
        "train",
        "eval",
        "export",
        "import",
        "import-check",
        "quantize",
        "info",
        "latency",
        "predict",
        "hessian",
        "search",
        "scenes",
        "draw",
        "generate",
        "worker",
        "completions",
    ] {
        insta::assert_snapshot!(format!("help-{command}"), help(&[command, "--help"]));
    }
    assert_eq!(help(&["--version"]), concat!("dr-train ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn the_program_says_as_much_as_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let train = |how: &[&str], out: &str| {
        let training = ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "64", "--out", out];
        program(folder.path()).outputs(&[how, &training].concat())
    };
    let (usual, log) = train(&[], "usual");
    assert_eq!(log.lines().count(), 2, "{log}");
    let (quiet, log) = train(&["-q"], "quiet");
    assert_eq!(log, "");
    let (verbose, log) = train(&["--verbose"], "verbose");
    let line = |start: &str| log.lines().any(|line| line.starts_with(start));
    for start in
        ["settings, in verbose/config.json: {", "device: ", "changes to images: crop, mixup 0", "float "]
    {
        assert!(line(start), "{start}: {log}");
    }
    // Only what is said on the way differs. A pipe sees no line that is written over.
    for (table, out) in [(quiet, "quiet"), (verbose, "verbose")] {
        let without_time = |table: &str| table[..table.rfind(" in ").unwrap()].to_owned();
        assert_eq!(without_time(&table).replace(out, "usual"), without_time(&usual));
    }
    assert!(!log.contains('\r'), "{log}");
    // Errors are said in any case.
    assert!(
        error(folder.path(), &["-q", "info", "missing.safetensors"]).contains("error: `missing.safetensors`")
    );
    let both = error(folder.path(), &["info", "missing.safetensors", "-q", "-v"]);
    assert!(both.contains("cannot be used together"), "{both}");
}

#[test]
fn wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let text = errors(
        folder.path(),
        &[
            &["trian"],
            &["--epochs", "3"],
            &["train", "--epoch", "3"],
            &["train", "stray"],
            &["train", "--epochs"],
            &["train", "--model"],
            &["train", "--seed", "1", "--seed", "2"],
            &["eval"],
            &["eval", "--model", "m.safetensors", "--all", "--precision", "4"],
            &["export", "--model", "m.safetensors"],
            &["import", "--model", "resnet18"],
            &["import-check"],
            &["quantize"],
            &["info"],
            &["latency"],
            &["search"],
            &["search", "--model", "m.safetensors"],
            &["hessian"],
        ],
    );
    insta::assert_snapshot!(text);
}

#[test]
fn wrong_values() {
    let folder = tempfile::tempdir().unwrap();
    let text = errors(
        folder.path(),
        &[
            &["train", "--precisions", "w9a4"],
            &["train", "--precisions", "4,4"],
            &["train", "--precisions", ""],
            &["train", "--precisions", "8,,4"],
            &["train", "--model", "foo"],
            &["train", "--model", "resnet80"],
            &["train", "--dataset", "imagenet"],
            &["train", "--dataset", "folder", "--image-size", "4"],
            &["train", "--batches", "none"],
            &["train", "--batches", "separate", "--distill", "highest"],
            &["train", "--accumulate", "0"],
            &["import", "--model", "resnet19", "--weights", "w.pth", "--out", "m.safetensors"],
            &[
                "import",
                "--model",
                "resnet18",
                "--weights",
                "w.pth",
                "--image-size",
                "0",
                "--out",
                "m.safetensors",
            ],
            &["export", "--model", "m.safetensors", "--precision", "4", "--out", "m.onnx", "--opset", "12"],
            &["train", "--alrs", "maybe"],
            &["train", "--scale-gradient", "lsq+"],
            &["train", "--batch-norm", "none"],
            &["train", "--distill", "on"],
            &["train", "--device", "tpu"],
            &["train", "--dashboard"],
            &["train", "--epochs", "many"],
            &["train", "--epochs", "-1"],
            &["train", "--epochs", "0"],
            &["train", "--batch-size", "1"],
            &["train", "--lr", "fast"],
            &["train", "--lr", "-0.1"],
            &["train", "--lr", "inf"],
            &["train", "--limit-train", "5"],
            &["train", "--seed", "-1"],
            &["eval", "--model", "m.safetensors", "--precision", "16"],
            &["eval", "--model", "m.safetensors", "--engine", "float"],
            &["latency", "--model", "m.safetensors", "--batch", "0"],
            &["latency", "--model", "m.safetensors", "--batch", "-1"],
            &["latency", "--model", "m.safetensors", "--samples", "few"],
            &["latency", "--model", "m.safetensors", "--threads", "0"],
            &["search", "--model", "m.safetensors", "--budget", "4"],
            &["search", "--model", "m.safetensors", "--budget", "size=4"],
            &["search", "--model", "m.safetensors", "--budget", "latency=-1ms"],
            &["search", "--model", "m.safetensors", "--budget", "avg-bits=4", "--pin", "stem"],
            &["search", "--model", "m.safetensors", "--budget", "avg-bits=4", "--pin", "stem=w9a8"],
            &["search", "--model", "m.safetensors", "--budget", "avg-bits=4", "--widths", "all"],
            &["search", "--model", "m.safetensors", "--budget", "avg-bits=4", "--objective", "inputs"],
            &["hessian", "--model", "m.safetensors", "--tolerance", "0"],
            &["hessian", "--model", "m.safetensors", "--tolerance", "-0.1"],
            &["hessian", "--model", "m.safetensors", "--tolerance", "nan"],
            &["hessian", "--model", "m.safetensors", "--tolerance", "inf"],
            &["hessian", "--model", "m.safetensors", "--max-samples", "0"],
            &["hessian", "--model", "m.safetensors", "--batch-size", "0"],
            &["hessian", "--model", "m.safetensors", "--seed", "-1"],
        ],
    );
    insta::assert_snapshot!(text);
}

#[test]
fn wrong_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    model(folder.path());
    let mut damaged = fs::read(at("model.safetensors")).unwrap();
    fs::write(at("cut.safetensors"), &damaged[..damaged.len() - 1]).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(at("damaged.safetensors"), &damaged).unwrap();
    fs::write(at("picture.png"), b"\x89PNG\r\n\x1a\n and so on").unwrap();
    let foreign = br#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}  "#;
    let foreign = [&(foreign.len() as u64).to_le_bytes()[..], foreign, &[0; 4]].concat();
    fs::write(at("foreign.safetensors"), foreign).unwrap();
    fs::write(at("typo.toml"), "epoch = 3").unwrap();
    fs::write(at("value.toml"), "model = 'resnet80'").unwrap();
    fs::write(at("broken.toml"), "epochs = 3\nlr = = 1").unwrap();
    fs::create_dir(at("folder")).unwrap();

    let calls: &[&[&str]] = &[
        &["train", "--out", "picture.png"],
        &["train", "--out", "picture.png/runs"],
        &["train", "--resume", "nowhere"],
        &["train", "--resume", "folder"],
        &["train", "--weights", "nowhere.pth"],
        &["train", "--weights", "picture.png"],
        &["train", "--dataset", "folder"],
        &["train", "--dataset", "folder", "--data-dir", "nowhere"],
        &["train", "--dataset", "folder", "--data-dir", "folder"],
        &["import", "--model", "resnet8", "--weights", "picture.png", "--out", "new.safetensors"],
        &["import", "--model", "resnet8", "--weights", "foreign.safetensors", "--out", "new.safetensors"],
        &["import-check", "--samples", "nowhere.safetensors", "--logits", "foreign.safetensors"],
        &["import-check", "--samples", "foreign.safetensors", "--logits", "foreign.safetensors"],
        &["train", "--config", "nowhere.toml"],
        &["train", "--config", "typo.toml"],
        &["train", "--config", "value.toml"],
        &["train", "--config", "broken.toml"],
        &["export", "--model", "model.safetensors", "--precision", "4", "--out", "folder"],
        &["export", "--model", "model.safetensors", "--precision", "4", "--out", "nowhere/model"],
        &["export", "--model", "model.safetensors", "--precision", "4", "--out", "model.safetensors"],
        &["latency", "--model", "nowhere.safetensors"],
        &["latency", "--model", "model.safetensors", "--threads", "1"],
        &["hessian", "--model", "nowhere.safetensors"],
        &["hessian", "--model", "picture.png"],
        &["hessian", "--model", "model.safetensors", "--out", "model.safetensors"],
        &["hessian", "--model", "model.safetensors", "--out", "nowhere/traces.json"],
        &["hessian", "--model", "model.safetensors", "--plot", "folder"],
        &["hessian", "--model", "model.safetensors", "--out", "same", "--plot", "./same"],
        &["info", "nowhere.safetensors"],
        &["info", "folder"],
        &["info", "picture.png"],
        &["info", "cut.safetensors"],
        &["info", "foreign.safetensors"],
    ];
    let text = errors(folder.path(), calls);
    insta::assert_snapshot!(text);
    let damaged = error(folder.path(), &["info", "damaged.safetensors"]);
    assert!(damaged.contains("error: `damaged.safetensors`: damaged: its checksum is"), "{damaged}");
}

#[test]
fn info() {
    let folder = tempfile::tempdir().unwrap();
    let artifact = model(folder.path());
    insta::assert_snapshot!(program(folder.path()).output(&["info", "model.safetensors"]));
    let json: serde_json::Value =
        serde_json::from_str(&program(folder.path()).output(&["info", "model.safetensors", "--json"]))
            .unwrap();
    assert_eq!(json["tensor_bytes"], artifact.payload_bytes());
    assert_eq!(json["description"]["kind"], "multi-precision");
    assert_eq!(json["tensors"][0]["shape"][3], 3);

    // Many names: a few of them, and all in JSON.
    let names: Vec<String> = (0..23).map(|class| format!("kind {class}")).collect();
    let description = Description { classes: 23, class_names: names.clone(), ..artifact.description };
    let artifact = Artifact { description, ..artifact };
    artifact.save(&folder.path().join("model.safetensors")).unwrap();
    let text = program(folder.path()).output(&["info", "model.safetensors"]);
    assert!(text.contains(&format!("\nclasses     23: {} and 3 more\n", names[..20].join(", "))), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&program(folder.path()).output(&["info", "model.safetensors", "--json"]))
            .unwrap();
    assert_eq!(json["description"]["class_names"], serde_json::json!(names));
}

/// A model is named as it comes: by its flag, alone, or by the folder of its run.
#[test]
fn models_by_flag_file_and_run() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path());
    let info = |arguments: &[&str]| program(folder.path()).output(arguments);
    let shown = info(&["info", "model.safetensors"]);
    assert_eq!(info(&["info", "--model", "model.safetensors"]), shown);
    fs::write(folder.path().join("report.json"), "{}").unwrap();
    assert_eq!(info(&["info", "."]), shown);
    let both = error(folder.path(), &["info", "model.safetensors", "--model", "model.safetensors"]);
    assert!(both.contains("cannot be used together"), "{both}");
    let script = info(&["completions", "bash"]);
    assert!(script.contains("dr-train") && script.contains("--precision"), "{script}");
}

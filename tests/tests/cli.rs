//! The program's help and its one-line errors, as a user sees them.

use dr_precision::PrecisionSet;
use dr_train::artifact::{
    Artifact, ArtifactKind, Description, FORMAT_VERSION, InputShape, Normalization, TensorEntry,
};
use dr_train::config::{BatchNormKind, DatasetKind, ModelKind};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn program(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_program"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("UTF-8")
}

/// What goes to the standard output of a command that succeeds.
fn output(folder: &Path, arguments: &[&str]) -> String {
    let output = program(folder, arguments);
    assert_eq!(text(output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
    text(output.stdout)
}

/// What a failing command says. It must be short, exit with 2, print nothing else and leave the folder as it was.
fn error(folder: &Path, arguments: &[&str]) -> String {
    let before = listing(folder);
    let output = program(folder, arguments);
    let message = text(output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
    assert_eq!(text(output.stdout), "", "{arguments:?}");
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines[0].starts_with("error: "), "{message}");
    assert!(lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("hint: ")), "{message}");
    assert_eq!(listing(folder), before, "{arguments:?}");
    format!("$ dr-train {}\n{message}", arguments.join(" "))
}

fn errors(folder: &Path, calls: &[&[&str]]) -> String {
    calls.iter().map(|arguments| error(folder, arguments)).collect::<Vec<_>>().join("\n")
}

/// Every file below a folder with its content.
fn listing(folder: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            found.insert(path.display().to_string(), fs::read(&path).ok());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found
}

fn model(folder: &Path) -> Artifact {
    let description = Description {
        format_version: FORMAT_VERSION,
        kind: ArtifactKind::MultiPrecision,
        model: ModelKind::Resnet8,
        width: 16,
        input: InputShape { channels: 1, height: 8, width: 8 },
        classes: 10,
        dataset: DatasetKind::Digits,
        normalization: Normalization { mean: vec![0.305], std: vec![0.376] },
        precisions: PrecisionSet::default(),
        batch_norm: BatchNormKind::PerPrecision,
        seed: 1,
        checksum: String::new(),
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
    let help = |arguments: &[&str]| output(folder.path(), arguments);
    insta::assert_snapshot!("help", help(&["--help"]));
    assert_eq!(help(&["help"]), help(&["--help"]));
    for command in ["train", "eval", "export", "quantize", "info"] {
        insta::assert_snapshot!(format!("help-{command}"), help(&[command, "--help"]));
    }
    assert_eq!(help(&["--version"]), concat!("dr-train ", env!("CARGO_PKG_VERSION"), "\n"));
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
            &["quantize"],
            &["info"],
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
            &["train", "--alrs", "maybe"],
            &["train", "--scale-gradient", "lsq+"],
            &["train", "--batch-norm", "none"],
            &["train", "--distill", "on"],
            &["train", "--device", "tpu"],
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
        &["train", "--config", "nowhere.toml"],
        &["train", "--config", "typo.toml"],
        &["train", "--config", "value.toml"],
        &["train", "--config", "broken.toml"],
        &["export", "--model", "model.safetensors", "--precision", "4", "--out", "folder"],
        &["export", "--model", "model.safetensors", "--precision", "4", "--out", "nowhere/model"],
        &["export", "--model", "model.safetensors", "--precision", "4", "--out", "model.safetensors"],
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
    insta::assert_snapshot!(output(folder.path(), &["info", "model.safetensors"]));
    let json: serde_json::Value =
        serde_json::from_str(&output(folder.path(), &["info", "model.safetensors", "--json"])).unwrap();
    assert_eq!(json["tensor_bytes"], artifact.payload_bytes());
    assert_eq!(json["description"]["kind"], "multi-precision");
    assert_eq!(json["tensors"][0]["shape"][3], 3);
}

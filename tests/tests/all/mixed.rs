//! Mixed precision from training to a packed mixture, on the embedded digits.

use dr_tests::{Program, supernet};
use serde_json::Value;
use std::fs;
use std::sync::OnceLock;
use tempfile::TempDir;

const LAYERS: [&str; 10] = [
    "stem",
    "stages.0.0.conv1",
    "stages.0.0.conv2",
    "stages.1.0.conv1",
    "stages.1.0.conv2",
    "stages.1.0.shortcut",
    "stages.2.0.conv1",
    "stages.2.0.conv2",
    "stages.2.0.shortcut",
    "head",
];

/// A finished supernet in `run`, and plans.
fn finished() -> Program {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    Program::shared(env!("CARGO_BIN_EXE_program"), &RUN, |program| {
        // Goes through everything: 8 steps in each epoch.
        let _ = program.outputs(&supernet("2", "256", "run"));
        plan(program, "good.toml", |i| if i % 2 == 0 { "w4a2" } else { "2" });
    })
}

/// Writes a plan with the first and the last layer at 8 bits.
fn plan(program: &Program, name: &str, precision: impl Fn(usize) -> &'static str) {
    let line = |(i, layer): (usize, &&str)| {
        let text = if i == 0 || i == LAYERS.len() - 1 { "w8a8" } else { precision(i) };
        format!("\"{layer}\" = \"{text}\"\n")
    };
    let lines: String = LAYERS.iter().enumerate().map(line).collect();
    fs::write(program.at(name), format!("[layers]\n{lines}")).expect("it can be written");
}

fn eval(program: &Program, arguments: &[&str]) -> Value {
    let arguments = [&["eval", "--json", "--model", "run/model.safetensors"], arguments].concat();
    serde_json::from_str(&program.output(&arguments)).expect("JSON")
}

#[test]
fn every_step_draws_and_says_what() {
    let program = finished();
    let log = fs::read_to_string(program.at("run/draws.csv")).expect("a log of draws");
    let mut lines = log.lines();
    assert_eq!(lines.next(), Some(format!("step,{}", LAYERS.join(",")).as_str()));
    let steps: Vec<usize> = lines
        .map(|line| {
            let (step, precisions) = line.split_once(',').expect("a step");
            let precisions: Vec<&str> = precisions.split(',').collect();
            assert_eq!(precisions.len(), LAYERS.len());
            assert_eq!((precisions[0], precisions[9]), ("w8a8", "w8a8"));
            assert!(precisions.iter().all(|p| ["w8a8", "w4a4", "w2a2"].contains(p)), "{line}");
            step.parse().expect("a number")
        })
        .collect();
    // Two mixtures in each of two epochs of eight steps.
    assert_eq!(steps, (0..16).flat_map(|step| [step, step]).collect::<Vec<_>>());
}

/// A run that goes on after its first epoch ends with the same files as one that was never stopped.
#[test]
fn a_resumed_run_draws_the_same() {
    let whole = finished();
    let folder = tempfile::tempdir().expect("a folder");
    let program = Program::new(env!("CARGO_BIN_EXE_program"), folder.path());
    // The schedule is another one over one epoch: only the draws are compared.
    let _ = program.outputs(&supernet("1", "256", "run"));
    fs::remove_file(program.at("run/report.json")).expect("it was there");
    let _ = program.outputs(&["train", "--resume", "run", "--epochs", "2"]);
    let draws = |program: &Program| fs::read_to_string(program.at("run/draws.csv")).expect("a log of draws");
    assert_eq!(draws(&program), draws(&whole));
}

#[test]
fn plans_are_evaluated_and_exported() {
    let program = finished();
    let all = eval(&program, &[]);
    assert_eq!(all["precisions"].as_array().map(Vec::len), Some(3), "{all}");
    let fake = eval(&program, &["--plan", "good.toml"]);
    let integer = eval(&program, &["--plan", "good.toml", "--engine", "integer"]);
    let result = |report: &Value| {
        let result = &report["precisions"][0];
        assert_eq!(result["precision"], "mixed", "{report}");
        (result["top1"].as_f64().expect("a number"), result["model_bytes"].as_u64().expect("a number"))
    };
    let ((fake, bytes), (integer, _)) = (result(&fake), result(&integer));
    // One of 360 images.
    assert!((fake - integer).abs() < 0.3, "{fake} {integer}");

    // Outside of the folder that other tests watch.
    let elsewhere = tempfile::tempdir().expect("a folder");
    let packed = elsewhere.path().join("mixed.safetensors");
    let packed = packed.to_str().expect("UTF-8");
    let model = "run/model.safetensors";
    let _ = program.output(&["export", "--model", model, "--plan", "good.toml", "--out", packed]);
    let report = serde_json::from_str::<Value>(&program.output(&["eval", "--json", "--model", packed]));
    assert_eq!(result(&report.expect("JSON")), (fake, bytes));
    let info: Value = serde_json::from_str(&program.output(&["info", "--json", packed])).expect("JSON");
    assert_eq!(info["description"]["plan"]["stages.0.0.conv1"], "w2a2", "{info}");
    let latency = program.output(&["latency", "--samples", "2", "--json", "--model", packed]);
    let latency: Value = serde_json::from_str(&latency).expect("JSON");
    assert_eq!(latency["precisions"][0]["precision"], "mixed");
}

#[test]
fn what_cannot_be() {
    let program = finished();
    let says = |arguments: &[&str], parts: &[&str]| {
        let message = program.error(arguments);
        for part in parts {
            assert!(message.contains(part), "expected `{part}` in: {message}");
        }
    };
    let model = "run/model.safetensors";
    let folder = program.at("");
    plan(&program, "untrained.toml", |i| if i == 3 { "w6a4" } else { "4" });
    says(
        &["eval", "--model", model, "--plan", "untrained.toml"],
        &["the plan wants `stages.1.0.conv1` at w6a4", "weights of 8,4,2"],
    );
    let text = fs::read_to_string(folder.join("good.toml")).expect("a plan");
    fs::write(folder.join("unknown.toml"), text.replace("stages.0.0.conv1", "stages.7"))
        .expect("it can be written");
    says(&["eval", "--model", model, "--plan", "unknown.toml"], &["`stages.7`", "expected one of stem"]);
    fs::write(folder.join("wide.toml"), "[layers]\nstem = \"w9a9\"\n").expect("it can be written");
    says(&["eval", "--model", model, "--plan", "wide.toml"], &["wide.toml", "w9a9"]);
    fs::write(folder.join("list.toml"), "layers = [1]\n").expect("it can be written");
    says(&["eval", "--model", model, "--plan", "list.toml"], &["list.toml"]);
    says(&["eval", "--model", model, "--plan", "none.toml"], &["none.toml"]);
    says(&["eval", "--model", model, "--plan", "good.toml", "--precision", "4"], &["--plan", "--precision"]);
    says(&["export", "--model", model, "--out", "x.safetensors"], &["--precision"]);
    let float = "run/float.safetensors";
    says(
        &["eval", "--model", float, "--plan", "good.toml"],
        &["a float model: expected a multi-precision one"],
    );
    let free = ["quantize", "--model", float, "--precisions", "8,4,2", "--out", "joint.safetensors"];
    let _ = program.output(&free);
    says(
        &["export", "--model", "joint.safetensors", "--plan", "good.toml", "--out", "x.safetensors"],
        &["joint.safetensors", "the plan wants", "which the model has for it"],
    );
    assert!(!folder.join("x.safetensors").exists());

    let train = |arguments: &[&str], parts: &[&str]| {
        says(&[&["train", "--mixed", "--out", "other"], arguments].concat(), parts);
    };
    train(&["--precisions", "4"], &["--mixed with w4a4", "two precisions"]);
    train(&["--batch-norm", "shared"], &["--batch-norm shared", "per-precision"]);
    train(&["--draws", "0"], &["draws 0", "from 1 to 64"]);
    train(&["--sampling", "best"], &["--sampling", "hasb, uniform"]);
    says(&["train", "--resume", "run", "--mixed=off"], &["--mixed off", "cannot change"]);
    says(&["train", "--resume", "run", "--sampling", "uniform"], &["--sampling uniform", "cannot change"]);
}

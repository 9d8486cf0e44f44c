//! `dr-train search` on a supernet that the program trained.

use dr_tests::{Program, supernet};
use serde_json::Value;
use std::fs;
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder with a finished supernet in `run`, which has its traces, too.
fn finished() -> Program {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    Program::shared(env!("CARGO_BIN_EXE_program"), &RUN, |program| {
        let _ = program.outputs(&supernet("1", "128", "run"));
    })
}

const SEARCH: [&str; 5] = ["search", "--model", "run/model.safetensors", "--traces", "run/traces.json"];

fn search(more: &[&str]) -> String {
    finished().output(&[&SEARCH[..], more].concat())
}

fn found(more: &[&str]) -> Value {
    serde_json::from_str(&search(&[more, &["--json"]].concat())).expect("JSON")
}

#[track_caller]
fn refused(arguments: &[&str], parts: &[&str]) {
    let message = finished().error(arguments);
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

#[test]
fn a_plan_is_found_saved_and_used() {
    let program = finished();
    // Another test watches what is written to the run's folder.
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (plan, picture, packed) = (at("plan.toml"), at("front.svg"), at("packed.safetensors"));
    let table = search(&["--budget", "avg-bits=4", "--out", &plan, "--pareto", &picture]);
    for part in [
        "average trace",
        "stages.2.0.shortcut",
        "budget             avg-bits=4\n",
        "predicted loss",
        "bit operations",
        "best 2",
        "w2a2",
        &format!("\nwrote {plan} and {picture}\n"),
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
    let text = fs::read_to_string(&plan).expect("a plan");
    for part in
        ["model = \"resnet8\"", "budget = \"avg-bits=4\"", "average-bits = ", "[layers]\nstem = \"w8a8\"\n"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let svg = fs::read_to_string(&picture).expect("a picture");
    assert!(svg.starts_with("<svg") && svg.contains("w4a4") && svg.contains("Average bits of a weight"));

    let json = found(&["--budget", "avg-bits=4"]);
    let export = ["export", "--model", "run/model.safetensors", "--plan", &plan, "--out", &packed];
    let exported = program.output(&export);
    let bytes = json["bytes"].as_u64().expect("bytes").to_string();
    assert!(exported.replace(',', "").contains(&format!("{bytes} bytes")), "{exported}: {bytes}");
    assert!(json["average_bits"].as_f64().expect("bits") <= 4.0);
    assert_eq!(json["layers"].as_array().map(Vec::len), Some(10));
    assert_eq!(json["plan"]["head"], "w8a8");
}

#[test]
fn every_kind_of_budget() {
    for (budget, name, most) in [
        ("size=30KB", "bytes", 30_000.0),
        ("bitops=20M", "bit_ops", 20_000_000.0),
        ("latency=10s", "predicted_nanoseconds", 1e10),
    ] {
        let samples: &[&str] = if budget.starts_with("latency") { &["--samples", "2"] } else { &[] };
        let json = found(&[&["--budget", budget, "--threads", "1"], samples].concat());
        assert_eq!(json["budget"], budget);
        assert!(json[name].as_f64().expect(name) <= most, "{json}");
        assert_eq!(json["measured_nanoseconds"].is_u64(), budget.starts_with("latency"), "{json}");
    }
    let (together, separate) =
        (found(&["--budget", "size=30KB"]), found(&["--budget", "size=30KB", "--widths", "separate"]));
    let loss = |json: &Value| json["predicted_loss"].as_f64().expect("a loss");
    assert!(loss(&separate) <= loss(&together));
    assert!(loss(&found(&["--budget", "size=30KB", "--objective", "weights"])) < loss(&together));
}

#[test]
fn pinned_layers() {
    let pins = ["--pin", "stages.1.0.conv1=w8a2", "--pin", "stages.2.0.conv2=2"];
    let json = found(&[&["--budget", "avg-bits=4"], &pins[..]].concat());
    assert_eq!(json["plan"]["stages.1.0.conv1"], "w8a2");
    assert_eq!(json["plan"]["stages.2.0.conv2"], "w2a2");
}

#[test]
fn what_does_not_fit_is_refused() {
    let program = finished();
    let all = |more: &[&'static str]| [&SEARCH[..], more].concat();
    refused(
        &all(&["--budget", "avg-bits=1.9"]),
        &["budget `avg-bits=1.9` is too small", "possible is `avg-bits=2`"],
    );
    refused(
        &all(&["--budget", "size=5KB"]),
        &["budget `size=5KB` is too small", "smallest possible is `size="],
    );
    refused(&all(&["--budget", "bitops=1"]), &["smallest possible is `bitops="]);
    refused(&all(&["--budget", "latency=1ns", "--samples", "1"]), &["smallest possible is `latency="]);
    refused(
        &all(&["--budget", "avg-bits=8", "--pin", "stage=8"]),
        &["pin `stage`", "expected one of stem, "],
    );
    refused(&all(&["--budget", "avg-bits=8", "--pin", "head=4"]), &["pin `head=w4a4`", "weights of 8"]);

    let float = ["search", "--model", "run/float.safetensors", "--budget", "avg-bits=4"];
    refused(
        &float,
        &[
            "run/float.safetensors`: a float model: expected a multi-precision, nested or calibrated one",
            "hint: ",
            "--mixed",
        ],
    );
    let quantize = ["quantize", "--model", "run/float.safetensors", "--out", "joint.safetensors"];
    let _ = program.output(&quantize);
    let joint = ["search", "--model", "joint.safetensors", "--budget", "avg-bits=4"];
    let traces = [&joint[..], &["--traces", "traces.json"]].concat();
    refused(&traces, &["--traces traces.json: a calibrated model: expected --inputs"]);
    refused(&all(&["--budget", "avg-bits=4", "--inputs", "."]), &["--inputs .: a multi-precision model"]);
    for flag in [["--widths", "separate"], ["--objective", "weights"]] {
        let expected =
            format!("{}: a calibrated model has no use for it: expected a model that was", flag[0]);
        refused(&[&joint[..], &flag].concat(), &[&expected]);
    }
    for (flag, says) in [
        (["--samples", "3"], "--samples: a search with --budget avg-bits=4 has no use for it"),
        (["--batch", "3"], "--batch: a search with --budget avg-bits=4 has no use for it"),
        (["--limit", "3"], "--limit: a multi-precision model has no use for it: expected a calibrated model"),
        (["--seed", "3"], "--seed: a search with --traces has no use for it"),
    ] {
        refused(&[&all(&["--budget", "avg-bits=4"])[..], &flag].concat(), &[says]);
    }
    refused(
        &all(&["--budget", "avg-bits=4", "--objective", "weights", "--data-dir", "x"]),
        &["--data-dir: a search with --traces and --objective weights has no use for it"],
    );
    // Training images of its dataset.
    let text = program.output(&[&joint[..], &["--limit", "32", "--out", "joint.toml"]].concat());
    assert!(text.contains("wrote joint.toml"), "{text}");
    refused(
        &["export", "--model", "joint.safetensors", "--plan", "joint.toml", "--out", "x", "--data-dir", "y"],
        &[
            "--data-dir: `joint.safetensors`, without BatchNorm, has no use for it: expected it with --samples",
        ],
    );
    let text = program.output(&[
        "latency",
        "--model",
        "joint.safetensors",
        "--plan",
        "joint.toml",
        "--samples",
        "1",
    ]);
    assert!(text.contains("mixed"), "{text}");

    let traces = fs::read_to_string(program.at("run/traces.json")).expect("traces");
    fs::write(program.at("other.json"), traces.replace("stages.1.0.conv1", "stages.1.0.conv9"))
        .expect("a file");
    fs::write(program.at("cut.json"), &traces[..traces.len() / 2]).expect("a file");
    let with = |file: &'static str| {
        ["search", "--model", "run/model.safetensors", "--budget", "avg-bits=4", "--traces", file]
    };
    refused(
        &with("other.json"),
        &["other.json`: the traces have the layer `stages.1.0.conv9`", "`stages.1.0.conv1`"],
    );
    refused(&with("cut.json"), &["cut.json`: not traces", "dr-train hessian --out"]);
    refused(&with("nowhere.json"), &["nowhere.json`: cannot be read"]);
    refused(
        &all(&["--budget", "avg-bits=4", "--out", "run/model.safetensors"]),
        &["--out `run/model.safetensors`: is also the --model"],
    );
}

//! The program from training to export, on the embedded digits.

use dr_precision::{Precision, PrecisionSet};
use dr_tests::{Program, epochs, text};
use dr_train::artifact::{Artifact, ArtifactKind, SavedModel};
use dr_train::report::save_grid;
use proptest::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::fs;
use std::sync::OnceLock;
use tempfile::TempDir;

/// The shortest training that goes through everything.
const SHORT: [&str; 7] = ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "256"];

fn short<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SHORT[..], more].concat()
}

fn program(folder: &TempDir) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder.path())
}

/// One finished run in `run`, for all tests that only look at it.
fn finished() -> Program {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    let folder = RUN.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let (table, log) = program(&folder).outputs(&short(&["--out", "run"]));
        assert_eq!(epochs(&log), 2, "{log}");
        for row in ["float", "w8a8", "w6a6", "w4a4", "w2a2", "wrote run/model.safetensors"] {
            assert!(table.contains(row), "{table}");
        }
        folder
    });
    program(folder)
}

fn report(program: &Program, folder: &str) -> Value {
    let json = fs::read(program.at(folder).join("report.json")).expect("a report");
    serde_json::from_slice(&json).expect("JSON")
}

/// A report without what differs from run to run.
fn results(mut report: Value) -> Value {
    let fields = report.as_object_mut().expect("an object");
    for name in ["seconds", "float_epoch_seconds", "joint_epoch_seconds"] {
        fields.remove(name);
    }
    for epoch in fields["history"].as_array_mut().expect("a list") {
        epoch.as_object_mut().expect("an object").remove("seconds");
    }
    report
}

fn eval(program: &Program, arguments: &[&str]) -> Value {
    let arguments = [&["eval", "--json", "--model"], arguments].concat();
    serde_json::from_str(&program.output(&arguments)).expect("JSON")
}

#[test]
fn a_run_leaves_a_report_and_a_model() {
    let program = finished();
    let report = report(&program, "run");
    for (name, value) in [("dataset", "digits"), ("model", "resnet8"), ("device", "flex")] {
        assert_eq!(report[name], value);
    }
    assert_eq!(report["seed"], 1);
    assert_eq!(report["test_images"], 360);
    assert!(report["seconds"].as_f64() > Some(0.0));
    assert!(report["float"]["top1"].is_f64());
    let names: Vec<&Value> = (0..4).map(|i| &report["precisions"][i]["precision"]).collect();
    assert_eq!(names, ["w8a8", "w6a6", "w4a4", "w2a2"]);
    let phases: Vec<&Value> = (0..2).map(|i| &report["history"][i]["phase"]).collect();
    assert_eq!(phases, ["float", "joint"]);
    assert!(fs::read_to_string(program.at("run/report.svg")).expect("a picture").starts_with("<svg"));

    let artifact = Artifact::open(&program.at("run/model.safetensors")).expect("an artifact");
    assert_eq!(artifact.description.kind, ArtifactKind::MultiPrecision);
    assert_eq!(artifact.description.precisions, PrecisionSet::default());
    let float = Artifact::open(&program.at("run/float.safetensors")).expect("an artifact");
    assert_eq!(float.description.kind, ArtifactKind::Float);
}

#[test]
fn evaluation_agrees_with_the_report() {
    let program = finished();
    let report = report(&program, "run");
    for all in [&["run/model.safetensors"][..], &["run/model.safetensors", "--all"]] {
        let found = eval(&program, all);
        assert_eq!(found["precisions"], report["precisions"]);
        assert_eq!(found["test_images"], report["test_images"]);
    }
    assert_eq!(eval(&program, &["run/float.safetensors"])["float"], report["float"]);
    let one = eval(&program, &["run/model.safetensors", "--precision", "w4a4"]);
    assert_eq!(one["precisions"].as_array().map(Vec::len), Some(1));
    assert_eq!(one["precisions"][0], report["precisions"][2]);
    // The folder of a run stands for its model.
    let model = eval(&program, &["run/model.safetensors"]);
    assert_eq!(eval(&program, &["run"])["precisions"], model["precisions"]);
    let latency = ["latency", "--samples", "3", "--json", "--model"];
    let latency: Value =
        serde_json::from_str(&program.output(&[&latency[..], &["run"]].concat())).expect("JSON");
    assert!(latency.to_string().contains("w4a4"), "{latency}");
}

/// Logits of another runtime: here our own, and with a class that differs.
#[test]
fn other_runtimes_are_compared() {
    let program = finished();
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (out, samples, other) = (at("w4a4"), at("samples"), at("other"));
    let model = "run/model.safetensors";
    let export = ["export", "--model", model, "--precision", "4", "--out", &out, "--samples", &samples];
    let _ = program.output(&[&export[..], &["--images", "8"]].concat());
    let check = |logits: &str, more: &[&str]| {
        program.run(&[&["import-check", "--samples", &samples, "--logits", logits], more].concat())
    };
    let same = check(&samples, &["--json"]);
    assert_eq!(same.status.code(), Some(0));
    let same: Value = serde_json::from_slice(&same.stdout).expect("JSON");
    assert_eq!((&same["images"], &same["same"]), (&8.into(), &100.0.into()));
    let bytes = fs::read(&samples).expect("samples");
    let file = SafeTensors::deserialize(&bytes).expect("a file of tensors");
    let logits = file.tensor("logits").expect("logits");
    let mut data = logits.data().to_vec();
    // The first image, whose ten logits are turned round.
    for (at, value) in logits.data()[..40].chunks(4).rev().enumerate() {
        data[4 * at..][..4].copy_from_slice(value);
    }
    let view = TensorView::new(logits.dtype(), logits.shape().to_vec(), &data).expect("logits");
    fs::write(&other, safetensors::serialize([("logits", view)], None).expect("a file"))
        .expect("it can be written");
    let found = check(&other, &["--least", "99.5"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    assert!(text(found.stdout).starts_with("8 images: 87.50 % get the same class; "));
    assert_eq!(check(&other, &["--least", "80"]).status.code(), Some(0));
}

/// What commands with tables print as JSON is one document.
#[test]
fn results_in_json() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let json = |arguments: &[&str]| -> Value {
        serde_json::from_str(&program.outputs(arguments).0).expect("one document")
    };
    assert_eq!(json(&short(&["--json", "--out", "run"])), report(&program, "run"));
    let quantize =
        ["quantize", "--model", "run/float.safetensors", "--precisions", "w8a8,w4a8", "--out", "q"];
    let table = program.output(&quantize);
    let found = json(&[&quantize[..], &["--json"]].concat());
    assert_eq!((&found["file"], &found["kind"]), (&"q".into(), &"calibrated".into()));
    let layers = found["layers"].as_array().expect("a list");
    assert_eq!(layers.len(), table.lines().count() - 3);
    for (layer, line) in layers.iter().zip(table.lines().skip(2)) {
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(layer["name"], cells[0]);
        for (precision, cell) in ["w8a8", "w4a8"].into_iter().zip(&cells[1..]) {
            let ratio = layer["signal_to_noise_db"][precision].as_f64().expect("a number");
            assert_eq!(format!("{ratio:.1}"), *cell, "{line}");
        }
    }
    let distill =
        ["train", "--model", "run/float.safetensors", "--distill", "--data-dir", "inputs", "--json"];
    fs::create_dir(program.at("inputs")).expect("a folder");
    for at in 0..4u8 {
        let pixels: Vec<u8> = (0..192u8).map(|i| i.wrapping_mul(at * 2 + 1)).collect();
        save_grid(&program.at("inputs").join(format!("{at}.png")), &[pixels], 8, 8, 1).expect("a picture");
    }
    let found =
        json(&[&distill[..], &["--epochs", "1", "--precisions", "w8a8,w4a8", "--out", "distilled"]].concat());
    let losses = found["training"]["held_out_losses"].as_array().expect("a list");
    assert_eq!(losses.iter().map(|of| &of["precision"]).collect::<Vec<_>>(), ["w8a8", "w4a8"]);
    assert!(losses.iter().all(|of| of["before"].as_f64() > Some(0.0)), "{found}");
}

#[test]
fn integers_give_the_same_predictions() {
    let program = finished();
    let folder = tempfile::tempdir().expect("a folder");
    let export = folder.path().join("w4a4").display().to_string();
    let model = "run/model.safetensors";
    let _ = program.output(&["export", "--model", model, "--precision", "4", "--out", &export]);
    for model in [model, &export] {
        let (fake, integer) = (eval(&program, &[model]), eval(&program, &[model, "--engine", "integer"]));
        let rows = |report: &Value| report["precisions"].as_array().expect("a list").clone();
        assert_eq!(rows(&fake).len(), rows(&integer).len());
        for (fake, integer) in rows(&fake).iter().zip(rows(&integer)) {
            let number = |row: &Value, name: &str| row[name].as_f64().expect("a number");
            // One of 360 images may lie on the edge.
            assert!((number(fake, "top1") - number(&integer, "top1")).abs() < 0.3, "{fake} {integer}");
            assert!((number(fake, "loss") - number(&integer, "loss")).abs() < 2e-3, "{fake} {integer}");
            for same in ["precision", "model_bytes"] {
                assert_eq!(fake[same], integer[same]);
            }
        }
    }
}

#[test]
fn latency_is_measured_at_every_precision() {
    let program = finished();
    let arguments = ["latency", "--model", "run/model.safetensors", "--samples", "3", "--threads", "1"];
    let json = program.output(&[&arguments[..], &["--batch", "2", "--json"]].concat());
    let found: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(found["model"], "run/model.safetensors");
    assert_eq!((&found["batch"], &found["threads"]), (&2.into(), &1.into()));
    assert_eq!(found["device"], "flex");
    assert!(found["float"]["ms"].as_f64() > Some(0.0));
    let rows = found["precisions"].as_array().expect("a list");
    let names: Vec<&Value> = rows.iter().map(|row| &row["precision"]).collect();
    assert_eq!(names, ["w8a8", "w6a6", "w4a4", "w2a2"]);
    assert!(rows.iter().all(|row| row["ms"].as_f64() > Some(0.0)));
    assert!(rows.is_sorted_by(|a, b| a["model_bytes"].as_u64() > b["model_bytes"].as_u64()));

    let table = program.output(&arguments);
    assert_eq!(table.lines().count(), 9, "{table}");
    assert!(table.ends_with("\nbatch 1, threads 1, device flex\n"), "{table}");
}

#[test]
fn an_export_computes_what_the_model_does() {
    let program = finished();
    let report = report(&program, "run");
    for (i, precision) in ["w8a8", "w6a6", "w4a4", "w2a2"].into_iter().enumerate() {
        let file = format!("{precision}.safetensors");
        let written = program.output(&[
            "export",
            "--model",
            "run/model.safetensors",
            "--precision",
            precision,
            "--out",
            &file,
        ]);
        assert!(written.starts_with(&format!("wrote {file}: packed {precision}, ")), "{written}");
        assert_eq!(eval(&program, &[&file])["precisions"][0], report["precisions"][i], "{precision}");
        let artifact = Artifact::open(&program.at(&file)).expect("an artifact");
        assert_eq!(
            artifact.description.kind,
            ArtifactKind::Packed(precision.parse::<Precision>().expect("one"))
        );
        assert_eq!(artifact.payload_bytes() as u64, report["precisions"][i]["model_bytes"]);
    }
    // The first and the last layer stay at 8 bits, and BatchNorm at 32.
    let bytes = |i: usize| report["precisions"][i]["model_bytes"].as_f64().expect("a number");
    let ratio = bytes(3) / bytes(0);
    assert!((0.2..0.4).contains(&ratio), "{ratio}");
}

#[test]
fn a_float_model_can_be_quantized_without_training() {
    let program = finished();
    let written = program.output(&[
        "quantize",
        "--model",
        "run/float.safetensors",
        "--precisions",
        "8,w4a8",
        "--out",
        "free.safetensors",
    ]);
    assert!(written.starts_with("signal to noise (dB)  w8a8  w4a8  outputs, alone at w8a8\n"), "{written}");
    assert!(written.contains("\nstages.0.0.conv1 ") && written.contains("\nhead "), "{written}");
    assert!(written.contains("wrote free.safetensors: calibrated, "), "{written}");
    let found = eval(&program, &["free.safetensors"]);
    let float = report(&program, "run")["float"]["top1"].as_f64().expect("a number");
    let eight = found["precisions"][0]["top1"].as_f64().expect("a number");
    assert!((eight - float).abs() < 5.0, "{eight} {float}");
    assert_eq!(found["precisions"][1]["precision"], "w4a8");
    // The same in integers, next to the float network; and again of a file of one precision.
    let compare = ["--engine", "integer", "--compare", "run/float.safetensors"];
    let integers = eval(&program, &[&["free.safetensors"], &compare[..]].concat());
    let [wide, narrow] = [0, 1].map(|at| &integers["precisions"][at]["agreement"]);
    assert!(wide["divergence"].as_f64().expect("a number") < 0.01, "{wide}");
    assert!(narrow["relative_error"].as_f64() > wide["relative_error"].as_f64(), "{narrow} {wide}");
    let _ = program.output(&[
        "export",
        "--model",
        "free.safetensors",
        "--precision",
        "w4a8",
        "--out",
        "w4a8.safetensors",
    ]);
    let exported = eval(&program, &[&["w4a8.safetensors"], &compare[..]].concat());
    assert_eq!(exported["precisions"][0]["agreement"], *narrow);
    let _ = program.output(&["info", "w4a8.safetensors"]);
    let _ = program.output(&["latency", "--model", "free.safetensors", "--samples", "1"]);
    let _ = program.output(&[
        "export",
        "--model",
        "free.safetensors",
        "--precision",
        "w4a8",
        "--out",
        "w4a8.onnx",
    ]);
}

#[test]
fn the_same_seed_gives_the_same_files() {
    let program = finished();
    let folder = tempfile::tempdir().expect("a folder");
    let again = self::program(&folder);
    let _ = again.outputs(&short(&["--out", "run"]));
    assert_eq!(results(report(&again, "run")), results(report(&program, "run")));
    for name in ["run/model.safetensors", "run/float.safetensors"] {
        assert!(
            fs::read(again.at(name)).expect("a file") == fs::read(program.at(name)).expect("a file"),
            "{name}"
        );
    }
    let _ = again.outputs(&short(&["--out", "other", "--seed", "2"]));
    assert_ne!(report(&again, "other")["float"], report(&program, "run")["float"]);
}

#[test]
fn a_finished_run_is_only_measured_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let _ = program.outputs(&short(&["--baseline", "single", "--precisions", "4,2"]));
    let run = "runs/digits-resnet8";
    let (before, model) =
        (report(&program, run), fs::read(program.at(run).join("model.safetensors")).expect("it"));
    let names: Vec<&Value> = (0..3).map(|i| &before["single"][i]["precision"]).collect();
    assert_eq!(names, ["float", "w4a4", "w2a2"]);
    assert_eq!(before["history"].as_array().map(Vec::len), Some(2), "separate networks are not part of it");
    // The float one has as many epochs as both trainings together, the others as joint training.
    for (network, epochs) in [("float", 2), ("w4a4", 1), ("w2a2", 1)] {
        let path = program.at(run).join("single").join(network).join("history.json");
        let history: Value = serde_json::from_slice(&fs::read(path).expect("a history")).expect("JSON");
        assert_eq!(history["epochs"].as_array().map(Vec::len), Some(epochs), "{network}");
    }

    let (_, log) = program.outputs(&["train", "--resume", run]);
    assert_eq!(epochs(&log), 0, "{log}");
    assert_eq!(results(report(&program, run)), results(before));
    assert!(fs::read(program.at(run).join("model.safetensors")).expect("it") == model);

    // Without flags, the next run has a folder of its own, unless one waits to be resumed.
    let _ = program.outputs(&short(&[]));
    assert!(program.at("runs/digits-resnet8-2/report.json").is_file());
    fs::remove_file(program.at("runs/digits-resnet8-2/report.json")).expect("it is there");
    let message = program.error(&SHORT);
    assert!(message.contains("`runs/digits-resnet8-2`: holds a run that is not finished"), "{message}");
    let message = program.error(&short(&["--out", run]));
    assert!(message.contains("holds a run already"), "{message}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_corrupted_model_never_loads(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..6),
        cut in prop::option::weighted(0.3, any::<prop::sample::Index>()),
        header in any::<bool>(),
    ) {
        static GOOD: OnceLock<Vec<u8>> = OnceLock::new();
        let good = GOOD.get_or_init(|| fs::read(finished().at("run/model.safetensors")).expect("a model"));
        let mut bytes = good.clone();
        for (at, change) in changes {
            // Half of the time where the structure is, not somewhere in the codes.
            let at = at.index(if header { 8192.min(bytes.len()) } else { bytes.len() });
            bytes[at] = bytes[at].wrapping_add(change);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let loaded = Artifact::from_bytes(&bytes);
        prop_assert_eq!(loaded.is_ok(), bytes == *good);
        if let Err(error) = loaded {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}

#[test]
fn products_can_have_sixteen_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    for compute in ["bf16", "f16"] {
        let (table, _) = program.outputs(&short(&["--compute", compute, "--out", compute]));
        assert!(table.contains("w2a2"), "{table}");
        let top1 = report(&program, compute)["precisions"][0]["top1"].as_f64().expect("a number");
        assert!(top1 > 30.0, "{compute}: {top1}");
    }
}

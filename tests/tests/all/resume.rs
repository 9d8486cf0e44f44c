//! Runs that are killed, stopped or damaged, and resumed.

use dr_tests::{Program, epochs, listing, text};
use dr_train::artifact::{Artifact, SavedModel};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Two float and three joint epochs.
const FRESH: [&str; 9] =
    ["train", "--float-epochs", "2", "--epochs", "3", "--limit-train", "128", "--out", "run"];
const EPOCHS: usize = 5;
const RESUME: [&str; 3] = ["train", "--resume", "run"];

fn program(folder: &TempDir) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder.path())
}

/// The model of an uninterrupted run, and how long that took.
fn uninterrupted() -> (Vec<u8>, Duration) {
    let folder = tempfile::tempdir().expect("a folder");
    let started = Instant::now();
    let (_, log) = program(&folder).outputs(&FRESH);
    assert_eq!(epochs(&log), EPOCHS);
    (fs::read(folder.path().join("run/model.safetensors")).expect("a model"), started.elapsed())
}

fn assert_no_leftovers(folder: &Path) {
    let leftover = listing(folder)
        .into_keys()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".writing-")));
    assert_eq!(leftover, None);
}

#[test]
fn a_killed_run_loses_at_most_an_epoch_and_ends_the_same() {
    let (expected, time) = uninterrupted();
    // Fractions of the whole time, spread without pattern; each run is killed again and again.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut fraction = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 40) as f64 / f64::from(1 << 24)
    };
    for round in 0..4 {
        let folder = tempfile::tempdir().expect("a folder");
        let program = program(&folder);
        let (mut trained, mut kills) = (0, 0);
        for _ in 0..3 {
            let started = folder.path().join("run/config.json").is_file();
            let mut child = program.start(if started { &RESUME } else { &FRESH }, "log");
            sleep(time.mul_f64(0.05 + 0.9 * fraction() * if started { 0.6 } else { 1.0 }));
            let over = child.try_wait().expect("a process").is_some();
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
            trained += epochs(&fs::read_to_string(program.at("log")).expect("a log"));
            if over {
                break;
            }
            kills += 1;
            // Whatever there is under its final name is whole.
            for name in ["run/float.safetensors", "run/model.safetensors"] {
                let path = program.at(name);
                assert!(!path.exists() || Artifact::open(&path).is_ok(), "{name}");
            }
        }
        let started = folder.path().join("run/config.json").is_file();
        let (_, log) = program.outputs(if started { &RESUME } else { &FRESH });
        trained += epochs(&log);
        assert!(
            (EPOCHS..=EPOCHS + kills).contains(&trained),
            "{round}: {trained} epochs, {kills} kills: {log}"
        );
        let model = fs::read(program.at("run/model.safetensors")).expect("a model");
        assert!(model == expected, "{round}: another model than without a kill");
        assert_no_leftovers(folder.path());
    }
}

#[test]
fn damaged_checkpoints_are_passed_over() {
    let (expected, _) = uninterrupted();
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let _ = program.outputs(&FRESH);
    let checkpoints = folder.path().join("run/joint/checkpoint");
    for part in ["model", "optim", "scheduler"] {
        let last = checkpoints.join(format!("{part}-3.bpk"));
        let content = fs::read(&last).expect("a checkpoint");
        fs::write(&last, &content[..content.len() / 4]).expect("it can be written");
        for folder in ["run", "run/joint", "run/joint/checkpoint"] {
            fs::write(program.at(&format!("{folder}/.writing-x")), "half of it").expect("it can be written");
        }
        let (_, log) = program.outputs(&RESUME);
        assert_eq!(epochs(&log), 1, "{part}: {log}");
        assert!(fs::read(program.at("run/model.safetensors")).expect("a model") == expected, "{part}");
        assert_no_leftovers(folder.path());
    }
    // A checkpoint of which only the network is there leaves no trace in what starts anew.
    for epoch in 1..=3 {
        let _ = fs::remove_file(checkpoints.join(format!("optim-{epoch}.bpk")));
    }
    let (_, log) = program.outputs(&RESUME);
    assert_eq!(epochs(&log), 3, "{log}");
    assert!(fs::read(program.at("run/model.safetensors")).expect("a model") == expected);
    // The history is not needed to have a model, nor any checkpoint.
    fs::remove_dir_all(folder.path().join("run/joint")).expect("it is there");
    let (_, log) = program.outputs(&RESUME);
    assert_eq!(epochs(&log), 3, "{log}");
    assert!(fs::read(program.at("run/model.safetensors")).expect("a model") == expected);
}

#[test]
fn averages_and_mixtures_go_on_where_they_were() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let options =
        ["--ema", "0.9", "--augment", "crop,colour,rand", "--mixup", "0.4", "--label-smoothing", "0.1"];
    let _ = program.outputs(&[&FRESH[..], &options].concat());
    let model = || fs::read(program.at("run/model.safetensors")).expect("a model");
    let expected = model();
    fs::remove_file(program.at("run/joint/checkpoint/model-3.bpk")).expect("a checkpoint");
    let (_, log) = program.outputs(&RESUME);
    assert_eq!(epochs(&log), 1, "{log}");
    assert!(model() == expected);
    let error = program.error(&[&RESUME[..], &["--ema", "0.5"]].concat());
    assert!(error.contains("--ema 0.5: the run in `run` has 0.9, which cannot change"), "{error}");
}

#[test]
fn a_training_without_progress_ends_early_and_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    // Steps that are too small to change an answer.
    let still =
        ["--patience", "2", "--lr", "1e-9", "--joint-lr", "1e-9", "--scale-lr", "0", "--anneal-float", "off"];
    let fresh = ["train", "--float-epochs", "9", "--epochs", "9", "--limit-train", "64", "--out", "run"];
    let (_, log) = program.outputs(&[&fresh[..], &still].concat());
    assert!(
        log.contains("float training ends after epoch 3: no validation was better than that of epoch 1"),
        "{log}"
    );
    assert!(log.contains("joint training ends after epoch "), "{log}");
    assert!(epochs(&log) < 18, "{log}");
    let (_, log) = program.outputs(&RESUME);
    assert_eq!(epochs(&log), 0, "{log}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_and_leaves_a_run_to_resume() {
    let (expected, time) = uninterrupted();
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let mut child = program.start(&FRESH, "log");
    let deadline = Instant::now() + time * 20;
    while epochs(&fs::read_to_string(program.at("log")).expect("a log")) < 2 {
        assert!(Instant::now() < deadline, "no epoch in time");
        sleep(Duration::from_millis(5));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    let log = fs::read_to_string(program.at("log")).expect("a log");
    assert!(log.contains("hint: `dr-train train --resume run` goes on"), "{log}");
    let (_, rest) = program.outputs(&RESUME);
    assert!((EPOCHS..=EPOCHS + 1).contains(&(epochs(&log) + epochs(&rest))), "{log}{rest}");
    assert!(fs::read(program.at("run/model.safetensors")).expect("a model") == expected);
}

#[test]
fn a_loss_that_is_not_finite_keeps_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    // Grows the weights ten thousandfold in a step.
    let output = program.run(&[
        "train",
        "--float-epochs",
        "20",
        "--epochs",
        "1",
        "--limit-train",
        "64",
        "--weight-decay",
        "1e5",
        "--out",
        "run",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(output.stderr);
    let error = message.lines().find(|line| line.starts_with("error: ")).expect("an error");
    assert!(error.contains("float training: the loss is not finite in epoch"), "{message}");
    let checkpoint = error.split('`').nth(1).expect("a file in backticks");
    assert!(checkpoint.starts_with("run/float/checkpoint/model-"), "{message}");
    assert!(program.at(checkpoint).is_file(), "{message}");
    assert!(!program.at("run/float.safetensors").exists() && !program.at("run/report.json").exists());
}

#[test]
fn two_trainings_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(&folder);
    let mut first = program.start(
        &["train", "--float-epochs", "500", "--epochs", "1", "--limit-train", "128", "--out", "run"],
        "log",
    );
    let deadline = Instant::now() + Duration::from_secs(120);
    while !program.at("run/config.json").is_file() {
        assert!(Instant::now() < deadline, "no training in time");
        sleep(Duration::from_millis(5));
    }
    let second = program.run(&RESUME);
    let running = first.try_wait().expect("a process").is_none();
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    assert!(running, "the first training goes on");
    let message = text(second.stderr);
    let expected = "error: `run`: another training writes to this folder: expected one of its own, or that the other ends\n";
    assert_eq!((message.as_str(), second.status.code()), (expected, Some(1)));
    // Of two that begin together, one trains.
    let begin = || {
        let short = ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "64", "--out", "both"];
        (program.start(&short, "one.log"), program.start(&short, "other.log"))
    };
    let (mut one, mut other) = begin();
    let mut codes = [&mut one, &mut other].map(|child| child.wait().expect("it ends").code());
    codes.sort_unstable();
    assert!(matches!(codes, [Some(0), Some(1 | 2)]), "{codes:?}");
    assert!(program.at("both/report.json").is_file());
    // A training that was killed has let go of it.
    let again = ["train", "--resume", "run", "--float-epochs", "1"];
    assert_eq!(program.run(&again).status.code(), Some(0));
}

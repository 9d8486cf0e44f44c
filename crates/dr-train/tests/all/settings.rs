//! Where a setting comes from: flags over the file over the defaults of the dataset.

use dr_train::cli::{Cli, Command, CommandError, ResolvedTraining};
use dr_train::config::{Batches, Distill, OptimizerKind, Rates, TrainConfig};
use dr_train::data::{CIFAR10, DatasetKind, Digits, FASHION_MNIST, MNIST, Text};
use dr_train::experiment::Registry;
use std::fs;
use std::path::{Path, PathBuf};

fn resolve(arguments: &[&str]) -> Result<ResolvedTraining, CommandError> {
    let cli = Cli::read(&Registry::default(), ["dr-train", "train"].iter().chain(arguments)).unwrap();
    match cli.command {
        Some(Command::Train(args)) => args.resolve(&Registry::default()),
        other => panic!("{other:?}"),
    }
}

fn message(arguments: &[&str]) -> String {
    resolve(arguments).unwrap_err().to_string()
}

fn file(folder: &Path, content: &str) -> String {
    let path = folder.join("settings.toml");
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn nothing_given() {
    let resolved = resolve(&[]).unwrap();
    assert_eq!(resolved.config, Digits.settings());
    assert_eq!(resolved.out, PathBuf::from("runs/digits-resnet8"));
    assert!(!resolved.resume);
}

#[test]
fn rates_go_with_the_optimizer_and_the_start() {
    let rates = |arguments: &[&str]| {
        let TrainConfig { lr, joint_lr, scale_lr, .. } = resolve(arguments).unwrap().config;
        Rates { lr, joint_lr, scale_lr }
    };
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::AdamW] {
        let given = ["--optimizer", optimizer.name()];
        let trained = [&given[..], &["--weights", "w.pth"]].concat();
        let own = [&trained[..], &["--lr", "0.5", "--scale-lr", "0.25"]].concat();
        assert_eq!(rates(&given), Rates::usual(optimizer, false));
        assert_eq!(rates(&trained), Rates::usual(optimizer, true));
        assert_eq!(rates(&own), Rates { lr: 0.5, scale_lr: 0.25, ..Rates::usual(optimizer, true) });
    }
    assert_eq!(rates(&[]), Rates::usual(OptimizerKind::Sgd, false));
    // A dataset has its own for its own optimizer.
    let text = ["--dataset", "text"];
    assert_eq!(rates(&text).lr, Text.settings().lr);
    assert_eq!(rates(&[&text[..], &["--optimizer", "adamw"]].concat()).lr, Text.settings().lr);
    let sgd = [&text[..], &["--optimizer", "sgd"]].concat();
    assert_eq!(rates(&sgd), Rates::usual(OptimizerKind::Sgd, false));
    let trained = [&text[..], &["--weights", "llama"]].concat();
    assert_eq!(rates(&trained), Rates::usual(OptimizerKind::AdamW, true));
}

#[test]
fn the_file_fills_in_and_flags_win() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(
        folder.path(),
        "dataset = 'cifar10'\nepochs = 3\njoint-lr = 0.5\nlr = 1\nalrs = true\nprecisions = [8, 'w4a8']\n\
         scale-gradient = 'lsq'\nseed = 18446744073709551615\ndistill = 'highest'\nforward = 'integer'\nlimit-train = 500",
    );
    // TOML's integers end at 2^63 - 1; a larger seed goes in as text.
    assert!(message(&["--config", &path]).contains("not TOML"));
    let text = fs::read_to_string(&path).unwrap().replace("18446744073709551615", "'18446744073709551615'");
    let path = file(folder.path(), &text);

    let ResolvedTraining { config, out, .. } =
        resolve(&["--config", &path, "--epochs", "4", "--alrs", "off", "--distill", "float"]).unwrap();
    let defaults = CIFAR10.settings();
    assert_eq!(config.dataset, "cifar10");
    assert_eq!(config.model, "resnet20", "the default of the file's dataset");
    assert_eq!(config.epochs, 4);
    assert_eq!(config.float_epochs, defaults.float_epochs);
    assert_eq!((config.lr, config.joint_lr), (1.0, 0.5));
    assert!(!config.alrs);
    assert_eq!(config.distill, Distill::Float);
    assert_eq!(config.forward, dr_train::config::ForwardKind::Integer);
    assert_eq!(config.precisions.to_string(), "w8a8,w4a8");
    assert_eq!(config.scale_gradient.to_string(), "lsq");
    assert_eq!(config.seed, u64::MAX);
    assert_eq!(config.limit_train, Some(500));
    assert_eq!(out, PathBuf::from("runs/cifar10-resnet20"));
}

#[test]
fn the_flags_dataset_decides_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), "dataset = 'cifar10'\nseed = 9");
    let config = resolve(&["--config", &path, "--dataset", "mnist"]).unwrap().config;
    assert_eq!(config, TrainConfig { seed: 9, ..MNIST.settings() });
}

#[test]
fn mistakes_in_the_file_name_it() {
    let folder = tempfile::tempdir().unwrap();
    for (content, expected) in [
        ("epoch = 3", "unknown key `epoch`: expected one of task, dataset, data-dir,"),
        ("config = 'other.toml'", "unknown key `config`"),
        ("epochs = 'many'", "epochs: `many`: expected a whole number"),
        ("epochs = 2.5", "epochs: `2.5`: expected a whole number"),
        ("alrs = 'maybe'", "alrs: unknown value `maybe`: expected one of on, off"),
        ("precisions = '9'", "precisions: precision `9`"),
        ("seed = 1979-05-27", "seed is of type datetime"),
        ("seed = 1\nlr = ", "line 2: not TOML"),
    ] {
        let path = file(folder.path(), content);
        let message = message(&["--config", &path]);
        assert!(message.starts_with(&format!("error: `{path}`: {expected}")), "{message}");
        assert!(message.lines().count() <= 2, "{message}");
    }
}

#[test]
fn numbers_are_in_range() {
    for (flag, value, expected) in [
        ("--epochs", "0", "error: epochs 0: expected a whole number of at least 1"),
        ("--batch-size", "1", "error: batch-size 1: expected a whole number of at least 2"),
        ("--lr", "0", "error: lr 0: expected a number above 0 and at most 1"),
        ("--lr", "NaN", "error: lr NaN: expected a number above 0 and at most 1"),
        ("--joint-lr", "-0.1", "error: joint-lr -0.1: expected a number above 0 and at most 1"),
        ("--scale-lr", "inf", "error: scale-lr inf: expected a finite number of at least 0"),
        ("--weight-decay", "-1", "error: weight-decay -1: expected a finite number of at least 0"),
        ("--limit-train", "3", "error: limit-train 3: expected at least as many images as the batch size"),
    ] {
        let message = message(&[flag, value]);
        assert!(message.starts_with(expected), "{message}");
    }
}

#[test]
fn the_highest_precision_teaches_what_it_has_seen() {
    let message = message(&["--distill", "highest", "--batches", "separate"]);
    assert!(
        message.starts_with("error: --batches separate with --distill highest: expected same"),
        "{message}"
    );
    let config = resolve(&["--distill", "highest"]).unwrap().config;
    assert_eq!(config.batches, Batches::Same);
}

#[test]
fn a_run_goes_on_with_its_own_settings() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().to_str().unwrap();
    let saved = TrainConfig { epochs: 7, seed: 3, ..FASHION_MNIST.settings() };
    fs::write(folder.path().join("config.json"), serde_json::to_string(&saved).unwrap()).unwrap();

    let resolved = resolve(&["--resume", run, "--device", "flex", "--model", "resnet8"]).unwrap();
    assert_eq!(resolved.config.epochs, 7);
    assert_eq!(resolved.config.seed, 3);
    assert_eq!(resolved.out, folder.path());
    assert!(resolved.resume);

    for (flag, value, run_has) in [
        ("model", "resnet20", "resnet8"),
        ("precisions", "8,4", "w8a8,w6a6,w4a4,w2a2"),
        ("dataset", "digits", "fashion-mnist"),
    ] {
        let message = message(&["--resume", run, &format!("--{flag}"), value]);
        assert!(message.contains(&format!("has {run_has}, which cannot change")), "{message}");
    }
    assert!(message(&["--resume", "/nowhere"]).contains("cannot read its config.json"));
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(message(&["--resume", run]).contains("not the settings of a run"));
}

#[test]
fn out_is_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let taken = file(folder.path(), "");
    for out in [taken.clone(), format!("{taken}/below/it")] {
        assert!(message(&["--out", &out]).contains("is not a folder"));
    }
    let fresh = folder.path().join("a/b");
    resolve(&["--out", fresh.to_str().unwrap()]).unwrap();
    assert!(!fresh.exists(), "resolving writes nothing");
}

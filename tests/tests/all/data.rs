//! What is said of data: flags that say nothing of them.

use dr_tests::Program;
use std::fs;
use std::path::Path;

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

#[test]
fn flags_that_say_nothing_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    fs::write(program.at("text.txt"), "To be, or not to be.").expect("a file");
    fs::write(program.at("settings.toml"), "data-dir = \"photos\"").expect("a file");
    let calls: &[&[&str]] = &[
        &["train", "--data-dir", "nowhere"],
        &["train", "--config", "settings.toml"],
        &["train", "--image-size", "64"],
        &["train", "--hidden", "128"],
        &["train", "--dataset", "mnist", "--image-size", "28"],
        &["train", "--dataset", "folder", "--data-dir", "photos", "--context", "64"],
        &["train", "--dataset", "coco", "--data-dir", "scenes", "--vocabulary", "300"],
        &["train", "--dataset", "text", "--image-size", "64"],
        &["train", "--dataset", "text", "--weights", "llama", "--layers", "2"],
        &["train", "--draws", "3"],
        &["train", "--mixed=off", "--sampling", "uniform"],
        &["train", "--widths", "separate"],
        &["train", "--mixed-norm", "one"],
        &["scenes", "--data-dir", "photos", "--out", "scenes"],
        &["eval", "--model", "m.safetensors", "--text", "text.txt", "--data-dir", "text.txt"],
    ];
    let said = |call: &&[&str]| format!("$ dr-train {}\n{}", call.join(" "), program.error(call));
    insta::assert_snapshot!(calls.iter().map(said).collect::<Vec<_>>().join("\n"));
}

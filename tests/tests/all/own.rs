//! A network that this workspace does not have, in a program of its own.

use dr_tests::{Program, supernet};

#[test]
fn a_network_of_ones_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = Program::new(env!("CARGO_BIN_EXE_own"), folder.path());
    let ours = Program::new(env!("CARGO_BIN_EXE_program"), folder.path());
    let train =
        ["train", "--model", "branches", "--precisions", "8,4", "--float-epochs", "1", "--epochs", "1"];
    let (table, _) = own.outputs(&[&train[..], &["--out", "run"]].concat());
    assert!(table.contains("w4a4"), "{table}");
    // Its registry is its own.
    let message = ours.error(&train);
    assert!(message.contains("unknown value `branches`: expected one of resnet8, "), "{message}");

    // Whoever has the file needs nothing else.
    let model = "run/model.safetensors";
    for program in [&own, &ours] {
        for engine in ["fake", "integer"] {
            let table = program.output(&["eval", "--model", model, "--engine", engine]);
            assert!(table.contains("w4a4"), "{table}");
        }
        let table = program.output(&["latency", "--model", model, "--samples", "1"]);
        assert!(table.contains("w4a4"), "{table}");
        let _ = program.output(&["export", "--model", model, "--precision", "4", "--out", "four.onnx"]);
        let _ =
            program.output(&["export", "--model", model, "--precision", "4", "--out", "four.safetensors"]);
        let _ = program.output(&["eval", "--model", "four.safetensors", "--engine", "integer"]);
    }
    let _ = own.outputs(&["train", "--resume", "run", "--epochs", "2"]);

    // A supernet of it, for which a program that does not have the network finds a plan.
    let _ = own.outputs(&[&supernet("1", "128", "mixed")[..], &["--model", "branches"]].concat());
    let search = ["search", "--model", "mixed/model.safetensors", "--traces", "mixed/traces.json"];
    let found = ours.output(&[&search[..], &["--budget", "avg-bits=5", "--out", "plan.toml"]].concat());
    assert!(found.contains("budget             avg-bits=5\n"), "{found}");
    let eval = ["eval", "--model", "mixed/model.safetensors", "--plan", "plan.toml", "--engine", "integer"];
    let _ = ours.output(&eval);
}

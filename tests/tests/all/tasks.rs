//! Language models, segmentation and detection, from nothing to text and pictures.

use dr_runtime::npy;
use dr_tests::Program;
use dr_train::artifact::{Artifact, SavedModel};
use serde_json::Value;
use std::path::Path;

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

fn json(program: &Program, arguments: &[&str]) -> Value {
    serde_json::from_str(&program.outputs(arguments).0).expect("JSON")
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

/// The measured losses, float first.
fn losses(report: &Value) -> Vec<f64> {
    let precisions = report["precisions"].as_array().expect("a list").iter();
    let all = report.get("float").into_iter().chain(precisions);
    all.map(|measured| measured["loss"].as_f64().expect("a number")).collect()
}

const LM: [&str; 21] = [
    "train",
    "--dataset",
    "text",
    "--limit-train",
    "30000",
    "--vocabulary",
    "300",
    "--hidden",
    "64",
    "--layers",
    "1",
    "--context",
    "32",
    "--float-epochs",
    "1",
    "--epochs",
    "1",
    "--precisions",
    "8,4",
    "--out",
    "lm",
];

#[test]
fn a_language_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let (table, log) = program.outputs(&LM);
    assert_says(&log, &["pieces of text/s", "validation loss"]);
    assert_says(&table, &["perplexity", "float", "w8a8", "w4a4"]);

    let model = "lm/model.safetensors";
    let fake = json(&program, &["eval", "--model", model, "--json"]);
    let integers = json(&program, &["eval", "--model", model, "--engine", "integer", "--json"]);
    for (fake, integers) in losses(&fake).iter().zip(losses(&integers)) {
        assert!((fake - integers).abs() < 0.01, "{fake} {integers}");
    }
    // The report says what the file holds.
    let report: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("lm/report.json")).expect("a report"))
            .expect("JSON");
    assert_eq!(losses(&report)[1..], losses(&fake));

    let generate = |model: &str, more: &[&str]| {
        let arguments = ["generate", "--model", model, "--prompt", "ROMEO", "--tokens", "20"];
        let (text, speed) = program.outputs(&[&arguments[..], more].concat());
        assert_says(&speed, &["tokens/s"]);
        text
    };
    let text = generate(model, &["--precision", "4"]);
    assert!(text.starts_with("ROMEO"), "{text}");
    assert_eq!(generate(model, &["--precision", "4"]), text);
    assert_eq!(generate(model, &["--switch", "0:w4a4"]), text);
    assert_ne!(
        generate(model, &["--temperature", "2", "--seed", "7"]),
        generate(model, &["--temperature", "2", "--seed", "8"])
    );
    let _ = generate(model, &["--switch", "5:w4a4,10:w8a8"]);
    let _ = generate("lm/float.safetensors", &[]);

    let float = "lm/float.safetensors";
    let ways = ["--group-size", "32", "--switch-edge", "--precisions", "w8a8,w4a8"];
    let out = ["--out", "ways.safetensors"];
    let _ = program.output(&[&["quantize", "--model", float], &ways[..], &out].concat());
    assert_says(&program.output(&["info", "ways.safetensors"]), &["the last layer switch, too"]);
    let ways = json(&program, &["eval", "--model", "ways.safetensors", "--engine", "weight-only", "--json"]);
    let of_float = losses(&json(&program, &["eval", "--model", float, "--json"]))[0];
    assert!(losses(&ways).iter().all(|loss| (loss - of_float).abs() < 0.1), "{ways} {of_float}");
    let _ = generate("ways.safetensors", &["--engine", "weight-only", "--switch", "5:w4a8"]);

    let _ = program.output(&["export", "--model", model, "--precision", "4", "--out", "packed.safetensors"]);
    assert_eq!(generate("packed.safetensors", &[]), text);
    for engine in ["fake", "integer"] {
        let other = [
            "generate",
            "--model",
            "packed.safetensors",
            "--prompt",
            "x",
            "--precision",
            "8",
            "--engine",
            engine,
        ];
        assert_says(
            &program.error(&other),
            &["packed.safetensors", "has no precision w8a8: expected one of w4a4"],
        );
    }
    let _ = program.output(&[
        "quantize",
        "--model",
        "lm/float.safetensors",
        "--precisions",
        "w8a8,w6a6",
        "--out",
        "free.safetensors",
    ]);
    let free = losses(&json(&program, &["eval", "--model", "free.safetensors", "--json"]));
    assert!((free[0] - losses(&report)[0]).abs() < 0.02, "{free:?}");

    let text = "It was the nightingale, and not the lark.\n".repeat(30);
    std::fs::write(folder.path().join("calibration.txt"), text).expect("a file");
    let calibrated = |more: &[&'static str]| {
        let all =
            ["quantize", "--model", float, "--calibration", "calibration.txt", "--out", "nested.safetensors"];
        [&all[..], more].concat()
    };
    assert_says(
        &program.output(&calibrated(&["--calibration-tokens", "200", "--tuning-steps", "2"])),
        &["nested.safetensors: nested"],
    );
    assert_says(
        &program.output(&["info", "nested.safetensors"]),
        &["nested", "w8a8,w6a8,w4a8,w3a8", "lm_head.grid", "mlp.up_proj.grid.3"],
    );

    let questions = "{\"context\": \"ROMEO\", \"choices\": [\":\", \"zzz\"], \"answer\": 0}\n";
    std::fs::write(folder.path().join("questions.jsonl"), questions).expect("a file");
    let answers = program.output(&["eval", "--model", model, "--questions", "questions.jsonl"]);
    assert_says(&answers, &["1 questions", "right (%)", "w8a8"]);
    let found = json(&program, &["eval", "--model", model, "--questions", "questions.jsonl", "--json"]);
    assert_eq!(found["questions"]["count"], 1);
    for (at, precision) in ["w8a8", "w4a4"].into_iter().enumerate() {
        let right = &found["questions"]["precisions"][at];
        assert_eq!(right["precision"], precision);
        assert!(
            right["accuracy"].as_f64().is_some_and(|percent| percent == 0.0 || percent == 100.0),
            "{right}"
        );
        let measured = &found["precisions"][at];
        let perplexity = measured["perplexity"].as_f64().expect("a number");
        assert!((perplexity - measured["loss"].as_f64().expect("a number").exp()).abs() < 1e-9, "{measured}");
        assert_says(&table, &[&format!("{perplexity:.3}")]);
    }
    assert_says(&program.output(&["info", model]), &["llama", "tokenizer.json"]);

    // What cannot be done.
    let error = |arguments: &[&str]| program.error(arguments);
    let long = "word ".repeat(60);
    assert_says(
        &error(&["generate", "--model", model, "--prompt", &long]),
        &["tokens: expected less than 32"],
    );
    assert_says(&error(&["generate", "--model", model, "--prompt", ""]), &["the prompt has no tokens"]);
    assert_says(
        &error(&["generate", "--model", model, "--prompt", "x", "--precision", "2"]),
        &["has no precision w2a2"],
    );
    assert_says(
        &error(&["generate", "--model", model, "--prompt", "x", "--switch", "4"]),
        &["such as `32:w4a8`"],
    );
    assert_says(
        &error(&["generate", "--model", "lm/float.safetensors", "--prompt", "x", "--precision", "4"]),
        &["has no precision w4a4", "quantize"],
    );
    assert_says(&program.output(&["latency", "--model", model]), &["w8a8", "float"]);
    assert_says(&error(&["generate", "--model", ".", "--prompt", "x"]), &["`.`: not a file"]);
    let nested = |command: &'static str, engine: &'static str| {
        let text = ["--engine", engine, "--text", "calibration.txt", "--json"];
        let rest = if command == "eval" { &text[..] } else { &["--engine", engine, "--prompt", "x"] };
        [&[command, "--model", "nested.safetensors"][..], rest].concat()
    };
    let fake = losses(&json(&program, &nested("eval", "fake")));
    let integers = losses(&json(&program, &nested("eval", "integer")));
    assert_eq!((fake.len(), integers.len()), (4, 4));
    assert!(fake.iter().zip(&integers).all(|(a, b)| (a - b).abs() < 0.01), "{fake:?} {integers:?}");
    assert_says(&program.outputs(&nested("generate", "integer")).0, &["x"]);
    let search = ["search", "--model", "nested.safetensors", "--budget"];
    let plan = program
        .output(&[&search[..], &["avg-bits=4.5", "--out", "plan.toml", "--pareto", "front.svg"]].concat());
    assert_says(&plan, &["mlp.down_proj", "predicted loss", "best 1", "wrote plan.toml and front.svg"]);
    let planned = |engine: &'static str| {
        let report = json(&program, &[&nested("eval", engine)[..], &["--plan", "plan.toml"]].concat());
        losses(&report)
    };
    let [at_plan, in_integers] = ["fake", "integer"].map(planned);
    assert_eq!((at_plan.len(), in_integers.len()), (1, 1));
    assert!((at_plan[0] - in_integers[0]).abs() < 0.01, "{at_plan:?} {in_integers:?}");
    let switches = ["--plan", "plan.toml", "--switch", "2:w8a8,3:plan.toml"];
    assert_says(&program.outputs(&[&nested("generate", "integer")[..], &switches].concat()).0, &["x"]);
    let export = ["export", "--model", "nested.safetensors", "--plan", "plan.toml", "--out"];
    assert_says(&program.output(&[&export[..], &["plan.gguf"]].concat()), &["plan.gguf: GGUF", "Q4_1"]);
    assert_says(
        &program.output(&[&export[..], &["planned.safetensors"]].concat()),
        &["planned.safetensors: nested"],
    );
    let at = losses(&json(
        &program,
        &["eval", "--model", "planned.safetensors", "--text", "calibration.txt", "--json"],
    ));
    assert_eq!(at, at_plan);
    assert_says(
        &error(&[&search[..], &["avg-bits=2.5"]].concat()),
        &["the smallest possible is `avg-bits=3`"],
    );
    assert_says(
        &error(&[&search[..], &["avg-bits=4", "--traces", "x.json"]].concat()),
        &["--traces x.json: a model with nested weights", "expected none"],
    );
    for flag in
        [["--data-dir", "x"], ["--dataset", "text"], ["--widths", "separate"], ["--objective", "both"]]
    {
        assert_says(
            &error(&[&search[..], &["avg-bits=4"], &flag].concat()),
            &[&format!("{}: a nested model has no use for it: expected ", flag[0])],
        );
    }
    assert_says(&error(&nested("generate", "fake")), &["nested weights", "--engine integer"]);
    for command in ["eval", "generate"] {
        assert_says(
            &error(&nested(command, "weight-only")),
            &["nested weights: expected the integer engine"],
        );
    }
    assert_says(&error(&calibrated(&["--group-size", "16"])), &["--group-size 16", "a multiple of 32"]);
    let export =
        |precision, out| ["export", "--model", "nested.safetensors", "--precision", precision, "--out", out];
    let _ = program.output(&export("w4a8", "only.safetensors"));
    assert_says(
        &program.output(&["info", "only.safetensors"]),
        &["nested", "precisions  w4a8\n", "lm_head.grid", "mlp.up_proj.factors", " U32 "],
    );
    let only = |command: &'static str, engine: &'static str| {
        nested(command, engine)
            .into_iter()
            .map(|part| part.replace("nested.safe", "only.safe"))
            .collect::<Vec<_>>()
    };
    for (engine, of_all) in [("fake", fake), ("integer", integers)] {
        let arguments = only("eval", engine);
        let found = json(&program, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(losses(&found), of_all[2..3]);
        assert_eq!(found["precisions"][0]["precision"], "w4a8");
    }
    let generate_at = |model: &str| generate(model, &["--precision", "w4a8"]);
    assert_eq!(generate_at("only.safetensors"), generate_at("nested.safetensors"));
    assert_says(
        &error(&["generate", "--model", "only.safetensors", "--prompt", "x", "--precision", "w8a8"]),
        &["no precision w8a8: expected one of w4a8"],
    );
    assert_says(
        &error(&export("w5a8", "x.safetensors")),
        &["nested.safetensors", "no precision w5a8", "w4a8"],
    );
    assert_says(&error(&export("w4a8", "x.onnx")), &["without a counterpart in ONNX"]);
    assert_says(
        &error(&["eval", "--model", "only.safetensors", "--text", "calibration.txt", "--window", "33"]),
        &["only.safetensors", "pieces of 33 tokens: expected 1 to 32, the model's context"],
    );
    assert_says(&error(&calibrated(&["--precisions", "8,4"])), &["w4a4", "expected w8a8,w4a8"]);
    assert_says(
        &error(&calibrated(&["--precisions", "w8a8,w6a8", "--tuning-steps", "1"])),
        &["--tuning-steps 1", "at most 4 bits"],
    );
    std::fs::create_dir(folder.path().join("theirs")).expect("a folder");
    std::fs::write(folder.path().join("theirs/config.json"), "{}").expect("a file");
    assert_says(
        &error(&["quantize", "--model", "theirs", "--out", "x"]),
        &["`theirs`: a language model of others", "--calibration"],
    );
    std::fs::write(folder.path().join("calibration.txt"), "To be.").expect("a file");
    assert_says(&error(&calibrated(&[])), &["calibration.txt", "tokens: expected at least 33"]);
    assert_says(&error(&["eval", "--model", model, "--text", "nowhere.txt"]), &["nowhere.txt"]);
    assert_says(
        &error(&["train", "--dataset", "text", "--model", "resnet8", "--out", "x"]),
        &["--task lm", "expected --dataset text"],
    );
    assert_says(
        &error(&["train", "--dataset", "text", "--hidden", "100", "--out", "x"]),
        &["hidden 100: expected a multiple of 64"],
    );
    std::fs::write(folder.path().join("short.txt"), "To be.").expect("a file");
    assert_says(
        &error(&["train", "--dataset", "text", "--data-dir", "short.txt", "--out", "x"]),
        &["the training text has", "tokens: expected at least 256"],
    );
}

#[test]
fn a_model_of_hugging_face_chats() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let theirs =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/dr-train/tests/fixtures/llama/grouped");
    let own = folder.path().join("theirs");
    std::fs::create_dir(&own).expect("a folder");
    for entry in std::fs::read_dir(theirs).expect("a fixture") {
        let path = entry.expect("a file").path();
        std::fs::copy(&path, own.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let write = |name: &str, content: &str| std::fs::write(own.join(name), content).expect("a file");
    let generate = |model: &str, more: &[&str]| {
        program.outputs(&[&["generate", "--model", model, "--tokens", "20"][..], more].concat()).0
    };
    let whole = generate("theirs", &["--prompt", "the cat on"]);
    let new = whole.strip_prefix("the cat on").expect("the prompt");
    // What only `generation_config.json` says ends a text: here the token that comes next.
    let json = std::fs::read(own.join("tokenizer.json")).expect("a tokenizer");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    let next = json["model"]["vocab"].as_object().expect("an object").iter();
    let next = next.filter(|(token, _)| new.trim_start().starts_with(token.trim_start_matches('\u{120}')));
    let ends: Vec<&Value> = next.map(|(_, id)| id).collect();
    write("generation_config.json", &serde_json::json!({ "eos_token_id": ends }).to_string());
    assert_eq!(generate("theirs", &["--prompt", "the cat on"]), "the cat on\n");
    let _ = program.output(&["import", "--model", "llama", "--weights", "theirs", "--out", "imported"]);
    assert_eq!(generate("imported", &["--prompt", "the cat on"]), "the cat on\n");
    std::fs::remove_file(own.join("generation_config.json")).expect("it is there");
    // An end that may be longer than a token.
    let stop = &new.trim_end()[new.trim_end().len() - 4..];
    let shown = &new[..new.find(stop).expect("a part")];
    let stopped = generate("theirs", &["--prompt", "the cat on", "--stop", "THE END", "--stop", stop]);
    assert_eq!(stopped, format!("the cat on{shown}\n"));

    let error = |more: &[&str]| {
        program.error(&[&["generate", "--model", "theirs", "--prompt", "cat"][..], more].concat())
    };
    assert_says(&error(&["--chat"]), &["`theirs`: the model has no chat template: expected one"]);
    assert_says(&error(&["--system", "x"]), &["--chat"]);
    assert_says(&error(&["--stop", ""]), &["--stop"]);
    assert_says(&error(&["--top-p", "2"]), &["top_p is 2: expected a number from 0 to 1"]);

    let template = "{% if messages|length > 1 %}{{ raise_exception('No system') }}{% endif %}the {{ messages[0]['content'] }} on";
    write("tokenizer_config.json", &serde_json::json!({ "chat_template": template }).to_string());
    assert_eq!(generate("theirs", &["--chat", "--prompt", "cat"]), new);
    let _ = program.output(&["import", "--model", "llama", "--weights", "theirs", "--out", "f.safetensors"]);
    assert_eq!(generate("f.safetensors", &["--chat", "--prompt", "cat"]), new);
    assert_says(&error(&["--chat", "--system", "x"]), &["chat template: ", "No system"]);

    let drawn = ["--prompt", "the cat", "--seed", "3"];
    let flags = ["--temperature", "2", "--top-k", "0", "--min-p", "0.01", "--repetition-penalty", "1.2"];
    let expected = generate("theirs", &[&drawn[..], &flags].concat());
    write(
        "generation_config.json",
        r#"{"do_sample": true, "temperature": 2.0, "top_k": 0, "min_p": 0.01, "repetition_penalty": 1.2}"#,
    );
    assert_eq!(generate("theirs", &drawn), expected);
    let plain = ["--prompt", "the cat on", "--temperature", "0", "--repetition-penalty", "1"];
    assert_eq!(generate("theirs", &plain), whole);
}

#[test]
fn segmentation() {
    scenes("segment", "mIoU (%)");
}

#[test]
fn detection() {
    scenes("detect", "mAP (%)");
}

/// From what learned to classify: the float model of another training, or what PyTorch saved.
#[test]
fn detection_from_a_classifier() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let short = ["--float-epochs", "1", "--epochs", "1", "--batch-size", "6", "--precisions", "8,4"];
    for (class, colour) in [("dark", 40), ("light", 200)] {
        std::fs::create_dir_all(program.at("photos").join(class)).expect("a folder");
        for at in 0..12 {
            let picture =
                image::RgbImage::from_fn(16, 16, |x, y| image::Rgb([colour + at, x as u8 * 3, y as u8 * 3]));
            picture.save(program.at(&format!("photos/{class}/{at}.png"))).expect("a picture");
        }
    }
    let classes =
        ["train", "--dataset", "folder", "--data-dir", "photos", "--image-size", "16", "--model", "resnet8"];
    let _ = program.outputs(&[&classes[..], &short, &["--out", "classes"]].concat());
    let _ = program
        .output(&["scenes", "--size", "16", "--train", "12", "--val", "4", "--test", "4", "--out", "scenes"]);
    let scenes = ["train", "--dataset", "coco", "--data-dir", "scenes", "--image-size", "16"];
    let from = |weights: &'static str, more: &[&'static str]| {
        [&scenes[..], &short, &["--weights", weights], more].concat()
    };
    let (_, log) = program.outputs(&from("classes/float.safetensors", &["--out", "det"]));
    assert_says(
        &log,
        &[
            "classes/float.safetensors: took 45 tensors of the backbone, left `head.bias`, `head.weight`; the layers after it start anew\n",
        ],
    );
    let open = |path: &str| Artifact::open(&program.at(path)).expect("a model");
    // Pixels as they were for the classifier.
    let [classifier, detector] = ["classes/float.safetensors", "det/float.safetensors"].map(open);
    assert_eq!(classifier.description.normalization, detector.description.normalization);
    let _ = program.outputs(&from("classes/float.safetensors", &["--task", "segment", "--out", "seg"]));

    assert_says(
        &program.error(&from("classes/float.safetensors", &["--model", "resnet20", "--out", "x"])),
        &["classes/float.safetensors`: resnet20: `stages.0.1.conv1.weight` is missing; "],
    );
    assert_says(
        &program.error(&from("classes/model.safetensors", &["--out", "x"])),
        &["classes/model.safetensors`: a multi-precision model: expected a float one"],
    );
    assert_says(
        &program.error(&from("det/float.safetensors", &["--out", "x"])),
        &["det/float.safetensors`: a model for the task detect: expected one for classify"],
    );
    assert_says(&program.error(&from("nothing.pth", &["--out", "x"])), &["nothing.pth"]);
}

fn scenes(task: &str, header: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let written = ["scenes", "--size", "16", "--train", "12", "--val", "4", "--test", "4", "--out", "scenes"];
    assert_says(&program.output(&written), &["wrote 20 scenes of 16 x 16 pixels to scenes"]);
    let train = [
        "train",
        "--dataset",
        "coco",
        "--task",
        task,
        "--data-dir",
        "scenes",
        "--image-size",
        "16",
        "--float-epochs",
        "1",
        "--epochs",
        "1",
        "--batch-size",
        "6",
        "--precisions",
        "8,4",
        "--mixed",
        "--out",
        task,
    ];
    assert_says(&program.outputs(&train).0, &[header, "float", "w4a4"]);
    let model = &format!("{task}/model.safetensors");
    let eval = ["eval", "--model", model, "--data-dir", "scenes", "--json"];
    let fake = losses(&json(&program, &eval));
    let integers = losses(&json(&program, &[&eval[..], &["--engine", "integer"]].concat()));
    for (fake, integers) in fake.iter().zip(integers) {
        assert!((fake - integers).abs() < 0.02 * fake, "{fake} {integers}");
    }
    let eval_data = ["--data-dir", "scenes", "--budget", "avg-bits=6", "--out", "plan.toml"];
    let _ = program.outputs(&[&["search", "--model", model][..], &eval_data].concat());
    let planned = json(&program, &[&eval[..], &["--plan", "plan.toml"]].concat());
    assert!(losses(&planned)[0].is_finite());
    std::fs::remove_file(folder.path().join("plan.toml")).expect("a plan");
    let drawn = ["draw", "--model", model, "--data-dir", "scenes", "--images", "4", "--out", "found.png"];
    assert_says(&program.output(&drawn), &["wrote found.png: the truth, w8a8, w4a4"]);
    assert!(folder.path().join("found.png").is_file());

    // Without training, and out of this program.
    let float = &format!("{task}/float.safetensors");
    for (name, data) in [
        ("data.safetensors", ["--data-dir", "scenes"]),
        ("folder.safetensors", ["--calibration", "scenes/train"]),
    ] {
        let quantize = ["quantize", "--model", float, "--precisions", "w8a8,w4a8", "--out", name];
        let _ = program.outputs(&[&quantize[..], &data].concat());
        let eval = ["eval", "--model", name, "--data-dir", "scenes", "--json"];
        let calibrated = losses(&json(&program, &eval));
        let of_float = losses(&json(&program, &["eval", "--model", float, "--data-dir", "scenes", "--json"]));
        assert!((calibrated[0] - of_float[0]).abs() < 0.1 * of_float[0], "{calibrated:?} {of_float:?}");
        let engine = losses(&json(&program, &[&eval[..], &["--engine", "integer"]].concat()));
        assert!((engine[0] - calibrated[0]).abs() < 0.02 * calibrated[0], "{engine:?} {calibrated:?}");
        let latency = json(&program, &["latency", "--model", name, "--samples", "1", "--json"]);
        assert!(latency.to_string().contains("w4a8"), "{latency}");
    }
    let _ = program.outputs(&["latency", "--model", model, "--samples", "1"]);
    for (model, precision) in [(&**model, "4"), ("data.safetensors", "w4a8")] {
        let _ = program.output(&["export", "--model", model, "--precision", precision, "--out", "m.onnx"]);
        let inputs = ["scenes/test/000001.png", "scenes/test/000002.png"];
        let own = ["predict", "--model", model, "--precision", precision, "--out", "own"];
        let _ = program.output(&[&own[..], &inputs].concat());
        // The file has the network and not what becomes of pictures.
        let description = Artifact::open(&program.at(model)).expect("a model").description;
        let normalization = description.normalization;
        let list = |numbers: &[f32]| numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (mean, std) = (list(&normalization.mean), list(&normalization.std));
        let pictures = ["--image-size", "16", "--resize", "pad", "--mean", &mean, "--std", &std];
        let theirs = ["predict", "--model", "m.onnx", "--out", "theirs"];
        let _ = program.output(&[&theirs[..], &pictures, &inputs].concat());
        for input in ["000001.npy", "000002.npy"] {
            let [own, theirs] = ["own", "theirs"].map(|folder| {
                let rows = npy::read(&program.at(folder).join(input)).expect("an array").remove(0).1;
                rows.floats().expect("floats").to_vec()
            });
            let size = own.iter().map(|x| x.abs()).sum::<f32>();
            let off = own.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).sum::<f32>();
            assert!(own.len() == theirs.len() && off < 0.02 * size, "{model}: {off} of {size}");
        }
    }

    let error = |arguments: &[&str]| program.error(arguments);
    assert_says(&error(&["eval", "--model", model]), &["expected --data-dir"]);
    assert_says(
        &error(&["generate", "--model", model, "--prompt", "x"]),
        &[&format!("a model for the task {task}: expected one for lm")],
    );
    assert_says(
        &error(&["train", "--dataset", "coco", "--task", task, "--data-dir", "nowhere", "--out", "x"]),
        &["`nowhere`: has no annotations of the training part", "annotations/train.json"],
    );
    assert_says(
        &error(&["train", "--dataset", "coco", "--task", task, "--out", "x"]),
        &["expected --data-dir"],
    );
    assert_says(
        &error(&["train", "--dataset", "digits", "--task", task, "--out", "x"]),
        &[&format!("--task {task} with --dataset digits")],
    );
    assert_says(
        &program.error(&[
            "train",
            "--dataset",
            "coco",
            "--data-dir",
            "scenes",
            "--distill",
            "float",
            "--out",
            "x",
        ]),
        &["--task detect: --distill: expected without it"],
    );
    assert_says(
        &program.error(&["scenes", "--dataset", "cifar10", "--data-dir", "scenes", "--out", "x"]),
        &["cifar10"],
    );
}

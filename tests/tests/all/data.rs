//! What is said of data: flags that say nothing of them, parts, what is missing, what classes are called.

use dr_tests::{POINTER, Program, turned};
use dr_train::report::save_grid;
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};
use std::fs;
use std::io::Cursor;
use std::path::Path;

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected `{part}` in: {message}");
    }
}

/// `count` pictures of 16 x 16 pixels for each class, of a brightness of its own.
fn photos(folder: &Path, classes: &[&str], count: usize) {
    for (class, name) in classes.iter().enumerate() {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).expect("a folder");
        for at in 0..count {
            let pixels: Vec<u8> =
                (0..768).map(|i| (40 + 120 * class + (i * 7 + at * 5) % 40) as u8).collect();
            save_grid(&folder.join(format!("{at}.png")), &[pixels], 16, 16, 1).expect("a picture");
        }
    }
}

/// The shortest training of a folder into `run`.
fn train<'a>(dataset: &'a str, data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["train", "--dataset", dataset, "--data-dir", data, "--image-size", "16", "--model", "resnet8"];
    let short = ["--batch-size", "4", "--precisions", "8,4", "--float-epochs", "1", "--epochs", "1"];
    [&all[..], &short, more].concat()
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
        &["train", "--dataset", "folder", "--data-dir", "photos", "--image-size", "4x64"],
        &["train", "--hidden", "128"],
        &["train", "--dataset", "mnist", "--image-size", "28"],
        &["train", "--dataset", "folder", "--data-dir", "photos", "--context", "64"],
        &["train", "--dataset", "coco", "--data-dir", "scenes", "--vocabulary", "300"],
        &["train", "--dataset", "text", "--image-size", "64"],
        &["train", "--dataset", "folder", "--data-dir", "photos", "--fit", "pad"],
        &["train", "--dataset", "text", "--weights", "llama", "--layers", "2"],
        &["train", "--draws", "3"],
        &["train", "--mixed=off", "--sampling", "uniform"],
        &["train", "--widths", "separate"],
        &["train", "--mixed-norm", "one"],
        &["scenes", "--data-dir", "photos", "--out", "scenes"],
        &["export", "--model", "m.safetensors", "--precision", "4", "--out", "m", "--data-dir", "photos"],
        &["train", "--dataset", "text", "--batch-norm", "shared"],
        &[
            "export",
            "--model",
            "m.safetensors",
            "--precision",
            "4",
            "--out",
            "x.safetensors",
            "--opset",
            "25",
        ],
        &["export", "--model", "m.safetensors", "--precision", "4", "--out", "x.onnx", "--images", "3"],
        &["eval", "--model", "m.safetensors", "--text", "text.txt", "--data-dir", "text.txt"],
    ];
    let said = |call: &&[&str]| format!("$ dr-train {}\n{}", call.join(" "), program.error(call));
    insta::assert_snapshot!(calls.iter().map(said).collect::<Vec<_>>().join("\n"));
}

#[test]
fn folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    for (part, count) in [("train", 8), ("val", 2), ("test", 3)] {
        photos(&program.at("photos").join(part), &["cat", "dog"], count);
    }
    fs::write(program.at("photos/train/cat/0.webp"), "not read").expect("a file");
    fs::write(program.at("photos/test/dog/2.png"), POINTER).expect("a file");
    for name in ["train/cat/8.jpg", "train/dog/8.jpg", "val/dog/8.jpg", "test/cat/8.jpg"] {
        let (mut content, path) = (vec![], program.at("photos").join(name));
        let image = RgbImage::new(24, 16);
        image.write_to(&mut Cursor::new(&mut content), ImageFormat::Jpeg).expect("a picture");
        fs::write(path, turned(&content, 6)).expect("a file");
    }
    let (table, log) = program.outputs(&train("folder", "photos", &["--out", "run"]));
    assert_says(
        &log,
        &[
            "images: 18 of `photos/train` to learn from, 5 of `photos/val` to choose the epoch by, \
             7 of `photos/test` for the table; classes: cat, dog\n",
            "ignored: 1 files or folders that are no .jpg, .jpeg or .png, such as `photos/train/cat/0.webp`\n",
            "skipped: 1 images that cannot be read, such as `photos/test/dog/2.png`: \
             a pointer of Git LFS: expected the file itself, which `git lfs pull` fetches\n",
        ],
    );
    // Of what is learned from that is said after the first epoch, of the rest in the end.
    let turned = log.match_indices("turned: ").map(|(at, _)| (at, log[at..].lines().next().expect("a line")));
    let turned: Vec<(usize, &str)> = turned.collect();
    let lines: Vec<&str> = turned.iter().map(|(_, line)| *line).collect();
    assert_eq!(
        lines,
        [
            "turned: 2 images, as their EXIF says, such as `photos/train/cat/8.jpg`",
            "turned: 2 images, as their EXIF says, such as `photos/test/cat/8.jpg`",
        ]
    );
    let joint = log.find("joint ").expect("a line of joint training");
    assert!(turned[0].0 < joint && joint < turned[1].0, "{log}");
    assert!(!log.contains("warning") && !table.contains("undefined"), "{log}{table}");
    let model = "run/model.safetensors";
    assert_says(&program.output(&["info", model]), &["classes     2: cat, dog\n"]);
    let (_, log) = program.outputs(&["eval", "--model", model, "--data-dir", "photos"]);
    assert_says(
        &log,
        &[
            "images: 7 of `photos/test` for the table; classes: cat, dog\n",
            "turned: 1 images, as their EXIF says, such as `photos/test/cat/8.jpg`\n",
            "skipped: 1 images",
        ],
    );

    // Two parts: what chooses is held out.
    fs::remove_dir_all(program.at("photos/val")).expect("a folder");
    let (_, log) = program.outputs(&train("folder", "photos", &["--out", "two"]));
    assert_says(
        &log,
        &["images: 17 of `photos/train` to learn from, 1 of `photos/train` to choose the epoch by"],
    );

    // Other names.
    photos(&program.at("others"), &["bird", "cat"], 5);
    let other = ["--dataset", "folder", "--data-dir", "others"];
    let expected = "`run/model.safetensors`: class 0 is `bird`: expected `cat`, as the model has it";
    for command in [&["eval", "--model", model][..], &["hessian", "--model", model]] {
        assert_says(&program.error(&[command, &other].concat()), &[expected]);
    }
    let export = ["export", "--model", model, "--precision", "4", "--out", "x", "--samples", "samples"];
    assert_says(&program.error(&[&export[..], &other].concat()), &[expected]);
    // Its names are said with what it sees.
    let (seen, _) = program.outputs(&["predict", "--model", model, "--json", "photos/test/dog/0.png"]);
    let seen: Value = serde_json::from_str(&seen).expect("JSON");
    let classes = seen[0]["classes"].as_array().expect("a list");
    let mut names: Vec<&str> = classes.iter().map(|class| class["name"].as_str().expect("a name")).collect();
    names.sort_unstable();
    assert_eq!(names, ["cat", "dog"]);
    fs::rename(program.at("photos/train/dog"), program.at("photos/train/wolf")).expect("a folder");
    assert_says(
        &program.error(&train("folder", "photos", &["--out", "renamed"])),
        &["`photos/test`: has no class `wolf`: expected the classes of `photos/train`"],
    );
    fs::rename(program.at("photos/test/dog"), program.at("photos/test/wolf")).expect("a folder");
    assert_says(
        &program.error(&["train", "--resume", "run"]),
        &["class 1 is `wolf`: expected `dog`, as the model has it"],
    );

    // Classes that are called like parts.
    photos(&program.at("called"), &["train", "val"], 5);
    let (_, log) = program.outputs(&train("folder", "called", &["--out", "called-run"]));
    assert_says(
        &log,
        &[
            "images: 7 of `called` to learn from, 1 of `called` to choose the epoch by, 2 of `called` for the table; \
           classes: train, val\n",
        ],
    );
}

/// Three times as wide as high: what `predict` says of test images is what `eval` counts.
#[test]
fn wide_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    for (part, count) in [("train", 8), ("val", 2), ("test", 3)] {
        photos(&program.at("photos").join(part), &["cat", "dog"], count);
    }
    let mut all = train("folder", "photos", &["--out", "run"]);
    let size = all.iter().position(|of| *of == "16").expect("the size");
    all[size] = "8x24";
    let _ = program.outputs(&all);
    let config: Value =
        serde_json::from_slice(&fs::read(program.at("run/config.json")).expect("settings")).expect("JSON");
    assert_eq!(config["image_size"], "8x24");
    let model = "run/model.safetensors";
    assert_says(&program.output(&["info", model]), &["3x8x24"]);
    let files: Vec<String> = ["cat", "dog"]
        .iter()
        .flat_map(|class| (0..3).map(move |at| format!("photos/test/{class}/{at}.png")))
        .collect();
    let files: Vec<&str> = files.iter().map(|file| &**file).collect();
    let found = program.output(&[&["predict", "--model", model, "--json"], &files[..]].concat());
    let found: Value = serde_json::from_str(&found).expect("JSON");
    let right = found.as_array().expect("a list").iter().filter(|of| {
        let class = of["classes"][0]["name"].as_str().expect("a name");
        of["file"].as_str().expect("a file").contains(class)
    });
    let eval = ["eval", "--model", model, "--data-dir", "photos", "--engine", "integer", "--json"];
    let measured: Value = serde_json::from_str(&program.outputs(&eval).0).expect("JSON");
    let expected = right.count() as f64 / 6.0 * 100.0;
    let top1 = measured["precisions"][0]["top1"].as_f64().expect("a number");
    assert!((top1 - expected).abs() < 1e-9, "{top1} {expected}");
    // It is gone on with, and measured for speed.
    let _ = program.outputs(&["train", "--resume", "run", "--epochs", "2"]);
    let _ = program.outputs(&["latency", "--model", model, "--samples", "1"]);
    let _ = program.output(&["export", "--model", model, "--precision", "4", "--out", "m.onnx"]);
}

#[test]
fn folders_without_images() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    for part in ["train", "val", "test"] {
        photos(&program.at("photos").join(part), &["cat", "dog"], 4);
    }
    let spoil = |folder: &str| {
        for entry in fs::read_dir(program.at(folder)).expect("a folder") {
            fs::write(entry.expect("a file").path(), "no image").expect("it can be written");
        }
    };
    // Classes of which nothing can be read, or there is nothing.
    spoil("photos/val/dog");
    for entry in fs::read_dir(program.at("photos/test/cat")).expect("a folder") {
        fs::remove_file(entry.expect("a file").path()).expect("it can be removed");
    }
    let (_, log) = program.outputs(&train("folder", "photos", &["--out", "fewer"]));
    assert_says(
        &log,
        &[
            "warning: `photos/val`: none of the 8 images to choose the epoch by that can be read is of dog\n",
            "warning: `photos/test`: none of the 4 images for the table that can be read is of cat\n",
            "skipped: 4 images that cannot be read, such as `photos/val/dog/0.png`: ",
        ],
    );
    photos(&program.at("photos/test"), &["cat"], 4);
    // Without a part to choose by, the last epoch is taken; of no image there is no accuracy.
    for folder in ["photos/val/cat", "photos/val/dog", "photos/test/cat", "photos/test/dog"] {
        spoil(folder);
    }
    let (table, log) = program.outputs(&train("folder", "photos", &["--out", "run"]));
    assert_says(
        &log,
        &[
            "warning: `photos/val`: none of 8 images can be read, such as `photos/val/cat/0.png`: ",
            "; the last epoch is taken\n",
            "warning: `photos/test`: none of 8 images can be read",
            "; the table is undefined\n",
            "validation top-1 % float undefined",
            "skipped: 16 images that cannot be read",
        ],
    );
    assert_says(&table, &["undefined"]);
    assert!(!table.contains("NaN") && !log.contains("NaN") && !table.contains(" 0.00"), "{table}{log}");
    let report: Value =
        serde_json::from_slice(&fs::read(program.at("run/report.json")).expect("a report")).expect("JSON");
    assert!(report["float"]["top1"].is_null() && report["precisions"][0]["loss"].is_null(), "{report}");
    // It is read again.
    let (again, _) = program.outputs(&["train", "--resume", "run"]);
    assert_says(&again, &["undefined"]);
    let (table, _) = program.outputs(&["eval", "--model", "run/model.safetensors", "--data-dir", "photos"]);
    assert_says(&table, &["undefined"]);
    // A part that has not even folders has no images.
    photos(&program.at("bare/train"), &["cat", "dog"], 4);
    photos(&program.at("bare/test"), &["cat", "dog"], 1);
    fs::create_dir(program.at("bare/val")).expect("a folder");
    let (_, log) = program.outputs(&train("folder", "bare", &["--out", "bare-run"]));
    assert_says(&log, &["warning: `bare/val`: has no images: expected ", "; the last epoch is taken\n"]);

    let model = "run/float.safetensors";
    // What is left out of inputs without labels is said once.
    fs::write(program.at("photos/train/dog/0.webp"), "not read").expect("a file");
    fs::write(program.at("photos/train/dog/0.png"), "no image").expect("a file");
    let said = ["ignored: 1 files or folders", "skipped: 1 images that cannot be read"];
    let distill = ["train", "--model", model, "--distill", "--epochs", "1", "--out", "distilled"];
    for command in [
        &["quantize", "--model", model, "--out", "q", "--calibration", "photos/train"][..],
        &[&distill[..], &["--precisions", "w8a8,w4a8", "--data-dir", "photos/train"]].concat(),
    ] {
        let (_, log) = program.outputs(command);
        for part in said {
            assert_eq!(log.matches(part).count(), 1, "{command:?}: {log}");
        }
    }
    spoil("photos/train/dog");
    assert_says(
        &program.error(&train("folder", "photos", &["--out", "x"])),
        &[
            "`photos/train/dog`: none of 4 images can be read, such as `photos/train/dog/",
            "expected one at least",
        ],
    );
    spoil("photos/train/cat");
    for command in [&["quantize", "--model", model, "--out", "x"][..], &["hessian", "--model", model]] {
        assert_says(
            &program.error(&[command, &["--data-dir", "photos"]].concat()),
            &["`photos/train`: none of 8 images can be read"],
        );
    }
    fs::remove_dir_all(program.at("photos/train/dog")).expect("a folder");
    fs::create_dir(program.at("photos/train/dog")).expect("a folder");
    photos(&program.at("photos/train"), &["cat"], 4);
    assert_says(
        &program.error(&train("folder", "photos", &["--out", "x"])),
        &["`photos/train/dog`: has no images to learn from: expected .jpg, .jpeg or .png files of the class"],
    );
}

#[test]
fn scenes_without_objects() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let scenes = ["scenes", "--size", "16", "--train", "12", "--val", "4", "--test", "4", "--out", "scenes"];
    let _ = program.output(&scenes);
    let crowds = |part: &str| {
        let path = program.at("scenes/annotations").join(part);
        let content = fs::read_to_string(&path).expect("annotations");
        fs::write(path, content.replace("\"iscrowd\":0", "\"iscrowd\":1")).expect("it can be written");
    };
    crowds("val.json");
    crowds("test.json");
    for task in ["detect", "segment"] {
        let (table, log) = program.outputs(&train("coco", "scenes", &["--task", task, "--out", task]));
        assert_says(
            &log,
            &[
                "images: 12 of `scenes/annotations/train.json` to learn from, 4 of `scenes/annotations/val.json` to choose",
                "classes: 0, 1, 2, 3, 4, 5, 6, 7 and 2 more\n",
                "val.json`: has no objects in 4 images (crowds do not count): expected some; the epoch is not chosen by objects\n",
                "test.json`: has no objects in 4 images (crowds do not count): expected some; the table is undefined\n",
            ],
        );
        assert_says(&table, &["undefined"]);
        assert!(
            !table.contains("NaN") && !log.contains("NaN") && !table.contains("100.00  "),
            "{table}{log}"
        );
    }
    assert_says(
        &program.output(&["info", "segment/model.safetensors"]),
        &["classes     11: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n"],
    );
    let names = |from: &str, to: &str| {
        for part in ["train.json", "val.json", "test.json"] {
            let path = program.at("scenes/annotations").join(part);
            let content = fs::read_to_string(&path).expect("annotations").replace(from, to);
            fs::write(path, content).expect("it can be written");
        }
    };
    names("\"name\":\"3\"", "\"name\":\"zebra\"");
    for command in [
        &["eval", "--model", "detect/model.safetensors"][..],
        &["draw", "--model", "segment/model.safetensors", "--out", "x.png"],
        &["hessian", "--model", "segment/float.safetensors"],
    ] {
        let message = program.error(&[command, &["--data-dir", "scenes"]].concat());
        assert_says(&message, &["class 3 is `zebra`: expected `3`, as the model has it"]);
    }
    names("\"name\":\"zebra\"", "\"name\":\"3\"");
    assert_says(
        &program.error(&train("coco", "scenes", &["--limit-train", "13", "--out", "x"])),
        &["coco: a limit of 13 training images, expected 1 to 12"],
    );
    // Without any images, too.
    let empty = |part: &str| {
        let path = program.at("scenes/annotations").join(part);
        let content = fs::read_to_string(&path).expect("annotations");
        let mut content: Value = serde_json::from_str(&content).expect("JSON");
        (content["images"], content["annotations"]) = (json!([]), json!([]));
        fs::write(path, content.to_string()).expect("it can be written");
    };
    empty("val.json");
    empty("test.json");
    for task in ["detect", "segment"] {
        let out = format!("{task}-empty");
        let (table, log) = program.outputs(&train("coco", "scenes", &["--task", task, "--out", &out]));
        assert_says(
            &log,
            &[
                "learn from, 0 of `scenes/annotations/val.json` to choose the epoch by, 0 of `scenes/annotations/test.json`",
                "val.json`: has no images: expected some; the last epoch is taken\n",
                "test.json`: has no images: expected some; the table is undefined\n",
                "validation loss float undefined\n",
            ],
        );
        assert_says(&table, &["undefined"]);
        assert!(!table.contains("NaN") && !log.contains("NaN"), "{table}{log}");
        let model = format!("{out}/model.safetensors");
        let (table, log) = program.outputs(&["eval", "--model", &model, "--data-dir", "scenes"]);
        assert_says(&log, &["test.json`: has no images: expected some; the table is undefined\n"]);
        assert_says(&table, &["undefined"]);
    }
    assert_says(
        &program.error(&[
            "draw",
            "--model",
            "segment/model.safetensors",
            "--data-dir",
            "scenes",
            "--out",
            "x.png",
        ]),
        &["test.json`: has no images: expected some"],
    );
    crowds("train.json");
    assert_says(
        &program.error(&train("coco", "scenes", &["--out", "x"])),
        &["train.json`: has no objects in 12 images (crowds do not count): expected some"],
    );
    let hessian = ["hessian", "--model", "detect/float.safetensors", "--data-dir", "scenes"];
    assert_says(&program.error(&hessian), &["train.json`: has no objects in 12 images"]);
    empty("train.json");
    for limit in [&[][..], &["--limit-train", "13"]] {
        let train = [&train("coco", "scenes", &["--out", "x"]), limit].concat();
        assert_says(&program.error(&train), &["annotations/train.json`: has no images: expected some"]);
    }
    assert_says(&program.error(&hessian), &["train.json`: has no images: expected some"]);
}

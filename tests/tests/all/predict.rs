//! What `dr-train predict` says, beside what `eval` measures and what the library makes of the same pixels.

use dr_runtime::arrays::Array;
use dr_runtime::{Arithmetic, Network, npy};
use dr_tests::{POINTER, Program, text, turned};
use dr_train::artifact::{Artifact, SavedModel};
use dr_train::config::Fit;
use dr_train::config::task::DETECT;
use dr_train::data::digits::Digits;
use dr_train::data::{DataSource, ImageSet, SceneSet, load_test};
use dr_train::detection::{DecodeOptions, Positions, decode_rows};
use image::{GrayImage, RgbImage};
use serde_json::Value;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

fn program(folder: &Path) -> Program {
    Program::new(env!("CARGO_BIN_EXE_program"), folder)
}

fn json(program: &Program, arguments: &[&str]) -> Value {
    serde_json::from_str(&program.output(&[arguments, &["--json"]].concat())).expect("JSON")
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().expect("a list")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[track_caller]
fn assert_near(found: &Value, expected: f64, error: f64) {
    assert!((number(found) - expected).abs() <= error, "{found} {expected}");
}

const DIGITS: &str = "run/model.safetensors";

/// A network for digits in `run`, and all test images as pictures.
fn digits() -> Program {
    static RUN: OnceLock<TempDir> = OnceLock::new();
    Program::shared(env!("CARGO_BIN_EXE_program"), &RUN, |program| {
        let train = ["train", "--float-epochs", "1", "--epochs", "1", "--limit-train", "256", "--out", "run"];
        let _ = program.outputs(&train);
        for (name, pixels, _) in test_digits() {
            GrayImage::from_raw(8, 8, pixels).expect("pixels").save(program.at(&name)).expect("a picture");
        }
    })
}

/// A name, the pixels and the class of each test image.
fn test_digits() -> Vec<(String, Vec<u8>, usize)> {
    let images = load_test(&DataSource::new(&Digits, None, 0)).expect("digits");
    let ImageSet::Memory(images) = images else { panic!("files") };
    let pixels = images.pixels.chunks(64).zip(&images.labels).enumerate();
    pixels.map(|(at, (pixels, &label))| (format!("d{at:03}.png"), pixels.to_vec(), label.into())).collect()
}

#[test]
fn classes_are_those_that_eval_measures() {
    let program = digits();
    let images = test_digits();
    let names: Vec<&str> = images.iter().map(|(name, ..)| &**name).collect();
    for precision in ["w8a8", "w4a4"] {
        let model = ["--model", DIGITS, "--precision", precision];
        let found = json(&program, &[&["predict"], &model[..], &names].concat());
        let right = |(of, (name, _, label)): &(&Value, &(String, Vec<u8>, usize))| {
            assert_eq!((&of["file"], &of["precision"]), (&name.as_str().into(), &precision.into()));
            of["classes"][0]["class"] == *label
        };
        let right = list(&found).iter().zip(&images).filter(right).count();
        let measured = json(&program, &[&["eval", "--engine", "integer"], &model[..]].concat());
        assert_near(&measured["precisions"][0]["top1"], 100.0 * right as f64 / images.len() as f64, 1e-9);
    }
    // In floats, the network of the training.
    let float = json(&program, &["predict", "--model", "run/float.safetensors", names[0]]);
    assert_eq!(float[0]["precision"], "float");
}

/// Probabilities are the softmax of the network's logits, whatever the size of the picture.
#[test]
fn the_likeliest_classes() {
    let program = digits();
    let (name, pixels, _) = &test_digits()[7];
    let artifact = Artifact::open(&program.at(DIGITS)).expect("a model");
    let of = &artifact.description.normalization;
    let values = pixels.iter().map(|&pixel| (f32::from(pixel) / 255.0 - of.mean[0]) / of.std[0]);
    let network = Network::load(&artifact, "w6a6".parse().expect("a precision")).expect("a network");
    let image = Array::from_f32(values.collect(), &[1, 1, 8, 8]).expect("an image");
    let expected = softmax(&network.forward_arrays(&[image]).expect("outputs")[0].floats().expect("floats"));
    let predict = ["predict", "--model", DIGITS, "--precision", "6"];
    let found = json(&program, &[&predict[..], &["--top", "10", name]].concat());
    let classes = list(&found[0]["classes"]);
    assert_eq!(classes.len(), 10);
    for class in classes {
        let at = class["class"].as_u64().expect("a number") as usize;
        assert_eq!(class["name"], at.to_string());
        assert_near(&class["probability"], expected[at], 1e-4);
    }
    let sorted = |pair: &[Value]| number(&pair[0]["probability"]) >= number(&pair[1]["probability"]);
    assert!(classes.windows(2).all(sorted), "{classes:?}");
    let usual = json(&program, &[&predict[..], &[name]].concat());
    assert_eq!(list(&usual[0]["classes"])[..], classes[..5]);

    let words = program.output(&[&predict[..], &["--top", "2", name]].concat());
    let line = |at: usize| {
        let Value::String(class) = &classes[at]["name"] else { panic!("no name") };
        format!("  {:>6.2} %  {class}\n", 100.0 * number(&classes[at]["probability"]))
    };
    assert_eq!(words, format!("{name} (w6a6):\n{}{}", line(0), line(1)));
    let info = program.output(&["info", DIGITS]);
    assert!(info.contains("pictures    stretched\n"), "{info}");
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let exponentials: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|x| x / sum).collect()
}

#[test]
fn what_cannot_be_read_does_not_stop_the_others() {
    let program = digits();
    fs::write(program.at("broken.png"), "no picture").expect("a file");
    let noise = jpeg(&RgbImage::from_fn(64, 64, |x, y| image::Rgb([((x * 37) ^ (y * 91)) as u8; 3])));
    fs::write(program.at("cut.jpg"), &noise[..noise.len() * 2 / 3]).expect("a file");
    let inputs = ["d000.png", "broken.png", "cut.jpg", "missing.png", "d001.png"];
    let output = program.run(&[&["predict", "--model", DIGITS, "--json"], &inputs[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_str(&text(output.stdout)).expect("JSON");
    let files: Vec<&Value> = list(&found).iter().map(|of| &of["file"]).collect();
    assert_eq!(files, ["d000.png", "d001.png"]);
    let errors = text(output.stderr);
    let errors: Vec<&str> = errors.lines().collect();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors[0].starts_with("error: `broken.png`: "), "{errors:?}");
    assert_eq!(errors[1], "error: `cut.jpg`: the file is cut off: expected a JPEG image up to its end");
    assert!(errors[2].starts_with("error: `missing.png`: "), "{errors:?}");
    // Nobody reads on.
    let images = test_digits();
    let all: Vec<&str> = images.iter().map(|(name, ..)| &**name).collect();
    assert_eq!(program.unheard(&[&["predict", "--model", DIGITS], &all[..]].concat()), Some(0));
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut content = Cursor::new(vec![]);
    image.write_to(&mut content, image::ImageFormat::Jpeg).expect("a picture");
    content.into_inner()
}

/// Rows and columns of the images that a network for scenes sees.
const IMAGE: [usize; 2] = [16, 24];

/// A network for the scenes of a folder, 32 x 32 pixels, of which it sees [some](IMAGE), and these as they are in the library.
fn scenes(task: &str, fit: Fit, folder: &Path) -> (Artifact, SceneSet, Vec<String>) {
    let program = program(folder);
    let parts = ["--train", "12", "--val", "4", "--test", "4"];
    let _ = program.output(&[&["scenes", "--size", "32", "--out", "scenes"], &parts[..]].concat());
    let epochs = ["--float-epochs", "2", "--epochs", "1", "--batch-size", "6", "--precisions", "8,4"];
    let data = ["--dataset", "coco", "--data-dir", "scenes", "--image-size", "16x24", "--out", "run"];
    let fit_name = fit.to_string();
    let _ = program.outputs(&[&["train", "--task", task, "--fit", &fit_name], &data[..], &epochs].concat());
    let said = program.output(&["info", DIGITS]);
    let expected = if fit == Fit::Pad { "as large as fits, with grey beside or below" } else { "stretched" };
    assert!(said.contains(&format!("pictures    {expected}\n")), "{said}");
    let [.., test] = SceneSet::load(&folder.join("scenes"), IMAGE, fit).expect("scenes");
    let files = (1..=4).map(|number| format!("scenes/test/{number:06}.png")).collect();
    (Artifact::open(&folder.join(DIGITS)).expect("a model"), test, files)
}

/// The outputs for each image of a set, at 4 bits.
fn outputs(artifact: &Artifact, set: &SceneSet) -> Vec<Vec<f32>> {
    let precision = "w4a4".parse().expect("a precision");
    let network = Network::load_with(artifact, Some(precision), Arithmetic::Integer).expect("a network");
    let of = &artifact.description.normalization;
    let output = |image: &[u8]| {
        let plane = |channel: usize| {
            let pixels = image.iter().skip(channel).step_by(3);
            pixels.map(move |&pixel| (f32::from(pixel) / 255.0 - of.mean[channel]) / of.std[channel])
        };
        let values = (0..3).flat_map(plane);
        let image = Array::from_f32(values.collect(), &[1, 3, IMAGE[0], IMAGE[1]]).expect("an image");
        network.forward_arrays(&[image]).expect("outputs")[0].floats().expect("floats").into_owned()
    };
    let picture = |index: usize| set.picture(index).expect("a picture");
    (0..set.len()).map(|index| output(&picture(index))).collect()
}

/// How many pixels of a picture, 32 columns and rows, there are for one of the image.
fn scale(fit: Fit) -> [f64; 2] {
    match fit {
        Fit::Stretch => [32.0 / 24.0, 32.0 / 16.0],
        Fit::Pad => [2.0; 2],
    }
}

#[test]
fn boxes_are_in_pixels_of_the_picture() {
    boxes(Fit::Stretch);
}

#[test]
fn boxes_are_in_pixels_of_padded_pictures() {
    boxes(Fit::Pad);
}

fn boxes(fit: Fit) {
    let folder = tempfile::tempdir().expect("a folder");
    let (artifact, set, files) = scenes(DETECT, fit, folder.path());
    let files: Vec<&str> = files.iter().map(|file| &**file).collect();
    let program = program(folder.path());
    let predict = |more: &[&str]| {
        let all = ["predict", "--model", DIGITS, "--precision", "4"];
        [&all[..], more, &files].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |more: &[&str]| json(&program, &predict(more).iter().map(|of| &**of).collect::<Vec<_>>());
    let positions = Positions::of(artifact.graph().expect("a graph"), IMAGE).expect("positions");
    let options = DecodeOptions { score: 0.02, ..DecodeOptions::default() };
    let found = run(&["--threshold", "0.02"]);
    let mut count = 0;
    for ((of, output), file) in list(&found).iter().zip(outputs(&artifact, &set)).zip(&files) {
        assert_eq!(of["file"], *file);
        // Columns from 16 on are grey where the picture keeps its ratio of sides.
        let expected = decode_rows(&output, 15, &positions, &options).remove(0).into_iter();
        let expected: Vec<_> = expected.filter_map(|found| found.within(set.frame(0).shown())).collect();
        let boxes = list(&of["boxes"]);
        assert_eq!(boxes.len(), expected.len());
        for (found, expected) in boxes.iter().zip(&expected) {
            assert_eq!(found["class"], expected.class);
            assert_eq!(found["name"], expected.class.to_string());
            assert_near(&found["score"], expected.score.into(), 1e-4);
            for (at, (side, expected)) in ["x0", "y0", "x1", "y1"].into_iter().zip(expected.rect).enumerate()
            {
                assert_near(&found[side], scale(fit)[at % 2] * f64::from(expected), 1e-2);
            }
            count += 1;
        }
    }
    assert!(count > 0, "{found}");
    let none = program.output(&["predict", "--model", DIGITS, "--threshold", "0.999", files[0]]);
    assert_eq!(none, format!("{} (w8a8):\n  no boxes with a score of at least 0.999\n", files[0]));
    let none = run(&["--threshold", "0.999"]);
    assert_eq!(none[0]["boxes"], Value::Array(vec![]));
    let error = program.error(&["predict", "--model", DIGITS, "--top", "3", files[0]]);
    assert!(error.starts_with("error: --top: `run/model.safetensors` has no use for it"), "{error}");
}

#[test]
fn masks_are_as_large_as_the_picture() {
    masks(Fit::Stretch);
}

#[test]
fn masks_are_as_large_as_padded_pictures() {
    masks(Fit::Pad);
}

fn masks(fit: Fit) {
    let folder = tempfile::tempdir().expect("a folder");
    let (artifact, set, files) = scenes("segment", fit, folder.path());
    let files: Vec<&str> = files.iter().map(|file| &**file).collect();
    let program = program(folder.path());
    let predict = ["predict", "--model", DIGITS, "--precision", "4", "--out", "out"];
    let found = json(&program, &[&predict[..], &files].concat());
    let classes = artifact.description.classes;
    for (at, (of, output)) in list(&found).iter().zip(outputs(&artifact, &set)).enumerate() {
        let largest = |row: &[f32]| (1..classes).fold(0, |a, b| if row[b] > row[a] { b } else { a });
        let expected: Vec<usize> = output.chunks(classes).map(largest).collect();
        let of_pixel = |x: usize, y: usize| {
            let [column, row] =
                [(x, 0), (y, 1)].map(|(at, axis)| ((at as f64 + 0.5) / scale(fit)[axis]) as usize);
            expected[row * IMAGE[1] + column]
        };
        let shares = list(&of["shares"]);
        assert_eq!(shares.len(), classes);
        assert_eq!((&shares[0]["name"], &shares[3]["name"]), (&"background".into(), &"2".into()));
        for (class, share) in shares.iter().enumerate() {
            assert_eq!(share["class"], class);
            let pixels = (0..1024).filter(|at| of_pixel(at % 32, at / 32) == class).count();
            assert_near(&share["share"], pixels as f64 / 1024.0, 1e-9);
        }
        let mask =
            image::open(program.at(&format!("out/{:06}.mask.png", at + 1))).expect("a mask").into_rgb8();
        assert_eq!(mask.dimensions(), (32, 32));
        for (x, y, pixel) in mask.enumerate_pixels() {
            let colour =
                of_pixel(x as usize, y as usize).checked_sub(1).map_or([0; 3], dr_train::report::colour);
            assert_eq!(pixel.0, colour, "{at}: {x} {y}");
        }
        let rows = npy::read(&program.at(&format!("out/{:06}.npy", at + 1))).expect("an array").remove(0).1;
        assert_eq!(rows.dims(), [16 * 24, classes]);
    }
    let words = program.output(&[&predict[..], &files[..1]].concat());
    assert!(
        words.contains(" %  background\n") && words.ends_with("wrote 1 arrays and 1 masks to out\n"),
        "{words}"
    );
    // A picture that lies on its side, by its EXIF.
    fs::write(program.at("turned.jpg"), turned(&jpeg(&RgbImage::new(48, 32)), 6)).expect("a file");
    let _ = program.output(&[&predict[..], &["turned.jpg"]].concat());
    let mask = image::open(program.at("out/turned.mask.png")).expect("a mask");
    assert_eq!((mask.width(), mask.height()), (32, 48));
    let error = program.error(&["predict", "--model", DIGITS, "--threshold", "0.5", files[0]]);
    assert!(error.contains("--threshold: ") && error.contains("expected a detector"), "{error}");
}

fn fixture(name: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/dr-runtime/tests/onnx").join(name).join(file)
}

fn paths(name: &str) -> [String; 2] {
    ["model.onnx", "input_0.npy"].map(|file| fixture(name, file).display().to_string())
}

/// Networks of others whose outputs are classes, with layers only and with operations on arrays.
#[test]
fn classes_of_networks_of_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let names: Vec<String> = (0..10).map(|class| format!("kind {class}")).collect();
    fs::write(folder.path().join("names.txt"), names.join("\r\n") + "\r\n").expect("a file");
    for name in ["residual-new-18", "squeeze-new-18"] {
        let [model, input] = paths(name);
        let predict = ["predict", "--top", "10", "--names", "names.txt", "--model"];
        let found = json(&program, &[&predict[..], &[&model, &input]].concat());
        let output = npy::read(&fixture(name, "output_0.npy")).expect("an array").remove(0).1;
        let logits = output.floats().expect("floats");
        assert_eq!(list(&found).len(), 2);
        for (at, (of, logits)) in list(&found).iter().zip(logits.chunks(10)).enumerate() {
            assert_eq!((&of["item"], &of["precision"]), (&at.into(), &"float".into()));
            let expected = softmax(logits);
            for class in list(&of["classes"]) {
                let at = class["class"].as_u64().expect("a number") as usize;
                assert_eq!(class["name"], names[at]);
                assert_near(&class["probability"], expected[at], 1e-4);
            }
        }
        // Calibrated, of a picture.
        RgbImage::from_fn(40, 50, |x, y| image::Rgb([x as u8 * 6, y as u8 * 5, 90]))
            .save(folder.path().join("a.png"))
            .expect("a picture");
        fs::create_dir_all(folder.path().join("in")).expect("a folder");
        fs::copy(&input, folder.path().join("in/x.npy")).expect("a copy");
        let quantize = ["quantize", "--precisions", "w8a8,w4a8", "--calibration", "in", "--out", "q"];
        let _ = program.output(&[&quantize[..], &["--model", &model]].concat());
        let words =
            program.output(&["predict", "--model", "q", "--precision", "w4a8", "--top", "1", "a.png"]);
        assert!(words.starts_with("a.png (w4a8):\n  ") && words.contains(" %  "), "{words}");
    }
}

#[test]
fn outputs_that_are_no_classes_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = program(folder.path());
    let [model, input] = paths("encoder-old-17");
    let (words, hint) = program.outputs(&["predict", "--model", &model, &input]);
    assert!(words.starts_with(&format!("{input} (float): ")) && words.ends_with("[2, 12, 6]\n"), "{words}");
    assert!(hint.starts_with("hint: ") && hint.contains("--out DIR"), "{hint}");
    let (found, _) = program.outputs(&["predict", "--json", "--model", &model, &input]);
    let found: Value = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found[0]["outputs"][0]["shape"], serde_json::json!([2, 12, 6]));
    assert!(found[0]["outputs"][0]["name"].is_string(), "{found}");
}

#[test]
fn what_is_not_for_the_model_is_refused() {
    let program = digits();
    let [model, input] = paths("residual-new-18");
    let [tokens, ids] = paths("encoder-old-17");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (names, copy, out) = (at("names.txt"), at("x.npy"), at(""));
    fs::write(&names, "cat\ndog\n").expect("a file");
    fs::copy(&input, &copy).expect("a copy");
    let error = |arguments: &[&str]| {
        let text = program.error(&[&["predict", "--model"], arguments].concat());
        let paths = [(&model, "net.onnx"), (&tokens, "tokens.onnx"), (&names, "names.txt"), (&copy, "x.npy")];
        paths.into_iter().fold(text, |text, (path, name)| text.replace(path, name)).replace(&out, "folder/")
    };
    let errors = [
        error(&[DIGITS, "--threshold", "0.5", "d000.png"]),
        error(&[DIGITS, "--names", &names, "d000.png"]),
        error(&[DIGITS, "--top", "0", "d000.png"]),
        error(&[DIGITS, "--threshold", "2", "d000.png"]),
        error(&[DIGITS, "--precision", "3", "d000.png"]),
        error(&[&model, "--names", &names, &input]),
        error(&[&model, "--names", "nowhere.txt", &input]),
        error(&[&model, "--out", &out, &copy]),
        error(&[&tokens, "--names", &names, &ids]),
        error(&[&tokens, "--top", "2", &ids]),
    ];
    insta::assert_snapshot!("wrong_predictions", errors.join("\n"));
    for name in ["pointer.png", "pointer.npy"] {
        let path = at(name);
        fs::write(&path, POINTER).expect("a file");
        let error = program.error(&["predict", "--model", DIGITS, &path]);
        let expected = "a pointer of Git LFS: expected the file itself, which `git lfs pull` fetches";
        assert!(error.contains(name) && error.contains(expected), "{error}");
    }
}

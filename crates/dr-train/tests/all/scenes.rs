//! Detection and segmentation: integers, saved models, scenes with something wrong.

use super::folder::turned;
use burn::data::dataloader::DataLoader;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use dr_precision::PrecisionSet;
use dr_runtime::Arithmetic;
use dr_runtime::file::Resize;
use dr_runtime::tensors::Network;
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, InputShape, SavedModel};
use dr_train::config::task::{DETECT, SEGMENT};
use dr_train::config::{Engine, Fit};
use dr_train::data::scenes::{SceneConfig, Sprite, write_scenes};
use dr_train::data::{
    Batch, Boxes, IGNORED, Normalization, PixelTargets, SceneLoader, SceneSet, Target, TrainingLoader,
};
use dr_train::detection::{BoxTargets, DecodeOptions, Found, Positions, decode};
use dr_train::experiment::SceneGoal;
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::{Model, Pass, QuantConfig};
use image::RgbImage;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::path::Path;
use std::sync::Arc;

const SIZE: usize = 32;
const CLASSES: usize = 3;

fn config(classes: usize) -> ConvNetConfig {
    ConvNetConfig { kind: RESNET8, width: 8, channels: 3, classes }
}

fn images(count: usize) -> Tensor<4> {
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(3);
    let values = TensorData::random::<f32, _, _>([count, 3, SIZE, SIZE], Distribution::Normal(0.0, 1.0), rng);
    Tensor::from_data(values, &Device::flex())
}

fn precisions() -> PrecisionSet {
    "w8a8,w6a6,w4a8,w2a2".parse().unwrap()
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// How far `found` is from `expected`, on average, as a part of the average size.
fn off(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).sum::<f32>();
    sum(&mut found.iter().zip(expected).map(|(a, b)| a - b)) / sum(&mut expected.iter().copied())
}

/// Scenes of bright squares, bars and frames.
fn scenes(dir: &Path) {
    let shape = |inside: fn(usize, usize) -> bool| -> Vec<u8> {
        (0..64).map(|i| if inside(i / 8, i % 8) { 255 } else { 0 }).collect()
    };
    let shapes = [
        shape(|y, x| (1..7).contains(&y) && (1..7).contains(&x)),
        shape(|y, _| (3..5).contains(&y)),
        shape(|y, x| y == 0 || y == 7 || x == 0 || x == 7),
    ];
    let sprites = |_: &str| {
        let all = shapes.iter().enumerate();
        all.map(|(class, pixels)| Sprite { pixels, width: 8, height: 8, class }).collect::<Vec<_>>()
    };
    let config = SceneConfig { size: SIZE, seed: 5, ..SceneConfig::default() };
    let names = ["square", "bar", "frame"].map(str::to_owned);
    write_scenes(dir, &[("train", 24), ("val", 9)], &config, sprites, &names).unwrap();
}

fn load(dir: &Path) -> [Arc<SceneSet>; 3] {
    SceneSet::load(dir, [SIZE, SIZE], Fit::Stretch).unwrap().map(Arc::new)
}

/// The image, the boxes and the classes of pixels of each picture of a set.
type Content = Vec<(Vec<u8>, Boxes, Vec<u8>)>;

fn content(set: &SceneSet) -> Content {
    let of = |index| (set.picture(index).unwrap(), set.boxes(index), set.classes(index));
    (0..set.len()).map(of).collect()
}

fn contents(sets: &[Arc<SceneSet>; 3]) -> [Content; 3] {
    sets.each_ref().map(|set| content(set))
}

fn model(task: &str, seed: u64) -> Model {
    let device = Device::flex();
    match task {
        SEGMENT => Model::trace(&config(CLASSES + 1).init_segmenter(seed, &device)),
        _ => Model::trace(&config(CLASSES).init_detector(seed, &device)),
    }
    .unwrap()
}

/// A model with quantized weights, and its artifact.
fn quantized(task: &str, seed: u64, normalization: Normalization) -> (Model, Artifact) {
    let model = model(task, seed).quantize(&QuantConfig::new(precisions()), vec![images(4)]);
    let input = InputShape { channels: 3, height: SIZE, width: SIZE };
    let classes = CLASSES + usize::from(task == SEGMENT);
    let description = Description {
        task: task.to_string(),
        width: 8,
        normalization,
        kind: ArtifactKind::MultiPrecision,
        ..Description::new("coco", &RESNET8, input, classes, precisions())
    };
    let artifact = Artifact::of(&model, description).unwrap();
    (model, artifact)
}

#[test]
fn integers_are_fake_quantization() {
    for (task, outputs) in
        [(SEGMENT, 2 * SIZE * SIZE * (CLASSES + 1)), (DETECT, 2 * (16 * 16 + 8 * 8) * (CLASSES + 5))]
    {
        let (model, artifact) = quantized(task, 7, Normalization::none(3));
        let highest = precisions().highest();
        let mut network = Network::load(&artifact, highest, Arithmetic::Integer, &Device::flex()).unwrap();
        for precision in precisions().iter() {
            network.switch(precision).unwrap();
            let fake = values(model.forward(images(2), &Pass::at(precision)));
            assert_eq!(fake.len(), outputs);
            // With these weights hardly a value is halfway between two codes, which may be rounded either way.
            let found = off(&values(network.forward(images(2)).unwrap()), &fake);
            assert!(found < 2e-3, "{task} {precision}: {found}");
        }
        assert!(network.switch("w3a3".parse().unwrap()).is_err());
    }
}

#[test]
fn scenes_of_a_folder_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    scenes(dir.path());
    let [train, valid, test] = load(dir.path());
    // Without a part for the test, `val` is it, and a twentieth of `train` is to choose by.
    assert_eq!((train.len(), valid.len(), test.len()), (22, 2, 9));
    assert_eq!(train.names, ["square", "bar", "frame"]);
    assert!([&train, &valid].iter().all(|part| part.path.ends_with("annotations/train.json")));
    let before = contents(&[train.clone(), valid, test.clone()]);
    for file in ["annotations/test.json", "test"] {
        let from = file.replace("test", "val");
        std::fs::rename(dir.path().join(from), dir.path().join(file)).unwrap();
    }
    assert_eq!(contents(&load(dir.path())), before);
    let one = SceneConfig { size: SIZE, seed: 6, ..SceneConfig::default() };
    let sprites = |_: &str| vec![Sprite { pixels: &[255; 64], width: 8, height: 8, class: 0 }];
    write_scenes(dir.path(), &[("val", 3)], &one, sprites, &train.names).unwrap();
    let [train, valid, test] = load(dir.path());
    assert_eq!((train.len(), valid.len(), test.len()), (24, 3, 9));
    let normalization = train.normalization();
    let loader = |seed| {
        let normalization = &normalization;
        SceneLoader::<PixelTargets>::new(train.clone(), normalization, (), 5, seed, Device::flex())
    };
    let labels = |batch: Batch<Tensor<4>, PixelTargets>| {
        batch.labels.classes.into_data().convert::<u8>().try_into_vec::<u8>().unwrap()
    };
    // In order, every pixel as in the set.
    let seen: Vec<u8> = loader(None).iter().flat_map(|batch| labels(batch.unwrap())).collect();
    assert_eq!(seen, classes(&train));
    assert!(seen.contains(&3) && seen.contains(&0));
    // A single image at the end joins the others.
    let lengths: Vec<usize> = loader(Some(1)).iter().map(|batch| batch.unwrap().input.dims()[0]).collect();
    assert_eq!(lengths, [5, 5, 5, 5, 4]);
    let epoch = |loader: &SceneLoader<PixelTargets>| -> Vec<Vec<u8>> {
        loader.iter().map(|batch| labels(batch.unwrap())).collect()
    };
    let (first, again) = (epoch(&loader(Some(1))), epoch(&loader(Some(1))));
    assert_eq!(first, again);
    assert_eq!(epoch(&loader(Some(1)).starting_at(1)).len(), first.len());
    assert_ne!(epoch(&loader(Some(1)).starting_at(1)), first);
    let two: Vec<usize> =
        loader(Some(1)).with_orders(2).iter().map(|batch| batch.unwrap().input.dims()[0]).collect();
    assert_eq!(two, [10, 10, 10, 10, 8]);
    // Boxes of reflected images are reflected: their positions see the same object.
    let detector = model(DETECT, 1);
    let positions = Positions::of(detector.graph(), train.size).unwrap();
    assert_eq!(positions.strides, [2, 4]);
    let boxes = SceneLoader::<BoxTargets>::new(train, &normalization, positions, 24, Some(2), Device::flex());
    for batch in boxes.iter() {
        let Batch { input, labels } = batch.unwrap();
        let output = detector.forward(input, &Pass::float());
        assert!(labels.loss(output.clone()).into_scalar::<f32>().is_finite());
        assert!(labels.right(output).1 > 24);
    }
}

#[test]
fn saved_models_are_measured() {
    let dir = tempfile::tempdir().unwrap();
    scenes(dir.path());
    let [train, _, test] = load(dir.path());
    let device = Device::flex();
    let formats: Vec<_> = precisions().iter().map(Into::into).collect();
    for task in [SEGMENT, DETECT] {
        let (_, artifact) = quantized(task, 2, train.normalization());
        let artifact = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
        let measure = |artifact: &Artifact, formats: &[_], engine| match task {
            SEGMENT => PixelTargets::measure(artifact, formats, &test, engine, &device).unwrap(),
            _ => BoxTargets::measure(artifact, formats, &test, engine, &device).unwrap(),
        };
        let fake = measure(&artifact, &formats, Engine::Fake);
        let integers = measure(&artifact, &formats, Engine::Integer);
        for (fake, integers) in fake.iter().zip(&integers) {
            assert!((fake.quality.unwrap() - integers.quality.unwrap()).abs() < 1.0, "{fake:?} {integers:?}");
            assert!((fake.loss - integers.loss).abs() < 0.01 * fake.loss, "{fake:?} {integers:?}");
        }
        let packed = artifact.export(precisions().lowest()).unwrap();
        let packed = measure(&packed, &formats[3..], Engine::Fake);
        assert_eq!(packed[0].loss, fake[3].loss);
        let error = match task {
            SEGMENT => BoxTargets::measure(&artifact, &formats, &test, Engine::Fake, &device),
            _ => PixelTargets::measure(&artifact, &formats, &test, Engine::Fake, &device),
        };
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with(&format!("a model for the task {task}: expected one for")), "{error}");
    }
}

#[test]
fn a_detector_that_knows_nothing_finds_nothing() {
    let detector = model(DETECT, 1);
    let positions = Positions::of(detector.graph(), [SIZE, SIZE]).unwrap();
    let output = detector.forward(images(3), &Pass::float());
    let options = DecodeOptions { score: 0.3, ..DecodeOptions::default() };
    let found = decode(output, &positions, &options);
    assert_eq!(found.len(), 3);
    let broken = Tensor::<2>::full([320, CLASSES + 5], f32::NAN, &Device::flex());
    assert_eq!(decode(broken, &positions, &options), [vec![]]);
}

#[test]
fn scenes_with_something_wrong_say_so() {
    let dir = tempfile::tempdir().unwrap();
    scenes(dir.path());
    let error = |reason: &str| {
        let error = SceneSet::load(dir.path(), [SIZE, SIZE], Fit::Stretch).unwrap_err().to_string();
        assert!(error.contains(reason) && !error.contains('\n'), "{error}");
    };
    let annotations = dir.path().join("annotations/val.json");
    let good = std::fs::read_to_string(&annotations).unwrap();
    for (from, to, reason) in [
        ("\"width\":32", "\"width\":33", "expected 33x32"),
        ("\"category_id\":", "\"category_id\":9", "categor"),
        (
            "\"name\":\"square\"",
            "\"name\":\"round\"",
            "val.json`: class 0 is `round`: expected `square`, as in `",
        ),
        (
            "{\"id\":1,\"name\":\"square\"},{\"id\":2,\"name\":\"bar\"}",
            "{\"id\":2,\"name\":\"square\"},{\"id\":1,\"name\":\"bar\"}",
            "class 0 is `bar`: expected `square`",
        ),
        ("{", "[", "val.json"),
    ] {
        std::fs::write(&annotations, good.replacen(from, to, 1)).unwrap();
        error(reason);
    }
    std::fs::write(&annotations, &good).unwrap();
    std::fs::remove_file(&annotations).unwrap();
    error(
        "has no annotations of the validation part in COCO's format: expected annotations/val.json, annotations/i",
    );
}

#[test]
fn usual_layouts_of_folders_are_found() {
    let original = tempfile::tempdir().unwrap();
    scenes(original.path());
    let expected = contents(&load(original.path()));
    // Annotations and images of the training and of the validation part.
    for [train, train_images, val, val_images] in [
        [
            "annotations/instances_train2017.json",
            "train2017",
            "annotations/instances_val2017.json",
            "val2017",
        ],
        ["annotations/train.json", "images/train", "annotations/val.json", "images/val"],
        ["train.json", "train", "valid.json", "valid"],
        ["train/_annotations.coco.json", "train", "valid/_annotations.coco.json", "valid"],
        ["train/labels.json", "train/data", "validation/labels.json", "validation/data"],
        ["train/annotations.json", "train/images", "val/annotations.json", "val/images"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        for (part, annotations, images) in [("train", train, train_images), ("val", val, val_images)] {
            let (annotations, images) = (dir.path().join(annotations), dir.path().join(images));
            std::fs::create_dir_all(annotations.parent().unwrap()).unwrap();
            std::fs::create_dir_all(&images).unwrap();
            std::fs::copy(original.path().join(format!("annotations/{part}.json")), annotations).unwrap();
            for entry in std::fs::read_dir(original.path().join(part)).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, images.join(path.file_name().unwrap())).unwrap();
            }
        }
        assert!(contents(&load(dir.path())) == expected, "{train} {train_images}");
    }
    std::fs::rename(original.path().join("val"), original.path().join("elsewhere")).unwrap();
    let error = SceneSet::load(original.path(), [SIZE, SIZE], Fit::Stretch).unwrap_err().to_string();
    let (dir, inner) = (original.path().display(), "annotations/val.json");
    let start = format!(
        "`{dir}/{inner}`: the image `000001.png` is neither in `{dir}/val` nor in `{dir}/images/val` nor"
    );
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn crowds_are_nothing_to_learn_and_neither_right_nor_wrong() {
    let dir = tempfile::tempdir().unwrap();
    scenes(dir.path());
    let [.., before] = load(dir.path());
    let path = dir.path().join("annotations/val.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    json["annotations"][0]["iscrowd"] = true.into();
    std::fs::write(&path, json.to_string()).unwrap();
    let [.., valid] = load(dir.path());
    assert_eq!(valid.boxes(0).objects, before.boxes(0).objects[1..]);
    assert_eq!(valid.boxes(0).crowds, before.boxes(0).objects[..1]);
    assert_eq!(content(&valid)[1..], content(&before)[1..]);
    let class = before.boxes(0).objects[0].class as u8 + 1;
    let mut seen = 0;
    for (found, was) in classes(&valid).into_iter().zip(classes(&before)) {
        // What another object covered shows the crowd no more than before.
        assert!(found == was || (found == IGNORED && was == class), "{found} {was}");
        seen += usize::from(found == IGNORED);
    }
    assert!(seen > 0);
    // Whatever is said of them.
    let loader = |set: &Arc<SceneSet>| {
        let normalization = before.normalization();
        SceneLoader::<PixelTargets>::new(set.clone(), &normalization, (), 16, None, Device::flex())
    };
    let targets = loader(&valid).iter().next().unwrap().unwrap().labels;
    let pixels = valid.len() * SIZE * SIZE;
    let output = |value: f32| {
        let logits = classes(&valid).into_iter().enumerate().flat_map(|(at, class)| {
            let of = if class == IGNORED { value } else { 0.25 };
            (0..=CLASSES).map(move |other| of * ((at * 7 + other * 3) % 5) as f32)
        });
        Tensor::<2>::from_data(
            TensorData::new(logits.collect::<Vec<_>>(), [pixels, CLASSES + 1]),
            &Device::flex(),
        )
    };
    let score = targets.score(output(1.0));
    assert_eq!(score, targets.score(output(-9.0)));
    assert_eq!(score.2, pixels - seen);
    // The mean over the others.
    let all = loader(&before).iter().next().unwrap().unwrap().labels;
    let logits: Vec<f32> = values(output(1.0));
    let losses = logits.chunks(CLASSES + 1).zip(classes(&valid)).filter(|(_, class)| *class != IGNORED);
    let losses = losses.map(|(row, class)| {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[usize::from(class)])
    });
    let expected = losses.sum::<f64>() / score.2 as f64;
    assert!((score.0 - expected).abs() < 1e-5, "{} {expected}", score.0);
    assert_eq!(all.score(output(1.0)).2, pixels);
    let parts = dr_train::data::Input::split(targets, SIZE * SIZE);
    let counted = parts.iter().map(|part| part.right(output(1.0).narrow(0, 0, SIZE * SIZE)).1);
    assert_eq!(counted.collect::<Vec<_>>()[..2], [SIZE * SIZE - seen, SIZE * SIZE]);
}

fn classes(set: &SceneSet) -> Vec<u8> {
    (0..set.len()).flat_map(|index| set.classes(index)).collect()
}

/// Batches are what single pictures give, in the order that the seed says; they are read when they are wanted, and what cannot be read is left out.
#[test]
fn pictures_are_read_in_batches() {
    let dir = tempfile::tempdir().unwrap();
    scenes(dir.path());
    let [train, ..] = load(dir.path());
    let normalization = train.normalization();
    let positions = Positions::of(model(DETECT, 1).graph(), train.size).unwrap();
    let read = content(&train);
    let value = |channel: usize, pixel: u8| {
        ((f64::from(pixel) / 255.0 - f64::from(normalization.mean[channel]))
            / f64::from(normalization.std[channel])) as f32
    };
    let image = |pixels: &[u8], reflected: bool| -> Vec<f32> {
        let at = |channel: usize, row: usize, column: usize| {
            let column = if reflected { SIZE - 1 - column } else { column };
            value(channel, pixels[(row * SIZE + column) * 3 + channel])
        };
        (0..3 * SIZE * SIZE).map(|i| at(i / (SIZE * SIZE), i / SIZE % SIZE, i % SIZE)).collect()
    };
    let mut items: Vec<(usize, bool)> = (0..train.len()).map(|index| (index, false)).collect();
    let mut random = chacha20::ChaCha8Rng::seed_from_u64(7);
    random.set_stream(2);
    items.shuffle(&mut random);
    items.iter_mut().for_each(|(_, reflected)| *reflected = random.random_bool(0.5));
    let loader = |seed| {
        let (set, positions) = (train.clone(), positions.clone());
        SceneLoader::<BoxTargets>::new(set, &normalization, positions, 5, seed, Device::flex())
    };
    let batches = |loader: &SceneLoader<BoxTargets>| -> Vec<(Vec<f32>, Vec<Boxes>)> {
        let batch = |batch: Batch<Tensor<4>, BoxTargets>| {
            (batch.input.into_data().try_into_vec().unwrap(), batch.labels.boxes().cloned().collect())
        };
        loader.iter().map(|found| batch(found.unwrap())).collect()
    };
    let expected = |items: &[(usize, bool)]| {
        let of = |&(index, reflected): &(usize, bool)| {
            let (pixels, boxes, _) = &read[index];
            let boxes = boxes.clone();
            (image(pixels, reflected), if reflected { boxes.reflected() } else { boxes })
        };
        let batch = |items: &[(usize, bool)]| {
            let (pixels, boxes): (Vec<_>, Vec<_>) = items.iter().map(of).unzip();
            (pixels.concat(), boxes)
        };
        items.chunks(5).map(batch).collect::<Vec<_>>()
    };
    assert!(batches(&loader(Some(7)).starting_at(2)) == expected(&items));

    // From here on, pictures are missing, damaged or of another size.
    let file = |index: usize| dir.path().join(format!("train/{:06}.png", index + 1));
    let broken = [0, 4, 5, 19];
    let of = |index: usize| (1..=24).filter(|number| number % 12 != 0).nth(index).unwrap() - 1;
    std::fs::remove_file(file(of(broken[0]))).unwrap();
    std::fs::write(file(of(broken[1])), b"no picture").unwrap();
    std::fs::write(file(of(broken[2])), &std::fs::read(file(of(1))).unwrap()[..200]).unwrap();
    RgbImage::new(9, 7).save(file(of(broken[3]))).unwrap();
    let [train, ..] = load(dir.path());
    let sound: Vec<(usize, bool)> =
        (0..train.len()).filter(|index| !broken.contains(index)).map(|index| (index, false)).collect();
    let in_order = |items: &[(usize, bool)]| {
        items.iter().flat_map(|&(index, _)| image(&read[index].0, false)).collect::<Vec<f32>>()
    };
    let all = |seed| {
        let (set, positions) = (train.clone(), positions.clone());
        batches(&SceneLoader::<BoxTargets>::new(set, &normalization, positions, 5, seed, Device::flex()))
    };
    assert!(train.noted.skipped().is_empty());
    let found = all(None);
    assert_eq!(found.iter().map(|(_, boxes)| boxes.len()).collect::<Vec<_>>(), [3, 4, 5, 4, 2]);
    assert!(found.into_iter().flat_map(|(pixels, _)| pixels).eq(in_order(&sound)));
    let skipped: Vec<String> = train.noted.skipped().into_values().collect();
    assert_eq!(skipped.len(), 4);
    assert_eq!(skipped[3], "is 9 x 7 pixels, as it is to be seen: expected 32 x 32, as the annotations say");
    // What is turned is noted once.
    assert!(train.noted.turned().is_empty());
    let side = RgbImage::new(SIZE as u32, SIZE as u32);
    std::fs::write(file(of(7)), turned(&side, 6)).unwrap();
    (0..2).for_each(|_| drop(all(None)));
    assert_eq!(train.noted.turned().into_iter().collect::<Vec<_>>(), [file(of(7))]);
    // In training, others take their place.
    assert_eq!(all(Some(1)).iter().map(|(_, boxes)| boxes.len()).collect::<Vec<_>>(), [5, 5, 5, 5, 2]);

    (0..24).for_each(|index| std::fs::write(file(index), b"no picture").unwrap());
    let [train, ..] = load(dir.path());
    let error = train.check().unwrap_err().to_string();
    assert!(
        error.contains("train`: none of 22 images can be read, such as `") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn scenes_without_objects() {
    let dir = tempfile::tempdir().unwrap();
    scenes(dir.path());
    let annotations = dir.path().join("annotations/val.json");
    let crowds = std::fs::read_to_string(&annotations).unwrap().replace("\"iscrowd\":0", "\"iscrowd\":1");
    std::fs::write(&annotations, crowds).unwrap();
    let [train, _, crowds] = load(dir.path());
    train.check().unwrap();
    let content = std::fs::read_to_string(&annotations).unwrap();
    let mut content: serde_json::Value = serde_json::from_str(&content).unwrap();
    (content["images"], content["annotations"]) = (serde_json::json!([]), serde_json::json!([]));
    std::fs::write(&annotations, content.to_string()).unwrap();
    let [.., nothing] = load(dir.path());
    for (test, reason) in [
        (&crowds, "has no objects in 9 images (crowds do not count): expected some"),
        (&nothing, "has no images: expected some"),
    ] {
        let error = test.check().unwrap_err().to_string();
        assert!(error.ends_with(&format!("val.json`: {reason}")), "{error}");
    }
    // Nothing but background is no mean over classes of objects.
    let formats: Vec<_> = precisions().iter().map(Into::into).collect();
    for task in [SEGMENT, DETECT] {
        let (_, artifact) = quantized(task, 2, train.normalization());
        let device = Device::flex();
        for test in [&crowds, &nothing] {
            let measured = match task {
                SEGMENT => PixelTargets::measure(&artifact, &formats, test, Engine::Fake, &device),
                _ => BoxTargets::measure(&artifact, &formats, test, Engine::Fake, &device),
            };
            for of in measured.unwrap() {
                assert_eq!(of.quality, None, "{task}");
                // Classes are said of positions with an object.
                assert_eq!(of.top1.is_nan(), task == DETECT || test.is_empty(), "{task}");
            }
        }
    }
    // Without images to learn from there are none to hold out of them.
    std::fs::write(dir.path().join("annotations/train.json"), content.to_string()).unwrap();
    let error = SceneSet::load(dir.path(), [SIZE, SIZE], Fit::Stretch).unwrap_err().to_string();
    assert!(error.ends_with("train.json`: has no images: expected some"), "{error}");
}

/// A picture twice as wide as high, with a box and a mask, in three parts.
fn wide(dir: &Path) {
    let json = serde_json::json!({
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 32}, {"id": 2, "file_name": "b.png", "width": 64, "height": 32}],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}, {"id": 3, "name": "frame"}],
        "annotations": [
            {"image_id": 1, "category_id": 2, "bbox": [8, 4, 16, 20], "segmentation": [[8, 4, 24, 4, 24, 24, 8, 24]]},
            {"image_id": 2, "category_id": 1, "bbox": [40, 0, 24, 32]},
        ],
    });
    for part in ["train", "val", "test"] {
        std::fs::create_dir_all(dir.join(part)).unwrap();
        std::fs::write(dir.join(format!("{part}.json")), json.to_string()).unwrap();
        for file in ["a.png", "b.png"] {
            let picture =
                image::RgbImage::from_fn(64, 32, |x, y| image::Rgb([x as u8 * 4, y as u8 * 8, 200]));
            picture.save(dir.join(part).join(file)).unwrap();
        }
    }
}

#[test]
fn pictures_keep_their_ratio_of_sides() {
    let dir = tempfile::tempdir().unwrap();
    wide(dir.path());
    let [train, _, test] = SceneSet::load(dir.path(), [SIZE, SIZE], Fit::Pad).unwrap().map(Arc::new);
    assert_eq!(train.frame(0).shown(), [16, 32]);
    let boxes = train.boxes(0);
    assert_eq!((boxes.objects[0].rect, boxes.objects[0].class), ([4.0, 2.0, 12.0, 12.0], 1));
    assert_eq!(train.frame(0).rect(boxes.objects[0].rect), [8.0, 4.0, 24.0, 24.0]);
    assert_eq!(boxes.reflected().objects[0].rect, [20.0, 2.0, 28.0, 12.0]);
    let class = |row: usize, column: usize| match (row, column) {
        (16.., _) => IGNORED,
        (2..12, 4..12) => 2,
        _ => 0,
    };
    let expected: Vec<u8> = (0..SIZE * SIZE).map(|i| class(i / SIZE, i % SIZE)).collect();
    assert_eq!(train.classes(0), expected);
    let picture = train.picture(0).unwrap();
    // With a filter four pixels wide, of weights 1, 3, 3 and 1; below there is grey, which the mean of all knows nothing of.
    assert_eq!(picture[..6], [3, 6, 200, 10, 6, 200]);
    assert_eq!(picture[16 * SIZE * 3..], [114; 16 * SIZE * 3]);
    assert!((train.normalization().mean[2] - 200.0 / 255.0).abs() < 1e-6);

    // Higher than wide, and taken whole where that is the same.
    let narrow = SceneSet::load(dir.path(), [40, 32], Fit::Pad).unwrap();
    assert_eq!(narrow[0].frame(0).shown(), [16, 32]);
    let [pad, stretch] =
        [Fit::Pad, Fit::Stretch].map(|fit| SceneSet::load(dir.path(), [16, 32], fit).unwrap());
    assert_eq!(content(&pad[0]), content(&stretch[0]));

    // Pictures are reflected, and the grey stays where it is; it is neither right nor wrong.
    let normalization = Normalization::none(3);
    let loader = SceneLoader::<PixelTargets>::new(train, &normalization, (), 16, Some(1), Device::flex());
    let mut reflected = 0;
    for batch in loader.iter() {
        let Batch { input, labels } = batch.unwrap();
        let (_, counted) = labels.right(Tensor::zeros([2 * SIZE * SIZE, 4], &Device::flex()));
        assert_eq!(counted, 2 * 16 * 32);
        let pixels: Vec<f32> = input.into_data().try_into_vec().unwrap();
        for image in pixels.chunks(3 * SIZE * SIZE) {
            assert!(image[16 * SIZE..SIZE * SIZE].iter().all(|&pixel| (pixel - 114.0 / 255.0).abs() < 1e-6));
            reflected += usize::from(image[0] > image[SIZE - 1]);
        }
    }
    assert!(reflected <= 2);

    // What is found in the grey is no find.
    let (_, artifact) = quantized(DETECT, 2, Normalization::none(3));
    let formats = [precisions().highest().into()];
    let measure =
        |artifact: &Artifact| BoxTargets::measure(artifact, &formats, &test, Engine::Fake, &Device::flex());
    let error = measure(&artifact).unwrap_err().to_string();
    assert_eq!(error, "the pictures become images by --fit pad: the model expects --fit stretch");
    let description = Description { resize: Fit::Pad.into(), ..artifact.description.clone() };
    assert!(measure(&Artifact { description, ..artifact }).unwrap()[0].quality.is_some());
    let old = Description {
        resize: Resize::default(),
        ..Description::clone(&quantized(DETECT, 2, Normalization::none(3)).1.description)
    };
    assert_eq!(old.pictures(), Resize::Stretch);
    let found = Found { rect: [2.0, 10.0, 40.0, 20.0], class: 0, score: 0.5 };
    assert_eq!(found.within([16, 32]).unwrap().rect, [2.0, 10.0, 32.0, 16.0]);
    assert_eq!(Found { rect: [2.0, 17.0, 9.0, 20.0], ..found }.within([16, 32]), None);
}

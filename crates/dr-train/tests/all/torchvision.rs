//! Networks that torchvision trained: the same logits, and files as PyTorch writes them.

use burn::tensor::{Device, Tensor, TensorData};
use dr_precision::PrecisionSet;
use dr_train::artifact::{
    ArtifactKind, Described, Description, InputShape, SavedModel, TensorEntry, TensorValues,
};
use dr_train::models::{ConvNetConfig, ConvNetKind, MOBILENET_V2, RESNET8, RESNET18, RESNET34, RESNET50};
use dr_train::nn::{Model, Pass};
use dr_train::weights::{Backbone, Problem, StateDict, StateDictError, WeightsError, ends, import};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// As `noise` of `fixtures/make.py`.
fn noise(name: &str, len: usize) -> Vec<f32> {
    let seed =
        name.bytes().fold(2_166_136_261u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let value = |i: usize| {
        let x = (i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed);
        let x = (x ^ x >> 15).wrapping_mul(2_246_822_519);
        let x = (x ^ x >> 13).wrapping_mul(3_266_489_917);
        (f64::from(x ^ x >> 16) / 2f64.powi(31) - 1.0) as f32
    };
    (0..len).map(value).collect()
}

fn description(model: ConvNetKind, channels: usize, side: usize, classes: usize) -> Description {
    let input = InputShape { channels, height: side, width: side };
    Description::new("folder", &model, input, classes, PrecisionSet::default())
}

/// A state dict as `fill` of `fixtures/make.py` makes it.
fn filled(model: ConvNetKind, classes: usize) -> StateDict {
    let config = ConvNetConfig::new(model, 3, classes);
    let network = Model::trace(&config.init(1, &Device::flex())).unwrap();
    let own = dr_train::artifact::Artifact::of(&network, description(model, 3, 64, classes)).unwrap().tensors;
    let fill = |(name, entry): (String, TensorEntry)| {
        let name = model.torchvision_name(&name).unwrap();
        let mut values = noise(&name, entry.shape.iter().product());
        if entry.shape.len() > 1 {
            let scale = (2.0 / (entry.shape[1..].iter().product::<usize>() as f64).sqrt()) as f32;
            values.iter_mut().for_each(|value| *value *= scale);
        } else if name.ends_with("weight") || name.ends_with("running_var") {
            values.iter_mut().for_each(|value| *value = 1.0 + *value * 0.25);
        } else {
            values.iter_mut().for_each(|value| *value *= 0.125);
        }
        (name, TensorEntry::f32(entry.shape, values))
    };
    let tensors = own.into_iter().map(fill).collect();
    StateDict { path: "filled".into(), tensors, ..StateDict::default() }
}

#[test]
fn logits_are_torchvisions() {
    let json = std::fs::read_to_string(fixture("torchvision.json")).unwrap();
    let expected: BTreeMap<String, Vec<f32>> = serde_json::from_str(&json).unwrap();
    let device = Device::flex();
    for model in [RESNET18, RESNET34, RESNET50, MOBILENET_V2] {
        let imported = import(filled(model, 7), &model, description(model, 3, 64, 7)).unwrap();
        assert_eq!(imported.new_head, []);
        assert_eq!(imported.artifact.description.kind, ArtifactKind::Float);
        let network = imported.artifact.network(&device).unwrap();
        let images = TensorData::new(noise("images", 2 * 3 * 64 * 64), [2, 3, 64, 64]);
        let logits = network.forward(Tensor::<4>::from_data(images, &device), &Pass::float());
        let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
        let expected = &expected[model.name];
        let largest = expected.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
        for (logit, expected) in logits.iter().zip(expected) {
            assert!(
                (logit - expected).abs() <= 1e-4 * largest,
                "{}: {logit} instead of {expected}",
                model.name
            );
        }
    }
}

fn tiny(dict: StateDict, classes: usize) -> Result<dr_train::weights::Imported, WeightsError> {
    let description = Description { width: 2, ..description(RESNET8, 1, 8, classes) };
    import(dict, &RESNET8, description)
}

fn load(path: &Path) -> Result<StateDict, StateDictError> {
    StateDict::load(path, &ends(&RESNET8))
}

fn tiny_dict() -> StateDict {
    load(&fixture("tiny.pth")).unwrap()
}

#[test]
fn files_of_pytorch_and_safetensors() {
    let plain = load(&fixture("tiny.safetensors")).unwrap();
    let conv = &plain.tensors["layer1.0.conv1.weight"];
    let dr_train::artifact::TensorValues::F32(values) = &conv.data else { panic!("{conv:?}") };
    let scale = (2.0 / 18f64.sqrt()) as f32;
    let expected: Vec<f32> = noise("layer1.0.conv1.weight", 36).iter().map(|x| x * scale).collect();
    assert_eq!((conv.shape.as_slice(), &**values), ([2, 2, 3, 3].as_slice(), expected.as_slice()));
    for name in ["tiny.pth", "tiny-wrapped.pth"] {
        assert_eq!(load(&fixture(name)).unwrap().tensors, plain.tensors, "{name}");
    }
    assert_eq!(plain.remark(), None);
    let imported = tiny(plain, 5).unwrap();
    assert_eq!(imported.artifact.f32("head.bias", &[5]).unwrap().len(), 5);
}

/// See `checkpoints` of `fixtures/make.py`.
#[test]
fn weights_are_found_among_what_trainings_keep() {
    let plain = tiny_dict().tensors;
    for (name, below, left) in [
        ("imagenet", "state_dict.module", "`best_acc1`, `optimizer` (29 tensors)"),
        (
            "torchvision",
            "model_ema.module",
            "`model` (47 tensors), `model_ema.n_averaged`, `optimizer` (29 tensors)",
        ),
        ("lightning", "state_dict.net", "`callbacks`, `optimizer_states` (29 tensors), `state_dict.loss`"),
        ("timm", "state_dict_ema", "`optimizer` (29 tensors), `state_dict` (47 tensors)"),
        ("swa", "module", "`n_averaged`"),
        ("nested", "model.module.model", "`ema_decay`"),
    ] {
        let path = fixture(&format!("checkpoints/{name}.pth"));
        let dict = load(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(dict.tensors == plain, "{name}: {:?}", dict.tensors.keys());
        let says = format!("{}: read the tensors below `{below}`, left {left}", path.display());
        assert_eq!(dict.remark(), Some(says));
    }
}

/// Safetensors with prefixes in any order, and parts that lack tensors.
#[test]
fn prefixes_of_any_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefixed.safetensors");
    let plain = tiny_dict().tensors;
    let read = |change: &dyn Fn(&str) -> String, also: &[(&str, &TensorEntry)]| {
        let named = plain.iter().map(|(name, tensor)| (change(name), tensor));
        let also = also.iter().map(|&(name, tensor)| (name.to_owned(), tensor));
        std::fs::write(&path, safetensors::serialize(named.chain(also), None).unwrap()).unwrap();
        load(&path).unwrap()
    };
    for prefix in ["", "module.", "_orig_mod.module.", "module._orig_mod.model.", "model.model.", "a.b.c.d."]
    {
        let dict = read(&|name| format!("{prefix}{name}"), &[]);
        assert!(dict.tensors == plain && dict.remark().is_none(), "{prefix}");
    }
    let inner = |name: &str| {
        name.replace("layer1.", "layer1._orig_mod.").replace("bn2.", "_fsdp_wrapped_module.bn2.")
    };
    assert!(read(&inner, &[]).tensors == plain);
    // Averages of some tensors only are no network.
    let zeros = TensorEntry::f32([2, 1, 3, 3], vec![0.0; 18]);
    let (fc, also) = (&plain["fc.weight"], "ema.shadow.conv1.weight");
    let dict = read(&|name| format!("model.{name}"), &[(also, &zeros), ("ema.shadow.fc.weight", fc)]);
    assert!(dict.tensors == plain);
    assert!(dict.remark().unwrap().ends_with("below `model`, left `ema` (2 tensors)"), "{:?}", dict.remark());
    // Blocks that have tensors of the same names are no network either.
    let error =
        tiny(read(&|name| name.replacen("conv1", "stem", usize::from(name.starts_with("conv1"))), &[]), 5);
    assert!(error.unwrap_err().to_string().contains("`conv1.weight` is missing; `stem.weight` is unknown"));
}

#[test]
fn numbers_that_cannot_be_are_named() {
    let error = |name: &str, at: usize, number: f32| {
        let mut dict = tiny_dict();
        let entry = &dict.tensors[name];
        let TensorValues::F32(values) = &entry.data else { panic!("{entry:?}") };
        let mut values = values.to_vec();
        values[at] = number;
        let entry = TensorEntry::f32(entry.shape.clone(), values);
        dict.tensors.insert(name.into(), entry);
        tiny(dict, 5).unwrap_err().to_string()
    };
    for (name, at, number, says) in [
        (
            "layer2.0.conv2.weight",
            7,
            f32::NAN,
            "`layer2.0.conv2.weight` has NaN at position 7: expected finite numbers",
        ),
        ("fc.bias", 4, f32::NEG_INFINITY, "`fc.bias` has -inf at position 4: expected finite numbers"),
        (
            "layer1.0.bn1.running_var",
            1,
            -0.5,
            "`layer1.0.bn1.running_var` has -0.5 at position 1: expected finite numbers, none below 0",
        ),
    ] {
        assert!(error(name, at, number).ends_with(says), "{}", error(name, at, number));
    }
    let mut dict = tiny_dict();
    dict.tensors.insert("bn1.running_var".into(), TensorEntry::f32([2], vec![0.0; 2]));
    assert!(tiny(dict, 5).is_ok());
}

#[test]
fn every_tensor_that_does_not_fit_is_named() {
    let mut dict = tiny_dict();
    dict.tensors.remove("layer2.0.bn1.running_mean");
    dict.tensors.insert("extra".into(), TensorEntry::f32([1], vec![0.0]));
    let short = TensorEntry::f32([2, 1, 1, 3], vec![0.0; 6]);
    dict.tensors.insert("conv1.weight".into(), short);
    let error = tiny(dict, 5).unwrap_err();
    let WeightsError::Mismatch { problems, .. } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 3);
    assert!(problems.contains(&Problem::Missing("layer2.0.bn1.running_mean".into())));
    assert!(problems.contains(&Problem::Unknown("extra".into())));
    let message = error.to_string();
    assert!(message.contains("`conv1.weight` is [2, 1, 1, 3]: expected [2, 1, 3, 3]"), "{message}");
    assert!(!message.contains('\n'));
}

#[test]
fn sizes_that_the_file_cannot_have() {
    let mut dict = tiny_dict();
    // No axes at all.
    dict.tensors.insert("fc.bias".into(), TensorEntry::f32([], vec![0.0]));
    assert!(tiny(dict, 5).unwrap_err().to_string().contains("`fc.bias` is []: expected [5]"));
    let wide = |width| {
        let description = Description { width, ..description(RESNET8, 1, 8, 5) };
        import(tiny_dict(), &RESNET8, description).unwrap_err().to_string()
    };
    assert!(wide(60_000).contains("values: expected at least"), "{}", wide(60_000));
    assert!(wide(usize::MAX).contains("width is"), "{}", wide(usize::MAX));
}

/// A last layer for other classes starts anew; anything else that differs is a mistake.
#[test]
fn a_head_for_other_classes_is_left_out() {
    let imported = tiny(tiny_dict(), 3).unwrap();
    let names: Vec<String> = imported.new_head.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["`fc.bias` is [5]: expected [3]", "`fc.weight` is [5, 8]: expected [3, 8]"]);
    assert_eq!(imported.artifact.f32("head.weight", &[3, 8]).unwrap().len(), 24);
    assert!(tiny(tiny_dict(), 5).unwrap().new_head.is_empty());
}

#[test]
fn what_is_no_state_dict_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let message = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        error
    };
    message("empty.pth", b"");
    message("text.pth", b"these are no weights at all");
    let whole = std::fs::read(fixture("tiny.pth")).unwrap();
    message("half.pth", &whole[..whole.len() / 2]);
    // A pickle that would call os.system: it is refused, and nothing is called.
    let marker = folder.path().join("executed");
    let command = format!("touch {}", marker.display());
    let pickle = format!("cposix\nsystem\n(S'{command}'\ntR.");
    message("malicious.pth", pickle.as_bytes());
    assert!(!marker.exists());
    let entry = TensorEntry::u32([1], vec![1]);
    let ints = safetensors::serialize([("w", &entry)], None).unwrap();
    assert!(message("ints.safetensors", &ints).contains("`w` is of type U32"));
    let codes = safetensors::serialize([("model.layers.0.q_proj.qweight", &entry)], None).unwrap();
    assert!(
        message("codes.safetensors", &codes).contains("q_proj.qweight`: weights that are quantized already")
    );
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44\n";
    assert!(
        message("pointer.pth", pointer).contains("a pointer of Git LFS"),
        "{}",
        message("pointer.pth", pointer)
    );
    assert!(load(Path::new("/nowhere.pth")).unwrap_err().to_string().contains("/nowhere.pth"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Damaged files: an error, or tensors; never a panic.
    #[test]
    fn damaged_files(name in prop::sample::select(vec!["tiny.pth", "tiny.safetensors"]), at: prop::sample::Index, byte: u8, cut: bool) {
        let mut bytes = std::fs::read(fixture(name)).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        if let Ok(dict) = load(file.path()) {
            let _ = tiny(dict, 5);
        }
    }
}

/// A safetensors file as other programs write them.
fn written(dict: &StateDict, path: &Path) {
    let bytes = |entry: &TensorEntry| {
        let TensorValues::F32(values) = &entry.data else { panic!("{entry:?}") };
        values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()
    };
    let all: Vec<_> =
        dict.tensors.iter().map(|(name, entry)| (name, entry.shape.clone(), bytes(entry))).collect();
    let views = all.iter().map(|(name, shape, bytes)| {
        (
            name.as_str(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn detectors_and_segmentations_start_from_a_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let [theirs, ours] = ["theirs.safetensors", "ours.safetensors"].map(|name| dir.path().join(name));
    let dict = filled(RESNET18, 7);
    written(&dict, &theirs);
    let classifier = import(dict.clone(), &RESNET18, description(RESNET18, 3, 64, 7)).unwrap().artifact;
    classifier.save(&ours).unwrap();
    for task in ["detect", "segment"] {
        for path in [&theirs, &ours] {
            let backbone = Backbone::load(path, &RESNET18, 3).unwrap();
            let of_scenes = Description { task: task.to_owned(), ..description(RESNET18, 3, 64, 4) };
            let started = backbone.start(of_scenes).unwrap();
            // All of its 102 tensors but weight and bias of the head.
            assert_eq!((started.taken.len(), started.left.len()), (100, 2), "{:?}", started.left);
            assert_eq!(classifier.tensors.len(), 102);
            for name in &started.taken {
                let plain = name.strip_prefix("pyramid.").unwrap();
                assert_eq!(started.artifact.tensors[name], classifier.tensors[plain], "{name}");
            }
            let anew = started.artifact.tensors.keys().filter(|name| !started.taken.contains(name));
            assert!(anew.clone().all(|name| !name.contains("stages") && !name.contains("stem")));
            assert!(anew.count() > 10);
            // It runs.
            let network = started.artifact.network(&Device::flex()).unwrap();
            let images = TensorData::new(noise("images", 3 * 64 * 64), [1, 3, 64, 64]);
            let output = network.forward(Tensor::<4>::from_data(images, &Device::flex()), &Pass::float());
            let values: Vec<f32> = output.into_data().try_into_vec().unwrap();
            assert!(values.iter().all(|value| value.is_finite()));
        }
    }

    let error = |change: &dyn Fn(&mut StateDict)| {
        let mut dict = dict.clone();
        change(&mut dict);
        written(&dict, &theirs);
        let started = Backbone::load(&theirs, &RESNET18, 3).and_then(|backbone| {
            backbone.start(Description { task: "detect".to_owned(), ..description(RESNET18, 3, 64, 4) })
        });
        match started {
            Err(WeightsError::Mismatch { problems, .. }) => problems,
            other => panic!("{other:?}"),
        }
    };
    let name = || "layer2.0.conv1.weight".to_owned();
    assert_eq!(error(&|dict| drop(dict.tensors.remove(&name()))), [Problem::Missing(name())]);
    let other = || TensorEntry::f32([2, 2], vec![0.0; 4]);
    let shape = Problem::Shape { name: name(), found: vec![2, 2], expected: vec![128, 64, 3, 3] };
    assert_eq!(error(&|dict| drop(dict.tensors.insert(name(), other()))), [shape]);
    let unknown = error(&|dict| drop(dict.tensors.insert("layer5.0.conv1.weight".to_owned(), other())));
    assert_eq!(unknown, [Problem::Unknown("layer5.0.conv1.weight".to_owned())]);
    let grey = |dict: &mut StateDict| {
        drop(
            dict.tensors
                .insert("conv1.weight".to_owned(), TensorEntry::f32([64, 1, 7, 7], vec![0.0; 64 * 49])),
        );
    };
    let (found, expected) = (vec![64, 1, 7, 7], vec![64, 3, 7, 7]);
    assert_eq!(error(&grey), [Problem::Shape { name: "conv1.weight".to_owned(), found, expected }]);
}

//! Networks for images quantized without training.

use crate::integer_network::{Agreement, CLASSES, float, images, rows};
use burn::data::dataloader::DataLoader;
use burn::module::Module;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Device, Tensor, TensorData};
use dr_precision::{Precision, PrecisionSet};
use dr_runtime::file::{CalibratedError, CalibratedLayer, CalibratedPass, Resize};
use dr_runtime::graph::{Activation, Op};
use dr_runtime::tensors::Network;
use dr_runtime::{Arithmetic, RuntimeError};
use dr_train::artifact::{
    Artifact, ArtifactError, ArtifactKind, Described, Description, InputShape, SavedModel, TensorEntry,
    TensorValues,
};
use dr_train::config::Engine;
use dr_train::data::{ImageFiles, ImageLoader, ImageShape, Input};
use dr_train::evaluation::{EvaluationError, formats, labelled, measure};
use dr_train::models::{ConvNetKind, LlamaConfig, MOBILENET_V2, RESNET8, RESNET18};
use dr_train::nn::{
    Executor, Model, Network as _, Pass, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantLinearConfig,
    Value,
};
use dr_train::onnx::{self, Opset};
use dr_train::quantization::{
    CalibratedModel, CalibrationError, DistillationError, DistillationOptions, DistillationProgress,
    Distilled, LayerNoise, NetworkOptions, calibrate, distill, folded,
};
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;

const SHAPE: [usize; 3] = [3, 16, 20];

fn set(text: &str) -> PrecisionSet {
    text.parse().unwrap()
}

fn saved(model: Model) -> Artifact {
    let input = InputShape { channels: SHAPE[0], height: SHAPE[1], width: SHAPE[2] };
    let description = Description::new("digits", &RESNET8, input, CLASSES, PrecisionSet::default());
    Artifact::of(&model.valid(), description).unwrap()
}

fn float_artifact(kind: ConvNetKind) -> Artifact {
    saved(float(kind, SHAPE, 8))
}

fn some(seed: u64, count: usize) -> Tensor<4> {
    images(seed, [count, SHAPE[0], SHAPE[1], SHAPE[2]], &Device::flex())
}

fn options(precisions: &str) -> NetworkOptions {
    let precisions = set(precisions);
    NetworkOptions {
        precisions,
        switch_edge: false,
        switch_depthwise: false,
        float_share: 0.0,
        memory: u64::MAX,
        folder: std::env::temp_dir(),
    }
}

fn calibrated(float: &Artifact, options: &NetworkOptions) -> (Artifact, Vec<LayerNoise>) {
    let inputs = (40..44).map(|seed| some(seed, 16).into()).collect();
    calibrate(float, inputs, options, |_| ()).unwrap()
}

/// The same with results of the last layer that are too large by half: what training has to gain is then more than chance.
fn skewed(mut artifact: Artifact) -> Artifact {
    let scales = artifact.tensors.iter_mut();
    for (_, entry) in scales.filter(|(name, _)| name.starts_with("head.") && name.ends_with(".scale")) {
        let TensorValues::F32(values) = &entry.data else { panic!("{entry:?}") };
        let values: Vec<f32> = values.iter().map(|scale| scale * 1.5).collect();
        entry.data = TensorValues::F32(values.into());
    }
    artifact
}

fn integers(artifact: &Artifact, precision: Precision) -> Network {
    Network::load(artifact, precision, Arithmetic::Integer, &Device::flex()).unwrap()
}

fn fake(artifact: &Artifact, precision: Precision, x: Tensor<4>) -> Tensor<2> {
    let model = CalibratedModel::new(artifact, precision, &Device::flex()).unwrap();
    let Value::Rows(rows) = model.run(x.into()) else { panic!("rows") };
    rows
}

/// The relative error of logits.
fn error(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    let pairs = || found.iter().flatten().zip(expected.iter().flatten());
    let squares = pairs().map(|(found, expected)| (found - expected).powi(2)).sum::<f32>();
    (squares / pairs().map(|(_, expected)| expected * expected).sum::<f32>()).sqrt()
}

#[test]
fn folding_changes_nothing() {
    for kind in [RESNET8, MOBILENET_V2] {
        let float = float_artifact(kind);
        let folded = folded(&float).unwrap();
        let graph = folded.graph().unwrap();
        assert!(graph.batch_norms().is_empty() && graph.layers().iter().all(|layer| layer.bias));
        let run = |artifact: &Artifact| {
            rows(artifact.network(&Device::flex()).unwrap().forward(some(1, 8), &Pass::float()))
        };
        let error = error(&run(&folded), &run(&float));
        assert!(error < 1e-5, "{}: {error}", kind.name);
    }
}

#[test]
fn integers_compute_what_fake_quantization_says() {
    for (kind, switch) in [(RESNET8, false), (RESNET18, true), (MOBILENET_V2, false), (MOBILENET_V2, true)] {
        let options = NetworkOptions {
            switch_edge: switch,
            switch_depthwise: switch,
            ..options("w8a8,w6a8,w4a8,w4a4,w2a6")
        };
        let (artifact, noise) = calibrated(&float_artifact(kind), &options);
        let artifact = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
        assert_eq!(noise.len(), artifact.graph().unwrap().layers().len());
        let x = some(3, 200);
        for precision in options.precisions.iter() {
            let mut found = Agreement::default();
            let integer = rows(integers(&artifact, precision).forward(x.clone()).unwrap());
            found.add(&rows(fake(&artifact, precision, x.clone())), &integer);
            // A value next to the middle between two codes may be rounded either way.
            assert!(found.close * 100 >= found.images * 80, "{} {precision}: {found:?}", kind.name);
        }
    }
}

#[test]
fn results_are_near_those_in_floats() {
    for kind in [RESNET8, MOBILENET_V2] {
        let float = float_artifact(kind);
        let x = some(5, 64);
        let expected = rows(float.network(&Device::flex()).unwrap().forward(x.clone(), &Pass::float()));
        let (artifact, _) = calibrated(&float, &options("w8a8,w6a8,w4a8"));
        let of = |artifact: &Artifact, precision: &str| {
            let network = integers(artifact, precision.parse().unwrap());
            error(&rows(network.forward(x.clone()).unwrap()), &expected)
        };
        let [eight, six, four] = ["w8a8", "w6a8", "w4a8"].map(|precision| of(&artifact, precision));
        assert!(
            eight < 0.1 && eight < six && six < four && four < 0.6,
            "{}: {eight} {six} {four}",
            kind.name
        );
        // What narrower widths cost the highest one is nothing.
        let alone = of(&calibrated(&float, &options("w8a8")).0, "w8a8");
        assert!(eight < 1.15 * alone, "{}: {eight} beside {alone}", kind.name);
    }
}

/// A few images with one pixel that is far beyond all others: 8 bits of the first layers do not tell the others apart.
fn calibrated_with_outlier(kind: ConvNetKind, options: &NetworkOptions) -> (Artifact, Vec<LayerNoise>) {
    let mut values: Vec<f32> = some(40, 16).into_data().iter::<f32>().collect();
    values[3] = 900.0;
    let [channels, rows, columns] = SHAPE;
    let outlier =
        Tensor::<4>::from_data(TensorData::new(values, [16, channels, rows, columns]), &Device::flex());
    calibrate(&float_artifact(kind), vec![outlier.into(), some(41, 32).into()], options, |_| ()).unwrap()
}

#[test]
fn layers_that_cost_too_much_stay_in_floats() {
    for kind in [RESNET8, MOBILENET_V2] {
        let float_share = 1.0;
        let options = NetworkOptions { float_share, ..options("w8a8,w4a8") };
        let (artifact, noise) = calibrated_with_outlier(kind, &options);
        let names = noise.iter().filter(|of| of.in_floats).map(|of| of.name.clone()).collect();
        assert_eq!(artifact.description.in_floats, names);
        assert!(noise.iter().all(|of| of.in_floats == (of.alone > 0.01)), "{noise:?}");
        assert!(names.contains("stem") && names.len() < noise.len(), "{}: {noise:?}", kind.name);

        let artifact = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
        let x = some(3, 200);
        let mut switched = integers(&artifact, options.precisions.highest());
        for precision in options.precisions.iter() {
            switched.switch(precision).unwrap();
            let found = rows(switched.forward(x.clone()).unwrap());
            let mut agreement = Agreement::default();
            agreement.add(&rows(fake(&artifact, precision, x.clone())), &found);
            assert!(
                agreement.close * 100 >= agreement.images * 80,
                "{} {precision}: {agreement:?}",
                kind.name
            );
            let only = integers(&artifact.export(precision).unwrap(), precision);
            assert_eq!(rows(only.forward(x.clone()).unwrap()), found, "{precision}");
            onnx::export(&artifact.export(precision).unwrap(), Opset::default()).unwrap();
        }

        let float =
            rows(float_artifact(kind).network(&Device::flex()).unwrap().forward(x.clone(), &Pass::float()));
        let of = |artifact: &Artifact| {
            error(&rows(integers(artifact, "w8a8".parse().unwrap()).forward(x.clone()).unwrap()), &float)
        };
        let without = NetworkOptions { float_share: 0.0, ..options.clone() };
        let (without, noise) = calibrated_with_outlier(kind, &without);
        assert!(without.description.in_floats.is_empty() && noise[0].alone > 0.01);
        // What the pixel does to the ranges of all later layers stays.
        assert!(of(&artifact) < of(&without), "{}: {} {}", kind.name, of(&artifact), of(&without));
    }
}

#[test]
fn exports_compute_the_same() {
    let (artifact, _) = calibrated(&float_artifact(MOBILENET_V2), &options("w8a8,w4a8,w4a4"));
    assert_eq!(artifact.description.kind, ArtifactKind::Calibrated);
    let x = some(9, 8);
    let mut switched = integers(&artifact, artifact.description.precisions.highest());
    for precision in artifact.description.precisions.iter() {
        let only = artifact.export(precision).unwrap();
        let only = Artifact::from_bytes(&only.to_bytes().unwrap()).unwrap();
        switched.switch(precision).unwrap();
        let expected = rows(switched.forward(x.clone()).unwrap());
        assert_eq!(rows(integers(&only, precision).forward(x.clone()).unwrap()), expected, "{precision}");
        assert_eq!(rows(fake(&only, precision, x.clone())), rows(fake(&artifact, precision, x.clone())));
        assert_eq!(only.export(precision).unwrap().tensors, only.tensors);
        assert!(only.payload_bytes() < artifact.payload_bytes());
        onnx::export(&only, Opset::default()).unwrap();
    }
    let (wide, narrow) = ("w8a8".parse().unwrap(), "w4a8".parse().unwrap());
    let [wide, narrow] = [wide, narrow].map(|precision| artifact.export(precision).unwrap().payload_bytes());
    assert!(narrow * 4 < wide * 3, "{narrow} of {wide}");
    let missing: Precision = "w6a8".parse().unwrap();
    assert!(matches!(artifact.export(missing), Err(ArtifactError::Precision { .. })));
    assert!(matches!(switched.switch(missing), Err(RuntimeError::Precision { .. })));
    assert!(CalibratedModel::new(&artifact, missing, &Device::flex()).is_err());
    let weight_only = Network::load(&artifact, missing, Arithmetic::WeightOnly, &Device::flex());
    assert!(weight_only.is_err());
}

/// A network that uses a convolution twice.
#[derive(Module, Debug)]
struct Twice {
    stem: QuantConv2d,
    conv: QuantConv2d,
    head: QuantLinear,
}

impl dr_train::nn::Network for Twice {
    fn input(&self) -> Op {
        Op::Images { channels: 3 }
    }

    fn forward<E: Executor>(&self, on: &mut E, input: E::Value) -> E::Value {
        let mut x = on.conv2d(input, &self.stem, None);
        for _ in 0..2 {
            x = on.activation(x, Activation::Relu);
            x = on.conv2d(x, &self.conv, None);
        }
        let x = on.mean(x);
        on.linear(x, &self.head)
    }
}

#[test]
fn each_use_of_a_layer_is_a_layer() {
    let (rng, device) = (&mut <chacha20::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(3), Device::flex());
    let twice = Twice {
        stem: QuantConv2dConfig::new([3, 6], 3).with_bias(true).init(rng, &device),
        conv: QuantConv2dConfig::new([6, 6], 3).init(rng, &device),
        head: QuantLinearConfig::new([6, CLASSES]).init(rng, &device),
    };
    let _ = twice.input();
    let float = saved(Model::trace(&twice).unwrap());
    let (artifact, noise) = calibrated(&float, &options("w8a8"));
    let names: Vec<&str> = noise.iter().map(|of| of.name.as_str()).collect();
    assert_eq!(names, ["stem", "conv", "conv.1", "head"]);
    let x = some(2, 16);
    let expected = rows(float.network(&device).unwrap().forward(x.clone(), &Pass::float()));
    let found = rows(integers(&artifact, "w8a8".parse().unwrap()).forward(x).unwrap());
    assert!(error(&found, &expected) < 0.05);
    assert!(noise.iter().all(|of| of.signal_to_noise[0] > 20.0), "{noise:?}");
}

#[test]
fn what_cannot_be_quantized() {
    let float = float_artifact(RESNET8);
    let run = |float: &Artifact, inputs| calibrate(float, inputs, &options("w8a8"), |_| ()).unwrap_err();
    assert!(matches!(run(&float, vec![]), CalibrationError::NoInputs));
    let nothing = Tensor::<4>::full([1, SHAPE[0], SHAPE[1], SHAPE[2]], f32::NAN, &Device::flex());
    assert_eq!(
        run(&float, vec![nothing.into()]).to_string(),
        "layer `stem` is given values that are not finite"
    );
    let mut broken = float.clone();
    let name = "stages.1.0.conv1.weight";
    let shape = broken.tensors[name].shape.clone();
    let count = shape.iter().product();
    broken.tensors.insert(name.to_owned(), TensorEntry::f32(shape, vec![f32::INFINITY; count]));
    let error = run(&broken, vec![some(1, 2).into()]).to_string();
    assert_eq!(error, "layer `stages.1.0.conv1` has weights that are not finite");
    let (quantized, _) = calibrated(&float, &options("w8a8"));
    assert!(matches!(
        run(&quantized, vec![some(1, 2).into()]),
        CalibrationError::Artifact(ArtifactError::Kind { found: ArtifactKind::Calibrated, .. })
    ));
    let config = LlamaConfig::small(97, 64, 2, 64);
    let llama = Model::trace(&config.init(3, &Device::flex())).unwrap();
    let llama = Artifact::of(&llama, Description::of_language(&config, PrecisionSet::default())).unwrap();
    assert!(matches!(run(&llama, vec![some(1, 2).into()]), CalibrationError::Tokens));
}

#[test]
fn constant_inputs_are_quantized() {
    let float = float_artifact(RESNET8);
    let zeros = Tensor::<4>::zeros([2, SHAPE[0], SHAPE[1], SHAPE[2]], &Device::flex());
    let (artifact, _) = calibrate(&float, vec![zeros.clone().into()], &options("w8a8,w4a4"), |_| ()).unwrap();
    for precision in artifact.description.precisions.iter() {
        let found = rows(integers(&artifact, precision).forward(zeros.clone()).unwrap());
        assert!(found.iter().flatten().all(|logit| logit.is_finite()));
    }
}

#[test]
fn damaged_files_are_named() {
    let (artifact, _) = calibrated(&float_artifact(RESNET8), &options("w8a8,w4a8"));
    let message = |change: &dyn Fn(&mut BTreeMap<String, TensorEntry>)| {
        let mut artifact = artifact.clone();
        change(&mut artifact.tensors);
        let of_model = artifact.network(&Device::flex()).unwrap_err().to_string();
        let precision = "w8a8".parse().unwrap();
        let of_runtime = Network::load(&artifact, precision, Arithmetic::Integer, &Device::flex());
        assert_eq!(of_runtime.unwrap_err().to_string(), of_model);
        of_model
    };
    let put = |name: &'static str, entry: TensorEntry| {
        message(&move |tensors| drop(tensors.insert(name.to_owned(), entry.clone())))
    };
    let gone = message(&|tensors| drop(tensors.remove("head.w4a8.bias")));
    assert_eq!(gone, "tensor `head.w4a8.bias` is missing: expected by the model that the file describes");
    assert_eq!(
        put("stem.weight", TensorEntry::i8([3], vec![0; 3])),
        "tensor `stem.weight` has shape [3]: expected [8, 3, 3, 3]"
    );
    assert!(put("stem.weight", TensorEntry::f32([8, 3, 3, 3], vec![0.0; 216])).contains("has type F32"));
    for (value, text) in [(f32::NAN, "NaN"), (0.0, "0"), (-1.0, "-1"), (f32::INFINITY, "inf")] {
        assert_eq!(
            put("stem.w4a8.scale", TensorEntry::f32([8], vec![value; 8])),
            format!("the layer `stem` has scale {text} at w4a8: expected finite numbers, and scales above 0")
        );
    }
    let input = put("stem.w8a8.input", TensorEntry::f32([2], vec![0.0, 1.0]));
    assert!(input.contains("scale 0 at w8a8"), "{input}");
    let offset = put("stem.w8a8.offset", TensorEntry::f32([8], vec![f32::NEG_INFINITY; 8]));
    assert!(offset.contains("offset -inf at w8a8"), "{offset}");

    let description = |change: &dyn Fn(&mut Description)| {
        let mut artifact = artifact.clone();
        change(&mut artifact.description);
        artifact.to_bytes().unwrap_err().to_string()
    };
    assert!(description(&|of| of.graph = None).contains("a calibrated model without a graph"));
    let unknown = description(&|of| {
        of.in_floats.insert("nothing".to_owned());
    });
    assert!(unknown.contains("a calibrated model with `nothing` in floats: expected the name of a layer"));
    let mut other = float_artifact(RESNET8);
    other.description.in_floats.insert("stem".to_owned());
    assert!(other.to_bytes().unwrap_err().to_string().contains("a float model with `stem` in floats"));
    let with_norms = float_artifact(RESNET8).description.graph;
    let found = description(&|of| of.graph.clone_from(&with_norms));
    assert!(found.contains("a calibrated model with the BatchNorm `"), "{found}");
}

#[test]
fn layers_are_checked() {
    let precision: Precision = "w4a8".parse().unwrap();
    let pass = |outputs: usize| CalibratedPass {
        precision,
        widths: precision,
        scale: vec![1.0; outputs].into(),
        offset: vec![0.5; outputs].into(),
        bias: vec![0.0; outputs].into(),
        input: vec![1.0, 0.0].into(),
    };
    let new = |shape: &[usize], codes: usize, passes| CalibratedLayer::new(shape, vec![32; codes], passes);
    let count = |what, found, expected| Some(CalibratedError::Count { what, found, expected });
    assert_eq!(new(&[2, 3], 5, vec![pass(2)]).err(), count("codes", 5, 6));
    assert_eq!(new(&[2, 3], 6, vec![]).err(), count("precisions", 0, 1));
    assert_eq!(new(&[2, 3], 6, vec![pass(3)]).err(), count("scale", 3, 2));
    let layer = new(&[2, 3], 6, vec![pass(2)]).unwrap();
    assert_eq!(layer.dequantized(precision), Some(vec![2.5; 6]));
    assert_eq!(layer.dequantized("w8a8".parse().unwrap()), None);
    // All of one narrow width are packed.
    assert_eq!(layer.tensors("x")[0].1.data.type_name(), "U32");
}

/// Values wait in a file, all of them or those that there is no room for, and the result is the same.
#[test]
fn memory_does_not_change_the_result() {
    for kind in [RESNET8, MOBILENET_V2] {
        let options = NetworkOptions { float_share: 0.3, ..options("w8a8,w4a4") };
        let expected = calibrated_with_outlier(kind, &options);
        assert!(!expected.0.description.in_floats.is_empty());
        for memory in [0, 100_000] {
            let found = calibrated_with_outlier(kind, &NetworkOptions { memory, ..options.clone() });
            assert_eq!(found, expected, "{}, {memory} bytes", kind.name);
        }
    }
    let folder = tempfile::tempdir().unwrap().path().join("missing");
    let options = NetworkOptions { memory: 0, folder, ..options("w8a8") };
    let inputs = vec![some(40, 16).into()];
    let error = calibrate(&float_artifact(RESNET8), inputs, &options, |_| ()).unwrap_err().to_string();
    assert!(error.starts_with("the file of values between layers: "), "{error}");
}

/// Images of any kind are compared by what the float network makes of them; a file that cannot be read is left out.
#[test]
fn images_without_classes() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    for at in 0..20u8 {
        let pixel = |x: u32, y: u32| image::Rgb([at * 12, (x * 9) as u8, (y * u32::from(at)) as u8]);
        let folder = dir.path().join(["", "a", "a/b"][usize::from(at % 3)]);
        image::RgbImage::from_fn(24, 20, pixel).save(folder.join(format!("{at:02}.png"))).unwrap();
    }
    fs::write(dir.path().join("a/05.png.jpg"), "no image").unwrap();
    let shape = ImageShape { channels: 3, height: 16, width: 16 };
    let images = ImageFiles::below(dir.path(), shape, Resize::Middle).unwrap();
    assert_eq!((images.len(), images.classes.len()), (21, 1));
    let spread = images.spread(7);
    assert!(spread.files.iter().eq(images.files.iter().step_by(3)) && images.spread(99).len() == 21);
    let mut float = float_artifact(RESNET8);
    float.description.input = shape.into();
    let inputs = vec![images_of(&images, &float)];
    let (artifact, _) = calibrate(&float, inputs, &options("w8a8,w4a8"), |_| ()).unwrap();
    let device = Device::flex();
    let labelled = labelled(&float, &images, &device).unwrap();
    assert_eq!(labelled.classes.len(), CLASSES);
    let found =
        measure(&artifact, &formats(&artifact), &labelled.into(), Engine::Integer, Some(&float), &device);
    for measured in found.unwrap() {
        let agreement = measured.agreement.unwrap();
        assert_eq!(measured.top1, agreement.same_top1);
        assert!(agreement.divergence < 0.2 && agreement.relative_error < 0.5, "{agreement:?}");
        assert!(agreement.sure <= 20 && agreement.same_top1 > 40.0, "{agreement:?}");
    }
    let wrong =
        Artifact { description: Description { classes: 9, ..float.description.clone() }, ..float.clone() };
    let other = images.with_classes(&[0; 21], CLASSES);
    let error = measure(&artifact, &formats(&artifact), &other.into(), Engine::Fake, Some(&wrong), &device);
    assert!(matches!(error, Err(EvaluationError::Classes { found: CLASSES, expected: 9 })));
}

fn images_of(images: &ImageFiles, artifact: &Artifact) -> Value {
    let normalization = artifact.description.normalization.clone();
    let loader = ImageLoader::evaluation(images.spread(21), normalization, 21, Device::flex());
    loader.iter().next().unwrap().unwrap().input.into()
}

/// The loss of what is held out, as a file has it: the mean divergence of the classes at a precision.
fn divergence(float: &Artifact, artifact: &Artifact, precision: Precision, inputs: &[Value]) -> f64 {
    let teacher = float.network(&Device::flex()).unwrap();
    let of = |input: &Value| {
        let Value::Images(x) = input else { panic!("images") };
        let x = x.clone().channels_first();
        let [p, q] = [teacher.forward(x.clone(), &Pass::float()), fake(artifact, precision, x.clone())];
        let terms = softmax(p.clone(), 1) * (log_softmax(p, 1) - log_softmax(q, 1));
        f64::from(terms.sum_dim(1).mean().into_scalar::<f32>())
    };
    inputs.iter().map(of).sum::<f64>() / inputs.len() as f64
}

#[test]
fn trained_without_labels() {
    let float = float_artifact(MOBILENET_V2);
    let start = skewed(calibrated(&float, &options("w8a8,w4a4,w2a4")).0);
    let inputs: Vec<Value> = vec![some(60, 60).into()];
    let held_out: Vec<Value> = inputs[0].clone().split(1).into_iter().skip(4).step_by(5).collect();
    let options = DistillationOptions {
        epochs: 6,
        weight_rate: 1e-3,
        scale_rate: 1e-2,
        ..DistillationOptions::default()
    };
    let (mut steps, mut epochs) = (vec![], vec![]);
    let result = distill(&float, &start, inputs.clone(), &options, &Device::flex(), |progress| {
        match progress {
            DistillationProgress::Step { loss, .. } => steps.push(loss),
            DistillationProgress::Epoch { held_out, .. } => epochs.push(held_out.to_vec()),
        }
        ControlFlow::Continue(())
    });
    let Distilled { artifact, epoch, before, after, diverged } = result.unwrap();
    assert!(!diverged && epoch > 0 && steps.len() == 6 * 3 && epochs.len() == 7, "{epochs:?}");
    assert_eq!(before, epochs[0]);
    assert!(after.iter().zip(&epochs[epoch]).all(|(after, epoch)| after <= epoch), "{after:?} {epochs:?}");
    let parts: f64 = after.iter().zip(&before).map(|(after, before)| after / before).sum();
    assert!(parts < 3.0 && after[1] < before[1], "{epochs:?}");

    // What is stored computes what was trained, in floats and in integers.
    let artifact = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
    assert_ne!(artifact.tensors["head.w4a4.scale"].data, start.tensors["head.w4a4.scale"].data);
    for (at, precision) in artifact.description.precisions.iter().enumerate() {
        for (artifact, loss) in [(&start, before[at]), (&artifact, after[at])] {
            let found = divergence(&float, artifact, precision, &held_out);
            assert!((found - loss).abs() <= 1e-4 * loss + 1e-8, "{precision}: {found} {loss}");
        }
        let x = some(3, 100);
        let mut found = Agreement::default();
        let integer = rows(integers(&artifact, precision).forward(x.clone()).unwrap());
        found.add(&rows(fake(&artifact, precision, x)), &integer);
        assert!(found.close * 100 >= found.images * 80, "{precision}: {found:?}");
    }

    // It may be stopped, and has then what is best so far.
    let stop = |_: DistillationProgress<'_>| ControlFlow::Break(());
    let stopped = distill(&float, &start, inputs, &options, &Device::flex(), stop).unwrap();
    assert_eq!((stopped.epoch, stopped.artifact.tensors), (0, start.tensors.clone()));
    let one = distill(&float, &start, vec![some(1, 1).into()], &options, &Device::flex(), stop);
    assert!(matches!(one.unwrap_err(), DistillationError::Inputs(1)));
    let two = || vec![some(1, 2).into()];
    let wrong = distill(&float, &float, two(), &options, &Device::flex(), stop).unwrap_err();
    assert!(matches!(wrong, DistillationError::Artifact(ArtifactError::Kind { .. })), "{wrong}");
}

/// Codes of a single narrow width are packed, and stay so.
#[test]
fn packed_codes_are_trained() {
    let float = float_artifact(RESNET8);
    let start = skewed(calibrated(&float, &NetworkOptions { switch_edge: true, ..options("w3a4") }).0);
    let inputs = vec![some(20, 120).into()];
    let options =
        DistillationOptions { epochs: 6, weight_rate: 3e-3, scale_rate: 1e-2, ..Default::default() };
    let go = |_: DistillationProgress<'_>| ControlFlow::Continue(());
    let result = distill(&float, &start, inputs, &options, &Device::flex(), go).unwrap();
    assert!(result.epoch > 0 && result.after[0] < result.before[0], "{:?}", result.after);
    let part = |of: &Artifact, name: &str| of.tensors[name].clone();
    let words = part(&result.artifact, "stem.weight");
    assert_eq!((words.data.type_name(), words.shape), ("U32", part(&start, "stem.weight").shape));
    assert_ne!(part(&result.artifact, "stem.w3a4.scale"), part(&start, "stem.w3a4.scale"));
}

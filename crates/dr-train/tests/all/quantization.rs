//! Language models quantized without training.

use crate::llama::{self, VARIANTS};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::NestedWeight;
use dr_runtime::tensors::{Cache, Network};
use dr_runtime::{Arithmetic, RuntimeError};
use dr_train::artifact::{Artifact, ArtifactError, ArtifactKind, Described, Description, SavedModel};
use dr_train::config::Engine;
use dr_train::evaluation::{formats, measure_text};
use dr_train::models::LlamaConfig;
use dr_train::nn::{Model, Pass, Tensors, Value};
use dr_train::quantization::{
    CalibrationOptions, Dynamic, NestedModel, Progress, QuantizationError, TuningOptions, quantize_language,
    tune,
};
use dr_train::report::Measured;
use std::sync::Arc;

const WIDTHS: [BitWidth; 3] = [BitWidth::B6, BitWidth::B4, BitWidth::B3];

/// What fake quantization makes of a text, at a width.
fn fake(nested: &NestedModel, model: &Model, bits: BitWidth, text: &[u32]) -> Tensor<2> {
    let ids: Vec<i64> = text.iter().map(|&token| i64::from(token)).collect();
    let input = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, text.len()]), &Device::flex());
    let model = nested.dequantized(model.clone(), |_| bits);
    match model.run(&mut Dynamic(Tensors::new(&Pass::float())), Value::Tokens(input)) {
        Value::Rows(rows) => rows,
        _ => panic!("rows"),
    }
}

/// The mean divergence of predictions from others.
fn of_logits(a: Tensor<2>, b: Tensor<2>) -> f64 {
    let rows = a.dims()[0] as f64;
    let [a, b] = [a, b].map(|logits| log_softmax(logits, 1));
    (a.clone().exp() * (a - b)).sum().into_scalar::<f64>() / rows
}

fn model(tied: bool) -> Model {
    let config = LlamaConfig { tied, ..LlamaConfig::small(97, 64, 2, 64) };
    Model::trace(&config.init(3, &Device::flex())).expect("a Llama has a graph")
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i / 3) % 97).collect()
}

fn options(gradient_windows: usize) -> CalibrationOptions {
    CalibrationOptions { windows: 6, length: 24, gradient_windows, single_tokens: 40, ..Default::default() }
}

fn quantize(model: &Model, gradient_windows: usize) -> NestedModel {
    quantize_language(model, &tokens(300), &WIDTHS, &options(gradient_windows), |_| {})
        .expect("a quantized model")
}

/// The mean divergence from the model's predictions.
fn divergence(model: &Model, other: &Model) -> f64 {
    let text: Vec<i64> = tokens(400)[300..].iter().map(|&token| i64::from(token)).collect();
    let input = Tensor::<2, Int>::from_data(TensorData::new(text, [2, 50]), &Device::flex());
    let [a, b] = [model, other].map(|model| log_softmax(model.forward(input.clone(), &Pass::float()), 1));
    (a.clone().exp() * (a - b)).sum().into_scalar::<f64>() / 100.0
}

#[test]
fn every_layer_once_and_in_order() {
    for tied in [false, true] {
        let model = model(tied);
        let mut seen = vec![];
        let found = quantize_language(&model, &tokens(300), &WIDTHS, &options(2), |progress| {
            seen.push(match progress {
                Progress::Gradients { done, of } => format!("{done}/{of}"),
                Progress::Layer { name, done, of } => format!("{name} {done}/{of}"),
            });
        });
        let found = found.expect("a quantized model");
        let layers = if tied { 15 } else { 16 };
        assert_eq!(found.weights.len(), layers);
        let first = if tied { "layers.0.self_attn.q_proj" } else { "embed_tokens" };
        assert_eq!(&seen[..3], ["1/2", "2/2", &format!("{first} 1/{layers}")]);
        assert_eq!(seen.len(), 2 + layers);
        assert_eq!(seen.last(), Some(&format!("lm_head {layers}/{layers}")));
        for (name, weight) in &found.weights {
            let edge = name == "lm_head" || name == "embed_tokens";
            assert_eq!(weight.widths().len(), if edge { 1 } else { 4 }, "{name}");
        }
    }
}

#[test]
fn wider_is_nearer_and_hessians_help() {
    let model = model(true);
    // Without a text to speak of there is no Hessian worth the name.
    let short = CalibrationOptions { length: 1, ..options(0) };
    let plain = quantize_language(&model, &tokens(2), &WIDTHS, &short, |_| {}).expect("a quantized model");
    let at = |nested: &NestedModel, bits| divergence(&model, &nested.dequantized(model.clone(), |_| bits));
    for gradient_windows in [0, 3] {
        let nested = quantize(&model, gradient_windows);
        let [eight, six, four, three] =
            [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3].map(|bits| at(&nested, bits));
        assert!(eight < six && six < four && four < three, "{eight} {six} {four} {three}");
        assert!(four < at(&plain, BitWidth::B4), "{four} {}", at(&plain, BitWidth::B4));
    }
}

#[test]
fn tuning_serves_its_widths_alone() {
    let model = model(true);
    let before = quantize(&model, 2);
    let tuned = |options: &TuningOptions, tokens: &[u32]| {
        let (mut nested, mut seen) = (before.clone(), vec![]);
        tune(&model, &mut nested, tokens, options, |progress| seen.push(progress));
        (nested, seen)
    };
    let options = TuningOptions { steps: 100, length: 48, widest: BitWidth::B3, ..Default::default() };
    let (after, seen) = tuned(&options, &tokens(300));
    assert_eq!(seen.len(), 100);
    assert!(
        seen.iter()
            .enumerate()
            .all(|(at, step)| (step.bits, step.done, step.of) == (BitWidth::B3, at + 1, 100))
    );
    let at = |nested: &NestedModel, bits| divergence(&model, &nested.dequantized(model.clone(), |_| bits));
    let [old, new] = [&before, &after].map(|nested| at(nested, BitWidth::B3));
    assert!(new < old, "{new} instead of {old}");
    for (name, weight) in &after.weights {
        let old = &before.weights[name];
        assert_eq!(weight.codes(BitWidth::B8), old.codes(BitWidth::B8), "{name}");
        for bits in [BitWidth::B8, BitWidth::B6, BitWidth::B4] {
            assert_eq!(weight.affine(bits), old.affine(bits), "{name} at {bits}");
        }
    }
    let few = TuningOptions { steps: 5, ..options.clone() };
    let once = tuned(&few, &tokens(300));
    assert_eq!(tuned(&few, &tokens(300)), once);
    assert_ne!(tuned(&TuningOptions { seed: 1, ..few }, &tokens(300)).0, once.0);
    for (none, text) in [(TuningOptions { steps: 0, ..options.clone() }, 300), (options.clone(), 47)] {
        assert_eq!(tuned(&none, &tokens(text)), (before.clone(), vec![]));
    }
}

fn weights(weight: &NestedWeight) -> usize {
    weight.shape().iter().product()
}

fn groups(weight: &NestedWeight) -> usize {
    weight.shape()[0] * weight.groups()
}

#[test]
fn the_file_is_the_model() {
    for tied in [false, true] {
        let (model, device) = (model(tied), Device::flex());
        let config = LlamaConfig { tied, ..LlamaConfig::small(97, 64, 2, 64) };
        let float = Artifact::of(&model, Description::of_language(&config, PrecisionSet::default()));
        let (float, nested) = (float.expect("a float model"), quantize(&model, 2));
        let file = nested.artifact(&float).expect("a nested model");
        let file = Artifact::from_bytes(&file.to_bytes().expect("a file")).expect("what was written");
        assert_eq!(file.description.precisions.to_string(), "w8a8,w6a8,w4a8,w3a8");
        assert_eq!(file.nested().expect("nested weights"), nested.weights);
        let read = file.network(&device).expect("a network");
        let at_eight = nested.dequantized(model.clone(), |_| BitWidth::B8);
        assert!(divergence(&read, &at_eight).abs() < 1e-9);
        let (bytes, floats) = (file.payload_bytes(), float.payload_bytes());
        assert!(bytes * 10 < floats * 4, "{bytes} of {floats} bytes");
        let error = nested.artifact(&file).expect_err("not a float model");
        assert!(matches!(error, ArtifactError::Kind { found: ArtifactKind::Nested, .. }));
        assert!(file.check_precision(Precision::uniform(BitWidth::B8)).is_err());
        let missing = file.export(Precision::new(BitWidth::B5, BitWidth::B8)).expect_err("no such precision");
        assert!(matches!(missing, ArtifactError::Precision { .. }));
        // Half a byte for each weight of a layer that switches, two bytes for a group of 32 and eight for an output; a byte for others, four for a group.
        let only = file.export(Precision::new(BitWidth::B4, BitWidth::B8)).expect("one of its precisions");
        let norms = float.payload_bytes() - 4 * nested.weights.values().map(weights).sum::<usize>();
        let size = |weight: &NestedWeight| match weight.widths().len() {
            1 => weights(weight) + 4 * groups(weight),
            _ => weights(weight) / 2 + 2 * groups(weight) + 8 * weight.shape()[0],
        };
        assert_eq!(only.payload_bytes(), norms + nested.weights.values().map(size).sum::<usize>());
    }
}

#[test]
fn integers_are_fake_quantization() {
    let device = Device::flex();
    // With inputs of whole groups of 32, and without; as of a model whose rows are no multiple of 32 and whose head is tied.
    for (hidden, feed_forward, tied) in [(64, 192, false), (48, 100, false), (64, 172, true)] {
        let config = LlamaConfig { hidden, feed_forward, tied, ..LlamaConfig::small(97, 64, 2, 64) };
        let model = Model::trace(&config.init(3, &device)).expect("a Llama has a graph");
        let float = Artifact::of(&model, Description::of_language(&config, PrecisionSet::default()));
        let widths = [&WIDTHS[..], &[BitWidth::B2]].concat();
        let nested = quantize_language(&model, &tokens(300), &widths, &options(2), |_| {});
        let nested = nested.expect("a quantized model");
        let file = nested.artifact(&float.expect("a float model")).expect("a nested model");
        let text = tokens(400)[340..].to_vec();
        let ids: Vec<i64> = text.iter().map(|&token| i64::from(token)).collect();
        let input = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, 60]), &device);
        let first = Precision::new(BitWidth::B8, BitWidth::B8);
        let mut network = Network::load(&file, first, Arithmetic::Integer, &device).expect("a network");
        for precision in file.description.precisions.iter() {
            network.switch(precision).expect("one of its precisions");
            let logits = network.forward(input.clone()).expect("logits");
            let expected = fake(&nested, &model, precision.weights, &text);
            let divergence = of_logits(expected, logits.clone());
            assert!(divergence < 1e-4, "{hidden}, {precision}: {divergence}");

            // Token by token, with a switch between.
            let mut cache = Cache::new();
            let mut last = vec![];
            for &token in &text {
                last = network.read(&[token], &mut cache).expect("logits");
            }
            let expected: Vec<f32> = logits.slice([59..60, 0..97]).into_data().try_into_vec().unwrap();
            let apart = expected.iter().zip(&last).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-3, "{hidden}, {precision}: {apart}");
        }
        let missing = Precision::new(BitWidth::B5, BitWidth::B8);
        assert!(matches!(network.switch(missing), Err(RuntimeError::Precision { .. })));
        let error = Network::load(&file, first, Arithmetic::WeightOnly, &device).map(drop);
        assert!(matches!(error, Err(RuntimeError::Nested)));
    }
}

/// Of each family: integers at all widths, with switches in a text, and files of one width.
#[test]
fn families_at_all_widths() {
    use dr_runtime::{Cache, Input, Network};
    let device = Device::flex();
    for name in VARIANTS {
        let float = llama::load(name);
        let model = float.network(&device).expect("a network");
        let vocabulary = float.description.classes as u32;
        let text: Vec<u32> = (0..340u32).map(|i| (i * i * 7 + i / 3) % vocabulary).collect();
        let (calibration, text) = text.split_at(300);
        let widths: Vec<BitWidth> = BitWidth::ALL.into_iter().rev().collect();
        let nested = quantize_language(&model, calibration, &widths, &options(2), |_| {});
        let nested = nested.unwrap_or_else(|error| panic!("{name}: {error}"));
        let file = nested.artifact(&float).expect("a nested model").to_bytes().expect("a file");
        let file = Artifact::from_bytes(&file).expect("what was written");
        assert_eq!(file.graph().expect("a graph"), float.graph().expect("a graph"), "{name}");
        let whole = |network: &Network| {
            network.forward(Input::Tokens { ids: text, batch: 1 }).expect("logits").values
        };
        let mut network = Network::load(&file, file.description.precisions.highest()).expect("a network");
        let mut at_one = vec![];
        for precision in file.description.precisions.iter() {
            network.switch(precision).expect("one of its precisions");
            let found = whole(&network);
            let expected = fake(&nested, &model, precision.weights, text);
            let logits = Tensor::from_data(TensorData::new(found.clone(), expected.dims()), &device);
            let divergence = of_logits(expected.clone(), logits);
            assert!(divergence < 1e-4, "{name}, {precision}: {divergence}");

            let only = file.export(precision).expect("one of its precisions").to_bytes().expect("a file");
            let only = Artifact::from_bytes(&only).expect("what was written");
            assert_eq!(only.description.precisions, PrecisionSet::of(precision));
            let of_width = Network::load(&only, precision).expect("a network");
            assert_eq!(whole(&of_width), found, "{name}, {precision}");
            let weights = NestedModel { weights: only.nested().expect("nested weights") };
            let floats = only.network(&device).expect("a network");
            let again = fake(&weights, &floats, precision.weights, text).into_data();
            assert_eq!(again, expected.into_data(), "{name}, {precision}");
            assert_eq!(only.export(precision).expect("its precision"), only);
            at_one.push((precision, of_width));
        }
        // Each token at another width, on what the widths before left.
        let mut cache = Cache::new();
        for (at, &token) in text.iter().enumerate() {
            let (precision, of_width) = &at_one[at * 3 % at_one.len()];
            let expected = of_width.read(&[token], &mut cache.clone()).expect("logits");
            network.switch(*precision).expect("one of its precisions");
            assert_eq!(network.read(&[token], &mut cache).expect("logits"), expected, "{name}, {precision}");
        }
    }
}

#[test]
fn predictions_are_compared() {
    let (model, device) = (model(true), Device::flex());
    let float = |vocabulary| {
        let config = LlamaConfig { tied: true, ..LlamaConfig::small(vocabulary, 64, 2, 64) };
        let model = Model::trace(&config.init(3, &device)).expect("a Llama has a graph");
        Artifact::of(&model, Description::of_language(&config, PrecisionSet::default())).expect("a model")
    };
    let (float, other) = (float(97), float(98));
    let nested = quantize(&model, 2);
    let file = nested.artifact(&float).expect("a nested model");
    let text: Arc<[u32]> = tokens(400)[300..].into();
    let compare = |artifact: &Artifact, engine, reference| {
        measure_text(artifact, &formats(artifact), &text, 33, engine, Some(reference), &device)
    };
    let of = |measured: &Measured| measured.agreement.expect("it was compared");
    let same = of(&compare(&float, Engine::Fake, &float).expect("the same")[0]);
    assert_eq!([same.divergence, same.divergence_99, same.same_top1], [0.0, 0.0, 100.0]);
    let from_float = compare(&file, Engine::Fake, &float).expect("a divergence");
    let from_fake = compare(&file, Engine::Integer, &file).expect("a divergence");
    assert_eq!(from_fake.len(), 4);
    for (from_float, from_fake) in from_float.windows(2).zip(&from_fake) {
        let [wide, narrow] = [0, 1].map(|at| of(&from_float[at]));
        assert!(wide.divergence < narrow.divergence && wide.divergence < wide.divergence_99);
        assert!(of(from_fake).divergence < 1e-4 && of(from_fake).divergence < wide.divergence);
    }
    let error = compare(&float, Engine::Fake, &other).expect_err("other tokens").to_string();
    assert_eq!(error, "the model to compare with knows 98 tokens: expected 97, as the model does");
    assert!(compare(&float, Engine::Fake, &file).is_err(), "no float is in a nested file");
}

#[test]
fn the_same_again() {
    let model = model(false);
    assert_eq!(quantize(&model, 2), quantize(&model, 2));
}

#[test]
fn what_cannot_be_quantized() {
    let error = |model: &Model, tokens: &[u32]| {
        quantize_language(model, tokens, &WIDTHS, &options(1), |_| {}).expect_err("no model")
    };
    assert_eq!(error(&model(true), &tokens(24)), QuantizationError::Short { found: 24, expected: 25 });
    let config = LlamaConfig::small(97, 64, 1, 64);
    let broken = Model::trace(&config.init(3, &Device::flex())).expect("a graph").map_named(&mut Break);
    assert!(matches!(error(&broken, &tokens(99)), QuantizationError::Weights(_)));
}

/// Makes all numbers infinite.
struct Break;

impl burn::module::ModuleMapper for Break {
    fn map_float<const D: usize>(
        &mut self, param: burn::module::Param<Tensor<D>>,
    ) -> burn::module::Param<Tensor<D>> {
        param.map(|old| old / 0.0)
    }
}

//! What the layers of a supernet can be, what that costs, and the best plans for budgets.

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use dr_precision::{BitWidth, PrecisionSet, semantics};
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, InputShape, SavedModel};
use dr_train::config::{LossTerms, MixedNorm, Widths};
use dr_train::latency::LatencyOptions;
use dr_train::mixed::{
    Budget, BudgetKind, Candidates, Front, LayerTimes, LayerTrace, SearchPlanError, Traces,
};
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::{Model, QuantConfig, Value};
use proptest::prelude::*;
use rand::SeedableRng;
use std::sync::OnceLock;

fn images(seed: u64) -> Tensor<4> {
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
    let normal = Distribution::Normal(0.3, 1.0);
    Tensor::from_data(TensorData::random::<f32, _, _>([32, 3, 12, 10], normal, rng), &Device::flex())
}

/// A supernet with random weights for images of 12x10 pixels.
fn supernet() -> &'static Artifact {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    ARTIFACT.get_or_init(|| {
        let set: PrecisionSet = "8,6,4,2".parse().unwrap();
        let float = ConvNetConfig::new(RESNET8, 3, 10).init(7, &Device::flex());
        let float = Model::trace(&float).unwrap();
        let config = QuantConfig { mixed: Some(MixedNorm::Width), ..QuantConfig::new(set.clone()) };
        let network = float.quantize(&config, vec![images(1), images(2)]).valid();
        let input = InputShape { channels: 3, height: 12, width: 10 };
        let description = Description {
            kind: ArtifactKind::MultiPrecision,
            mixed: Some(MixedNorm::Width),
            ..Description::new("cifar10", &RESNET8, input, 10, set)
        };
        Artifact::of(&network, description).unwrap()
    })
}

fn traces(candidates: &Candidates) -> Traces {
    let trace = |(i, layer): (usize, &dr_train::mixed::LayerCandidates)| LayerTrace {
        layer: layer.name.clone(),
        parameters: layer.weights as usize,
        average_trace: [0.5, 0.01, 2.0][i % 3],
        standard_error: 0.0,
    };
    Traces { layers: candidates.layers.iter().enumerate().map(trace).collect(), ..Traces::default() }
}

fn candidates(widths: Widths, terms: LossTerms) -> Candidates {
    let mut candidates = Candidates::new(supernet(), widths, &[]).unwrap();
    let traces = traces(&candidates);
    let batches = vec![images(3), images(4)];
    candidates.predict_losses(supernet(), &traces, terms, batches, &Device::flex()).unwrap();
    candidates
}

fn both() -> &'static Candidates {
    static CANDIDATES: OnceLock<Candidates> = OnceLock::new();
    CANDIDATES.get_or_init(|| candidates(Widths::Separate, LossTerms::Both))
}

#[test]
fn layers_and_their_multiplications() {
    let candidates = Candidates::new(supernet(), Widths::Together, &[]).unwrap();
    let layers: Vec<_> =
        candidates.layers.iter().map(|l| (l.name.as_str(), l.weights, l.macs, l.choices.len())).collect();
    // 12x10 pixels, then 6x5, then 3x3.
    let expected = [
        ("stem", 432, 432 * 120, 1),
        ("stages.0.0.conv1", 2304, 2304 * 120, 4),
        ("stages.0.0.conv2", 2304, 2304 * 120, 4),
        ("stages.1.0.conv1", 4608, 4608 * 30, 4),
        ("stages.1.0.conv2", 9216, 9216 * 30, 4),
        ("stages.1.0.shortcut", 512, 512 * 30, 4),
        ("stages.2.0.conv1", 18432, 18432 * 9, 4),
        ("stages.2.0.conv2", 36864, 36864 * 9, 4),
        ("stages.2.0.shortcut", 2048, 2048 * 9, 4),
        ("head", 640, 640, 1),
    ];
    assert_eq!(layers, expected);
    let [w8a8, .., w2a2] = &candidates.layers[1].choices[..] else { panic!() };
    assert_eq!((w8a8.bit_ops, w2a2.bit_ops), (2304 * 120 * 64, 2304 * 120 * 4));
    assert_eq!((w8a8.bytes, w2a2.bytes), (2304, 576));
}

#[test]
fn predicted_losses_are_traces_times_squared_errors() {
    let widths = [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B2];
    let weights_only = candidates(Widths::Separate, LossTerms::Weights);
    let mut network = supernet().network(&Device::flex()).unwrap();
    let named: Vec<String> = network.layers().into_iter().map(|layer| layer.name).collect();
    let f32s = |name: String| {
        let entry = &supernet().tensors[&name];
        Tensor::<1>::from_data(
            TensorData::from(supernet().f32(&name, &entry.shape).unwrap()),
            &Device::flex(),
        )
    };
    for (l, name) in named.iter().enumerate() {
        let layer = &weights_only.layers[l];
        let codes = supernet()
            .values::<i8>(&format!("{name}.weight"), &supernet().tensors[&format!("{name}.weight")].shape);
        let codes: Vec<i32> = codes.unwrap().iter().map(|&code| i32::from(code)).collect();
        let scales = |i: usize| f32s(format!("{name}.quantizers.weight_scales.{i}")).into_data();
        let value = |bits, i: usize| -> Vec<f64> {
            let scales = scales(i).try_into_vec::<f32>().unwrap();
            let per_channel = codes.len() / scales.len();
            let switched = codes.iter().map(|&code| semantics::switch(code, BitWidth::B8, bits));
            switched.enumerate().map(|(j, code)| f64::from(code as f32 * scales[j / per_channel])).collect()
        };
        let stored = value(BitWidth::B8, 0);
        for choice in &layer.choices {
            let i = widths.iter().position(|&bits| bits == choice.precision.weights).unwrap();
            let error: f64 = value(widths[i], i).iter().zip(&stored).map(|(a, b)| (a - b).powi(2)).sum();
            let expected = layer.average_trace.unwrap() * error;
            assert!((choice.loss - expected).abs() <= 1e-5 * expected.abs(), "{name} {}", choice.precision);
            // The inputs' errors only add to that.
            let with_inputs =
                both().layers[l].choices.iter().find(|c| c.precision == choice.precision).unwrap();
            assert!(with_inputs.loss > choice.loss);
        }
    }
    // The same weight's error at every width of the inputs, and less where they have more bits.
    for layer in both().layers.iter().filter(|layer| !layer.edge) {
        let loss = |w: usize, a: usize| layer.choices[w * 4 + a].loss;
        for w in 0..4 {
            assert!(
                loss(w, 0) < loss(w, 1) && loss(w, 1) < loss(w, 2) && loss(w, 2) < loss(w, 3),
                "{}",
                layer.name
            );
            let (this, first) = (loss(w, 3) - loss(w, 1), loss(0, 3) - loss(0, 1));
            assert!((this - first).abs() < 1e-6 * loss(w, 3));
        }
    }
}

/// The head's inputs come from the pooling: their error can be computed from outside of the library.
#[test]
fn the_errors_of_inputs_are_relative_to_them() {
    let mut network = supernet().network(&Device::flex()).unwrap();
    let last = network.layers().pop().unwrap();
    let quantizers = last.layer.quantizers();
    assert_eq!(quantizers.spec().unwrap().format.activations, [BitWidth::B8]);
    let weight: f64 = {
        let name = "head.weight";
        let scales = supernet().f32("head.quantizers.weight_scales.0", &[10]).unwrap();
        let codes = supernet().values::<i8>(name, &[10, 64]).unwrap();
        codes.iter().enumerate().map(|(i, &code)| f64::from(f32::from(code) * scales[i / 64]).powi(2)).sum()
    };
    let layer = both().layers.last().unwrap();
    let relative = layer.choices[0].loss / layer.average_trace.unwrap() / weight;
    // 8 bits: half a step squared over three, relative to values of which few are near the top.
    assert!((1e-7..1e-3).contains(&relative), "{relative}");
}

#[test]
fn sizes_are_those_of_the_exported_model() {
    let candidates = both();
    for number in 0..6 {
        let picks: Vec<usize> = candidates
            .layers
            .iter()
            .enumerate()
            .map(|(l, layer)| (number * 7 + l * 5) % layer.choices.len())
            .collect();
        let found = candidates.found(&picks);
        let exported = supernet().export_plan::<Value>(&found.plan, &[], &Device::flex()).unwrap();
        assert_eq!(found.totals.bytes, exported.payload_bytes() as u64);
    }
}

#[test]
fn the_best_plans_keep_to_their_budgets() {
    let candidates = both();
    for kind in [BudgetKind::AverageBits, BudgetKind::Size, BudgetKind::BitOps] {
        let front = Front::new(candidates, kind, &"8,6,4,2".parse().unwrap()).unwrap();
        assert!(front.plans.len() > 12 && front.uniform.len() == 4);
        for pair in front.plans.windows(2) {
            assert!(pair[0].totals.predicted_loss > pair[1].totals.predicted_loss);
        }
        for uniform in &front.uniform {
            // No precision of the set beats the best plan for what it takes.
            let budget = uniform.totals.as_budget(kind).unwrap();
            let best = candidates.best(&budget).unwrap();
            assert!(best.totals.predicted_loss <= uniform.totals.predicted_loss);
            assert!(best.totals.as_budget(kind).unwrap().value() <= budget.value());
        }
        let smallest = front.plans[0].totals.as_budget(kind).unwrap();
        assert_eq!(candidates.best(&smallest).unwrap(), front.plans[0]);
        let svg = front.svg("a title").unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("a title") && svg.contains("w6a6"));
        // A budget that is a little smaller has no plan, and the error says which one has.
        let less = if kind == BudgetKind::AverageBits { 1e-6 } else { 1.0 };
        let smaller = Budget::new(kind, smallest.value() - less);
        let error = candidates.best(&smaller).unwrap_err().to_string();
        assert!(error.contains(&format!("the smallest possible is `{smallest}`")), "{error}");
    }
}

#[test]
fn times_are_added_up() {
    let mut candidates = Candidates::new(supernet(), Widths::Together, &[]).unwrap();
    let budget = "latency=1s".parse().unwrap();
    assert!(matches!(candidates.best(&budget), Err(SearchPlanError::NotTimed(_))));
    let options = LatencyOptions { batch: 2, samples: 3 };
    let times = LayerTimes::measure(supernet(), &candidates, options, &Device::flex()).unwrap();
    candidates.set_times(&times);
    let found = candidates.best(&budget).unwrap();
    let layers: u64 = (0..candidates.layers.len())
        .map(|l| times.of(l, found.plan.get(&candidates.layers[l].name).unwrap()).unwrap())
        .sum();
    let predicted = found.totals.predicted_nanoseconds.unwrap();
    assert_eq!(predicted, layers + candidates.other_nanoseconds.unwrap());
    assert!(layers > 0);
    let error = candidates.best(&Budget::new(BudgetKind::Latency, 1.0)).unwrap_err().to_string();
    assert!(
        error.starts_with("budget `latency=1ns` is too small: the smallest possible is `latency="),
        "{error}"
    );
}

#[test]
fn pins_are_kept() {
    let pin = |text: &str, precision: &str| (text.to_owned(), precision.parse().unwrap());
    let pins = [pin("stages.1.0.conv2", "w8a2"), pin("head", "8")];
    let mut candidates = Candidates::new(supernet(), Widths::Together, &pins).unwrap();
    let traces = traces(&candidates);
    candidates
        .predict_losses::<Value>(supernet(), &traces, LossTerms::Weights, vec![], &Device::flex())
        .unwrap();
    let found = candidates.best(&Budget::new(BudgetKind::AverageBits, 4.0)).unwrap();
    assert_eq!(found.plan.get("stages.1.0.conv2").unwrap().to_string(), "w8a2");
    assert!(found.totals.average_bits <= 4.0);
    for (pins, part) in [
        (
            vec![pin("stage", "8")],
            "pin `stage`: not a layer of the model; expected one of stem, stages.0.0.conv1",
        ),
        (vec![pin("head", "4")], "pin `head=w4a4`: expected weights of 8 and activations of 8 bits"),
        (
            vec![pin("stages.0.0.conv1", "w5a8")],
            "expected weights of 8,6,4,2 and activations of 8,6,4,2 bits",
        ),
        (vec![pin("head", "8"), pin("head", "8")], "the layer is pinned twice"),
    ] {
        let error = Candidates::new(supernet(), Widths::Together, &pins).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn other_models_and_traces_are_refused() {
    let error =
        |artifact: &Artifact| Candidates::new(artifact, Widths::Together, &[]).unwrap_err().to_string();
    let mut other = supernet().clone();
    other.description.mixed = None;
    assert!(error(&other).contains("not trained for mixed precision"));
    other.description.kind = ArtifactKind::Float;
    assert_eq!(error(&other), "a float model: expected a multi-precision, nested or calibrated one");

    let candidates = Candidates::new(supernet(), Widths::Together, &[]).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<LayerTrace>)| {
        let mut wrong = traces(&candidates);
        change(&mut wrong.layers);
        candidates.check_traces(&wrong).unwrap_err().to_string()
    };
    for (message, part) in [
        (refused(&|layers| layers.clear()), "none for the layer `stem`"),
        (refused(&|layers| drop(layers.pop())), "none for the layer `head`"),
        (
            refused(&|layers| layers.push(layers[0].clone())),
            "the layer `stem`: expected only those of the model",
        ),
        (refused(&|layers| layers.swap(1, 2)), "the layer `stages.0.0.conv2`: expected `stages.0.0.conv1`"),
        (refused(&|layers| layers[3].parameters += 1), "`stages.1.0.conv1` has 4609 weights: expected 4608"),
        (refused(&|layers| layers[3].average_trace = f64::NAN), "`stages.1.0.conv1` is not finite"),
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert!(candidates.check_traces(&traces(&candidates)).is_ok());
}

#[test]
fn a_negative_trace_counts_as_none() {
    let mut candidates = Candidates::new(supernet(), Widths::Together, &[]).unwrap();
    let mut traces = traces(&candidates);
    traces.layers[1].average_trace = -1.0;
    candidates
        .predict_losses::<Value>(supernet(), &traces, LossTerms::Weights, vec![], &Device::flex())
        .unwrap();
    assert!(candidates.layers[1].choices.iter().all(|choice| choice.loss == 0.0));
    let found = candidates.best(&Budget::new(BudgetKind::AverageBits, 7.0)).unwrap();
    assert_eq!(found.plan.get("stages.0.0.conv1").unwrap().to_string(), "w2a2");
}

proptest! {
    /// Against plans at random: none within the budget loses less than the best.
    #[test]
    fn no_random_plan_is_better(picks in prop::collection::vec(0usize..16, 10), kind in 0..3usize) {
        let candidates = both();
        let picks: Vec<usize> =
            picks.iter().zip(&candidates.layers).map(|(pick, layer)| pick % layer.choices.len()).collect();
        let any = candidates.found(&picks);
        let budget = any.totals.as_budget(BudgetKind::ALL[kind]).unwrap();
        let best = candidates.best(&budget).unwrap();
        prop_assert!(best.totals.predicted_loss <= any.totals.predicted_loss * (1.0 + 1e-12));
        prop_assert!(best.totals.as_budget(BudgetKind::ALL[kind]).unwrap().value() <= budget.value());
    }
}

//! Plans for nested weights: what layers cost at their widths, the best plans for budgets, and both engines with a plan.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::{BitWidth, Precision, PrecisionPlan, PrecisionSet};
use dr_runtime::file::{PlanFitError, STORED};
use dr_runtime::tensors::{Cache, Network};
use dr_runtime::{Arithmetic, RuntimeError};
use dr_train::artifact::{Artifact, ArtifactError, ArtifactKind, Described, Description, SavedModel};
use dr_train::config::{Engine, Widths};
use dr_train::evaluation::{formats, measure_text};
use dr_train::mixed::{Budget, BudgetKind, Candidates, Front, SearchPlanError};
use dr_train::models::LlamaConfig;
use dr_train::nn::{Model, Pass, Tensors, Value};
use dr_train::quantization::{CalibrationOptions, Dynamic, NestedModel, quantize_language};
use dr_train::report::NumberFormat;
use proptest::prelude::*;
use std::sync::{Arc, OnceLock};

const WIDTHS: [BitWidth; 4] = [BitWidth::B6, BitWidth::B4, BitWidth::B3, BitWidth::B2];

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 7 + i / 3) % 97).collect()
}

struct Quantized {
    model: Model,
    nested: NestedModel,
    file: Artifact,
}

fn quantize(gradient_windows: usize) -> Quantized {
    let config = LlamaConfig::small(97, 64, 2, 64);
    let model = Model::trace(&config.init(3, &Device::flex())).expect("a Llama has a graph");
    let options = CalibrationOptions {
        windows: 10,
        length: 24,
        gradient_windows,
        single_tokens: 40,
        ..CalibrationOptions::default()
    };
    let nested = quantize_language(&model, &tokens(300), &WIDTHS, &options, |_| {}).expect("a model");
    let float = Artifact::of(&model, Description::of_language(&config, PrecisionSet::default()));
    let file = nested.artifact(&float.expect("a float model")).expect("a nested model");
    let file = Artifact::from_bytes(&file.to_bytes().expect("a file")).expect("what was written");
    Quantized { model, nested, file }
}

fn quantized() -> &'static Quantized {
    static QUANTIZED: OnceLock<Quantized> = OnceLock::new();
    QUANTIZED.get_or_init(|| quantize(10))
}

fn candidates() -> &'static Candidates {
    static CANDIDATES: OnceLock<Candidates> = OnceLock::new();
    CANDIDATES
        .get_or_init(|| Candidates::new(&quantized().file, Widths::Together, &[]).expect("sensitivities"))
}

fn plan(bits: f64) -> PrecisionPlan {
    candidates().best(&Budget::new(BudgetKind::AverageBits, bits)).expect("a plan").plan
}

fn input(tokens: &[u32]) -> Tensor<2, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    Tensor::from_data(TensorData::new(ids, [1, tokens.len()]), &Device::flex())
}

/// Nats a token from the logits of `a` to those of `b`.
fn divergence(a: Tensor<2>, b: Tensor<2>) -> f64 {
    let positions = a.dims()[0] as f64;
    let [a, b] = [a, b].map(|logits| log_softmax(logits, 1));
    (a.clone().exp() * (a - b)).sum().into_scalar::<f64>() / positions
}

#[test]
fn every_width_of_every_layer_that_switches_has_a_sensitivity() {
    let Quantized { nested, file, .. } = quantized();
    assert_eq!(file.nested().expect("nested weights"), nested.weights);
    for (name, weight) in &nested.weights {
        let all: Vec<Option<f32>> = weight.widths().iter().map(|&bits| weight.sensitivity(bits)).collect();
        if name == "lm_head" || name == "embed_tokens" {
            assert_eq!(all, [None], "{name}");
        } else {
            let all: Vec<f32> = all.into_iter().map(|found| found.expect("one for each width")).collect();
            assert_eq!(all.len(), 5);
            assert!(all.windows(2).all(|pair| 0.0 < pair[0] && pair[0] < pair[1]), "{name}: {all:?}");
            assert_eq!(weight.sensitivity(BitWidth::B5), None);
        }
    }
}

/// The sum over layers is near the divergence that is measured, on other tokens.
#[test]
fn sensitivities_predict_divergences() {
    let Quantized { model, nested, .. } = quantized();
    let text: Vec<u32> = tokens(600)[360..].to_vec();
    for bits in [BitWidth::B8, BitWidth::B6, BitWidth::B4, BitWidth::B3] {
        let predicted: f64 =
            nested.weights.values().filter_map(|weight| weight.sensitivity(bits)).map(f64::from).sum();
        // The head and the table do not count.
        let at = |bits| {
            nested.dequantized(
                model.clone(),
                |name: &str| if name.starts_with("layers") { bits } else { STORED },
            )
        };
        let same = nested.dequantized(model.clone(), |_| BitWidth::B8);
        let measure = |model: &Model, other: &Model| {
            let pieces = text.chunks(24).map(|piece| {
                let [a, b] = [model, other].map(|model| model.forward(input(piece), &Pass::float()));
                divergence(a, b)
            });
            pieces.sum::<f64>() / 10.0
        };
        let reference = if bits == BitWidth::B8 { model } else { &same };
        let measured = measure(reference, &at(bits));
        let ratio = predicted / measured;
        assert!(bits == BitWidth::B8 || (0.3..3.0).contains(&ratio), "{bits}: {predicted} for {measured}");
    }
}

#[test]
fn without_gradients_nothing_is_known() {
    let Quantized { nested, mut file, .. } = quantize(0);
    assert!(nested.weights.values().all(|weight| weight.sensitivity(BitWidth::B8).is_none()));
    let refused =
        |file: &Artifact| Candidates::new(file, Widths::Together, &[]).expect_err("nothing to go by");
    assert!(
        matches!(refused(&file), SearchPlanError::NoSensitivity(layer) if layer == "layers.0.self_attn.q_proj")
    );
    // An older file is the same: it loads, and has no plans.
    let older = &mut quantized().file.clone();
    let all = older.tensors.len();
    older.tensors.retain(|name, _| !name.ends_with(".sensitivity"));
    assert_eq!(all - older.tensors.len(), 14);
    assert!(older.network(&Device::flex()).is_ok() && older.nested().is_ok());
    assert!(matches!(refused(older), SearchPlanError::NoSensitivity(_)));
    // What is no number is no sensitivity.
    let name = "layers.0.self_attn.q_proj.sensitivity".to_owned();
    for (value, count) in [(-1.0, 5), (f32::NAN, 5), (f32::INFINITY, 5), (1.0, 4)] {
        let entry = dr_train::artifact::TensorEntry::f32([count], vec![value; count]);
        file.tensors.insert(name.clone(), entry);
        let error = file.nested().expect_err("no sensitivities");
        assert!(matches!(error, ArtifactError::Nested { .. } | ArtifactError::Shape { .. }), "{error}");
    }
}

#[test]
fn plans_keep_to_their_budgets_and_more_never_costs_more() {
    let (Quantized { file, .. }, candidates) = (quantized(), candidates());
    assert_eq!(candidates.layers.len(), 15);
    for kind in [BudgetKind::AverageBits, BudgetKind::Size, BudgetKind::BitOps] {
        let front = Front::new(candidates, kind, &file.description.precisions).expect("a front");
        let taken: Vec<f64> =
            front.plans.iter().map(|found| found.totals.as_budget(kind).expect("a budget").value()).collect();
        let losses: Vec<f64> = front.plans.iter().map(|found| found.totals.predicted_loss).collect();
        assert!(front.plans.len() > 12 && front.uniform.len() == 5, "{}", front.plans.len());
        assert!(taken.is_sorted() && losses.iter().rev().is_sorted(), "{taken:?} {losses:?}");
        for uniform in &front.uniform {
            let budget = uniform.totals.as_budget(kind).expect("a budget");
            let best = candidates.best(&budget).expect("a plan");
            assert!(best.totals.predicted_loss <= uniform.totals.predicted_loss * (1.0 + 1e-9));
            assert!(best.totals.as_budget(kind).expect("a budget").value() <= budget.value());
        }
        let least = Budget::new(kind, taken[0]);
        let less = Budget::new(kind, taken[0] * 0.999);
        assert_eq!(candidates.best(&least).expect("a plan"), front.plans[0]);
        assert!(matches!(candidates.best(&less), Err(SearchPlanError::Impossible { .. })));
    }
    // A uniform plan is as large as its precision, and what the search counts is what an evaluation says.
    let (tokens, device): (Arc<[u32]>, _) = (tokens(100).into(), Device::flex());
    let precisions: Vec<NumberFormat> = formats(file);
    let measured = measure_text(file, &precisions, &tokens, 24, Engine::Fake, None, &device).expect("scores");
    for (precision, measured) in file.description.precisions.iter().zip(measured) {
        let uniform = candidates.found(&candidates.uniform(precision).expect("all have it"));
        assert_eq!(uniform.totals.bytes, measured.model_bytes as u64);
        assert_eq!(uniform.totals.average_bits, f64::from(precision.weights.bits()));
    }
}

/// With four layers that are free, all plans can be tried.
#[test]
fn no_other_plan_is_better() {
    let free = [
        "layers.0.self_attn.v_proj",
        "layers.0.mlp.down_proj",
        "layers.1.self_attn.q_proj",
        "layers.1.mlp.up_proj",
    ];
    let four = Precision::new(BitWidth::B4, STORED);
    let names =
        candidates().layers.iter().filter(|layer| !layer.edge && !free.contains(&layer.name.as_str()));
    let pins: Vec<(String, Precision)> = names.map(|layer| (layer.name.clone(), four)).collect();
    let candidates = Candidates::new(&quantized().file, Widths::Together, &pins).expect("pins that fit");
    let mut all = vec![vec![]];
    for layer in &candidates.layers {
        let extend =
            |picks: Vec<usize>| (0..layer.choices.len()).map(move |pick| [&picks[..], &[pick]].concat());
        all = all.into_iter().flat_map(extend).collect();
    }
    assert_eq!(all.len(), 625);
    let all: Vec<_> = all.iter().map(|picks| candidates.found(picks)).collect();
    for bits in [3.8, 4.0, 4.05, 4.3, 5.0, 6.0] {
        let found = candidates.best(&Budget::new(BudgetKind::AverageBits, bits)).expect("a plan");
        let within = all.iter().filter(|other| other.totals.average_bits <= bits);
        let least = within.map(|other| other.totals.predicted_loss).fold(f64::INFINITY, f64::min);
        assert!(found.totals.average_bits <= bits);
        assert!((found.totals.predicted_loss - least).abs() <= 1e-9 * least, "{bits}");
    }
    let pin = |layer: &str, bits| [(layer.to_owned(), Precision::new(bits, STORED))];
    for (pins, part) in
        [(pin("lm_head", BitWidth::B4), "expected weights of 8"), (pin("x", BitWidth::B4), "not a layer")]
    {
        let error = Candidates::new(&quantized().file, Widths::Together, &pins).expect_err("a wrong pin");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn both_engines_run_plans_and_agree() {
    let Quantized { model, nested, file } = quantized();
    let (device, text) = (Device::flex(), tokens(400)[340..].to_vec());
    let mut network =
        Network::load(file, file.description.edge, Arithmetic::Integer, &device).expect("a network");
    for bits in [2.5, 3.0, 4.0, 6.5, 3.0] {
        let plan = plan(bits);
        let planned = file.export_plan::<Value>(&plan, &[], &device).expect("a plan that fits");
        let planned = Artifact::from_bytes(&planned.to_bytes().expect("a file")).expect("what was written");
        assert_eq!(
            (planned.description.kind, &planned.description.plan),
            (ArtifactKind::Nested, &Some(plan.clone()))
        );
        assert_eq!(formats(&planned), [NumberFormat::Mixed]);

        let width = |name: &str| plan.get(name).map_or(STORED, |precision| precision.weights);
        let at = nested.dequantized(model.clone(), width);
        let Value::Rows(fake) =
            at.run(&mut Dynamic(Tensors::new(&Pass::float())), Value::Tokens(input(&text)))
        else {
            panic!("rows")
        };
        network.switch_plan(&plan).expect("a plan that fits");
        let integers = network.forward(input(&text)).expect("logits");
        let apart = divergence(fake, integers.clone());
        assert!(apart < 1e-4, "{bits}: {apart}");
        // The file with the plan is the network that was switched to it.
        let loaded = Network::load(&planned, planned.description.edge, Arithmetic::Integer, &device);
        let loaded = loaded.expect("a network");
        assert_eq!(loaded.model_bytes(), network.model_bytes());
        assert_eq!(loaded.forward(input(&text)).expect("logits").into_data(), integers.into_data());

        let tokens: Arc<[u32]> = tokens(100).into();
        let measure = |engine| {
            let measured = measure_text(&planned, &[NumberFormat::Mixed], &tokens, 24, engine, None, &device);
            measured.expect("a score").remove(0)
        };
        let [fake, integer] = [Engine::Fake, Engine::Integer].map(measure);
        assert!((fake.loss - integer.loss).abs() < 1e-2, "{bits}: {} {}", fake.loss, integer.loss);
        let found = candidates().best(&Budget::new(BudgetKind::AverageBits, bits)).expect("a plan");
        assert_eq!(fake.model_bytes as u64, found.totals.bytes);
    }
}

/// Any order of switches gives what each of them gives alone.
#[test]
fn plans_change_between_tokens() {
    let (file, device) = (&quantized().file, Device::flex());
    let precision = |text: &str| text.parse::<Precision>().expect("a precision");
    let mut network =
        Network::load(file, precision("w4a8"), Arithmetic::Integer, &device).expect("a network");
    let fresh = |plan: &PrecisionPlan| {
        let mut network =
            Network::load(file, precision("w8a8"), Arithmetic::Integer, &device).expect("a network");
        network.switch_plan(plan).expect("a plan that fits");
        network
    };
    let (low, high) = (plan(2.5), plan(5.0));
    let mut cache = Cache::new();
    for (at, &token) in tokens(40).iter().enumerate() {
        match at % 4 {
            0 => network.switch_plan(&low),
            1 => network.switch_plan(&high),
            2 => network.switch(precision("w3a8")),
            _ => Ok(()),
        }
        .expect("it has these");
        let mut expected = match at % 4 {
            0 => fresh(&low),
            1 => fresh(&high),
            _ => Network::load(file, precision("w3a8"), Arithmetic::Integer, &device).expect("a network"),
        };
        let mut same = cache.clone();
        let found = network.read(&[token], &mut cache).expect("logits");
        assert_eq!(found, expected.read(&[token], &mut same).expect("logits"), "token {at}");
        expected.switch(precision("w8a8")).expect("it has this");
    }
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let (file, device, good) = (&quantized().file, Device::flex(), plan(3.0));
    let mut network =
        Network::load(file, file.description.edge, Arithmetic::Integer, &device).expect("a network");
    let layers = || good.iter().map(|(name, precision)| (name.to_owned(), precision)).collect::<Vec<_>>();
    let mut refused = |layers: Vec<(String, Precision)>| {
        let plan = PrecisionPlan::new(layers).expect("a plan");
        let exported = file.export_plan::<Value>(&plan, &[], &device).map(drop);
        assert!(matches!(exported, Err(ArtifactError::Plan(_))), "{exported:?}");
        let mut planned = file.clone();
        planned.description.plan = Some(plan.clone());
        assert!(planned.nested().is_err() && planned.network(&device).is_err());
        match network.switch_plan(&plan) {
            Err(RuntimeError::Plan(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    let mut unknown = layers();
    unknown[2].0 = "layers.9".to_owned();
    assert!(matches!(refused(unknown), PlanFitError::Unknown { layer, .. } if layer == "layers.9"));
    let mut missing = layers();
    let (name, _) = missing.remove(3);
    assert!(matches!(refused(missing), PlanFitError::Missing { layer, layers: 15 } if layer == name));
    for (layer, precision) in [(1, "w5a8"), (1, "w4a4"), (14, "w4a8")] {
        let mut other = layers();
        other[layer].1 = precision.parse().expect("a precision");
        assert!(matches!(refused(other), PlanFitError::Precision { .. }), "{layer} {precision}");
    }
    // The layers of a file with a plan are at that.
    let planned = file.export_plan::<Value>(&good, &[], &device).expect("a plan that fits");
    let mut network =
        Network::load(&planned, file.description.edge, Arithmetic::Integer, &device).expect("a network");
    assert!(matches!(network.switch_plan(&good), Err(RuntimeError::Plan(PlanFitError::Fixed))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against plans at random: none within the budget loses less than the best.
    #[test]
    fn no_random_plan_is_better(picks in prop::collection::vec(0usize..5, 15), kind in 0..3usize) {
        let candidates = candidates();
        let picks: Vec<usize> =
            picks.iter().zip(&candidates.layers).map(|(pick, layer)| pick % layer.choices.len()).collect();
        let any = candidates.found(&picks);
        let budget = any.totals.as_budget(BudgetKind::ALL[kind]).expect("a budget");
        let best = candidates.best(&budget).expect("a plan");
        prop_assert!(best.totals.predicted_loss <= any.totals.predicted_loss * (1.0 + 1e-9));
        prop_assert!(best.totals.as_budget(BudgetKind::ALL[kind]).expect("a budget").value() <= budget.value());
    }
}

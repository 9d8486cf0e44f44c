//! Mixed precision: how mixtures are drawn, run, exported and refused.

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use dr_precision::{Precision, PrecisionPlan, PrecisionSet};
use dr_runtime::Arithmetic;
use dr_runtime::tensors::Network;
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, InputShape, SavedModel};
use dr_train::config::{MixedNorm, Sampling, Widths};
use dr_train::mixed::{Hasb, LayerTrace, choices};
use dr_train::models::{ConvNetConfig, RESNET8};
use dr_train::nn::{Assignment, Model, Pass, QuantConfig, Value, finish, subnet};
use proptest::prelude::*;
use rand::SeedableRng;
use std::collections::HashMap;

const CLASSES: usize = 10;

fn set() -> PrecisionSet {
    "8,6,4,2".parse().unwrap()
}

fn images(seed: u64, count: usize, device: &Device) -> Tensor<4> {
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
    let normal = Distribution::Normal(0.3, 1.0);
    Tensor::from_data(TensorData::random::<f32, _, _>([count, 1, 8, 8], normal, rng), device)
}

fn batches(first: u64) -> Vec<Tensor<4>> {
    (first..first + 3).map(|seed| images(seed, 40, &Device::flex())).collect()
}

/// A supernet with random weights whose BatchNorms have seen random images.
fn supernet(set: &PrecisionSet, norm: MixedNorm) -> Model {
    let device = Device::flex().autodiff();
    let float = ConvNetConfig::new(RESNET8, 1, CLASSES).init(7, &device);
    let float = Model::trace(&float).unwrap();
    for seed in 0..12 {
        float.forward(images(seed, 16, &device), &Pass::float());
    }
    let config = QuantConfig { mixed: Some(norm), ..QuantConfig::new(set.clone()) };
    float.quantize(&config, batches(20)).valid()
}

fn artifact(network: &Model, set: PrecisionSet, mixed: Option<MixedNorm>) -> Artifact {
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let description = Description {
        kind: ArtifactKind::MultiPrecision,
        mixed,
        ..Description::new("digits", &RESNET8, input, CLASSES, set)
    };
    Artifact::of(network, description).unwrap()
}

fn traces(network: &mut Model) -> Vec<LayerTrace> {
    let of = |(i, name): (usize, String)| LayerTrace {
        layer: name,
        parameters: 1,
        // Every third layer of those between is sensitive.
        average_trace: if i % 3 == 1 { 3.0 } else { 0.1 },
        standard_error: 0.0,
    };
    network.layers().into_iter().map(|layer| layer.name).enumerate().map(of).collect()
}

/// A plan that has something of everything, with the first and the last layer as they are.
fn plan(network: &mut Model, precisions: &[&str]) -> PrecisionPlan {
    let names: Vec<String> = network.layers().into_iter().map(|layer| layer.name).collect();
    let last = names.len() - 1;
    let of = |(i, name): (usize, String)| {
        let text = if i == 0 || i == last { "8" } else { precisions[i % precisions.len()] };
        (name, text.parse::<Precision>().unwrap())
    };
    PrecisionPlan::new(names.into_iter().enumerate().map(of)).unwrap()
}

fn values(logits: Tensor<2>) -> Vec<f32> {
    logits.into_data().try_into_vec().unwrap()
}

fn close(a: &[f32], b: &[f32], relative: f32) {
    let spread = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(a.len() == b.len() && worst <= relative * spread, "{worst} of {spread}");
}

/// 100,000 draws: Pearson's chi-squared of every layer stays below the quantile that one in 10,000 samples passes.
#[test]
fn frequencies_match_probabilities() {
    const DRAWS: u64 = 100_000;
    // Quantiles of the chi-squared distribution at 0.9999, for 3 and for 15 degrees of freedom.
    for (widths, quantile) in [(Widths::Together, 21.108), (Widths::Separate, 44.263)] {
        let mut network = supernet(&set(), MixedNorm::Width);
        let traces = traces(&mut network);
        let hasb = Hasb::new(&mut network, &traces, &set(), widths, Sampling::Hasb, 5);
        let layers = hasb.names().count();
        let mut counts = vec![HashMap::<Precision, u64>::new(); layers];
        for draw in 0..DRAWS {
            for (count, precision) in counts.iter_mut().zip(hasb.draw(draw)) {
                *count.entry(precision).or_default() += 1;
            }
        }
        for (layer, count) in counts.iter().enumerate() {
            let probabilities = hasb.probabilities(layer);
            assert!((probabilities.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-12);
            if layer == 0 || layer == layers - 1 {
                assert_eq!(probabilities, [("w8a8".parse().unwrap(), 1.0)]);
                continue;
            }
            assert_eq!(probabilities.len(), choices(&set(), widths).len());
            // p_i = b_i / sum(b) for the sensitive ones, the same for all others.
            let eight = probabilities[0].1;
            let expected = match (layer % 3 == 1, widths) {
                (true, Widths::Together) => 8.0 / 20.0,
                (true, Widths::Separate) => 64.0 / 400.0,
                (false, _) => 1.0 / probabilities.len() as f64,
            };
            assert!((eight - expected).abs() < 1e-12);
            let chi_squared: f64 = probabilities
                .iter()
                .map(|(precision, p)| {
                    let expected = p * DRAWS as f64;
                    (count.get(precision).copied().unwrap_or(0) as f64 - expected).powi(2) / expected
                })
                .sum();
            assert!(chi_squared < quantile, "layer {layer}: {chi_squared}");
        }
    }
}

#[test]
fn a_seed_reproduces_its_draws() {
    let mut network = supernet(&set(), MixedNorm::Width);
    let traces = traces(&mut network);
    let mut draws = |sampling, seed| {
        let hasb = Hasb::new(&mut network, &traces, &set(), Widths::Together, sampling, seed);
        (0..50).map(|draw| hasb.draw(draw)).collect::<Vec<_>>()
    };
    assert_eq!(draws(Sampling::Hasb, 1), draws(Sampling::Hasb, 1));
    assert_ne!(draws(Sampling::Hasb, 1), draws(Sampling::Hasb, 2));
    assert_ne!(draws(Sampling::Hasb, 1), draws(Sampling::Uniform, 1));
}

/// With one batch, evaluation with recalibrated statistics is what training computes from the batch itself.
#[test]
fn recalibrated_statistics_are_those_of_the_batches() {
    for norm in MixedNorm::ALL {
        let mut network = supernet(&set(), *norm);
        let plan = plan(&mut network, &["4", "2", "w6a4", "8"]);
        let assignment = Assignment::new(&mut network, &plan).unwrap();
        let pass = Pass::mixed(&assignment);
        // Of many pixels: training divides the variance by one less, and no value is at the border of two codes.
        let batch = images(4, 250, &Device::flex());
        let before = values(network.forward(batch.clone(), &pass));
        let subnet = subnet(network.clone(), &pass, std::slice::from_ref(&batch));
        let trained = network.clone().fork(&Device::flex().autodiff()).train();
        let expected = values(trained.forward(Tensor::from_inner(batch.clone()), &pass).inner());
        close(&expected, &values(subnet.forward(batch.clone(), &pass)), 1e-3);
        // The network itself is as it was.
        assert_eq!(before, values(network.forward(batch, &pass)));
    }
}

/// After training, every precision runs as the mixture that has it everywhere; the outer ones as they were trained.
#[test]
fn a_finished_supernet_runs_at_every_precision() {
    for norm in MixedNorm::ALL {
        let trained = supernet(&set(), *norm);
        let shared = *norm == MixedNorm::Uniform;
        let network = finish(trained.clone(), &set(), shared, &batches(50));
        let images = images(5, 30, &Device::flex());
        for precision in set().iter() {
            let found = values(network.forward(images.clone(), &Pass::at(precision)));
            let outer = [set().highest(), set().lowest()].contains(&precision);
            let expected = if outer && !shared {
                values(trained.forward(images.clone(), &Pass::at(precision)))
            } else {
                let mut network = trained.clone();
                let plan = plan(&mut network, &[&precision.to_string()]);
                let assignment = Assignment::new(&mut network, &plan).unwrap();
                let pass = Pass::mixed(&assignment);
                values(subnet(network, &pass, &batches(50)).forward(images.clone(), &pass))
            };
            assert_eq!(found, expected, "{norm} {precision}");
        }
    }
}

#[test]
fn plans_are_exported_and_run_in_integers() {
    let device = Device::flex();
    let mut network = supernet(&set(), MixedNorm::Width);
    let artifact = artifact(&network, set(), Some(MixedNorm::Width));
    let (mut same, mut total) = (0, 0);
    for precisions in [&["4"][..], &["2", "8", "w4a6"], &["w8a2", "6", "4", "w2a8", "2"]] {
        let plan = plan(&mut network, precisions);
        let packed = artifact.export_plan(&plan, &batches(60), &device).unwrap();
        // The file holds all of it.
        let packed = Artifact::from_bytes(&packed.to_bytes().unwrap()).unwrap();
        assert_eq!(packed.description.kind, ArtifactKind::PackedPlan);
        assert_eq!(packed.description.plan, Some(plan.clone()));
        assert!(packed.payload_bytes() < artifact.payload_bytes());

        let assignment = Assignment::new(&mut network, &plan).unwrap();
        let pass = Pass::mixed(&assignment);
        let subnet = subnet(network.clone(), &pass, &batches(60));
        let images = images(90, 250, &device);
        let expected = values(subnet.forward(images.clone(), &pass));
        let edge = packed.description.edge;
        let loaded = packed.network(&device).unwrap();
        close(&expected, &values(loaded.forward(images.clone(), &Pass::at(edge))), 1e-4);

        let integers = Network::load(&packed, edge, Arithmetic::Integer, &device).unwrap();
        let integers = values(integers.forward(images).unwrap());
        let class = |row: &[f32]| (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        let rows = expected.chunks_exact(CLASSES).zip(integers.chunks_exact(CLASSES));
        same += rows.filter(|(a, b)| class(a) == class(b)).count();
        total += 250;
    }
    assert!(same * 1000 >= total * 999, "{same} of {total}");
}

/// A plan with one precision everywhere takes as many bytes as the export at that precision.
#[test]
fn a_uniform_plan_is_as_large_as_the_precision() {
    let mut network = supernet(&set(), MixedNorm::One);
    let artifact = artifact(&network, set(), Some(MixedNorm::One));
    for precision in set().iter() {
        let plan = plan(&mut network, &[&precision.to_string()]);
        let packed = artifact.export_plan::<Value>(&plan, &[], &Device::flex()).unwrap();
        assert_eq!(packed.payload_bytes(), artifact.export(precision).unwrap().payload_bytes());
    }
}

#[test]
fn plans_that_do_not_fit_are_refused() {
    let device = Device::flex();
    let mut network = supernet(&set(), MixedNorm::Width);
    let good = plan(&mut network, &["4"]);
    let artifact = artifact(&network, set(), Some(MixedNorm::Width));
    let message = |artifact: &Artifact, layers: Vec<(String, Precision)>| {
        let plan = PrecisionPlan::new(layers).unwrap();
        artifact.export_plan::<Value>(&plan, &[], &device).unwrap_err().to_string()
    };
    let layers = || good.iter().map(|(name, precision)| (name.to_owned(), precision)).collect::<Vec<_>>();

    let mut unknown = layers();
    unknown[2].0 = "stages.9".to_owned();
    assert!(
        message(&artifact, unknown)
            .starts_with("the plan names the layer `stages.9`: expected one of stem, ")
    );
    let mut missing = layers();
    missing.remove(3);
    let found = message(&artifact, missing);
    assert!(found.starts_with("the plan has no precision for the layer `stages.1.0.conv1`"), "{found}");
    let mut untrained = layers();
    untrained[1].1 = "w4a3".parse().unwrap();
    assert_eq!(
        message(&artifact, untrained),
        "the plan wants `stages.0.0.conv1` at w4a3: expected weights of 8,6,4,2 and activations of 8,6,4,2 bits, which \
         the model has for it"
    );
    let mut pinned = layers();
    pinned[0].1 = "4".parse().unwrap();
    assert!(
        message(&artifact, pinned).starts_with("the plan wants `stem` at w4a4: expected weights of 8 and")
    );

    let mut joint = artifact.clone();
    joint.description.mixed = None;
    assert!(message(&joint, layers()).contains("expected one of `dr-train train --mixed`"));
    let packed = artifact.export(set().highest()).unwrap();
    assert_eq!(message(&packed, layers()), "a packed w8a8 model: expected a multi-precision one");

    // A file whose plan is another than its tensors.
    let mut file = artifact.export_plan::<Value>(&good, &[], &device).unwrap();
    file.description.plan = Some(plan(&mut file.network(&device).unwrap(), &["2"]));
    assert!(file.network(&device).is_err());
    file.description.plan = Some(PrecisionPlan::default());
    assert!(file.network(&device).is_err());
    file.description.plan = None;
    assert!(Artifact::to_bytes(&file).is_err() || file.network(&device).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    /// Whatever the mixture, its codes are those of the precisions it is made of.
    #[test]
    fn every_mixture_runs(picks in prop::collection::vec(0usize..16, 8)) {
        let mut network = supernet(&set(), MixedNorm::Width);
        let all = choices(&set(), Widths::Separate);
        let names: Vec<String> = picks.iter().map(|&pick| all[pick].to_string()).collect();
        let plan = plan(&mut network, &names.iter().map(String::as_str).collect::<Vec<_>>());
        let artifact = artifact(&network, set(), Some(MixedNorm::Width));
        let packed = artifact.export_plan::<Value>(&plan, &[], &Device::flex()).unwrap();
        let logits = packed.network(&Device::flex()).unwrap().forward(images(1, 2, &Device::flex()), &Pass::at(packed.description.edge));
        prop_assert!(values(logits).iter().all(|value| value.is_finite()));
    }
}

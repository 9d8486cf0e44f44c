//! Traced networks: their layers are those that they have, under the names that files have.

use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use dr_precision::PrecisionSet;
use dr_runtime::graph::Graph;
use dr_train::artifact::{Artifact, Described, Description, InputShape, SavedModel};
use dr_train::models::{ConvNetConfig, LlamaConfig, MOBILENET_V2, RESNET8, RESNET18, RESNET50};
use dr_train::nn::{Model, Network, Pass, QuantConfig, Tensors, Value};
use rand::SeedableRng;

/// The names of the layers with what they are: `!` at an edge, `+` after a ReLU.
fn layers(model: &mut Model) -> Vec<String> {
    let named = model.layers().into_iter().map(|layer| {
        let edge = if layer.pinned { "!" } else { "" };
        let positive = if layer.after_relu { "+" } else { "" };
        format!("{}{edge}{positive}", layer.name)
    });
    named.collect()
}

fn trace(network: &impl Network) -> Model {
    Model::trace(network).unwrap()
}

#[test]
fn layers_of_residual_networks() {
    let device = Device::flex();
    let mut model = trace(&ConvNetConfig::new(RESNET8, 1, 10).init(1, &device));
    let expected = [
        "stem!",
        "stages.0.0.conv1+",
        "stages.0.0.conv2+",
        "stages.1.0.conv1+",
        "stages.1.0.conv2+",
        "stages.1.0.shortcut+",
        "stages.2.0.conv1+",
        "stages.2.0.conv2+",
        "stages.2.0.shortcut+",
        "head!+",
    ];
    assert_eq!(layers(&mut model), expected);
    assert_eq!(model.norms_after().len(), 9);
    assert_eq!(model.graph().batch_norms()[5].name, "stages.1.0.shortcut_norm");

    let config = ConvNetConfig { width: 8, ..ConvNetConfig::new(RESNET50, 3, 10) };
    let mut model = trace(&config.init(1, &device));
    let found = layers(&mut model);
    assert_eq!(found.len(), 1 + 16 * 3 + 4 + 1);
    assert_eq!(
        found[1..5],
        ["conv1", "conv2", "conv3", "shortcut"].map(|part| format!("stages.0.0.{part}+"))
    );
    assert!(found[1..found.len() - 1].iter().all(|name| name.ends_with('+') && !name.contains('!')));

    let config = ConvNetConfig { width: 8, ..ConvNetConfig::new(MOBILENET_V2, 3, 10) };
    let mut model = trace(&config.init(1, &device));
    let found = layers(&mut model);
    // What blocks make is not cut off at zero; the first is without an expansion.
    assert_eq!(
        found[..6],
        [
            "stem!",
            "stages.0.0.conv1+",
            "stages.0.0.conv2+",
            "stages.1.0.conv1",
            "stages.1.0.conv2+",
            "stages.1.0.conv3+",
        ]
    );
    assert_eq!(found[found.len() - 2..], ["tail", "head!+"]);
}

#[test]
fn layers_of_pyramids() {
    let config = ConvNetConfig { kind: RESNET8, width: 8, channels: 3, classes: 4 };
    let sorted = |mut names: Vec<String>| {
        names.sort_unstable();
        names
    };
    let blocks = |names: &[&str]| {
        let parts = [(0, "conv1"), (0, "conv2"), (1, "conv1"), (1, "conv2"), (1, "shortcut"), (2, "conv1")];
        let parts = parts.into_iter().chain([(2, "conv2"), (2, "shortcut")]);
        let blocks = parts.map(|(stage, part)| format!("pyramid.stages.{stage}.0.{part}+"));
        sorted(blocks.chain(names.iter().map(|&name| name.to_owned())).collect())
    };
    let segmenter = blocks(&[
        "pyramid.stem!",
        "pyramid.laterals.0+",
        "pyramid.laterals.1+",
        "pyramid.laterals.2+",
        "pyramid.outputs.0",
        "pyramid.outputs.1",
        "pyramid.outputs.2",
        "mix",
        "head!+",
    ]);
    assert_eq!(sorted(layers(&mut trace(&config.init_segmenter(1, &Device::flex())))), segmenter);
    let detector = blocks(&[
        "pyramid.stem!",
        "pyramid.laterals.0+",
        "pyramid.laterals.1+",
        "pyramid.outputs.0",
        "pyramid.outputs.1",
        "class_tower+",
        "box_tower+",
        "classes!+",
        "boxes!+",
    ]);
    assert_eq!(sorted(layers(&mut trace(&config.init_detector(1, &Device::flex())))), detector);
}

#[test]
fn layers_of_language_models() {
    for tied in [false, true] {
        let config = LlamaConfig { tied, ..LlamaConfig::small(40, 64, 2, 16) };
        let mut model = trace(&config.init(1, &Device::flex()));
        let parts = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let parts = parts.into_iter().chain(["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]);
        let expected =
            (0..2).flat_map(|block| parts.clone().map(move |part| format!("layers.{block}.{part}")));
        assert_eq!(layers(&mut model), expected.chain(["lm_head!".to_owned()]).collect::<Vec<_>>());
    }
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn rows(value: Value) -> Vec<f32> {
    let Value::Rows(rows) = value else { panic!("{}", value.name()) };
    values(rows)
}

/// What the modules make of an input, and what the graph makes of it.
#[track_caller]
fn assert_same(network: &impl Network, input: Value) {
    let pass = Pass::float();
    let direct = rows(network.forward(&mut Tensors::new(&pass), input.clone()));
    let model = trace(network);
    assert_eq!(values(model.forward(input.clone(), &pass)), direct);
    // The graph survives being written.
    let json = serde_json::to_string(model.graph()).unwrap();
    assert_eq!(&serde_json::from_str::<Graph>(&json).unwrap(), model.graph());
}

#[test]
fn graphs_compute_what_networks_do() {
    let device = Device::flex();
    let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(3);
    let normal = Distribution::Normal(0.0, 1.0);
    let images = TensorData::random::<f32, _, _>([2, 3, 24, 20], normal, rng);
    let images = || Tensor::<4>::from_data(images.clone(), &device).into();
    for kind in [RESNET8, RESNET18, RESNET50, MOBILENET_V2] {
        assert_same(&ConvNetConfig { width: 8, ..ConvNetConfig::new(kind, 3, 5) }.init(1, &device), images());
    }
    let config = ConvNetConfig { kind: RESNET18, width: 8, channels: 3, classes: 4 };
    assert_same(&config.init_segmenter(1, &device), images());
    assert_same(&config.init_detector(1, &device), images());
    let tokens = Tensor::<2, Int>::from_data(TensorData::from([[1, 7, 3], [0, 2, 9]]), &device);
    for (tied, head_norm) in [(false, false), (true, true)] {
        let config = LlamaConfig { tied, head_norm, ..LlamaConfig::small(40, 64, 2, 16) };
        assert_same(&config.init(1, &device), tokens.clone().into());
    }
}

#[test]
fn files_without_a_graph_are_those_of_the_networks_that_they_name() {
    let device = Device::flex();
    let config = ConvNetConfig::new(RESNET8, 1, 10);
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let set = PrecisionSet::default();
    let description = Description::new("digits", &RESNET8, input, 10, set.clone());
    let images = Tensor::<4>::random([4, 1, 8, 8], Distribution::Normal(0.0, 1.0), &device);
    let artifact = Artifact::of(&trace(&config.init(1, &device)), description).unwrap();
    let artifact = artifact.quantize(&QuantConfig::new(set.clone()), vec![images.clone()], &device).unwrap();
    let mut old = artifact.clone();
    (old.description.format_version, old.description.graph) = (1, None);
    let old = Artifact::from_bytes(&old.to_bytes().unwrap()).unwrap().with_graph().unwrap();
    let of = |artifact: &Artifact| {
        let model = artifact.network(&device).unwrap();
        values(model.forward(images.clone(), &Pass::at(set.lowest())))
    };
    assert_eq!(of(&old), of(&artifact));
    let exported = old.export(set.lowest()).unwrap();
    assert_eq!(exported.description.graph, artifact.description.graph);
    let mut unknown = old;
    unknown.description.graph = None;
    unknown.description.model = "resnet9".to_owned();
    let error = unknown.with_graph().unwrap_err().to_string();
    assert!(error.contains("`resnet9` without a graph"), "{error}");
    let mut other = artifact;
    other.description.classes = 11;
    assert!(other.network(&device).unwrap_err().to_string().ends_with("expected rows of 11"));
}

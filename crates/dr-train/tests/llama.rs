//! Language models of Hugging Face: the same logits, and folders with something wrong.

use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::PrecisionSet;
use dr_train::artifact::Artifact;
use dr_train::models::{ConvNet, Llama, LlamaConfig, Network};
use dr_train::nn::Pass;
use dr_train::text::Tokenizer;
use dr_train::weights::load_hugging_face;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

/// See `fixtures/make_llama.py`.
const VARIANTS: [&str; 6] = ["plain", "grouped", "tied", "linear", "llama3", "biases"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama").join(name)
}

fn load(name: &str) -> Artifact {
    load_hugging_face(&fixture(name), PrecisionSet::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Tokens `[2, 40]` and transformers' logits, `[2 * 40, vocabulary]`.
fn expected(name: &str) -> (Tensor<2, Int>, Vec<f32>) {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let tokens: Vec<i32> = words("tokens").into_iter().map(i32::from_le_bytes).collect();
    let logits = words("logits").into_iter().map(f32::from_le_bytes).collect();
    (Tensor::from_data(TensorData::new(tokens, [2, 40]), &Device::flex()), logits)
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

#[track_caller]
fn assert_close(name: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let off = found.iter().zip(expected).fold(0.0, |off: f32, (a, b)| off.max((a - b).abs()));
    assert!(off <= 1e-4 * largest, "{name}: off by {off}, the largest is {largest}");
}

#[test]
fn logits_are_those_of_transformers() {
    for name in VARIANTS {
        let network: Llama = load(name).network(&Device::flex()).unwrap();
        let (tokens, logits) = expected(name);
        assert_close(name, &values(network.forward(tokens, &Pass::float())), &logits);
    }
}

#[test]
fn saved_and_quantized_models_compute_the_same_again() {
    let device = Device::flex();
    for name in ["grouped", "tied", "biases"] {
        let float = load(name);
        let (tokens, _) = expected(name);
        let set: PrecisionSet = "w8a8,w4a8".parse().unwrap();
        let quantized = float.quantize::<Llama>(set.clone(), vec![tokens.clone()], &device).unwrap();
        let read = Artifact::from_bytes(&quantized.to_bytes().unwrap()).unwrap();
        assert_eq!(read.tensors, quantized.tensors);
        assert_eq!(read.tokenizer().is_ok(), name == "grouped");
        let network: Llama = read.network(&device).unwrap();
        for precision in set.iter() {
            let whole = values(network.forward(tokens.clone(), &Pass::at(precision)));
            let packed: Llama = read.export(precision).unwrap().network(&device).unwrap();
            assert_close(name, &values(packed.forward(tokens.clone(), &Pass::at(precision))), &whole);
        }
        let image = read.network::<ConvNet>(&device).unwrap_err().to_string();
        assert_eq!(image, "a llama: expected a network for images");
    }
}

/// A copy of a fixture that can be damaged.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn folders_with_something_wrong_say_so() {
    let cases: [(&str, &str, Box<dyn Fn(&str) -> Option<String>>, &str); 9] = [
        ("config.json", "grouped", Box::new(|_| None), "config.json"),
        ("config.json", "grouped", Box::new(|_| Some("{".into())), "expected JSON"),
        ("config.json", "plain", Box::new(|json| Some(json.replace("llama", "qwen2").replace("Llama", "Qwen2"))),
            "architecture `Qwen2ForCausalLM`: expected LlamaForCausalLM"),
        ("config.json", "plain", Box::new(|json| Some(json.replace("\"hidden_size\": 16", "\"hidden_size\": 20"))),
            "expected [64, 20]"),
        ("config.json", "llama3", Box::new(|json| Some(json.replace("\"llama3\"", "\"yarn\""))),
            "rope_type is \"yarn\": expected default, linear or llama3"),
        ("config.json", "grouped", Box::new(|json| Some(json.replace("heads\": 2", "heads\": 3"))),
            "num_key_value_heads is 3: expected a divisor of the 4 heads"),
        ("model-00002-of-00004.safetensors", "grouped", Box::new(|_| None), "model-00002-of-00004.safetensors"),
        ("model.safetensors.index.json", "grouped",
            Box::new(|json| Some(json.replace("model-00002", "../model-00002"))), "expected the name of a file"),
        ("config.json", "grouped", Box::new(|json| Some(json.replace("\"vocab_size\": 64", "\"vocab_size\": 20"))),
            "tokens: the model expects at most 20"),
    ];
    for (file, from, change, expected) in cases {
        let dir = copy(from);
        let path = dir.path().join(file);
        match change(&std::fs::read_to_string(&path).unwrap_or_default()) {
            Some(text) => std::fs::write(&path, text).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let error = load_hugging_face(dir.path(), PrecisionSet::default()).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{file} of {from}: {error}");
    }
    // A shard that is cut off.
    let dir = copy("plain");
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(load_hugging_face(dir.path(), PrecisionSet::default()).is_err());
}

#[test]
fn tokenizers_of_hugging_face() {
    let tokenizer = Tokenizer::load(&fixture("grouped").join("tokenizer.json")).unwrap();
    let tokens = tokenizer.encode("the cat sat on the mat, and the hat.", false).unwrap();
    assert!(tokens.len() < 20);
    assert_eq!(tokenizer.decode(&tokens).unwrap(), "the cat sat on the mat, and the hat.");
}

#[test]
fn a_text_does_not_depend_on_what_comes_later() {
    let network = LlamaConfig::small(50, 64, 2, 32).init(3, &Device::flex());
    let tokens = |last: i64| {
        let tokens: Vec<i64> = (0..10).map(|i| i * 7 % 50).chain([last]).collect();
        Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, 11]), &Device::flex())
    };
    let [a, b] = [3, 40].map(|last| values(network.forward(tokens(last), &Pass::float())));
    assert_eq!(a[..500], b[..500]);
    assert_ne!(a[500..], b[500..]);
}

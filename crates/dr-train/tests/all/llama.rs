//! Language models of Hugging Face: the same logits, and folders with something wrong.

use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::{BitWidth, PrecisionSet};
use dr_runtime::Arithmetic;
use dr_runtime::tensors::{Cache, Network};
use dr_runtime::text::{ChatTemplate, GenerationConfig, Message, Reader, Sampling, generate};
use dr_train::artifact::{Artifact, ArtifactKind, Described, Description, SavedModel};
use dr_train::generation::{FakeReader, GenerationError, score_choices};
use dr_train::models::LlamaConfig;
use dr_train::nn::{Model, Pass, QuantConfig, TensorCache};
use dr_train::text::{Choices, Tokenizer, load_choices};
use dr_train::weights::load_hugging_face;
use safetensors::SafeTensors;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// See `fixtures/make_llama.py`.
const VARIANTS: [&str; 6] = ["plain", "grouped", "tied", "linear", "llama3", "biases"];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama").join(name)
}

fn load(name: &str) -> Artifact {
    load_hugging_face(&fixture(name), PrecisionSet::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
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
        let network = load(name).network(&Device::flex()).unwrap();
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
        let group_size = (name == "biases").then_some(NonZeroUsize::new(24).unwrap());
        let compensate = (name == "tied").then_some(BitWidth::B4);
        let switch_edge = name == "grouped";
        let config = QuantConfig { group_size, compensate, switch_edge, ..QuantConfig::new(set.clone()) };
        let quantized = float.quantize(&config, vec![tokens.clone()], &device).unwrap();
        assert_eq!(quantized.description.group_size, group_size);
        assert_eq!(quantized.description.switch_edge, switch_edge);
        let read = Artifact::from_bytes(&quantized.to_bytes().unwrap()).unwrap();
        assert_eq!(read.tensors, quantized.tensors);
        assert_eq!(read.tokenizer().is_ok(), name == "grouped");
        let network = read.network(&device).unwrap();
        for precision in set.iter() {
            let whole = values(network.forward(tokens.clone(), &Pass::at(precision)));
            let packed = read.export(precision).unwrap().network(&device).unwrap();
            assert_close(name, &values(packed.forward(tokens.clone(), &Pass::at(precision))), &whole);
            // Its weights are the values of its codes.
            let floats = values(packed.forward(tokens.clone(), &Pass::float()));
            let mut weight_only =
                Network::load(&read, set.highest(), Arithmetic::WeightOnly, &device).unwrap();
            weight_only.switch(precision).unwrap();
            assert_close(name, &values(weight_only.forward(tokens.clone()).unwrap()), &floats);
            assert!(weight_only.switch("w3a3".parse().unwrap()).is_err());
        }
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
    type Change = Box<dyn Fn(&str) -> Option<String>>;
    let cases: [(&str, &str, Change, &str); 11] = [
        // No memory is taken for blocks that cannot be in the file.
        (
            "config.json",
            "plain",
            Box::new(|json| Some(json.replace("hidden_layers\": 2", "hidden_layers\": 4000000"))),
            "values: expected at least",
        ),
        ("config.json", "grouped", Box::new(|_| None), "config.json"),
        ("config.json", "grouped", Box::new(|_| Some("{".into())), "expected JSON"),
        (
            "config.json",
            "plain",
            Box::new(|json| Some(json.replace("llama", "qwen2").replace("Llama", "Qwen2"))),
            "architecture `Qwen2ForCausalLM`: expected LlamaForCausalLM",
        ),
        (
            "config.json",
            "plain",
            Box::new(|json| Some(json.replace("\"hidden_size\": 16", "\"hidden_size\": 20"))),
            "expected [64, 20]",
        ),
        (
            "config.json",
            "llama3",
            Box::new(|json| Some(json.replace("\"llama3\"", "\"yarn\""))),
            "rope_type is \"yarn\": expected default, linear or llama3",
        ),
        (
            "config.json",
            "grouped",
            Box::new(|json| Some(json.replace("heads\": 2", "heads\": 3"))),
            "num_key_value_heads is 3: expected a divisor of the 4 heads",
        ),
        (
            "model-00002-of-00004.safetensors",
            "grouped",
            Box::new(|_| None),
            "model-00002-of-00004.safetensors",
        ),
        (
            "model.safetensors.index.json",
            "grouped",
            Box::new(|json| Some(json.replace("model-00002", "../model-00002"))),
            "expected the name of a file",
        ),
        (
            "config.json",
            "grouped",
            Box::new(|json| Some(json.replace("\"vocab_size\": 64", "\"vocab_size\": 20"))),
            "tokens: the model expects at most 20",
        ),
        (
            "generation_config.json",
            "grouped",
            Box::new(|_| Some("{\"top_p\": 2}".into())),
            "generation_config.json`: top_p is 2: expected a number from 0 to 1",
        ),
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
fn what_a_folder_says_of_texts_is_in_the_file() {
    let dir = copy("grouped");
    let json = r#"{"eos_token_id": [7, 2], "do_sample": true, "temperature": 0.5}"#;
    std::fs::write(dir.path().join("generation_config.json"), json).unwrap();
    let json = r#"{"chat_template": "replaced", "bos_token": "a"}"#;
    std::fs::write(dir.path().join("tokenizer_config.json"), json).unwrap();
    let template = "{{ bos_token + ' ' + messages[0].content }}";
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    let float = load_hugging_face(dir.path(), PrecisionSet::default()).unwrap();
    assert_eq!(float.payload_bytes(), load("grouped").payload_bytes());
    let config = QuantConfig::new("w8a8,w4a8".parse().unwrap());
    let quantized = float.quantize(&config, vec![expected("grouped").0], &Device::flex()).unwrap();
    let packed = quantized.export("w4a8".parse().unwrap()).unwrap();
    for artifact in [&float, &quantized, &packed] {
        let read = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
        read.network(&Device::flex()).unwrap();
        assert_eq!(read.description.end_tokens(), [2, 7]);
        assert_eq!(GenerationConfig::of(&read).unwrap().sampling().temperature, 0.5);
        let text = ChatTemplate::of(&read).unwrap().render(&[Message::new("user", "cat")]).unwrap();
        assert_eq!(text, "a cat");
    }
    // Models without say nothing.
    let plain = load("grouped");
    assert_eq!(GenerationConfig::of(&plain).unwrap(), GenerationConfig::default());
    assert!(ChatTemplate::of(&plain).unwrap_err().to_string().contains("no chat template"));
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
    let network = Model::trace(&network).unwrap();
    let tokens = |last: i64| {
        let tokens: Vec<i64> = (0..10).map(|i| i * 7 % 50).chain([last]).collect();
        Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, 11]), &Device::flex())
    };
    let [a, b] = [3, 40].map(|last| values(network.forward(tokens(last), &Pass::float())));
    assert_eq!(a[..500], b[..500]);
    assert_ne!(a[500..], b[500..]);
}

fn quantized(config: &LlamaConfig, set: &str) -> (Model, Artifact) {
    quantized_as(config, &QuantConfig::new(set.parse().unwrap()))
}

fn quantized_as(config: &LlamaConfig, quantization: &QuantConfig) -> (Model, Artifact) {
    let device = Device::flex();
    let tokens = |seed: i64| {
        let tokens: Vec<i64> =
            (0..2 * 24).map(|i| (i * i + seed * i + seed) % config.vocabulary as i64).collect();
        Tensor::<2, Int>::from_data(TensorData::new(tokens, [2, 24]), &device)
    };
    let model = Model::trace(&config.init(5, &device)).unwrap();
    let model = model.quantize(quantization, vec![tokens(3), tokens(7)]);
    let QuantConfig { precisions, switch_edge, group_size, edge, .. } = quantization.clone();
    let description = Description {
        kind: ArtifactKind::MultiPrecision,
        switch_edge,
        group_size,
        edge,
        ..Description::of_language(config, precisions)
    };
    let artifact = Artifact::of(&model, description).unwrap();
    (model, artifact)
}

fn integers(artifact: &Artifact, precision: &str) -> Network {
    Network::load(artifact, precision.parse().unwrap(), Arithmetic::Integer, &Device::flex()).unwrap()
}

fn logits<R: Reader<Error: std::fmt::Debug>>(reader: &R, tokens: &[u32], cache: &mut R::Cache) -> Vec<f32> {
    reader.read(tokens, cache).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// The most likely tokens, each from the whole text before it.
fn recomputed<R: Reader<Error: std::fmt::Debug>>(
    reader: &R, prompt: &[u32], count: usize,
) -> (Vec<u32>, Vec<f32>) {
    let (mut text, mut last) = (prompt.to_vec(), vec![]);
    for _ in 0..count {
        last = logits(reader, &text, &mut R::Cache::default());
        text.push(best(&last));
    }
    (text[prompt.len()..].to_vec(), last)
}

fn generated<R: Reader<Error = dr_runtime::RuntimeError>>(
    reader: &mut R, sizes: [usize; 2], prompt: &[u32], count: usize,
) -> Vec<u32> {
    let mut tokens = vec![];
    generate::<_, GenerationError>(reader, sizes, prompt, count, &Sampling::default(), |_, number, token| {
        assert_eq!(number, tokens.len());
        tokens.push(token);
        Ok(true)
    })
    .unwrap();
    tokens
}

#[test]
fn generation_with_a_cache_is_recomputation() {
    // More tokens than there is room for in the cache at first.
    let config = LlamaConfig { kv_heads: 1, ..LlamaConfig::small(61, 64, 2, 128) };
    let (model, artifact) = quantized(&config, "w8a8,w4a8");
    let (prompt, sizes) = ([5, 9, 60, 1], [61, 128]);
    let device = Device::flex();
    let mut floats = FakeReader { model: &model, pass: Pass::float(), device: &device };
    assert_eq!(generated(&mut floats, sizes, &prompt, 90), recomputed(&floats, &prompt, 90).0);
    for precision in ["w8a8", "w4a8"] {
        let mut integers = integers(&artifact, precision);
        assert_eq!(generated(&mut integers, sizes, &prompt, 90), recomputed(&integers, &prompt, 90).0);
        let mut cache = Cache::default();
        logits(&integers, &prompt, &mut cache);
        let error = integers.read(&[1; 125], &mut cache).unwrap_err().to_string();
        assert_eq!(error, "a text of 129 tokens: expected 1 to 128, the model's context");
        assert!(integers.read(&[], &mut cache).is_err());
    }
    // The context has no room for more.
    assert_eq!(generated(&mut floats, sizes, &prompt, 1000).len(), 124);
    let mut cache = TensorCache::default();
    logits(&floats, &prompt, &mut cache);
    assert_eq!(cache.positions(), 4);
    let mut generate = |prompt: &[u32]| {
        generate::<_, GenerationError>(&mut floats, sizes, prompt, 1, &Sampling::default(), |_, _, _| {
            Ok(true)
        })
    };
    let long = generate(&[1; 128]);
    assert_eq!(
        long.unwrap_err().to_string(),
        "the prompt has 128 tokens: expected less than 128, the model's context"
    );
    let other = generate(&[61]);
    assert_eq!(other.unwrap_err().to_string(), "the tokenizer gives token 61: the model has 61");
}

#[test]
fn integers_are_fake_quantization() {
    let tied = LlamaConfig { tied: true, ..LlamaConfig::small(40, 128, 1, 64) };
    let untied = LlamaConfig::small(61, 64, 2, 64);
    // 24 divides neither the features nor the blocks of codes.
    for (config, group_size, switch_edge) in [
        (untied.clone(), None, false),
        (tied.clone(), None, true),
        (untied, NonZeroUsize::new(24), true),
        (tied, NonZeroUsize::new(32), false),
    ] {
        let set = "w8a8,w6a6,w4a8,w2a8".parse().unwrap();
        let (_, artifact) =
            quantized_as(&config, &QuantConfig { group_size, switch_edge, ..QuantConfig::new(set) });
        // As it is saved: an embedding that is tied to the head has the values of codes.
        let model = artifact.network(&Device::flex()).unwrap();
        let mut integers = integers(&artifact, "w8a8");
        let mut bytes = integers.model_bytes();
        for precision in ["w6a6", "w4a8", "w2a8", "w8a8"].map(|precision| precision.parse().unwrap()) {
            integers.switch(precision).unwrap();
            let tokens: Vec<i64> = (0..60).map(|i| i * 11 % config.vocabulary as i64).collect();
            let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [2, 30]), &Device::flex());
            let fake = values(model.forward(tokens.clone(), &Pass::at(precision)));
            let found = values(integers.forward(tokens).unwrap());
            // Codes next to a rounding boundary may come out as their neighbours, whose consequences are small.
            let off: f32 = found.iter().zip(&fake).map(|(a, b)| (a - b).abs()).sum::<f32>();
            let all = fake.iter().map(|x| x.abs()).sum::<f32>();
            let most = if switch_edge { 1e-2 } else { 5e-3 }; // there is nothing after the head to level it out
            assert!(off <= most * all, "{group_size:?} {precision}: {off} of {all}");
            assert!(precision.to_string() == "w8a8" || integers.model_bytes() < bytes);
            bytes = integers.model_bytes();
        }
        assert!(integers.switch("w3a3".parse().unwrap()).is_err());
    }
}

#[test]
fn a_model_can_be_switched_between_tokens() {
    let config = LlamaConfig::small(61, 64, 2, 64);
    let (_, artifact) = quantized(&config, "w8a8,w4a8");
    let mut network = integers(&artifact, "w8a8");
    let mut tokens = vec![];
    generate::<_, GenerationError>(
        &mut network,
        [61, 64],
        &[1, 2, 3],
        20,
        &Sampling::default(),
        |network, number, token| {
            tokens.push(token);
            if number == 9 {
                network.switch("w4a8".parse().unwrap()).map_err(GenerationError::from)?;
            }
            Ok(true)
        },
    )
    .unwrap();
    let mut high = integers(&artifact, "w8a8");
    assert_eq!(tokens[..10], generated(&mut high, [61, 64], &[1, 2, 3], 10));
    assert_eq!(tokens.len(), 20);
}

#[test]
fn questions_are_answered_by_likelihood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("questions.jsonl");
    std::fs::write(
        &path,
        "{\"context\": \"the cat\", \"choices\": [\" sat\", \" on the mat\"], \"answer\": 1}\n\n\
         {\"context\": \"\", \"choices\": [\"the hat\", \"cat on\"], \"answer\": 0}\n",
    )
    .unwrap();
    let questions = load_choices(&path).unwrap();
    let tokenizer = Tokenizer::load(&fixture("grouped").join("tokenizer.json")).unwrap();
    let network = load("grouped").network(&Device::flex()).unwrap();
    let score = score_choices(&questions, &tokenizer, [64, 64], &Device::flex(), |tokens| {
        Ok::<_, GenerationError>(network.forward(tokens, &Pass::float()))
    })
    .unwrap();
    // The same by hand.
    let likelihood = |context: &str, choice: &str| {
        let whole = tokenizer.encode(&format!("{context}{choice}"), false).unwrap();
        let first = tokenizer.encode(context, false).unwrap().len().max(1);
        let ids: Vec<i32> = whole.iter().map(|&token| token as i32).collect();
        let input =
            Tensor::<2, Int>::from_data(TensorData::new(ids.clone(), [1, ids.len()]), &Device::flex());
        let logits = values(network.forward(input, &Pass::float()));
        let rows: Vec<&[f32]> = logits.chunks(64).collect();
        let of = |at: usize| {
            let row = rows[at - 1];
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            f64::from(row[ids[at] as usize]) - total.ln()
        };
        (first..ids.len()).map(of).sum::<f64>()
    };
    let right = |by_byte: bool| {
        let one = |question: &Choices| {
            let scores = question.choices.iter().map(|choice| {
                likelihood(&question.context, choice) / if by_byte { choice.len() as f64 } else { 1.0 }
            });
            let scores: Vec<f64> = scores.collect();
            (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])) == Some(question.answer)
        };
        100.0 * questions.iter().filter(|question| one(question)).count() as f64 / questions.len() as f64
    };
    assert_eq!((score.accuracy, score.normalized), (right(false), right(true)));
    for (line, reason) in [
        ("{", "line 1"),
        (
            "{\"context\": \"a\", \"choices\": [\"b\"], \"answer\": 1}",
            "answer 1: expected less than the 1 choices",
        ),
        ("{\"context\": \"a\", \"choices\": [\"\"], \"answer\": 0}", "choice 0 is empty"),
        ("", "no question"),
    ] {
        std::fs::write(&path, line).unwrap();
        let error = load_choices(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn the_head_switches_if_it_is_asked_to() {
    let config = LlamaConfig::small(61, 64, 1, 64);
    let [kept, switched] = [false, true].map(|switch_edge| {
        let set = "w8a8,w2a8".parse().unwrap();
        let (_, artifact) = quantized_as(&config, &QuantConfig { switch_edge, ..QuantConfig::new(set) });
        let mut integers = integers(&artifact, "w8a8");
        let whole = integers.model_bytes();
        integers.switch("w2a8".parse().unwrap()).unwrap();
        whole - integers.model_bytes()
    });
    // Of the head's 64 (with padding) rows of 64 codes three quarters.
    assert_eq!(switched - kept, 64 * 64 * 3 / 4);
}

#[test]
fn heads_are_normalized_in_qwen3() {
    let json = std::fs::read_to_string(fixture("grouped").join("config.json")).unwrap();
    let config =
        LlamaConfig::from_hugging_face(&json.replace("llama", "qwen3").replace("Llama", "Qwen3")).unwrap();
    assert!(config.head_norm);
    let model = Model::trace(&config.init(3, &Device::flex())).unwrap();
    let norms: Vec<&str> = model.graph().rms_norms().iter().map(|norm| norm.name.as_str()).collect();
    assert!(norms.contains(&"layers.0.self_attn.q_norm") && norms.contains(&"layers.1.self_attn.k_norm"));
    // The same network without is another.
    let tokens = Tensor::<2, Int>::from_data(TensorData::from([[1, 5, 9, 3]]), &Device::flex());
    let plain = LlamaConfig { head_norm: false, ..config.clone() }.init(3, &Device::flex());
    let [with, without] = [&model, &Model::trace(&plain).unwrap()]
        .map(|model| values(model.forward(tokens.clone(), &Pass::float())));
    assert!(with.iter().all(|logit| logit.is_finite()) && with != without);
}

//! Language models of Hugging Face: the same logits, and folders with something wrong.

use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::PrecisionSet;
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
pub const VARIANTS: [&str; 14] = [
    "plain", "grouped", "tied", "linear", "llama3", "biases", "dynamic", "yarn", "longrope", "qwen2",
    "qwen3", "mistral", "smollm3", "retied",
];

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama").join(name)
}

pub fn load(name: &str) -> Artifact {
    load_hugging_face(&fixture(name), PrecisionSet::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Tokens `[texts, 40]` and transformers' logits, `[texts * 40, vocabulary]`.
fn expected(name: &str) -> (Tensor<2, Int>, Vec<f32>) {
    let (tokens, logits, _) = expected_with_cache(name);
    (tokens, logits)
}

/// The same, and those of texts that are read token by token.
fn expected_with_cache(name: &str) -> (Tensor<2, Int>, Vec<f32>, Vec<f32>) {
    let bytes = std::fs::read(fixture(name).join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
    let tokens: Vec<i32> = words("tokens").into_iter().map(i32::from_le_bytes).collect();
    let floats = |name| words(name).into_iter().map(f32::from_le_bytes).collect::<Vec<_>>();
    let texts = tokens.len() / 40;
    let tokens = Tensor::from_data(TensorData::new(tokens, [texts, 40]), &Device::flex());
    let read = if file.names().contains(&"read") { "read" } else { "logits" };
    (tokens, floats("logits"), floats(read))
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

/// The logits after each of the first text's tokens.
fn token_by_token<R: Reader<Error: std::fmt::Debug>>(reader: &R, tokens: &Tensor<2, Int>) -> Vec<f32> {
    let mut cache = R::Cache::default();
    let tokens = tokens.clone().slice([0..1, 0..40]).into_data().convert::<u32>();
    tokens.iter::<u32>().flat_map(|token| reader.read(&[token], &mut cache).unwrap()).collect()
}

#[test]
fn families_compute_the_same_in_every_engine() {
    let device = Device::flex();
    for name in ["dynamic", "yarn", "longrope", "qwen2", "qwen3", "mistral", "smollm3", "retied"] {
        let artifact = load(name);
        let (tokens, logits, read) = expected_with_cache(name);
        // In floats: on tensors and on slices, at once and token by token.
        let model = artifact.network(&device).unwrap();
        let fake = FakeReader { model: &model, pass: Pass::float(), device: &device };
        assert_close(name, &token_by_token(&fake, &tokens), &read);
        let file = Artifact::from_bytes(&artifact.to_bytes().unwrap()).unwrap();
        let slices = dr_runtime::Network::load_with(&file, None, Arithmetic::Integer).unwrap();
        let ids: Vec<u32> = tokens.clone().into_data().convert::<u32>().try_into_vec().unwrap();
        let whole = slices.forward(dr_runtime::Input::Tokens { ids: &ids, batch: 1 }).unwrap();
        assert_close(name, &whole.values, &logits);
        let mut cache = dr_runtime::Cache::new();
        let one = |token: &u32| slices.read(&[*token], &mut cache).unwrap();
        assert_close(name, &ids.iter().flat_map(one).collect::<Vec<_>>(), &read);
        // In integers of all widths, switched between tokens, and as an exported one.
        let set: PrecisionSet = "w8a8,w7a8,w6a8,w5a8,w4a8,w3a8,w2a8".parse().unwrap();
        let quantized =
            artifact.quantize(&QuantConfig::new(set.clone()), vec![tokens.clone()], &device).unwrap();
        let quantized = Artifact::from_bytes(&quantized.to_bytes().unwrap()).unwrap();
        let model = quantized.network(&device).unwrap();
        let mut integers = integers(&quantized, "w8a8");
        let mut cache = Cache::default();
        for (precision, tokens_of_width) in set.iter().zip(ids.chunks(6)) {
            integers.switch(precision).unwrap();
            let fake = values(model.forward(tokens.clone(), &Pass::at(precision)));
            let found = values(integers.forward(tokens.clone()).unwrap());
            let off: f32 = found.iter().zip(&fake).map(|(a, b)| (a - b).abs()).sum::<f32>();
            let all = fake.iter().map(|x| x.abs()).sum::<f32>();
            assert!(off <= 1e-2 * all, "{name} {precision}: {off} of {all}");
            let packed = quantized.export(precision).unwrap();
            let exported =
                values(self::integers(&packed, &precision.to_string()).forward(tokens.clone()).unwrap());
            assert_close(name, &exported, &found);
            for token in tokens_of_width {
                assert!(integers.read(&[*token], &mut cache).unwrap().iter().all(|logit| logit.is_finite()));
            }
        }
        assert_eq!(cache.positions(), 40);
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
        let switch_edge = name == "grouped";
        let config = QuantConfig { group_size, switch_edge, ..QuantConfig::new(set.clone()) };
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
    let cases: [(&str, &str, Change, &str); 22] = [
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
            Box::new(|json| {
                Some(json.replace("llama", "gpt2").replace("LlamaForCausalLM", "GPT2LMHeadModel"))
            }),
            "architecture `GPT2LMHeadModel`: expected LlamaForCausalLM, MistralForCausalLM, Qwen2",
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
            Box::new(|json| Some(json.replace("\"llama3\"", "\"proportional\""))),
            "rope_type is \"proportional\": expected default, linear, dynamic, llama3, yarn or longrope",
        ),
        (
            "config.json",
            "longrope",
            Box::new(|json| Some(json.replace("1.1,", ""))),
            "short_factor is a list of 3: expected 4, one for each pair",
        ),
        (
            "config.json",
            "yarn",
            Box::new(|json| Some(json.replace("\"factor\": 4.0", "\"factor\": -4.0"))),
            "factor is -4: expected a number above 0",
        ),
        (
            "config.json",
            "dynamic",
            Box::new(|json| {
                Some(json.replace("\"rope_type\"", "\"partial_rotary_factor\": 0.5, \"rope_type\""))
            }),
            "partial_rotary_factor is 0.5: expected 1",
        ),
        (
            "config.json",
            "smollm3",
            Box::new(|json| Some(json.replace("\"sliding_attention\"", "\"chunked_attention\""))),
            "expected full_attention or sliding_attention for each of the 2 layers",
        ),
        (
            "config.json",
            "mistral",
            Box::new(|json| Some(json.replace("\"sliding_window\": 18", "\"sliding_window\": 0"))),
            "sliding_window is 0: expected a whole number above 0",
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
            "config.json",
            "plain",
            Box::new(|json| {
                Some(json.replacen('{', "{\"quantization_config\": {\"quant_method\": \"gptq\"},", 1))
            }),
            "the weights are quantized already (gptq): expected the model in floats",
        ),
        (
            "model.safetensors",
            "plain",
            Box::new(|_| None),
            "has no weights: expected model.safetensors, model.s",
        ),
        (
            "tokenizer.json",
            "grouped",
            Box::new(|_| {
                Some("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 44\n".into())
            }),
            "tokenizer.json`: a pointer of Git LFS: expected the file itself, which `git lfs pull` fetches",
        ),
        (
            "config.json",
            "grouped",
            Box::new(|_| Some("version https://git-lfs.github.com/spec/v1\n".into())),
            "config.json`: a pointer of Git LFS",
        ),
        (
            "model-00002-of-00004.safetensors",
            "grouped",
            Box::new(|_| Some("version https://git-lfs.github.com/spec/v1\n".into())),
            "model-00002-of-00004.safetensors`: a pointer of Git LFS",
        ),
        (
            "config.json",
            "grouped",
            Box::new(|json| {
                Some(json.replacen('{', "{\"quantization_config\": {\"quant_method\": \"awq\"},", 1))
            }),
            "the weights are quantized already (awq): expected the model in floats",
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
        match change(&String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default())) {
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

/// transformers 5 reads `rope_scaling` of 4, and what is null or empty says nothing.
#[test]
fn positions_of_transformers_4_and_5() {
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("llama3").join("config.json")).unwrap())
            .unwrap();
    let read = |json: &serde_json::Value| LlamaConfig::from_hugging_face(&json.to_string()).unwrap();
    let expected = read(&json);
    for (key, other) in [("rope_scaling", "rope_parameters"), ("rope_parameters", "rope_scaling")] {
        for nothing in [serde_json::json!(null), serde_json::json!({})] {
            let mut json = json.clone();
            let rope = json["rope_parameters"].take();
            json[other] = nothing;
            json[key] = rope;
            assert_eq!(read(&json), expected, "{key}");
        }
    }
}

/// A folder with the weights as PyTorch saves them, one of whose tensors is not finite; and a tokenizer with a few tokens more.
#[test]
fn what_is_in_folders_of_others() {
    let dir = copy("plain");
    let path = dir.path().join("model.safetensors");
    let name = "model.layers.1.mlp.up_proj.weight";
    let bytes = std::fs::read(&path).unwrap();
    std::fs::rename(&path, dir.path().join("pytorch_model.bin")).unwrap();
    let plain = load_hugging_face(dir.path(), PrecisionSet::default()).unwrap();
    assert_eq!(plain.tensors, load("plain").tensors);
    // As `torch.save` writes it; and in two files.
    let saved = fixture("../checkpoints/llama.bin");
    std::fs::copy(&saved, dir.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(load_hugging_face(dir.path(), PrecisionSet::default()).unwrap().tensors, plain.tensors);
    std::fs::remove_file(dir.path().join("pytorch_model.bin")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, name) in ["pytorch_model-1.bin", "pytorch_model-2.bin"].into_iter().enumerate() {
        let tensors = file.tensors().into_iter().enumerate().filter(|(at, _)| at % 2 == shard);
        let tensors: Vec<_> = tensors.map(|(_, tensor)| tensor).collect();
        map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), name.into())));
        std::fs::write(dir.path().join(name), safetensors::serialize(tensors, None).unwrap()).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), index).unwrap();
    assert_eq!(load_hugging_face(dir.path(), PrecisionSet::default()).unwrap().tensors, plain.tensors);

    let tensors =
        file.tensors().into_iter().map(|(name, tensor)| (format!("module._orig_mod.{name}"), tensor));
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    assert_eq!(load_hugging_face(dir.path(), PrecisionSet::default()).unwrap().tensors, plain.tensors);
    let at = file.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    let mut bytes = bytes.clone();
    bytes[at + 8..at + 12].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let error = load_hugging_face(dir.path(), PrecisionSet::default()).unwrap_err().to_string();
    assert!(error.ends_with(&format!("`{name}` has inf at position 2: expected finite numbers")), "{error}");

    let dir = copy("grouped");
    let path = dir.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let count = Tokenizer::load(&path).unwrap().vocabulary();
    for id in count..67 {
        let token = serde_json::json!({
            "id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        });
        json["added_tokens"].as_array_mut().unwrap().push(token);
    }
    std::fs::write(&path, json.to_string()).unwrap();
    let more = load_hugging_face(dir.path(), PrecisionSet::default()).unwrap();
    let tokenizer = Tokenizer::from_json(more.tokenizer().unwrap()).unwrap();
    let tokens = tokenizer.encode("the cat<65>", true).unwrap();
    assert_eq!(tokens.last(), Some(&65));
    let sampling = Sampling::default();
    let mut network = dr_runtime::Network::load_with(&more, None, Arithmetic::Integer).unwrap();
    let error =
        generate::<_, GenerationError>(&mut network, [64, 64], &tokens, 2, &sampling, |_, _, _| Ok(true));
    assert_eq!(error.unwrap_err().to_string(), "the tokenizer gives token 65: the model has 64");
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

pub fn quantized(config: &LlamaConfig, set: &str) -> (Model, Artifact) {
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
fn configurations_of_transformers_4_and_5_say_the_same() {
    let read = |name: &str, change: &dyn Fn(&str) -> String| {
        let json = std::fs::read_to_string(fixture(name).join("config.json")).unwrap();
        LlamaConfig::from_hugging_face(&change(&json)).unwrap()
    };
    let same = |json: &str| json.to_owned();
    for name in VARIANTS {
        let older = |json: &str| {
            let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
            let mut rope = json["rope_parameters"].take();
            json["rope_theta"] = rope.as_object_mut().unwrap().remove("rope_theta").unwrap();
            rope["type"] = rope.as_object_mut().unwrap().remove("rope_type").unwrap();
            // With the newer key beside it, but empty.
            json["rope_scaling"] = rope;
            json.to_string()
        };
        assert_eq!(read(name, &older), read(name, &same), "{name}");
    }
    // Texts of four times the context that the models were trained for.
    assert_eq!(["dynamic", "yarn", "longrope"].map(|name| read(name, &same).context), [64; 3]);
    let windows = |name: &str, change: &dyn Fn(&str) -> String| {
        let windows = read(name, change).windows.into_iter();
        windows.map(|window| window.map_or(0, NonZeroUsize::get)).collect::<Vec<_>>()
    };
    assert_eq!(windows("mistral", &same), [18, 18]);
    assert_eq!(windows("qwen2", &same), [0, 7]);
    assert_eq!(windows("smollm3", &same), [0, 9]);
    assert_eq!(read("smollm3", &same).no_rope, [1]);
    for (name, from, to) in [
        ("mistral", "\"sliding_window\": 18", "\"sliding_window\": null"),
        ("qwen2", "\"use_sliding_window\": true", "\"use_sliding_window\": false"),
        ("plain", "\"vocab_size\"", "\"sliding_window\": 4, \"vocab_size\""),
    ] {
        assert!(windows(name, &|json| json.replace(from, to)).is_empty(), "{name}");
    }
    // What families have if nothing is said.
    let without = |json: &str| {
        let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
        let object = json.as_object_mut().unwrap();
        for key in ["sliding_window", "layer_types", "max_window_layers", "no_rope_layers", "rope_parameters"]
        {
            object.remove(key);
        }
        object.insert("num_hidden_layers".into(), 29.into());
        json.to_string()
    };
    assert_eq!(windows("mistral", &without), [4096; 29]);
    assert_eq!(windows("qwen2", &without), [&[0; 28][..], &[4096]].concat());
    let smollm3 = read("smollm3", &without);
    assert_eq!((smollm3.no_rope, smollm3.rope.theta), (vec![3, 7, 11, 15, 19, 23, 27], 2e6));
}

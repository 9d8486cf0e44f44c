//! GGUF: the values of all types, networks and tokenizers in it, damaged files, and models written as it.

use crate::llama;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_precision::PrecisionSet;
use dr_runtime::graph::{Rope, RopeScaling};
use dr_train::artifact::{
    Artifact, ArtifactKind, Described, Description, SavedModel, TOKENIZER, TensorEntry,
};
use dr_train::models::LlamaConfig;
use dr_train::nn::{Pass, QuantConfig};
use dr_train::quantization::{CalibrationOptions, NestedModel, quantize_language};
use dr_train::text::Tokenizer;
use dr_train::weights::gguf::{BlockType, File, export, from_bytes};
use dr_train::weights::{is_language_model, load_language_model};
use proptest::prelude::*;
use safetensors::SafeTensors;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// See `fixtures/make_gguf.py`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

fn read(bytes: &[u8]) -> Result<Artifact, String> {
    from_bytes(bytes, Path::new("x.gguf"), PrecisionSet::default()).map_err(|error| error.to_string())
}

fn tokenizer(artifact: &Artifact) -> Tokenizer {
    Tokenizer::from_json(artifact.tokenizer().unwrap()).unwrap()
}

#[test]
fn values_of_all_types_are_those_of_ggml() {
    assert!(
        is_language_model(&fixture("types.gguf")) && !is_language_model(&fixture("expected.safetensors"))
    );
    let artifact = load_language_model(&fixture("types.gguf"), PrecisionSet::default()).unwrap();
    let bytes = std::fs::read(fixture("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let names = [
        ("token_embd", "lm_head.weight", 8),
        ("blk.0.attn_q", "layers.0.self_attn.q_proj.weight", 8),
        ("blk.0.attn_k", "layers.0.self_attn.k_proj.weight", 8),
        ("blk.0.attn_v", "layers.0.self_attn.v_proj.weight", 8),
        ("blk.0.attn_output", "layers.0.self_attn.o_proj.weight", 8),
        ("blk.0.ffn_gate", "layers.0.mlp.gate_proj.weight", 8),
        ("blk.0.ffn_up", "layers.0.mlp.up_proj.weight", 8),
        ("blk.0.ffn_down", "layers.0.mlp.down_proj.weight", 8),
        ("output_norm", "norm.gamma", 1),
        ("blk.0.attn_norm", "layers.0.input_layernorm.gamma", 1),
        ("blk.0.ffn_norm", "layers.0.post_attention_layernorm.gamma", 1),
    ];
    assert_eq!(expected.len(), names.len());
    for (theirs, ours, every) in names {
        let shape = artifact.tensors[ours].shape.clone();
        let found: Vec<u32> =
            artifact.f32(ours, &shape).unwrap().iter().map(|value| value.to_bits()).collect();
        let data = expected.tensor(theirs).unwrap().data().to_vec();
        let data: Vec<u32> = data.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let found: Vec<u32> = found.into_iter().step_by(every).take(data.len()).collect();
        assert_eq!(found, data, "{theirs}");
    }
    let tokenizer = tokenizer(&artifact);
    let plain = Tokenizer::load(&llama::fixture("grouped").join(TOKENIZER)).unwrap();
    let text = "the cat sat on the mat, and the hat.";
    assert_eq!(tokenizer.encode(text, false).unwrap(), plain.encode(text, false).unwrap());
    assert_eq!(tokenizer.encode("<|61|>the", true).unwrap()[..2], [62, 61], "a mark, and a token of its own");
    assert_eq!(artifact.description.end_tokens(), [63]);
}

#[test]
fn damaged_files_say_so() {
    let bytes = std::fs::read(fixture("types.gguf")).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|part| part == from).unwrap();
        bytes[at..][..to.len()].copy_from_slice(to);
        read(&bytes).unwrap_err()
    };
    let number = |name: &str, axes: usize, kind: u32| {
        // The number of axes, their sizes, the type.
        let mut bytes = bytes.clone();
        let at = bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap();
        bytes[at + name.len() + 4 + 8 * axes..][..4].copy_from_slice(&kind.to_le_bytes());
        bytes
    };
    assert_eq!(
        read(&number("blk.0.attn_q.weight", 2, 11)).unwrap_err(),
        "`x.gguf`: `blk.0.attn_q.weight` is of type Q3_K: expected F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K"
    );
    assert!(read(&number("blk.0.attn_q.weight", 2, 99)).unwrap_err().contains("of type number 99"));
    for (error, expected) in [
        (changed(b"GGUF", b"GGUX"), "does not begin with `GGUF`"),
        (changed(b"GGUF\x03", b"GGUF\x01"), "version 1: expected 2 or 3"),
        (
            changed(b"llama", b"gemma"),
            "general.architecture is `gemma`: expected one of llama, qwen2, qwen3, smollm3",
        ),
        (changed(b"smollm", b"unknow"), "tokenizer.ggml.pre is `unknow`: expected one of"),
        (changed(b"gpt2", b"bert"), "tokenizer.ggml.model is `bert`: expected gpt2 or llama"),
        (changed(b"head_count_kv", b"head_count_kx"), "expected [64, 256]"),
        (changed(b"blk.0.ffn_up.weight", b"blk.0.ffn_ux.weight"), "`blk.0.ffn_ux.weight` is unknown"),
        (read(&bytes[..bytes.len() - 4000]).unwrap_err(), "the file ends in tensor `"),
        (read(&bytes[..100]).unwrap_err(), "the file ends in "),
    ] {
        assert!(
            error.starts_with("`x.gguf`: ") && error.contains(expected) && !error.contains('\n'),
            "{error}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No panic, and no memory for what is not there.
    #[test]
    fn any_bytes_are_a_model_or_an_error(
        cut in any::<prop::sample::Index>(), changes in prop::collection::vec((0usize..4000, any::<u8>()), 0..8),
        large in prop::option::of(0usize..4000), random in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = std::fs::read(fixture("types.gguf")).unwrap();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        if let Some(at) = large {
            bytes[at..][..8].fill(0x7f);
        }
        let _ = read(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = read(&bytes);
        let _ = File::parse(&[&b"GGUF\x03\0\0\0"[..], &random].concat());
        for kind in BlockType::ALL {
            prop_assert_eq!(kind.dequantize(&random).len(), random.len() / kind.bytes() * kind.values());
        }
    }
}

/// The logits of a text.
fn logits(artifact: &Artifact, pass: &Pass) -> Vec<f32> {
    let device = Device::flex();
    let tokens: Vec<i32> = (0..24).map(|i| i * 7 % 60).collect();
    let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, 24]), &device);
    artifact.network(&device).unwrap().forward(tokens, pass).into_data().try_into_vec().unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let off = found.iter().zip(expected).fold(0f32, |off, (a, b)| off.max((a - b).abs()));
    assert!(off <= tolerance * largest, "{what}: off by {off}, the largest is {largest}");
}

#[test]
fn models_in_floats_come_back() {
    let json = std::fs::read(llama::fixture("grouped").join(TOKENIZER)).unwrap();
    for name in ["grouped", "tied", "linear", "llama3", "biases"] {
        let mut artifact = load_language_model(&llama::fixture(name), PrecisionSet::default()).unwrap();
        artifact.tensors.insert(TOKENIZER.into(), TensorEntry::bytes(json.clone()));
        let again = read(&export(&artifact, None).unwrap().bytes).unwrap();
        assert_close(name, &logits(&again, &Pass::float()), &logits(&artifact, &Pass::float()), 1e-2);
        let text = "and the hat, 12 cats";
        let [found, expected] = [&again, &artifact].map(|of| tokenizer(of).encode(text, true).unwrap());
        assert_eq!(found, expected, "{name}");
    }
}

/// A model in floats with a tokenizer.
fn random(config: &LlamaConfig) -> Artifact {
    let model = dr_train::nn::Model::trace(&config.init(5, &Device::flex())).unwrap();
    let description = Description::of_language(config, PrecisionSet::default());
    let mut artifact = Artifact::of(&model, description).unwrap();
    let json = std::fs::read(llama::fixture("grouped").join(TOKENIZER)).unwrap();
    artifact.tensors.insert(TOKENIZER.into(), TensorEntry::bytes(json));
    artifact
}

#[test]
fn families_come_back_under_their_names_or_are_refused() {
    let small = LlamaConfig { norm_eps: 2f64.powi(-17), ..LlamaConfig::small(64, 64, 4, 32) };
    for (name, config) in [
        ("qwen2", LlamaConfig { qkv_bias: true, tied: true, ..small.clone() }),
        ("qwen3", LlamaConfig { head_norm: true, ..small.clone() }),
        ("smollm3", LlamaConfig { no_rope: vec![3], ..small.clone() }),
    ] {
        let artifact = random(&config);
        let bytes = export(&artifact, None).unwrap().bytes;
        let file = File::parse(&bytes).unwrap();
        assert_eq!(file.metadata["general.architecture"].to_string(), format!("`{name}`"));
        let again = read(&bytes).unwrap();
        assert_eq!(again.description.llama().unwrap(), artifact.description.llama().unwrap());
        assert_close(name, &logits(&again, &Pass::float()), &logits(&artifact, &Pass::float()), 1e-2);
    }
    let dynamic = RopeScaling::Dynamic { factor: 2.0, original_context: 16 };
    for (config, expected) in [
        (LlamaConfig { windows: vec![NonZeroUsize::new(8); 4], ..small.clone() }, "a sliding window"),
        (LlamaConfig { no_rope: vec![0], ..small.clone() }, "layers without rotary positions"),
        (LlamaConfig { qkv_bias: true, head_norm: true, ..small.clone() }, "biases, normalized heads"),
        (LlamaConfig { rope: Rope { scaling: dynamic, ..small.rope.clone() }, ..small }, "a rotary scaling"),
    ] {
        let error = export(&random(&config), None).unwrap_err().to_string();
        assert!(error.starts_with(&format!("its network has {expected}")), "{error}");
    }
}

#[test]
fn numbers_that_cannot_be_are_named() {
    let mut artifact = random(&LlamaConfig::small(64, 64, 1, 32));
    let mut gamma = vec![1.0; 64];
    gamma[9] = f32::NAN;
    artifact.tensors.insert("norm.gamma".into(), TensorEntry::f32([64], gamma));
    let error = read(&export(&artifact, None).unwrap().bytes).unwrap_err().to_string();
    assert!(
        error.ends_with("`output_norm.weight` has NaN at position 9: expected finite numbers"),
        "{error}"
    );
}

#[test]
fn codes_come_back() {
    let set: PrecisionSet = "w8a8,w4a8,w3a8".parse().unwrap();
    let config = LlamaConfig::small(64, 64, 1, 32);
    let device = Device::flex();
    let model = dr_train::nn::Model::trace(&config.init(5, &device)).unwrap();
    let group_size = NonZeroUsize::new(32);
    let quantization = QuantConfig { group_size, ..QuantConfig::new(set.clone()) };
    let tokens = Tensor::<2, Int>::zeros([1, 8], &device);
    let model = model.quantize(&quantization, vec![tokens]);
    let kind = ArtifactKind::MultiPrecision;
    let description = Description::of_language(&config, set.clone());
    let mut artifact = Artifact::of(&model, Description { kind, group_size, ..description }).unwrap();
    assert!(export(&artifact, set.iter().next()).is_err(), "without a tokenizer");
    let json = std::fs::read(llama::fixture("grouped").join(TOKENIZER)).unwrap();
    artifact.tensors.insert(TOKENIZER.into(), TensorEntry::bytes(json));
    assert!(export(&artifact, None).unwrap_err().to_string().contains("expected one of w8a8,w4a8,w3a8"));
    assert!(export(&artifact, "w2a8".parse().ok()).is_err());
    for (precision, kind) in set.iter().zip([BlockType::Q8_0, BlockType::Q4_0, BlockType::Q4_0]) {
        let exported = export(&artifact, Some(precision)).unwrap();
        assert_eq!(
            (exported.types[&kind], exported.rounded),
            if kind == BlockType::Q8_0 { (8, 0) } else { (7, 0) }
        );
        // Of the packed model, in floats: weights are the values of codes.
        let packed = artifact.export(precision).unwrap();
        assert_eq!(export(&packed, None).unwrap(), exported);
        let again = read(&exported.bytes).unwrap();
        let name = precision.to_string();
        assert_close(&name, &logits(&again, &Pass::float()), &logits(&packed, &Pass::float()), 1e-2);
    }
}

#[test]
fn nested_codes_come_back() {
    // The last group of a row of the feed-forward layers' second ones is shorter.
    let config = LlamaConfig { feed_forward: 172, tied: true, ..LlamaConfig::small(64, 64, 1, 32) };
    let float = random(&config);
    let model = float.network(&Device::flex()).unwrap();
    let tokens: Vec<u32> = (0..200).map(|i| i * i % 61).collect();
    let options = CalibrationOptions { windows: 4, length: 24, gradient_windows: 1, ..Default::default() };
    let widths = [6, 4, 2].map(|bits: u32| bits.try_into().unwrap());
    let nested = quantize_language(&model, &tokens, &widths, &options, |_| {}).unwrap();
    let file = nested.artifact(&float).unwrap();
    assert!(export(&file, None).unwrap_err().to_string().contains("expected one of w8a8,w6a8,w4a8,w2a8"));
    for (precision, kind) in file.description.precisions.iter().zip([
        BlockType::Q8_0,
        BlockType::Q8_0,
        BlockType::Q4_1,
        BlockType::Q4_1,
    ]) {
        let exported = export(&file, Some(precision)).unwrap();
        assert_eq!(exported.types[&BlockType::F16], 1, "{precision}");
        assert_eq!(exported.types[&kind], if kind == BlockType::Q8_0 { 7 } else { 6 }, "{precision}");
        let only = file.export(precision).unwrap();
        assert_eq!(export(&only, None).unwrap(), exported);
        let weights = NestedModel { weights: only.nested().unwrap() };
        let expected = Artifact::of(
            &weights.dequantized(model.clone(), |_| precision.weights),
            float.description.clone(),
        );
        let (again, expected) = (read(&exported.bytes).unwrap(), expected.unwrap());
        let name = precision.to_string();
        assert_close(&name, &logits(&again, &Pass::float()), &logits(&expected, &Pass::float()), 3e-2);
    }
}

//! What a Llama is in GGUF: the keys of its sizes, the names of its tensors, the order of the rows of queries and keys.

use super::container::{Entry, File, Value};
use super::{BlockType, GgufError};
use crate::artifact::TensorEntry;
use crate::models::LlamaConfig;
use dr_runtime::graph::{Rope, RopeScaling};
use std::collections::BTreeMap;
use std::f64::consts::TAU;

/// The key of the name of the network.
const ARCHITECTURE: &str = "general.architecture";

/// The names of networks that are read and written.
const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "smollm3"];

/// The layers of `smollm3` without rotary positions: every fourth.
fn no_rope(layers: usize) -> Vec<usize> {
    (0..layers).filter(|layer| layer % 4 == 3).collect()
}

/// The name of a network, or what of it none of [`ARCHITECTURES`] has.
fn architecture(config: &LlamaConfig) -> Result<&'static str, &'static str> {
    if config.windows.iter().any(Option::is_some) {
        return Err("a sliding window");
    }
    let positions = if config.no_rope.is_empty() {
        true
    } else if config.no_rope == no_rope(config.layers) {
        false
    } else {
        return Err("layers without rotary positions that are not every fourth one");
    };
    match (positions, config.qkv_bias && !config.attention_bias, config.head_norm) {
        (true, false, false) => Ok("llama"),
        (true, true, false) => Ok("qwen2"),
        (true, false, true) => Ok("qwen3"),
        (false, false, false) => Ok("smollm3"),
        _ => Err("biases, normalized heads and layers without rotary positions together"),
    }
}

/// The table of tokens.
const EMBEDDING: &str = "token_embd.weight";

/// What the frequencies of pairs of features are divided by.
pub(super) const FACTORS: &str = "rope_freqs.weight";

/// What GGUF calls a parameter.
pub(super) fn gguf_name(name: &str) -> String {
    const PARTS: [(&str, &str); 14] = [
        ("layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("embed_tokens", "token_embd"),
        ("lm_head", "output"),
    ];
    if name == "norm.gamma" {
        return "output_norm.weight".to_owned();
    }
    let name = name.replace(".gamma", ".weight");
    PARTS.iter().fold(name, |name, (ours, theirs)| name.replace(ours, theirs))
}

/// For each row in GGUF the row of our weight, if the rows of a tensor lie in another order there: of queries and keys of the
/// architectures `llama` and `smollm3`, the two features of a pair lie beside each other.
pub(super) fn row_order(name: &str, rows: usize, config: &LlamaConfig) -> Option<Vec<usize>> {
    let part = name.rsplit('.').nth(1);
    let size = config.head_dim;
    (!config.head_norm
        && !config.qkv_bias
        && matches!(part, Some("attn_q" | "attn_k"))
        && rows.is_multiple_of(size))
    .then(|| (0..rows).map(|row| row - row % size + row % 2 * (size / 2) + row % size / 2).collect())
}

/// The float tensors by GGUF's names, with rows in our order.
pub(super) fn tensors(file: &File, config: &LlamaConfig) -> BTreeMap<String, TensorEntry> {
    let tensors = file.tensors.iter().filter(|(name, _)| **name != FACTORS);
    let entry = |(name, tensor): (&&str, &super::Tensor)| {
        let (mut values, rows) = (tensor.kind.dequantize(tensor.bytes), tensor.shape[0]);
        if let Some(order) = row_order(name, rows, config) {
            let (theirs, len) = (values.clone(), values.len() / rows.max(1));
            for (from, to) in order.into_iter().enumerate() {
                values[to * len..][..len].copy_from_slice(&theirs[from * len..][..len]);
            }
        }
        ((*name).to_owned(), TensorEntry::f32(tensor.shape.clone(), values))
    };
    tensors.map(entry).collect()
}

/// Values of a file by key, those of the network below the name of its architecture.
pub(super) struct Keys<'f, 'a> {
    file: &'f File<'a>,
    prefix: &'f str,
}

impl<'f, 'a> Keys<'f, 'a> {
    pub fn new(file: &'f File<'a>, prefix: &'f str) -> Self {
        Self { file, prefix }
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        self.file.metadata.get(self.key(key).as_str()).copied()
    }

    pub fn wrong(&self, key: &str, expected: &str) -> GgufError {
        let found = self.get(key).map_or("missing".to_owned(), |value| value.to_string());
        GgufError::value(self.key(key), found, expected)
    }

    /// A value that may be missing, as `of` understands it.
    pub fn optional<T>(
        &self, key: &str, expected: &str, of: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let value = self.get(key).map(|value| of(value).ok_or_else(|| self.wrong(key, expected)));
        value.transpose()
    }

    fn size(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.optional(key, "a whole number above 0", |value| match value {
            Value::Integer(value @ 1..) => usize::try_from(value).ok(),
            _ => None,
        })
    }

    fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.optional(key, "a number", |value| match value {
            Value::Float(value) => Some(value),
            _ => None,
        })
    }

    pub fn token(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.optional(key, "a token", |value| match value {
            Value::Integer(value) => u32::try_from(value).ok(),
            _ => None,
        })
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.optional(key, "true or false", |value| match value {
            Value::Bool(value) => Some(value),
            _ => None,
        })
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, GgufError> {
        self.optional(key, "a text", |value| match value {
            Value::Text(text) => Some(text),
            _ => None,
        })
    }
}

/// The sizes of the network in a file.
pub(super) fn config(file: &File) -> Result<LlamaConfig, GgufError> {
    let general = Keys::new(file, "general");
    let architecture = general.text("architecture")?;
    let Some(architecture) = architecture.filter(|name| ARCHITECTURES.contains(name)) else {
        return Err(general.wrong("architecture", &format!("one of {}", ARCHITECTURES.join(", "))));
    };
    let keys = Keys::new(file, architecture);
    let size = |key: &str| keys.size(key)?.ok_or_else(|| keys.wrong(key, "a whole number above 0"));
    let (hidden, heads) = (size("embedding_length")?, size("attention.head_count")?);
    let layers = size("block_count")?;
    let head_dim = keys.size("attention.key_length")?.unwrap_or(hidden / heads);
    for key in ["attention.value_length", "rope.dimension_count"] {
        if keys.size(key)?.is_some_and(|found| found != head_dim) {
            return Err(keys.wrong(key, &format!("{head_dim}, the features of a head")));
        }
    }
    if keys.size("expert_count")?.is_some() {
        return Err(keys.wrong("expert_count", "a network without experts"));
    }
    let embedding = file.tensors.get(EMBEDDING).and_then(|tensor| tensor.shape.first());
    let has = |name: &str| file.tensors.contains_key(name);
    let end = Keys::new(file, "tokenizer.ggml");
    let end_tokens = [end.token("eos_token_id")?, end.token("eot_token_id")?];
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let mut config = LlamaConfig {
        vocabulary: *embedding
            .ok_or_else(|| GgufError::value(EMBEDDING, "missing", "the table of tokens"))?,
        hidden,
        feed_forward: size("feed_forward_length")?,
        layers,
        heads,
        kv_heads: keys.size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        context: size("context_length")?,
        norm_eps: keys.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
        rope: Rope { theta, scaling: RopeScaling::None },
        tied: !has("output.weight"),
        attention_bias: has("blk.0.attn_output.bias"),
        qkv_bias: architecture == "qwen2",
        feed_forward_bias: has("blk.0.ffn_down.bias"),
        head_norm: architecture == "qwen3",
        windows: vec![],
        no_rope: if architecture == "smollm3" { no_rope(layers) } else { vec![] },
        end_tokens: end_tokens.into_iter().flatten().collect(),
    };
    config.end_tokens.dedup();
    let factor = keys.number("rope.scaling.factor")?.or(keys.number("rope.scale_linear")?);
    let linear = factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor });
    config.rope.scaling = match (keys.text("rope.scaling.type")?, file.tensors.get(FACTORS)) {
        (None | Some("none"), Some(factors)) => {
            let factors = factors.kind.dequantize(factors.bytes);
            let expected = "the factors that Llama 3 has for frequencies";
            llama3(&factors, theta, head_dim).ok_or_else(|| GgufError::value(FACTORS, "other", expected))?
        }
        (Some("none"), None) => RopeScaling::None,
        (None | Some("linear"), None) => linear,
        (Some(_), _) => return Err(keys.wrong("rope.scaling.type", "none or linear")),
    };
    Ok(config)
}

/// How often the longest wave that is only divided, and the shortest that stays as it is, go into the original context: in all models of Llama 3.
const BOUNDS: [f64; 2] = [1.0, 4.0];

/// How far factors may be off, as a part of them.
const TOLERANCE: f64 = 1e-4;

/// The scaling that divides frequencies by these factors. The file does not say the original context: it is that which gives the first factor
/// that is neither 1 nor the largest one.
fn llama3(factors: &[f32], theta: f64, head_dim: usize) -> Option<RopeScaling> {
    let [low, high] = BOUNDS;
    let factor = f64::from(factors.iter().copied().reduce(f32::max)?);
    if factors.len() != head_dim / 2
        || !(factor > 1.0 && factor.is_finite() && theta.is_finite() && theta > 0.0)
    {
        return None;
    }
    let plain = Rope { theta, scaling: RopeScaling::None }.frequencies(factors.len(), 1);
    // What of a frequency is kept, and how long its wave is.
    let waves = factors.iter().zip(&plain).map(|(&by, frequency)| {
        ((1.0 / f64::from(by) - 1.0 / factor) / (1.0 - 1.0 / factor), TAU / frequency)
    });
    let mut between = waves.clone().filter(|(kept, _)| (0.001..0.999).contains(kept));
    let original = match between.next() {
        Some((kept, wave)) => wave * (low + kept * (high - low)),
        None => high * waves.filter(|(kept, _)| *kept > 0.5).map(|(_, wave)| wave).next_back()?,
    };
    if !(1.0..=1e9).contains(&original) {
        return None;
    }
    let scaling = RopeScaling::Llama3 { factor, low, high, original_context: original.round() as usize };
    let scaled = Rope { theta, scaling: scaling.clone() }.frequencies(factors.len(), 1);
    let fits = factors
        .iter()
        .zip(plain.iter().zip(scaled))
        .all(|(&by, (plain, scaled))| (plain / scaled / f64::from(by) - 1.0).abs() <= TOLERANCE);
    fits.then_some(scaling)
}

/// What GGUF says of a network.
pub(super) struct Metadata {
    /// Its keys.
    pub entries: Vec<(String, Entry)>,
    /// The factors of its frequencies, if it has some.
    pub factors: Option<Vec<f32>>,
}

/// What GGUF says of this network.
///
/// # Errors
/// What of the network GGUF does not have.
pub(super) fn metadata(config: &LlamaConfig) -> Result<Metadata, &'static str> {
    let architecture = architecture(config)?;
    let mut entries = vec![
        (ARCHITECTURE.to_owned(), Entry::Text(architecture.to_owned())),
        ("general.quantization_version".to_owned(), Entry::Size(2)),
    ];
    let mut add = |key: &str, entry| entries.push((format!("{architecture}.{key}"), entry));
    for (key, size) in [
        ("vocab_size", config.vocabulary),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.feed_forward),
        ("block_count", config.layers),
        ("context_length", config.context),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        add(key, Entry::Size(size));
    }
    add("attention.layer_norm_rms_epsilon", Entry::Float(config.norm_eps));
    add("rope.freq_base", Entry::Float(config.rope.theta));
    let mut factors = None;
    match &config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            add("rope.scaling.type", Entry::Text("linear".to_owned()));
            add("rope.scaling.factor", Entry::Float(*factor));
        }
        RopeScaling::Llama3 { .. } => {
            let pairs = config.head_dim / 2;
            let plain = Rope { theta: config.rope.theta, scaling: RopeScaling::None }.frequencies(pairs, 1);
            let scaled = config.rope.frequencies(pairs, 1);
            factors = Some(plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect());
        }
        RopeScaling::Dynamic { .. } | RopeScaling::Yarn { .. } | RopeScaling::LongRope { .. } => {
            return Err("a rotary scaling other than `linear` and `llama3`");
        }
    }
    Ok(Metadata { entries, factors })
}

/// A tensor of floats in 32 bits.
pub(super) fn floats(shape: Vec<usize>, values: &[f32]) -> super::container::Content {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    super::container::Content { shape, kind: BlockType::F32, bytes }
}

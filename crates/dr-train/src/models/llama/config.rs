//! [`LlamaConfig`]: the sizes of a Llama, as Hugging Face's `config.json` gives them or as they are chosen.

use dr_runtime::graph::{Attention, Rope, RopeScaling};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// The sizes of a Llama.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Tokens that there are.
    pub vocabulary: usize,
    /// Features of a position between blocks.
    pub hidden: usize,
    /// Features inside the feed-forward part of a block.
    pub feed_forward: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads` (grouped-query attention, arXiv:2305.13245).
    pub kv_heads: usize,
    /// Features of a head; even.
    pub head_dim: usize,
    /// The most positions that a text can have.
    pub context: usize,
    /// What keeps RMSNorm from dividing by zero.
    pub norm_eps: f64,
    /// How positions become angles.
    pub rope: Rope,
    /// Whether the head's weight is the embedding, too.
    pub tied: bool,
    /// Whether the linear layers of attention have biases.
    pub attention_bias: bool,
    /// Whether those of the feed-forward part have.
    pub feed_forward_bias: bool,
    /// Whether each head's queries and keys are normalized (Qwen3, arXiv:2505.09388).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub head_norm: bool,
    /// Tokens that end a text.
    #[serde(default)]
    pub end_tokens: Vec<u32>,
}

/// A configuration that is no Llama.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlamaConfigError {
    /// Not JSON.
    #[error("config.json: {0}: expected JSON")]
    Json(String),
    /// Another network.
    #[error("config.json: architecture `{0}`: expected LlamaForCausalLM or Qwen3ForCausalLM")]
    Architecture(String),
    /// A value that is missing or makes no sense.
    #[error("config.json: {key} is {found}: expected {expected}")]
    Value {
        /// The key.
        key: String,
        /// What is there.
        found: String,
        /// What can be.
        expected: String,
    },
}

impl LlamaConfig {
    /// A small Llama to be trained from scratch: `hidden / 32` heads, half as many for keys and values, and a head of its own.
    ///
    /// # Panics
    /// If `hidden` is no multiple of 64.
    #[must_use]
    pub fn small(vocabulary: usize, hidden: usize, layers: usize, context: usize) -> Self {
        assert!(hidden.is_multiple_of(64), "the features of two heads of 32: {hidden}");
        Self {
            vocabulary,
            hidden,
            // Three matrices of that size have as many weights as the usual two of four times `hidden`.
            feed_forward: (hidden * 8 / 3).next_multiple_of(32),
            layers,
            heads: hidden / 32,
            kv_heads: hidden / 64,
            head_dim: 32,
            context,
            norm_eps: 1e-5,
            rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
            tied: false,
            attention_bias: false,
            feed_forward_bias: false,
            head_norm: false,
            end_tokens: vec![],
        }
    }

    /// The sizes of TinyLlama-1.1B.
    #[must_use]
    pub fn tiny_llama() -> Self {
        Self {
            feed_forward: 5632,
            heads: 32,
            kv_heads: 4,
            head_dim: 64,
            ..Self::small(32_000, 2048, 22, 2048)
        }
    }

    /// Reads Hugging Face's `config.json` of a `LlamaForCausalLM` or `Qwen3ForCausalLM`, of transformers 4 or 5.
    ///
    /// # Errors
    /// Another architecture, and values that are missing or make no sense.
    pub fn from_hugging_face(json: &str) -> Result<Self, LlamaConfigError> {
        let json: Value = serde_json::from_str(json).map_err(|e| LlamaConfigError::Json(e.to_string()))?;
        let model = json.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
        let architecture = json.pointer("/architectures/0").and_then(Value::as_str);
        let known = [("llama", "LlamaForCausalLM"), ("qwen3", "Qwen3ForCausalLM")];
        let fits = |&(of, name): &(&str, &str)| of == model && architecture.is_none_or(|found| found == name);
        if !known.iter().any(fits) {
            return Err(LlamaConfigError::Architecture(architecture.unwrap_or(model).to_owned()));
        }
        let keys = Keys(&json);
        let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(keys.wrong("hidden_act", "silu"));
        }
        let (hidden, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        let rope = json.get("rope_parameters").or_else(|| json.get("rope_scaling"));
        let rope = rope.filter(|rope| !rope.is_null());
        let theta = rope.and_then(|rope| rope.get("rope_theta")).or_else(|| json.get("rope_theta"));
        let config = Self {
            vocabulary: keys.size("vocab_size")?,
            hidden,
            feed_forward: keys.size("intermediate_size")?,
            layers: keys.size("num_hidden_layers")?,
            heads,
            kv_heads: keys.optional_size("num_key_value_heads", heads)?,
            head_dim: keys.optional_size("head_dim", hidden / heads)?,
            context: keys.optional_size("max_position_embeddings", 2048)?,
            norm_eps: keys.optional_number("rms_norm_eps", 1e-6)?,
            rope: Rope {
                theta: theta.and_then(Value::as_f64).unwrap_or(10_000.0),
                scaling: rope.map_or(Ok(RopeScaling::None), rope_scaling)?,
            },
            tied: keys.flag("tie_word_embeddings"),
            attention_bias: keys.flag("attention_bias"),
            feed_forward_bias: keys.flag("mlp_bias"),
            head_norm: model == "qwen3",
            end_tokens: keys.tokens("eos_token_id"),
        };
        config.check()?;
        Ok(config)
    }

    /// Whether the sizes fit together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), LlamaConfigError> {
        let wrong = |key: &str, found: String, expected: &str| {
            Err(LlamaConfigError::Value { key: key.to_owned(), found, expected: expected.to_owned() })
        };
        let sizes = [
            ("vocab_size", self.vocabulary),
            ("hidden_size", self.hidden),
            ("intermediate_size", self.feed_forward),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.context),
        ];
        for (key, size) in sizes {
            if !(1..=LARGEST).contains(&size) {
                return wrong(key, size.to_string(), "1 to 4194304");
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} heads", self.heads);
            return wrong("num_key_value_heads", self.kv_heads.to_string(), &expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            return wrong("head_dim", self.head_dim.to_string(), "an even number");
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return wrong("rms_norm_eps", self.norm_eps.to_string(), "a number between 0 and 1");
        }
        if !(self.rope.theta > 0.0 && self.rope.theta.is_finite()) {
            return wrong("rope_theta", self.rope.theta.to_string(), "a number above 0");
        }
        let factors = match self.rope.scaling {
            RopeScaling::None => vec![],
            RopeScaling::Linear { factor } => vec![factor],
            RopeScaling::Llama3 { factor, low, high, .. } if low < high => vec![factor, low, high],
            RopeScaling::Llama3 { low, .. } => {
                return wrong("low_freq_factor", low.to_string(), "less than high_freq_factor");
            }
        };
        match factors.into_iter().find(|factor| !(*factor > 0.0 && factor.is_finite())) {
            Some(factor) => wrong("rope_scaling", factor.to_string(), "factors above 0"),
            None => Ok(()),
        }
    }

    /// What files say.
    pub(crate) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("numbers and names")
    }

    /// The heads of an attention.
    pub(super) const fn attention(&self) -> Attention {
        let Self { heads, kv_heads, head_dim, rope, .. } = *self;
        Attention { heads, kv_heads, head_dim, rope }
    }

    /// Elements of the matrices of all blocks and of the head; more than there can be memory for if there are too many to count.
    #[must_use]
    pub fn elements(&self) -> usize {
        let attention = 2 * (self.heads + self.kv_heads).saturating_mul(self.head_dim);
        let block = self.hidden.saturating_mul(attention.saturating_add(3 * self.feed_forward));
        block.saturating_mul(self.layers).saturating_add(self.hidden * self.vocabulary)
    }
}

/// Above every size that makes sense; keeps products of two from overflow.
const LARGEST: usize = 1 << 22;

fn rope_scaling(json: &Value) -> Result<RopeScaling, LlamaConfigError> {
    let keys = Keys(json);
    let kind = json.get("rope_type").or_else(|| json.get("type")).and_then(Value::as_str);
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: keys.number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: keys.number("factor")?,
            low: keys.number("low_freq_factor")?,
            high: keys.number("high_freq_factor")?,
            original_context: keys.size("original_max_position_embeddings")?,
        }),
        _ => Err(keys.wrong("rope_type", "default, linear or llama3")),
    }
}

/// Values by key.
struct Keys<'a>(&'a Value);

impl Keys<'_> {
    fn wrong(&self, key: &str, expected: &str) -> LlamaConfigError {
        let found = self.0.get(key).map_or("missing".to_owned(), ToString::to_string);
        LlamaConfigError::Value { key: key.to_owned(), found, expected: expected.to_owned() }
    }

    fn size(&self, key: &str) -> Result<usize, LlamaConfigError> {
        let size = self.0.get(key).and_then(Value::as_u64).filter(|&size| size >= 1);
        size.and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn optional_size(&self, key: &str, default: usize) -> Result<usize, LlamaConfigError> {
        if self.0.get(key).is_none_or(Value::is_null) { Ok(default) } else { self.size(key) }
    }

    fn number(&self, key: &str) -> Result<f64, LlamaConfigError> {
        self.0.get(key).and_then(Value::as_f64).ok_or_else(|| self.wrong(key, "a number"))
    }

    fn optional_number(&self, key: &str, default: f64) -> Result<f64, LlamaConfigError> {
        if self.0.get(key).is_none_or(Value::is_null) { Ok(default) } else { self.number(key) }
    }

    /// One number or several.
    fn tokens(&self, key: &str) -> Vec<u32> {
        let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
        match self.0.get(key) {
            Some(Value::Array(values)) => values.iter().filter_map(token).collect(),
            Some(value) => token(value).into_iter().collect(),
            None => vec![],
        }
    }

    fn flag(&self, key: &str) -> bool {
        self.0.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}

//! [`LlamaConfig`]: what a language model is made of, chosen or read from Hugging Face.

use super::hugging_face;
use dr_runtime::graph::{Attention, Rope, RopeError, RopeScaling};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::num::NonZeroUsize;
use thiserror::Error;

/// The sizes of a Llama, and what families of such models differ in.
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
    /// Whether those of queries, keys and values have, whatever the last one has (Qwen2, arXiv:2407.10671).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qkv_bias: bool,
    /// Whether those of the feed-forward part have.
    pub feed_forward_bias: bool,
    /// Whether each head's queries and keys are normalized (Qwen3, arXiv:2505.09388).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub head_norm: bool,
    /// How many positions each layer's attention looks at, `None` for all (Mistral, arXiv:2310.06825). Empty if none is limited.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Option<NonZeroUsize>>,
    /// Layers without rotary positions (SmolLM3, after arXiv:2501.18795).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_rope: Vec<usize>,
    /// Tokens that end a text.
    #[serde(default)]
    pub end_tokens: Vec<u32>,
}

/// A configuration that gives no model.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LlamaConfigError {
    /// Not JSON.
    #[error("config.json: {0}: expected JSON")]
    Json(String),
    /// Another network.
    #[error("config.json: architecture `{0}`: expected {known}", known = hugging_face::architectures())]
    Architecture(String),
    /// Weights that are codes of some other program.
    #[error(
        "config.json: the weights are quantized already ({0}): expected the model in floats that they come from"
    )]
    Quantized(String),
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

impl From<RopeError> for LlamaConfigError {
    fn from(RopeError { key, found, expected }: RopeError) -> Self {
        Self::Value { key: key.to_owned(), found, expected }
    }
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
            qkv_bias: false,
            feed_forward_bias: false,
            head_norm: false,
            windows: vec![],
            no_rope: vec![],
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
        if ![0, self.layers].contains(&self.windows.len()) {
            let expected = format!("one for each of the {} layers", self.layers);
            return wrong("windows", format!("a list of {}", self.windows.len()), &expected);
        }
        Ok(self.rope.check(self.head_dim)?)
    }

    /// What files say.
    pub(crate) fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("numbers and names")
    }

    /// The attention of a layer.
    pub(super) fn attention(&self, layer: usize) -> Attention {
        let Self { heads, kv_heads, head_dim, .. } = *self;
        let rope = (!self.no_rope.contains(&layer)).then(|| self.rope.clone());
        let window = self.windows.get(layer).copied().flatten();
        Attention { heads, kv_heads, head_dim, rope, window }
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

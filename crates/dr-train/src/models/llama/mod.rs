//! [`Llama`]: a language model (arXiv:2302.13971).

mod config;
mod hugging_face;

pub use config::{LlamaConfig, LlamaConfigError};

use super::kind::{ModelKind, Sizes};
use crate::config::task::LANGUAGE;
use crate::nn::{
    Embedding, Executor, Model, Network, QuantLinear, QuantLinearConfig, Table, TraceError, normal,
};
use burn::module::Module;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::Device;
use dr_runtime::graph::{self, Activation, Op};
use rand::{Rng, SeedableRng};

/// Language models of the Llama family: [`LlamaConfig::small`] ones.
#[derive(Clone, Copy, Debug)]
pub struct LlamaKind;

impl LlamaKind {
    fn config(sizes: &Sizes) -> LlamaConfig {
        LlamaConfig::small(sizes.classes, sizes.width, sizes.layers, sizes.input.width)
    }
}

impl ModelKind for LlamaKind {
    fn name(&self) -> &'static str {
        "llama"
    }

    fn tasks(&self) -> &'static [&'static str] {
        &[LANGUAGE]
    }

    fn usual_width(&self) -> usize {
        128
    }

    fn init(&self, sizes: &Sizes, seed: u64, device: &Device) -> Result<Model, TraceError> {
        Model::trace(&Self::config(sizes).init(seed, device))
    }

    fn language(&self, sizes: &Sizes) -> Option<serde_json::Value> {
        Some(Self::config(sizes).to_json())
    }
}

/// The deviation of random weights.
const DEVIATION: f64 = 0.02;

impl LlamaConfig {
    /// A float network; the same `seed` gives the same weights on every device. Those that add to the residual stream are
    /// smaller by the root of how many there are (GPT-2).
    ///
    /// # Panics
    /// If the sizes do not [fit together](LlamaConfig::check).
    #[must_use]
    pub fn init(&self, seed: u64, device: &Device) -> Llama {
        self.with_weights(DEVIATION, seed, device)
    }

    /// The network with weights of zero, to be loaded into.
    ///
    /// # Panics
    /// If the sizes do not [fit together](LlamaConfig::check).
    #[must_use]
    pub fn zeros(&self, device: &Device) -> Llama {
        self.with_weights(0.0, 0, device)
    }

    fn with_weights(&self, deviation: f64, seed: u64, device: &Device) -> Llama {
        self.check().unwrap_or_else(|error| panic!("{error}"));
        let rng = &mut chacha20::ChaCha8Rng::seed_from_u64(seed);
        let embed_tokens = (!self.tied)
            .then(|| Embedding { weight: normal([self.vocabulary, self.hidden], deviation, rng, device) });
        let layers = (0..self.layers).map(|_| Block::new(self, deviation, rng, device)).collect();
        Llama {
            embed_tokens,
            layers,
            norm: self.norm(self.hidden, device),
            lm_head: linear([self.hidden, self.vocabulary], false, deviation).init(rng, device),
            config: self.clone(),
        }
    }

    fn norm(&self, features: usize, device: &Device) -> RmsNorm {
        RmsNormConfig::new(features).with_epsilon(self.norm_eps).init(device)
    }
}

fn linear(features: [usize; 2], bias: bool, deviation: f64) -> QuantLinearConfig {
    QuantLinearConfig { bias, deviation: Some(deviation), ..QuantLinearConfig::new(features) }
}

/// A language model: RMSNorm, rotary positions, grouped-query attention, SwiGLU. Modules and parameters have Hugging Face's
/// names, but for the weight of RMSNorm, which is `gamma`.
#[derive(Module, Debug)]
pub struct Llama {
    /// `None` if the head's weight is the embedding.
    embed_tokens: Option<Embedding>,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: QuantLinear,
    #[module(skip)]
    config: LlamaConfig,
}

#[derive(Module, Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: QuantLinear,
    k_proj: QuantLinear,
    v_proj: QuantLinear,
    o_proj: QuantLinear,
    /// Of each head, where heads are normalized.
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
}

#[derive(Module, Debug)]
struct FeedForward {
    gate_proj: QuantLinear,
    up_proj: QuantLinear,
    down_proj: QuantLinear,
}

impl Block {
    fn new(config: &LlamaConfig, deviation: f64, rng: &mut impl Rng, device: &Device) -> Self {
        let LlamaConfig { hidden, feed_forward, attention_bias, qkv_bias, feed_forward_bias, .. } = *config;
        let qkv_bias = attention_bias || qkv_bias;
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let residual = deviation / (2.0 * config.layers as f64).sqrt();
        let mut linear = |features, bias, deviation| linear(features, bias, deviation).init(rng, device);
        let self_attn = Attention {
            q_proj: linear([hidden, queries], qkv_bias, deviation),
            k_proj: linear([hidden, keys], qkv_bias, deviation),
            v_proj: linear([hidden, keys], qkv_bias, deviation),
            o_proj: linear([queries, hidden], attention_bias, residual),
            q_norm: config.head_norm.then(|| config.norm(config.head_dim, device)),
            k_norm: config.head_norm.then(|| config.norm(config.head_dim, device)),
        };
        let mlp = FeedForward {
            gate_proj: linear([hidden, feed_forward], feed_forward_bias, deviation),
            up_proj: linear([hidden, feed_forward], feed_forward_bias, deviation),
            down_proj: linear([feed_forward, hidden], feed_forward_bias, residual),
        };
        let [input_layernorm, post_attention_layernorm] = [(); 2].map(|()| config.norm(hidden, device));
        Self { input_layernorm, self_attn, post_attention_layernorm, mlp }
    }
}

impl Attention {
    fn forward<E: Executor>(&self, on: &mut E, x: E::Value, of: graph::Attention) -> E::Value {
        let mut q = on.linear(x.clone(), &self.q_proj);
        let mut k = on.linear(x.clone(), &self.k_proj);
        let v = on.linear(x, &self.v_proj);
        if let Some((q_norm, k_norm)) = self.q_norm.as_ref().zip(self.k_norm.as_ref()) {
            (q, k) = (on.rms_norm(q, q_norm), on.rms_norm(k, k_norm));
        }
        let attended = on.attention([q, k, v], of);
        on.linear(attended, &self.o_proj)
    }
}

impl FeedForward {
    fn forward<E: Executor>(&self, on: &mut E, x: E::Value) -> E::Value {
        let gate = on.linear(x.clone(), &self.gate_proj);
        let up = on.linear(x, &self.up_proj);
        let gate = on.activation(gate, Activation::Silu);
        let inner = on.multiply(gate, up);
        on.linear(inner, &self.down_proj)
    }
}

impl Network for Llama {
    fn input(&self) -> Op {
        Op::Tokens
    }

    /// Tokens `[batch, positions]` to logits `[batch * positions, vocabulary]` of the token that follows each.
    fn forward<E: Executor>(&self, on: &mut E, tokens: E::Value) -> E::Value {
        let table = match &self.embed_tokens {
            Some(embedding) => Table::Own(embedding),
            None => Table::Layer(&self.lm_head),
        };
        let mut x = on.embedding(tokens, table);
        for (layer, block) in self.layers.iter().enumerate() {
            let normed = on.rms_norm(x.clone(), &block.input_layernorm);
            let attended = block.self_attn.forward(on, normed, self.config.attention(layer));
            x = on.add(x, attended);
            let normed = on.rms_norm(x.clone(), &block.post_attention_layernorm);
            let fed = block.mlp.forward(on, normed);
            x = on.add(x, fed);
        }
        let normed = on.rms_norm(x, &self.norm);
        on.linear(normed, &self.lm_head)
    }
}

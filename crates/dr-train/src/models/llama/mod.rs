//! [`Llama`]: a language model (arXiv:2302.13971).

mod config;
mod decoder;
mod on_host;
mod rope;

pub use config::{LlamaConfig, LlamaConfigError, Rope, RopeScaling};
pub use decoder::{Cache, Decoder, FakeLinear, IntLlama, Linear, Packed, WeightOnlyLlama};

use super::{NamedLayer, Network};
use crate::nn::{Layer, Pass, PrecisionNorm, QuantLinear, QuantLinearConfig, normal};
use burn::module::{Module, Param, ParamId};
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Bool, Device, Int, Tensor};
use rand::{Rng, SeedableRng};
use rope::Angles;

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
            norm: self.norm(device),
            lm_head: linear([self.hidden, self.vocabulary], false, deviation).init(rng, device),
            config: self.clone(),
        }
    }

    fn norm(&self, device: &Device) -> RmsNorm {
        RmsNormConfig::new(self.hidden).with_epsilon(self.norm_eps).init(device)
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

/// A row of features for each token.
#[derive(Module, Debug)]
struct Embedding {
    /// `[vocabulary, hidden]`
    weight: Param<Tensor<2>>,
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
}

#[derive(Module, Debug)]
struct FeedForward {
    gate_proj: QuantLinear,
    up_proj: QuantLinear,
    down_proj: QuantLinear,
}

impl Block {
    fn new(config: &LlamaConfig, deviation: f64, rng: &mut impl Rng, device: &Device) -> Self {
        let LlamaConfig { hidden, feed_forward, attention_bias, feed_forward_bias, .. } = *config;
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let residual = deviation / (2.0 * config.layers as f64).sqrt();
        let mut linear = |features, bias, deviation| linear(features, bias, deviation).init(rng, device);
        let self_attn = Attention {
            q_proj: linear([hidden, queries], attention_bias, deviation),
            k_proj: linear([hidden, keys], attention_bias, deviation),
            v_proj: linear([hidden, keys], attention_bias, deviation),
            o_proj: linear([queries, hidden], attention_bias, residual),
        };
        let mlp = FeedForward {
            gate_proj: linear([hidden, feed_forward], feed_forward_bias, deviation),
            up_proj: linear([hidden, feed_forward], feed_forward_bias, deviation),
            down_proj: linear([feed_forward, hidden], feed_forward_bias, residual),
        };
        let (input_layernorm, post_attention_layernorm) = (config.norm(device), config.norm(device));
        Self { input_layernorm, self_attn, post_attention_layernorm, mlp }
    }
}

impl Attention {
    /// `[batch * positions, hidden]` to the same.
    fn forward(&self, x: Tensor<2>, around: &Around, pass: &Pass) -> Tensor<2> {
        let q = around.rotated(self.q_proj.forward(x.clone(), pass), around.config.heads);
        let k = around.rotated(self.k_proj.forward(x.clone(), pass), around.config.kv_heads);
        let v = around.by_head(self.v_proj.forward(x, pass), around.config.kv_heads);
        self.o_proj.forward(around.joined(around.attention(q, k, v)), pass)
    }
}

impl FeedForward {
    fn forward(&self, x: Tensor<2>, pass: &Pass) -> Tensor<2> {
        let gate = silu(self.gate_proj.forward(x.clone(), pass));
        self.down_proj.forward(gate * self.up_proj.forward(x, pass), pass)
    }
}

/// What attention needs besides features, the same in all blocks.
pub(super) struct Around<'a> {
    pub(super) config: &'a LlamaConfig,
    pub(super) batch: usize,
    /// Of queries.
    pub(super) positions: usize,
    angles: Angles,
    /// `[1, 1, queries, keys]`, where a query must not look; `None` if it may everywhere.
    mask: Option<Tensor<4, Bool>>,
}

impl<'a> Around<'a> {
    /// For positions from `start` on, in texts whose earlier positions are looked at, too.
    pub(super) fn new(
        config: &'a LlamaConfig, batch: usize, start: usize, positions: usize, device: &Device,
    ) -> Self {
        let angles = Angles::new(config, start, positions, device);
        let mask = (positions > 1).then(|| {
            let mask: Tensor<2, Bool> =
                Tensor::tril_mask([positions, start + positions], start as i64, device);
            mask.unsqueeze()
        });
        Self { config, batch, positions, angles, mask }
    }

    /// `[batch * positions, heads * head dim]` to `[batch, heads, positions, head dim]`.
    pub(super) fn by_head(&self, x: Tensor<2>, heads: usize) -> Tensor<4> {
        x.reshape([self.batch, self.positions, heads, self.config.head_dim]).swap_dims(1, 2)
    }

    /// The same, with positions turned into angles.
    pub(super) fn rotated(&self, x: Tensor<2>, heads: usize) -> Tensor<4> {
        self.angles.rotate(self.by_head(x, heads))
    }

    /// The way back.
    pub(super) fn joined(&self, x: Tensor<4>) -> Tensor<2> {
        let features = self.config.heads * self.config.head_dim;
        x.swap_dims(1, 2).reshape([self.batch * self.positions, features])
    }

    /// Softmax attention of `[batch, heads, positions, head dim]` to keys and values of `[batch, kv heads, all positions, head
    /// dim]`, each of which serves `heads / kv heads` heads of queries.
    pub(super) fn attention(&self, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        let LlamaConfig { heads, kv_heads, head_dim, .. } = *self.config;
        let (sharing, keys) = (heads / kv_heads, k.dims()[2]);
        let (batch, positions) = (self.batch, self.positions);
        // The queries that share keys follow each other in one matrix.
        let q = q.reshape([batch, kv_heads, sharing * positions, head_dim]);
        let scores = q.matmul(k.transpose()) / (head_dim as f64).sqrt();
        let scores = match &self.mask {
            Some(mask) => {
                let scores = scores.reshape([batch, heads, positions, keys]);
                let mask = mask.clone().expand([batch, heads, positions, keys]);
                let masked = scores.mask_fill(mask, f32::NEG_INFINITY);
                masked.reshape([batch, kv_heads, sharing * positions, keys])
            }
            None => scores,
        };
        softmax(scores, 3).matmul(v).reshape([batch, heads, positions, head_dim])
    }
}

impl Llama {
    /// Its sizes.
    #[must_use]
    pub const fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn embed(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        match &self.embed_tokens {
            Some(embedding) => embedding.weight.val().select(0, tokens),
            None => self.lm_head.weight().select(0, tokens),
        }
    }
}

impl Network for Llama {
    type Input = Tensor<2, Int>;
    type Target = Tensor<1, Int>;

    /// Tokens `[batch, positions]` to logits `[batch * positions, vocabulary]` of the token that follows each.
    ///
    /// # Panics
    /// If there are more positions than the context has, or tokens that the vocabulary does not have.
    fn forward(&self, tokens: Tensor<2, Int>, pass: &Pass) -> Tensor<2> {
        let [batch, positions] = tokens.dims();
        assert!(
            positions <= self.config.context,
            "{positions} positions: the context has {}",
            self.config.context
        );
        let around = Around::new(&self.config, batch, 0, positions, &tokens.device());
        let mut x = self.embed(tokens.reshape([batch * positions]));
        for block in &self.layers {
            let attended = block.self_attn.forward(block.input_layernorm.forward(x.clone()), &around, pass);
            x = x + attended;
            x = x.clone() + block.mlp.forward(block.post_attention_layernorm.forward(x), pass);
        }
        self.lm_head.forward(self.norm.forward(x), pass)
    }

    fn layers(&mut self) -> Vec<NamedLayer<'_>> {
        let named = |name: String, layer| NamedLayer {
            pinned: name == "lm_head",
            after_relu: false,
            layer: Layer::Linear(layer),
            name,
        };
        let mut layers = vec![];
        for (i, Block { self_attn, mlp, .. }) in self.layers.iter_mut().enumerate() {
            let parts = [
                ("self_attn.q_proj", &mut self_attn.q_proj),
                ("self_attn.k_proj", &mut self_attn.k_proj),
                ("self_attn.v_proj", &mut self_attn.v_proj),
                ("self_attn.o_proj", &mut self_attn.o_proj),
                ("mlp.gate_proj", &mut mlp.gate_proj),
                ("mlp.up_proj", &mut mlp.up_proj),
                ("mlp.down_proj", &mut mlp.down_proj),
            ];
            layers.extend(parts.map(|(part, layer)| named(format!("layers.{i}.{part}"), layer)));
        }
        layers.push(named("lm_head".into(), &mut self.lm_head));
        layers
    }

    /// None: RMSNorm has no statistics and serves all precisions.
    fn norms_after(&mut self) -> Vec<(ParamId, &mut PrecisionNorm)> {
        vec![]
    }
}

//! [`Decoder`]: a [`Llama`] that reads a text once and goes on from there, in integers or in floats.

use super::{Around, Block, Llama, LlamaConfig};
use crate::nn::{IntLinear, IntegerError, OnHost, Pass, QuantLinear, WeightOnlyLinear, host, linear_on_host};
use burn::module::Module;
use burn::nn::RmsNorm;
use burn::tensor::activation::silu;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_kernels::host::language::AttentionCache;
use dr_precision::Precision;
use std::fmt::Debug;
use std::sync::Arc;

/// A linear layer, in whatever it computes.
pub trait Linear: Clone + Debug + Send {
    /// `[n, features in]` to `[n, features out]`.
    ///
    /// # Errors
    /// Another number of features or another device.
    fn apply(&self, x: Tensor<2>) -> Result<Tensor<2>, IntegerError>;

    /// Layers of one input over slices of this computer's memory: `[rows, features in]` to `[rows, features out]`, for each.
    ///
    /// # Errors
    /// Another number of features.
    fn apply_slices<const N: usize>(
        layers: [&Self; N], x: &[f32], rows: usize,
    ) -> Result<[Vec<f32>; N], IntegerError> {
        let data = TensorData::new(x.to_vec(), [rows, x.len() / rows.max(1)]);
        let x = Tensor::from_data(data, &Device::flex());
        let mut results = [const { Vec::new() }; N];
        for (result, layer) in results.iter_mut().zip(layers) {
            *result = host(&layer.apply(x.clone())?);
        }
        Ok(results)
    }
}

impl Linear for IntLinear {
    fn apply(&self, x: Tensor<2>) -> Result<Tensor<2>, IntegerError> {
        self.forward(x)
    }

    fn apply_slices<const N: usize>(
        layers: [&Self; N], x: &[f32], rows: usize,
    ) -> Result<[Vec<f32>; N], IntegerError> {
        linear_on_host(layers.map(Self::as_conv2d), x, [rows, x.len() / rows.max(1)])
    }
}

/// A linear layer with packed weights, which can be switched between precisions.
pub trait Packed: Linear {
    /// Whether it has a precision.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if not.
    fn check(&self, precision: Precision) -> Result<(), IntegerError>;

    /// Switches to another precision, by shifts of the stored codes.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if it has no such precision; it then stays as it is.
    fn switch(&mut self, precision: Precision) -> Result<(), IntegerError>;

    /// Bytes that a pass at this precision reads.
    fn model_bytes(&self) -> usize;
}

impl Packed for IntLinear {
    fn check(&self, precision: Precision) -> Result<(), IntegerError> {
        self.as_conv2d().check(precision)
    }

    fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        self.as_conv2d_mut().switch(precision)
    }

    fn model_bytes(&self) -> usize {
        self.as_conv2d().model_bytes()
    }
}

impl Linear for WeightOnlyLinear {
    fn apply(&self, x: Tensor<2>) -> Result<Tensor<2>, IntegerError> {
        self.forward(x)
    }
}

impl Packed for WeightOnlyLinear {
    fn check(&self, precision: Precision) -> Result<(), IntegerError> {
        Self::check(self, precision)
    }

    fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        Self::switch(self, precision)
    }

    fn model_bytes(&self) -> usize {
        Self::model_bytes(self)
    }
}

/// A linear layer in floats, or fake-quantized.
#[derive(Clone, Debug)]
pub struct FakeLinear {
    layer: QuantLinear,
    precision: Option<Precision>,
}

impl Linear for FakeLinear {
    fn apply(&self, x: Tensor<2>) -> Result<Tensor<2>, IntegerError> {
        Ok(self.layer.forward(x, &self.precision.map_or(Pass::float(), Pass::at)))
    }
}

/// A language model in integer arithmetic: made by [`Llama::to_integer`], switched between precisions in place. Clones share what
/// they do not change.
pub type IntLlama = Decoder<IntLinear>;

/// A language model with packed weights that computes in floats: made by [`Llama::to_weight_only`], switched between precisions in
/// place.
pub type WeightOnlyLlama = Decoder<WeightOnlyLinear>;

/// A language model that keeps what it needs of a text's earlier positions in a [`Cache`].
#[derive(Clone, Debug)]
pub struct Decoder<L> {
    /// `[vocabulary, hidden]`
    embedding: Tensor<2>,
    pub(super) blocks: Vec<DecoderBlock<L>>,
    pub(super) norm: Norm,
    pub(super) head: L,
    pub(super) config: LlamaConfig,
}

#[derive(Clone, Debug)]
pub(super) struct DecoderBlock<L> {
    pub(super) input_norm: Norm,
    pub(super) query: L,
    pub(super) key: L,
    pub(super) value: L,
    pub(super) output: L,
    pub(super) middle_norm: Norm,
    pub(super) gate: L,
    pub(super) up: L,
    pub(super) down: L,
}

/// A normalization, on the device and here.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    module: RmsNorm,
    pub(super) gain: Arc<[f32]>,
}

impl Norm {
    fn new(trained: &RmsNorm) -> Self {
        let module = trained.valid();
        let gain = host(&module.gamma.val()).into();
        Self { module, gain }
    }
}

/// Keys and values of the positions of a text so far.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    memory: Memory,
    positions: usize,
}

/// Keys and values, for each block.
#[derive(Clone, Debug, Default)]
enum Memory {
    #[default]
    Empty,
    /// `[1, kv heads, capacity, head dim]`
    Tensors(Vec<[Tensor<4>; 2]>),
    Slices(Vec<AttentionCache>),
}

impl Cache {
    /// One for a new text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions that it has.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.positions
    }
}

/// Puts new keys or values `[1, kv heads, new, head dim]` at their positions and gives all so far back.
fn extend(slot: &mut Tensor<4>, start: usize, new: Tensor<4>) -> Tensor<4> {
    let [_, heads, count, dim] = new.dims();
    let [_, _, capacity, _] = slot.dims();
    let end = start + count;
    // Taken out, so that nobody else has it and it is written to in place.
    let mut whole = std::mem::replace(slot, Tensor::empty([1, 1, 1, 1], &new.device()));
    if end > capacity {
        let more = end.next_power_of_two().max(FIRST) - capacity;
        whole = Tensor::cat(vec![whole, Tensor::zeros([1, heads, more, dim], &new.device())], 2);
    }
    whole = whole.slice_assign([0..1, 0..heads, start..end, 0..dim], new);
    *slot = whole.clone();
    whole.slice([0..1, 0..heads, 0..end, 0..dim])
}

const OTHER_CACHE: &str = "a cache of a decoder on another kind of device";

/// Positions that there is room for at first.
const FIRST: usize = 64;

impl<L: Linear> Decoder<L> {
    /// Its sizes.
    #[must_use]
    pub const fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// Tokens `[batch, positions]` to logits `[batch * positions, vocabulary]`.
    ///
    /// # Errors
    /// More positions than the context has.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Result<Tensor<2>, IntegerError> {
        let [batch, positions] = tokens.dims();
        self.check(positions)?;
        let around = Around::new(&self.config, batch, 0, positions, &self.device());
        let x = self.run(tokens, &around, |_, [k, v]| [k, v])?;
        self.head.apply(self.norm.module.forward(x))
    }

    /// Reads the tokens that follow those of `cache` in one text, and gives the logits `[vocabulary]` of what comes next.
    ///
    /// # Errors
    /// No token, or more positions than the context has: the cache then stays as it is.
    ///
    /// # Panics
    /// If a token is not in the vocabulary, or the cache is that of a decoder on another kind of device.
    pub fn read(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor<1>, IntegerError> {
        let (start, positions) = (cache.positions, tokens.len());
        let LlamaConfig { vocabulary, kv_heads, head_dim, .. } = self.config;
        assert!(tokens.iter().all(|&token| (token as usize) < vocabulary), "tokens of another vocabulary");
        self.check(start + positions)?;
        if positions == 0 {
            return Err(IntegerError::Context { found: 0, expected: self.config.context });
        }
        let ids: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
        let tokens = Tensor::<1, Int>::from_data(ids.as_slice(), &self.device());
        let blocks = self.blocks.iter();
        let logits = if OnHost::takes(&self.embedding) {
            if matches!(cache.memory, Memory::Empty) {
                let empty = || AttentionCache::new(kv_heads, head_dim);
                cache.memory = Memory::Slices(blocks.map(|_| empty()).collect());
            }
            let Memory::Slices(slots) = &mut cache.memory else { panic!("{OTHER_CACHE}") };
            let features = host(&self.embedding.clone().select(0, tokens));
            let logits = self.read_on_host(features, start, slots)?;
            Tensor::from_data(TensorData::new(logits, [vocabulary]), &self.device())
        } else {
            if matches!(cache.memory, Memory::Empty) {
                let empty = || Tensor::zeros([1, kv_heads, FIRST, head_dim], &self.device());
                cache.memory = Memory::Tensors(blocks.map(|_| [empty(), empty()]).collect());
            }
            let Memory::Tensors(slots) = &mut cache.memory else { panic!("{OTHER_CACHE}") };
            self.read_on_tensors(tokens, start, slots)?
        };
        cache.positions += positions;
        Ok(logits)
    }

    /// [`Decoder::read`] on any device, of the tokens from position `start` on.
    fn read_on_tensors(
        &self, tokens: Tensor<1, Int>, start: usize, slots: &mut [[Tensor<4>; 2]],
    ) -> Result<Tensor<1>, IntegerError> {
        let [positions] = tokens.dims();
        let LlamaConfig { vocabulary, hidden, .. } = self.config;
        let around = Around::new(&self.config, 1, start, positions, &self.device());
        let x = self.run(tokens.unsqueeze(), &around, |block, [k, v]| {
            let [keys, values] = &mut slots[block];
            [extend(keys, start, k), extend(values, start, v)]
        })?;
        let last = x.slice([positions - 1..positions, 0..hidden]);
        Ok(self.head.apply(self.norm.module.forward(last))?.reshape([vocabulary]))
    }

    fn check(&self, positions: usize) -> Result<(), IntegerError> {
        match positions <= self.config.context {
            true => Ok(()),
            false => Err(IntegerError::Context { found: positions, expected: self.config.context }),
        }
    }

    /// All blocks. `remember` turns a block's keys and values into those of all positions so far.
    fn run(
        &self, tokens: Tensor<2, Int>, around: &Around,
        mut remember: impl FnMut(usize, [Tensor<4>; 2]) -> [Tensor<4>; 2],
    ) -> Result<Tensor<2>, IntegerError> {
        let LlamaConfig { heads, kv_heads, .. } = self.config;
        let [batch, positions] = tokens.dims();
        let mut x = self.embedding.clone().select(0, tokens.reshape([batch * positions]));
        for (i, block) in self.blocks.iter().enumerate() {
            let normed = block.input_norm.module.forward(x.clone());
            let q = around.rotated(block.query.apply(normed.clone())?, heads);
            let k = around.rotated(block.key.apply(normed.clone())?, kv_heads);
            let v = around.by_head(block.value.apply(normed)?, kv_heads);
            let [k, v] = remember(i, [k, v]);
            x = x + block.output.apply(around.joined(around.attention(q, k, v)))?;
            let normed = block.middle_norm.module.forward(x.clone());
            let gate = silu(block.gate.apply(normed.clone())?);
            x = x + block.down.apply(gate * block.up.apply(normed)?)?;
        }
        Ok(x)
    }

    fn layers(&self) -> impl Iterator<Item = &L> {
        let blocks = self.blocks.iter().flat_map(|block| {
            let DecoderBlock { query, key, value, output, gate, up, down, .. } = block;
            [query, key, value, output, gate, up, down]
        });
        blocks.chain([&self.head])
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = &mut L> {
        let blocks = self.blocks.iter_mut().flat_map(|block| {
            let DecoderBlock { query, key, value, output, gate, up, down, .. } = block;
            [query, key, value, output, gate, up, down]
        });
        blocks.chain([&mut self.head])
    }
}

impl<L: Packed> Decoder<L> {
    /// Switches all layers to another precision, by shifts of the stored codes; the head keeps its bits.
    ///
    /// # Errors
    /// [`IntegerError::Precision`] if the network has no such precision; it then stays as it is.
    pub fn switch(&mut self, precision: Precision) -> Result<(), IntegerError> {
        self.layers().try_for_each(|layer| layer.check(precision))?;
        self.layers_mut().try_for_each(|layer| layer.switch(precision))
    }

    /// Bytes of the linear layers that a pass at this precision reads.
    #[must_use]
    pub fn model_bytes(&self) -> usize {
        self.layers().map(L::model_bytes).sum()
    }
}

impl Llama {
    /// The network in integer arithmetic at `precision`, on its device; it can be switched to its other precisions.
    ///
    /// # Errors
    /// A float network, or a precision that it was not quantized for.
    pub fn to_integer(&self, precision: Precision) -> Result<IntLlama, IntegerError> {
        self.decoder(|layer| layer.to_integer(precision))
    }

    /// The network with packed weights of `precision`, computing in floats, on its device; it can be switched to its other
    /// precisions.
    ///
    /// # Errors
    /// A float network, or a precision that it was not quantized for.
    pub fn to_weight_only(&self, precision: Precision) -> Result<WeightOnlyLlama, IntegerError> {
        self.decoder(|layer| layer.to_weight_only(precision))
    }

    /// The network in floats, or fake-quantized at `precision`.
    ///
    /// # Panics
    /// When it is run, if it was not quantized for the precision.
    #[must_use]
    pub fn to_floats(&self, precision: Option<Precision>) -> Decoder<FakeLinear> {
        let layer = |layer: &QuantLinear| Ok(FakeLinear { layer: layer.valid(), precision });
        self.decoder(layer).unwrap_or_else(|error| unreachable!("nothing that can go wrong: {error}"))
    }

    fn decoder<L>(
        &self, layer: impl Fn(&QuantLinear) -> Result<L, IntegerError>,
    ) -> Result<Decoder<L>, IntegerError> {
        let block = |Block { input_layernorm, self_attn, post_attention_layernorm, mlp }: &Block| {
            Ok::<_, IntegerError>(DecoderBlock {
                input_norm: Norm::new(input_layernorm),
                query: layer(&self_attn.q_proj)?,
                key: layer(&self_attn.k_proj)?,
                value: layer(&self_attn.v_proj)?,
                output: layer(&self_attn.o_proj)?,
                middle_norm: Norm::new(post_attention_layernorm),
                gate: layer(&mlp.gate_proj)?,
                up: layer(&mlp.up_proj)?,
                down: layer(&mlp.down_proj)?,
            })
        };
        let embedding = match &self.embed_tokens {
            Some(embedding) => embedding.weight.val(),
            None => self.lm_head.weight(),
        };
        Ok(Decoder {
            embedding: embedding.inner(),
            blocks: self.layers.iter().map(block).collect::<Result<_, _>>()?,
            norm: Norm::new(&self.norm),
            head: layer(&self.lm_head)?,
            config: self.config.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Network;
    use crate::nn::QuantConfig;

    /// Reads a text in pieces, on tensors and on slices.
    fn both<L: Linear>(decoder: &Decoder<L>, pieces: &[&[u32]]) {
        let LlamaConfig { kv_heads, head_dim, vocabulary, .. } = decoder.config;
        let empty = || Tensor::zeros([1, kv_heads, FIRST, head_dim], &decoder.device());
        let mut slots: Vec<[Tensor<4>; 2]> = decoder.blocks.iter().map(|_| [empty(), empty()]).collect();
        let (mut cache, mut text) = (Cache::new(), vec![]);
        for piece in pieces {
            let ids: Vec<i32> = piece.iter().map(|&token| token.cast_signed()).collect();
            let tokens = Tensor::<1, Int>::from_data(ids.as_slice(), &decoder.device());
            let on_tensors = host(&decoder.read_on_tensors(tokens, text.len(), &mut slots).unwrap());
            let on_slices = host(&decoder.read(piece, &mut cache).unwrap());
            text.extend(ids);
            assert_eq!(cache.positions(), text.len());
            let tokens = Tensor::<1, Int>::from_data(text.as_slice(), &decoder.device()).unsqueeze();
            let all = host(&decoder.forward(tokens).unwrap());
            let largest = on_tensors.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
            for found in [&on_slices[..], &all[all.len() - vocabulary..]] {
                let off = found.iter().zip(&on_tensors).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // Codes next to a rounding boundary may come out as their neighbours.
                assert!(off <= 2e-3 * largest, "{off} of {largest}");
            }
        }
    }

    #[test]
    fn a_text_is_read_alike_on_tensors_and_on_slices() {
        let long: Vec<u32> = (0..80).map(|i| i * 7 % 61).collect();
        let pieces = [&[5, 9, 60][..], &[1], &long, &[2], &[3, 4]];
        for config in [
            LlamaConfig { kv_heads: 1, ..LlamaConfig::small(61, 64, 2, 128) },
            LlamaConfig { tied: true, ..LlamaConfig::small(61, 128, 1, 128) },
        ] {
            let float = config.init(3, &Device::flex());
            both(&float.to_floats(None), &pieces);
            let tokens = Tensor::<1, Int>::from_data([1, 2, 3, 4, 5, 6, 7, 8], &Device::flex()).unsqueeze();
            let quantization = QuantConfig::new("w8a8,w4a8".parse().unwrap());
            let quantized = float.quantize(&quantization, vec![tokens]);
            both(&quantized.to_floats(Some("w4a8".parse().unwrap())), &pieces);
            both(&quantized.to_integer("w4a8".parse().unwrap()).unwrap(), &pieces);
            both(&quantized.to_weight_only("w4a8".parse().unwrap()).unwrap(), &pieces);
        }
    }
}

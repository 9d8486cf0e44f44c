//! Hugging Face's `config.json`, of transformers 4 or 5.

use super::{LlamaConfig, LlamaConfigError};
use dr_runtime::graph::{Rope, RopeScaling};
use serde_json::Value;
use std::num::NonZeroUsize;

/// A family of models: what a `config.json` of it leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
}

use Family::{Llama, Mistral, Qwen2, Qwen3, SmolLm3};

/// With `model_type` and architecture.
const FAMILIES: [(Family, &str, &str); 5] = [
    (Llama, "llama", "LlamaForCausalLM"),
    (Mistral, "mistral", "MistralForCausalLM"),
    (Qwen2, "qwen2", "Qwen2ForCausalLM"),
    (Qwen3, "qwen3", "Qwen3ForCausalLM"),
    (SmolLm3, "smollm3", "SmolLM3ForCausalLM"),
];

pub(super) fn architectures() -> String {
    FAMILIES.map(|(_, _, architecture)| architecture).join(", ")
}

impl LlamaConfig {
    /// Reads Hugging Face's `config.json` of a Llama, Mistral, Qwen2, Qwen3 or SmolLM3, of transformers 4 or 5.
    ///
    /// The context of models with `yarn` or `dynamic` positions is at least the original one times the factor.
    ///
    /// # Errors
    /// Another architecture, and values that are missing, make no sense, or are not supported.
    pub fn from_hugging_face(json: &str) -> Result<Self, LlamaConfigError> {
        let json: Value = serde_json::from_str(json).map_err(|e| LlamaConfigError::Json(e.to_string()))?;
        let keys = Keys(&json);
        let model = keys.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
        let architecture = json.pointer("/architectures/0").and_then(Value::as_str);
        let fits = |(_, of, name): &(Family, &str, &str)| {
            *of == model && architecture.is_none_or(|architecture| architecture == *name)
        };
        let unknown = || LlamaConfigError::Architecture(architecture.unwrap_or(model).to_owned());
        let (family, ..) = FAMILIES.into_iter().find(fits).ok_or_else(unknown)?;
        if keys.get("hidden_act").is_some_and(|activation| activation != "silu") {
            return Err(keys.wrong("hidden_act", "silu"));
        }
        if let Some(quantization) = keys.get("quantization_config") {
            let method = Keys(quantization).get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            return Err(LlamaConfigError::Quantized(method.to_owned()));
        }
        let (hidden, heads) = (keys.size("hidden_size")?, keys.size("num_attention_heads")?);
        let context = keys.optional_size("max_position_embeddings", 2048)?;
        let rope = keys.rope(if family == SmolLm3 { 2e6 } else { 1e4 }, context)?;
        let stretched = match rope.scaling {
            RopeScaling::Dynamic { factor, original_context }
            | RopeScaling::Yarn { factor, original_context, .. } => factor * original_context as f64,
            _ => 0.0,
        };
        let mut config = Self {
            vocabulary: keys.size("vocab_size")?,
            hidden,
            feed_forward: keys.size("intermediate_size")?,
            layers: keys.size("num_hidden_layers")?,
            heads,
            kv_heads: keys.optional_size("num_key_value_heads", heads)?,
            head_dim: keys.optional_size("head_dim", if family == Qwen3 { 128 } else { hidden / heads })?,
            context: context.max(stretched as usize),
            norm_eps: keys.optional_number("rms_norm_eps", 1e-6)?,
            rope,
            tied: keys.flag("tie_word_embeddings", family == SmolLm3),
            attention_bias: matches!(family, Llama | Qwen3 | SmolLm3) && keys.flag("attention_bias", false),
            qkv_bias: family == Qwen2,
            feed_forward_bias: matches!(family, Llama | SmolLm3) && keys.flag("mlp_bias", false),
            head_norm: family == Qwen3,
            windows: vec![],
            no_rope: vec![],
            end_tokens: keys.tokens("eos_token_id"),
        };
        config.check()?;
        // For each layer, of which there are not too many now.
        if family == SmolLm3 {
            config.no_rope = keys.no_rope(config.layers)?;
        }
        config.windows = keys.windows(family, &config)?;
        Ok(config)
    }
}

/// Values by key; `null` is none.
struct Keys<'a>(&'a Value);

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> LlamaConfigError {
        let found = self.0.get(key).map_or("missing".to_owned(), ToString::to_string);
        LlamaConfigError::Value { key: key.to_owned(), found, expected: expected.to_owned() }
    }

    fn size(&self, key: &str) -> Result<usize, LlamaConfigError> {
        let size = self.get(key).and_then(Value::as_u64).filter(|&size| size >= 1);
        size.and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn optional_size(&self, key: &str, default: usize) -> Result<usize, LlamaConfigError> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    fn number(&self, key: &str) -> Result<f64, LlamaConfigError> {
        self.get(key).and_then(Value::as_f64).ok_or_else(|| self.wrong(key, "a number"))
    }

    fn optional_number(&self, key: &str, default: f64) -> Result<f64, LlamaConfigError> {
        if self.get(key).is_none() { Ok(default) } else { self.number(key) }
    }

    /// A list in which each value is one of its kind.
    fn list<T>(
        &self, key: &str, of: impl Fn(&Value) -> Option<T>, expected: &str,
    ) -> Result<Vec<T>, LlamaConfigError> {
        let values = self.get(key).and_then(Value::as_array);
        let list = values.and_then(|values| values.iter().map(of).collect());
        list.ok_or_else(|| self.wrong(key, expected))
    }

    /// One number or several.
    fn tokens(&self, key: &str) -> Vec<u32> {
        let token = |value: &Value| u32::try_from(value.as_u64()?).ok();
        match self.get(key) {
            Some(Value::Array(values)) => values.iter().filter_map(token).collect(),
            Some(value) => token(value).into_iter().collect(),
            None => vec![],
        }
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// Rotary positions, where `theta` is what the family has if nothing is said.
    fn rope(&self, theta: f64, context: usize) -> Result<Rope, LlamaConfigError> {
        // What transformers 4 wrote, and what 5 does.
        let says =
            |key: &str| self.get(key).filter(|said| said.as_object().is_none_or(|said| !said.is_empty()));
        let own = says("rope_scaling").or_else(|| says("rope_parameters"));
        let rope = Keys(own.unwrap_or(&Value::Null));
        for keys in [self, &rope] {
            if keys.optional_number("partial_rotary_factor", 1.0)? != 1.0 {
                return Err(keys.wrong("partial_rotary_factor", "1"));
            }
            if keys.get("full_attention").is_some() {
                return Err(keys.wrong("full_attention", "rotary positions that all layers share"));
            }
        }
        let theta = rope.optional_number("rope_theta", self.optional_number("rope_theta", theta)?)?;
        Ok(Rope { theta, scaling: rope.scaling(self, context)? })
    }

    /// Its scaling, in which a model of `context` may lack what `config` says.
    fn scaling(&self, config: &Self, context: usize) -> Result<RopeScaling, LlamaConfigError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        let original = || config.optional_size(ORIGINAL, self.optional_size(ORIGINAL, context)?);
        let key = if self.get("rope_type").is_some() { "rope_type" } else { "type" };
        Ok(match self.get(key).map_or(Some("default"), Value::as_str) {
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: self.number("factor")? },
            Some("dynamic") => {
                RopeScaling::Dynamic { factor: self.number("factor")?, original_context: context }
            }
            Some("llama3") => RopeScaling::Llama3 {
                factor: self.number("factor")?,
                low: self.number("low_freq_factor")?,
                high: self.number("high_freq_factor")?,
                original_context: original()?,
            },
            Some("yarn") => {
                let original_context = original()?;
                let factor = self.optional_number("factor", context as f64 / original_context as f64)?;
                let scale = |weight: f64| 1.0 + 0.1 * weight * factor.max(1.0).ln();
                let weights = ["mscale", "mscale_all_dim"].map(|key| self.optional_number(key, 0.0));
                let attention = match weights {
                    [Ok(some), Ok(all)] if some != 0.0 && all != 0.0 => scale(some) / scale(all),
                    [some, all] => some.and(all).map(|_| scale(1.0))?,
                };
                RopeScaling::Yarn {
                    factor,
                    attention: self.optional_number("attention_factor", attention)?,
                    fast: self.optional_number("beta_fast", 32.0)?,
                    slow: self.optional_number("beta_slow", 1.0)?,
                    truncate: self.flag("truncate", true),
                    original_context,
                }
            }
            Some("longrope") => {
                let original_context = original()?;
                let factor = self.optional_number("factor", context as f64 / original_context as f64)?;
                let attention = (1.0 + factor.max(1.0).ln() / (original_context as f64).ln()).sqrt();
                let [short, long] = ["short_factor", "long_factor"]
                    .map(|key| self.list(key, Value::as_f64, "a list of numbers"));
                RopeScaling::LongRope {
                    short: short?,
                    long: long?,
                    attention: self.optional_number("attention_factor", attention)?,
                    original_context,
                }
            }
            _ => return Err(self.wrong(key, "default, linear, dynamic, llama3, yarn or longrope")),
        })
    }

    /// The layers without rotary positions: those with a 0, or every few.
    fn no_rope(&self, layers: usize) -> Result<Vec<usize>, LlamaConfigError> {
        if self.get("no_rope_layers").is_none() {
            let interval = self.optional_size("no_rope_layer_interval", 4)?;
            return Ok((0..layers).filter(|layer| (layer + 1).is_multiple_of(interval)).collect());
        }
        let expected = format!("a 1 or a 0 for each of the {layers} layers");
        let rotated = self.list("no_rope_layers", Value::as_u64, &expected)?;
        match rotated.len() >= layers {
            true => Ok((0..layers).filter(|&layer| rotated[layer] == 0).collect()),
            false => Err(self.wrong("no_rope_layers", &expected)),
        }
    }

    /// How many positions each layer looks at.
    fn windows(
        &self, family: Family, config: &LlamaConfig,
    ) -> Result<Vec<Option<NonZeroUsize>>, LlamaConfigError> {
        const WINDOW: &str = "sliding_window";
        let LlamaConfig { layers, ref no_rope, .. } = *config;
        let is_used = match family {
            Llama => false,
            Mistral => true,
            Qwen2 | Qwen3 | SmolLm3 => self.flag("use_sliding_window", false),
        };
        let window = match self.0.get(WINDOW) {
            None if is_used && family != SmolLm3 => 4096,
            Some(window) if is_used && !window.is_null() => self.size(WINDOW)?,
            _ => 0,
        };
        let slides: Vec<bool> = match self.get("layer_types") {
            _ if family == Mistral => vec![true; layers],
            Some(_) => {
                let expected = format!("full_attention or sliding_attention for each of the {layers} layers");
                let slides = |kind: &Value| match kind.as_str() {
                    Some("full_attention") => Some(false),
                    Some("sliding_attention") => Some(true),
                    _ => None,
                };
                let slides = self.list("layer_types", slides, &expected)?;
                if slides.len() != layers {
                    return Err(self.wrong("layer_types", &expected));
                }
                slides
            }
            None if family == SmolLm3 => (0..layers).map(|layer| no_rope.contains(&layer)).collect(),
            None => {
                let first = self.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28);
                (0..layers).map(|layer| layer as u64 >= first).collect()
            }
        };
        let window = NonZeroUsize::new(window).filter(|_| slides.contains(&true));
        let of = |slides: bool| window.filter(|_| slides);
        Ok(if window.is_some() { slides.into_iter().map(of).collect() } else { vec![] })
    }
}

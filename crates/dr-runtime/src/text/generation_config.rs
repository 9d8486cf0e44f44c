//! [`GenerationConfig`]: how the authors of a model want its tokens to be drawn.

use super::{Sampling, TextError};
use crate::file::{Artifact, GENERATION_CONFIG};
use serde::{Deserialize, Deserializer};
use std::path::Path;

/// What a `generation_config.json` says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Tokens that end a text.
    #[serde(rename = "eos_token_id", deserialize_with = "one_or_many")]
    pub end_tokens: Vec<u32>,
    /// Whether tokens are drawn; otherwise the most likely one is taken.
    pub do_sample: Option<bool>,
    /// See [`Sampling`], for this and what follows.
    pub temperature: Option<f32>,
    /// The most likely tokens.
    pub top_k: Option<usize>,
    /// The tokens of a probability together.
    pub top_p: Option<f32>,
    /// The tokens of a part of the largest probability.
    pub min_p: Option<f32>,
    /// What makes earlier tokens less likely.
    pub repetition_penalty: Option<f32>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "eos_token_id: expected a token or a list of tokens")]
    enum Tokens {
        None,
        One(u32),
        Many(Vec<u32>),
    }
    Ok(match Tokens::deserialize(deserializer)? {
        Tokens::None => vec![],
        Tokens::One(token) => vec![token],
        Tokens::Many(tokens) => tokens,
    })
}

impl GenerationConfig {
    /// Reads the content of a `generation_config.json`.
    ///
    /// # Errors
    /// If it is none, or its numbers make no sense.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let config: Self = serde_json::from_slice(json).map_err(TextError::generation_config)?;
        config.sampling().check().map_err(TextError::generation_config)?;
        Ok(config)
    }

    /// Reads a `generation_config.json`.
    ///
    /// # Errors
    /// If it cannot be read, is none, or its numbers make no sense.
    pub fn load(path: &Path) -> Result<Self, TextError> {
        TextError::read(path, Self::from_json)
    }

    /// That of a model; without one, nothing is said.
    ///
    /// # Errors
    /// Those of [`from_json`](Self::from_json).
    pub fn of(artifact: &Artifact) -> Result<Self, TextError> {
        artifact.attachment(GENERATION_CONFIG)?.map_or(Ok(Self::default()), Self::from_json)
    }

    /// How tokens are drawn. What is not said is as in [`Sampling::default`], at the temperature 1 if tokens are to be drawn.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        let usual = Sampling::default();
        let is_drawn = self.do_sample == Some(true);
        Sampling {
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            temperature: if is_drawn { self.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            seed: usual.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_say() {
        let read = |json: &str| GenerationConfig::from_json(json.as_bytes());
        let usual = Sampling::default();
        let drawn = read(
            r#"{"eos_token_id": [1, 2], "do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": null,
                "repetition_penalty": 1.1, "transformers_version": "4.44.0"}"#,
        );
        let drawn = drawn.expect("a file");
        assert_eq!(drawn.end_tokens, [1, 2]);
        let expected = Sampling { temperature: 0.6, top_p: 0.9, repetition_penalty: 1.1, ..usual };
        assert_eq!(drawn.sampling(), expected);
        let greedy = read(r#"{"eos_token_id": 7, "do_sample": false, "temperature": 0.6, "min_p": 0.1}"#);
        let greedy = greedy.expect("a file");
        assert_eq!((greedy.sampling(), greedy.end_tokens), (Sampling { min_p: 0.1, ..usual }, vec![7]));
        let hot = read(r#"{"do_sample": true, "eos_token_id": null}"#).expect("a file");
        assert_eq!((hot.sampling().temperature, hot.end_tokens), (1.0, vec![]));
        assert_eq!(read("{}").expect("a file").sampling(), usual);
        for (json, reason) in [
            ("[", "EOF"),
            (r#"{"eos_token_id": -1}"#, "eos_token_id: expected a token or a list of tokens"),
            (r#"{"top_k": 0.5}"#, "expected usize"),
            (r#"{"top_p": 2}"#, "top_p is 2: expected a number from 0 to 1"),
            (r#"{"do_sample": true, "temperature": 1e39}"#, "temperature is inf"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.starts_with("generation config: ") && error.contains(reason), "{error}");
        }
    }
}

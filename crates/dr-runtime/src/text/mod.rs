//! Texts: tokens, and how a language model goes on with them.

mod tokenizer;

pub use tokenizer::{TextStream, Tokenizer};

use crate::RuntimeError;
use chacha20::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why there is no text. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// A tokenizer that cannot be read.
    #[error("`{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No tokenizer, or one that cannot be made.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A tokenizer of another model.
    #[error("the tokenizer has {found} tokens: the model expects at most {expected}")]
    Vocabulary {
        /// Of the tokenizer.
        found: usize,
        /// Of the model.
        expected: usize,
    },
    /// Nothing to begin with.
    #[error("the prompt has no tokens: expected at least one")]
    EmptyPrompt,
    /// The prompt does not fit.
    #[error("the prompt has {found} tokens: expected less than {context}, the model's context")]
    LongPrompt {
        /// Its tokens.
        found: usize,
        /// The model's context.
        context: usize,
    },
    /// A token of the tokenizer that the model does not have.
    #[error("the tokenizer gives token {found}: the model has {vocabulary}")]
    Token {
        /// The token.
        found: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 0 always takes the most likely token.
    pub temperature: f32,
    /// Of how many of the most likely tokens one is drawn.
    pub top_k: usize,
    /// Decides the draws.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 40, seed: 1 }
    }
}

impl Sampling {
    /// One of the tokens that `logits` are of.
    fn choose(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        let best = |order: &[u32]| order.iter().copied().min_by(by_logit).unwrap_or_default();
        if self.temperature <= 0.0 {
            return best(&order);
        }
        let kept = self.top_k.clamp(1, order.len());
        if kept < order.len() {
            order.select_nth_unstable_by(kept - 1, by_logit);
            order.truncate(kept);
        }
        order.sort_by(by_logit);
        let largest = logits[order[0] as usize];
        let weight = |token: &u32| f64::from((logits[*token as usize] - largest) / self.temperature).exp();
        let total: f64 = order.iter().map(weight).sum();
        let mut left = rng.random::<f64>() * total;
        for token in &order {
            left -= weight(token);
            if left <= 0.0 {
                return *token;
            }
        }
        order[0]
    }
}

/// How fast a text came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Speed {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Seconds until the first new token.
    pub prompt_seconds: f64,
    /// New tokens after the first.
    pub tokens: usize,
    /// Seconds for them.
    pub seconds: f64,
}

impl Speed {
    /// New tokens in a second.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }
}

/// What texts come from: a language model with what it keeps of a text so far.
pub trait Reader {
    /// Keys and values of earlier tokens.
    type Cache: Default;

    /// What can go wrong.
    type Error;

    /// The logits of what follows the tokens, which follow those that `cache` has.
    ///
    /// # Errors
    /// Tokens that the model does not take.
    fn read(&self, tokens: &[u32], cache: &mut Self::Cache) -> Result<Vec<f32>, Self::Error>;
}

impl Reader for crate::Network {
    type Cache = crate::Cache;
    type Error = RuntimeError;

    fn read(&self, tokens: &[u32], cache: &mut Self::Cache) -> Result<Vec<f32>, RuntimeError> {
        Self::read(self, tokens, cache)
    }
}

#[cfg(feature = "burn")]
impl Reader for crate::tensors::Network {
    type Cache = crate::tensors::Cache;
    type Error = RuntimeError;

    fn read(&self, tokens: &[u32], cache: &mut Self::Cache) -> Result<Vec<f32>, RuntimeError> {
        Self::read(self, tokens, cache)
    }
}

/// Goes on with a text until there are `count` new tokens, one that ends it, or no room left in the context. Each new token is
/// given to `each` with its number, before the next is computed: it may switch the model to another precision, and it ends the text by
/// `false`. The model knows `vocabulary` tokens and looks at `context` positions.
///
/// # Errors
/// A prompt without tokens or longer than the context, tokens that the model does not have, what the model and `each` say.
pub fn generate<R: Reader, E: From<TextError> + From<R::Error>>(
    model: &mut R, [vocabulary, context]: [usize; 2], prompt: &[u32], count: usize, sampling: &Sampling,
    mut each: impl FnMut(&mut R, usize, u32) -> Result<bool, E>,
) -> Result<Speed, E> {
    if prompt.is_empty() {
        return Err(TextError::EmptyPrompt.into());
    }
    if prompt.len() >= context {
        return Err(TextError::LongPrompt { found: prompt.len(), context }.into());
    }
    check_tokens(prompt, vocabulary)?;
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut cache = R::Cache::default();
    let mut speed = Speed { prompt_tokens: prompt.len(), ..Speed::default() };
    let mut elapsed = Duration::ZERO;
    let mut new = prompt.to_vec();
    for number in 0..count.min(context - prompt.len()) {
        let started = Instant::now();
        let token = sampling.choose(&model.read(&new, &mut cache)?, &mut rng);
        elapsed += started.elapsed();
        if number == 0 {
            speed.prompt_seconds = elapsed.as_secs_f64();
        } else {
            (speed.tokens, speed.seconds) = (number, elapsed.as_secs_f64() - speed.prompt_seconds);
        }
        if !each(model, number, token)? {
            break;
        }
        new = vec![token];
    }
    Ok(speed)
}

/// Whether a model of so many tokens knows all of these.
///
/// # Errors
/// The first that it does not.
pub fn check_tokens(tokens: &[u32], vocabulary: usize) -> Result<(), TextError> {
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&found) => Err(TextError::Token { found, vocabulary }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_likely_token_or_one_of_the_best() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let logits = [0.0, 3.0, 1.0, 3.0, -1.0];
        assert_eq!(Sampling::default().choose(&logits, rng), 1, "of equal ones the first");
        let warm = Sampling { temperature: 1.0, top_k: 3, seed: 1 };
        let mut counts = [0usize; 5];
        (0..4000).for_each(|_| counts[warm.choose(&logits, rng) as usize] += 1);
        assert_eq!((counts[0], counts[4]), (0, 0));
        // e^3 of 2 e^3 + e.
        assert!(counts[1].abs_diff(1873) < 150 && counts[3].abs_diff(1873) < 150, "{counts:?}");
        let one = Sampling { top_k: 1, ..warm };
        assert_eq!(one.choose(&logits, rng), 1);
    }
}

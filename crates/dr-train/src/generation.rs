//! Texts that language models go on with, and how likely they find texts.

use crate::nn::{Model, Pass, TensorCache, Tensors};
use crate::runtime_stub::{Cache, Network, RuntimeError};
use crate::text::{Choices, TextError, Tokenizer};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use chacha20::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why there is no text.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GenerationError {
    /// The model.
    #[error(transparent)]
    Model(#[from] RuntimeError),
    /// The tokenizer.
    #[error(transparent)]
    Text(#[from] TextError),
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
    /// A question that does not fit.
    #[error(
        "question {number}: {found} tokens with its longest choice: expected at most {context}, the model's context"
    )]
    LongQuestion {
        /// Counted from 1.
        number: usize,
        /// Its tokens.
        found: usize,
        /// The model's context.
        context: usize,
    },
    /// Nothing before the only token of a question.
    #[error("question {number}: a choice of one token without a context: expected something before it")]
    ShortQuestion {
        /// Counted from 1.
        number: usize,
    },
    /// A token of the tokenizer that the model does not have.
    #[error("the tokenizer gives token {found}: the model has {vocabulary}")]
    Vocabulary {
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

    /// The logits of what follows the tokens, which follow those that `cache` has.
    ///
    /// # Errors
    /// Tokens that the model does not take.
    fn read(&self, tokens: &[u32], cache: &mut Self::Cache) -> Result<Vec<f32>, GenerationError>;
}

impl Reader for Network {
    type Cache = Cache;

    fn read(&self, tokens: &[u32], cache: &mut Cache) -> Result<Vec<f32>, GenerationError> {
        Ok(Network::read(self, tokens, cache)?)
    }
}

/// A model in floats or fake quantization.
#[derive(Clone, Debug)]
pub struct FakeReader<'a> {
    /// The model.
    pub model: &'a Model,
    /// Its numbers.
    pub pass: Pass<'a>,
    /// Where it is.
    pub device: &'a Device,
}

impl Reader for FakeReader<'_> {
    type Cache = TensorCache;

    fn read(&self, tokens: &[u32], cache: &mut TensorCache) -> Result<Vec<f32>, GenerationError> {
        let ids: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, tokens.len()]), self.device);
        let mut on = Tensors::reading(&self.pass, cache);
        let logits = self.model.run(&mut on, tokens.into()).rows();
        let last = logits.dims()[0] - 1;
        let logits = logits.narrow(0, last, 1).into_data().convert::<f32>();
        Ok(logits.try_into_vec().expect("floats, after the conversion"))
    }
}

/// Goes on with a text until there are `count` new tokens, one that ends it, or no room left in the context. Each new token is
/// given to `each` with its number, before the next is computed: it may switch the model to another precision, and it ends the text by
/// `false`. The model knows `vocabulary` tokens and looks at `context` positions.
///
/// # Errors
/// A prompt without tokens or longer than the context, tokens that the model does not have, and what `each` says.
pub fn generate<R: Reader, E: From<GenerationError>>(
    model: &mut R, [vocabulary, context]: [usize; 2], prompt: &[u32], count: usize, sampling: &Sampling,
    mut each: impl FnMut(&mut R, usize, u32) -> Result<bool, E>,
) -> Result<Speed, E> {
    if prompt.is_empty() {
        return Err(GenerationError::EmptyPrompt.into());
    }
    if prompt.len() >= context {
        return Err(GenerationError::LongPrompt { found: prompt.len(), context }.into());
    }
    check_tokens(prompt, vocabulary)?;
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut cache = R::Cache::default();
    let mut speed = Speed { prompt_tokens: prompt.len(), ..Speed::default() };
    let mut elapsed = Duration::ZERO;
    let mut new = prompt.to_vec();
    for number in 0..count.min(context - prompt.len()) {
        let started = Instant::now();
        let logits = model.read(&new, &mut cache)?;
        let token = sampling.choose(&logits, &mut rng);
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

fn check_tokens(tokens: &[u32], vocabulary: usize) -> Result<(), GenerationError> {
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&found) => Err(GenerationError::Vocabulary { found, vocabulary }),
        None => Ok(()),
    }
}

/// Right answers, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ChoiceScore {
    /// Where the choice of the highest likelihood is taken.
    pub accuracy: f64,
    /// Where likelihoods are compared by byte: the logarithm is divided by the length of the choice.
    pub normalized: f64,
}

/// How many questions a model answers right, each by the choice that it finds the most likely after the context.
///
/// `forward` turns tokens `[1, positions]` into logits `[positions, vocabulary]`, for at most `most` positions.
///
/// # Errors
/// Questions longer than the model's context, tokens that it does not have, and what `forward` says.
pub fn score_choices<E: From<GenerationError>>(
    questions: &[Choices], tokenizer: &Tokenizer, [vocabulary, most]: [usize; 2], device: &Device,
    forward: impl Fn(Tensor<2, Int>) -> Result<Tensor<2>, E>,
) -> Result<ChoiceScore, E> {
    let (mut right, mut right_by_byte) = (0usize, 0usize);
    for (number, Choices { context, choices, answer }) in questions.iter().enumerate() {
        let before = tokenizer.encode(context, true).map_err(GenerationError::from)?;
        let mut scores = vec![];
        for choice in choices {
            // Of the whole text, as its tokens depend on what is before them.
            let whole =
                tokenizer.encode(&format!("{context}{choice}"), true).map_err(GenerationError::from)?;
            let shared = before.iter().zip(&whole).take_while(|(a, b)| a == b).count();
            // The first token has nothing before it that could say how likely it is.
            let first = shared.clamp(1, whole.len().saturating_sub(1).max(1));
            if whole.len() > most {
                let (number, found, context) = (number + 1, whole.len(), most);
                return Err(GenerationError::LongQuestion { number, found, context }.into());
            }
            if whole.len() < 2 {
                return Err(GenerationError::ShortQuestion { number: number + 1 }.into());
            }
            check_tokens(&whole, vocabulary)?;
            let ids: Vec<i32> = whole.iter().map(|&token| token.cast_signed()).collect();
            let input = TensorData::new(ids[..ids.len() - 1].to_vec(), [1, ids.len() - 1]);
            let logits = log_softmax(forward(Tensor::from_data(input, device))?, 1);
            let rows = logits.slice([first - 1..ids.len() - 1, 0..vocabulary]);
            let labels = Tensor::<1, Int>::from_data(&ids[first..], device).unsqueeze_dim(1);
            let likelihood = rows.gather(1, labels).sum().into_scalar::<f64>();
            scores.push((likelihood, likelihood / choice.len() as f64));
        }
        let best = |score: fn(&(f64, f64)) -> f64| {
            let order = scores.iter().map(score).enumerate();
            order.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0))).map(|(choice, _)| choice)
        };
        right += usize::from(best(|score| score.0) == Some(*answer));
        right_by_byte += usize::from(best(|score| score.1) == Some(*answer));
    }
    let percent = |count: usize| 100.0 * count as f64 / questions.len().max(1) as f64;
    Ok(ChoiceScore { accuracy: percent(right), normalized: percent(right_by_byte) })
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

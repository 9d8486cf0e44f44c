//! Texts: tokens, and how a language model goes on with them.

mod chat;
mod generation_config;
mod sampling;
mod stream;
mod tokenizer;

pub use chat::{ChatTemplate, Message};
pub use generation_config::GenerationConfig;
pub use sampling::Sampling;
pub use stream::{StopTexts, TextStream};
pub use tokenizer::Tokenizer;

use crate::file::ArtifactError;
use crate::{RuntimeError, read_file};
use chacha20::ChaCha8Rng;
use rand::SeedableRng;
use serde::Serialize;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Why there is no text. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file that cannot be read.
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
    /// A number of [`Sampling`] that makes no sense.
    #[error("{name} is {found}: expected {expected}")]
    Sampling {
        /// Which.
        name: &'static str,
        /// What it is.
        found: f32,
        /// What can be.
        expected: &'static str,
    },
    /// No `generation_config.json`, or one that makes no sense.
    #[error("generation config: {0}")]
    GenerationConfig(String),
    /// A model that is not for chats.
    #[error(
        "the model has no chat template: expected one in its tokenizer_config.json or chat_template.jinja"
    )]
    NoChatTemplate,
    /// A chat template that cannot be read or computed, or refuses the conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// The file of the model.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A token of the tokenizer that the model does not have.
    #[error("the tokenizer gives token {found}: the model has {vocabulary}")]
    Token {
        /// The token.
        found: u32,
        /// Tokens of the model.
        vocabulary: usize,
    },
}

impl TextError {
    fn tokenizer(reason: impl Display) -> Self {
        Self::Tokenizer(one_line(reason))
    }

    fn generation_config(reason: impl Display) -> Self {
        Self::GenerationConfig(one_line(reason))
    }

    fn chat(reason: impl Display) -> Self {
        Self::ChatTemplate(one_line(reason))
    }

    /// What `parse` makes of a file, which its errors name.
    fn read<T>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, Self>) -> Result<T, Self> {
        let content = read_file(path).map_err(|source| Self::Read { path: path.into(), source })?;
        let in_file = |reason: String| format!("`{}`: {reason}", path.display());
        parse(&content).map_err(|error| match error {
            Self::Tokenizer(reason) => Self::Tokenizer(in_file(reason)),
            Self::GenerationConfig(reason) => Self::GenerationConfig(in_file(reason)),
            other => other,
        })
    }
}

fn one_line(text: impl Display) -> String {
    text.to_string().replace(['\n', '\r'], " ")
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
/// A prompt without tokens or longer than the context, tokens that the model does not have, numbers of `sampling` that make no sense,
/// what the model and `each` say.
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
    sampling.check()?;
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut cache = R::Cache::default();
    let mut speed = Speed { prompt_tokens: prompt.len(), ..Speed::default() };
    let mut elapsed = Duration::ZERO;
    let (mut text, mut read) = (prompt.to_vec(), 0);
    for number in 0..count.min(context - prompt.len()) {
        let started = Instant::now();
        let logits = model.read(&text[read..], &mut cache)?;
        let token = sampling.choose(&logits, &text, &mut rng);
        elapsed += started.elapsed();
        if number == 0 {
            speed.prompt_seconds = elapsed.as_secs_f64();
        } else {
            (speed.tokens, speed.seconds) = (number, elapsed.as_secs_f64() - speed.prompt_seconds);
        }
        if !each(model, number, token)? {
            break;
        }
        read = text.len();
        text.push(token);
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

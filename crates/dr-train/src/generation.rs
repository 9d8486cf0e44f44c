//! Texts that language models go on with, and how likely they find texts.

use crate::nn::{Model, Pass, TensorCache, Tensors, Value};
use crate::progress::Progress;
use crate::text::{Choices, Tokenizer};
use crate::values::values;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_runtime::RuntimeError;
use dr_runtime::text::{Reader, TextError, check_tokens};
use serde::Serialize;
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
    #[error("question {0}: a choice of one token without a context: expected something before it")]
    ShortQuestion(usize),
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
    type Error = RuntimeError;

    fn read(&self, tokens: &[u32], cache: &mut TensorCache) -> Result<Vec<f32>, RuntimeError> {
        let ids: Vec<i32> = tokens.iter().map(|&token| token.cast_signed()).collect();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, tokens.len()]), self.device);
        let mut on = Tensors::reading(&self.pass, cache);
        let Value::Rows(logits) = self.model.run(&mut on, tokens.into()) else {
            unreachable!("logits are rows")
        };
        let last = logits.dims()[0] - 1;
        Ok(values(logits.narrow(0, last, 1).into_data()))
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
    let progress = Progress::new("questions:");
    for (number, Choices { context, choices, answer }) in questions.iter().enumerate() {
        progress.show(number, questions.len(), "");
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
                return Err(GenerationError::ShortQuestion(number + 1).into());
            }
            check_tokens(&whole, vocabulary).map_err(GenerationError::from)?;
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
    let percent = |count: usize| 100.0 * count as f64 / questions.len() as f64;
    Ok(ChoiceScore { accuracy: percent(right), normalized: percent(right_by_byte) })
}

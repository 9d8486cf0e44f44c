//! [`Choices`]: questions with several answers, one of which is right.

use super::TextError;
use serde::Deserialize;
use std::path::Path;

/// A text and several ways in which it may go on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choices {
    /// What comes before.
    pub context: String,
    /// The ways to go on.
    pub choices: Vec<String>,
    /// The right one, counted from 0.
    pub answer: usize,
}

/// Reads a file with a question in each line, in JSON: `{"context": "..", "choices": ["..", ".."], "answer": 0}`.
///
/// # Errors
/// A file that cannot be read, or has another line than that.
pub fn load_choices(path: &Path) -> Result<Vec<Choices>, TextError> {
    let text = super::read(Some(path))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(i, line): (usize, &str)| {
        let wrong = |reason: String| TextError::Choices { path: path.into(), line: i + 1, reason };
        let question: Choices = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let count = question.choices.len();
        if question.answer >= count {
            return Err(wrong(format!("answer {}: expected less than the {count} choices", question.answer)));
        }
        match question.choices.iter().position(String::is_empty) {
            Some(empty) => Err(wrong(format!("choice {empty} is empty: expected a text"))),
            None => Ok(question),
        }
    };
    let questions = lines.map(question).collect::<Result<Vec<_>, _>>()?;
    match questions.is_empty() {
        true => Err(TextError::Choices { path: path.into(), line: 1, reason: "no question".into() }),
        false => Ok(questions),
    }
}

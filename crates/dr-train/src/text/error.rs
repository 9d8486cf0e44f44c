//! What can be wrong with a text; every message is one line.

use crate::files::FileError;
use std::{io, path::PathBuf};

/// Why a text, a tokenizer or a list of choices cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// Not a text.
    #[error("`{}`: not UTF-8 from byte {position} on: expected a text", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Bytes before that.
        position: usize,
    },
    /// The text in the program is damaged.
    #[error("the embedded text: {0}")]
    Embedded(io::Error),
    /// Fewer tokens than there must be.
    #[error("the {part} text has {found} tokens: expected at least {expected}")]
    TooShort {
        /// Which part of the text.
        part: &'static str,
        /// Tokens in it.
        found: usize,
        /// How many there must be.
        expected: usize,
    },
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] dr_runtime::text::TextError),
    /// A line that is no question.
    #[error("`{}`, line {line}: {reason}", path.display())]
    Choices {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

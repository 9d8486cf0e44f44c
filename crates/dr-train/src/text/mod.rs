//! Texts to learn from: tokens, how a text is split, and the loader that makes batches of it.

mod choices;
mod error;
mod loader;

pub use choices::{Choices, load_choices};
pub use dr_runtime::text::{TextStream, Tokenizer};
pub use error::TextError;
pub use loader::{Pieces, TextLoader};

use crate::files::at;
use dr_runtime::read_file;
use flate2::read::GzDecoder;
use std::io::Read;
use std::path::Path;

/// Plays of Shakespeare, embedded in the program (see `data/README.md` for where they are from).
const SHAKESPEARE: &[u8] = include_bytes!("../../data/shakespeare.txt.gz");

/// One in so many characters is for validation, and as many are for the test.
const HELD_OUT: usize = 20;

/// A text, split: its beginning is to learn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextSplits {
    /// To learn from: nine tenths.
    pub train: String,
    /// To choose by.
    pub valid: String,
    /// To measure the result once: the end.
    pub test: String,
}

/// Reads a text file, or the embedded text.
///
/// # Errors
/// A file that cannot be read or is no UTF-8.
pub fn read(file: Option<&Path>) -> Result<String, TextError> {
    match file {
        Some(path) => {
            let bytes = read_file(path).map_err(at(path))?;
            String::from_utf8(bytes).map_err(|error| TextError::Utf8 {
                path: path.into(),
                position: error.utf8_error().valid_up_to(),
            })
        }
        None => {
            let mut text = String::new();
            GzDecoder::new(SHAKESPEARE).read_to_string(&mut text).map_err(TextError::Embedded)?;
            Ok(text)
        }
    }
}

/// Splits a text: nine tenths to learn from, then a twentieth each for validation and the test, at ends of lines where there
/// are some. `limit_train` takes only so many characters of what is there to learn from.
#[must_use]
pub fn split(text: &str, limit_train: Option<usize>) -> TextSplits {
    let held_out = text.len() / HELD_OUT;
    let boundary = |near: usize| {
        let from = text.floor_char_boundary(near);
        text[..from].rfind('\n').map_or(from, |end| end + 1)
    };
    let (valid, test) = (boundary(text.len() - 2 * held_out), boundary(text.len() - held_out));
    let train = &text[..valid];
    let train = limit_train.map_or(train, |limit| &train[..train.floor_char_boundary(limit.min(valid))]);
    TextSplits { train: train.into(), valid: text[valid..test].into(), test: text[test..].into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_the_text() {
        for text in ["", "ä", "one\ntwo\nthree\n", &"äöü\n".repeat(99), &"ß".repeat(123)] {
            let TextSplits { train, valid, test } = split(text, None);
            assert_eq!(format!("{train}{valid}{test}"), text);
        }
        let text = read(None).expect("the embedded text");
        let TextSplits { train, valid, test } = split(&text, Some(1000));
        assert_eq!((train.len(), valid.len() / 1000, test.len() / 1000), (1000, 55, 55));
    }
}

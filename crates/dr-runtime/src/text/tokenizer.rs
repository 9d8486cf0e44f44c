//! [`Tokenizer`]: texts as numbers and back, in the format of Hugging Face's `tokenizers`.

use super::{TextError, TextStream, check_tokens};
use std::fmt;
use std::path::Path;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Turns texts into tokens and back.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// As it was read, or would be written.
    json: Vec<u8>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocabulary", &self.vocabulary()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the content of a `tokenizer.json`. Texts are neither cut nor filled up, whatever it says: that is for batches, and
    /// transformers does so only when it is asked to.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_json(json: &[u8]) -> Result<Self, TextError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(TextError::tokenizer)?;
        inner.with_truncation(None).map_err(TextError::tokenizer)?.with_padding(None);
        Ok(Self { inner, json: json.to_vec() })
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If it cannot be read or is none.
    pub fn load(path: &Path) -> Result<Self, TextError> {
        TextError::read(path, Self::from_json)
    }

    /// Learns byte pairs from a text: at most `vocabulary` tokens, of which 256 are single bytes, so that there is no text
    /// without tokens. The same text gives the same tokenizer.
    ///
    /// # Errors
    /// What the library says.
    pub fn train(text: &str, vocabulary: usize) -> Result<Self, TextError> {
        let mut inner = tokenizers::Tokenizer::new(BPE::default());
        inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        inner.with_decoder(Some(ByteLevel::default()));
        let trainer = BpeTrainer::builder()
            .vocab_size(vocabulary)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        inner
            .train(&mut TrainerWrapper::from(trainer), text.split_inclusive('\n'))
            .map_err(TextError::tokenizer)?;
        let json = inner.to_string(false).map_err(TextError::tokenizer)?;
        // Read again: so it is what a file would give.
        Self::from_json(json.as_bytes())
    }

    /// The `tokenizer.json`.
    #[must_use]
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// One more than the largest token.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |largest| largest as usize + 1)
    }

    /// How many of this tokenizer's tokens a model of so many does not know. A few that were added later may lack a row in the model:
    /// texts that need them [are refused](Self::encode_for).
    ///
    /// # Errors
    /// If they are more than an eighth of the model's: then the tokenizer is of another model.
    pub fn unknown_to(&self, vocabulary: usize) -> Result<usize, TextError> {
        let found = self.vocabulary();
        let unknown = found.saturating_sub(vocabulary);
        match unknown <= vocabulary / 8 {
            true => Ok(unknown),
            false => Err(TextError::Vocabulary { found, expected: vocabulary }),
        }
    }

    /// The tokens of a text; with `special`, those that mark its beginning, for example, too.
    ///
    /// # Errors
    /// What the library says.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, TextError> {
        Ok(self.inner.encode(text, special).map_err(TextError::tokenizer)?.get_ids().to_vec())
    }

    /// The tokens of a text, without special ones, for a model of so many.
    ///
    /// # Errors
    /// What the library says, and a token that the model does not know.
    pub fn encode_for(&self, vocabulary: usize, text: &str) -> Result<Vec<u32>, TextError> {
        let tokens = self.encode(text, false)?;
        check_tokens(&tokens, vocabulary).map(|()| tokens)
    }

    /// The text of tokens.
    ///
    /// # Errors
    /// What the library says.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.inner.decode(tokens, true).map_err(TextError::tokenizer)
    }

    /// Turns tokens into text one by one.
    #[must_use]
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        let text = "To be, or not to be.\n\tÄ ß — 🙂\n";
        let tokenizer = Tokenizer::train(&text.repeat(9), 300).expect("a tokenizer");
        assert!(tokenizer.vocabulary() > 256 && tokenizer.vocabulary() <= 300, "{tokenizer:?}");
        let tokens = tokenizer.encode(text, false).expect("tokens");
        assert_eq!(tokenizer.decode(&tokens).expect("a text"), text);
        let mut stream = tokenizer.stream();
        let streamed: String = tokens.iter().map(|&token| stream.push(token).expect("a part")).collect();
        assert_eq!(streamed, text);
        let again = Tokenizer::from_json(tokenizer.json()).expect("the same tokenizer");
        assert_eq!(again.encode(text, false).expect("tokens"), tokens);
    }

    #[test]
    fn texts_are_neither_cut_nor_filled_up() {
        let plain = Tokenizer::train(&"the cat sat on the mat ".repeat(9), 270).expect("a tokenizer");
        let mut json: serde_json::Value = serde_json::from_slice(plain.json()).expect("JSON");
        json["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0,
        });
        json["padding"] = serde_json::json!({
            "strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "!",
        });
        let cut = Tokenizer::from_json(json.to_string().as_bytes()).expect("a tokenizer");
        for text in ["the cat sat on the mat", "a", &"cat ".repeat(40)] {
            assert_eq!(cut.encode(text, true).expect("tokens"), plain.encode(text, true).expect("tokens"));
        }
    }

    #[test]
    fn a_few_tokens_may_be_unknown_to_the_model() {
        let tokenizer = Tokenizer::train(&"the cat sat on the mat ".repeat(9), 264).expect("a tokenizer");
        let count = tokenizer.vocabulary();
        assert_eq!(tokenizer.unknown_to(count + 9).expect("all are known"), 0);
        assert_eq!(tokenizer.unknown_to(count - 3).expect("a few are not"), 3);
        let error = tokenizer.unknown_to(200).unwrap_err().to_string();
        assert_eq!(error, format!("the tokenizer has {count} tokens: the model expects at most 200"));
    }

    #[test]
    fn a_file_that_is_no_tokenizer() {
        for json in [&b""[..], b"{}", b"[1, 2]", b"\xff\xfe"] {
            let message = Tokenizer::from_json(json).unwrap_err().to_string();
            assert!(message.starts_with("tokenizer: ") && !message.contains('\n'), "{message}");
        }
    }
}

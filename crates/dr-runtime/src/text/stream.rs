//! [`TextStream`] and [`StopTexts`]: what can be shown of a text while it comes.

use super::{TextError, Tokenizer};

/// The text of tokens that come one by one. Bytes that are no UTF-8 become `U+FFFD`, as in [`Tokenizer::decode`]; those that may still become
/// a character are held back.
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that are shown, on which the text of the next ones depends.
    before: Vec<u32>,
    /// Tokens that are not shown, or not all of their text.
    pending: Vec<u32>,
    /// Bytes of their text that are shown.
    shown: usize,
}

/// A character that lacks its last byte has as many bytes at most, each of which may be a token.
const INCOMPLETE: usize = 3;

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, before: vec![], pending: vec![], shown: 0 }
    }

    /// What the next token adds to the text that is shown.
    ///
    /// # Errors
    /// What the library says.
    pub fn push(&mut self, token: u32) -> Result<String, TextError> {
        self.pending.push(token);
        let text = self.pending_text()?;
        let last = text.char_indices().rev().take(INCOMPLETE);
        let held = last.take_while(|(_, char)| *char == char::REPLACEMENT_CHARACTER).last();
        Ok(self.show(&text, held.map_or(text.len(), |(at, _)| at)))
    }

    /// What was held back: the text ends here, or goes on with what others wrote.
    ///
    /// # Errors
    /// What the library says.
    pub fn flush(&mut self) -> Result<String, TextError> {
        let text = self.pending_text()?;
        Ok(self.show(&text, text.len()))
    }

    fn pending_text(&self) -> Result<String, TextError> {
        let before = self.tokenizer.decode(&self.before)?;
        let all = self.tokenizer.decode(&[&self.before[..], &self.pending].concat())?;
        match all.strip_prefix(&before) {
            Some(added) => Ok(added.to_owned()),
            // Byte fallback takes back the characters before bytes that are none; they are shown already.
            None => self.tokenizer.decode(&self.pending),
        }
    }

    fn show(&mut self, text: &str, end: usize) -> String {
        let new = text.get(self.shown..end).unwrap_or_default().to_owned();
        if end < text.len() {
            self.shown = self.shown.max(end);
        } else if !text.is_empty() {
            (self.before, self.shown) = (std::mem::take(&mut self.pending), 0);
        }
        new
    }
}

/// Ends a text where the first of some texts is complete, however the text is cut into parts.
#[derive(Clone, Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    /// What may be the beginning of one.
    held: String,
    stopped: bool,
}

impl StopTexts {
    /// For these texts; none ends where nothing is.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|stop: &String| !stop.is_empty());
        Self { stops: stops.collect(), held: String::new(), stopped: false }
    }

    /// Whether the text has ended.
    #[must_use]
    pub const fn stopped(&self) -> bool {
        self.stopped
    }

    /// What the next part adds to the text that is shown: nothing of a text that ends it, nor of what may become one.
    pub fn push(&mut self, part: &str) -> String {
        for next in part.chars().take_while(|_| !self.stopped).collect::<Vec<_>>() {
            self.held.push(next);
            let ends = self.stops.iter().filter(|stop| self.held.ends_with(*stop)).map(String::len).max();
            if let Some(length) = ends {
                self.held.truncate(self.held.len() - length);
                self.stopped = true;
                break;
            }
        }
        let begins_one = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let end = self.held.char_indices().map(|(at, _)| at).find(|at| !self.stopped && begins_one(at));
        let held = self.held.split_off(end.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, held)
    }

    /// What was held back, at the end of the text.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::sync::LazyLock;

    fn streamed(tokenizer: &Tokenizer, tokens: &[u32]) -> Vec<String> {
        let mut stream = tokenizer.stream();
        let mut parts: Vec<String> =
            tokens.iter().map(|&token| stream.push(token).expect("a part")).collect();
        parts.push(stream.flush().expect("the rest"));
        parts
    }

    /// Single bytes, each a token of its own, and which one.
    static BYTES: LazyLock<(Tokenizer, BTreeMap<u8, u32>)> = LazyLock::new(|| {
        let tokenizer = Tokenizer::train("", 256).expect("a tokenizer");
        let tokens = |text: &str| tokenizer.encode(text, false).expect("tokens");
        // Every byte that texts have is in one of these.
        let chars = ('\0'..='\u{7FF}').chain(('\u{800}'..='\u{10FFFF}').step_by(0x800));
        let known =
            chars.map(String::from).flat_map(|text| text.bytes().zip(tokens(&text)).collect::<Vec<_>>());
        let known = known.collect();
        (tokenizer, known)
    });

    fn byte_tokens(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().filter_map(|byte| BYTES.1.get(byte).copied()).collect()
    }

    /// Bytes of what is no token, as in the tokenizers of Llama 2.
    fn fallback() -> Tokenizer {
        let json = r#"{"version": "1.0", "added_tokens": [
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<s>", "merges": [], "vocab": {
                "<s>": 0, "▁a": 1, "b": 2, "<0xE4>": 3, "<0xBD>": 4, "<0xA0>": 5, "<0xFF>": 6}}}"#;
        Tokenizer::from_json(json.as_bytes()).expect("a tokenizer")
    }

    #[test]
    fn characters_come_whole() {
        let tokenizer = fallback();
        let parts = |tokens: &[u32]| streamed(&tokenizer, tokens);
        assert_eq!(parts(&[0, 1, 2, 1]), ["", "a", "b", " a", ""]);
        assert_eq!(parts(&[1, 3, 4, 5, 2]), ["a", "", "", "你", "b", ""]);
        assert_eq!(parts(&[3, 4]), ["", "", "\u{FFFD}\u{FFFD}"]);
        assert_eq!(parts(&[3, 4, 5, 6, 2]), ["", "", "你", "", "\u{FFFD}b", ""]);
        assert_eq!(parts(&[6, 6, 6, 6, 6, 1]).concat(), format!("{} a", "\u{FFFD}".repeat(5)));
        assert_eq!(parts(&[6, 6, 6, 6])[3], "\u{FFFD}", "no character has as many bytes");

        let tokenizer = &BYTES.0;
        let tokens = byte_tokens("ä🙂".as_bytes());
        assert_eq!(streamed(tokenizer, &tokens), ["", "ä", "", "", "", "🙂", ""]);
        assert_eq!(streamed(tokenizer, &tokens[..5]), ["", "ä", "", "", "", "\u{FFFD}"]);
    }

    #[test]
    fn texts_that_end_a_text() {
        let parts = |stops: &[&str], parts: &[&str]| {
            let mut stop = StopTexts::new(stops.iter().copied());
            let mut shown: Vec<String> = parts.iter().map(|part| stop.push(part)).collect();
            shown.push(stop.flush());
            (shown, stop.stopped())
        };
        let some = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(parts(&["END"], &["to E", "N", "D of"]), (some(&["to ", "", "", ""]), true));
        assert_eq!(parts(&["END"], &["to E", "N", "O"]), (some(&["to ", "", "ENO", ""]), false));
        assert_eq!(parts(&["END"], &["E", "E", "N"]), (some(&["", "E", "", "EN"]), false));
        assert_eq!(parts(&["aab"], &["aaab"]), (some(&["a", ""]), true));
        assert_eq!(parts(&["x", "yx"], &["yx", "z"]), (some(&["", "", ""]), true));
        assert_eq!(parts(&[], &["a", "b"]), (some(&["a", "b", ""]), false));
        assert_eq!(parts(&[""], &["a"]), (some(&["a", ""]), false));
    }

    proptest! {
        #[test]
        fn all_bytes_are_shown_as_the_whole_text(some in prop::collection::vec(any::<u8>(), 0..40)) {
            let tokenizer = &BYTES.0;
            let tokens = byte_tokens(&some);
            let whole = tokenizer.decode(&tokens).expect("a text");
            prop_assert_eq!(streamed(tokenizer, &tokens).concat(), whole);
            // Valid text has no character that is none.
            let text: String = some.iter().map(|&byte| char::from(byte)).collect();
            let tokens = byte_tokens(text.as_bytes());
            prop_assert_eq!(streamed(tokenizer, &tokens).concat(), text);
            let tokens: Vec<u32> = some.iter().map(|byte| u32::from(byte % 7)).collect();
            prop_assert!(!streamed(&fallback(), &tokens).concat().contains('▁'));
        }

        #[test]
        fn parts_make_no_difference(
            text in "[ab😀]{0,12}", stops in prop::collection::vec("[ab😀]{1,3}", 0..3), cut in 0usize..13,
        ) {
            let mut whole = StopTexts::new(stops.clone());
            let expected = whole.push(&text) + &whole.flush();
            let cut = text.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(text.len());
            let mut parts = StopTexts::new(stops.clone());
            let shown = parts.push(&text[..cut]) + &parts.push(&text[cut..]) + &parts.flush();
            prop_assert_eq!(&shown, &expected);
            prop_assert!(stops.iter().all(|stop| !shown.contains(stop)) && text.starts_with(&shown));
            prop_assert_eq!(parts.stopped(), stops.iter().any(|stop| text.contains(stop)));
        }
    }
}

//! Tokenizers in GGUF: its metadata becomes a `tokenizer.json`, and the other way round.

use super::GgufError;
use super::container::{Entry, File, Value};
use super::model::Keys;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;

/// The prefix of all keys.
const PREFIX: &str = "tokenizer.ggml";

/// What words are for byte pairs: GPT-2's expression.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Every digit for itself.
const DIGIT: &str = r"\p{N}";

/// A way to cut texts into words before bytes are paired.
struct PreTokenizer {
    /// What files call it.
    names: &'static [&'static str],
    /// Each cuts what the ones before left: what it matches, and what lies in between.
    expressions: &'static [&'static str],
    /// Words that are tokens are not made of pairs, and texts have a token at their beginning unless the file says otherwise.
    whole_words: bool,
    /// Texts are composed first (NFC).
    composed: bool,
}

const PRE_TOKENIZERS: [PreTokenizer; 5] = [
    PreTokenizer { names: &["gpt-2"], expressions: &[GPT2], whole_words: false, composed: false },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "codeshell"],
        expressions: &[DIGIT, GPT2],
        whole_words: false,
        composed: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama-v3", "llama3"],
        expressions: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: true,
        composed: false,
    },
    PreTokenizer {
        names: &["qwen2"],
        expressions: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        whole_words: false,
        composed: true,
    },
    PreTokenizer {
        names: &["default"],
        expressions: &[
            r"[\p{P}\$\+<=>\^~\|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9][0-9][0-9]",
        ],
        whole_words: false,
        composed: false,
    },
];

/// What a token is for, as files number it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// A space in texts of scored tokens.
const SPACE: char = '▁';

/// What a `tokenizer_config.json` would say: the chat template, and the tokens that begin and end texts.
pub(super) fn config(file: &File) -> Result<Json, GgufError> {
    let keys = Keys::new(file, PREFIX);
    let Some(Value::Array(tokens)) = keys.get("tokens") else { return Ok(json!({})) };
    let mut config = Map::new();
    for (name, key) in [("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")] {
        let token = keys.token(key)?.and_then(|token| tokens.iter().nth(token as usize));
        if let Some(Value::Text(token)) = token {
            config.insert(name.to_owned(), token.into());
        }
    }
    if let Some(Value::Text(template)) = file.metadata.get("tokenizer.chat_template") {
        config.insert("chat_template".to_owned(), (*template).into());
    }
    Ok(config.into())
}

/// The tokenizer of a file as a `tokenizer.json`; `None` if there is none.
pub(super) fn read(file: &File) -> Result<Option<Json>, GgufError> {
    let keys = Keys::new(file, PREFIX);
    let bytes = match keys.text("model")? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some("gpt2") => true,
        Some("llama") => false,
        Some(_) => return Err(keys.wrong("model", "gpt2 or llama")),
    };
    let tokens = list(&keys, "tokens", "texts", |value| match value {
        Value::Text(text) => Some(text),
        _ => None,
    })?;
    let tokens = tokens.ok_or_else(|| keys.wrong("tokens", "texts"))?;
    let kinds = list(&keys, "token_type", "whole numbers", |value| match value {
        Value::Integer(value) => Some(value),
        _ => None,
    })?;
    let kinds = kinds.unwrap_or_default();
    let is = |token: usize, kind: Kind| kinds.get(token) == Some(&(kind as i128));
    let vocabulary: Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), id.into())).collect();
    let added =
        tokens.iter().enumerate().filter(|&(id, _)| is(id, Kind::Control) || is(id, Kind::UserDefined));
    let added: Vec<Json> = added
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is(id, Kind::Control),
            })
        })
        .collect();
    let (mut json, begins) = match bytes {
        true => byte_pairs(&keys, vocabulary)?,
        false => scored(&keys, &tokens, vocabulary, is)?,
    };
    json["version"] = "1.0".into();
    json["added_tokens"] = added.into();
    let marks = [("bos_token_id", "add_bos_token", begins), ("eos_token_id", "add_eos_token", false)];
    let mark = |(id, key, usual): (&str, &str, bool)| {
        if !keys.flag(key)?.unwrap_or(usual) {
            return Ok(None);
        }
        let token = keys.token(id)?.filter(|&token| (token as usize) < tokens.len());
        let token = token.ok_or_else(|| keys.wrong(id, "a token that there is"))?;
        Ok(Some((token, tokens[token as usize])))
    };
    let [first, last] = [mark(marks[0])?, mark(marks[1])?];
    json["post_processor"] = template(first, last);
    Ok(Some(json))
}

/// The values of an array, if it is there.
fn list<'a, T>(
    keys: &Keys<'_, 'a>, key: &str, of: &str, each: impl Fn(Value<'a>) -> Option<T>,
) -> Result<Option<Vec<T>>, GgufError> {
    keys.optional(key, &format!("an array of {of}"), |value| match value {
        Value::Array(array) => array.iter().map(&each).collect(),
        _ => None,
    })
}

/// What marks the beginning and the end of a text.
fn template(first: Option<(u32, &str)>, last: Option<(u32, &str)>) -> Json {
    if first.is_none() && last.is_none() {
        return Json::Null;
    }
    let special = |mark: Option<(u32, &str)>| {
        mark.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": 0}})).into_iter()
    };
    let part =
        |id: &str| special(first).chain([json!({"Sequence": {"id": id, "type_id": 0}})]).chain(special(last));
    let marks: Map<String, Json> = [first, last]
        .into_iter()
        .flatten()
        .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({
        "type": "TemplateProcessing", "single": part("A").collect::<Vec<_>>(),
        "pair": part("A").chain(part("B")).collect::<Vec<_>>(), "special_tokens": marks,
    })
}

/// Pairs of bytes, in the order of merges; and whether texts have a mark at their beginning if the file does not say so.
fn byte_pairs(keys: &Keys, vocabulary: Map<String, Json>) -> Result<(Json, bool), GgufError> {
    let known = || PRE_TOKENIZERS.iter().flat_map(|pre| pre.names).copied().collect::<Vec<_>>().join(", ");
    let name = keys.text("pre")?.unwrap_or("default");
    let pre = PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name));
    let pre = pre.ok_or_else(|| keys.wrong("pre", &format!("one of {}", known())))?;
    let merges = list(keys, "merges", "pairs of texts", |value| match value {
        Value::Text(text) => text.split_once(' ').map(|(left, right)| json!([left, right])),
        _ => None,
    })?;
    let split = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let json = json!({
        "normalizer": pre.composed.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": pre.expressions.iter().map(split).chain([bytes.clone()]).collect::<Vec<_>>(),
        },
        "decoder": bytes,
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": merges.ok_or_else(|| keys.wrong("merges", "pairs of texts"))?,
            "ignore_merges": pre.whole_words,
        },
    });
    Ok((json, pre.whole_words))
}

/// Pairs of characters, those whose token has the highest score first; what is no token is bytes.
fn scored(
    keys: &Keys, tokens: &[&str], vocabulary: Map<String, Json>, is: impl Fn(usize, Kind) -> bool,
) -> Result<(Json, bool), GgufError> {
    let scores = list(keys, "scores", "numbers", |value| match value {
        Value::Float(value) => Some(value),
        _ => None,
    })?;
    let scores = scores.filter(|scores| scores.len() == tokens.len());
    let scores = scores.ok_or_else(|| keys.wrong("scores", "an array with a number for each token"))?;
    let ids: BTreeMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    let merged =
        |id: &usize| [Kind::Unknown, Kind::Control, Kind::Byte].into_iter().all(|kind| !is(*id, kind));
    let mut merges = vec![];
    for (id, token) in tokens.iter().enumerate().filter(|(id, token)| merged(id) && token.len() <= LONGEST) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let Some((l, r)) = ids.get(left).zip(ids.get(right)).filter(|(l, r)| merged(l) && merged(r)) {
                merges.push((scores[id], left, right, [*l, *r]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())).then(a.3.cmp(&b.3)));
    let merges: Vec<Json> = merges.into_iter().map(|(_, left, right, _)| json!([left, right])).collect();
    let unknown = keys.token("unknown_token_id")?.map(|token| token as usize);
    let unknown = unknown.or_else(|| (0..tokens.len()).find(|&token| is(token, Kind::Unknown)));
    let prefix = keys.flag("add_space_prefix")?.unwrap_or(true);
    let replace =
        |from: char, to: char| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let prepend = prefix.then(|| json!({"type": "Prepend", "prepend": SPACE}));
    let strip = prefix.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let (bytes, fuse) = (json!({"type": "ByteFallback"}), json!({"type": "Fuse"}));
    let normalizers: Vec<Json> = prepend.into_iter().chain([replace(' ', SPACE)]).collect();
    let decoders: Vec<Json> = [replace(SPACE, ' '), bytes, fuse].into_iter().chain(strip).collect();
    let json = json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "vocab": vocabulary, "merges": merges, "byte_fallback": true, "fuse_unk": true,
            "unk_token": unknown.and_then(|token| tokens.get(token)),
        },
    });
    Ok((json, true))
}

/// Bytes of the longest token that is looked at for pairs: all ways to cut a longer one are too many in a damaged file.
const LONGEST: usize = 1 << 10;

/// The expressions that words are cut by; `None` if that is done in another way.
fn expressions(pre: &Json) -> Option<Vec<&str>> {
    let flag = |key: &str| pre.get(key).and_then(Json::as_bool);
    match pre.get("type")?.as_str()? {
        "Sequence" => {
            let parts = pre.get("pretokenizers")?.as_array()?.iter().map(expressions);
            Some(parts.collect::<Option<Vec<_>>>()?.concat())
        }
        "Digits" if flag("individual_digits") == Some(true) => Some(vec![DIGIT]),
        "ByteLevel" if flag("add_prefix_space") == Some(false) => {
            Some(if flag("use_regex").unwrap_or(true) { vec![GPT2] } else { vec![] })
        }
        "Split" if flag("invert") == Some(false) && pre.get("behavior")? == "Isolated" => {
            Some(vec![pre.pointer("/pattern/Regex")?.as_str()?])
        }
        _ => None,
    }
}

/// A `tokenizer.json` as metadata, for a network of so many tokens that ends texts with some; `None` if GGUF has no such tokenizer.
pub(super) fn metadata(json: &Json, vocabulary: usize, ends: &[u32]) -> Option<Vec<(String, Entry)>> {
    let model = json.get("model").filter(|model| model.get("type").is_none_or(|of| of == "BPE"))?;
    let id = |value: &Json| usize::try_from(value.as_u64()?).ok().filter(|&id| id < vocabulary);
    let (mut tokens, mut kinds) = (vec![], vec![Kind::Unused; vocabulary]);
    tokens.extend((0..vocabulary).map(|id| format!("[PAD{id}]")));
    let scored = model.get("byte_fallback").and_then(Json::as_bool) == Some(true);
    let is_byte = |token: &str| token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
    for (token, value) in model.get("vocab")?.as_object()? {
        let (kind, id) = (if scored && is_byte(token) { Kind::Byte } else { Kind::Normal }, id(value)?);
        (tokens[id], kinds[id]) = (token.clone(), kind);
    }
    for token in json.get("added_tokens")?.as_array()? {
        let special = token.get("special").and_then(Json::as_bool) == Some(true);
        let id = id(token.get("id")?)?;
        kinds[id] = if special { Kind::Control } else { Kind::UserDefined };
        tokens[id] = token.get("content")?.as_str()?.to_owned();
    }
    let mut entries = vec![];
    let mut add = |key: &str, entry| entries.push((format!("{PREFIX}.{key}"), entry));
    let pairs = model.get("merges")?.as_array()?.iter().map(|pair| match pair {
        Json::String(pair) => pair.split_once(' '),
        pair => Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
    });
    let pairs = pairs.collect::<Option<Vec<_>>>()?;
    if scored {
        if json.get("pre_tokenizer").is_some_and(|pre| !pre.is_null()) {
            return None;
        }
        let mut ranks = BTreeMap::new();
        pairs.iter().enumerate().for_each(|(rank, (left, right))| {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        });
        let score = |token: &String| ranks.get(token).map_or(LEAST, |&rank| -(rank as f32));
        let unknown = model.get("unk_token").and_then(Json::as_str);
        if let Some(id) = tokens.iter().position(|token| Some(token.as_str()) == unknown) {
            kinds[id] = Kind::Unknown;
            add("unknown_token_id", Entry::Size(id));
        }
        add("model", Entry::Text("llama".to_owned()));
        add("pre", Entry::Text("default".to_owned()));
        add("scores", Entry::Floats(tokens.iter().map(score).collect()));
        let prefix = json.get("normalizer").is_some_and(|of| of.to_string().contains("\"Prepend\""));
        add("add_space_prefix", Entry::Bool(prefix));
    } else {
        let found = expressions(json.get("pre_tokenizer")?)?;
        let composed = json.get("normalizer").is_some_and(|of| !of.is_null());
        let whole_words = model.get("ignore_merges").and_then(Json::as_bool) == Some(true);
        let pre = PRE_TOKENIZERS.iter().find(|pre| {
            pre.expressions == found && pre.composed == composed && pre.whole_words == whole_words
        })?;
        add("model", Entry::Text("gpt2".to_owned()));
        add("pre", Entry::Text(pre.names[0].to_owned()));
        let merges = pairs.iter().map(|(left, right)| format!("{left} {right}")).collect();
        add("merges", Entry::Texts(merges));
    }
    // The marks of a template, before and after the text.
    let template = json.get("post_processor").into_iter().flat_map(|processor| {
        let parts = processor.get("processors").and_then(Json::as_array);
        parts.map_or_else(|| vec![processor], |parts| parts.iter().collect())
    });
    let template = template.filter_map(|part| part.get("single")?.as_array()).next();
    let mark = |part: Option<&Json>| {
        let token = part?.pointer("/SpecialToken/id")?.as_str()?;
        tokens.iter().position(|found| found == token)
    };
    let first = template.and_then(|parts| mark(parts.first()));
    let last = template.and_then(|parts| mark(parts.last()));
    add("add_bos_token", Entry::Bool(first.is_some()));
    add("add_eos_token", Entry::Bool(last.is_some()));
    first.into_iter().for_each(|token| add("bos_token_id", Entry::Size(token)));
    let end = last.or_else(|| ends.first().map(|&token| token as usize)).filter(|&token| token < vocabulary);
    end.into_iter().for_each(|token| add("eos_token_id", Entry::Size(token)));
    if let Some(&other) = ends.get(1) {
        add("eot_token_id", Entry::Size(other as usize));
    }
    add("token_type", Entry::Integers(kinds.into_iter().map(|kind| kind as i32).collect()));
    add("tokens", Entry::Texts(tokens));
    Some(entries)
}

/// The score of tokens that no pair makes.
const LEAST: f32 = -1e9;

#[cfg(test)]
mod tests {
    use super::super::container::write;
    use super::*;
    use crate::text::Tokenizer;

    /// The metadata of a file as a tokenizer.
    fn tokenizer(metadata: &[(String, Entry)]) -> (Json, Tokenizer) {
        let bytes = write(metadata, &[]);
        let json = read(&File::parse(&bytes).expect("a file")).expect("a tokenizer").expect("one");
        let tokenizer =
            Tokenizer::from_json(json.to_string().as_bytes()).expect("the format of Hugging Face");
        (json, tokenizer)
    }

    #[test]
    fn scored_tokens_are_paired_by_their_scores() {
        let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
        tokens.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
        let pieces =
            [("bc", -1.0), ("▁a", -2.0), ("ab", -3.0), ("▁abc", -4.0), ("▁", -5.0), ("a", -6.0), ("b", -7.0)];
        let pieces = [&pieces[..], &[("c", -8.0)]].concat();
        let scores = vec![0.0; tokens.len()].into_iter().chain(pieces.iter().map(|piece| piece.1)).collect();
        let kinds = [2, 3, 3].into_iter().chain([6; 256]).chain([1; 8]).collect();
        tokens.extend(pieces.iter().map(|piece| piece.0.to_owned()));
        let entries = vec![
            ("tokenizer.ggml.model".to_owned(), Entry::Text("llama".to_owned())),
            ("tokenizer.ggml.tokens".to_owned(), Entry::Texts(tokens)),
            ("tokenizer.ggml.scores".to_owned(), Entry::Floats(scores)),
            ("tokenizer.ggml.token_type".to_owned(), Entry::Integers(kinds)),
            ("tokenizer.ggml.bos_token_id".to_owned(), Entry::Size(1)),
        ];
        let (json, first) = tokenizer(&entries);
        let text = "abc ab ä";
        // A mark; `bc` and `▁a` before `ab`; a character without a token is its bytes.
        let expected = [1, 262, 260, 265, 263, 3 + 0xc3, 3 + 0xa4];
        assert_eq!(first.encode(text, true).expect("tokens"), expected);
        assert_eq!(first.decode(&expected).expect("a text"), text);
        let (_, again) = tokenizer(&metadata(&json, 267, &[2]).expect("GGUF has it"));
        assert_eq!(again.encode(text, true).expect("tokens"), expected);
    }
}

//! [`ChatTemplate`]: conversations as the text that a model was trained on.

use super::TextError;
use crate::file::{Artifact, CHAT_TEMPLATE, TOKENIZER_CONFIG};
use jiff::ZonedDateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter};
use std::io::{self, Write};

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`, for example.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// What somebody says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A Jinja template that makes one text of a conversation, in the dialect of `transformers`: with Python's methods of strings and
/// dictionaries, `raise_exception`, `strftime_now`, `tojson`, `break` and `continue`.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

/// What a `tokenizer_config.json` says of chats.
#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "chat_template: expected a text, or a list of names and templates")]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "bos_token and eos_token: expected texts, or objects with `content`")]
enum SpecialToken {
    Text(String),
    Added { content: String },
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

/// Of several templates the one for conversations without tools or documents.
const DEFAULT: &str = "default";

/// Instructions and bytes that a template may take, as the engine counts them: far more than conversations need.
const FUEL: u64 = 1 << 22;

impl ChatTemplate {
    /// That of a `tokenizer_config.json`, or a `chat_template.jinja`, which goes before.
    ///
    /// # Errors
    /// Files that are none, and no template.
    pub fn new(tokenizer_config: Option<&[u8]>, template: Option<&[u8]>) -> Result<Self, TextError> {
        let wrong =
            |file: &str, error: &dyn std::fmt::Display| TextError::chat(format_args!("{file}: {error}"));
        let config = tokenizer_config.map_or(Ok(TokenizerConfig::default()), serde_json::from_slice);
        let TokenizerConfig { chat_template, bos_token, eos_token } =
            config.map_err(|error| wrong(TOKENIZER_CONFIG, &error))?;
        let source = match (template, chat_template) {
            (Some(bytes), _) => {
                String::from_utf8(bytes.to_vec()).map_err(|error| wrong(CHAT_TEMPLATE, &error))?
            }
            (None, Some(Templates::One(source))) => source,
            (None, Some(Templates::Named(all))) => {
                let names = all.iter().map(|named| named.name.as_str()).collect::<Vec<_>>().join(", ");
                let default = all.into_iter().find(|named| named.name == DEFAULT);
                let none = || {
                    wrong(
                        TOKENIZER_CONFIG,
                        &format_args!("templates named {names}: expected one named {DEFAULT}"),
                    )
                };
                default.ok_or_else(none)?.template
            }
            (None, None) => return Err(TextError::NoChatTemplate),
        };
        let text = |token: Option<SpecialToken>| token.map(SpecialToken::text);
        Ok(Self { source, bos_token: text(bos_token), eos_token: text(eos_token) })
    }

    /// That of a model.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn of(artifact: &Artifact) -> Result<Self, TextError> {
        Self::new(artifact.attachment(TOKENIZER_CONFIG)?, artifact.attachment(CHAT_TEMPLATE)?)
    }

    /// The text of a conversation, to be gone on with by the assistant. It has all special tokens that it needs: no others are to be
    /// added when it is encoded.
    ///
    /// # Errors
    /// A template that is none, or that refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<String, TextError> {
        let Self { source, bos_token, eos_token } = self;
        let conversation =
            context! { messages => Serde(messages), bos_token, eos_token, add_generation_prompt => true };
        let environment = environment().map_err(TextError::chat)?;
        let template = environment.template_from_named_str(CHAT_TEMPLATE, source);
        template.and_then(|template| template.render(conversation)).map_err(TextError::chat)
    }
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.add_function("raise_exception", |message: String| {
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = jiff::fmt::strtime::format(&format, &ZonedDateTime::now());
        now.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    });
    environment.add_filter("tojson", tojson);
    Ok(environment)
}

/// Python's `json.dumps` without escapes of what is not ASCII.
fn tojson(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent = arguments.get::<Option<usize>>("indent")?;
    let indent = indent.map(|spaces| " ".repeat(spaces.min(MAX_INDENT)));
    let mut json = vec![];
    let written = match &indent {
        Some(spaces) => write_json(value, &mut json, PrettyFormatter::with_indent(spaces.as_bytes())),
        None => write_json(value, &mut json, Spaced),
    };
    let wrong = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| wrong(error.to_string()))?;
    String::from_utf8(json).map_err(|error| wrong(error.to_string()))
}

const MAX_INDENT: usize = 16;

fn write_json(value: &Value, json: &mut Vec<u8>, formatter: impl Formatter) -> serde_json::Result<()> {
    value.serialize(&mut serde_json::Serializer::with_formatter(json, formatter))
}

/// With a space after commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.begin_array_value(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<Message> {
        vec![Message::new("system", "Be brief."), Message::new("user", "  Who are you? ")]
    }

    fn rendered(source: &str) -> Result<String, TextError> {
        let config = br#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}"#;
        ChatTemplate::new(Some(config), Some(source.as_bytes()))?.render(&conversation())
    }

    #[test]
    fn chatml() {
        let source = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
            {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
            message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}\
            {{ '<|im_start|>assistant\n' }}{% endif %}";
        let config = serde_json::json!({ "chat_template": source }).to_string();
        let template = ChatTemplate::new(Some(config.as_bytes()), None).expect("a template");
        assert_eq!(
            template.render(&conversation()).expect("a text"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who are you? <|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            template.render(&conversation()[1..]).expect("a text"),
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n  Who are you? <|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn what_templates_use() {
        for (source, expected) in [
            // In the manner of Llama 2 and 3.
            (
                "{%- if messages[0].role == 'system' %}\n    {%- set system = messages[0]['content'] %}\n    \
                 {%- set rest = messages[1:] %}\n{%- endif %}\n{{- bos_token + '[INST] <<SYS>>' + system + '<</SYS>> ' }}\n\
                 {%- for message in rest %}\n    {{- message.content | trim + ' [/INST]' }}\n{%- endfor %}\n",
                "<s>[INST] <<SYS>>Be brief.<</SYS>> Who are you? [/INST]",
            ),
            // In the manner of Qwen 3.
            (
                "{%- set ns = namespace(last=messages|length - 1, open=true) %}\
                 {%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}\
                 {%- if ns.open and message.role == \"user\" and message.content is string and \
                 not(message.content.startswith('<tool>')) %}{%- set ns.open = false %}{%- set ns.last = index %}\
                 {%- endif %}{%- endfor %}{{- ns.last }}{{- messages[1].content.split('are')[-1].lstrip('\n') }}",
                "1 you? ",
            ),
            ("{{ messages[1]['content'].strip() + eos_token }}", "Who are you?</s>"),
            (
                "{% for m in messages %}\n  {% if loop.last %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
                "user\n",
            ),
            (
                "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
                "system",
            ),
            ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('<&>') }}", "<&><&>"),
            ("{{ messages[0] | tojson }}", r#"{"role": "system", "content": "Be brief."}"#),
            (
                "{{ {'b': [1, 'ä<'], 'a': none} | tojson(ensure_ascii=False) }}",
                r#"{"b": [1, "ä<"], "a": null}"#,
            ),
            ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
            ("{{ tools is defined and tools is not none }}{{ unknown }}", "False"),
        ] {
            let text = rendered(source).unwrap_or_else(|error| panic!("{source}: {error}"));
            assert_eq!(text, expected, "{source}");
        }
        let date = rendered("{{ strftime_now('%d %b %Y') }}").expect("a date");
        assert_eq!(date.len(), "29 Nov 2026".len(), "{date}");
    }

    #[test]
    fn templates_that_fail_say_why() {
        for (source, reason) in [
            ("{% if %}", "chat_template.jinja:1"),
            ("a\n{{ raise_exception('Roles must alternate\nhere') }}", "Roles must alternate here"),
            ("{{ messages[0].content.shout() }}", "shout"),
            ("{{ strftime_now('%') }}", "strftime_now"),
            ("{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}", "fuel"),
            ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
            ("{{ 'a' * 99999999999 }}", "chat_template.jinja:1"),
        ] {
            let error = rendered(source).unwrap_err().to_string();
            assert!(error.starts_with("chat template: ") && error.contains(reason), "{source}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
        for (config, reason) in [
            ("{}", "the model has no chat template"),
            ("[", "tokenizer_config.json: EOF"),
            (r#"{"chat_template": 1}"#, "chat_template: expected a text"),
            (r#"{"bos_token": 1}"#, "bos_token and eos_token: expected texts"),
            (
                r#"{"chat_template": [{"name": "rag", "template": ""}]}"#,
                "templates named rag: expected one named default",
            ),
        ] {
            let error = ChatTemplate::new(Some(config.as_bytes()), None).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        assert!(ChatTemplate::new(None, None).is_err() && ChatTemplate::new(None, Some(b"\xff")).is_err());
        let named = r#"{"chat_template": [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]}"#;
        let named = ChatTemplate::new(Some(named.as_bytes()), None).expect("a template");
        assert_eq!(named.render(&[]).expect("a text"), "b");
    }
}

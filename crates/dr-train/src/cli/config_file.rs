//! `--config FILE.toml`: its keys are the names of flags, and its values are read as if they were given to the flags.

use super::usage;
use super::values::with_names;
use super::{CommandError, Settings};
use crate::experiment::Registry;
use clap::{Args, Command, FromArgMatches};
use std::fs;
use std::path::Path;
use toml::{Table, Value};

/// The settings in a file.
pub(super) fn read(registry: &Registry, path: &Path) -> Result<Settings, CommandError> {
    let in_file = |message: String| CommandError::new(format!("`{}`: {message}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| in_file(format!("cannot be read: {error}")))?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        let line = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        in_file(format!("{line}not TOML: {}", error.message()))
    })?;

    let command =
        Settings::augment_args(Command::new("settings").no_binary_name(true).disable_help_flag(true));
    let command = with_names(command, registry);
    let known: Vec<&str> = command
        .get_arguments()
        .flat_map(|argument| argument.get_long_and_visible_aliases().unwrap_or_default())
        .collect();
    let mut arguments = Vec::with_capacity(table.len());
    for (key, value) in &table {
        if !known.contains(&key.as_str()) {
            let expected = known.join(", ");
            return Err(in_file(format!("unknown key `{key}`: expected one of {expected}")));
        }
        let value = flag_value(value).ok_or_else(|| {
            in_file(format!(
                "{key} is of type {}: expected a text, a number, true or false, or a list",
                value.type_str()
            ))
        })?;
        arguments.push(format!("--{key}={value}"));
    }
    let matches = command.try_get_matches_from(arguments);
    matches.and_then(|matches| Settings::from_arg_matches(&matches)).map_err(|error| {
        let (message, hint) = usage::message_and_hint(&error);
        let error = in_file(message.trim_start_matches("--").to_owned());
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })
}

/// The text to give to a flag.
fn flag_value(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        Value::Array(values) => {
            let values: Option<Vec<String>> = values.iter().map(flag_value).collect();
            Some(values?.join(","))
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

//! Wrong usage in one line, instead of clap's paragraphs.

use super::{Cli, CommandError};
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::error::Error;
use std::ffi::OsStr;

/// The error for the terminal, of arguments of which this is the first.
pub(super) fn one_line(error: &clap::Error, first: Option<&OsStr>) -> CommandError {
    let (message, hint) = message_and_hint(error);
    let program = Cli::command();
    let command =
        program.get_subcommands().map(clap::Command::get_name).find(|name| first == Some(name.as_ref()));
    let help = || match command {
        Some(command) => format!("see `dr-train {command} --help`"),
        None => "see `dr-train --help`".to_owned(),
    };
    CommandError::new(message).with_hint(hint.unwrap_or_else(help))
}

/// What is wrong, and what to try if clap has an idea.
pub(super) fn message_and_hint(error: &clap::Error) -> (String, Option<String>) {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).map(|argument| flag(&argument)).unwrap_or_default();
    let value = text(ContextKind::InvalidValue).unwrap_or_default();
    let message = match error.kind() {
        ErrorKind::InvalidValue if value.is_empty() => match text(ContextKind::ValidValue) {
            Some(valid) if !valid.is_empty() => format!("{argument} has no value: expected one of {valid}"),
            _ => format!("{argument} has no value: expected one"),
        },
        ErrorKind::InvalidValue => {
            let valid = text(ContextKind::ValidValue).unwrap_or_default();
            format!("{argument}: unknown value `{value}`: expected one of {valid}")
        }
        ErrorKind::ValueValidation => match error.source() {
            Some(source) => format!("{argument}: {source}"),
            None => format!("{argument}: `{value}` is not a valid value"),
        },
        ErrorKind::UnknownArgument => format!("unknown argument `{argument}`"),
        ErrorKind::InvalidSubcommand => {
            let name = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let program = Cli::command();
            let commands: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
            format!("unknown command `{name}`: expected one of {}", commands.join(", "))
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = text(ContextKind::InvalidArg).unwrap_or_default();
            match missing.strip_prefix('<').and_then(|ways| ways.strip_suffix('>')) {
                Some(ways) if ways.contains('|') => format!("missing {}", ways.replace('|', " or ")),
                _ => format!("missing {missing}"),
            }
        }
        ErrorKind::ArgumentConflict => {
            let other = text(ContextKind::PriorArg).map(|prior| flag(&prior)).unwrap_or_default();
            if other.is_empty() || other == argument {
                format!("{argument} is given more than once")
            } else {
                format!("{argument} and {other} cannot be used together")
            }
        }
        _ => first_paragraph(&error.to_string()),
    };
    let suggestion =
        [ContextKind::SuggestedArg, ContextKind::SuggestedValue, ContextKind::SuggestedSubcommand]
            .into_iter()
            .find_map(text)
            .map(|suggestion| format!("did you mean `{}`?", flag(&suggestion)));
    (message, suggestion)
}

/// `--lr` of `--lr <RATE>`.
fn flag(argument: &str) -> String {
    match argument.split_once(' ') {
        Some((flag, rest)) if rest.starts_with(['<', '[']) => flag.to_owned(),
        _ => argument.to_owned(),
    }
}

fn first_paragraph(text: &str) -> String {
    let lines: Vec<&str> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let paragraph = lines.join(" ");
    paragraph.strip_prefix("error: ").map(str::to_owned).unwrap_or(paragraph)
}

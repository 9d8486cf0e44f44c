//! How the values of flags are parsed.

use crate::config::{DeviceKind, Place};
use crate::experiment::Registry;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Command};
use dr_precision::Precision;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::Path;
use std::str::FromStr;

/// One of a list of names.
pub(super) fn one_of<T>(all: &[T]) -> impl TypedValueParser<Value = T> + use<T>
where
    T: Display + FromStr<Err: Into<Box<dyn Error + Send + Sync>>> + Clone + Send + Sync + 'static,
{
    let names: Vec<String> = all.iter().map(ToString::to_string).collect();
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

/// A command and its subcommands, whose `MODEL`s, `DATASET`s and `TASK`s are names of the registry.
pub(super) fn with_names(command: Command, registry: &Registry) -> Command {
    let command = command.mut_args(|argument| {
        let value = argument.get_value_names().and_then(<[_]>::first).map(|name| name.as_str());
        match value {
            Some("MODEL|FILE") => argument.value_parser(NameOrFile::new(registry.models.all())),
            Some("MODEL") => argument.value_parser(PossibleValuesParser::new(registry.models.all())),
            Some("DATASET") => argument.value_parser(PossibleValuesParser::new(registry.datasets.all())),
            Some("TASK") => argument.value_parser(PossibleValuesParser::new(registry.tasks.all())),
            _ => argument,
        }
    });
    command.mut_subcommands(|command| with_names(command, registry))
}

/// Whether the name of a network is that of a file with one.
pub(super) fn is_model_file(name: &str) -> bool {
    let is = |end: &OsStr| ["onnx", "safetensors"].iter().any(|known| end.eq_ignore_ascii_case(known));
    Path::new(name).extension().is_some_and(is)
}

/// One of a list of names, or the path of a model file.
#[derive(Clone)]
struct NameOrFile(PossibleValuesParser);

impl NameOrFile {
    fn new(names: impl Into<PossibleValuesParser>) -> Self {
        Self(names.into())
    }
}

impl TypedValueParser for NameOrFile {
    type Value = String;

    fn parse_ref(
        &self, command: &Command, argument: Option<&Arg>, value: &OsStr,
    ) -> Result<String, clap::Error> {
        match value.to_str() {
            Some(name) if is_model_file(name) => Ok(name.to_owned()),
            _ => self.0.parse_ref(command, argument, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// The name of a kind of devices, or the address of a worker.
#[derive(Clone)]
pub(super) struct KindOrWorker(PossibleValuesParser);

impl Default for KindOrWorker {
    fn default() -> Self {
        Self(DeviceKind::ALL.iter().map(|kind| kind.name()).into())
    }
}

impl TypedValueParser for KindOrWorker {
    type Value = Place;

    fn parse_ref(
        &self, command: &Command, argument: Option<&Arg>, value: &OsStr,
    ) -> Result<Place, clap::Error> {
        let place = str::parse::<Place>;
        match value.to_str().filter(|text| text.contains(':')) {
            Some(_) => place.parse_ref(command, argument, value),
            None => self.0.clone().try_map(move |name| place(&name)).parse_ref(command, argument, value),
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// `on` or `off`.
pub(super) fn switch() -> impl TypedValueParser<Value = bool> {
    PossibleValuesParser::new(["on", "off"]).map(|text| text == "on")
}

/// An argument whose help says what is taken without it.
pub(super) fn or_default(argument: Arg, value: impl Display) -> Arg {
    let help = argument.get_help().cloned().unwrap_or_default();
    argument.help(format!("{help} [default: {value}]"))
}

/// A whole number.
pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}`: expected a whole number of at least 0"))
}

/// A whole number from 1 to `max`.
pub(super) fn at_least_one(max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    between(1, max)
}

/// A whole number from `min` to `max`.
pub(super) fn between(min: usize, max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("`{text}`: expected a whole number from {min} to {max}")),
    }
}

/// Bytes, in GiB.
pub(super) fn gibibytes(text: &str) -> Result<u64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1e6).contains(&number) => Ok((number * f64::from(1 << 30)) as u64),
        _ => Err(format!("`{text}`: expected a number from 0 to 1000000")),
    }
}

/// Weights that share a scale.
pub(super) fn group_size() -> impl Fn(&str) -> Result<NonZeroUsize, String> + Clone {
    let number = between(8, 1 << 20);
    move |text| number(text).map(|number| NonZeroUsize::MIN.saturating_add(number - 1))
}

/// A number above 0 and at most 1.
pub(super) fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && number <= 1.0 => Ok(number),
        _ => Err(format!("`{text}`: expected a number above 0 and at most 1")),
    }
}

/// A layer and its precision, `LAYER=PRECISION`.
pub(super) fn pin(text: &str) -> Result<(String, Precision), String> {
    let (layer, precision) = text
        .rsplit_once('=')
        .filter(|(layer, _)| !layer.is_empty())
        .ok_or_else(|| format!("`{text}`: expected LAYER=PRECISION, for example `stages.0.0.conv1=w8a8`"))?;
    let precision = precision.parse().map_err(|error| format!("`{text}`: {error}"))?;
    Ok((layer.to_owned(), precision))
}

/// A seed.
pub(super) fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}`: expected a whole number from 0 to 2^64 - 1"))
}

/// A number with or without decimals; its range is the configuration's business.
pub(super) fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("`{text}`: expected a number"))
}

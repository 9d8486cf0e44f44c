//! [`Devices`]: which devices train together.

use super::place::{REMOTE, WorkerAddress};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Which devices train together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Devices {
    /// All there are.
    All,
    /// Those with these numbers, counted from 0.
    Numbers(Vec<usize>),
    /// All that these workers serve.
    Workers(Vec<WorkerAddress>),
}

/// A text that names no devices.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "devices `{0}`: expected `all`, numbers such as `0,1`, or workers such as `remote:gpu1:3000,remote:gpu2:3000`, each once"
)]
pub struct DevicesError(pub String);

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.pad("all"),
            Self::Numbers(numbers) => f.pad(&list(numbers)),
            Self::Workers(addresses) => f.pad(&list(addresses)),
        }
    }
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The items of a list, each once.
fn items<T: FromStr + PartialEq>(text: &str) -> Option<Vec<T>> {
    let items: Vec<T> = text.split(',').map(|item| item.trim().parse().ok()).collect::<Option<_>>()?;
    let repeated = items.iter().enumerate().any(|(i, item)| items[..i].contains(item));
    (!repeated).then_some(items)
}

impl FromStr for Devices {
    type Err = DevicesError;

    fn from_str(text: &str) -> Result<Self, DevicesError> {
        let devices = match text {
            "all" => Some(Self::All),
            workers if workers.starts_with(REMOTE) => items(workers).map(Self::Workers),
            numbers => items(numbers).map(Self::Numbers),
        };
        devices.ok_or_else(|| DevicesError(text.to_owned()))
    }
}

dr_precision::serde_as_text!(Devices, DevicesError);

//! [`Devices`]: which devices of a kind train together.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Which devices of a kind train together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Devices {
    /// All there are.
    All,
    /// Those with these numbers, counted from 0.
    Numbers(Vec<usize>),
}

/// A text that names no devices.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("devices `{0}`: expected `all`, or numbers such as `0,1`, each once")]
pub struct DevicesError(pub String);

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.pad("all"),
            Self::Numbers(numbers) => {
                f.pad(&numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
        }
    }
}

impl FromStr for Devices {
    type Err = DevicesError;

    fn from_str(text: &str) -> Result<Self, DevicesError> {
        if text == "all" {
            return Ok(Self::All);
        }
        let wrong = || DevicesError(text.to_owned());
        let numbers = text.split(',').map(|number| number.trim().parse()).collect::<Result<Vec<usize>, _>>();
        let numbers = numbers.map_err(|_| wrong())?;
        let repeated = numbers.iter().enumerate().any(|(i, number)| numbers[..i].contains(number));
        if repeated { Err(wrong()) } else { Ok(Self::Numbers(numbers)) }
    }
}

dr_precision::serde_as_text!(Devices, DevicesError);

//! [`Place`]: where training computes.

use super::kinds::DeviceKind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// How the text of a [`WorkerAddress`] begins.
pub(super) const REMOTE: &str = "remote:";

/// Where a `dr-train worker` listens: `remote:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerAddress {
    /// The name or the number of its machine, an IPv6 number in brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A text that is no address of a worker.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}`: expected remote:HOST:PORT, for example remote:gpu1:3000")]
pub struct WorkerAddressError(pub String);

impl fmt::Display for WorkerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{REMOTE}{}:{}", self.host, self.port))
    }
}

impl FromStr for WorkerAddress {
    type Err = WorkerAddressError;

    fn from_str(text: &str) -> Result<Self, WorkerAddressError> {
        let wrong = || WorkerAddressError(text.to_owned());
        let (host, port) =
            text.strip_prefix(REMOTE).and_then(|rest| rest.rsplit_once(':')).ok_or_else(wrong)?;
        let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_host = match in_brackets {
            Some(number) => number.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.chars().all(named),
        };
        match port.parse() {
            Ok(port) if port > 0 && is_host => Ok(Self { host: host.to_owned(), port }),
            _ => Err(wrong()),
        }
    }
}

/// Where training computes: on devices of this machine, or of one where a worker serves them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// On devices of a kind, of this machine.
    Here(DeviceKind),
    /// On devices that a worker serves.
    Worker(WorkerAddress),
}

/// A text that is no place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PlaceError {
    /// It does not begin as the address of a worker.
    #[error(transparent)]
    Kind(#[from] dr_runtime::UnknownName),
    /// It does.
    #[error(transparent)]
    Worker(#[from] WorkerAddressError),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(kind) => kind.fmt(f),
            Self::Worker(address) => address.fmt(f),
        }
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        Ok(match text.starts_with(REMOTE) {
            true => Self::Worker(text.parse()?),
            false => Self::Here(text.parse()?),
        })
    }
}

dr_precision::serde_as_text!(Place, PlaceError);

//! Values that have a name in text, flags, files and messages.

use thiserror::Error;

/// A name that no value has.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("unknown {what} `{name}`: expected one of {}", expected.join(", "))]
pub struct UnknownName {
    /// What it was to be the name of: `dataset` for example.
    pub what: &'static str,
    /// The name.
    pub name: String,
    /// The names there are.
    pub expected: Vec<&'static str>,
}

/// An enum whose values have one name each, in text, flags, files and messages alike.
macro_rules! named {
    ($(#[$doc:meta])* $type:ident, $what:literal { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum $type {
            $($(#[$variant_doc])* #[serde(rename = $name)] $variant,)*
        }

        impl $type {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in flags, files and messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::config::UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let unknown = || {
                    let expected = Self::ALL.iter().map(|value| value.name()).collect();
                    $crate::config::UnknownName { what: $what, name: text.to_owned(), expected }
                };
                Self::ALL.iter().copied().find(|value| value.name() == text).ok_or_else(unknown)
            }
        }
    };
}

pub(super) use named;

/// Serde through `Display` and `FromStr`.
pub(super) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::{fmt::Display, str::FromStr};

    pub fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

//! [`ImageSize`]: rows and columns of images.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Rows and columns of images: as text `N` for both, or `HxW`; in files a number if both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct ImageSize {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// As it is in files.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Side(usize),
    Text(String),
}

/// A text that is no size of images.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("`{0}`: expected a whole number from 1 to {MOST}, or rows and columns such as 48x320")]
pub struct ImageSizeError(pub String);

/// Rows, and columns.
pub(super) const MOST: usize = 4096;

impl ImageSize {
    /// As many rows as columns.
    #[must_use]
    pub const fn square(side: usize) -> Self {
        Self { rows: side, columns: side }
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, columns } = self;
        if rows == columns { write!(f, "{rows}") } else { write!(f, "{rows}x{columns}") }
    }
}

impl FromStr for ImageSize {
    type Err = ImageSizeError;

    fn from_str(text: &str) -> Result<Self, ImageSizeError> {
        let (rows, columns) = text.split_once('x').unwrap_or((text, text));
        let side = |text: &str| text.parse().ok().filter(|side| (1..=MOST).contains(side));
        let size = side(rows).zip(side(columns)).map(|(rows, columns)| Self { rows, columns });
        size.ok_or_else(|| ImageSizeError(text.to_owned()))
    }
}

impl From<[usize; 2]> for ImageSize {
    fn from([rows, columns]: [usize; 2]) -> Self {
        Self { rows, columns }
    }
}

impl From<ImageSize> for [usize; 2] {
    fn from(size: ImageSize) -> Self {
        [size.rows, size.columns]
    }
}

impl From<ImageSize> for Written {
    fn from(size: ImageSize) -> Self {
        if size.rows == size.columns { Self::Side(size.rows) } else { Self::Text(size.to_string()) }
    }
}

impl TryFrom<Written> for ImageSize {
    type Error = ImageSizeError;

    fn try_from(written: Written) -> Result<Self, ImageSizeError> {
        match written {
            Written::Side(side) => Ok(Self::square(side)),
            Written::Text(text) => text.parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_rows_and_columns() {
        for (text, size, json) in
            [("64", [64, 64], "64"), ("48x320", [48, 320], "\"48x320\""), ("7x7", [7, 7], "7")]
        {
            let found: ImageSize = text.parse().unwrap();
            assert_eq!(found, size.into());
            assert_eq!(serde_json::to_string(&found).unwrap(), json);
            assert_eq!(serde_json::from_str::<ImageSize>(json).unwrap(), found);
            assert_eq!(found.to_string().parse(), Ok(found));
        }
        for wrong in ["", "0", "4097", "4x", "x4", "4x5x6", "-3", "4.5", "many"] {
            let error = wrong.parse::<ImageSize>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("`{wrong}`: expected a whole number from 1 to 4096")),
                "{error}"
            );
        }
        assert!(serde_json::from_str::<ImageSize>("\"4x\"").is_err());
    }
}

//! [`Changes`]: which random changes training images are seen with.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Which random changes training images are seen with; a list in flags and files, `crop,flip,rand:9` for example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Changes {
    /// Another part each time: of an image in memory, it shifted; of a picture in a file, a part of random size and shape.
    pub crop: bool,
    /// Left and right exchanged of every second image, on average.
    pub flip: bool,
    /// Brightness, contrast and saturation, each by up to 40 %.
    pub colour: bool,
    /// RandAugment (Cubuk et al., arXiv:1909.13719): two operations drawn from a list, each of this magnitude of at most
    /// [`Changes::LARGEST`].
    pub rand: Option<u8>,
}

impl Changes {
    /// The largest magnitude of RandAugment.
    pub const LARGEST: u8 = 30;

    /// The magnitude where none is said.
    const MAGNITUDE: u8 = 9;
}

/// A text that names no changes.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "changes `{0}`: expected `none`, or a list of crop, flip, colour and rand or rand:0 to rand:30, each once"
)]
pub struct ChangesError(pub String);

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = [("crop", self.crop), ("flip", self.flip), ("colour", self.colour)];
        let plain = plain.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned());
        let names: Vec<_> = plain.chain(self.rand.map(|magnitude| format!("rand:{magnitude}"))).collect();
        if names.is_empty() { f.pad("none") } else { f.pad(&names.join(",")) }
    }
}

impl FromStr for Changes {
    type Err = ChangesError;

    fn from_str(text: &str) -> Result<Self, ChangesError> {
        let wrong = || ChangesError(text.to_owned());
        let mut changes = Self::default();
        if text == "none" {
            return Ok(changes);
        }
        for name in text.split(',').map(str::trim) {
            let before = match name.split_once(':') {
                None if name == "crop" => std::mem::replace(&mut changes.crop, true),
                None if name == "flip" => std::mem::replace(&mut changes.flip, true),
                None if name == "colour" => std::mem::replace(&mut changes.colour, true),
                None if name == "rand" => changes.rand.replace(Self::MAGNITUDE).is_some(),
                Some(("rand", magnitude)) => {
                    let magnitude =
                        magnitude.parse().ok().filter(|&magnitude: &u8| magnitude <= Self::LARGEST);
                    changes.rand.replace(magnitude.ok_or_else(wrong)?).is_some()
                }
                _ => return Err(wrong()),
            };
            if before {
                return Err(wrong());
            }
        }
        Ok(changes)
    }
}

dr_precision::serde_as_text!(Changes, ChangesError);

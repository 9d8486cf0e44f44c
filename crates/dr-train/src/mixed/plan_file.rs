//! [`PlanFile`]: a plan as people read and write it.

use crate::files::{FileError, at, write_atomically};
use dr_precision::PrecisionPlan;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Far above what the plan of any network takes.
const MAX_BYTES: u64 = 1 << 24;

/// A plan and where it comes from. Only the layers are needed to use it:
///
/// ```toml
/// model = "resnet8"
/// budget = "avg-bits=4"
/// average-bits = 3.97
/// predicted-loss-increase = 0.0123
///
/// [layers]
/// stem = "w8a8"
/// "stages.0.0.conv1" = "w4a4"
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlanFile {
    /// The network it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The budget that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// Average bits of a weight; see [`BudgetKind::AverageBits`](super::BudgetKind::AverageBits).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average_bits: Option<f64>,
    /// The loss that the search predicts the plan to cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_loss_increase: Option<f64>,
    /// A precision for each layer.
    #[serde(rename = "layers")]
    pub plan: PrecisionPlan,
}

/// Why a plan cannot be read or written. Every message is one line.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The file cannot be read.
    #[error("`{}` cannot be read: {}", .0.path.display(), .0.source)]
    Read(FileError),
    /// The file cannot be written.
    #[error("`{}` cannot be written: {}", .0.path.display(), .0.source)]
    Write(FileError),
    /// What the file says is not a plan.
    #[error("`{}`: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<PlanError>,
    },
    /// Text that is not a plan.
    #[error(
        "line {line}: {message}; expected a plan: a table `[layers]` with lines like `\"stem\" = \"w8a8\"`"
    )]
    Toml {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A plan that cannot be put into TOML.
    #[error("the plan cannot be put into TOML: {0}")]
    Format(#[from] toml::ser::Error),
}

impl PlanFile {
    /// The plan in a text.
    ///
    /// # Errors
    /// [`PlanError::Toml`], which names the line.
    pub fn from_toml(text: &str) -> Result<Self, PlanError> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            PlanError::Toml { line, message }
        })
    }

    /// The content of the file.
    ///
    /// # Errors
    /// [`PlanError::Format`].
    pub fn to_toml(&self) -> Result<String, PlanError> {
        Ok(toml::to_string(self)?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or is not a plan; the message names the file and the line.
    pub fn load(path: &Path) -> Result<Self, PlanError> {
        let failed = |error| PlanError::Read(at(path)(error));
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(failed(io::Error::other(format!("expected a plan of at most {MAX_BYTES} bytes"))));
        }
        let in_file = |error| PlanError::InFile { path: path.to_owned(), error: Box::new(error) };
        Self::from_toml(&text).map_err(in_file)
    }

    /// Writes the file in one step, over an older one of that name.
    ///
    /// # Errors
    /// Those of [`PlanFile::to_toml`] and of the file system.
    pub fn save(&self, path: &Path) -> Result<(), PlanError> {
        let text = format!(
            "# A precision for each layer of a network, written by `dr-train search`.\n{}",
            self.to_toml()?
        );
        write_atomically(path, text.as_bytes()).map_err(at(path)).map_err(PlanError::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> PlanFile {
        let layer = |name: &str, precision: &str| (name.to_owned(), precision.parse().unwrap());
        PlanFile {
            model: Some("resnet8".to_owned()),
            budget: Some("avg-bits=4".to_owned()),
            average_bits: Some(3.97),
            predicted_loss_increase: Some(0.0123),
            plan: PrecisionPlan::new([layer("stem", "w8a8"), layer("stages.0.0.conv1", "w4a8")]).unwrap(),
        }
    }

    #[test]
    fn text() {
        let expected = "\
model = \"resnet8\"
budget = \"avg-bits=4\"
average-bits = 3.97
predicted-loss-increase = 0.0123

[layers]
stem = \"w8a8\"
\"stages.0.0.conv1\" = \"w4a8\"
";
        assert_eq!(example().to_toml().unwrap(), expected);
        assert_eq!(PlanFile::from_toml(expected).unwrap(), example());
        let layers = PlanFile::from_toml("[layers]\n\"b\" = \"w4a4\"\na = '2'").unwrap();
        assert_eq!(layers.plan.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(layers.model, None);
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.toml");
        example().save(&path).unwrap();
        assert_eq!(PlanFile::load(&path).unwrap(), example());
        let missing = PlanFile::load(&folder.path().join("other")).unwrap_err().to_string();
        assert!(missing.contains("other` cannot be read"), "{missing}");
        std::fs::write(&path, "[layers]\n\nstem = \"w9a9\"\n").unwrap();
        let wrong = PlanFile::load(&path).unwrap_err().to_string();
        assert!(wrong.contains("plan.toml`: line 3: precision `w9a9`"), "{wrong}");
    }

    #[test]
    fn wrong_texts() {
        for (text, line, part) in [
            ("", 1, "layers"),
            ("[layers]\nstem = 4", 2, "integer"),
            ("[layers]\nstem = \"w8a8\"\nstem = \"w4a4\"", 3, "duplicate key"),
            ("[layers]\nstages.0.conv1 = \"w8a8\"", 2, "map"),
            ("[layer]\nstem = \"w8a8\"", 1, "layer"),
            ("\n\n[layers", 3, ""),
        ] {
            match PlanFile::from_toml(text) {
                Err(PlanError::Toml { line: found, message }) => {
                    assert_eq!(found, line, "{text:?}: {message}");
                    assert!(message.contains(part) && !message.contains('\n'), "{text:?}: {message}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_plan_comes_back(layers in prop::collection::btree_map(".{0,8}", 2..=8u32, 0..6)) {
            let precision = |bits: u32| bits.to_string().parse().unwrap();
            let layers = layers.into_iter().rev().map(|(name, bits)| (name, precision(bits)));
            let file = PlanFile { plan: PrecisionPlan::new(layers).unwrap(), ..PlanFile::default() };
            prop_assert_eq!(PlanFile::from_toml(&file.to_toml().unwrap()).unwrap(), file);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", parts in prop::collection::vec(0..12usize, 0..12)) {
            let _ = PlanFile::from_toml(&text);
            let part = |i: usize| {
                ["[layers]", "\n", "stem", " = ", "\"w8a8\"", "\"w9a1\"", "model", "\"", "[[", "{", "'''", "0.5"][i]
            };
            let _ = PlanFile::from_toml(&parts.into_iter().map(part).collect::<String>());
        }
    }
}

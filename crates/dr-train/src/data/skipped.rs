//! [`Skipped`]: the files that could not be read.

use super::folder::FolderError;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The files that could not be read so far, and why. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Skipped(Arc<Mutex<BTreeMap<PathBuf, String>>>);

impl Skipped {
    /// Notes a file that cannot be read.
    pub(super) fn add(&self, path: &Path, reason: impl Display) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.entry(path.to_owned()).or_insert_with(|| reason.to_string());
    }

    /// All of them.
    #[must_use]
    pub fn files(&self) -> BTreeMap<PathBuf, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether one of the files that are looked for in `folder` can be read, which `reads` says of each; those before it cannot, and are noted.
    pub(super) fn check<E: Display>(
        &self, folder: impl Fn() -> PathBuf, reads: impl IntoIterator<Item = (PathBuf, Result<(), E>)>,
    ) -> Result<(), FolderError> {
        let (mut files, mut first) = (0, None);
        for (path, read) in reads {
            let Err(reason) = read else { return Ok(()) };
            files += 1;
            self.add(&path, &reason);
            first.get_or_insert_with(|| (path, reason.to_string()));
        }
        let folder = folder();
        match first {
            Some((path, reason)) => Err(FolderError::Unreadable { folder, files, path, reason }),
            None => Err(FolderError::Empty(folder)),
        }
    }
}

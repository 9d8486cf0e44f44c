//! [`Noted`]: what is noted of files of images while they are read.

use crate::note::note;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "program")]
use {super::folder::FolderError, std::fmt::Display, std::path::Path};

/// What is noted of files of images while they are read. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Noted(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    skipped: BTreeMap<PathBuf, String>,
    turned: BTreeSet<PathBuf>,
    /// Those of them of which that was not said.
    unsaid: Vec<PathBuf>,
}

impl Noted {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that could not be read so far, and why.
    #[must_use]
    pub fn skipped(&self) -> BTreeMap<PathBuf, String> {
        self.notes().skipped.clone()
    }

    /// The files so far whose images are turned as their EXIF says.
    #[must_use]
    pub fn turned(&self) -> BTreeSet<PathBuf> {
        self.notes().turned.clone()
    }

    /// Says how many images are turned, but for those of which that was said, and names one of them.
    pub(crate) fn tell_turned<'a>(of: impl IntoIterator<Item = &'a Self>) {
        let mut unsaid: Vec<PathBuf> =
            of.into_iter().flat_map(|noted| std::mem::take(&mut noted.notes().unsaid)).collect();
        unsaid.sort_unstable();
        if let Some(example) = unsaid.first() {
            let (count, example) = (unsaid.len(), example.display());
            note(format_args!("turned: {count} images, as their EXIF says, such as `{example}`"));
        }
    }
}

#[cfg(feature = "program")]
impl Noted {
    /// Notes a file that cannot be read.
    pub(super) fn skip(&self, path: &Path, reason: impl Display) {
        self.notes().skipped.entry(path.to_owned()).or_insert_with(|| reason.to_string());
    }

    /// Notes a file whose image is turned.
    pub(super) fn turn(&self, path: &Path) {
        let mut notes = self.notes();
        if !notes.turned.contains(path) {
            notes.turned.insert(path.to_owned());
            notes.unsaid.push(path.to_owned());
        }
    }

    /// Whether one of the files that are looked for in `folder` can be read, which `reads` says of each; those before it cannot, and are noted.
    pub(super) fn check<E: Display>(
        &self, folder: impl Fn() -> PathBuf, reads: impl IntoIterator<Item = (PathBuf, Result<(), E>)>,
    ) -> Result<(), FolderError> {
        let (mut files, mut first) = (0, None);
        for (path, read) in reads {
            let Err(reason) = read else { return Ok(()) };
            files += 1;
            self.skip(&path, &reason);
            first.get_or_insert_with(|| (path, reason.to_string()));
        }
        let folder = folder();
        match first {
            Some((path, reason)) => Err(FolderError::Unreadable { folder, files, path, reason }),
            None => Err(FolderError::Empty(folder)),
        }
    }
}

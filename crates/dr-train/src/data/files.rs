//! Finding and opening the files of a dataset.

use super::{error::DataError, error::FormatError};
use dr_runtime::refuse_lfs_pointer;
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// Training or test images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Those from which training and validation images are taken.
    Train,
    /// Those that only measure the result.
    Test,
}

/// Where the files of a dataset may be.
pub(super) struct Places {
    pub dataset: &'static str,
    /// In order of preference.
    pub directories: Vec<PathBuf>,
    /// How to get the files.
    pub hint: &'static str,
}

impl Places {
    /// The first file of one of these names.
    pub fn find(&self, names: &[String]) -> Result<PathBuf, DataError> {
        let (dataset, hint) = (self.dataset, self.hint);
        let file = names.join(" or ");
        if self.directories.is_empty() {
            return Err(DataError::NoDirectory { dataset, file, hint });
        }
        let candidates = self.directories.iter().flat_map(|dir| names.iter().map(move |name| dir.join(name)));
        candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            let searched: Vec<_> = self.directories.iter().map(|dir| dir.display().to_string()).collect();
            DataError::Missing { dataset, file, searched: searched.join(" or "), hint }
        })
    }
}

/// Parses a file's content, and names the file if that fails.
pub(super) fn parse<T>(
    path: &Path, parse: impl FnOnce(File) -> Result<T, FormatError>,
) -> Result<T, DataError> {
    let file = refuse_lfs_pointer(path).and_then(|()| File::open(path));
    file.map_err(FormatError::Io).and_then(parse).map_err(|error| error.in_file(path))
}

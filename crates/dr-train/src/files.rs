//! Writing files so that a reader, or a crash, only ever sees the old content or the new one.

use std::error::Error;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A file or folder that cannot be read or written.
#[derive(Debug, Error)]
#[error("`{}`: {source}", path.display())]
pub struct FileError {
    /// The file or folder.
    pub path: PathBuf,
    /// What is wrong.
    pub source: io::Error,
}

/// Names the file or folder that an error is about.
pub(crate) fn at(path: &Path) -> impl Fn(io::Error) -> FileError {
    move |source| FileError { path: path.into(), source }
}

/// How the names of files begin that are being written, and are left over if the program is killed.
pub(crate) const UNFINISHED: &str = ".writing-";

/// Removes what a killed program left half-written in a folder.
///
/// # Errors
/// Those of the file system.
pub(crate) fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What is wrong with a temporary file, without its name, which nobody asked for.
fn nameless(error: &(dyn Error + 'static)) -> io::Error {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let of_system = |error: &io::Error| match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    };
    let cause = causes.filter_map(<dyn Error>::downcast_ref::<io::Error>).last();
    cause.map_or_else(|| io::Error::other("cannot be written"), of_system)
}

/// A folder in which nobody else trains as long as this is there.
#[cfg(feature = "program")]
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

#[cfg(feature = "program")]
impl FolderLock {
    /// Takes a folder that exists.
    ///
    /// # Errors
    /// If somebody else has it, and those of the file system.
    pub fn take(folder: &Path) -> Result<Self, FileError> {
        use std::fs::TryLockError;
        let file = File::options().create(true).append(true).open(folder.join(".lock"));
        let file = file.map_err(at(folder))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let busy =
                    "another training writes to this folder: expected one of its own, or that the other ends";
                Err(at(folder)(io::Error::other(busy)))
            }
            // Where the file system has no locks, there is none.
            Err(TryLockError::Error(error)) if error.kind() != io::ErrorKind::Unsupported => {
                Err(at(folder)(error))
            }
            _ => Ok(Self { _file: file }),
        }
    }
}

/// Where a file is.
pub(crate) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file: writes a temporary file in the same folder, flushes it to the disk and renames it.
///
/// # Errors
/// Those of the file system. The old content, if there was one, is then still there.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The usual permissions (less the umask), not the private ones of temporary files.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let file = builder.tempfile_in(folder).map_err(|error| nameless(&error))?;
    file.as_file().write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| nameless(&error.error))?;
    // The rename itself is only durable once the folder is; where folders cannot be flushed, that is all there is.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

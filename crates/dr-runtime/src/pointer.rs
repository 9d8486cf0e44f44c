//! Files that Git LFS has not fetched.

use std::fs::{self, File};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// How a file begins that stands for another (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>).
const START: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Refuses a file that stands for another, which Git LFS has not fetched.
///
/// # Errors
/// If it is one, or cannot be read.
pub fn refuse_lfs_pointer(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    File::open(path)?.take(START.len() as u64).read_to_end(&mut start)?;
    refuse(&start)
}

/// The content of a file, which does not stand for another.
///
/// # Errors
/// If it does, or cannot be read.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path)?;
    refuse(&content)?;
    Ok(content)
}

/// Refuses what begins like a pointer.
fn refuse(content: &[u8]) -> Result<()> {
    match content.starts_with(START) {
        true => Err(Error::new(
            ErrorKind::InvalidData,
            "a pointer of Git LFS: expected the file itself, which `git lfs pull` fetches",
        )),
        false => Ok(()),
    }
}

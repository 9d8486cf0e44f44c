//! Arrays in files of NumPy: `.npy` with one, `.npz` with several under names.

use crate::arrays::Array;
use crate::refuse_lfs_pointer;
use ndarray::{ArrayD, IxDyn};
use ndarray_npy::{NpzReader, ReadNpyError, ReadNpyExt, ReadNpzError, WriteNpyError, WriteNpyExt};
use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::path::Path;
use thiserror::Error;

/// Why arrays cannot be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NpyError {
    /// The file.
    #[error("cannot be read: {0}")]
    Open(#[from] std::io::Error),
    /// Not an array, or of elements that no network takes.
    #[error("{0}: expected a .npy file of floats, integers or booleans")]
    Array(#[from] ReadNpyError),
    /// Not an archive of arrays.
    #[error("{0}: expected a .npz file of arrays")]
    Archive(#[from] ReadNpzError),
    /// Elements that no network takes.
    #[error(
        "elements of an unknown type: expected floats of 32 or 64 bits, integers of 8 to 64 bits or booleans"
    )]
    Elements,
    /// The result.
    #[error("cannot be written: {0}")]
    Write(#[from] WriteNpyError),
}

/// The arrays of a file, with their names if they have some.
///
/// # Errors
/// [`NpyError`] for a file that is none of NumPy's, or of other elements than floats, integers and booleans.
pub fn read(path: &Path) -> Result<Vec<(Option<String>, Array)>, NpyError> {
    let is_archive = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("npz"));
    refuse_lfs_pointer(path)?;
    let file = BufReader::new(File::open(path)?);
    if !is_archive {
        return Ok(vec![(None, read_one(file)?)]);
    }
    let mut archive = NpzReader::new(file)?;
    let names = archive.names()?;
    let mut arrays = vec![];
    for name in names {
        arrays.push((Some(name.trim_end_matches(".npy").to_owned()), from_archive(&mut archive, &name)?));
    }
    Ok(arrays)
}

/// Calls a function with each type of elements until one fits.
macro_rules! first_type {
    ($read:ident) => {{
        $read!(f32, |value| value, Array::F32);
        $read!(i64, |value| value, Array::I64);
        $read!(f64, |value| value as f32, Array::F32);
        $read!(i32, i64::from, Array::I64);
        $read!(u8, i64::from, Array::I64);
        $read!(bool, |value| value, Array::Bool);
        $read!(i8, i64::from, Array::I64);
        $read!(i16, i64::from, Array::I64);
        $read!(u16, i64::from, Array::I64);
        $read!(u32, i64::from, Array::I64);
        $read!(u64, |value: u64| value.cast_signed(), Array::I64);
        Err(NpyError::Elements)
    }};
}

fn read_one(mut file: impl Read + Seek) -> Result<Array, NpyError> {
    macro_rules! attempt {
        ($type:ty, $to:expr, $array:path) => {
            file.rewind()?;
            match ArrayD::<$type>::read_npy(&mut file) {
                Ok(values) => return Ok($array(values.mapv($to).into_shared())),
                Err(ReadNpyError::WrongDescriptor(_)) => {}
                Err(error) => return Err(error.into()),
            }
        };
    }
    first_type!(attempt)
}

fn from_archive<R: Read + Seek>(archive: &mut NpzReader<R>, name: &str) -> Result<Array, NpyError> {
    macro_rules! attempt {
        ($type:ty, $to:expr, $array:path) => {
            match archive.by_name::<ndarray::OwnedRepr<$type>, IxDyn>(name) {
                Ok(values) => return Ok($array(values.mapv($to).into_shared())),
                Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => {}
                Err(error) => return Err(error.into()),
            }
        };
    }
    first_type!(attempt)
}

/// Writes an array as `.npy`: floats of 32 bits, integers of 64, booleans.
///
/// # Errors
/// What the writer says.
pub fn write(array: &Array, out: impl Write) -> Result<(), NpyError> {
    match array {
        Array::F32(values) => values.write_npy(out)?,
        Array::I64(values) => values.write_npy(out)?,
        Array::Bool(values) => values.write_npy(out)?,
    }
    Ok(())
}

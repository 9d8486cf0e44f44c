//! Networks on arrays, compared: how near the outputs at each precision are to those of another network.

use crate::artifact::Artifact;
use crate::report::{Agreement, NumberFormat};
use dr_runtime::arrays::{Array, ArrayError};
use dr_runtime::npy::{self, NpyError};
use dr_runtime::{Arithmetic, Network, RuntimeError};
use std::path::{Path, PathBuf};
use std::{fs, io};
use thiserror::Error;

/// Why arrays cannot be read or compared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArraysError {
    /// The folder.
    #[error("`{}`: cannot be listed: {error}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
    /// Nothing in it.
    #[error("`{}`: has no arrays: expected .npy files", .0.display())]
    Empty(PathBuf),
    /// One of the files.
    #[error("`{}`: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: NpyError,
    },
    /// An input that a network does not take.
    #[error("`{}`: {error}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: RuntimeError,
    },
    /// The network.
    #[error(transparent)]
    Network(#[from] RuntimeError),
    /// Outputs of other sizes or elements.
    #[error("outputs {found:?} beside {expected:?}: expected networks whose outputs are alike")]
    Outputs {
        /// Sizes of one.
        found: Vec<usize>,
        /// Sizes of the other.
        expected: Vec<usize>,
    },
    /// Outputs that are no floats.
    #[error(transparent)]
    Array(#[from] ArrayError),
}

/// All `.npy` files below a folder, in the order of their paths.
///
/// # Errors
/// A folder that cannot be listed, or has none.
pub fn arrays_below(dir: &Path) -> Result<Vec<PathBuf>, ArraysError> {
    let (mut files, mut folders) = (vec![], vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        let wrong = |error| ArraysError::Folder { path: folder.clone(), error };
        for entry in fs::read_dir(&folder).map_err(wrong)? {
            let path = entry.map_err(wrong)?.path();
            // Links to folders may go in circles.
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end.eq_ignore_ascii_case("npy")) {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    if files.is_empty() { Err(ArraysError::Empty(dir.to_owned())) } else { Ok(files) }
}

/// The array of a `.npy` file.
///
/// # Errors
/// A file that is none.
pub fn read_array(path: &Path) -> Result<Array, ArraysError> {
    let wrong = |error| ArraysError::File { path: path.to_owned(), error };
    let mut arrays = npy::read(path).map_err(wrong)?;
    Ok(arrays.remove(0).1)
}

/// How near the outputs of a network at each of `formats` are to those of `reference` (in floats, or at its highest precision), in integers on this
/// computer's processor, for the inputs of files, each as `read` has it. The relative error is that of all outputs; the others look at the rows of the first one, along its last
/// axis: as probabilities if they are some, else as logits.
///
/// # Errors
/// Files that are no inputs of the networks, networks whose outputs differ in size.
pub fn compare_arrays<E: From<ArraysError>>(
    artifact: &Artifact, formats: &[NumberFormat], reference: &Artifact, files: &[PathBuf],
    read: impl Fn(&Path) -> Result<Array, E>,
) -> Result<Vec<Agreement>, E> {
    let highest = reference.description.precisions().map(|set| set.highest());
    let reference = Network::load_with(reference, highest, Arithmetic::Integer).map_err(ArraysError::from)?;
    let load = |format: &NumberFormat| {
        let precision = match format {
            NumberFormat::Quantized(precision) => Some(*precision),
            NumberFormat::Float | NumberFormat::Mixed => {
                artifact.description.precisions().map(|set| set.highest())
            }
        };
        Ok::<_, ArraysError>((
            Network::load_with(artifact, precision, Arithmetic::Integer)?,
            Tally::default(),
        ))
    };
    let mut networks = formats.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    for path in files {
        let input = [read(path)?];
        let run = |network: &Network| {
            network.forward_arrays(&input).map_err(|error| ArraysError::Input { path: path.clone(), error })
        };
        let expected = run(&reference)?;
        for (network, tally) in &mut networks {
            tally.add(&expected, &run(network)?)?;
        }
    }
    Ok(networks.into_iter().map(|(_, tally)| tally.agreement()).collect())
}

/// How near outputs are to others, of each input.
///
/// # Errors
/// Outputs that are not alike.
pub fn agreement(expected: &[Vec<Array>], found: &[Vec<Array>]) -> Result<Agreement, ArraysError> {
    let mut tally = Tally::default();
    expected.iter().zip(found).try_for_each(|(expected, found)| tally.add(expected, found))?;
    Ok(tally.agreement())
}

/// Outputs beside those of a reference.
#[derive(Default)]
struct Tally {
    divergences: Vec<f64>,
    /// Rows with the same place of the largest, of all and of those of which the reference is sure.
    same: [usize; 2],
    sure: usize,
    /// Sums of squares of the differences, and of the reference.
    squares: [f64; 2],
}

impl Tally {
    fn add(&mut self, expected: &[Array], found: &[Array]) -> Result<(), ArraysError> {
        for (at, (expected, found)) in expected.iter().zip(found).enumerate() {
            if expected.dims() != found.dims() {
                let (found, expected) = (found.dims().to_vec(), expected.dims().to_vec());
                return Err(ArraysError::Outputs { found, expected });
            }
            let classes = expected.dims().last().copied().unwrap_or(1).max(1);
            let (expected, found) = (expected.floats()?, found.floats()?);
            for (expected, found) in expected.iter().zip(found.iter()) {
                self.squares[0] += (f64::from(*found) - f64::from(*expected)).powi(2);
                self.squares[1] += f64::from(*expected).powi(2);
            }
            if at == 0 && classes > 1 {
                let rows = expected.chunks(classes).zip(found.chunks(classes));
                rows.for_each(|(expected, found)| self.row(expected, found));
            }
        }
        Ok(())
    }

    fn row(&mut self, expected: &[f32], found: &[f32]) {
        let is_distribution = distributed(expected) && distributed(found);
        let [p, q] = [expected, found].map(|row| logarithms(row, is_distribution));
        let terms = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q));
        self.divergences.push(terms.sum::<f64>().max(0.0));
        let largest = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        let first = largest(&p);
        let second = (0..p.len()).filter(|&at| Some(at) != first).map(|at| p[at]).fold(f64::MIN, f64::max);
        let is_sure = first.is_some_and(|at| p[at].exp() - second.exp() > SURE);
        let is_same = first == largest(&q);
        self.sure += usize::from(is_sure);
        self.same[0] += usize::from(is_same);
        self.same[1] += usize::from(is_same && is_sure);
    }

    fn agreement(mut self) -> Agreement {
        self.divergences.sort_unstable_by(f64::total_cmp);
        let rows = self.divergences.len();
        let percent = |part: usize, of: usize| 100.0 * part as f64 / of as f64;
        Agreement {
            divergence: self.divergences.iter().sum::<f64>() / rows as f64,
            divergence_99: self
                .divergences
                .get((rows * 99).div_ceil(100).saturating_sub(1))
                .copied()
                .unwrap_or(f64::NAN),
            same_top1: percent(self.same[0], rows),
            relative_error: (self.squares[0] / self.squares[1].max(f64::MIN_POSITIVE)).sqrt(),
            sure: self.sure,
            same_top1_sure: percent(self.same[1], self.sure),
        }
    }
}

/// By how much the most likely place is to be likelier than the next.
const SURE: f64 = 0.1;

/// Whether numbers are probabilities of all that there is.
fn distributed(row: &[f32]) -> bool {
    let sum: f64 = row.iter().map(|&p| f64::from(p)).sum();
    row.iter().all(|&p| p >= 0.0) && (sum - 1.0).abs() < 1e-2
}

/// Probabilities: a row that is some, or the softmax of logits.
#[must_use]
pub fn probabilities(row: &[f32]) -> Vec<f64> {
    match distributed(row) {
        true => row.iter().copied().map(f64::from).collect(),
        false => logarithms(row, false).into_iter().map(f64::exp).collect(),
    }
}

/// Logarithms of probabilities: of what are some, or of the softmax of logits.
fn logarithms(row: &[f32], is_distribution: bool) -> Vec<f64> {
    if is_distribution {
        return row.iter().map(|&p| f64::from(p).max(1e-30).ln()).collect();
    }
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = row.iter().map(|&logit| f64::from(logit) - f64::from(largest));
    let sum: f64 = shifted.clone().map(f64::exp).sum::<f64>().ln();
    shifted.map(|logit| logit - sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_probabilities_and_of_logits() {
        let floats = |values: &[f32]| Array::from_f32(values.to_vec(), &[1, values.len()]).unwrap();
        let logits = [floats(&[1.0, 2.0, 0.0]), floats(&[1.0, 2.5, 0.0])];
        let softmax = |array: &Array| {
            let row = logarithms(&array.floats().unwrap(), false);
            floats(&row.iter().map(|p| p.exp() as f32).collect::<Vec<_>>())
        };
        let mut of_logits = Tally::default();
        of_logits.add(&logits[..1], &logits[1..]).unwrap();
        let mut of_probabilities = Tally::default();
        of_probabilities.add(&[softmax(&logits[0])], &[softmax(&logits[1])]).unwrap();
        let [a, b] = [of_logits.agreement(), of_probabilities.agreement()];
        assert!(a.divergence > 0.0 && (a.divergence - b.divergence).abs() < 1e-6, "{a:?} {b:?}");
        assert_eq!((a.same_top1, a.sure, a.same_top1_sure), (100.0, 1, 100.0));
        assert!((a.relative_error - 0.5 / 5f64.sqrt()).abs() < 1e-6);
        assert!(Tally::default().add(&logits[..1], &[floats(&[1.0])]).is_err());
    }
}

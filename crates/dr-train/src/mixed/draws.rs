//! [`DrawLog`]: the mixtures of a training, drawn step by step and written to a file.

use super::Hasb;
use crate::files::{FileError, at};
use crate::training::Draws;
use dr_precision::Precision;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Draws the mixtures of each step, and writes them to a CSV file: a column for the step, counted from 0, one for each
/// layer with its precision, and a line for each mixture.
#[derive(Debug)]
pub struct DrawLog {
    hasb: Hasb,
    path: PathBuf,
    per_step: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    step: usize,
    file: Option<BufWriter<File>>,
}

impl DrawLog {
    /// `per_step` mixtures for each step, written to `path`.
    #[must_use]
    pub fn new(hasb: Hasb, path: &Path, per_step: usize) -> Self {
        Self { hasb, path: path.to_path_buf(), per_step, state: Mutex::default() }
    }

    /// The numbers of a step's draws.
    fn numbers(&self, step: usize) -> impl Iterator<Item = u64> {
        (0..self.per_step).map(move |draw| (step * self.per_step + draw) as u64)
    }

    fn write(&self, file: &mut impl Write, step: usize) -> std::io::Result<()> {
        for draw in self.numbers(step) {
            let precisions =
                self.hasb.draw(draw).iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            writeln!(file, "{step},{precisions}")?;
        }
        file.flush()
    }
}

impl Draws for DrawLog {
    /// What a run drew in its earlier steps is drawn again for the file.
    fn start(&self, step: usize) -> Result<(), FileError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || -> std::io::Result<BufWriter<File>> {
            let mut file = BufWriter::new(File::create(&self.path)?);
            let names: Vec<&str> = self.hasb.names().collect();
            writeln!(file, "step,{}", names.join(","))?;
            for earlier in 0..step {
                self.write(&mut file, earlier)?;
            }
            Ok(file)
        };
        let file = open().map_err(at(&self.path))?;
        *state = State { step, file: Some(file) };
        Ok(())
    }

    fn next(&self) -> Result<Vec<Vec<Precision>>, FileError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let step = state.step;
        state.step += 1;
        if let Some(file) = &mut state.file {
            self.write(file, step).map_err(at(&self.path))?;
        }
        Ok(self.numbers(step).map(|draw| self.hasb.draw(draw)).collect())
    }
}

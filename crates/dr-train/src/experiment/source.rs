//! [`Source`]: the data that a saved network learned from, looked at again.

use super::error::RunError;
use super::registry::Registry;
use super::said::tell_noted;
use super::settings::check_data_flags;
use super::task::TaskKind;
use crate::artifact::{Artifact, ArtifactError, Description};
use crate::data::{DATA_DIR, DataSource, Noted};
use crate::text::Tokenizer;
use burn::tensor::Device;
use std::cell::RefCell;
use std::error::Error;
use std::path::{Path, PathBuf};

/// A saved network, and which data are asked for.
pub struct Source<'a> {
    /// Where names are known.
    pub registry: &'a Registry,
    /// The network.
    pub artifact: &'a Artifact,
    /// Where it is.
    pub model: &'a Path,
    /// Another dataset than that of the network.
    pub dataset: Option<&'a str>,
    /// Where its files are.
    pub data_dir: Option<&'a Path>,
    /// A text to measure on, all of it.
    pub text: Option<&'a Path>,
    /// Images to measure on, whatever they show: the right class is the one that the model to compare with gives.
    pub images: Option<&'a Path>,
    /// A model to compare predictions with.
    pub reference: Option<&'a Artifact>,
    /// Positions of the pieces in which a text is measured, each of which is read on its own; without them 512, or as many as the context has.
    pub window: Option<usize>,
    /// So many tokens of the text at most are predicted.
    pub tokens: Option<usize>,
    /// So many images at most are calibrated with.
    pub calibration: usize,
    /// Only the first so many images, or characters, of those to learn from.
    pub limit: Option<usize>,
    /// Where it is computed.
    pub device: &'a Device,
    /// What is noted of the images that are read for it.
    noted: RefCell<Vec<Noted>>,
}

impl<'a> Source<'a> {
    /// The data of the network, or those that are asked for.
    #[must_use]
    pub fn new(
        registry: &'a Registry, artifact: &'a Artifact, model: &'a Path, dataset: &'a Option<String>,
        data_dir: &'a Option<PathBuf>, device: &'a Device,
    ) -> Self {
        let (dataset, data_dir) = (dataset.as_deref(), data_dir.as_deref());
        Self {
            registry,
            artifact,
            model,
            dataset,
            data_dir,
            text: None,
            images: None,
            window: None,
            tokens: None,
            reference: None,
            calibration: usize::MAX,
            limit: None,
            device,
            noted: RefCell::default(),
        }
    }

    /// Images are read, of which this is noted.
    pub(super) fn reads(&self, noted: Noted) {
        self.noted.borrow_mut().push(noted);
    }

    /// Says what was noted of them.
    pub(super) fn tell_noted(&self) {
        tell_noted(&self.noted.take());
    }

    /// What the network does.
    ///
    /// # Errors
    /// A task that the registry does not have, and data that are asked for and are not for it.
    pub fn task(&self) -> Result<&'static TaskKind, RunError> {
        let task = self.registry.tasks.get(&self.artifact.description.task);
        let task = task.map_err(ArtifactError::network)?;
        self.check(task)?;
        Ok(task)
    }

    /// Whether the data that are asked for are for the network, and whether they have a use for a folder.
    fn check(&self, task: &TaskKind) -> Result<(), RunError> {
        let Description { dataset: own, model, .. } = &self.artifact.description;
        let name = self.dataset.unwrap_or(own);
        let dataset = match self.registry.datasets.get(name) {
            Ok(dataset) => dataset,
            // Of another program: it may not be asked for.
            Err(_) if self.dataset.is_none() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if self.dataset.is_some() && !dataset.tasks().contains(&task.name) {
            let (dataset, model) = (name.to_owned(), model.clone());
            return Err(RunError::Task { task: task.name, dataset, model, expected: task.goes_with });
        }
        let given: Vec<&str> = self.data_dir.map(|_| DATA_DIR).into_iter().collect();
        check_data_flags(self.registry, dataset, Some(task.name), &given)
    }

    /// Images, as the network takes them.
    ///
    /// # Errors
    /// A dataset that the registry does not have, or that is not for the network.
    pub fn data(&self) -> Result<DataSource<'a>, RunError> {
        self.task()?;
        let Description { dataset, input, seed, .. } = &self.artifact.description;
        let dataset = self.registry.datasets.get(self.dataset.unwrap_or(dataset))?;
        Ok(DataSource {
            image_size: [input.height, input.width].into(),
            ..DataSource::new(dataset, self.data_dir, *seed)
        })
    }

    /// The network's tokenizer.
    ///
    /// # Errors
    /// If it has none that can be read.
    pub fn tokenizer(&self) -> Result<Tokenizer, RunError> {
        let json = self.artifact.tokenizer().map_err(|error| error.in_file(self.model))?;
        Ok(Tokenizer::from_json(json)?)
    }

    /// What is wrong, with the name of the model.
    pub fn wrong(&self, error: impl Error + Send + Sync + 'static) -> RunError {
        RunError::InModel { path: self.model.to_owned(), error: Box::new(error) }
    }
}

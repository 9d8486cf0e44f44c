//! [`TextTask`]: the next token of a text is predicted.

use super::error::RunError;
use super::registry::Registry;
use super::source::Source;
use super::task::{Answer, Evaluation, Part, Task};
use crate::artifact::{Artifact, Described, Description, InputShape, TOKENIZER, TensorEntry};
use crate::config::task::LANGUAGE;
use crate::config::{Engine, TrainConfig};
use crate::evaluation::{EvaluationError, check_tokens, measure_text, text_batch};
use crate::models::{ModelKind, Sizes};
use crate::nn::Model;
use crate::report::{Measured, NumberFormat, Report};
use crate::text::{self, TextError, TextLoader, TextSplits, Tokenizer};
use crate::weights::load_language_model;
use burn::data::dataloader::DataLoader;
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor};
use std::sync::Arc;

/// Tokens of a piece of a text that is measured, if the context has as many.
const WINDOW: usize = 512;

/// Tokens of the training text that scales of activations are fitted to.
const CALIBRATION_TOKENS: usize = 1 << 12;

/// A text, whose next token a network learns.
#[derive(Clone)]
pub struct TextTask {
    /// By [`Part`].
    parts: [Arc<[u32]>; 3],
    tokenizer: Tokenizer,
    model: &'static dyn ModelKind,
    sizes: Sizes<'static>,
    /// Tokens of a piece of the text.
    length: usize,
    /// What training starts from.
    imported: Option<Artifact>,
}

impl Task for TextTask {
    type Input = Tensor<2, Int>;
    type Target = Tensor<1, Int>;
    type Loader = TextLoader;

    const NAME: &'static str = LANGUAGE;
    const GOES_WITH: &'static str = "--dataset text and --model llama";
    const ITEMS: &'static str = "pieces of text";
    const FLAGS: Option<&'static [&'static str]> = Some(&["vocabulary", "hidden", "layers", "context"]);

    fn load(registry: &Registry, config: &TrainConfig) -> Result<Self, RunError> {
        let text = text::read(config.data_dir.as_deref())?;
        let TextSplits { train, valid, test } = text::split(&text, config.limit_train);
        let language = &config.language;
        let imported = match &config.weights {
            Some(path) => Some(load_language_model(path, config.precisions.clone())?),
            None => None,
        };
        let tokenizer = match &imported {
            Some(artifact) => Tokenizer::from_json(artifact.tokenizer()?)?,
            None => Tokenizer::train(&train, language.vocabulary)?,
        };
        let sizes = match &imported {
            Some(artifact) => {
                let Description { input, classes, width, .. } = artifact.description;
                Sizes { task: LANGUAGE, input, classes, width, layers: 0 }
            }
            None => Sizes {
                task: LANGUAGE,
                input: InputShape { channels: 1, height: 1, width: language.context },
                classes: tokenizer.vocabulary(),
                width: language.hidden,
                layers: language.layers,
            },
        };
        let tokens = |text: &str| Ok::<_, RunError>(tokenizer.encode_for(sizes.classes, text)?.into());
        let parts = [tokens(&train)?, tokens(&valid)?, tokens(&test)?];
        let (length, model) = (language.context.min(sizes.input.width), registry.models.get(&config.model)?);
        let task = Self { parts, tokenizer, model, sizes, length, imported };
        // Too short a text is found now, before anything is written.
        let device = Device::flex();
        task.training(config, config.batch_size, &device)?;
        [Part::Valid, Part::Test]
            .into_iter()
            .try_for_each(|part| task.evaluation(part, 1, &device).map(drop))?;
        Ok(task)
    }

    fn imported(&self, _: &TrainConfig) -> Result<Option<Artifact>, RunError> {
        Ok(self.imported.clone())
    }

    fn init(&self, config: &TrainConfig, device: &Device) -> Result<Model, RunError> {
        Ok(self.model.init(&self.sizes, config.seed, device)?)
    }

    fn description(&self, config: &TrainConfig) -> Description {
        let Sizes { task, input, classes, width, .. } = self.sizes;
        let language = match &self.imported {
            Some(artifact) => artifact.description.language.clone(),
            None => self.model.language(&self.sizes),
        };
        let network =
            Description::new(&config.dataset, self.model, input, classes, config.precisions.clone());
        Description { task: task.to_string(), width, language, ..network }
    }

    fn attachments(&self) -> Vec<(String, TensorEntry)> {
        match &self.imported {
            Some(artifact) => artifact.attachments().collect(),
            None => vec![(TOKENIZER.to_owned(), TensorEntry::bytes(self.tokenizer.json().to_vec()))],
        }
    }

    fn check(&self, artifact: &Artifact) -> Result<(), EvaluationError> {
        check_tokens(artifact, &self.tokenizer)
    }

    fn training(
        &self, config: &TrainConfig, batch_size: usize, device: &Device,
    ) -> Result<TextLoader, RunError> {
        let (tokens, device) = (self.parts[0].clone(), device.clone());
        Ok(TextLoader::training(tokens, self.length, batch_size, config.seed, device)?)
    }

    fn evaluation(
        &self, part: Part, batch_size: usize, device: &Device,
    ) -> Result<Evaluation<Self>, RunError> {
        let tokens = self.parts[part as usize].clone();
        let batch_size = batch_size.min(text_batch(self.sizes.classes, self.length));
        let loader = TextLoader::evaluation(tokens, self.length, batch_size, device.clone())?;
        Ok(Arc::new(loader))
    }

    fn calibration(&self, device: &Device) -> Result<Vec<Tensor<2, Int>>, DatasetError> {
        calibration_tokens(&self.parts[0], self.length, device)
            .map_err(|error| DatasetError::new(std::io::Error::other(error)))
    }

    fn measure(
        &self, artifact: &Artifact, formats: &[NumberFormat], device: &Device,
    ) -> Result<Vec<Measured>, EvaluationError> {
        measure_text(artifact, formats, &self.parts[2], self.length, Engine::Fake, None, device)
    }

    /// Tokens.
    fn test_items(&self) -> usize {
        self.parts[2].len().saturating_sub(1)
    }

    fn measure_saved(source: &Source, formats: &[NumberFormat], engine: Engine) -> Result<Answer, RunError> {
        let text = match source.text {
            Some(path) => text::read(Some(path))?,
            None => text::split(&text::read(source.data_dir)?, None).test,
        };
        let vocabulary = source.artifact.description.classes;
        let mut tokens = source.tokenizer()?.encode_for(vocabulary, &text)?;
        // The first one is not predicted.
        tokens.truncate(source.tokens.unwrap_or(usize::MAX).saturating_add(1));
        let tokens: Arc<[u32]> = tokens.into();
        let Source { artifact, reference, device, .. } = *source;
        let window = source.window.unwrap_or(WINDOW.min(artifact.description.context()));
        let measured = measure_text(artifact, formats, &tokens, window, engine, reference, device);
        Ok((measured.map_err(|error| source.wrong(error))?, [tokens.len().saturating_sub(1), 0]))
    }

    fn batches(source: &Source, batch_size: usize) -> Result<(Evaluation<Self>, usize), RunError> {
        let Description { input, classes, .. } = source.artifact.description;
        let mut tokens = training_tokens(source)?;
        let length = input.width.min(tokens.len().saturating_sub(1)).max(1);
        let pieces = tokens.len().saturating_sub(1) / length;
        let batch_size = batch_size.min(text_batch(classes, length)).min(pieces.max(1));
        let pieces = pieces - pieces % batch_size;
        tokens.truncate(pieces * length + 1);
        let loader = TextLoader::evaluation(tokens, length, batch_size, source.device.clone())?;
        Ok((Arc::new(loader), pieces))
    }

    fn calibration_saved(source: &Source) -> Result<Vec<Tensor<2, Int>>, RunError> {
        let length = source.artifact.description.input.width;
        Ok(calibration_tokens(&training_tokens(source)?, length, source.device)?)
    }

    fn table(report: &Report) -> String {
        report.perplexities()
    }
}

fn training_tokens(source: &Source) -> Result<Vec<u32>, RunError> {
    let tokenizer = source.tokenizer()?;
    let text = text::split(&text::read(source.data_dir)?, source.limit).train;
    Ok(tokenizer.encode_for(source.artifact.description.classes, &text)?)
}

/// The first tokens of a text, in pieces of at most `length`, to fit the activations' scales to.
///
/// # Errors
/// A text of less than two tokens.
pub fn calibration_tokens(
    tokens: &[u32], length: usize, device: &Device,
) -> Result<Vec<Tensor<2, Int>>, TextError> {
    let length = length.clamp(1, CALIBRATION_TOKENS);
    let pieces = CALIBRATION_TOKENS.div_ceil(length);
    let loader = TextLoader::evaluation(tokens, length, 1, device.clone())?;
    Ok(loader.iter().take(pieces).filter_map(|batch| Some(batch.ok()?.input)).collect())
}

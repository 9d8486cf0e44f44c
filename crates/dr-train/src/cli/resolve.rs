//! From arguments to a checked configuration. Nothing is written here.

use super::{CommandError, Settings, TrainArgs, config_file};
use crate::config::{BatchNormKind, Batches, Distill, Rates, TrainConfig};
use crate::experiment::{CONFIG, Registry, check_flags};
use crate::files::folder_of;
use crate::report::Report;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

/// What is learned if nothing else is asked for: it needs no files.
const DEFAULT_DATASET: &str = "digits";

/// What `dr-train train` does.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedTraining {
    /// The settings; in range.
    pub config: TrainConfig,
    /// The folder for the results: one that exists, or one that can.
    pub out: PathBuf,
    /// Go on with the run in that folder.
    pub resume: bool,
}

impl TrainArgs {
    /// The settings: flags over the file, over the run that is resumed or else the defaults for the dataset.
    ///
    /// # Errors
    /// If a file cannot be read, a setting is out of range or contradicts the run that is resumed, or `--out` cannot be
    /// a folder.
    pub fn resolve(&self, registry: &Registry) -> Result<ResolvedTraining, CommandError> {
        let file = self.file(registry)?;
        let layers = [&file, &self.settings];
        let resume = last(layers, |settings| settings.resume.clone());
        let mut config = match &resume {
            Some(folder) => resumed_config(folder)?,
            None => {
                let dataset = last(layers, |settings| settings.dataset.clone());
                registry.datasets.get(dataset.as_deref().unwrap_or(DEFAULT_DATASET))?.settings()
            }
        };
        let before = config.clone();
        for settings in layers {
            settings.apply(&mut config);
        }
        // Rates of another optimizer, or for random weights, are of no use.
        if config.optimizer != before.optimizer || config.weights.is_some() != before.weights.is_some() {
            let usual = Rates::usual(config.optimizer, config.weights.is_some());
            config.lr = last(layers, |settings| settings.lr).unwrap_or(usual.lr);
            config.joint_lr = last(layers, |settings| settings.joint_lr).unwrap_or(usual.joint_lr);
            config.scale_lr = last(layers, |settings| settings.scale_lr).unwrap_or(usual.scale_lr);
        }
        if let Some(folder) = &resume {
            check_same_run(folder, &before, &config)?;
        }
        if last(layers, |settings| settings.token_file.clone()).is_some() && config.workers().is_empty() {
            let message = "--token-file: devices of this machine have no use for it: expected --device or --devices remote:HOST:PORT";
            return Err(CommandError::new(message));
        }
        config.check().map_err(|error| CommandError::new(error.to_string()))?;
        check_mixed(&config)?;
        check_flags(registry, &config, &layers.map(Settings::given).concat())?;
        if config.distill == Distill::Highest {
            match last(layers, |settings| settings.batches) {
                Some(Batches::Separate) => return Err(one_batch()),
                _ => config.batches = Batches::Same,
            }
        }

        let out = last(layers, |settings| settings.out.clone());
        let out = match (out, &resume) {
            (Some(out), Some(folder)) if !same_folder(&out, folder) => {
                let (out, folder) = (out.display(), folder.display());
                let message = format!(
                    "--out `{out}`: a run goes on in its own folder, `{folder}`: expected that or none"
                );
                return Err(CommandError::new(message));
            }
            (_, Some(folder)) => folder.clone(),
            (Some(out), None) => unused(out)?,
            (None, None) => default_folder(&config)?,
        };
        check_output_folder(&out)?;
        Ok(ResolvedTraining { config, out, resume: resume.is_some() })
    }

    /// The settings of the file, if there is one.
    pub(super) fn file(&self, registry: &Registry) -> Result<Settings, CommandError> {
        self.config
            .as_deref()
            .map_or_else(|| Ok(Settings::default()), |path| config_file::read(registry, path))
    }
}

fn same_folder(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn holds_run(folder: &Path) -> bool {
    folder.join(CONFIG).symlink_metadata().is_ok()
}

/// The folder, if no run is in it.
fn unused(out: PathBuf) -> Result<PathBuf, CommandError> {
    if !holds_run(&out) {
        return Ok(out);
    }
    let out = out.display();
    Err(CommandError::new(format!("--out `{out}`: holds a run already: expected a folder without one"))
        .with_hint(format!("`--resume {out}` goes on with it")))
}

/// The folder named after dataset and model, with a number after it where finished runs are.
fn default_folder(config: &TrainConfig) -> Result<PathBuf, CommandError> {
    let name = format!("runs/{}-{}", config.dataset, config.model);
    let mut folder = PathBuf::from(&name);
    let mut number = 1u32;
    while holds_run(&folder) {
        if Report::load(&folder).is_err() {
            let folder = folder.display();
            return Err(CommandError::new(format!(
                "`{folder}`: holds a run that is not finished: expected --resume, or --out with another folder"
            ))
            .with_hint(format!("`--resume {folder}` goes on with it")));
        }
        number += 1;
        folder = PathBuf::from(format!("{name}-{number}"));
    }
    Ok(folder)
}

/// What the last of the layers that says anything says.
pub(super) fn last<T>(layers: [&Settings; 2], get: impl Fn(&Settings) -> Option<T>) -> Option<T> {
    layers.into_iter().rev().find_map(get)
}

/// The settings of the run in a folder.
fn resumed_config(folder: &Path) -> Result<TrainConfig, CommandError> {
    let path = folder.join(CONFIG);
    let hint = "expected the folder of an earlier run, such as `runs/digits-resnet8`";
    let text = fs::read_to_string(&path).map_err(|error| {
        CommandError::new(format!("--resume `{}`: cannot read its config.json: {error}", folder.display()))
            .with_hint(hint)
    })?;
    serde_json::from_str(&text).map_err(|error| {
        CommandError::about(&path, format_args!("not the settings of a run: {error}")).with_hint(hint)
    })
}

/// What decides the network and its data stays as it was.
fn check_same_run(folder: &Path, run: &TrainConfig, asked: &TrainConfig) -> Result<(), CommandError> {
    let check = |name: &str, run: &dyn Display, asked: &dyn Display| {
        let (run, asked) = (run.to_string(), asked.to_string());
        if run == asked {
            return Ok(());
        }
        let folder = folder.display();
        Err(CommandError::new(format!(
            "--{name} {asked}: the run in `{folder}` has {run}, which cannot change"
        ))
        .with_hint("leave the flag out to go on, or leave --resume out to start anew"))
    };
    check("dataset", &run.dataset, &asked.dataset)?;
    check("model", &run.model, &asked.model)?;
    check("precisions", &run.precisions, &asked.precisions)?;
    check("batch-norm", &run.batch_norm, &asked.batch_norm)?;
    check("mixed", &on_off(run.mixed), &on_off(asked.mixed))?;
    check("draws", &run.draws, &asked.draws)?;
    check("sampling", &run.sampling, &asked.sampling)?;
    check("widths", &run.widths, &asked.widths)?;
    check("mixed-norm", &run.mixed_norm, &asked.mixed_norm)?;
    check("ema", &run.ema, &asked.ema)?;
    check("seed", &run.seed, &asked.seed)
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn one_batch() -> CommandError {
    let message = "--batches separate with --distill highest: expected same";
    CommandError::new(message)
        .with_hint("the lower precisions learn from what the highest says of the same images")
}

/// What mixed training cannot be combined with.
fn check_mixed(config: &TrainConfig) -> Result<(), CommandError> {
    if !config.mixed {
        return Ok(());
    }
    if config.precisions.len() < 2 {
        let precisions = &config.precisions;
        return Err(CommandError::new(format!("--mixed with {precisions}: expected two precisions or more")));
    }
    if config.batch_norm != BatchNormKind::PerPrecision {
        return Err(CommandError::new("--mixed with --batch-norm shared: expected per-precision"));
    }
    Ok(())
}

/// The folder, or the nearest of its parents that exists, must be a folder.
pub(super) fn check_output_folder(out: &Path) -> Result<(), CommandError> {
    let Some(nearest) = out.ancestors().find(|path| path.symlink_metadata().is_ok()) else {
        return Ok(());
    };
    if nearest.is_dir() {
        return Ok(());
    }
    let nearest = nearest.display();
    Err(CommandError::new(format!("--out `{}`: `{nearest}` is not a folder: expected one", out.display())))
}

/// Files that flags name to write to, each as [`check_output_file`] says, and no two the same.
pub(super) fn check_output_files(
    files: [(&str, Option<&Path>, &[&str]); 2], input: &Path,
) -> Result<(), CommandError> {
    for (flag, file, endings) in files {
        file.map_or(Ok(()), |file| check_output_file(flag, file, endings, input))?;
    }
    match files {
        [(a, Some(file), _), (b, Some(other), _)] if same_output(file, other) => Err(CommandError::new(
            format!("--{b} `{}`: is also the --{a}: expected another file", other.display()),
        )),
        _ => Ok(()),
    }
}

/// Whether two files that may not exist yet, in folders that do, are one.
pub(super) fn same_output(a: &Path, b: &Path) -> bool {
    a == b || (a.file_name() == b.file_name() && same_folder(folder_of(a), folder_of(b)))
}

/// A file to write: not a folder, in a folder that exists, not the file that is read, and with an ending that does not promise another format.
pub(super) fn check_output_file(
    flag: &str, out: &Path, endings: &[&str], input: &Path,
) -> Result<(), CommandError> {
    let wrong = |what: &str| Err(CommandError::new(format!("--{flag} `{}`: {what}", out.display())));
    if out.is_dir() {
        return wrong("is a folder: expected the name of a file");
    }
    if out.file_name().is_none() || !folder_of(out).is_dir() {
        return wrong("its folder does not exist: expected a file in a folder that does");
    }
    if let (Ok(out_file), Ok(in_file)) = (out.canonicalize(), input.canonicalize())
        && out_file == in_file
    {
        return wrong("is also the --model: expected another file");
    }
    if out.extension().is_none() || endings.iter().any(|ending| has_extension(out, ending)) {
        return Ok(());
    }
    let one = if endings.len() > 1 { "one of " } else { "" };
    let endings = endings.iter().map(|ending| format!(".{ending}")).collect::<Vec<_>>().join(", ");
    wrong(&format!("expected a name that ends in {one}{endings}"))
}

/// Whether the name of a file ends so, in large or small letters.
pub(super) fn has_extension(path: &Path, expected: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(expected))
}

/// The ending of model files.
pub(super) const SAFETENSORS: &str = "safetensors";

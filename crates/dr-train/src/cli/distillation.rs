//! From the arguments of `dr-train train` to the training of a network in a file. Nothing is written here.

use super::resolve::{check_output_folder, last};
use super::values::is_model_file;
use super::{CommandError, Settings, TrainArgs};
use crate::config::{DeviceKind, Distill, Place};
use crate::experiment::{CONFIG, MODEL_FILE, Registry};
use crate::quantization::DistillationOptions;
use dr_precision::PrecisionSet;
use std::path::{Path, PathBuf};

/// What `dr-train train --distill` does with a network in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedDistillation {
    /// The float network.
    pub model: PathBuf,
    /// The folder of inputs.
    pub inputs: PathBuf,
    /// At most so many of them.
    pub limit: Option<usize>,
    /// The precisions that the result has.
    pub precisions: PrecisionSet,
    /// The first and the last layer switch like all others.
    pub switch_edge: bool,
    /// How it is trained.
    pub options: DistillationOptions,
    /// Where to compute.
    pub device: DeviceKind,
    /// The folder for the result: one that exists, or one that can.
    pub out: PathBuf,
}

impl TrainArgs {
    /// The training of a network in a file, if that is what is asked for.
    ///
    /// # Errors
    /// If a file cannot be read, a setting is missing, out of range or not for this, or `--out` cannot be a folder.
    pub fn distillation(&self, registry: &Registry) -> Result<Option<ResolvedDistillation>, CommandError> {
        let file = self.file(registry)?;
        let layers = [&file, &self.settings];
        let model = last(layers, |settings| settings.model.clone());
        let Some(model) = model.filter(|name| is_model_file(name)) else { return Ok(None) };
        let wrong = |what: &str, expected: &str| {
            Err(CommandError::new(format!("{what} for the network in `{model}`: expected {expected}")))
        };
        match last(layers, |settings| settings.distill) {
            Some(Distill::Float) => {}
            Some(other) => return wrong(&format!("--distill {other}"), "--distill without a value"),
            None => return wrong("no --distill", "it, as a network in a file is trained without labels"),
        }
        let given = layers.into_iter().flat_map(Settings::given);
        let unfit = given.into_iter().find(|flag| !FLAGS.contains(&flag.as_str()));
        if let Some(flag) = self.dashboard.then(|| "dashboard".to_owned()).or(unfit) {
            return wrong(&format!("--{flag}"), "a flag of its training, such as --epochs");
        }
        let Some(inputs) = last(layers, |settings| settings.data_dir.clone()) else {
            return wrong("no --data-dir", "the folder of its inputs, images or .npy files");
        };
        let usual = DistillationOptions::default();
        let options = DistillationOptions {
            epochs: last(layers, |settings| settings.epochs).unwrap_or(usual.epochs),
            batch_size: last(layers, |settings| settings.batch_size).unwrap_or(usual.batch_size),
            weight_rate: last(layers, |settings| settings.joint_lr).unwrap_or(usual.weight_rate),
            scale_rate: last(layers, |settings| settings.scale_lr).unwrap_or(usual.scale_rate),
            seed: last(layers, |settings| settings.seed).unwrap_or(usual.seed),
        };
        let limit = last(layers, |settings| settings.limit_train);
        let least = [
            ("epochs", Some(options.epochs), 1),
            ("batch-size", Some(options.batch_size), 1),
            ("limit-train", limit, 2),
        ];
        for (flag, value, least) in least {
            if let Some(value) = value.filter(|&value| value < least) {
                return wrong(&format!("--{flag} {value}"), &format!("a whole number of at least {least}"));
            }
        }
        for (flag, rate) in [("joint-lr", options.weight_rate), ("scale-lr", options.scale_rate)] {
            if !(0.0..=1.0).contains(&rate) {
                return wrong(&format!("--{flag} {rate}"), "a number from 0 to 1");
            }
        }
        let device = match last(layers, |settings| settings.device.clone()) {
            None => DeviceKind::Auto,
            Some(Place::Here(kind)) => kind,
            Some(worker) => return wrong(&format!("--device {worker}"), "a device of this machine"),
        };
        let model = PathBuf::from(model);
        let out = last(layers, |settings| settings.out.clone())
            .unwrap_or_else(|| Path::new("runs").join(model.file_stem().unwrap_or_default()));
        check_output_folder(&out)?;
        check_free(&out)?;
        Ok(Some(ResolvedDistillation {
            model,
            inputs,
            limit,
            precisions: last(layers, |settings| settings.precisions.clone()).unwrap_or_default(),
            switch_edge: last(layers, |settings| settings.switch_edge).unwrap_or_default(),
            options,
            device,
            out,
        }))
    }
}

/// Whether a folder has no network of another training.
pub(super) fn check_free(out: &Path) -> Result<(), CommandError> {
    let held = [CONFIG, MODEL_FILE].into_iter().find(|name| out.join(name).symlink_metadata().is_ok());
    held.map_or(Ok(()), |held| {
        let found = format!("--out `{}`: holds a {held} already", out.display());
        Err(CommandError::new(format!("{found}: expected a folder without one")))
    })
}

/// The flags that say how a network in a file is trained.
const FLAGS: [&str; 13] = [
    "model",
    "data-dir",
    "limit-train",
    "precisions",
    "epochs",
    "batch-size",
    "joint-lr",
    "scale-lr",
    "distill",
    "switch-edge",
    "device",
    "seed",
    "out",
];

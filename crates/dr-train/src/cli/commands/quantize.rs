//! `dr-train quantize`.

use super::inputs::{calibration_images, inputs};
use super::{load_with, print, save, save_in_json};
use crate::artifact::{Artifact, ArtifactError, ArtifactKind, Described, SavedModel};
use crate::cli::resolve::SAFETENSORS;
use crate::cli::values::{at_least_one, between, gibibytes, group_size, one_of, or_default};
use crate::cli::{CommandError, PictureArgs, resolve};
use crate::config::DeviceKind;
use crate::config::task::LANGUAGE;
use crate::device;
use crate::experiment::{Registry, Source};
use crate::files::folder_of;
use crate::nn::{QuantConfig, Value};
use crate::note::detail;
use crate::progress::Progress;
use crate::quantization::{
    CalibrationOptions, LayerNoise, NetworkOptions, Progress as Stage, QuantizationError, TuningOptions,
    TuningProgress, calibrate, quantize_language, tune,
};
use crate::report::aligned;
use crate::text::{self, Tokenizer};
use crate::weights::is_language_model;
use burn::tensor::Device;
use clap::Args;
use dr_kernels::host::GroupedWeight;
use dr_precision::{BitWidth, Precision, PrecisionSet};
use dr_runtime::file::STORED;
use serde_json::json;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Layers with at most so many percent of the multiply-adds may stay in floats, where nothing else is said.
pub(super) const FLOAT_SHARE: usize = 5;

/// Bytes that all images take between layers, at most, and tokens of a text that are looked at, likewise.
const MEMORY: u64 = 4 << 30;
const CALIBRATION_TOKENS: usize = 1 << 15;

/// `dr-train quantize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  dr-train quantize --model float.safetensors --precisions 8,6,4 --out model.safetensors
  dr-train quantize --model float.safetensors --precisions w8a8,w6a8,w4a8 --calibration photos --out model.safetensors
  dr-train quantize --model SmolLM2-135M --calibration text.txt --out model.safetensors")]
#[command(mut_arg("calibration_tokens", |argument| or_default(argument, CALIBRATION_TOKENS)))]
#[command(mut_arg("memory", |argument| or_default(argument, MEMORY >> 30)))]
#[command(mut_arg("float_share", |argument| or_default(argument, FLOAT_SHARE)))]
pub struct QuantizeArgs {
    /// The model; a float one, or a Llama in a folder of Hugging Face or as GGUF
    #[arg(long, value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// The precisions the result runs at [default: w8a8,w6a6,w4a4,w2a2, and of a language model with --calibration
    /// w8a8,w6a8,w4a8,w3a8]
    #[arg(long, value_name = "LIST")]
    pub precisions: Option<PrecisionSet>,
    /// A text like those that a language model is for: codes are chosen for all precisions at once by what its
    /// predictions depend on; the integer engine on a CPU runs the result. Of a network for images, a folder with images
    /// like those that it is for, whatever they show [default: training images of its dataset]
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["dataset", "data_dir"])]
    pub calibration: Option<PathBuf>,
    /// So many tokens of the text are looked at, in windows all over it
    #[arg(long, value_name = "N", requires = "calibration", value_parser = at_least_one(1 << 30))]
    pub calibration_tokens: Option<usize>,
    /// So many images are looked at [default: 1024, or fewer that are large, of 224 x 224 pixels 128]
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 20))]
    pub calibration_images: Option<usize>,
    /// What all images are between layers takes at most so much memory; the rest waits in a file beside the result, which
    /// takes longer and gives the same
    #[arg(long, value_name = "GIB", value_parser = gibibytes, allow_negative_numbers = true)]
    pub memory: Option<u64>,
    /// Let the weights of depthwise convolutions switch, too; they keep 8 bits otherwise
    #[arg(long)]
    pub switch_depthwise: bool,
    /// Layers with at most so many percent of the multiply-adds stay in floats, of a network for images: those that alone would
    /// change its outputs by more than 1 % at the highest precision, the worst for their multiply-adds first
    #[arg(long, value_name = "PERCENT", value_parser = between(0, 100))]
    pub float_share: Option<usize>,
    /// Then train the scales of each width of up to 4 bits by so many steps of 512 tokens of the text, against the
    /// predictions of the float model: codes stay, and no other width changes
    #[arg(long, value_name = "N", requires = "calibration", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub tuning_steps: u32,
    /// So many inputs of an output of a linear layer share a scale, e.g. 32, 64 or 128 [default: all, and with --calibration 32]
    #[arg(long, value_name = "N", value_parser = group_size(), allow_negative_numbers = true)]
    pub group_size: Option<NonZeroUsize>,
    /// Let the first and the last layer switch like all others, too; they keep the highest widths otherwise
    #[arg(long)]
    pub switch_edge: bool,
    /// Fit activations to other images than the training images of the dataset the model was trained on
    #[arg(long)]
    pub dataset: Option<String>,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// The file to write
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// How pictures become images
    #[command(flatten)]
    pub pictures: PictureArgs,
}

impl QuantizeArgs {
    /// Refuses what is given and is for other networks than this one: those for `other`.
    fn check_unused<const N: usize>(
        &self, given: [(&str, bool); N], other: &str,
    ) -> Result<(), CommandError> {
        let unused = given.into_iter().find(|(_, given)| *given);
        unused.map_or(Ok(()), |(flag, _)| {
            let found = format!("--{flag}: `{}` has no use for it", self.model.display());
            Err(CommandError::new(format!("{found}: expected a network for {other}")))
        })
    }
}

/// Turns a float model into one for several precisions, without training: codes are chosen by what images or a text show of the network's use; or, of a language
/// model without a calibration text, scales are fitted to its weights and to the activations that the beginning of its training text causes.
///
/// # Errors
/// If the model cannot be read, or is not a float one, or the data do not fit it, or the result cannot be written.
pub fn quantize(registry: &Registry, args: &QuantizeArgs) -> Result<(), CommandError> {
    resolve::check_output_file("out", &args.out, &[SAFETENSORS], &args.model)?;
    if is_language_model(&args.model) && args.calibration.is_none() && args.data_dir.is_none() {
        let folder = format!(
            "`{}`: a language model of others does not say what it learned from",
            args.model.display()
        );
        return Err(CommandError::new(format!("{folder}: expected --calibration or --data-dir with a text")));
    }
    let artifact = load_with(&args.model, &args.pictures)?;
    let description = &artifact.description;
    if description.kind != ArtifactKind::Float {
        let wrong = ArtifactError::Kind { found: description.kind, expected: "float" };
        return Err(wrong.in_file(&args.model).into());
    }
    let (device, _) = device::open(args.device)?;
    if description.check_task(LANGUAGE).is_err() {
        return calibrated(registry, &artifact, args, &device);
    }
    args.check_unused(
        [
            ("switch-depthwise", args.switch_depthwise),
            ("calibration-images", args.calibration_images.is_some()),
            ("float-share", args.float_share.is_some()),
            ("memory", args.memory.is_some()),
        ],
        "images",
    )?;
    if let Some(calibration) = &args.calibration {
        return finish(args, &nested(&artifact, args, calibration, &device)?, None);
    }
    let precisions = args.precisions.clone().unwrap_or_default();
    let quantization = QuantConfig {
        group_size: args.group_size,
        switch_edge: args.switch_edge,
        ..QuantConfig::new(precisions)
    };
    let source = Source::new(registry, &artifact, &args.model, &args.dataset, &args.data_dir, &device);
    let line = Progress::unknown("fitting scales");
    let quantized = artifact.quantize(&quantization, (source.task()?.calibration)(&source)?, &device)?;
    drop(line);
    finish(args, &quantized, None)
}

/// Writes the result, and says what it costs each layer, if that is known.
fn finish(
    args: &QuantizeArgs, quantized: &Artifact, noise: Option<(&PrecisionSet, &[LayerNoise])>,
) -> Result<(), CommandError> {
    if args.json {
        let layers = noise.map_or_else(Vec::new, |(precisions, noise)| in_json(precisions, noise));
        return save_in_json(quantized, &args.out, "layers", &layers);
    }
    noise.map_or(Ok(()), |(precisions, noise)| print(&table(precisions, noise)))?;
    save(quantized, &args.out)
}

/// A network for images with codes that are chosen for all precisions at once.
fn calibrated(
    registry: &Registry, artifact: &Artifact, args: &QuantizeArgs, device: &Device,
) -> Result<(), CommandError> {
    args.check_unused(
        [
            ("group-size", args.group_size.is_some()),
            ("tuning-steps", args.tuning_steps > 0),
            ("calibration-tokens", args.calibration_tokens.is_some()),
        ],
        "tokens",
    )?;
    let count = args.calibration_images.unwrap_or_else(|| calibration_images(artifact));
    let mut source = Source::new(registry, artifact, &args.model, &args.dataset, &args.data_dir, device);
    detail(format_args!("calibration: {count} inputs at most"));
    let batches = inputs(&mut source, args.calibration.as_deref(), count, args.calibration_images)?;
    let options = NetworkOptions {
        precisions: args.precisions.clone().unwrap_or_default(),
        switch_edge: args.switch_edge,
        switch_depthwise: args.switch_depthwise,
        float_share: args.float_share.unwrap_or(FLOAT_SHARE) as f64 / 100.0,
        memory: args.memory.unwrap_or(MEMORY),
        folder: folder_of(&args.out).to_owned(),
    };
    let (quantized, noise) = calibrated_with(artifact, &args.model, batches, &options)?;
    finish(args, &quantized, Some((&options.precisions, &noise)))
}

/// The network with codes that are chosen by what these inputs show, with a line of how far it is.
pub(super) fn calibrated_with(
    artifact: &Artifact, model: &Path, inputs: Vec<Value>, options: &NetworkOptions,
) -> Result<(Artifact, Vec<LayerNoise>), CommandError> {
    let line = Progress::new("layers:");
    let result = calibrate(artifact, inputs, options, |at| {
        if let Stage::Layer { name, done, of } = at {
            line.show(done, of, format_args!(" ({name})"));
        }
    });
    drop(line);
    result.map_err(|error| CommandError::about(model, error))
}

/// The signal-to-noise ratios of all layers, and how far off the outputs of the network are with each of them quantized alone.
fn table(precisions: &PrecisionSet, noise: &[LayerNoise]) -> String {
    let header = std::iter::once("signal to noise (dB)".to_owned());
    let header = header.chain(precisions.iter().map(|precision| precision.to_string()));
    let header = header.chain([format!("outputs, alone at {}", precisions.highest())]).collect();
    let row = |LayerNoise { name, signal_to_noise, alone, in_floats }: &LayerNoise| {
        let cells = signal_to_noise.iter().map(|ratio| format!("{ratio:.1}"));
        let left = if *in_floats { ": in floats" } else { "" };
        let alone = format!("{:.2} %{left}", 100.0 * alone);
        std::iter::once(name.clone()).chain(cells).chain([alone]).collect()
    };
    let rows: Vec<Vec<String>> = std::iter::once(header).chain(noise.iter().map(row)).collect();
    aligned(&rows)
}

/// The same of each layer in JSON.
fn in_json(precisions: &PrecisionSet, noise: &[LayerNoise]) -> Vec<serde_json::Value> {
    let layer = |LayerNoise { name, signal_to_noise, alone, in_floats }: &LayerNoise| {
        let ratios = precisions.iter().map(|precision| precision.to_string()).zip(signal_to_noise);
        let ratios: BTreeMap<String, &f64> = ratios.collect();
        json!({
            "name": name, "signal_to_noise_db": ratios, "outputs_alone_relative_error": alone, "in_floats": in_floats,
        })
    };
    noise.iter().map(layer).collect()
}

/// A language model with codes that are chosen for all precisions at once.
fn nested(
    artifact: &Artifact, args: &QuantizeArgs, calibration: &Path, device: &Device,
) -> Result<Artifact, CommandError> {
    let in_model = |error: ArtifactError| error.in_file(&args.model);
    if args.switch_edge {
        let found =
            "--switch-edge with --calibration: the embedding and the head of a language model keep 8 bits";
        return Err(CommandError::new(found));
    }
    let widths = match &args.precisions {
        Some(set) if set.activations() == [STORED] => set.weights(),
        Some(set) => {
            let found = format!("--precisions {set}: with --calibration activations have {STORED} bits");
            let expected = set.weights().into_iter().map(|bits| Precision::new(bits, STORED).to_string());
            let expected = expected.collect::<Vec<_>>().join(",");
            return Err(CommandError::new(format!("{found}: expected {expected}")));
        }
        None => vec![BitWidth::B6, BitWidth::B4, BitWidth::B3],
    };
    let tuning = TuningOptions { steps: args.tuning_steps as usize, ..TuningOptions::default() };
    if tuning.steps > 0 && widths.iter().all(|&bits| bits > tuning.widest) {
        let found = format!("--tuning-steps {}: no precision has weights of few bits", tuning.steps);
        return Err(CommandError::new(format!("{found}: expected one of at most {} bits", tuning.widest)));
    }
    if let Some(size) = args.group_size.filter(|size| size.get() % GroupedWeight::GROUP != 0) {
        let (found, unit) = (format!("--group-size {size}: with --calibration"), GroupedWeight::GROUP);
        return Err(CommandError::new(format!("{found}: expected a multiple of {unit}")));
    }
    let tokenizer = Tokenizer::from_json(artifact.tokenizer().map_err(in_model)?)?;
    let tokens = tokenizer.encode_for(artifact.description.classes, &text::read(Some(calibration))?)?;
    let usual = CalibrationOptions::default();
    let length = usual.length.min(artifact.description.context());
    let windows = args.calibration_tokens.unwrap_or(CALIBRATION_TOKENS).div_ceil(length);
    let options = CalibrationOptions {
        group: args.group_size.unwrap_or(usual.group),
        windows,
        length,
        gradient_windows: (windows * usual.gradient_windows).div_ceil(usual.windows),
        ..usual
    };
    detail(format_args!("calibration: {windows} windows of {length} tokens, groups of {}", options.group));
    let model = artifact.network(device).map_err(in_model)?;
    let (mut line, mut in_layers) = (Progress::new("gradients: windows"), false);
    let nested = quantize_language(&model, &tokens, &widths, &options, |at| match at {
        Stage::Gradients { done, of } => line.show(done, of, ""),
        Stage::Layer { name, done, of } => {
            if !std::mem::replace(&mut in_layers, true) {
                line = Progress::new("weights:");
            }
            line.show(done, of, format_args!(" ({name})"));
        }
    });
    let mut nested = nested.map_err(|error| {
        let of: &Path =
            if matches!(error, QuantizationError::Short { .. }) { calibration } else { &args.model };
        CommandError::about(of, error)
    })?;
    line = Progress::new("scales: steps");
    tune(&model, &mut nested, &tokens, &TuningOptions { length, ..tuning }, |at| {
        let TuningProgress { bits, done, of, divergence } = at;
        line.show(done, of, format_args!(" ({bits} bits, {divergence:.4} nats off)"));
    });
    Ok(nested.artifact(artifact).map_err(in_model)?)
}

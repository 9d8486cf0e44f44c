//! `dr-train predict`.

use super::inputs::picture;
use super::words::{Item, TOP, Words};
use super::{is_read, load_with, print, write};
use crate::artifact::Artifact;
use crate::cli::values::{at_least_one, or_default, part};
use crate::cli::{CommandError, PictureArgs, resolve};
use crate::data::Frame;
use crate::detection::{DecodeOptions, SHOWN};
use crate::evaluation::formats;
use crate::files::at;
use crate::note::note;
use crate::prediction::{Prediction, predictions};
use crate::report::{NumberFormat, save_mask};
use clap::Args;
use dr_precision::Precision;
use dr_runtime::arrays::Array;
use dr_runtime::graph::Op;
use dr_runtime::{Arithmetic, Network, RuntimeError, npy};
use std::fs::create_dir_all;
use std::path::{Path, PathBuf};

/// `dr-train predict`.
#[derive(Debug, Args)]
#[command(after_help = "\
An input is an image (PNG or JPEG), which is cut and normalised as the model file says, or an
array as the network takes it, batch first. A network with several inputs takes a .npz file that
has an array under the name of each.

A network for classes gives the likeliest ones. A detector gives boxes: score, class, and left,
top, right and bottom in pixels of the picture. A network for classes of pixels gives the part of
the picture that each class has. Of other networks, the names and sizes of outputs are printed.

With --out, the outputs of INPUT.png are DIR/INPUT.npy, or DIR/INPUT.NAME.npy if there are several.
Classes of pixels are also DIR/INPUT.mask.png, as large as the picture; its pixels are the numbers
of the classes, and 0 is the background.

Examples:
  dr-train predict --model model.safetensors a.jpg b.jpg
  dr-train predict --model detector.safetensors --precision w4a4 --threshold 0.3 --json scene.png
  dr-train predict --model net.onnx --mean 0.485,0.456,0.406 --std 0.23 --names names.txt a.jpg
  dr-train predict --model net.onnx --out outputs line-000.npy line-001.npy")]
#[command(mut_arg("top", |argument| or_default(argument, TOP)))]
#[command(mut_arg("threshold", |argument| or_default(argument, SHOWN)))]
pub struct PredictArgs {
    /// The model: a model file or an ONNX file
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// At this precision [default: the highest; floats of a float model]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Images, arrays (.npy), archives of arrays by name (.npz)
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,
    /// So many of the likeliest classes
    #[arg(long, value_name = "K", value_parser = at_least_one(1 << 24), allow_negative_numbers = true)]
    pub top: Option<usize>,
    /// The least score of a box
    #[arg(long, value_name = "SCORE", value_parser = part, allow_negative_numbers = true)]
    pub threshold: Option<f64>,
    /// The names of the classes, one a line, where the model has none
    #[arg(long, value_name = "FILE")]
    pub names: Option<PathBuf>,
    /// Write all outputs into this folder, as .npy, and classes of pixels as .mask.png, too
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print JSON instead: a list with an object for each input
    #[arg(long)]
    pub json: bool,
    /// How pictures become images
    #[command(flatten)]
    pub pictures: PictureArgs,
}

/// Says what a network makes of each input: classes, boxes, classes of pixels, or of what shape its outputs are if they are none of these; and writes
/// all outputs. What is wrong with an input does not stop the others.
///
/// # Errors
/// A model that cannot be read, flags that are not for it, outputs that cannot be written; inputs that cannot be read, or that the network does not
/// take.
pub fn predict(args: &PredictArgs) -> Result<(), CommandError> {
    let artifact = load_with(&args.model, &args.pictures)?;
    let words = Words::new(args, &artifact.description)?;
    let precision = args.precision.or(artifact.description.precisions().map(|set| set.highest()));
    let network = Network::load_with(&artifact, precision, Arithmetic::Integer);
    let network = network.map_err(|error: RuntimeError| CommandError::about(&args.model, error))?;
    let format = match formats(&artifact)[..] {
        [NumberFormat::Mixed] => NumberFormat::Mixed,
        _ => precision.map_or(NumberFormat::Float, NumberFormat::from),
    };
    let mut files = match &args.out {
        Some(folder) => {
            create_dir_all(folder).map_err(at(folder))?;
            check_stems(&args.inputs)?;
            Some(Files { folder, arrays: vec![], masks: vec![] })
        }
        None => None,
    };
    let results = network.graph().named_results();
    let names: Vec<&str> = results.iter().map(|result| result.name.as_str()).collect();
    let options = DecodeOptions { score: words.threshold, ..DecodeOptions::default() };
    let (mut all, mut failed, mut unknown) = (vec![], None, false);
    for input in &args.inputs {
        let run = |(arrays, frame): (Vec<Array>, _)| match network.forward_arrays(&arrays) {
            Ok(outputs) => Ok((predictions(&artifact, &arrays, &outputs, frame, &options), outputs)),
            Err(error) => Err(CommandError::about(input, error)),
        };
        let (found, outputs) = match read(input, &network, &artifact).and_then(run) {
            Ok(found) => found,
            Err(error) => {
                // The last of them is the command's own.
                failed.replace(error).into_iter().for_each(note);
                continue;
            }
        };
        if let Some(files) = &mut files {
            files.write(input, &names, &outputs, found.as_deref().unwrap_or_default())?;
        }
        unknown |= found.is_none();
        let answers = match found {
            Some(found) => found.iter().map(|of| words.answer(of)).collect::<Result<Vec<_>, _>>()?,
            None => vec![words.outputs(&names, &outputs)?],
        };
        let (file, several) = (input.display().to_string(), answers.len() > 1);
        let item = |(at, answer)| Item {
            file: file.clone(),
            item: several.then_some(at),
            precision: format,
            answer,
        };
        let items = answers.into_iter().enumerate().map(item);
        match args.json {
            true => all.extend(items),
            false => {
                let text: String = items.map(|item| item.text(words.threshold)).collect();
                // Nobody is there for what follows, either.
                if !is_read(&text)? && files.is_none() {
                    break;
                }
            }
        }
    }
    match &files {
        _ if args.json => print(&(serde_json::to_string_pretty(&all)? + "\n"))?,
        Some(files) => print(&files.said())?,
        None if unknown => {
            note("hint: these outputs are no classes, boxes or pixels; `--out DIR` writes them as .npy")
        }
        None => {}
    }
    // Some may well have been read: whatever is wrong with one, it cannot be done.
    failed.map_or(Ok(()), |error| Err(error.with_exit_code(1)))
}

/// What is written of outputs.
struct Files<'a> {
    folder: &'a Path,
    arrays: Vec<String>,
    masks: Vec<PathBuf>,
}

impl Files<'_> {
    /// Writes the outputs of an input, and the classes of pixels that they say.
    fn write(
        &mut self, input: &Path, names: &[&str], outputs: &[Array], found: &[Prediction],
    ) -> Result<(), CommandError> {
        let stem = input.file_stem().unwrap_or_default().to_string_lossy();
        for (at, output) in outputs.iter().enumerate() {
            let name = match names.get(at).filter(|_| outputs.len() > 1) {
                Some(name) => format!("{stem}.{}.npy", file_name(name)),
                None => format!("{stem}.npy"),
            };
            let path = self.folder.join(name);
            if resolve::same_output(&path, input) {
                let (folder, input) = (self.folder.display(), input.display());
                let expected = "expected another folder than that of the inputs";
                return Err(CommandError::new(format!(
                    "--out `{folder}`: would replace `{input}`: {expected}"
                )));
            }
            let mut bytes = vec![];
            npy::write(output, &mut bytes).map_err(|error| CommandError::about(input, error))?;
            write(&path, &bytes, &mut self.arrays)?;
        }
        for (at, of) in found.iter().enumerate() {
            let Prediction::Pixels { classes, size: [rows, columns] } = of else { continue };
            let path = self.folder.join(match found.len() {
                1 => format!("{stem}.mask.png"),
                _ => format!("{stem}.{at}.mask.png"),
            });
            let numbers: Result<Vec<u8>, _> = classes.iter().map(|&class| class.try_into()).collect();
            let numbers = numbers.map_err(|_| CommandError::about(&path, "more than 256 classes"))?;
            save_mask(&path, &numbers, *columns, *rows)?;
            self.masks.push(path);
        }
        Ok(())
    }

    fn said(&self) -> String {
        let masks = match self.masks.len() {
            0 => String::new(),
            count => format!(" and {count} masks"),
        };
        format!("wrote {} arrays{masks} to {}\n", self.arrays.len(), self.folder.display())
    }
}

/// The arrays of a file, in the order in which the network takes them; and which part of a picture they are, if it is one.
fn read(
    input: &Path, network: &Network, artifact: &Artifact,
) -> Result<(Vec<Array>, Option<Frame>), CommandError> {
    let about = |error: &dyn std::fmt::Display| CommandError::about(input, error);
    let is_array = input
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("npy") || end.eq_ignore_ascii_case("npz"));
    if !is_array {
        if !matches!(network.graph().input(), Some(Op::Images { .. })) {
            return Err(about(&"an image: expected an array (.npy, .npz), as the network takes"));
        }
        let (image, frame) = picture(input, &artifact.description)?;
        return Ok((vec![image], Some(frame)));
    }
    let mut arrays = npy::read(input).map_err(|error| about(&error))?;
    let wanted: Vec<&str> = network.graph().array_inputs().map(|(_, input)| input.name.as_str()).collect();
    if wanted.len() < 2 && arrays.len() == 1 {
        return Ok((arrays.into_iter().map(|(_, array)| array).collect(), None));
    }
    let mut in_order = vec![];
    for name in &wanted {
        match arrays.iter().position(|(found, _)| found.as_deref() == Some(*name)) {
            Some(at) => in_order.push(arrays.swap_remove(at).1),
            None => {
                return Err(about(&format!(
                    "no array `{name}`: expected {} in a .npz file",
                    wanted.join(", ")
                )));
            }
        }
    }
    match arrays.first() {
        Some((name, _)) => {
            let name = name.as_deref().unwrap_or("without a name");
            Err(about(&format!("an array `{name}`: expected {}", wanted.join(", "))))
        }
        None => Ok((in_order, None)),
    }
}

/// Two inputs would be written to one file.
fn check_stems(inputs: &[PathBuf]) -> Result<(), CommandError> {
    for (at, input) in inputs.iter().enumerate() {
        if let Some(other) = inputs[..at].iter().find(|other| other.file_stem() == input.file_stem()) {
            let (a, b) = (other.display(), input.display());
            return Err(CommandError::new(format!(
                "`{a}` and `{b}`: expected inputs whose names differ, to name the outputs"
            )));
        }
    }
    Ok(())
}

/// What can stand in a file's name.
fn file_name(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect()
}

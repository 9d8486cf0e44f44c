//! `dr-train draw`.

use super::{load_model, print};
use crate::artifact::Described;
use crate::cli::values::{at_least_one, one_of};
use crate::cli::{CommandError, resolve};
use crate::config::task::{DETECT, SEGMENT};
use crate::config::{DeviceKind, Engine};
use crate::data::{IGNORED, Labelled, PixelTargets, SceneLoader, SceneSet};
use crate::detection::{DecodeOptions, Found, SHOWN, decode};
use crate::device;
use crate::evaluation::{EvaluationError, check_scenes, formats, networks, positions};
use crate::experiment::{RunError, tell_noted};
use crate::report::{draw_boxes, enlarge, overlay, save_grid};
use burn::data::dataloader::DataLoader;
use clap::Args;
use dr_precision::Precision;
use std::path::PathBuf;
use std::sync::Arc;

/// `dr-train draw`.
#[derive(Debug, Args)]
#[command(after_help = "\
A column for each image; the first row is the truth, the others are the model's precisions.

Example:
  dr-train draw --model runs/coco-resnet8/model.safetensors --data-dir scenes --out found.png")]
pub struct DrawArgs {
    /// The model
    #[arg(long, value_name = "FILE")]
    pub model: PathBuf,
    /// A folder with images and annotations in COCO's format
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Only at this precision
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Test images
    #[arg(long, value_name = "N", value_parser = at_least_one(64), allow_negative_numbers = true, default_value_t = 8)]
    pub images: usize,
    /// Where to compute
    #[arg(long, value_parser = one_of(DeviceKind::ALL), default_value_t = DeviceKind::Auto)]
    pub device: DeviceKind,
    /// The file to write
    #[arg(long, value_name = "FILE.png")]
    pub out: PathBuf,
}

/// How many times as large the images are.
const FACTOR: usize = 2;

/// Draws what a network says about test images: a column for each image, and rows for the truth and each precision.
///
/// # Errors
/// A model that cannot be read or does not say where things are, scenes that do not fit it, a file that cannot be written.
pub fn draw(args: &DrawArgs) -> Result<(), CommandError> {
    resolve::check_output_file("out", &args.out, &["png"], &args.model)?;
    let artifact = load_model(&args.model)?;
    let description = &artifact.description;
    let task = description.task.as_str();
    if !matches!(task, SEGMENT | DETECT) {
        description.check_task(SEGMENT).map_err(|error| error.in_file(&args.model))?;
    }
    let (device, _) = device::open(args.device)?;
    let dir = args.data_dir.as_deref().ok_or(RunError::NoScenes)?;
    let [.., test] =
        SceneSet::load(dir, [description.input.height, description.input.width], description.resize.into())?;
    let test = Arc::new(test.first(args.images));
    let about = |error: EvaluationError| CommandError::about(&args.model, error);
    check_scenes(&artifact, task, &test).map_err(about)?;
    let formats = args.precision.map_or_else(|| formats(&artifact), |precision| vec![precision.into()]);
    let networks = networks(&artifact, &formats, Engine::Fake, &device).map_err(about)?;
    let positions = (task == DETECT).then(|| positions(&artifact)).transpose();
    let positions = positions.map_err(|error| error.in_file(&args.model))?;
    let [rows, columns] = test.size;
    // In the order of the batches, which are without those that cannot be read, too.
    let pictures: Vec<(usize, Vec<u8>)> =
        (0..test.len()).filter_map(|index| Some((index, test.picture(index).ok()?))).collect();
    test.check_readable()?;
    let (width, height) = (columns * FACTOR, rows * FACTOR);
    let boxed = |(index, picture): &(usize, Vec<u8>), found: &[Found]| {
        let shown = test.frame(*index).shown();
        let mut pixels = enlarge(picture, columns, rows, FACTOR);
        let corner = |found: Found| {
            let [left, top, right, bottom] = found.rect.map(|side| side * FACTOR as f32);
            ([left, top, right - left, bottom - top], found.class, Some(found.score))
        };
        draw_boxes(
            &mut pixels,
            width,
            height,
            &found.iter().filter_map(|found| found.within(shown)).map(corner).collect::<Vec<_>>(),
        );
        pixels
    };
    let painted = |(index, picture): &(usize, Vec<u8>), classes: &[u8]| {
        let [shown_rows, shown_columns] = test.frame(*index).shown();
        let seen = |(at, &class): (usize, &u8)| match class {
            IGNORED => 0,
            class if at / columns < shown_rows && at % columns < shown_columns => class,
            _ => 0,
        };
        let mut pixels = picture.clone();
        overlay(&mut pixels, columns, rows, &classes.iter().enumerate().map(seen).collect::<Vec<_>>());
        enlarge(&pixels, columns, rows, FACTOR)
    };
    let area = rows * columns;
    let truth = |picture: &(usize, Vec<u8>)| match task {
        DETECT => {
            let whole = |Labelled { rect, class }: Labelled| Found { rect, class, score: 1.0 };
            boxed(picture, &test.boxes(picture.0).objects.into_iter().map(whole).collect::<Vec<_>>())
        }
        _ => painted(picture, &test.classes(picture.0)),
    };
    let mut tiles: Vec<Vec<u8>> = pictures.iter().map(truth).collect();
    let normalization = &description.normalization;
    let loader =
        SceneLoader::<PixelTargets>::new(test.clone(), normalization, (), test.len(), None, device.clone());
    for batch in loader.iter() {
        let images = batch?.input;
        for network in &networks {
            let output = network(images.clone().into()).map_err(about)?;
            match &positions {
                Some(positions) => {
                    let options = DecodeOptions { score: SHOWN, ..DecodeOptions::default() };
                    let found = decode(output, positions, &options);
                    tiles.extend(pictures.iter().zip(&found).map(|(picture, found)| boxed(picture, found)));
                }
                None => {
                    let classes = output.argmax(1).into_data().convert::<u8>().try_into_vec::<u8>();
                    let classes = classes.unwrap_or_default();
                    let each = pictures.iter().zip(classes.chunks(area));
                    tiles.extend(each.map(|(picture, classes)| painted(picture, classes)));
                }
            }
        }
    }
    let saved = save_grid(&args.out, &tiles, width, height, pictures.len());
    saved.map_err(|error| CommandError::about(&args.out, error).with_exit_code(1))?;
    tell_noted(std::slice::from_ref(&test.noted));
    let names: Vec<String> = formats.iter().map(ToString::to_string).collect();
    print(&format!("wrote {}: the truth, {}\n", args.out.display(), names.join(", ")))
}

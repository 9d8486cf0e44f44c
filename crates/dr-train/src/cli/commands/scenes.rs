//! `dr-train scenes`.

use super::print;
use crate::cli::CommandError;
use crate::cli::values::{at_least_one, between, seed};
use crate::data::scenes::{SceneConfig, Sprite, write_scenes};
use crate::data::{self, DATA_DIR, DataError, DataSource, ImageSet, Images, Splits};
use crate::experiment::{Registry, check_data_flags};
use clap::Args;
use std::path::PathBuf;

/// `dr-train scenes`.
#[derive(Debug, Args)]
#[command(after_help = "\
Digits or clothes in random sizes, places and colours on cluttered canvases, with boxes and masks. The
images of the parts are made of different digits or clothes.

Examples:
  dr-train scenes --out scenes
  dr-train scenes --dataset fashion-mnist --train 4000 --out clothes
  dr-train train --dataset coco --task segment --data-dir scenes")]
pub struct ScenesArgs {
    /// The objects: digits, mnist or fashion-mnist
    #[arg(long, default_value = "digits")]
    pub dataset: String,
    /// Where the dataset's files are, if not in the usual places
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Images to learn from
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 2000)]
    pub train: usize,
    /// Images to choose by
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 200)]
    pub val: usize,
    /// Images to measure the result on
    #[arg(long, value_name = "N", value_parser = at_least_one(1 << 24), allow_negative_numbers = true, default_value_t = 500)]
    pub test: usize,
    /// Rows and columns of an image
    #[arg(long, value_name = "N", value_parser = between(16, 4096), allow_negative_numbers = true, default_value_t = 64)]
    pub size: usize,
    /// Objects of an image at most
    #[arg(long, value_name = "N", value_parser = at_least_one(64), allow_negative_numbers = true, default_value_t = 3)]
    pub objects: usize,
    /// Decides the scenes
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, default_value_t = 1)]
    pub seed: u64,
    /// The folder to write to
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Writes scenes with objects of another dataset, in COCO's format.
///
/// # Errors
/// Images that are not there or not grey, and a folder that cannot be written to.
pub fn scenes(registry: &Registry, args: &ScenesArgs) -> Result<(), CommandError> {
    let dataset = registry.datasets.get(&args.dataset)?;
    let given: Vec<&str> = args.data_dir.as_ref().map(|_| DATA_DIR).into_iter().collect();
    check_data_flags(registry, dataset, None, &given)?;
    let source = DataSource::new(dataset, args.data_dir.as_deref(), args.seed);
    let Splits { train, valid, test, .. } = data::load(&source, None)?;
    let grey = |images: ImageSet| match images {
        ImageSet::Memory(images) if images.shape.channels == 1 => Ok(images),
        _ => Err(DataError::NotGrey(dataset.name())),
    };
    let (train, valid, test) = (grey(train)?, grey(valid)?, grey(test)?);
    let sprites = |part: &str| {
        let images: &Images = match part {
            "train" => &train,
            "val" => &valid,
            _ => &test,
        };
        let (height, width) = (images.shape.height, images.shape.width);
        let sprite =
            |i: usize| Sprite { pixels: images.image(i), width, height, class: images.labels[i].into() };
        (0..images.len()).map(sprite).collect()
    };
    let names: Vec<String> = match dataset.class_names() {
        Some(names) => names.iter().map(|&name| name.to_owned()).collect(),
        None => (0..train.classes).map(|class| class.to_string()).collect(),
    };
    let config =
        SceneConfig { size: args.size, objects: 1..=args.objects, seed: args.seed, ..SceneConfig::default() };
    let parts = [("train", args.train), ("val", args.val), ("test", args.test)];
    write_scenes(&args.out, &parts, &config, sprites, &names)?;
    let total: usize = parts.iter().map(|(_, count)| count).sum();
    print(&format!("wrote {total} scenes of {0} x {0} pixels to {1}\n", args.size, args.out.display()))
}

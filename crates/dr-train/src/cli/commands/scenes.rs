//! `dr-train scenes`.

use super::print;
use crate::cli::{CommandError, ScenesArgs};
use crate::config::DatasetKind;
use crate::data::scenes::{SceneConfig, Sprite, write_scenes};
use crate::data::{self, DataError, DataSource, ImageSet, Images, Splits};

/// What Fashion-MNIST's classes are called.
const CLOTHES: [&str; 10] =
    ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"];

/// Writes scenes with objects of another dataset, in COCO's format.
///
/// # Errors
/// Images that are not there or not grey, and a folder that cannot be written to.
pub fn scenes(args: &ScenesArgs) -> Result<(), CommandError> {
    let source = DataSource::new(args.dataset, args.data_dir.as_deref(), args.seed);
    let Splits { train, valid, test, .. } = data::load(&source, None)?;
    let grey = |images: ImageSet| match images {
        ImageSet::Memory(images) if images.shape.channels == 1 => Ok(images),
        _ => Err(DataError::NotGrey(args.dataset)),
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
    let names: Vec<String> = match args.dataset {
        DatasetKind::FashionMnist => CLOTHES.map(str::to_owned).to_vec(),
        _ => (0..train.classes).map(|class| class.to_string()).collect(),
    };
    let config =
        SceneConfig { size: args.size, objects: 1..=args.objects, seed: args.seed, ..SceneConfig::default() };
    let parts = [("train", args.train), ("val", args.val), ("test", args.test)];
    write_scenes(&args.out, &parts, &config, sprites, &names)?;
    let total: usize = parts.iter().map(|(_, count)| count).sum();
    print(&format!("wrote {total} scenes of {0} x {0} pixels to {1}\n", args.size, args.out.display()))
}

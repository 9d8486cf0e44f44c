//! `dr-train scenes`.

use super::print;
use crate::cli::{CommandError, ScenesArgs};
use crate::data::scenes::{SceneConfig, Sprite, write_scenes};
use crate::data::{self, DataError, DataSource, ImageSet, Images, Splits};
use crate::experiment::Registry;

/// Writes scenes with objects of another dataset, in COCO's format.
///
/// # Errors
/// Images that are not there or not grey, and a folder that cannot be written to.
pub fn scenes(registry: &Registry, args: &ScenesArgs) -> Result<(), CommandError> {
    let dataset = registry.datasets.get(&args.dataset)?;
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

//! Images in folders: how they are found and split, read, cut and skipped.

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use dr_runtime::file::Resize;
use dr_train::data::{
    ChannelOrder, DataSource, DatasetKind, Folder, ImageBatch, ImageFiles, ImageLoader, ImageSet, ImageShape,
    Normalization, Splits, load, load_test,
};
use image::{Rgb, RgbImage};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const SIDE: usize = 16;

/// `count` images for each class, of one colour each: `40 * class` red, and a green of its own.
fn write(dir: &Path, classes: &[&str], count: usize) {
    for (class, name) in classes.iter().enumerate() {
        let folder = dir.join(name);
        fs::create_dir_all(&folder).unwrap();
        for i in 0..count {
            let (width, height) = (20 + i as u32, 30);
            let image = RgbImage::from_pixel(width, height, Rgb([40 * class as u8, 4 * i as u8, 200]));
            let extension = ["jpg", "png", "JPEG"][i % 3];
            image.save(folder.join(format!("{i:03}.{extension}"))).unwrap();
        }
        fs::write(folder.join("notes.txt"), "not an image").unwrap();
        fs::write(folder.join(".hidden.jpg"), "not an image").unwrap();
    }
}

fn source(dir: &Path, seed: u64) -> DataSource<'_> {
    DataSource { image_size: SIDE, ..DataSource::new(&Folder, Some(dir), seed) }
}

fn plain() -> Normalization {
    Normalization { std: vec![1.0 / 255.0; 3], ..Normalization::none(3) }
}

fn values(batch: &ImageBatch) -> (Vec<f32>, Vec<i64>) {
    let labels = batch.labels.to_data().convert::<i64>().try_into_vec().unwrap();
    (batch.input.to_data().try_into_vec().unwrap(), labels)
}

fn epoch(loader: &ImageLoader) -> Vec<(Vec<f32>, Vec<i64>)> {
    loader.iter().map(|batch| values(&batch.unwrap())).collect()
}

fn training(images: &ImageSet, batch_size: usize, seed: u64) -> ImageLoader {
    let usual = Folder.augmentation();
    ImageLoader::training(images.clone(), plain(), batch_size, seed, usual, Device::flex())
}

fn evaluation(images: &ImageSet, batch_size: usize) -> ImageLoader {
    ImageLoader::evaluation(images.clone(), plain(), batch_size, Device::flex())
}

fn paths(images: &ImageSet) -> Vec<String> {
    let ImageSet::Files(files) = images else { panic!("{images:?}") };
    files.files.iter().map(|(path, _)| path.display().to_string()).collect()
}

#[test]
fn training_and_validation_folders() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("train"), &["cat", "dog", "emu"], 20);
    write(&dir.path().join("val"), &["cat", "dog", "emu"], 4);
    let Splits { train, valid, test, normalization } = load(&source(dir.path(), 1), None).unwrap();
    assert_eq!((train.len(), valid.len(), test.len()), (57, 3, 12));
    assert_eq!((train.classes(), train.shape().height), (3, SIDE));
    assert_eq!(normalization, Normalization::imagenet());
    assert!(paths(&test).iter().all(|path| path.contains("/val/")));
    let mut all = [paths(&train), paths(&valid)].concat();
    assert!(all.iter().all(|path| path.contains("/train/") && !path.ends_with(".txt")));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 60);
    assert_eq!(paths(&load_test(&source(dir.path(), 7)).unwrap()), paths(&test));
    let limited = load(&source(dir.path(), 1), Some(9)).unwrap().train;
    assert_eq!(paths(&limited), paths(&train)[..9]);
}

#[test]
fn class_folders_alone_are_split_by_the_seed() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["a", "b"], 25);
    let split = |seed| load(&source(dir.path(), seed), None).unwrap();
    let Splits { train, valid, test, .. } = split(1);
    assert_eq!((train.len(), valid.len(), test.len()), (38, 2, 10));
    assert_eq!(paths(&split(1).test), paths(&test));
    assert_eq!(paths(&load_test(&source(dir.path(), 1)).unwrap()), paths(&test));
    assert_ne!(paths(&split(2).test), paths(&test));
}

/// Images of one colour stay so, whatever is cut out of them; JPEG changes colours a little.
#[test]
fn pixels_and_labels_belong_together() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["a", "b", "c"], 12);
    let train = load(&source(dir.path(), 1), None).unwrap().train;
    for loader in [training(&train, 5, 1), evaluation(&train, 5)] {
        let mut count = 0;
        for (pixels, labels) in epoch(&loader) {
            for (image, label) in pixels.chunks_exact(3 * SIDE * SIDE).zip(labels) {
                let red = &image[..SIDE * SIDE];
                assert!(
                    red.iter().all(|value| (value - 40.0 * label as f32).abs() < 4.0),
                    "{label}: {red:?}"
                );
                count += 1;
            }
        }
        assert_eq!(count, train.len());
    }
}

/// Channels in another order, grey ones, and images of other shapes.
#[test]
fn images_are_what_a_network_takes() {
    let dir = TempDir::new().unwrap();
    let picture = RgbImage::from_fn(4, 2, |x, y| Rgb([(60 * x) as u8, (100 * y) as u8, 200]));
    picture.save(dir.path().join("a.png")).unwrap();
    let of = |shape: [usize; 3], resize, order| {
        let [channels, height, width] = shape;
        let images = ImageFiles::below(dir.path(), ImageShape { channels, height, width }, resize).unwrap();
        let normalization =
            Normalization { std: vec![1.0 / 255.0; channels], order, ..Normalization::none(channels) };
        let batches = epoch(&ImageLoader::evaluation(images, normalization, 1, Device::flex()));
        batches[0].0.iter().map(|value| value.round() as u8).collect::<Vec<_>>()
    };
    let red = [[0, 60, 120, 180]; 2].concat();
    let green = [[0; 4], [100; 4]].concat();
    let whole = |order| of([3, 2, 4], Resize::Stretch, order);
    assert_eq!(whole(ChannelOrder::Rgb), [&red[..], &green, &[200; 8]].concat());
    assert_eq!(whole(ChannelOrder::Bgr), [&[200; 8][..], &green, &red].concat());
    // (r + g + b) / 3
    let grey = [66, 86, 106, 126, 100, 120, 140, 160];
    assert_eq!(of([1, 2, 4], Resize::Stretch, ChannelOrder::Rgb), grey);
    // The shorter side has two pixels already: the two columns in the middle.
    assert_eq!(of([1, 2, 2], Resize::Shorter(2), ChannelOrder::Rgb), [86, 106, 120, 140]);
    let error =
        ImageFiles::below(dir.path(), ImageShape { channels: 2, height: 2, width: 2 }, Resize::Middle);
    assert!(
        error.unwrap_err().to_string().starts_with("images, for 2 channels: expected a network of 1 or 3")
    );
}

#[test]
fn seed_and_epoch_decide_the_cuts() {
    let dir = TempDir::new().unwrap();
    for class in ["a", "b"] {
        fs::create_dir_all(dir.path().join(class)).unwrap();
        for i in 0..10u32 {
            let image = RgbImage::from_fn(40, 50, |x, y| Rgb([(6 * x) as u8, (5 * y) as u8, (9 * i) as u8]));
            image.save(dir.path().join(class).join(format!("{i}.png"))).unwrap();
        }
    }
    let train = load(&source(dir.path(), 1), None).unwrap().train;
    let [first, again, other] = [1, 1, 2].map(|seed| training(&train, 4, seed));
    let epochs = [epoch(&first), epoch(&first)];
    assert_eq!(epoch(&again), epochs[0]);
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(epoch(&other), epochs[0]);
}

#[test]
fn damaged_files_are_skipped_and_counted() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["a", "b"], 10);
    let whole = fs::read(dir.path().join("a/000.jpg")).unwrap();
    fs::write(dir.path().join("a/bad1.jpg"), &whole[..60]).unwrap();
    fs::write(dir.path().join("a/bad2.png"), b"no image").unwrap();
    fs::write(dir.path().join("b/bad3.jpg"), b"").unwrap();
    let Splits { train, valid, test, .. } = load(&source(dir.path(), 1), None).unwrap();
    let skipped = |images: &ImageSet| {
        let ImageSet::Files(files) = images else { panic!("{images:?}") };
        files.skipped().len()
    };
    // In training, others take their place; in evaluation, they are missing.
    let sizes: Vec<usize> = epoch(&training(&train, 6, 1)).iter().map(|(_, labels)| labels.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), train.len());
    let mut seen = 0;
    for images in [&train, &valid, &test] {
        seen += epoch(&evaluation(images, 4)).iter().map(|(_, labels)| labels.len()).sum::<usize>();
    }
    assert_eq!(seen, 20);
    assert_eq!(skipped(&train) + skipped(&valid) + skipped(&test), 3);
}

#[test]
fn folders_that_are_no_dataset() {
    let error = |dir: &Path| {
        let message = load(&source(dir, 1), None).err().unwrap().to_string();
        assert!(!message.contains('\n'), "{message}");
        message
    };
    let dir = TempDir::new().unwrap();
    assert!(error(&dir.path().join("nowhere")).contains("cannot be listed"));
    assert!(error(dir.path()).contains("has 0 folders: expected one for each class, at least two"));
    write(&dir.path().join("train"), &["a", "b"], 2);
    assert!(error(dir.path()).contains("has `train` but neither `val` nor `test`"));
    write(&dir.path().join("val"), &["a", "c"], 2);
    assert!(error(dir.path()).contains("val`: has no class `b`: expected the classes of"));
    let empty = TempDir::new().unwrap();
    write(empty.path(), &["a", "b"], 1);
    fs::create_dir(empty.path().join("none")).unwrap();
    assert!(error(empty.path()).contains("none`: has no images: expected .jpg, .jpeg or .png files"));
    let nobody = load(&DataSource::new(&Folder, None, 1), None).err().unwrap().to_string();
    assert!(nobody.starts_with("folder: no directory given"), "{nobody}");
}

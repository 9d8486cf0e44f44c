//! Images in folders: how they are found and split, read, cut and skipped.

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use dr_runtime::file::Resize;
use dr_train::config::ImageSize;
use dr_train::data::{
    ChannelOrder, DataSource, DatasetKind, Folder, ImageBatch, ImageFiles, ImageLoader, ImageSet, ImageShape,
    Normalization, Splits, class_names, load, load_test,
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
    DataSource { image_size: ImageSize::square(SIDE), ..DataSource::new(&Folder, Some(dir), seed) }
}

fn plain() -> Normalization {
    Normalization { std: vec![1.0 / 255.0; 3], ..Normalization::none(3) }
}

fn values(batch: &ImageBatch) -> (Vec<f32>, Vec<i64>) {
    let labels = batch.labels.classes.to_data().convert::<i64>().try_into_vec().unwrap();
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
fn three_parts_are_what_they_are_called() {
    let dir = TempDir::new().unwrap();
    for (part, count) in [("train", 20), ("val", 3), ("test", 5)] {
        write(&dir.path().join(part), &["cat", "dog"], count);
    }
    let Splits { train, valid, test, .. } = load(&source(dir.path(), 1), None).unwrap();
    assert_eq!((train.len(), valid.len(), test.len()), (40, 6, 10));
    for (images, part) in [(&train, "/train/"), (&valid, "/val/"), (&test, "/test/")] {
        assert!(paths(images).iter().all(|path| path.contains(part)), "{part}");
    }
    // Without one to choose by, it is a part of the training images.
    fs::remove_dir_all(dir.path().join("val")).unwrap();
    let Splits { train, valid, test, .. } = load(&source(dir.path(), 1), None).unwrap();
    assert_eq!((train.len(), valid.len(), test.len()), (38, 2, 10));
    assert!(paths(&valid).iter().all(|path| path.contains("/train/")));
}

#[test]
fn classes_that_are_called_like_parts() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["train", "val"], 25);
    let Splits { train, valid, test, .. } = load(&source(dir.path(), 1), None).unwrap();
    assert_eq!((train.len(), valid.len(), test.len()), (38, 2, 10));
    assert_eq!(class_names(&Folder, &train), ["train", "val"]);
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
    let skipped = |images: &ImageSet| {
        let ImageSet::Files(files) = images else { panic!("{images:?}") };
        files.noted.skipped().len()
    };
    // Of what is cut off in the middle, the rest would be grey.
    let noise =
        RgbImage::from_fn(64, 64, |x, y| Rgb([((x * 37) ^ (y * 91)) as u8, (x * y) as u8, (x * 7) as u8]));
    noise.save(dir.path().join("b/noise.jpg")).unwrap();
    let noise = fs::read(dir.path().join("b/noise.jpg")).unwrap();
    fs::remove_file(dir.path().join("b/noise.jpg")).unwrap();
    fs::write(dir.path().join("b/bad4.jpg"), &noise[..noise.len() * 2 / 3]).unwrap();
    let Splits { train, valid, test, .. } = load(&source(dir.path(), 1), None).unwrap();
    // In training, others take their place; in evaluation, they are missing.
    let sizes: Vec<usize> = epoch(&training(&train, 6, 1)).iter().map(|(_, labels)| labels.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), train.len());
    let mut seen = 0;
    for images in [&train, &valid, &test] {
        seen += epoch(&evaluation(images, 4)).iter().map(|(_, labels)| labels.len()).sum::<usize>();
    }
    assert_eq!(seen, 20);
    assert_eq!(skipped(&train) + skipped(&valid) + skipped(&test), 4);
}

/// A JPEG file whose EXIF says how it is to be turned.
pub fn turned(image: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut content = vec![];
    image.write_to(&mut std::io::Cursor::new(&mut content), image::ImageFormat::Jpeg).unwrap();
    // Little-endian TIFF with one entry, 0x0112, a 16-bit number.
    let tiff =
        [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0", &[orientation, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    let segment = [b"Exif\0\0", &tiff[..]].concat();
    let length = (segment.len() as u16 + 2).to_be_bytes();
    [&content[..2], b"\xff\xe1", &length, &segment, &content[2..]].concat()
}

/// A preview within the file has an end of its own.
#[test]
fn files_that_are_cut_off_behind_their_preview_are_found() {
    let dir = TempDir::new().unwrap();
    let jpeg = |side: u32| {
        let noise = RgbImage::from_fn(side, side, |x, y| {
            Rgb([((x * 37) ^ (y * 91)) as u8, (x * y) as u8, (x * 7) as u8])
        });
        let mut content = vec![];
        noise.write_to(&mut std::io::Cursor::new(&mut content), image::ImageFormat::Jpeg).unwrap();
        content
    };
    let (content, preview) = (jpeg(64), jpeg(8));
    let length = (preview.len() as u16 + 2).to_be_bytes();
    let whole = [&content[..2], b"\xff\xe2", &length, &preview, &content[2..]].concat();
    let shape = ImageShape { channels: 3, height: 8, width: 8 };
    for (bytes, is_whole) in [(&whole[..], true), (&whole[..whole.len() * 2 / 3], false)] {
        fs::write(dir.path().join("a.jpg"), bytes).unwrap();
        let found = ImageFiles::below(dir.path(), shape, Resize::Stretch).unwrap().check();
        assert_eq!(found.is_ok(), is_whole);
        assert!(found.err().is_none_or(|error| error.to_string().contains("the file is cut off")));
    }
}

#[test]
fn images_are_turned_as_their_exif_says() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["a", "b"], 1);
    // Red on the left and black on the right.
    let image = RgbImage::from_fn(48, 32, |x, _| Rgb([if x < 24 { 250 } else { 0 }, 0, 0]));
    // As it is, half a turn, a quarter to the right, one to the left: whether red is above or below, and whether it is what comes first.
    for (orientation, is_upright, is_first) in
        [(1, false, true), (3, false, false), (6, true, true), (8, true, false)]
    {
        for class in ["a", "b"] {
            fs::write(dir.path().join(class).join("000.jpg"), turned(&image, orientation)).unwrap();
        }
        let test = load_test(&source(dir.path(), 1)).unwrap();
        let (pixels, _) = epoch(&evaluation(&test, 1)).remove(0);
        assert_eq!(test.noted().turned().len(), usize::from(orientation != 1));
        for (at, &red) in pixels[..SIDE * SIDE].iter().enumerate() {
            let (y, x) = (at / SIDE, at % SIDE);
            // Not where one becomes the other.
            if [y, x].iter().all(|at| at.abs_diff(SIDE / 2) > 2) {
                let at = if is_upright { y } else { x };
                assert_eq!(red > 125.0, (at < SIDE / 2) == is_first, "{orientation}: {red} at {y}, {x}");
            }
        }
    }
}

#[test]
fn what_is_ignored_is_known() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &["a", "b"], 3);
    for name in ["a/x.webp", "b/x.bmp", "b/x.tif", "labels.csv"] {
        fs::write(dir.path().join(name), "not read").unwrap();
    }
    fs::create_dir(dir.path().join("a/more")).unwrap();
    let ImageSet::Files(files) = load(&source(dir.path(), 1), None).unwrap().train else { panic!() };
    let mut ignored: Vec<_> = files
        .source
        .ignored
        .iter()
        .map(|path| path.strip_prefix(dir.path()).unwrap().to_str().unwrap())
        .collect();
    ignored.sort_unstable();
    let expected = ["a/more", "a/notes.txt", "a/x.webp", "b/notes.txt", "b/x.bmp", "b/x.tif", "labels.csv"];
    assert_eq!(ignored, expected);
}

#[test]
fn there_is_something_to_learn_of_each_class() {
    let dir = TempDir::new().unwrap();
    write(&dir.path().join("train"), &["a", "b"], 3);
    write(&dir.path().join("val"), &["a", "b"], 1);
    let train = |limit| {
        let ImageSet::Files(files) = load(&source(dir.path(), 1), limit).unwrap().train else { panic!() };
        files
    };
    train(None).check_classes(true).unwrap();
    // Of one image there is but one class.
    assert!(
        train(Some(1)).check_classes(true).unwrap_err().to_string().contains("has no images to learn from")
    );
    train(Some(1)).check_classes(false).unwrap();
    for entry in fs::read_dir(dir.path().join("train/b")).unwrap() {
        fs::write(entry.unwrap().path(), "no image").unwrap();
    }
    let error = train(None).check_classes(true).unwrap_err().to_string();
    assert!(error.contains("train/b`: none of ") && error.contains("expected one at least"), "{error}");
    let test = load_test(&source(dir.path(), 1)).unwrap();
    test.check().unwrap();
    for class in ["a", "b"] {
        fs::write(dir.path().join("val").join(class).join("000.jpg"), "no image").unwrap();
    }
    let error = load_test(&source(dir.path(), 1)).unwrap().check().unwrap_err().to_string();
    assert!(error.contains("val`: none of 2 images can be read, such as `"), "{error}");
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
    let nobody = load(&DataSource::new(&Folder, None, 1), None).err().unwrap().to_string();
    assert!(nobody.starts_with("folder: no directory given"), "{nobody}");
}

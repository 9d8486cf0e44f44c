//! Datasets from good and bad files, how they are split, and the batches made of them.

use burn::{data::dataloader::DataLoader, tensor::Device};
use dr_train::data::{
    self, Augmentation, CIFAR10, CIFAR100, DataError, DataSource, DatasetKind, Digits, FASHION_MNIST,
    FormatError, ImageBatch, ImageLoader, ImageSet, ImageShape, Images, MNIST, Normalization, TrainingLoader,
    cifar, digits, idx, records,
};
use flate2::{Compression, write::GzEncoder};
use proptest::{collection::vec, prelude::*};
use rand::{SeedableRng, rngs::StdRng};
use std::{fs, io::Write, path::Path, sync::Arc};
use tempfile::TempDir;

/// A dataset that is held in memory, split.
#[derive(Debug)]
struct Splits {
    train: Images,
    valid: Images,
    test: Images,
    normalization: Normalization,
}

fn in_memory(images: ImageSet) -> Images {
    match images {
        ImageSet::Memory(images) => Arc::unwrap_or_clone(images),
        ImageSet::Files(files) => panic!("{files:?}"),
    }
}

fn load(
    dataset: &dyn DatasetKind, dir: Option<&Path>, limit: Option<usize>, seed: u64,
) -> Result<Splits, DataError> {
    let data::Splits { train, valid, test, normalization } =
        data::load(&DataSource::new(dataset, dir, seed), limit)?;
    let [train, valid, test] = [train, valid, test].map(in_memory);
    Ok(Splits { train, valid, test, normalization })
}

fn load_test(dataset: &dyn DatasetKind, dir: Option<&Path>) -> Result<Images, DataError> {
    data::load_test(&DataSource::new(dataset, dir, 1)).map(in_memory)
}

fn idx_file(sizes: &[u32], content: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, sizes.len() as u8];
    file.extend(sizes.iter().flat_map(|size| size.to_be_bytes()));
    file.extend(content);
    file
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// Image `i` has only pixels of the value `i`, and the label `i % 10`.
fn write_mnist(dir: &Path, train: usize, test: usize) {
    fs::create_dir_all(dir).unwrap();
    for (stem, count) in [("train", train), ("t10k", test)] {
        let pixels: Vec<u8> = (0..count).flat_map(|i| [i as u8; 784]).collect();
        let labels: Vec<u8> = (0..count).map(|i| (i % 10) as u8).collect();
        let images = idx_file(&[count as u32, 28, 28], &pixels);
        fs::write(dir.join(format!("{stem}-images-idx3-ubyte")), images).unwrap();
        let labels = gzip(&idx_file(&[count as u32], &labels));
        fs::write(dir.join(format!("{stem}-labels.idx1-ubyte.gz")), labels).unwrap();
    }
}

/// Record `i` has the label `i % 10` (after a coarse label of 255) and pixels of the value `i`.
fn cifar_file(count: usize, label_bytes: usize) -> Vec<u8> {
    (0..count)
        .flat_map(|i| {
            let mut record = vec![255; label_bytes];
            record[label_bytes - 1] = (i % 10) as u8;
            record.extend([i as u8; 3072]);
            record
        })
        .collect()
}

fn error(dataset: &dyn DatasetKind, dir: &Path) -> String {
    let message = load(dataset, Some(dir), None, 1).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn digits_are_complete() {
    let all = digits::all().unwrap();
    assert_eq!((all.len(), all.classes), (1797, 10));
    assert_eq!(all.shape, ImageShape { channels: 1, height: 8, width: 8 });
    // The sums of the original file, of its pixels scaled to 0..=255 and of its labels.
    assert_eq!(all.pixels.iter().map(|&pixel| u64::from(pixel)).sum::<u64>(), 8_953_801);
    assert_eq!(all.pixels.iter().map(|&pixel| (u64::from(pixel) * 16 + 127) / 255).sum::<u64>(), 561_718);
    let counts: [usize; 10] =
        std::array::from_fn(|class| all.labels.iter().filter(|&&label| usize::from(label) == class).count());
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
}

#[test]
fn digits_are_split_the_same_way_by_the_same_seed() {
    let [one, again, other] = [1, 1, 2].map(|seed| load(&Digits, None, None, seed).unwrap());
    assert_eq!([one.train.len(), one.valid.len(), one.test.len()], [1257, 180, 360]);
    assert_eq!((&one.train, &one.valid), (&again.train, &again.valid));
    assert_ne!(one.valid, other.valid);
    assert_eq!(one.test, other.test);
    assert_eq!(one.test, load_test(&Digits, None).unwrap());
    // Together they are all images: nothing twice, nothing lost.
    let sorted = |parts: &[&Images]| {
        let mut images: Vec<_> = parts
            .iter()
            .flat_map(|part| (0..part.len()).map(|i| (part.labels[i], part.image(i).to_vec())))
            .collect();
        images.sort();
        images
    };
    assert_eq!(sorted(&[&one.train, &one.valid, &one.test]), sorted(&[&digits::all().unwrap()]));
}

/// Fixes the split: results of other versions can be compared only while it stays.
#[test]
fn digits_test_images_never_change() {
    let test = load_test(&Digits, None).unwrap();
    let sum = |images: &Images| {
        images
            .pixels
            .iter()
            .enumerate()
            .map(|(i, &pixel)| (i as u64 % 251 + 1) * u64::from(pixel))
            .sum::<u64>()
    };
    assert_eq!(sum(&test), TEST_SUM);
    assert_eq!(sum(&load(&Digits, None, None, 1).unwrap().valid), VALID_SUM);
}

const TEST_SUM: u64 = 225_943_638;
const VALID_SUM: u64 = 111_318_611;

#[test]
fn mnist_files_are_found_and_split() {
    let dir = TempDir::new().unwrap();
    for folder in ["", "data"] {
        let files = dir.path().join("at").join(folder);
        write_mnist(&files, 120, 7);
        let splits = load(&MNIST, Some(&dir.path().join("at")), None, 1).unwrap();
        assert_eq!([splits.train.len(), splits.valid.len(), splits.test.len()], [110, 10, 7]);
        assert_eq!(splits.train.image(109), [109; 784]);
        assert_eq!(splits.valid.labels, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(splits.valid.image(0), [110; 784]);
        fs::remove_dir_all(dir.path().join("at")).unwrap();
    }
}

#[test]
fn a_limit_takes_the_first_images() {
    let dir = TempDir::new().unwrap();
    write_mnist(dir.path(), 24, 1);
    let load = |limit| load(&MNIST, Some(dir.path()), Some(limit), 1);
    let few = load(3).unwrap();
    assert_eq!((few.train.labels, few.valid.labels), (vec![0, 1, 2], vec![2, 3]));
    assert_eq!(load(22).unwrap().train.len(), 22);
    for limit in [0, 23] {
        let message = load(limit).unwrap_err().to_string();
        assert_eq!(message, format!("mnist: a limit of {limit} training images, expected 1 to 22"));
    }
}

#[test]
fn cifar_files_are_found_and_split() {
    let dir = TempDir::new().unwrap();
    for (dataset, folder, label_bytes, test, train) in [
        (&CIFAR10, "cifar-10-batches-bin", 1, "test_batch.bin", 5),
        (&CIFAR100, "cifar-100-binary", 2, "test.bin", 1),
    ] {
        let files = dir.path().join(folder);
        fs::create_dir(&files).unwrap();
        fs::write(files.join(test), cifar_file(3, label_bytes)).unwrap();
        for batch in 1..=train {
            let name = if train == 1 { "train.bin".into() } else { format!("data_batch_{batch}.bin") };
            fs::write(files.join(name), cifar_file(20 / train, label_bytes)).unwrap();
        }
        for dir in [dir.path(), &files] {
            let splits = load(dataset, Some(dir), None, 1).unwrap();
            assert_eq!([splits.train.len(), splits.valid.len(), splits.test.len()], [18, 2, 3]);
            assert_eq!(splits.test.labels, [0, 1, 2]);
            assert_eq!(splits.test.image(2), [2; 3072]);
            assert_eq!(splits.normalization.mean.len(), 3);
        }
    }
}

#[test]
fn errors_name_the_file_what_was_found_and_what_was_expected() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    let message = error(&FASHION_MNIST, path);
    assert!(message.starts_with("fashion-mnist: found no train-images-idx3-ubyte or "), "{message}");
    assert!(message.contains(&path.display().to_string()), "{message}");
    assert!(message.contains("dataset-fashion-mnist"), "{message}");
    assert!(error(&CIFAR10, path).starts_with("cifar10: found no data_batch_1.bin in "));
    let message = load(&CIFAR100, None, None, 1).unwrap_err().to_string();
    assert!(message.starts_with("cifar100: no directory given, expected --data-dir"), "{message}");

    let images = path.join("train-images-idx3-ubyte");
    let labels = path.join("train-labels.idx1-ubyte.gz");
    let mut cut = gzip(&idx_file(&[24], &[0; 24]));
    cut.truncate(cut.len() - 4);
    let cases: [(&Path, Vec<u8>, &str); 12] = [
        (&images, vec![], "ends after 0 bytes of header, expected 16"),
        (&images, vec![0, 0, 8, 3, 0], "ends after 5 bytes of header, expected 16"),
        (&images, b"<!DOCTYPE html>".to_vec(), "starts with 0x3c21444f, expected 0x00000803 (IDX, unsigned"),
        (&images, idx_file(&[2, 28, 28], &[0; 784]), "ends after 784 bytes of pixels, expected 1568"),
        (&images, idx_file(&[1, 28, 28], &[0; 785]), "goes on after the 784 bytes of content"),
        (
            &images,
            idx_file(&[u32::MAX; 3], &[]),
            "has a header that announces 4294967295x4294967295x4294967295",
        ),
        (&images, idx_file(&[0, 28, 28], &[]), "has no images, expected at least one"),
        (&images, idx_file(&[1, 8, 8], &[0; 64]), "has images of 8x8 pixels, expected 28x28"),
        (&labels, gzip(&idx_file(&[23], &[0; 23])), "has 23 labels, expected 24 as in "),
        (&labels, gzip(&idx_file(&[24], &[10; 24])), "has label 10 for image 0, expected less than 10"),
        (&labels, cut, "cannot be read: "),
        (&labels, gzip(&idx_file(&[24], &vec![0; 1 << 24])), "goes on after the 24 bytes of content"),
    ];
    for (file, content, expected) in cases {
        write_mnist(path, 24, 1);
        fs::write(file, content).unwrap();
        let message = error(&MNIST, path);
        let (name, problem) = message.split_once(": ").unwrap();
        assert_eq!(name, file.display().to_string());
        assert!(problem.starts_with(expected), "{message}");
    }
    write_mnist(path, 1, 1);
    assert!(error(&MNIST, path).starts_with("mnist: has 1 training images, expected at least 2"));

    fs::write(path.join("train.bin"), [0; 3073]).unwrap();
    let message = error(&CIFAR100, path);
    assert!(
        message.ends_with("train.bin: has 3073 bytes, expected a multiple of 3074 (one image and its label)")
    );
    fs::write(path.join("train.bin"), [100; 3074]).unwrap();
    assert!(error(&CIFAR100, path).ends_with("has label 100 for image 0, expected less than 100"));
}

#[test]
fn fashion_mnist_of_debian() {
    if !Path::new("/usr/share/datasets/fashion-mnist").exists() {
        eprintln!("skipped: Debian's dataset-fashion-mnist is not installed");
        return;
    }
    let test = load_test(&FASHION_MNIST, None).unwrap();
    let splits = load(&FASHION_MNIST, None, Some(55_000), 1).unwrap();
    assert_eq!([splits.train.len(), splits.valid.len(), test.len()], [55_000, 5_000, 10_000]);
    assert_eq!(test, splits.test);
    // Known of all 60,000: 0.2860 and 0.3530.
    assert!((splits.normalization.mean[0] - 0.286).abs() < 2e-3);
    assert!((splits.normalization.std[0] - 0.353).abs() < 2e-3);
}

proptest! {
    #[test]
    fn idx_of_any_bytes_is_an_error(bytes in vec(any::<u8>(), 0..200), rank in 0..5u8, packed: bool) {
        // Random sizes announce far more than 200 bytes; small ones are made below.
        let mut file = vec![0, 0, 8, rank, 1];
        file.extend(bytes);
        let file = if packed { gzip(&file) } else { file };
        prop_assert!(idx::parse_images(&file[..]).is_err());
        prop_assert!(idx::parse_labels(&file[..]).is_err());
    }

    #[test]
    fn idx_cut_off_or_too_long_is_an_error(
        n in 1..5u32, h in 1..5u32, w in 1..5u32, cut: prop::sample::Index, more in 1..9usize, packed: bool
    ) {
        let pixels: Vec<u8> = (0..n * h * w).map(|i| i as u8).collect();
        let mut file = idx_file(&[n, h, w], &pixels);
        let whole = if packed { gzip(&file) } else { file.clone() };
        let images = idx::parse_images(&whole[..]).unwrap();
        prop_assert_eq!((images.count, images.height, images.width), (n as usize, h as usize, w as usize));
        prop_assert_eq!(images.pixels, pixels);
        prop_assert!(idx::parse_images(&whole[..cut.index(whole.len())]).is_err());
        prop_assert!(idx::parse_labels(&whole[..]).is_err());
        file.extend(vec![0; more]);
        let longer = if packed { gzip(&file) } else { file };
        let is_too_long = matches!(idx::parse_images(&longer[..]), Err(FormatError::TooLong { .. }));
        prop_assert!(is_too_long);
    }

    #[test]
    fn idx_changed_anywhere_never_panics(at: prop::sample::Index, to: u8, packed: bool) {
        let file = idx_file(&[3, 2, 2], &[7; 12]);
        let mut file = if packed { gzip(&file) } else { file };
        let at = at.index(file.len());
        file[at] = to;
        if let Ok(images) = idx::parse_images(&file[..]) {
            prop_assert_eq!(images.pixels.len(), images.count * images.height * images.width);
        }
    }

    #[test]
    fn records_of_any_length_are_whole_or_an_error(length in 0..10_000usize, value: u8) {
        for format in [cifar::CIFAR10.format, cifar::CIFAR100.format] {
            let record = format.label_bytes + 3072;
            let is_good = length > 0 && length % record == 0 && usize::from(value) < format.classes;
            prop_assert_eq!(records::parse(&vec![value; length][..], format).is_ok(), is_good);
        }
    }

    #[test]
    fn images_whose_parts_do_not_fit_are_refused(pixels in 0..50usize, labels in vec(0..5u8, 0..12), classes in 0..5usize) {
        let shape = ImageShape { channels: 1, height: 2, width: 2 };
        let is_good = !labels.is_empty()
            && pixels == labels.len() * 4
            && labels.iter().all(|&label| usize::from(label) < classes);
        prop_assert_eq!(Images::new(vec![0; pixels], labels, shape, classes).is_ok(), is_good);
    }

    #[test]
    fn augmentation_moves_and_mirrors(seed: u64, max_shift in 0..4u8, flip: bool) {
        let shape = ImageShape { channels: 2, height: 3, width: 4 };
        let image: Vec<u8> = (1..=24).collect();
        let mut out = vec![99; 24];
        let augmentation = Augmentation::new(max_shift, flip);
        augmentation.apply(&image, shape, &mut StdRng::seed_from_u64(seed), &mut out);
        let shift = isize::from(max_shift as i8);
        let moved = |down: isize, right: isize, mirrored: bool| -> Vec<u8> {
            let at = |c: isize, y: isize, x: isize| {
                let (y, x) = (y - down, if mirrored { 3 - x } else { x } - right);
                if (0..3).contains(&y) && (0..4).contains(&x) { image[(c * 12 + y * 4 + x) as usize] } else { 0 }
            };
            (0..24).map(|i| at(i / 12, i / 4 % 3, i % 4)).collect()
        };
        let any = (-shift..=shift).any(|down| (-shift..=shift).any(|right| {
            out == moved(down, right, false) || flip && out == moved(down, right, true)
        }));
        prop_assert!(any, "{:?}", out);
    }
}

/// Image `i` of `n` has pixels of the value `i`, and the label `i % 10`.
fn numbered(n: usize) -> Arc<Images> {
    let shape = ImageShape { channels: 1, height: 2, width: 2 };
    let pixels = (0..n).flat_map(|i| [i as u8; 4]).collect();
    Arc::new(Images::new(pixels, (0..n).map(|i| (i % 10) as u8).collect(), shape, 10).unwrap())
}

fn plain() -> Normalization {
    Normalization { std: vec![1.0 / 255.0], ..Normalization::none(1) }
}

fn training(n: usize, batch_size: usize, seed: u64) -> ImageLoader {
    let still = Augmentation::default();
    ImageLoader::training(numbered(n), plain(), batch_size, seed, still, Device::flex())
}

fn values(batch: &ImageBatch) -> (Vec<f32>, Vec<i64>) {
    let labels = batch.labels.classes.to_data().convert::<i64>().try_into_vec().unwrap();
    (batch.input.to_data().try_into_vec().unwrap(), labels)
}

fn epoch(loader: &dyn DataLoader<ImageBatch>) -> Vec<(Vec<f32>, Vec<i64>)> {
    loader.iter().map(|batch| values(&batch.unwrap())).collect()
}

/// The images of an epoch of [`numbered`] ones, by number, batch by batch.
fn numbers(loader: &dyn DataLoader<ImageBatch>) -> Vec<Vec<usize>> {
    let number = |pixels: &[f32]| pixels[0].round() as usize;
    epoch(loader).iter().map(|(pixels, _)| pixels.chunks(4).map(number).collect()).collect()
}

#[test]
fn evaluation_keeps_the_order_and_the_last_images() {
    let loader = ImageLoader::evaluation(numbered(9), plain(), 4, Device::flex());
    for _ in 0..2 {
        assert_eq!(numbers(&loader), [vec![0, 1, 2, 3], vec![4, 5, 6, 7], vec![8]]);
    }
    assert_eq!((loader.num_items(), loader.num_batches()), (9, 3));
    let mut batches = loader.iter();
    assert_eq!((batches.progress().items_processed, batches.progress().items_total), (0, 9));
    let first = batches.next().unwrap().unwrap();
    assert_eq!((first.input.dims(), values(&first).1), ([4, 1, 2, 2], vec![0, 1, 2, 3]));
    assert_eq!(batches.progress().items_processed, 4);
    assert_eq!(batches.by_ref().count(), 2);
    assert!(batches.progress().is_completed() && batches.next().is_none());
}

#[test]
fn an_epoch_has_every_image_once_and_no_batch_of_one() {
    for (n, batch_size, expected) in [
        (10, 4, vec![4, 4, 2]),
        (9, 4, vec![4, 5]),
        (8, 4, vec![4, 4]),
        (1, 4, vec![1]),
        (3, usize::MAX, vec![3]),
    ] {
        let loader = training(n, batch_size, 1);
        let batches = numbers(&loader);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), expected);
        assert_eq!(loader.num_batches(), expected.len());
        let mut all = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..n).collect::<Vec<_>>());
    }
}

#[test]
fn seed_and_epoch_alone_decide_the_batches() {
    let digits = load(&Digits, None, Some(200), 1).unwrap();
    let images = Arc::new(digits.train);
    let new = |seed| {
        let (normalization, usual) = (digits.normalization.clone(), Digits.augmentation());
        ImageLoader::training(images.clone(), normalization, 32, seed, usual, Device::flex())
    };
    let loader = new(7);
    let epochs: Vec<_> = (0..3).map(|_| epoch(&loader)).collect();
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(epochs[1], epochs[2]);
    assert_ne!(epochs[0], epoch(&new(8)));
    let resumed = new(7).starting_at(1);
    assert_eq!(epoch(&resumed), epochs[1]);
    // A copy goes on from where the original is, and leaves the original there.
    let copy = resumed.to_device(&Device::flex());
    assert_eq!(epoch(&*copy), epochs[2]);
    assert_eq!(epoch(&resumed), epochs[2]);
    // An epoch that is not finished counts.
    let broken = new(7);
    drop(broken.iter());
    assert_eq!(epoch(&broken), epochs[1]);
}

#[test]
fn batches_side_by_side_have_orders_of_their_own() {
    let loader = training(9, 4, 1).with_orders(3);
    let batches = numbers(&loader);
    assert_eq!((loader.num_items(), loader.num_batches()), (27, 2));
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [3 * 4, 3 * 5]);
    let order = |i: usize| -> Vec<usize> {
        batches.iter().flat_map(|batch| batch.chunks(batch.len() / 3).nth(i).unwrap()).copied().collect()
    };
    let orders = [0, 1, 2].map(order);
    for (i, order) in orders.iter().enumerate() {
        let mut all = order.clone();
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
        assert!(orders[..i].iter().all(|other| other != order));
    }
    // The first is the only one of a loader without the others.
    assert_eq!(numbers(&training(9, 4, 1)).concat(), orders[0]);
    let evaluation = ImageLoader::evaluation(numbered(9), plain(), 4, Device::flex()).with_orders(3);
    assert_eq!(numbers(&evaluation).concat(), (0..9).collect::<Vec<_>>());
}

/// Fixes the order: a run that is resumed by a later version must go on as it would have.
#[test]
fn the_order_never_changes() {
    assert_eq!(numbers(&training(6, 6, 1)).concat(), ORDER);
}

const ORDER: [usize; 6] = [3, 4, 5, 2, 0, 1];

#[test]
fn a_slice_has_only_its_images() {
    let loader = ImageLoader::evaluation(numbered(20), plain(), 4, Device::flex());
    let slice = loader.slice(5, 15);
    assert_eq!((slice.num_items(), numbers(&*slice).concat()), (10, (5..15).collect()));
    assert_eq!(numbers(&*slice.slice(8, 99)).concat(), [13, 14]);
    assert_eq!(slice.slice(3, 3).iter().count(), 0);
    // In training, of every epoch's order.
    let (whole, part) = (training(20, 4, 1), training(20, 4, 1).slice(5, 15));
    assert_eq!(numbers(&*part).concat(), numbers(&whole).concat()[5..15]);
}

#[test]
fn leaving_an_epoch_early_does_not_hang() {
    let loader = training(200, 2, 1);
    for taken in 0..20 {
        assert_eq!(loader.iter().take(taken).count(), taken);
    }
}

#[test]
fn normalised_images_have_mean_0_and_deviation_1() {
    let splits = load(&Digits, None, None, 1).unwrap();
    assert!(splits.normalization.fits(splits.train.shape.channels));
    let loader = ImageLoader::evaluation(Arc::new(splits.train), splits.normalization, 64, Device::flex());
    let pixels: Vec<f64> = epoch(&loader).into_iter().flat_map(|(pixels, _)| pixels).map(f64::from).collect();
    let mean = pixels.iter().sum::<f64>() / pixels.len() as f64;
    let variance = pixels.iter().map(|pixel| (pixel - mean).powi(2)).sum::<f64>() / pixels.len() as f64;
    assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-5, "{mean} {variance}");
    // One value only: nothing to divide by.
    let black =
        Images::new(vec![51; 8], vec![0, 0], ImageShape { channels: 2, height: 1, width: 2 }, 1).unwrap();
    let black = black.normalization();
    assert_eq!((black.mean, black.std), (vec![0.2; 2], vec![1.0; 2]));
}

#[test]
fn a_data_error_can_be_told_apart() {
    let missing = load(&MNIST, Some(Path::new("/nowhere")), None, 1);
    assert!(matches!(missing, Err(DataError::Missing { dataset: "mnist", .. })));
}

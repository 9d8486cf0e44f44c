//! Reading, cutting and normalising JPEG files for training. `DR_BENCH_IMAGES=DIR cargo bench -- loader`, with a folder
//! as `dr-train`'s example `synthetic_folder` writes it.

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use criterion::{Criterion, Throughput};
use dr_bench::Work;
use dr_train::data::{DataSource, DatasetKind, Folder, ImageLoader, Splits, load};
use std::path::PathBuf;

const BATCH: usize = 64;

pub fn loading(criterion: &mut Criterion) {
    let Some(dir) = std::env::var_os("DR_BENCH_IMAGES").map(PathBuf::from) else {
        eprintln!("loader: skipped, as DR_BENCH_IMAGES names no folder of images");
        return;
    };
    let source = DataSource::new(&Folder, Some(&dir), 1);
    let Splits { train, normalization, .. } = load(&source, None).expect("a folder of images");
    let count = train.len();
    let usual = Folder.augmentation();
    let training =
        ImageLoader::training(train.clone(), normalization.clone(), BATCH, 1, usual, Device::flex());
    let evaluation = ImageLoader::evaluation(train, normalization, BATCH, Device::flex());
    let mut work = Work::new(criterion, "loader", Throughput::Elements(count as u64));
    for (name, loader) in [("training", training), ("evaluation", evaluation)] {
        work.measure(name, || {
            let read: usize =
                loader.iter().map(|batch| batch.expect("an image").labels.classes.dims()[0]).sum();
            assert_eq!(read, count);
        });
    }
}

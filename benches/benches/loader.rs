//! Reading, cutting and normalising JPEG files for training. `DR_BENCH_IMAGES=DIR cargo bench -p dr-bench -- loader`, with a folder
//! as `dr-train`'s example `synthetic_folder` writes it.

use burn::data::dataloader::DataLoader;
use burn::tensor::Device;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dr_train::data::{DataSource, DatasetKind, Folder, ImageLoader, Splits, load};
use std::path::PathBuf;
use std::time::Duration;

const BATCH: usize = 64;

fn loading(criterion: &mut Criterion) {
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
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Elements(count as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(60));
    for (name, loader) in [("training", training), ("evaluation", evaluation)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let read: usize =
                    loader.iter().map(|batch| batch.expect("an image").labels.classes.dims()[0]).sum();
                assert_eq!(read, count);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, loading);
criterion_main!(benches);

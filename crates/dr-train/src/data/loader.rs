//! [`ImageLoader`]: batches of normalised images, prepared on a thread of their own.

use super::decode::decode;
use super::epochs::Source;
use super::normalization::Pixels;
use super::{
    Augmentation, Classes, Epochs, ImageBatch, ImageFiles, ImageSet, Images, Loader, Normalization, random,
};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};
use chacha20::ChaCha8Rng;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_distr::{Beta, Distribution};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use std::{
    io,
    num::NonZeroUsize,
    ops::Range,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

/// Batches that wait, ready, for the one who trains.
const AHEAD: usize = 2;

/// Makes batches of images: shuffled and augmented for training, or in their order for evaluation.
///
/// A batch of training depends on the images, the batch size, the augmentation, the seed and the epoch, and on nothing
/// else. Every [`iter`](burn::data::dataloader::DataLoader::iter) is one epoch.
pub type ImageLoader = Loader<Pictures>;

/// Images, and what is done to them.
#[derive(Debug)]
pub struct Pictures {
    images: ImageSet,
    /// What becomes of them.
    pixels: Pixels,
    /// In training.
    augmentation: Option<Augmentation>,
}

impl ImageLoader {
    /// For training. A single image left over at the end joins the batch before it, as BatchNorm needs two.
    ///
    /// # Panics
    /// If `normalization` does not [fit](Normalization::fits) the images.
    #[must_use]
    pub fn training(
        images: impl Into<ImageSet>, normalization: Normalization, batch_size: usize, seed: u64,
        augmentation: Augmentation, device: Device,
    ) -> Self {
        let pictures = Pictures::new(images.into(), &normalization, Some(augmentation));
        let epochs = Epochs::new(pictures.images.len(), batch_size, Some(seed)).in_pairs();
        Self::of(pictures, epochs, device)
    }

    /// For evaluation: every image as it is, in order.
    ///
    /// # Panics
    /// If `normalization` does not [fit](Normalization::fits) the images.
    #[must_use]
    pub fn evaluation(
        images: impl Into<ImageSet>, normalization: Normalization, batch_size: usize, device: Device,
    ) -> Self {
        let pictures = Pictures::new(images.into(), &normalization, None);
        let epochs = Epochs::new(pictures.images.len(), batch_size, None);
        Self::of(pictures, epochs, device)
    }
}

impl Pictures {
    fn new(images: ImageSet, normalization: &Normalization, augmentation: Option<Augmentation>) -> Self {
        let shape = images.shape();
        assert!(normalization.fits(shape.channels), "{normalization:?} is not for {shape:?}");
        Self { images, pixels: Pixels::new(normalization), augmentation }
    }
}

impl Source for Pictures {
    type Input = Tensor<4>;
    type Target = Classes;

    fn epoch<'a>(
        self: &'a Arc<Self>, epochs: &Epochs, epoch: u64, device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<ImageBatch, DatasetError>> + 'a> {
        let preparation = Preparation {
            pictures: self.clone(),
            range: epochs.range.clone(),
            ends: epochs.batch_ends(),
            training: epochs.training.zip(self.augmentation),
            epoch,
        };
        Box::new(Batches::start(preparation, epochs.waited.clone(), device))
    }
}

/// A batch that is not yet on a device.
#[derive(Default)]
struct Prepared {
    /// `[n, c, h, w]`
    pixels: Vec<f32>,
    /// `[n]`
    labels: Vec<i64>,
    /// The classes of what images are mixed with, and the part that their own have; empty without mixtures.
    others: Vec<i64>,
    parts: Vec<f32>,
}

impl Prepared {
    /// Mixes the images from the one at `start` with each other, in a new order: all have the same part of their mixture.
    fn mix(&mut self, start: usize, alpha: f64, rng: &mut ChaCha8Rng) {
        let count = self.labels.len() - start;
        let Ok(beta) = Beta::new(alpha, alpha) else { return };
        let part = beta.sample(rng) as f32;
        let mut others: Vec<usize> = (0..count).collect();
        others.shuffle(rng);
        let size = self.pixels.len() / self.labels.len().max(1);
        let before = self.pixels[start * size..].to_vec();
        for (image, other) in self.pixels[start * size..].chunks_exact_mut(size.max(1)).zip(&others) {
            let other = &before[other * size..][..size];
            image
                .iter_mut()
                .zip(other)
                .for_each(|(pixel, other)| *pixel = part * *pixel + (1.0 - part) * other);
        }
        self.others.extend(others.iter().map(|other| self.labels[start + other]));
        self.parts.resize(self.labels.len(), part);
    }
}

/// Everything that the batches of an epoch are made from.
struct Preparation {
    pictures: Arc<Pictures>,
    range: Range<usize>,
    ends: Vec<usize>,
    /// The seed and the orders, and what changes images.
    training: Option<((u64, u32), Augmentation)>,
    epoch: u64,
}

impl Preparation {
    /// Sends all batches, or those until nobody wants more.
    fn run(self, sender: &SyncSender<Prepared>) {
        let mut orders: Vec<_> = match self.training {
            None => vec![Order { indices: self.range.clone().collect(), changes: None }],
            Some(((seed, orders), augmentation)) => {
                let order = |order| {
                    let mut rng = random::of_epoch(seed, self.epoch, order);
                    let mut indices: Vec<_> = (0..self.pictures.images.len()).collect();
                    indices.shuffle(&mut rng);
                    if self.range.len() < indices.len() {
                        indices = indices[self.range.clone()].to_vec();
                        // Other parts change their images in other ways.
                        rng = ChaCha8Rng::seed_from_u64(rng.next_u64().wrapping_add(self.range.start as u64));
                    }
                    Order { indices, changes: Some((augmentation, rng)) }
                };
                (0..orders).map(order).collect()
            }
        };
        let mut start = 0;
        for &end in &self.ends {
            let mut batch = Prepared::default();
            for order in &mut orders {
                let first = batch.labels.len();
                match &self.pictures.images {
                    ImageSet::Memory(images) => self.add(images, order, start..end, &mut batch),
                    ImageSet::Files(files) => self.add_files(files, order, start..end, &mut batch),
                }
                if let Some((Augmentation { mixup, .. }, rng)) =
                    order.changes.as_mut().filter(|(of, _)| of.mixup > 0.0)
                {
                    batch.mix(first, *mixup, rng);
                }
            }
            start = end;
            // All of its files may be damaged.
            if !batch.labels.is_empty() && sender.send(batch).is_err() {
                return;
            }
        }
    }

    /// Adds those images to a batch that are at `positions` in an order.
    fn add(&self, images: &Images, order: &mut Order, positions: Range<usize>, batch: &mut Prepared) {
        let mut changed = vec![0; images.shape.bytes()];
        for &index in &order.indices[positions] {
            let mut image = images.image(index);
            if let Some((augmentation, rng)) = &mut order.changes {
                augmentation.apply(image, images.shape, rng, &mut changed);
                image = &changed;
            }
            self.push(image, index, batch);
        }
    }

    /// The same of files, read on all processors. Those that cannot be read are skipped; in training, others take their place,
    /// so that all batches have their size.
    fn add_files(
        &self, files: &ImageFiles, order: &mut Order, positions: Range<usize>, batch: &mut Prepared,
    ) {
        let (indices, first) = (&order.indices, positions.start);
        let changes = order.changes.as_mut();
        let seeds: Option<(Augmentation, Vec<u64>)> =
            changes.map(|(of, rng)| (*of, positions.clone().map(|_| rng.next_u64()).collect()));
        let read = |position: usize| -> Option<(usize, Vec<u8>)> {
            let seeded =
                |(of, seeds): &(_, Vec<u64>)| (*of, ChaCha8Rng::seed_from_u64(seeds[position - first]));
            let mut changes: Option<(Augmentation, _)> = seeds.as_ref().map(seeded);
            let tries = if changes.is_some() { REPLACEMENTS } else { 1 };
            for attempt in 0..tries {
                let index = indices[(position + attempt * REPLACEMENT_STEP) % indices.len()];
                let mut pixels = Vec::with_capacity(files.shape.bytes());
                let random = changes.as_mut().map(|(of, rng)| (of.changes, rng as &mut dyn Rng));
                if let Err(error) =
                    decode(&files.files[index].0, files.shape, files.resize, random, &mut pixels)
                {
                    files.skip(index, error);
                    continue;
                }
                if let Some((of, rng)) = &mut changes {
                    of.recolour(&mut pixels, files.shape, rng);
                }
                return Some((index, pixels));
            }
            None
        };
        let images: Vec<_> = READERS.install(|| positions.into_par_iter().map(read).collect());
        for (index, pixels) in images.into_iter().flatten() {
            self.push(&pixels, index, batch);
        }
    }

    /// Adds one image, `[c, h, w]`, to a batch.
    fn push(&self, image: &[u8], index: usize, batch: &mut Prepared) {
        self.pictures.pixels.extend(&mut batch.pixels, image);
        batch.labels.push(self.pictures.images.label(index) as i64);
    }
}

/// So many files are tried in place of one that cannot be read, so far from each other in the order.
const REPLACEMENTS: usize = 16;
const REPLACEMENT_STEP: usize = 7919;

/// Threads that read files: their own, so that whoever computes on the others does not wait for them.
static READERS: LazyLock<ThreadPool> = LazyLock::new(|| {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let named = ThreadPoolBuilder::new().thread_name(|i| format!("images {i}"));
    named.num_threads(threads).build().expect("the system has threads to give")
});

/// One way through the images in an epoch.
struct Order {
    indices: Vec<usize>,
    /// What changes images in training, and the random numbers that say how.
    changes: Option<(Augmentation, ChaCha8Rng)>,
}

/// The batches of one epoch.
struct Batches<'a> {
    /// `None` once there is nothing more to come.
    receiver: Option<Receiver<Prepared>>,
    worker: Option<JoinHandle<()>>,
    failure: Option<io::Error>,
    /// `[c, h, w]`
    shape: [usize; 3],
    label_smoothing: f64,
    waited: Arc<AtomicU64>,
    device: &'a Device,
}

impl<'a> Batches<'a> {
    fn start(preparation: Preparation, waited: Arc<AtomicU64>, device: &'a Device) -> Self {
        let shape = preparation.pictures.images.shape();
        let label_smoothing = preparation.training.map_or(0.0, |(_, of)| of.label_smoothing);
        let (sender, receiver) = sync_channel(AHEAD);
        let worker = thread::Builder::new().name("batches".into()).spawn(move || preparation.run(&sender));
        let (worker, failure) =
            worker.map_or_else(|error| (None, Some(error)), |worker| (Some(worker), None));
        let shape = [shape.channels, shape.height, shape.width];
        Self { receiver: Some(receiver), worker, failure, shape, label_smoothing, waited, device }
    }

    /// Lets the worker end, and waits for that.
    fn stop(&mut self) -> thread::Result<()> {
        self.receiver = None;
        self.worker.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<ImageBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let received = self.receiver.as_ref()?.recv();
        self.waited.fetch_add(started.elapsed().as_micros() as u64, Ordering::Relaxed);
        if let Ok(Prepared { pixels, labels, others, parts }) = received {
            let [channels, height, width] = self.shape;
            let count = labels.len();
            let images = TensorData::new(pixels, [count, channels, height, width]);
            let classes = |of: Vec<i64>| Tensor::from_data(TensorData::new(of, [count]), self.device);
            let parts =
                (!parts.is_empty()).then(|| Tensor::from_data(TensorData::new(parts, [count]), self.device));
            let labels = Classes {
                classes: classes(labels),
                mixed: parts.map(|parts| (classes(others), parts)),
                smoothing: self.label_smoothing,
            };
            return Some(Ok(ImageBatch { input: Tensor::from_data(images, self.device), labels }));
        }
        let ended = self.stop();
        let failure = self.failure.take().or_else(|| {
            ended.is_err().then(|| io::Error::other("the thread that prepares batches panicked"))
        });
        failure.map(|error| Err(DatasetError::new(error)))
    }
}

impl Drop for Batches<'_> {
    fn drop(&mut self) {
        // A panic of the worker was reported on its own thread; there is nobody left to return it to.
        let _ = self.stop();
    }
}

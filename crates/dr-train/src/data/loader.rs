//! [`ImageLoader`]: batches of normalised images, prepared on a thread of their own.

use super::ahead::{Ahead, read_all, read_one};
use super::decode::{Decoded, decode};
use super::epochs::Source;
use super::images::ImageShape;
use super::normalization::Pixels;
use super::{
    Augmentation, Classes, Epochs, ImageBatch, ImageFiles, ImageSet, Images, Loader, Normalization, Noted,
    random,
};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};
use chacha20::ChaCha8Rng;
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_distr::{Beta, Distribution};
use std::ops::Range;
use std::sync::Arc;

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

    fn noted(&self) -> Noted {
        self.images.noted()
    }

    fn epoch<'a>(
        self: &'a Arc<Self>, epochs: &Epochs, epoch: u64, device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<ImageBatch, DatasetError>> + 'a> {
        let preparation = Preparation {
            pictures: self.clone(),
            range: epochs.range.clone(),
            training: epochs.training.zip(self.augmentation),
            epoch,
        };
        let mut orders = None;
        let prepare = move |positions| {
            preparation.prepare(orders.get_or_insert_with(|| preparation.orders()), positions)
        };
        let prepared = Ahead::start(epochs.batch_ends(), epochs.waited.clone(), prepare);
        let shape = self.images.shape();
        let smoothing = epochs.training.and(self.augmentation).map_or(0.0, |of| of.label_smoothing);
        Box::new(prepared.map(move |prepared| Ok(prepared?.on(shape, smoothing, device))))
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

    fn on(
        self, ImageShape { channels, height, width }: ImageShape, smoothing: f64, device: &Device,
    ) -> ImageBatch {
        let count = self.labels.len();
        let images = TensorData::new(self.pixels, [count, channels, height, width]);
        let classes = |of: Vec<i64>| Tensor::from_data(TensorData::new(of, [count]), device);
        let parts =
            (!self.parts.is_empty()).then(|| Tensor::from_data(TensorData::new(self.parts, [count]), device));
        let labels = Classes {
            classes: classes(self.labels),
            mixed: parts.map(|parts| (classes(self.others), parts)),
            smoothing,
        };
        ImageBatch { input: Tensor::from_data(images, device), labels }
    }
}

/// Everything that the batches of an epoch are made from.
struct Preparation {
    pictures: Arc<Pictures>,
    range: Range<usize>,
    /// The seed and the orders, and what changes images.
    training: Option<((u64, u32), Augmentation)>,
    epoch: u64,
}

impl Preparation {
    /// The ways through the images, side by side.
    fn orders(&self) -> Vec<Order> {
        let Some(((seed, orders), augmentation)) = self.training else {
            return vec![Order { indices: self.range.clone().collect(), changes: None }];
        };
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

    /// The batch of some positions in each order; `None` if all of its files are damaged.
    fn prepare(&self, orders: &mut [Order], positions: Range<usize>) -> Option<Prepared> {
        let mut batch = Prepared::default();
        for order in orders {
            let first = batch.labels.len();
            match &self.pictures.images {
                ImageSet::Memory(images) => self.add(images, order, positions.clone(), &mut batch),
                ImageSet::Files(files) => self.add_files(files, order, positions.clone(), &mut batch),
            }
            let mixing = order.changes.as_mut().filter(|(of, _)| of.mixup > 0.0);
            if let Some((Augmentation { mixup, .. }, rng)) = mixing {
                batch.mix(first, *mixup, rng);
            }
        }
        (!batch.labels.is_empty()).then_some(batch)
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
            let training = changes.is_some();
            read_one(indices, position, training, |&index| {
                let mut pixels = Vec::with_capacity(files.shape.bytes());
                let random = changes.as_mut().map(|(of, rng)| (of.changes, rng as &mut dyn Rng));
                let path = &files.files[index].0;
                let read = decode(path, files.shape, files.resize, random, &mut pixels);
                let Decoded { is_turned, .. } = read.map_err(|error| files.noted.skip(path, error)).ok()?;
                if is_turned {
                    files.noted.turn(path);
                }
                if let Some((of, rng)) = &mut changes {
                    of.recolour(&mut pixels, files.shape, rng);
                }
                Some((index, pixels))
            })
        };
        for (index, pixels) in read_all(positions, read) {
            self.push(&pixels, index, batch);
        }
    }

    /// Adds one image, `[c, h, w]`, to a batch.
    fn push(&self, image: &[u8], index: usize, batch: &mut Prepared) {
        self.pictures.pixels.extend(&mut batch.pixels, image);
        batch.labels.push(self.pictures.images.label(index) as i64);
    }
}

/// One way through the images in an epoch.
struct Order {
    indices: Vec<usize>,
    /// What changes images in training, and the random numbers that say how.
    changes: Option<(Augmentation, ChaCha8Rng)>,
}

//! [`ImageLoader`]: batches of normalised images, prepared on a thread of their own.

use super::{Augmentation, Images, Normalization, random};
use burn::{
    data::{
        dataloader::{DataLoader, DataLoaderIterator, Progress},
        dataset::DatasetError,
    },
    tensor::{Device, Int, Tensor, TensorData},
};
use rand::seq::SliceRandom;
use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

/// Batches that wait, ready, for the one who trains.
const AHEAD: usize = 2;

/// Images and what they show.
#[derive(Clone, Debug)]
pub struct ImageBatch {
    /// `[n, c, h, w]`, normalised.
    pub images: Tensor<4>,
    /// `[n]`, the classes.
    pub labels: Tensor<1, Int>,
}

/// Makes batches of images: shuffled and augmented for training, or in their order for evaluation.
///
/// A batch of training depends on the images, the batch size, the augmentation, the seed and the epoch, and on nothing
/// else. Every [`iter`](DataLoader::iter) is one epoch.
#[derive(Debug)]
pub struct ImageLoader {
    images: Arc<Images>,
    range: Range<usize>,
    normalization: Normalization,
    batch_size: usize,
    training: Option<Training>,
    epoch: AtomicU64,
    device: Device,
}

#[derive(Clone, Copy, Debug)]
struct Training {
    seed: u64,
    augmentation: Augmentation,
}

impl ImageLoader {
    /// For training. A single image left over at the end joins the batch before it, as BatchNorm needs two.
    ///
    /// # Panics
    /// If `normalization` does not [fit](Normalization::fits) the images.
    #[must_use]
    pub fn training(
        images: Arc<Images>, normalization: Normalization, batch_size: usize, seed: u64,
        augmentation: Augmentation, device: Device,
    ) -> Self {
        Self::new(images, normalization, batch_size, Some(Training { seed, augmentation }), device)
    }

    /// For evaluation: every image as it is, in order.
    ///
    /// # Panics
    /// If `normalization` does not [fit](Normalization::fits) the images.
    #[must_use]
    pub fn evaluation(
        images: Arc<Images>, normalization: Normalization, batch_size: usize, device: Device,
    ) -> Self {
        Self::new(images, normalization, batch_size, None, device)
    }

    fn new(
        images: Arc<Images>, normalization: Normalization, batch_size: usize, training: Option<Training>,
        device: Device,
    ) -> Self {
        assert!(normalization.fits(images.shape), "{normalization:?} is not for {:?}", images.shape);
        let range = 0..images.len();
        let (batch_size, epoch) = (batch_size.max(1), AtomicU64::new(0));
        Self { images, range, normalization, batch_size, training, epoch, device }
    }

    /// Makes the next [`iter`](DataLoader::iter) that of `epoch`, from 0: a resumed run goes on as it would have.
    #[must_use]
    pub fn starting_at(self, epoch: u64) -> Self {
        Self { epoch: AtomicU64::new(epoch), ..self }
    }

    /// Number of batches in an epoch.
    #[must_use]
    pub fn num_batches(&self) -> usize {
        self.batch_ends().len()
    }

    /// Where each batch ends, in images from the start of the epoch.
    fn batch_ends(&self) -> Vec<usize> {
        let (count, size) = (self.range.len(), self.batch_size);
        let mut ends: Vec<usize> =
            (1..=count.div_ceil(size)).map(|batch| batch.saturating_mul(size).min(count)).collect();
        if self.training.is_some() && count % size == 1 && ends.len() > 1 {
            ends.remove(ends.len() - 2);
        }
        ends
    }

    /// The same at the same epoch, with other images or another device.
    fn with(&self, range: Range<usize>, device: Device) -> Self {
        Self {
            images: self.images.clone(),
            range,
            normalization: self.normalization.clone(),
            batch_size: self.batch_size,
            training: self.training,
            epoch: AtomicU64::new(self.epoch.load(Ordering::Relaxed)),
            device,
        }
    }

    /// What the thread of an epoch does.
    fn preparation(&self, epoch: u64) -> Preparation {
        Preparation {
            images: self.images.clone(),
            order: self.range.clone().collect(),
            ends: self.batch_ends(),
            tables: self.normalization.tables(),
            training: self.training,
            epoch,
        }
    }
}

impl DataLoader<ImageBatch> for ImageLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ImageBatch> + 'a> {
        let preparation = self.preparation(self.epoch.fetch_add(1, Ordering::Relaxed));
        Box::new(Batches::start(preparation, self.range.len(), self.device.clone()))
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<ImageBatch>> {
        Arc::new(self.with(self.range.clone(), device.clone()))
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<ImageBatch>> {
        let end = self.range.start.saturating_add(end).min(self.range.end);
        let start = self.range.start.saturating_add(start).min(end);
        Arc::new(self.with(start..end, self.device.clone()))
    }
}

/// A batch that is not yet on a device.
struct Prepared {
    /// `[n, c, h, w]`
    pixels: Vec<f32>,
    /// `[n]`
    labels: Vec<i64>,
}

/// Everything that the batches of an epoch are made from.
struct Preparation {
    images: Arc<Images>,
    order: Vec<usize>,
    ends: Vec<usize>,
    tables: Vec<[f32; 256]>,
    training: Option<Training>,
    epoch: u64,
}

impl Preparation {
    /// Sends all batches, or those until nobody wants more.
    fn run(mut self, sender: &SyncSender<Prepared>) {
        let mut changes = self.training.map(|training| {
            let mut rng = random::of_epoch(training.seed, self.epoch);
            self.order.shuffle(&mut rng);
            (training.augmentation, rng)
        });
        let shape = self.images.shape;
        let mut changed = vec![0; shape.bytes()];
        let mut start = 0;
        for &end in &self.ends {
            let indices = &self.order[start..end];
            start = end;
            let mut pixels = Vec::with_capacity(indices.len() * shape.bytes());
            for &index in indices {
                let mut image = self.images.image(index);
                if let Some((augmentation, rng)) = &mut changes {
                    augmentation.apply(image, shape, rng, &mut changed);
                    image = &changed;
                }
                for (plane, table) in image.chunks_exact(shape.height * shape.width).zip(&self.tables) {
                    pixels.extend(plane.iter().map(|&pixel| table[usize::from(pixel)]));
                }
            }
            let labels = indices.iter().map(|&index| self.images.labels[index].into()).collect();
            if sender.send(Prepared { pixels, labels }).is_err() {
                return;
            }
        }
    }
}

/// The batches of one epoch.
struct Batches {
    /// `None` once there is nothing more to come.
    receiver: Option<Receiver<Prepared>>,
    worker: Option<JoinHandle<()>>,
    failure: Option<io::Error>,
    /// `[c, h, w]`
    shape: [usize; 3],
    done: usize,
    total: usize,
    device: Device,
}

impl Batches {
    fn start(preparation: Preparation, total: usize, device: Device) -> Self {
        let shape = preparation.images.shape;
        let (sender, receiver) = sync_channel(AHEAD);
        let worker = thread::Builder::new().name("batches".into()).spawn(move || preparation.run(&sender));
        let (worker, failure) =
            worker.map_or_else(|error| (None, Some(error)), |worker| (Some(worker), None));
        let shape = [shape.channels, shape.height, shape.width];
        Self { receiver: Some(receiver), worker, failure, shape, done: 0, total, device }
    }

    /// Lets the worker end, and waits for that.
    fn stop(&mut self) -> thread::Result<()> {
        self.receiver = None;
        self.worker.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Iterator for Batches {
    type Item = Result<ImageBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(Prepared { pixels, labels }) = self.receiver.as_ref()?.recv() {
            let [channels, height, width] = self.shape;
            let count = labels.len();
            self.done += count;
            let images = TensorData::new(pixels, [count, channels, height, width]);
            return Some(Ok(ImageBatch {
                images: Tensor::from_data(images, &self.device),
                labels: Tensor::from_data(TensorData::new(labels, [count]), &self.device),
            }));
        }
        let ended = self.stop();
        let failure = self.failure.take().or_else(|| {
            ended.is_err().then(|| io::Error::other("the thread that prepares batches panicked"))
        });
        failure.map(|error| Err(DatasetError::new(error)))
    }
}

impl DataLoaderIterator<ImageBatch> for Batches {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.total, Some("items".into()))
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // A panic of the worker was reported on its own thread; there is nobody left to return it to.
        let _ = self.stop();
    }
}

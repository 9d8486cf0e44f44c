//! [`Loader`]: batches of images or of anything that is in memory, and [`Epochs`]: which items they are.

use super::{Batch, Input, Noted, Target, TrainingLoader, random};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;
use chacha20::ChaCha8Rng;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which of its items a loader goes over, and how often it did: in training in an order of each epoch, or in several side by
/// side.
#[derive(Debug)]
pub struct Epochs {
    /// Positions in an epoch's order.
    pub(super) range: Range<usize>,
    batch_size: usize,
    /// The seed and the orders.
    pub(super) training: Option<(u64, u32)>,
    /// A single item left over at the end of training joins the batch before it.
    in_pairs: bool,
    epoch: AtomicU64,
    /// Microseconds.
    pub(super) waited: Arc<AtomicU64>,
}

impl Epochs {
    /// Of so many items, for training with a seed, or without one for evaluation.
    pub(crate) fn new(items: usize, batch_size: usize, seed: Option<u64>) -> Self {
        Self {
            range: 0..items,
            batch_size: batch_size.max(1),
            training: seed.map(|seed| (seed, 1)),
            in_pairs: false,
            epoch: AtomicU64::new(0),
            waited: Arc::default(),
        }
    }

    /// With no batch of a single item in training, if there are more: BatchNorm needs two.
    pub(crate) fn in_pairs(self) -> Self {
        Self { in_pairs: true, ..self }
    }

    pub(crate) fn starting_at(self, epoch: u64) -> Self {
        Self { epoch: AtomicU64::new(epoch), ..self }
    }

    /// Of no effect in evaluation.
    pub(crate) fn with_orders(self, orders: u32) -> Self {
        Self { training: self.training.map(|(seed, _)| (seed, orders.max(1))), ..self }
    }

    fn orders(&self) -> usize {
        self.training.map_or(1, |(_, orders)| orders as usize)
    }

    pub(crate) fn num_items(&self) -> usize {
        self.range.len().saturating_mul(self.orders())
    }

    /// Where each batch ends, in items of one order from the start of the epoch.
    pub(crate) fn batch_ends(&self) -> Vec<usize> {
        let (count, size) = (self.range.len(), self.batch_size);
        let mut ends: Vec<usize> =
            (1..=count.div_ceil(size)).map(|batch| batch.saturating_mul(size).min(count)).collect();
        if self.in_pairs && self.training.is_some() && count % size == 1 && ends.len() > 1 {
            ends.remove(ends.len() - 2);
        }
        ends
    }

    /// The number of the epoch that begins now.
    pub(crate) fn begin(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::Relaxed)
    }

    /// The same, at the same epoch.
    pub(crate) fn again(&self) -> Self {
        let (range, waited) = (self.range.clone(), self.waited.clone());
        Self { range, epoch: AtomicU64::new(self.epoch.load(Ordering::Relaxed)), waited, ..*self }
    }

    /// A part of the items, counted through all orders; in training, positions of each epoch's order, so that every part has other
    /// items in every epoch.
    pub(crate) fn part(&self, start: usize, end: usize) -> Self {
        let (start, end) = (start / self.orders(), end / self.orders());
        let end = self.range.start.saturating_add(end).min(self.range.end);
        let start = self.range.start.saturating_add(start).min(end);
        Self { range: start..end, ..self.again() }
    }
}

/// What makes the batches of a [`Loader`].
pub trait Source: Debug + Send + Sync + Sized + 'static {
    /// What networks take.
    type Input: Input;
    /// What they learn.
    type Target: Target;

    /// What is noted of the files that they are read from.
    fn noted(&self) -> Noted {
        Noted::default()
    }

    /// The batches of epoch number `epoch`.
    fn epoch<'a>(self: &'a Arc<Self>, epochs: &Epochs, epoch: u64, device: &'a Device)
    -> BatchesOf<'a, Self>;
}

type BatchOf<S> = Batch<<S as Source>::Input, <S as Source>::Target>;
type BatchesOf<'a, S> = Box<dyn Iterator<Item = Result<BatchOf<S>, DatasetError>> + 'a>;

/// Items in memory, of which batches are made.
pub trait Items: Debug + Send + Sync + 'static {
    /// What networks take.
    type Input: Input;
    /// What they learn.
    type Target: Target;
    /// Says which item it is, and how it is changed.
    type Item: Clone + Debug + Send;

    /// All items, for training as the random numbers say, else in their own order.
    fn order(&self, random: Option<ChaCha8Rng>) -> Vec<Self::Item>;

    /// Whether neighbours may be in one batch.
    fn alike(&self, _: &Self::Item, _: &Self::Item) -> bool {
        true
    }

    /// The batch of some items.
    fn batch(&self, items: &[Self::Item], device: &Device) -> Batch<Self::Input, Self::Target>;
}

impl<S: Items> Source for S {
    type Input = <S as Items>::Input;
    type Target = <S as Items>::Target;

    fn epoch<'a>(
        self: &'a Arc<Self>, epochs: &Epochs, epoch: u64, device: &'a Device,
    ) -> BatchesOf<'a, Self> {
        let order = |random: Option<ChaCha8Rng>| {
            let mut items = self.order(random);
            let Range { start, end } = epochs.range;
            items.truncate(end);
            items.drain(..start.min(items.len()));
            items
        };
        let orders: Vec<Vec<S::Item>> = match epochs.training {
            None => vec![order(None)],
            Some((seed, orders)) => {
                (0..orders).map(|i| order(Some(random::of_epoch(seed, epoch, i)))).collect()
            }
        };
        let ends = epochs.batch_ends();
        let starts = std::iter::once(0).chain(ends.clone());
        let batch = move |(start, end): (usize, usize)| -> Vec<Vec<S::Item>> {
            let items: Vec<S::Item> =
                orders.iter().flat_map(|order| order[start..end].iter().cloned()).collect();
            items.chunk_by(|a, b| self.alike(a, b)).map(<[S::Item]>::to_vec).collect()
        };
        let batches = starts.zip(ends).flat_map(batch);
        Box::new(batches.map(move |items| Ok(self.batch(&items, device))))
    }
}

/// Makes batches: shuffled and changed for training, or in their order, as they are, for evaluation.
///
/// A batch of training depends on the items, the batch size, the seed and the epoch, and on nothing else. Every
/// [`iter`](DataLoader::iter) is one epoch.
#[derive(Debug)]
pub struct Loader<S: Source> {
    items: Arc<S>,
    epochs: Epochs,
    device: Device,
}

impl<S: Source> Loader<S> {
    pub(crate) fn of(items: S, epochs: Epochs, device: Device) -> Self {
        Self { items: Arc::new(items), epochs, device }
    }

    fn with(&self, epochs: Epochs, device: Device) -> Arc<dyn DataLoader<BatchOf<S>>> {
        Arc::new(Self { items: self.items.clone(), epochs, device })
    }
}

impl<S: Source> TrainingLoader<S::Input, S::Target> for Loader<S> {
    fn starting_at(self, epoch: u64) -> Self {
        Self { epochs: self.epochs.starting_at(epoch), ..self }
    }

    fn with_orders(self, orders: u32) -> Self {
        Self { epochs: self.epochs.with_orders(orders), ..self }
    }

    fn num_batches(&self) -> usize {
        self.epochs.batch_ends().len()
    }

    fn waited(&self) -> Arc<AtomicU64> {
        self.epochs.waited.clone()
    }

    fn noted(&self) -> Noted {
        self.items.noted()
    }
}

impl<S: Source> DataLoader<BatchOf<S>> for Loader<S> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<BatchOf<S>> + 'a> {
        let batches = self.items.epoch(&self.epochs, self.epochs.begin(), &self.device);
        Box::new(Batches::<S> { batches, done: 0, total: self.num_items() })
    }

    fn num_items(&self) -> usize {
        self.epochs.num_items()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<BatchOf<S>>> {
        self.with(self.epochs.again(), device.clone())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<BatchOf<S>>> {
        self.with(self.epochs.part(start, end), self.device.clone())
    }
}

/// The batches of one epoch, counted.
struct Batches<'a, S: Source> {
    batches: BatchesOf<'a, S>,
    done: usize,
    total: usize,
}

impl<S: Source> Iterator for Batches<'_, S> {
    type Item = Result<BatchOf<S>, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.next()?;
        self.done += batch.as_ref().map_or(0, |batch| batch.input.items());
        Some(batch)
    }
}

impl<S: Source> DataLoaderIterator<BatchOf<S>> for Batches<'_, S> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.total, Some("items".into()))
    }
}

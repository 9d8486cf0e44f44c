//! [`TextLoader`]: batches of equally long pieces of a text.

use super::TextError;
use crate::data::{TextBatch, TrainingLoader, random};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{RngExt, seq::SliceRandom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Makes batches of pieces of a text, each of so many tokens, with the tokens that follow as labels: for training, the pieces of an
/// epoch begin somewhere and are shuffled; for evaluation they are in their order, and the last one may be shorter.
///
/// A batch of training depends on the text, the lengths, the seed and the epoch, and on nothing else. Every
/// [`iter`](DataLoader::iter) is one epoch.
#[derive(Debug)]
pub struct TextLoader {
    tokens: Arc<[u32]>,
    length: usize,
    batch_size: usize,
    training: Option<Training>,
    /// Positions in an epoch's order of pieces.
    range: Range<usize>,
    epoch: AtomicU64,
    waited: Arc<AtomicU64>,
    device: Device,
}

#[derive(Clone, Copy, Debug)]
struct Training {
    seed: u64,
    orders: u32,
}

impl TextLoader {
    /// For training, in pieces of `length` tokens.
    ///
    /// # Errors
    /// A text of less than `2 * length` tokens.
    pub fn training(
        tokens: impl Into<Arc<[u32]>>, length: usize, batch_size: usize, seed: u64, device: Device,
    ) -> Result<Self, TextError> {
        let tokens = tokens.into();
        let expected = 2 * length.max(1);
        if tokens.len() < expected {
            return Err(TextError::TooShort { part: "training", found: tokens.len(), expected });
        }
        // Wherever the first begins, there are so many.
        let pieces = (tokens.len() - length.max(1)) / length.max(1);
        Ok(Self::new(tokens, length, batch_size, Some(Training { seed, orders: 1 }), pieces, device))
    }

    /// For evaluation, in pieces of at most `length` tokens: every token but the first is a label once.
    ///
    /// # Errors
    /// A text of less than two tokens.
    pub fn evaluation(
        tokens: impl Into<Arc<[u32]>>, length: usize, batch_size: usize, device: Device,
    ) -> Result<Self, TextError> {
        let tokens = tokens.into();
        if tokens.len() < 2 {
            return Err(TextError::TooShort { part: "validation or test", found: tokens.len(), expected: 2 });
        }
        let pieces = (tokens.len() - 1).div_ceil(length.max(1));
        Ok(Self::new(tokens, length, batch_size, None, pieces, device))
    }

    fn new(
        tokens: Arc<[u32]>, length: usize, batch_size: usize, training: Option<Training>, pieces: usize,
        device: Device,
    ) -> Self {
        let (length, batch_size) = (length.max(1), batch_size.max(1));
        let (epoch, waited) = (AtomicU64::new(0), Arc::default());
        Self { tokens, length, batch_size, training, range: 0..pieces, epoch, waited, device }
    }

    /// Where the pieces of each batch begin.
    fn batches(&self, epoch: u64) -> Vec<Vec<usize>> {
        let starts =
            |offset: usize, pieces: usize| (0..pieces).map(move |piece| offset + piece * self.length);
        let Some(Training { seed, orders }) = self.training else {
            let all: Vec<usize> = starts(0, self.range.end).skip(self.range.start).collect();
            let whole = all.iter().take_while(|&&start| start + self.length < self.tokens.len()).count();
            let (whole, short) = all.split_at(whole);
            return whole.chunks(self.batch_size).chain(short.chunks(1)).map(<[usize]>::to_vec).collect();
        };
        let order = |order: u32| {
            let mut rng = random::of_epoch(seed, epoch, order);
            let offset = rng.random_range(0..self.length);
            let pieces = (self.tokens.len() - 1 - offset) / self.length;
            let mut order: Vec<usize> = starts(offset, pieces).collect();
            order.shuffle(&mut rng);
            order.truncate(self.range.end);
            order.drain(..self.range.start.min(order.len()));
            order
        };
        let orders: Vec<Vec<usize>> = (0..orders).map(order).collect();
        let batch = |batch: usize| {
            let part = batch * self.batch_size..((batch + 1) * self.batch_size).min(self.range.len());
            orders.iter().flat_map(|order| order[part.clone()].to_vec()).collect()
        };
        (0..self.num_batches()).map(batch).collect()
    }

    fn with(&self, range: Range<usize>, device: Device) -> Self {
        Self {
            tokens: self.tokens.clone(),
            range,
            epoch: AtomicU64::new(self.epoch.load(Ordering::Relaxed)),
            waited: self.waited.clone(),
            device,
            ..*self
        }
    }

    fn orders(&self) -> usize {
        self.training.map_or(1, |training| training.orders as usize)
    }
}

impl TrainingLoader<Tensor<2, Int>> for TextLoader {
    fn starting_at(self, epoch: u64) -> Self {
        Self { epoch: AtomicU64::new(epoch), ..self }
    }

    fn with_orders(mut self, orders: u32) -> Self {
        if let Some(training) = &mut self.training {
            training.orders = orders.max(1);
        }
        self
    }

    fn num_batches(&self) -> usize {
        self.range.len().div_ceil(self.batch_size)
    }

    fn waited(&self) -> Arc<AtomicU64> {
        self.waited.clone()
    }
}

impl DataLoader<TextBatch> for TextLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TextBatch> + 'a> {
        let batches = self.batches(self.epoch.fetch_add(1, Ordering::Relaxed));
        Box::new(Batches { loader: self, batches: batches.into_iter(), done: 0 })
    }

    fn num_items(&self) -> usize {
        self.range.len() * self.orders()
    }

    fn to_device(&self, device: &Device) -> Arc<dyn DataLoader<TextBatch>> {
        Arc::new(self.with(self.range.clone(), device.clone()))
    }

    /// In training, positions of each epoch's order, so that every part has other pieces in every epoch.
    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<TextBatch>> {
        let (start, end) = (start / self.orders(), end / self.orders());
        let end = self.range.start.saturating_add(end).min(self.range.end);
        let start = self.range.start.saturating_add(start).min(end);
        Arc::new(self.with(start..end, self.device.clone()))
    }
}

/// The batches of one epoch.
struct Batches<'a> {
    loader: &'a TextLoader,
    batches: std::vec::IntoIter<Vec<usize>>,
    done: usize,
}

impl Iterator for Batches<'_> {
    type Item = Result<TextBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let starts = self.batches.next()?;
        self.done += starts.len();
        let TextLoader { tokens, length, device, .. } = self.loader;
        let longest = starts.iter().map(|start| tokens.len() - 1 - start).min().unwrap_or(0);
        let length = longest.min(*length);
        let shifted = |by: usize| -> Vec<i64> {
            starts
                .iter()
                .flat_map(|start| &tokens[start + by..][..length])
                .map(|&token| i64::from(token))
                .collect()
        };
        let input = TensorData::new(shifted(0), [starts.len(), length]);
        let labels = TensorData::new(shifted(1), [starts.len() * length]);
        let (input, labels) = (Tensor::from_data(input, device), Tensor::from_data(labels, device));
        Some(Ok(TextBatch { input, labels }))
    }
}

impl DataLoaderIterator<TextBatch> for Batches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.loader.num_items(), Some("items".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(loader: &dyn DataLoader<TextBatch>) -> Vec<(Vec<i64>, Vec<i64>)> {
        let values = |batch: Result<TextBatch, DatasetError>| {
            let TextBatch { input, labels } = batch.expect("a batch");
            let [n, length] = input.dims();
            assert_eq!(labels.dims(), [n * length]);
            let host =
                |tensor: Tensor<1, Int>| tensor.into_data().convert::<i64>().try_into_vec().expect("numbers");
            (host(input.reshape([n * length])), host(labels))
        };
        loader.iter().map(values).collect()
    }

    fn text(tokens: u32) -> Vec<u32> {
        (0..tokens).collect()
    }

    #[test]
    fn every_token_is_a_label_once_in_evaluation() {
        for (tokens, length, batch) in [(2, 5, 1), (11, 5, 1), (12, 5, 2), (57, 8, 3), (7, 1, 4)] {
            let loader =
                TextLoader::evaluation(text(tokens), length, batch, Device::flex()).expect("long enough");
            let batches = epoch(&loader);
            let labels: Vec<i64> = batches.iter().flat_map(|(_, labels)| labels.clone()).collect();
            assert_eq!(labels, (1..i64::from(tokens)).collect::<Vec<_>>());
            assert!(batches.iter().all(|(input, labels)| input.iter().zip(labels).all(|(a, b)| a + 1 == *b)));
        }
        assert!(TextLoader::evaluation(text(1), 4, 1, Device::flex()).is_err());
    }

    #[test]
    fn training_goes_over_the_text_in_another_order_in_each_epoch() {
        let new = || TextLoader::training(text(103), 10, 4, 1, Device::flex()).expect("long enough");
        let loader = new();
        assert_eq!((loader.num_items(), loader.num_batches()), (9, 3));
        let (first, second) = (epoch(&loader), epoch(&loader));
        assert_ne!(first, second);
        assert_eq!(epoch(&new()), first);
        assert_eq!(epoch(&new().starting_at(1)), second);
        assert_eq!(first.iter().map(|(input, _)| input.len()).collect::<Vec<_>>(), [40, 40, 10]);
        let mut seen: Vec<i64> = first.into_iter().flat_map(|(input, _)| input).collect();
        seen.sort_unstable();
        assert!(seen.windows(2).all(|two| two[0] + 1 == two[1]), "each token once: {seen:?}");
        // Two orders side by side: the first half of each batch is what one order has.
        let two = epoch(&new().with_orders(2));
        assert_eq!(two[0].0[..40], epoch(&new())[0].0);
        assert_eq!(two[0].0.len(), 80);
        // Parts for devices have different pieces.
        let (a, b) = (epoch(&*new().slice(0, 4)), epoch(&*new().slice(4, 9)));
        assert_eq!([a, b].concat().len(), 3);
        assert!(TextLoader::training(text(19), 10, 4, 1, Device::flex()).is_err());
    }
}

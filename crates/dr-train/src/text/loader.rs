//! [`TextLoader`]: batches of equally long pieces of a text.

use super::TextError;
use crate::data::{Epochs, Items, Loader, TextBatch};
use burn::tensor::{Device, Int, Tensor, TensorData};
use chacha20::ChaCha8Rng;
use rand::{RngExt, seq::SliceRandom};
use std::sync::Arc;

/// Makes batches of pieces of a text, each of so many tokens, with the tokens that follow as labels: for training, the pieces of an
/// epoch begin somewhere and are shuffled; for evaluation they are in their order, and the last one may be shorter.
pub type TextLoader = Loader<Pieces>;

/// Pieces of a text, by where they begin.
#[derive(Debug)]
pub struct Pieces {
    tokens: Arc<[u32]>,
    length: usize,
}

impl TextLoader {
    /// For training, in pieces of `length` tokens.
    ///
    /// # Errors
    /// A text of less than `2 * length` tokens.
    pub fn training(
        tokens: impl Into<Arc<[u32]>>, length: usize, batch_size: usize, seed: u64, device: Device,
    ) -> Result<Self, TextError> {
        let (tokens, length) = (tokens.into(), length.max(1));
        let expected = 2 * length;
        if tokens.len() < expected {
            return Err(TextError::TooShort { part: "training", found: tokens.len(), expected });
        }
        // Wherever the first begins, there are so many.
        let epochs = Epochs::new((tokens.len() - length) / length, batch_size, Some(seed));
        Ok(Self::of(Pieces { tokens, length }, epochs, device))
    }

    /// For evaluation, in pieces of at most `length` tokens: every token but the first is a label once.
    ///
    /// # Errors
    /// A text of less than two tokens.
    pub fn evaluation(
        tokens: impl Into<Arc<[u32]>>, length: usize, batch_size: usize, device: Device,
    ) -> Result<Self, TextError> {
        let (tokens, length) = (tokens.into(), length.max(1));
        if tokens.len() < 2 {
            return Err(TextError::TooShort { part: "validation or test", found: tokens.len(), expected: 2 });
        }
        let epochs = Epochs::new((tokens.len() - 1).div_ceil(length), batch_size, None);
        Ok(Self::of(Pieces { tokens, length }, epochs, device))
    }
}

impl Pieces {
    /// Tokens of the piece that begins there.
    fn length_at(&self, start: usize) -> usize {
        self.length.min(self.tokens.len() - 1 - start)
    }
}

impl Items for Pieces {
    type Input = Tensor<2, Int>;
    type Target = Tensor<1, Int>;
    type Item = usize;

    fn order(&self, random: Option<ChaCha8Rng>) -> Vec<usize> {
        let last = self.tokens.len() - 1;
        let Some(mut random) = random else { return (0..last).step_by(self.length).collect() };
        let offset = random.random_range(0..self.length);
        let pieces = (last - offset) / self.length;
        let mut order: Vec<usize> = (0..pieces).map(|piece| offset + piece * self.length).collect();
        order.shuffle(&mut random);
        order
    }

    fn alike(&self, a: &usize, b: &usize) -> bool {
        self.length_at(*a) == self.length_at(*b)
    }

    fn batch(&self, starts: &[usize], device: &Device) -> TextBatch {
        let length = starts.first().map_or(0, |&start| self.length_at(start));
        let shifted = |by: usize| -> Vec<i64> {
            let pieces = starts.iter().flat_map(|start| &self.tokens[start + by..][..length]);
            pieces.map(|&token| i64::from(token)).collect()
        };
        let input = TensorData::new(shifted(0), [starts.len(), length]);
        let labels = TensorData::new(shifted(1), [starts.len() * length]);
        TextBatch { input: Tensor::from_data(input, device), labels: Tensor::from_data(labels, device) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TrainingLoader;
    use burn::data::dataloader::DataLoader;
    use burn::data::dataset::DatasetError;

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

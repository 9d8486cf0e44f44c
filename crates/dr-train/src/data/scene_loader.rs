//! [`SceneLoader`]: batches of scenes, read on a thread of their own.

use super::ahead::{Ahead, read_all, read_one};
use super::epochs::Source;
use super::normalization::Pixels;
use super::{Batch, Epochs, Loader, Normalization, Noted, SceneSet, Target, random};
use burn::data::dataset::DatasetError;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{RngExt, seq::SliceRandom};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// What a network learns of scenes.
pub trait SceneTarget: Target {
    /// What is known of an image.
    type Truth: Send + 'static;

    /// What there is to know besides the scenes.
    type Around: Clone + Debug + Send + Sync + 'static;

    /// Of an image, which may be reflected.
    fn truth(set: &SceneSet, index: usize, reflected: bool) -> Self::Truth;

    /// Of the images of a batch.
    fn of(truths: Vec<Self::Truth>, around: &Self::Around, device: &Device) -> Self;
}

/// Makes batches of scenes: shuffled and reflected at random for training, or in their order for evaluation. Files that cannot be read are left out; in
/// training, others take their place.
pub type SceneLoader<T> = Loader<Scenes<T>>;

/// The images of a set, and what is learned of them.
#[derive(Debug)]
pub struct Scenes<T: SceneTarget> {
    set: Arc<SceneSet>,
    pixels: Pixels,
    around: T::Around,
}

impl<T: SceneTarget> SceneLoader<T> {
    /// For training with a seed, or without one for evaluation.
    ///
    /// # Panics
    /// If `normalization` does not [fit](Normalization::fits) the images.
    #[must_use]
    pub fn new(
        set: Arc<SceneSet>, normalization: &Normalization, around: T::Around, batch_size: usize,
        seed: Option<u64>, device: Device,
    ) -> Self {
        assert!(normalization.fits(set.shape().channels), "{normalization:?} is not for {:?}", set.shape());
        let epochs = Epochs::new(set.len(), batch_size, seed).in_pairs();
        Self::of(Scenes { set, pixels: Pixels::new(normalization), around }, epochs, device)
    }
}

/// Which image, and whether it is reflected.
type Item = (usize, bool);

/// A batch that is not yet on a device.
struct Prepared<T: SceneTarget> {
    /// `[n, 3, rows, columns]`
    pixels: Vec<f32>,
    /// `[n]`
    truths: Vec<T::Truth>,
}

impl<T: SceneTarget> Source for Scenes<T> {
    type Input = Tensor<4>;
    type Target = T;

    fn noted(&self) -> Noted {
        self.set.noted.clone()
    }

    fn epoch<'a>(
        self: &'a Arc<Self>, epochs: &Epochs, epoch: u64, device: &'a Device,
    ) -> Box<dyn Iterator<Item = Result<Batch<Tensor<4>, T>, DatasetError>> + 'a> {
        let (scenes, range, training) = (self.clone(), epochs.range.clone(), epochs.training);
        let mut orders = None;
        let prepare = move |positions: Range<usize>| {
            let orders = orders.get_or_insert_with(|| {
                let mut orders = scenes.orders(training, epoch);
                orders.iter_mut().for_each(|order| *order = order[range.clone()].to_vec());
                orders
            });
            let mut batch = Prepared::<T> { pixels: vec![], truths: vec![] };
            for order in orders {
                let read =
                    |position| read_one(order, position, training.is_some(), |&item| scenes.image(item));
                for (pixels, truth) in read_all(positions.clone(), read) {
                    scenes.pixels.extend(&mut batch.pixels, &pixels);
                    batch.truths.push(truth);
                }
            }
            // All of its files may be damaged.
            (!batch.truths.is_empty()).then_some(batch)
        };
        let prepared = Ahead::start(epochs.batch_ends(), epochs.waited.clone(), prepare);
        let [rows, columns] = self.set.size;
        Box::new(prepared.map(move |prepared| {
            let Prepared { pixels, truths } = prepared?;
            let pixels = TensorData::new(pixels, [truths.len(), 3, rows, columns]);
            Ok(Batch {
                input: Tensor::from_data(pixels, device),
                labels: T::of(truths, &self.around, device),
            })
        }))
    }
}

impl<T: SceneTarget> Scenes<T> {
    /// The ways through the images in an epoch, side by side: for training as its seed says, else in their own order.
    fn orders(&self, training: Option<(u64, u32)>, epoch: u64) -> Vec<Vec<Item>> {
        let items = || (0..self.set.len()).map(|index| (index, false)).collect::<Vec<Item>>();
        let Some((seed, orders)) = training else { return vec![items()] };
        let order = |order| {
            let (mut items, mut random) = (items(), random::of_epoch(seed, epoch, order));
            items.shuffle(&mut random);
            items.iter_mut().for_each(|(_, reflected)| *reflected = random.random_bool(0.5));
            items
        };
        (0..orders).map(order).collect()
    }

    /// The pixels of an image, and what is known of it; `None` if it cannot be read.
    fn image(&self, (index, reflected): Item) -> Option<(Vec<u8>, T::Truth)> {
        let mut pixels = self.set.read(index)?;
        if reflected {
            self.set.reflect(index, &mut pixels);
        }
        Some((pixels, T::truth(&self.set, index, reflected)))
    }
}

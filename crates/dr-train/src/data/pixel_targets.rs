//! [`PixelTargets`]: a class for each pixel.

use super::batch::score_tensors;
use super::{IGNORED, Input, SceneSet, SceneTarget, Target};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Device, Int, Tensor};

/// The classes of all pixels of some images, of which some are neither right nor wrong. The output is logits `[n * rows * columns, classes]`, and the loss
/// the mean cross entropy of the pixels that count.
#[derive(Clone, Debug)]
pub struct PixelTargets {
    /// `[n * rows * columns]`, [`IGNORED`] where it does not count.
    pub classes: Tensor<1, Int>,
    /// How many pixels of each image count.
    counted: Vec<usize>,
}

impl PixelTargets {
    fn count(&self) -> usize {
        self.counted.iter().sum()
    }

    fn all_count(&self) -> bool {
        self.count() == self.items()
    }

    /// The pixels that do not count.
    fn ignored(&self) -> Tensor<1, Bool> {
        self.classes.clone().equal_elem(IGNORED)
    }
}

impl Input for PixelTargets {
    fn items(&self) -> usize {
        self.classes.items()
    }

    fn split(self, items: usize) -> Vec<Self> {
        let each = self.items() / self.counted.len().max(1);
        let counted = self.counted.chunks((items / each.max(1)).max(1)).map(<[usize]>::to_vec);
        let classes = self.classes.split(items, 0).into_iter();
        classes.zip(counted).map(|(classes, counted)| Self { classes, counted }).collect()
    }

    fn inner(self) -> Self {
        Self { classes: self.classes.inner(), ..self }
    }

    fn autodiff(self) -> Self {
        Self { classes: self.classes.autodiff(), ..self }
    }

    fn device(&self) -> Device {
        self.classes.device()
    }
}

impl Target for PixelTargets {
    fn loss(&self, output: Tensor<2>) -> Tensor<1> {
        if self.all_count() {
            return self.classes.loss(output);
        }
        let ignored = self.ignored();
        let classes = self.classes.clone().mask_fill(ignored.clone(), 0).unsqueeze_dim(1);
        let likelihoods = log_softmax(output, 1).gather(1, classes).squeeze_dim::<1>(1);
        likelihoods.mask_fill(ignored, 0.0).sum().neg() / self.count().max(1) as f64
    }

    fn right(&self, output: Tensor<2>) -> (Tensor<1>, usize) {
        // No class is called as those that do not count.
        (self.classes.right(output).0, self.count())
    }

    fn score(&self, output: Tensor<2>) -> (f64, f64, usize) {
        if self.all_count() {
            return self.classes.score(output);
        }
        score_tensors(self, output)
    }
}

impl SceneTarget for PixelTargets {
    /// As [`SceneSet::classes`] has them.
    type Truth = Vec<u8>;
    type Around = ();

    fn truth(set: &SceneSet, index: usize, reflected: bool) -> Vec<u8> {
        let mut classes = set.classes(index);
        if reflected {
            set.reflect(index, &mut classes);
        }
        classes
    }

    fn of(truths: Vec<Vec<u8>>, (): &(), device: &Device) -> Self {
        let counted = |classes: &Vec<u8>| classes.iter().filter(|&&class| class != IGNORED).count();
        let counted = truths.iter().map(counted).collect();
        let classes: Vec<i32> = truths.into_iter().flatten().map(i32::from).collect();
        Self { classes: Tensor::from_data(classes.as_slice(), device), counted }
    }
}

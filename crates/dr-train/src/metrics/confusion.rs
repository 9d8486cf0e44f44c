//! [`Confusion`]: which classes are taken for which, and what follows from it: intersections over unions, accuracy.

/// How often each class was predicted for each true class.
///
/// Its numbers are those of torchmetrics 1.9: [`mean_iou`](Self::mean_iou) is `MulticlassJaccardIndex(classes,
/// average="macro")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    classes: usize,
    /// `[classes, classes]`: by true class, then by predicted class.
    counts: Vec<u64>,
}

impl Confusion {
    /// That of no predictions yet.
    #[must_use]
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// How often `predicted` was predicted where `truth` is true.
    ///
    /// # Panics
    ///
    /// If one of them is not a class.
    #[must_use]
    pub fn count(&self, predicted: usize, truth: usize) -> u64 {
        assert!(predicted < self.classes && truth < self.classes, "not a class");
        self.counts[truth * self.classes + predicted]
    }

    /// Counts pairs of a predicted and a true class, `[n]` each. A pair whose truth is not a class, as 255 often is, is left
    /// out, whatever was predicted.
    ///
    /// # Panics
    ///
    /// If the slices differ in length, or if a prediction that counts is not a class.
    pub fn add(&mut self, predicted: &[u32], truth: &[u32]) {
        assert_eq!(predicted.len(), truth.len(), "one prediction for each truth");
        for (&predicted, &truth) in predicted.iter().zip(truth) {
            if truth as usize >= self.classes {
                continue;
            }
            assert!(
                (predicted as usize) < self.classes,
                "{predicted} was predicted, of {} classes",
                self.classes
            );
            self.counts[truth as usize * self.classes + predicted as usize] += 1;
        }
    }

    /// The mean of [`per_class`](Self::per_class) over the classes that have one. NaN if none has.
    #[must_use]
    pub fn mean_iou(&self) -> f64 {
        let present: Vec<f64> = self.per_class().into_iter().flatten().collect();
        present.iter().sum::<f64>() / present.len() as f64
    }

    /// `[classes]`: the intersection over the union of the pixels where the class is true and those where it is predicted,
    /// in 0 to 1. None for a class that is neither true nor predicted anywhere.
    #[must_use]
    pub fn per_class(&self) -> Vec<Option<f64>> {
        (0..self.classes).map(|class| self.class_iou(class)).collect()
    }

    /// The share of all pairs whose prediction is right, in 0 to 1. NaN if there are none.
    #[must_use]
    pub fn pixel_accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|class| self.count(class, class)).sum();
        right as f64 / self.counts.iter().sum::<u64>() as f64
    }

    fn class_iou(&self, class: usize) -> Option<f64> {
        let sum = |count: &dyn Fn(usize) -> u64| (0..self.classes).map(count).sum::<u64>();
        let truths = sum(&|other| self.count(other, class));
        let predictions = sum(&|other| self.count(class, other));
        let common = self.count(class, class);
        let union = truths + predictions - common;
        (union > 0).then(|| common as f64 / union as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn confusion(classes: usize, predicted: &[u32], truth: &[u32]) -> Confusion {
        let mut confusion = Confusion::new(classes);
        confusion.add(predicted, truth);
        confusion
    }

    #[test]
    fn known_counts() {
        let confusion = confusion(3, &[0, 0, 1, 1, 1], &[0, 1, 1, 1, 0]);
        assert_eq!(confusion.count(0, 1), 1);
        assert_eq!(confusion.count(1, 1), 2);
        assert_eq!(confusion.count(2, 0), 0);
        assert_eq!(confusion.per_class(), [Some(1.0 / 3.0), Some(0.5), None]);
        assert_eq!(confusion.mean_iou(), (1.0 / 3.0 + 0.5) / 2.0);
        assert_eq!(confusion.pixel_accuracy(), 0.6);
    }

    #[test]
    fn a_class_that_is_only_predicted_or_only_true_counts_as_0() {
        assert_eq!(confusion(3, &[1, 0], &[0, 0]).per_class(), [Some(0.5), Some(0.0), None]);
        assert_eq!(confusion(3, &[0, 0], &[0, 2]).per_class(), [Some(0.5), None, Some(0.0)]);
    }

    #[test]
    fn truths_that_are_no_class_are_left_out_whatever_is_predicted() {
        let expected = confusion(2, &[0, 1], &[0, 0]);
        assert_eq!(confusion(2, &[0, 7, 1, 0, 1], &[0, 255, 0, 2, u32::MAX]), expected);
    }

    #[test]
    fn nothing_has_no_mean() {
        for classes in [0, 1, 4] {
            assert!(Confusion::new(classes).mean_iou().is_nan());
            assert!(Confusion::new(classes).pixel_accuracy().is_nan());
            assert_eq!(Confusion::new(classes).per_class(), vec![None; classes]);
        }
    }

    #[test]
    #[should_panic(expected = "2 was predicted, of 2 classes")]
    fn predictions_must_be_classes() {
        confusion(2, &[2], &[0]);
    }

    #[test]
    #[should_panic(expected = "one prediction for each truth")]
    fn lengths_must_agree() {
        confusion(2, &[0], &[0, 1]);
    }

    proptest! {
        #[test]
        fn parts_are_as_all_at_once(pairs in prop::collection::vec((0u32..5, 0u32..7), 0..60), at in 0usize..60) {
            let (predicted, truth): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
            let at = at.min(truth.len());
            let mut parts = confusion(5, &predicted[..at], &truth[..at]);
            parts.add(&predicted[at..], &truth[at..]);
            let all = confusion(5, &predicted, &truth);
            prop_assert_eq!(&parts, &all);
            prop_assert!(all.per_class().into_iter().flatten().all(|iou| (0.0..=1.0).contains(&iou)));
        }

        #[test]
        fn what_is_predicted_right_is_1(truth in prop::collection::vec(0u32..5, 1..60)) {
            prop_assert_eq!(confusion(5, &truth, &truth).mean_iou(), 1.0);
            prop_assert_eq!(confusion(5, &truth, &truth).pixel_accuracy(), 1.0);
        }
    }
}

//! [`BoxTargets`]: what each position of a detector is to say (FCOS, arXiv:1904.01355), and the loss of what it says.

use crate::data::{Boxes, Input, Labelled, SceneSet, SceneTarget, Target};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Device, Int, Tensor, TensorData};
use dr_runtime::graph::{Graph, Node, Op};

/// Where a detector looks for objects: positions of all levels, for images of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Rows and columns of an image.
    pub image: [usize; 2],
    /// Pixels of the image for one of each level, finest first.
    pub strides: Vec<usize>,
}

/// Distances, in strides, that a level is for: the finest up to so much, the coarsest from half of that.
const REACH: f32 = 6.0;

/// How far from a box's middle a position is still for it, in strides.
const CENTER: f32 = 1.5;

/// Numbers of a position's target: the class or -1, the distances to the sides in strides, centerness.
const NUMBERS: usize = 6;

impl Positions {
    /// Those of a network that makes rows of the positions of images, as all detectors do; of images of this size.
    #[must_use]
    pub fn of(graph: &Graph, image: [usize; 2]) -> Option<Self> {
        let Node { op: Op::Rows, inputs } = graph.nodes().last()? else { return None };
        let stride = |&level: &usize| {
            let [rows, columns] = graph.strides(level);
            (rows == columns).then_some(rows)
        };
        Some(Self { image, strides: inputs.iter().map(stride).collect::<Option<_>>()? })
    }

    /// The stride and the middle of each position, in pixels: left to right, top to bottom, finest level first.
    pub fn each(&self) -> impl Iterator<Item = (usize, [f32; 2])> + '_ {
        self.strides.iter().flat_map(|&stride| {
            let [rows, columns] = self.image.map(|size| size.div_ceil(stride));
            (0..rows * columns).map(move |i| {
                let middle = |at: usize| (at as f32 + 0.5) * stride as f32;
                (stride, [middle(i % columns), middle(i / columns)])
            })
        })
    }

    /// Which box each position is for: of those that it is in the middle of, and whose size is for its level, the smallest.
    fn assign(&self, boxes: &[Labelled]) -> Vec<[f32; NUMBERS]> {
        let (finest, coarsest) = (self.strides.iter().min().copied(), self.strides.iter().max().copied());
        let one = |(stride, [x, y]): (usize, [f32; 2])| {
            let unit = stride as f32;
            let fits = |object: &&Labelled| {
                let [left, top, right, bottom] = object.rect;
                let distances = [x - left, y - top, right - x, bottom - y];
                let furthest = distances.iter().fold(0.0f32, |a, &b| a.max(b)) / unit;
                let near = |at: f32, from: f32, to: f32| (at - (from + to) / 2.0).abs() <= CENTER * unit;
                let small = Some(stride) == finest || furthest > REACH / 2.0;
                let large = Some(stride) == coarsest || furthest <= REACH;
                distances.iter().all(|&d| d > 0.0)
                    && near(x, left, right)
                    && near(y, top, bottom)
                    && small
                    && large
            };
            let area = |object: &Labelled| {
                let [left, top, right, bottom] = object.rect;
                (right - left) * (bottom - top)
            };
            let mine = boxes.iter().filter(fits).min_by(|a, b| area(a).total_cmp(&area(b)));
            let Some(&Labelled { rect: [left, top, right, bottom], class }) = mine else {
                return [-1.0, 1.0, 1.0, 1.0, 1.0, 0.0];
            };
            let [l, t, r, b] = [x - left, y - top, right - x, bottom - y].map(|d| d / unit);
            let centerness = ((l.min(r) / l.max(r)) * (t.min(b) / t.max(b))).sqrt();
            [class as f32, l, t, r, b, centerness]
        };
        self.each().map(one).collect()
    }
}

/// What the positions of some images are to say.
#[derive(Clone, Debug)]
pub struct BoxTargets {
    /// `[images * positions, 6]`
    numbers: Tensor<2>,
    /// Of each image.
    images: Vec<OfImage>,
}

/// What is known of an image.
#[derive(Clone, Debug)]
struct OfImage {
    boxes: Boxes,
    /// Positions that are for an object.
    positive: usize,
}

impl BoxTargets {
    /// For the boxes of each image.
    #[must_use]
    pub fn new(positions: &Positions, images: Vec<Boxes>, device: &Device) -> Self {
        let mut values: Vec<f32> = vec![];
        let of_image = |boxes: Boxes| {
            let assigned = positions.assign(&boxes.objects);
            let positive = assigned.iter().filter(|numbers| numbers[0] >= 0.0).count();
            values.extend(assigned.into_iter().flatten());
            OfImage { boxes, positive }
        };
        let images = images.into_iter().map(of_image).collect();
        let rows = values.len() / NUMBERS;
        Self { numbers: Tensor::from_data(TensorData::new(values, [rows, NUMBERS]), device), images }
    }

    /// The boxes of each image.
    pub fn boxes(&self) -> impl Iterator<Item = &Boxes> {
        self.images.iter().map(|image| &image.boxes)
    }

    /// Positions that are for an object.
    fn positive(&self) -> usize {
        self.images.iter().map(|image| image.positive).sum()
    }

    fn column(&self, column: usize) -> Tensor<2> {
        self.numbers.clone().narrow(1, column, 1)
    }
}

impl Input for BoxTargets {
    fn items(&self) -> usize {
        self.numbers.dims()[0]
    }

    fn split(self, items: usize) -> Vec<Self> {
        let each = self.items() / self.images.len().max(1);
        let images = self.images.chunks((items / each.max(1)).max(1)).map(<[OfImage]>::to_vec);
        let numbers = self.numbers.split(items, 0).into_iter();
        numbers.zip(images).map(|(numbers, images)| Self { numbers, images }).collect()
    }

    fn inner(self) -> Self {
        Self { numbers: self.numbers.inner(), ..self }
    }

    fn autodiff(self) -> Self {
        Self { numbers: self.numbers.autodiff(), ..self }
    }

    fn device(&self) -> Device {
        self.numbers.device()
    }
}

/// `-log` of the probability that logits give to targets between 0 and 1.
fn binary_cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<2> {
    logits.clone().clamp_min(0.0) - logits.clone() * targets + logits.abs().neg().exp().log1p()
}

/// Distances of more than `e^6` strides are not learned.
const LARGEST: f64 = 6.0;

impl Target for BoxTargets {
    /// Focal loss of the classes (arXiv:1708.02002, alpha 0.25, gamma 2), generalised IoU of the boxes (arXiv:1902.09630), weighted by
    /// centerness, and cross entropy of centerness; each for a position with an object.
    fn loss(&self, output: Tensor<2>) -> Tensor<1> {
        let device = output.device();
        let classes = output.dims()[1] - 5;
        let (logits, rest) = (output.clone().narrow(1, 0, classes), output.narrow(1, classes, 5));
        let class = self.column(0);
        let positive = class.clone().greater_equal_elem(0.0).float();
        let count = self.positive().max(1) as f64;
        let numbers: Tensor<2> = Tensor::<1, Int>::arange(0..classes as i64, &device).float().unsqueeze();
        let one_hot = class.equal(numbers).float();

        let p = sigmoid(logits.clone());
        let one = |x: &Tensor<2>| x.clone().neg() + 1.0;
        let wrong = p.clone() * one(&one_hot) + one(&p) * one_hot.clone();
        let weight = one_hot.clone() * -0.5 + 0.75;
        let focal = (binary_cross_entropy(logits, one_hot) * weight * wrong.square()).sum() / count;

        let distances = rest.clone().narrow(1, 0, 4).clamp_max(LARGEST).exp();
        let side = |of: &Tensor<2>, i: usize| of.clone().narrow(1, i, 1);
        let truth = self.numbers.clone().narrow(1, 1, 4);
        let along = |pair: fn(Tensor<2>, Tensor<2>) -> Tensor<2>, a: usize, b: usize| {
            pair(side(&distances, a), side(&truth, a)) + pair(side(&distances, b), side(&truth, b))
        };
        let area = |of: &Tensor<2>| (side(of, 0) + side(of, 2)) * (side(of, 1) + side(of, 3));
        let common = along(Tensor::min_pair, 0, 2) * along(Tensor::min_pair, 1, 3);
        let union = area(&distances) + area(&truth) - common.clone();
        let around = along(Tensor::max_pair, 0, 2) * along(Tensor::max_pair, 1, 3);
        let giou = common / union.clone() - (around.clone() - union) / around;
        let centerness = self.column(5);
        let weights = positive.clone() * centerness.clone();
        let total = weights.clone().sum().clamp_min(1.0);
        let boxes = ((giou.neg() + 1.0) * weights).sum() / total;

        let centers = binary_cross_entropy(rest.narrow(1, 4, 1), centerness) * positive;
        focal + boxes + centers.sum() / count
    }

    /// Of the positions with an object, those whose most likely class is the object's.
    fn right(&self, output: Tensor<2>) -> (Tensor<1>, usize) {
        let classes = output.dims()[1] - 5;
        let guesses = output.narrow(1, 0, classes).argmax(1).float();
        (guesses.equal(self.column(0)).int().sum().float(), self.positive())
    }
}

impl SceneTarget for BoxTargets {
    type Truth = Boxes;
    type Around = Positions;

    fn truth(set: &SceneSet, index: usize, reflected: bool) -> Boxes {
        let boxes = set.boxes(index);
        if reflected { boxes.reflected() } else { boxes }
    }

    fn of(truths: Vec<Boxes>, positions: &Positions, device: &Device) -> Self {
        Self::new(positions, truths, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions() -> Positions {
        Positions { image: [32, 32], strides: vec![4, 8] }
    }

    #[test]
    fn positions_inside_of_boxes_are_for_them() {
        let small = Labelled { rect: [4.0, 4.0, 16.0, 12.0], class: 2 };
        let large = Labelled { rect: [0.0, 0.0, 64.0, 64.0], class: 1 };
        let positions = Positions { image: [64, 64], ..positions() };
        assert_eq!(positions.each().count(), 256 + 64);
        let assigned = positions.assign(&[large, small]);
        for ((stride, [x, y]), [class, l, t, r, b, centerness]) in positions.each().zip(assigned) {
            let unit = stride as f32;
            let inside = x > 4.0 && x < 16.0 && y > 4.0 && y < 12.0;
            if class >= 0.0 {
                let found = [x - l * unit, y - t * unit, x + r * unit, y + b * unit];
                assert_eq!(found, if class == 2.0 { small.rect } else { large.rect });
                assert!(centerness > 0.0 && centerness <= 1.0);
            }
            assert!(class != 2.0 || inside);
            assert!(class != 1.0 || stride == 8, "a large box is for the coarse level");
        }
    }

    #[test]
    fn the_loss_of_the_truth_is_small_and_that_of_noise_is_not() {
        let device = Device::flex();
        let objects = vec![Labelled { rect: [4.0, 4.0, 16.0, 12.0], class: 2 }];
        let boxes = vec![Boxes { objects, ..Boxes::default() }, Boxes::default()];
        let targets = BoxTargets::new(&positions(), boxes, &device);
        let numbers: Vec<f32> = targets.numbers.clone().into_data().try_into_vec().expect("numbers");
        let truth = |row: &[f32]| {
            let logit = |class: usize| if row[0] == class as f32 { 9.0 } else { -9.0 };
            let centerness = row[5].clamp(1e-4, 1.0 - 1e-4);
            let boxes = row[1..5].iter().map(|d| d.ln());
            (0..3)
                .map(logit)
                .chain(boxes)
                .chain([(centerness / (1.0 - centerness)).ln()])
                .collect::<Vec<f32>>()
        };
        let values: Vec<f32> = numbers.chunks(NUMBERS).flat_map(truth).collect();
        let output = Tensor::<2>::from_data(TensorData::new(values, [160, 8]), &device);
        let (right, count) = targets.right(output.clone());
        let positive =
            |targets: &BoxTargets| targets.images.iter().map(|image| image.positive).collect::<Vec<_>>();
        assert_eq!((right.into_scalar::<f32>() as usize, positive(&targets)), (count, vec![count, 0]));
        let loss = targets.loss(output.clone()).into_scalar::<f32>();
        let worse = targets.loss(output * -0.5).into_scalar::<f32>();
        // What is left is the entropy of centerness.
        assert!(loss < 0.7 && worse > 2.0, "{loss} {worse}");
        let parts = targets.split(80);
        assert_eq!(parts.iter().map(positive).collect::<Vec<_>>(), [vec![count], vec![0]]);
    }
}

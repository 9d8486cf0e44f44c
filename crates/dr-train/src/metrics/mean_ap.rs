//! Average precision and recall of detectors, as the COCO challenge defines them (Lin et al., "Microsoft COCO", 2014).
//!
//! The numbers are those of pycocotools' `COCOeval` with `iouType="bbox"`: within each image and class, detections take
//! truths, the best score first, each the one it overlaps most. What is left is wrong. Over all images, sorted by score,
//! that gives a curve of precision against recall for each class, threshold of overlap and range of areas.

use super::boxes::descending;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// An object that is in an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// The image's index.
    pub image: usize,
    /// The class's index.
    pub class: usize,
    /// Left, top, width, height, in pixels.
    pub bbox: [f64; 4],
    /// In square pixels: that of the object's outline, which is usually less than that of the box.
    pub area: f64,
    /// Whether this is a crowd: detections in it are neither right nor wrong, and it need not be found.
    pub crowd: bool,
}

/// A box that a detector found.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// The image's index.
    pub image: usize,
    /// The class's index.
    pub class: usize,
    /// Left, top, width, height, in pixels.
    pub bbox: [f64; 4],
    /// How sure the detector is; only the order matters.
    pub score: f64,
}

/// Means over classes, in 0 to 1. None, where pycocotools says -1, if no class has a truth to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeanAp {
    /// Average precision, the mean over the thresholds 0.50, 0.55, ... 0.95 for the intersection over union.
    pub ap: Option<f64>,
    /// Average precision at the threshold 0.50.
    pub ap50: Option<f64>,
    /// Average precision at the threshold 0.75.
    pub ap75: Option<f64>,
    /// As `ap`, for objects of at most 32 x 32 square pixels.
    pub small: Option<f64>,
    /// As `ap`, for objects of 32 x 32 to 96 x 96 square pixels.
    pub medium: Option<f64>,
    /// As `ap`, for objects of at least 96 x 96 square pixels.
    pub large: Option<f64>,
    /// Recall of the best detection of each class in each image, the mean over the thresholds.
    pub ar1: Option<f64>,
    /// As `ar1`, of the best 10.
    pub ar10: Option<f64>,
    /// As `ar1`, of the best 100.
    pub ar100: Option<f64>,
}

/// The number of thresholds for the intersection over union.
const THRESHOLDS: usize = 10;

/// The number of recalls at which precision is read.
const RECALLS: usize = 101;

/// The largest number of detections of a class in an image. The worst of more are left out.
const MOST: usize = 100;

/// In square pixels. Bounds belong to both sides.
type Areas = RangeInclusive<f64>;

const ALL: Areas = 0.0..=1e10;
const SMALL: Areas = 0.0..=1024.0;
const MEDIUM: Areas = 1024.0..=9216.0;
const LARGE: Areas = 9216.0..=1e10;

/// Average precision and recall of detections, in images `0..images`, of classes `0..classes`. Truths and detections of
/// others are left out. The order matters only among equal scores, where the earlier goes first; NaN goes last.
#[must_use]
pub fn mean_ap(truths: &[Truth], detections: &[Detection], images: usize, classes: usize) -> MeanAp {
    let scenes = scenes(truths, detections, images, classes);
    let judged = |areas: Areas| -> Vec<Judged> {
        let classes = scenes.chunk_by(|a, b| a.class == b.class);
        classes.filter_map(|class| Judged::of(class, &areas)).collect()
    };
    let curves = |of: &[Judged], most: usize| of.iter().map(|class| class.curves(most)).collect::<Vec<_>>();
    let all = judged(ALL);
    let all_curves = curves(&all, MOST);
    let precision = |classes: &[Vec<Curve>]| mean(classes.iter().flatten().map(|curve| curve.precision));
    let precision_at = |threshold: usize| mean(all_curves.iter().map(|class| class[threshold].precision));
    let recall = |classes: &[Vec<Curve>]| mean(classes.iter().flatten().map(|curve| curve.recall));
    let of_size = |areas: Areas| precision(&curves(&judged(areas), MOST));
    MeanAp {
        ap: precision(&all_curves),
        ap50: precision_at(0),
        ap75: precision_at(5),
        small: of_size(SMALL),
        medium: of_size(MEDIUM),
        large: of_size(LARGE),
        ar1: recall(&curves(&all, 1)),
        ar10: recall(&curves(&all, 10)),
        ar100: recall(&all_curves),
    }
}

/// The threshold of this index for the intersection over union, rounded as `numpy.linspace` rounds: an overlap may be
/// just as large.
fn threshold(index: usize) -> f64 {
    0.5 + index as f64 * ((0.95 - 0.5) / (THRESHOLDS - 1) as f64)
}

/// The recall of this index, rounded as `numpy.linspace` rounds: 7 of 100 truths are just less than
/// that of index 7.
fn recall(index: usize) -> f64 {
    index as f64 * (1.0 / (RECALLS - 1) as f64)
}

/// None if there are no values.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// What is and what was found of one class in one image.
struct Scene<'a> {
    class: usize,
    truths: Vec<&'a Truth>,
    /// At most [`MOST`], the best score first.
    detections: Vec<&'a Detection>,
    /// `[detections, truths]`.
    overlaps: Vec<f64>,
}

/// The truths and the detections of a scene.
type Parts<'a> = (Vec<&'a Truth>, Vec<&'a Detection>);

/// All that are not empty, by class, then by image.
fn scenes<'a>(
    truths: &'a [Truth], detections: &'a [Detection], images: usize, classes: usize,
) -> Vec<Scene<'a>> {
    let known = |image: usize, class: usize| image < images && class < classes;
    let mut parts: BTreeMap<(usize, usize), Parts> = BTreeMap::new();
    for truth in truths.iter().filter(|of| known(of.image, of.class)) {
        parts.entry((truth.class, truth.image)).or_default().0.push(truth);
    }
    for detection in detections.iter().filter(|of| known(of.image, of.class)) {
        parts.entry((detection.class, detection.image)).or_default().1.push(detection);
    }
    let scene = |((class, _), (truths, detections))| Scene::new(class, truths, detections);
    parts.into_iter().map(scene).collect()
}

impl<'a> Scene<'a> {
    fn new(class: usize, truths: Vec<&'a Truth>, mut detections: Vec<&'a Detection>) -> Self {
        detections.sort_by(|a, b| descending(a.score, b.score));
        detections.truncate(MOST);
        let row = |found: &&Detection| truths.iter().map(|truth| overlap(found, truth)).collect::<Vec<_>>();
        let overlaps = detections.iter().flat_map(row).collect();
        Self { class, truths, detections, overlaps }
    }

    /// Which truths are not to be found: crowds, and what is too small or too large.
    fn ignored(&self, areas: &Areas) -> Vec<bool> {
        self.truths.iter().map(|truth| truth.crowd || !areas.contains(&truth.area)).collect()
    }

    /// `[detections]`: a verdict on each, if it must overlap a truth by `threshold`. `ignored` is `[truths]`.
    fn judge(&self, areas: &Areas, ignored: &[bool], threshold: f64) -> Vec<Verdict> {
        let mut order: Vec<usize> = (0..self.truths.len()).collect();
        order.sort_by_key(|&truth| ignored[truth]);
        let mut taken = vec![false; self.truths.len()];
        let verdict = |index: usize| {
            let free = order.iter().copied().filter(|&truth| !taken[truth] || self.truths[truth].crowd);
            let found = self.closest(index, free, ignored, threshold);
            if let Some(truth) = found {
                taken[truth] = true;
            }
            match found {
                Some(truth) if ignored[truth] => Verdict::Ignored,
                Some(_) => Verdict::Right,
                None if areas.contains(&size(self.detections[index].bbox)) => Verdict::Wrong,
                None => Verdict::Ignored,
            }
        };
        (0..self.detections.len()).map(verdict).collect()
    }

    /// The truth that a detection overlaps most, by `threshold` at least; of equals the last. An ignored one, which must
    /// come after the others, only if it overlaps no other. `free` are the truths that can be had.
    fn closest(
        &self, detection: usize, free: impl Iterator<Item = usize>, ignored: &[bool], threshold: f64,
    ) -> Option<usize> {
        let overlaps = &self.overlaps[detection * self.truths.len()..];
        let (mut closest, mut most) = (None, threshold);
        for truth in free {
            if ignored[truth] && closest.is_some_and(|closest: usize| !ignored[closest]) {
                break;
            }
            if overlaps[truth] >= most {
                (closest, most) = (Some(truth), overlaps[truth]);
            }
        }
        closest
    }
}

/// Intersection over union; for a crowd, the share of the detection that is within it. 0 if a box is empty.
fn overlap(detection: &Detection, truth: &Truth) -> f64 {
    let (a, b) = (detection.bbox, truth.bbox);
    let common = |axis: usize| (a[axis] + a[axis + 2]).min(b[axis] + b[axis + 2]) - a[axis].max(b[axis]);
    let (width, height) = (common(0), common(1));
    if width <= 0.0 || height <= 0.0 {
        return 0.0;
    }
    let common = width * height;
    common / if truth.crowd { size(a) } else { size(a) + size(b) - common }
}

/// The area of a box.
fn size(bbox: [f64; 4]) -> f64 {
    bbox[2] * bbox[3]
}

/// What a detection is.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    /// It has found a truth.
    Right,
    /// There is no such thing.
    Wrong,
    /// It has found something that need not be found, or is itself too small or too large.
    Ignored,
}

/// One class in all images, of which objects of some areas count.
struct Judged<'a> {
    scenes: &'a [Scene<'a>],
    /// `[THRESHOLDS, scenes, detections]`.
    verdicts: Vec<Vec<Vec<Verdict>>>,
    /// The number of truths that are to be found, not 0.
    truths: usize,
}

impl<'a> Judged<'a> {
    /// None if there is nothing to find.
    fn of(scenes: &'a [Scene<'a>], areas: &Areas) -> Option<Self> {
        let ignored: Vec<Vec<bool>> = scenes.iter().map(|scene| scene.ignored(areas)).collect();
        let truths = ignored.iter().flatten().filter(|&&ignored| !ignored).count();
        let at = |index: usize| {
            let parts = scenes.iter().zip(&ignored);
            parts.map(|(scene, ignored)| scene.judge(areas, ignored, threshold(index))).collect()
        };
        (truths > 0).then(|| Self { scenes, verdicts: (0..THRESHOLDS).map(at).collect(), truths })
    }

    /// What the best `most` detections of each image reach, at each threshold.
    fn curves(&self, most: usize) -> Vec<Curve> {
        let places =
            |(scene, of): (usize, &Scene)| (0..of.detections.len().min(most)).map(move |at| (scene, at));
        let mut order: Vec<(usize, usize)> = self.scenes.iter().enumerate().flat_map(places).collect();
        let score = |&(scene, at): &(usize, usize)| self.scenes[scene].detections[at].score;
        order.sort_by(|a, b| descending(score(a), score(b)));
        let curve = |verdicts: &Vec<Vec<Verdict>>| {
            Curve::of(order.iter().map(|&(scene, at)| verdicts[scene][at]), self.truths)
        };
        self.verdicts.iter().map(curve).collect()
    }
}

/// What a curve of precision against recall comes down to.
struct Curve {
    /// The mean over recalls 0.00, 0.01, ... 1.00 of the best precision with that recall or more. 0 where there is none.
    precision: f64,
    /// The last one.
    recall: f64,
}

impl Curve {
    /// Of verdicts on detections, the best score first, where there are this many truths.
    fn of(verdicts: impl Iterator<Item = Verdict>, truths: usize) -> Self {
        let (mut right, mut all) = (0, 0);
        let mut points: Vec<(f64, f64)> = vec![];
        for verdict in verdicts.filter(|&verdict| verdict != Verdict::Ignored) {
            right += usize::from(verdict == Verdict::Right);
            all += 1;
            points.push((right as f64 / truths as f64, right as f64 / all as f64));
        }
        for at in (1..points.len()).rev() {
            points[at - 1].1 = points[at - 1].1.max(points[at].1);
        }
        let best = |at: usize| {
            let reached = points.partition_point(|point| point.0 < recall(at));
            points.get(reached).map_or(0.0, |point| point.1)
        };
        let precision = (0..RECALLS).map(best).sum::<f64>() / RECALLS as f64;
        Self { precision, recall: right as f64 / truths as f64 }
    }
}

//! Boxes in images: how much two overlap, and non-maximum suppression.

use std::cmp::Ordering;

/// A box: left, top, right, bottom. In pixels or any other unit, as long as it is the same for all boxes.
pub type Rect = [f32; 4];

/// Intersection over union (the Jaccard index), in 0 to 1. 0 where a box is empty, inside out or not finite.
#[must_use]
pub fn iou(a: Rect, b: Rect) -> f32 {
    // Products of two differences of finite `f32` are always finite in `f64`.
    let (a, b) = (a.map(f64::from), b.map(f64::from));
    let common = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let union = area(a) + area(b) - common;
    if union.is_finite() && common > 0.0 { (common / union) as f32 } else { 0.0 }
}

/// 0 for a box that is empty or inside out. NaN if a coordinate is.
fn area([left, top, right, bottom]: [f64; 4]) -> f64 {
    let (width, height) = (right - left, bottom - top);
    if width <= 0.0 || height <= 0.0 { 0.0 } else { width * height }
}

/// Greedy non-maximum suppression within each class: of the boxes of a class, the one with the best score stays, all that
/// overlap it by an [`iou`] above `threshold` go, and so on with the rest. `boxes`, `scores` and `classes` are `[n]`.
///
/// The indices of the boxes that stay, of all classes, by descending score; equal scores by index, NaN last.
///
/// # Panics
///
/// If the slices differ in length.
#[must_use]
pub fn nms(boxes: &[Rect], scores: &[f32], classes: &[usize], threshold: f32) -> Vec<usize> {
    assert!(boxes.len() == scores.len() && boxes.len() == classes.len(), "one score and class a box");
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|&a, &b| descending(f64::from(scores[a]), f64::from(scores[b])));
    let mut kept: Vec<usize> = vec![];
    for index in order {
        let covers =
            |&other: &usize| classes[other] == classes[index] && iou(boxes[other], boxes[index]) > threshold;
        if !kept.iter().any(covers) {
            kept.push(index);
        }
    }
    kept
}

/// The order from the best score to the worst, with NaN after all others.
pub(super) fn descending(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: Rect = [0.0, 0.0, 1.0, 1.0];

    #[test]
    fn overlap_of_known_boxes() {
        assert_eq!(iou(UNIT, UNIT), 1.0);
        assert_eq!(iou(UNIT, [0.5, 0.0, 1.5, 1.0]), 1.0 / 3.0);
        assert_eq!(iou([0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0]), 0.25);
        assert_eq!(iou([-2.0, -2.0, 0.0, 0.0], [-1.0, -1.0, 1.0, 1.0]), 1.0 / 7.0);
    }

    #[test]
    fn boxes_that_only_touch_do_not_overlap() {
        assert_eq!(iou(UNIT, [1.0, 0.0, 2.0, 1.0]), 0.0);
        assert_eq!(iou(UNIT, [1.0, 1.0, 2.0, 2.0]), 0.0);
        assert_eq!(iou(UNIT, [5.0, 5.0, 6.0, 6.0]), 0.0);
    }

    #[test]
    fn degenerate_boxes_overlap_nothing() {
        let (nan, infinity) = (f32::NAN, f32::INFINITY);
        let degenerate = [
            [0.5, 0.5, 0.5, 0.5],
            [0.0, 0.5, 1.0, 0.5],
            [1.0, 1.0, 0.0, 0.0],
            [1.0, 0.0, 0.0, 1.0],
            [nan, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, nan],
            [nan; 4],
            [0.0, 0.0, infinity, 1.0],
            [-infinity, -infinity, infinity, infinity],
        ];
        for rect in degenerate {
            for other in degenerate.into_iter().chain([UNIT]) {
                assert_eq!(iou(rect, other), 0.0, "{rect:?} {other:?}");
                assert_eq!(iou(other, rect), 0.0, "{other:?} {rect:?}");
            }
        }
    }

    #[test]
    fn the_largest_boxes_do_not_overflow() {
        let all = [f32::MIN, f32::MIN, f32::MAX, f32::MAX];
        assert_eq!(iou(all, all), 1.0);
        assert_eq!(iou(all, [0.0, 0.0, f32::MAX, f32::MAX]), 0.25);
    }

    #[test]
    fn the_best_of_each_class_stays() {
        let boxes = [UNIT, [0.0, 0.0, 1.0, 0.9], UNIT, [3.0, 3.0, 4.0, 4.0], [0.0, 0.0, 1.0, 0.3]];
        assert_eq!(nms(&boxes, &[0.5, 0.9, 0.7, 0.6, 0.8], &[0, 0, 1, 0, 0], 0.5), [1, 4, 2, 3]);
    }

    #[test]
    fn only_more_than_the_threshold_suppresses() {
        let boxes = [UNIT, [0.0, 0.0, 1.0, 0.5]];
        assert_eq!(nms(&boxes, &[0.9, 0.8], &[0, 0], 0.5), [0, 1]);
        assert_eq!(nms(&boxes, &[0.9, 0.8], &[0, 0], 0.49), [0]);
    }

    #[test]
    fn a_suppressed_box_suppresses_nothing() {
        let boxes = [[0.0, 0.0, 4.0, 1.0], [1.0, 0.0, 5.0, 1.0], [2.0, 0.0, 6.0, 1.0]];
        assert_eq!(nms(&boxes, &[0.9, 0.8, 0.7], &[0; 3], 0.5), [0, 2]);
    }

    #[test]
    fn equal_scores_go_by_index() {
        let boxes = [UNIT, UNIT, [2.0, 2.0, 3.0, 3.0], [4.0, 4.0, 5.0, 5.0]];
        assert_eq!(nms(&boxes, &[0.5; 4], &[0; 4], 0.5), [0, 2, 3]);
        assert_eq!(nms(&boxes, &[-0.0, 0.0, 0.0, -0.0], &[0; 4], 0.5), [0, 2, 3]);
    }

    #[test]
    fn nan_scores_come_last() {
        let boxes = [UNIT, UNIT, [2.0, 2.0, 3.0, 3.0], [4.0, 4.0, 5.0, 5.0]];
        let scores = [f32::NAN, f32::NEG_INFINITY, -f32::NAN, 0.5];
        assert_eq!(nms(&boxes, &scores, &[0; 4], 0.5), [3, 1, 2]);
    }

    #[test]
    fn no_boxes() {
        assert!(nms(&[], &[], &[], 0.5).is_empty());
    }

    #[test]
    #[should_panic(expected = "one score and class a box")]
    fn lengths_must_agree() {
        let _ = nms(&[UNIT], &[], &[0], 0.5);
    }

    /// Boxes on a small grid, many of them degenerate.
    fn rects() -> impl Strategy<Value = Vec<(Rect, f32, usize)>> {
        let coordinate = || prop_oneof![8 => (0u8..8).prop_map(f32::from), 1 => any::<f32>()];
        let rect = [coordinate(), coordinate(), coordinate(), coordinate()];
        let score = prop_oneof![6 => (0u8..5).prop_map(f32::from), 1 => Just(f32::NAN), 1 => any::<f32>()];
        prop::collection::vec((rect, score, 0usize..3), 0..40)
    }

    proptest! {
        #[test]
        fn overlap_is_symmetric_and_a_fraction(rects in rects()) {
            for &(a, ..) in &rects {
                for &(b, ..) in &rects {
                    prop_assert_eq!(iou(a, b), iou(b, a));
                    prop_assert!((0.0..=1.0).contains(&iou(a, b)));
                }
            }
        }

        #[test]
        fn boxes_go_only_for_better_ones_that_stay(rects in rects(), threshold in 0f32..1.0) {
            let boxes: Vec<Rect> = rects.iter().map(|of| of.0).collect();
            let scores: Vec<f32> = rects.iter().map(|of| of.1).collect();
            let classes: Vec<usize> = rects.iter().map(|of| of.2).collect();
            let kept = nms(&boxes, &scores, &classes, threshold);
            let before = |a: usize, b: usize| descending(scores[a].into(), scores[b].into()).then(a.cmp(&b)).is_lt();
            prop_assert!(kept.windows(2).all(|pair| before(pair[0], pair[1])));
            for index in 0..boxes.len() {
                let covered = kept.iter().any(|&other| {
                    before(other, index)
                        && classes[other] == classes[index]
                        && iou(boxes[other], boxes[index]) > threshold
                });
                prop_assert_eq!(covered, !kept.contains(&index));
            }
        }
    }
}

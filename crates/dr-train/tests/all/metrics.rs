//! Metrics of detectors and of networks that label pixels: the numbers of pycocotools and torchmetrics.

use dr_train::data::coco::{Coco, Object, Picture};
use dr_train::metrics::Confusion;
use dr_train::metrics::{Detection, MeanAp, Truth, mean_ap};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;
use std::path::Path;

/// As `fixtures/make_metrics.py` writes it.
#[derive(Deserialize)]
struct Cases {
    detection: Vec<DetectionCase>,
    confusion: Vec<ConfusionCase>,
}

/// Image, class, left, top, width, height, area, crowd.
type TruthRow = (usize, usize, f64, f64, f64, f64, f64, u8);

/// Image, class, left, top, width, height, score.
type DetectionRow = (usize, usize, f64, f64, f64, f64, f64);

#[derive(Deserialize)]
struct DetectionCase {
    name: String,
    images: usize,
    classes: usize,
    truths: Vec<TruthRow>,
    detections: Vec<DetectionRow>,
    /// In the order of pycocotools, -1 for None.
    stats: [f64; 12],
}

#[derive(Deserialize)]
struct ConfusionCase {
    name: String,
    classes: usize,
    ignore: Option<u32>,
    predicted: Vec<u32>,
    truth: Vec<u32>,
    /// None for NaN.
    mean_iou: Option<f64>,
    per_class: Vec<f64>,
    pixel_accuracy: f64,
}

fn cases() -> Cases {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

impl DetectionCase {
    fn truths(&self) -> Vec<Truth> {
        let truth = |&(image, class, left, top, width, height, area, crowd): &TruthRow| {
            let bbox = [left, top, width, height];
            Truth { image, class, bbox, area, crowd: crowd == 1 }
        };
        self.truths.iter().map(truth).collect()
    }

    fn detections(&self) -> Vec<Detection> {
        let detection = |&(image, class, left, top, width, height, score): &DetectionRow| {
            let bbox = [left, top, width, height];
            Detection { image, class, bbox, score }
        };
        self.detections.iter().map(detection).collect()
    }
}

/// In the order of pycocotools.
fn stats(of: &MeanAp) -> [Option<f64>; 9] {
    [of.ap, of.ap50, of.ap75, of.small, of.medium, of.large, of.ar1, of.ar10, of.ar100]
}

#[test]
fn average_precision_is_that_of_pycocotools() {
    let cases = cases().detection;
    assert!(cases.len() >= 12);
    for case in cases {
        let found = mean_ap(&case.truths(), &case.detections(), case.images, case.classes);
        for (index, (&expected, found)) in case.stats.iter().zip(stats(&found)).enumerate() {
            let found = found.unwrap_or(-1.0);
            assert!(close(found, expected), "{}, number {index}: {found}, not {expected}", case.name);
        }
    }
}

/// The truths as a file of annotations has them.
fn annotations(case: &DetectionCase) -> serde_json::Value {
    let image = |id| json!({"id": id, "file_name": format!("{id}.png"), "width": 500, "height": 500});
    let annotation = |&(image, class, left, top, width, height, area, crowd): &TruthRow| {
        let bbox = [left, top, width, height];
        json!({"image_id": image, "category_id": class, "bbox": bbox, "area": area, "iscrowd": crowd})
    };
    json!({
        "images": (0..case.images).map(image).collect::<Vec<_>>(),
        "categories": (0..case.classes).map(|id| json!({"id": id, "name": id.to_string()})).collect::<Vec<_>>(),
        "annotations": case.truths.iter().map(annotation).collect::<Vec<_>>(),
    })
}

/// Those of a file, with the areas of their boxes.
fn truths_of(coco: &Coco) -> Vec<Truth> {
    let of = |(image, picture): (usize, &Picture)| {
        let truth = move |object: &Object| {
            let bbox = object.bbox.map(f64::from);
            Truth { image, class: object.category, bbox, area: bbox[2] * bbox[3], crowd: object.crowd }
        };
        picture.objects.iter().map(truth).collect::<Vec<_>>()
    };
    coco.images.iter().enumerate().flat_map(of).collect()
}

/// Boxes without area are left out of what is loaded. To pycocotools they are objects, so that its numbers differ then.
#[test]
fn average_precision_of_files_is_that_of_pycocotools() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.json");
    for case in cases().detection {
        std::fs::write(&path, annotations(&case).to_string()).unwrap();
        let coco = Coco::load(&path).unwrap();
        let truths = truths_of(&coco);
        assert_eq!(truths.len() + coco.without_pixels.len(), case.truths.len(), "{}", case.name);
        if !coco.without_pixels.is_empty() {
            continue;
        }
        let found = stats(&mean_ap(&truths, &case.detections(), case.images, case.classes));
        // Not those of small, medium and large objects: areas are not loaded.
        for index in [0, 1, 2, 6, 7, 8] {
            let (found, expected) = (found[index].unwrap_or(-1.0), case.stats[index]);
            assert!(close(found, expected), "{}, number {index}: {found}, not {expected}", case.name);
        }
    }
}

#[test]
fn means_of_confusions_are_those_of_torchmetrics() {
    let mut cases = cases().confusion;
    // What is no class is left out; of the classes none can be.
    cases.retain(|case| case.ignore.is_none_or(|ignore| ignore as usize >= case.classes));
    assert!(cases.len() >= 8);
    for case in cases {
        let mut confusion = Confusion::new(case.classes);
        let half = case.truth.len() / 2;
        confusion.add(&case.predicted[..half], &case.truth[..half]);
        confusion.add(&case.predicted[half..], &case.truth[half..]);
        match case.mean_iou {
            Some(expected) => assert!(close(confusion.mean_iou(), expected), "{}", case.name),
            None => assert!(confusion.mean_iou().is_nan(), "{}", case.name),
        }
        for (class, (&expected, found)) in case.per_class.iter().zip(confusion.per_class()).enumerate() {
            assert!(close(found.unwrap_or(0.0), expected), "{}, class {class}", case.name);
        }
        // That of nothing is 0 to torchmetrics.
        let accuracy = confusion.pixel_accuracy();
        assert!(close(if accuracy.is_nan() { 0.0 } else { accuracy }, case.pixel_accuracy), "{}", case.name);
    }
}

const BOX: [f64; 4] = [10.0, 10.0, 50.0, 50.0];

fn truth(image: usize, class: usize) -> Truth {
    Truth { image, class, bbox: BOX, area: 2500.0, crowd: false }
}

fn detection(image: usize, class: usize, score: f64) -> Detection {
    Detection { image, class, bbox: BOX, score }
}

#[test]
fn a_perfect_detector_has_1_for_all_that_exists() {
    let found = mean_ap(&[truth(0, 0), truth(1, 0)], &[detection(0, 0, 0.5), detection(1, 0, 0.1)], 2, 1);
    let one = Some(1.0);
    assert_eq!(stats(&found), [one, one, one, None, one, None, one, one, one]);
}

#[test]
fn nothing_to_find_is_none() {
    assert_eq!(mean_ap(&[], &[], 0, 0), MeanAp::default());
    assert_eq!(mean_ap(&[], &[detection(0, 0, 0.5)], 1, 1), MeanAp::default());
    let crowd = Truth { crowd: true, ..truth(0, 0) };
    assert_eq!(mean_ap(&[crowd], &[detection(0, 0, 0.5)], 1, 1), MeanAp::default());
}

#[test]
fn a_class_without_truths_has_no_part_in_the_mean() {
    let found = mean_ap(&[truth(0, 0)], &[detection(0, 0, 0.5), detection(0, 1, 0.9)], 1, 2);
    assert_eq!(found.ap, Some(1.0));
}

#[test]
fn a_second_detection_of_a_truth_is_wrong_but_not_of_a_crowd() {
    let (first, second) = (detection(0, 0, 0.9), detection(0, 0, 0.8));
    let elsewhere = Truth { bbox: [200.0, 200.0, 50.0, 50.0], ..truth(0, 0) };
    let there = Detection { bbox: elsewhere.bbox, score: 0.1, ..first };
    let detections = [first, second, there];
    let crowd = Truth { crowd: true, ..truth(0, 0) };
    assert_eq!(mean_ap(&[crowd, elsewhere.clone()], &detections, 1, 1).ap, Some(1.0));
    let found = mean_ap(&[truth(0, 0), elsewhere], &detections, 1, 1).ap;
    assert!(close(found.unwrap(), (51.0 + 50.0 * 2.0 / 3.0) / 101.0));
}

#[test]
fn other_images_and_classes_are_left_out() {
    let truths = [truth(0, 0), truth(1, 0), truth(0, 1)];
    let detections = [detection(0, 0, 0.5), detection(1, 0, 0.9), detection(0, 5, 0.9)];
    assert_eq!(mean_ap(&truths, &detections, 1, 1), mean_ap(&truths[..1], &detections[..1], 1, 1));
}

#[test]
fn nan_scores_go_last() {
    let wrong = Detection { bbox: [300.0, 300.0, 20.0, 20.0], ..detection(0, 0, f64::NAN) };
    let found = mean_ap(&[truth(0, 0)], &[wrong, detection(0, 0, -1.0)], 1, 1);
    assert_eq!(found.ap, Some(1.0));
}

/// Coordinates as they should be, and as they should not.
fn coordinate() -> impl Strategy<Value = f64> {
    prop_oneof![8 => (0u8..100).prop_map(f64::from), 1 => any::<f64>(), 1 => Just(f64::NAN)]
}

fn bbox() -> impl Strategy<Value = [f64; 4]> {
    [coordinate(), coordinate(), coordinate(), coordinate()]
}

fn truths() -> impl Strategy<Value = Vec<Truth>> {
    let truth = |(image, class, bbox, area, crowd)| Truth { image, class, bbox, area, crowd };
    prop::collection::vec((0usize..4, 0usize..3, bbox(), coordinate(), any::<bool>()).prop_map(truth), 0..20)
}

fn detections() -> impl Strategy<Value = Vec<Detection>> {
    let detection = |(image, class, bbox, score)| Detection { image, class, bbox, score };
    prop::collection::vec((0usize..4, 0usize..3, bbox(), coordinate()).prop_map(detection), 0..20)
}

proptest! {
    #[test]
    fn any_boxes_give_fractions(truths in truths(), detections in detections()) {
        let found = mean_ap(&truths, &detections, 3, 2);
        prop_assert!(stats(&found).into_iter().flatten().all(|value| (0.0..=1.0).contains(&value)));
        prop_assert!(found.ar1 <= found.ar10 && found.ar10 <= found.ar100);
        prop_assert!(found.ap75 <= found.ap50);
        prop_assert_eq!(found.ap.is_none(), found.ar1.is_none());
    }

    #[test]
    fn only_the_order_of_scores_matters(truths in truths(), detections in detections()) {
        let scored = |scale: f64| -> Vec<Detection> {
            let scored = |(at, of): (usize, &Detection)| Detection { score: scale * at as f64 - 7.0, ..of.clone() };
            detections.iter().enumerate().map(scored).collect()
        };
        let mut reversed = scored(3.0);
        reversed.reverse();
        prop_assert_eq!(mean_ap(&truths, &scored(1.0), 4, 3), mean_ap(&truths, &reversed, 4, 3));
    }
}

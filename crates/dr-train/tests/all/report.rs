//! The report as JSON, as a table and as a picture.

use dr_precision::Precision;
use dr_train::config::task::CLASSIFY;
use dr_train::data::{DatasetKind, Digits};
use dr_train::report::{
    CurvePoint, EpochRecord, Measured, NumberFormat, PrecisionResult, Report, SingleResult, TrainPhase,
};
use std::collections::BTreeMap;

const FORMATS: [(&str, f64, f64); 4] =
    [("w8a8", 98.06, 97.9), ("w6a6", 98.33, 97.8), ("w4a4", 97.78, 97.6), ("w2a2", 96.94, 96.1)];

fn report() -> Report {
    let precision = |name: &str| name.parse::<Precision>().unwrap();
    let precisions = FORMATS.iter().enumerate().map(|(i, &(name, top1, _))| PrecisionResult {
        precision: precision(name).into(),
        measured: Measured {
            top1,
            loss: 0.1,
            perplexity: None,
            quality: None,
            agreement: None,
            model_bytes: 80_000 - 19_000 * i,
        },
    });
    let curve = |epoch: usize, best: f64| CurvePoint {
        train_loss: 2.0 / epoch as f64,
        valid_top1: best - 60.0 * (-0.7 * epoch as f64).exp() - 0.4 * (epoch % 3) as f64,
        valid_loss: None,
    };
    let float = (1..=20).map(|epoch| EpochRecord {
        phase: TrainPhase::Float,
        epoch,
        seconds: 1.0,
        curves: BTreeMap::from([(NumberFormat::Float, curve(epoch, 98.6))]),
    });
    let joint = (1..=20).map(|epoch| EpochRecord {
        phase: TrainPhase::Joint,
        epoch,
        seconds: 3.5,
        curves: FORMATS
            .iter()
            .map(|&(name, top1, _)| (precision(name).into(), curve(epoch + 3, top1 + 0.5)))
            .collect(),
    });
    let single =
        FORMATS.iter().map(|&(name, _, top1)| SingleResult { precision: name.parse().unwrap(), top1 });
    let float_single = SingleResult { precision: NumberFormat::Float, top1: 98.2 };
    Report {
        task: CLASSIFY.to_owned(),
        dataset: "digits".to_owned(),
        model: "resnet8".to_owned(),
        seed: 1,
        device: "flex".to_owned(),
        seconds: 91.5,
        test_images: 360,
        skipped_images: 0,
        float: Some(Measured {
            top1: 98.33,
            loss: 0.07,
            perplexity: None,
            quality: None,
            agreement: None,
            model_bytes: 310_000,
        }),
        precisions: precisions.collect(),
        single: std::iter::once(float_single).chain(single).collect(),
        float_epoch_seconds: Some(1.0),
        joint_epoch_seconds: Some(3.5),
        history: float.chain(joint).collect(),
        config: Some(Digits.settings()),
    }
}

#[test]
fn the_json_is_as_documented_and_is_read_again() {
    let report = report();
    let text = report.to_json().unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["float"]["top1"], 98.33);
    assert_eq!(json["precisions"][3]["precision"], "w2a2");
    assert_eq!(json["precisions"][0]["model_bytes"], 80_000);
    assert_eq!(json["single"][0]["precision"], "float");
    assert_eq!(json["history"][20]["phase"], "joint");
    assert!(json["history"][20]["curves"]["w4a4"]["valid_top1"].is_number());
    // All but the last bits of numbers.
    let again: Report = serde_json::from_str(&text).unwrap();
    assert!(close(&serde_json::to_value(&again).unwrap(), &serde_json::to_value(&report).unwrap()));
}

#[test]
fn means_over_nothing_are_undefined() {
    let mut report = report();
    report.precisions[1].measured.top1 = f64::NAN;
    report.precisions[1].measured.loss = f64::NAN;
    let json: serde_json::Value = serde_json::from_str(&report.to_json().unwrap()).unwrap();
    assert!(json["precisions"][1]["top1"].is_null());
    let again: Report = serde_json::from_value(json).unwrap();
    assert!(again.precisions[1].measured.top1.is_nan() && again.precisions[1].measured.loss.is_nan());
    let table = again.table();
    let row: Vec<&str> =
        table.lines().find(|line| line.starts_with("w6a6")).unwrap().split_whitespace().collect();
    assert_eq!(row[1..3], ["undefined", "undefined"], "{table}");
    assert!(again.to_svg().unwrap().contains("undefined"));
}

fn close(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value;
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-12 * a.abs()
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.keys().eq(b.keys()) && a.values().zip(b.values()).all(|(a, b)| close(a, b))
        }
        _ => a == b,
    }
}

#[test]
fn the_table_is_aligned() {
    let mut report = report();
    assert_eq!(
        report.table(),
        "\
precision  top-1 (%)  vs. float  model bytes  separate (%)  vs. separate
------------------------------------------------------------------------
float          98.33          -      310,000         98.20         +0.13
w8a8           98.06      -0.27       80,000         97.90         +0.16
w6a6           98.33      +0.00       61,000         97.80         +0.53
w4a4           97.78      -0.55       42,000         97.60         +0.18
w2a2           96.94      -1.39       23,000         96.10         +0.84
"
    );
    report.single.clear();
    report.float = None;
    assert!(report.table().contains("w8a8           98.06          -       80,000\n"), "{}", report.table());
}

#[test]
fn it_is_saved_as_two_files() {
    let folder = tempfile::tempdir().unwrap();
    report().save(folder.path()).unwrap();
    assert!(std::fs::read_to_string(folder.path().join("report.svg")).unwrap().starts_with("<svg"));
    assert!(std::fs::read_to_string(folder.path().join("report.json")).unwrap().starts_with('{'));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn odd_results_are_drawn_too() {
    let mut report = report();
    report.to_svg().unwrap();
    report.single.clear();
    report.to_svg().unwrap();
    report.precisions[0].measured.top1 = f64::NAN;
    report.precisions.truncate(1);
    report.history.truncate(1);
    report.to_svg().unwrap();
    report.precisions.clear();
    report.history.clear();
    report.float = None;
    report.to_svg().unwrap();
}

/// For looking at: `REPORT_SVG=FILE cargo test -p dr-train --test all report`.
#[test]
fn an_example_to_look_at() {
    if let Some(path) = std::env::var_os("REPORT_SVG") {
        std::fs::write(path, report().to_svg().unwrap()).unwrap();
    }
}

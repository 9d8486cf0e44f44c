//! What mixtures of trained supernets score: the best plans for average bits from 2 to 8, the precisions, and random plans,
//! all on the test images, as JSON and as a plot.
//!
//! ```text
//! cargo run --release -p dr-train --example front -- OUT RUN [RUN ..]
//! ```
//!
//! `RUN` is the folder of a `dr-train train --mixed`; several are averaged (other seeds). Plans are searched with the Hessian
//! traces that the run has left there, and computed in integers. Writes `OUT.json` and `OUT.svg`.

use burn::tensor::Device;
use dr_precision::PrecisionPlan;
use dr_train::artifact::{Artifact, SavedModel};
use dr_train::config::{Engine, LossTerms, Sampling, Widths};
use dr_train::data::{self, DataSource};
use dr_train::evaluation::measure;
use dr_train::experiment::calibration_batches;
use dr_train::files::write_atomically;
use dr_train::mixed::{Budget, BudgetKind, Candidates, Hasb, Traces};
use dr_train::report::{Measured, NumberFormat};
use plotters::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

/// Random plans of each run.
const RANDOM: u64 = 24;

/// Average bits that plans are searched for.
fn budgets() -> impl Iterator<Item = f64> {
    (4..=16).map(|half| f64::from(half) / 2.0)
}

/// A plan and what it scored.
#[derive(Clone, Debug, Serialize)]
struct Point {
    run: String,
    /// `best` for a budget, a precision, or `random`.
    plan: String,
    average_bits: f64,
    /// In percent of the test images.
    top1: f64,
    /// Cross entropy on them.
    loss: f64,
    /// The loss that is predicted, from the errors of weights, and from those of weights and activations.
    predicted: [f64; 2],
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, runs @ ..] = &arguments[..] else { return Err("usage: front OUT RUN [RUN ..]".into()) };
    let mut points = vec![];
    for run in runs {
        points.extend(measure_run(Path::new(run))?);
        write_atomically(Path::new(&format!("{out}.json")), &serde_json::to_vec_pretty(&points)?)?;
    }
    write_atomically(Path::new(&format!("{out}.svg")), draw(&points, runs.len())?.as_bytes())?;
    summarize(&points);
    Ok(())
}

fn measure_run(run: &Path) -> Result<Vec<Point>, Box<dyn Error>> {
    let device = Device::flex();
    let artifact = Artifact::open(&run.join("model.safetensors"))?;
    let traces: Traces = serde_json::from_slice(&std::fs::read(run.join("traces.json"))?)?;
    let description = &artifact.description;
    let dataset = data::datasets().get(&description.dataset)?;
    let source = DataSource {
        image_size: [description.input.height, description.input.width].into(),
        ..DataSource::new(dataset, None, description.seed)
    };
    let data::Splits { train, test, .. } = data::load(&source, None)?;
    let batches = calibration_batches(&train, &description.normalization, &device)?;

    let candidates = |terms| -> Result<Candidates, Box<dyn Error>> {
        let mut candidates = Candidates::new(&artifact, Widths::Together, &[])?;
        candidates.predict_losses(&artifact, &traces, terms, batches.clone(), &device)?;
        Ok(candidates)
    };
    let (weights, both) = (candidates(LossTerms::Weights)?, candidates(LossTerms::Both)?);
    let mut plans: Vec<(String, PrecisionPlan)> = vec![];
    for bits in budgets() {
        plans.push(("best".to_owned(), both.best(&Budget::new(BudgetKind::AverageBits, bits))?.plan));
    }
    for precision in description.precisions.iter() {
        let picks = both.uniform(precision).ok_or("a precision that the layers do not have")?;
        plans.push((precision.to_string(), both.plan(&picks)));
    }
    let mut network = artifact.network(&device)?;
    let (set, together) = (&description.precisions, Widths::Together);
    let random = Hasb::new(&mut network, &[], set, together, Sampling::Uniform, description.seed);
    let names: Vec<String> = random.names().map(str::to_owned).collect();
    for draw in 0..RANDOM {
        let plan = PrecisionPlan::new(names.iter().cloned().zip(random.draw(draw)))?;
        plans.push(("random".to_owned(), plan));
    }

    let count = plans.len();
    let mut points = vec![];
    for (i, (name, plan)) in plans.into_iter().enumerate() {
        let packed = artifact.export_plan(&plan, &batches, &device)?;
        let measured = measure(&packed, &[NumberFormat::Mixed], &test, Engine::Integer, None, &device)?[0];
        let find = |candidates: &Candidates| {
            let position = |(layer, (_, precision)): (&dr_train::mixed::LayerCandidates, (&str, _))| {
                layer.choices.iter().position(|choice| choice.precision == precision)
            };
            let picks: Option<Vec<usize>> = candidates.layers.iter().zip(plan.iter()).map(position).collect();
            picks.map(|picks| candidates.found(&picks).totals)
        };
        let totals = [find(&weights), find(&both)].map(|totals| totals.expect("made of the candidates"));
        let (run, average_bits) = (run.display().to_string(), totals[1].average_bits);
        let Measured { top1, loss, .. } = measured;
        eprintln!("{run} {}/{count}: {name} {average_bits:.2} bits, {top1:.2} %", i + 1);
        let predicted = totals.map(|totals| totals.predicted_loss);
        points.push(Point { run, plan: name, average_bits, top1, loss, predicted });
    }
    Ok(points)
}

/// Mean and standard deviation.
fn spread(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    (mean, (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt())
}

/// The same plan of all runs, for each budget or precision: its average bits, and mean and deviation of top-1.
fn series(points: &[Point], of: impl Fn(&Point) -> bool) -> Vec<(f64, (f64, f64))> {
    let mut by_run: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for point in points.iter().filter(|point| of(point)) {
        by_run.entry(&point.run).or_default().push((point.average_bits, point.top1));
    }
    let length = by_run.values().map(Vec::len).min().unwrap_or(0);
    let over_runs = |i: usize| {
        let (bits, top1): (Vec<f64>, Vec<f64>) = by_run.values().map(|run| run[i]).unzip();
        (spread(&bits).0, spread(&top1))
    };
    (0..length).map(over_runs).collect()
}

fn is_uniform(point: &Point) -> bool {
    !["best", "random"].contains(&point.plan.as_str())
}

fn summarize(points: &[Point]) {
    println!("| plans | average bits | top-1, mean ± deviation over runs |\n|---|---|---|");
    for (name, series) in
        [("best", series(points, |p| p.plan == "best")), ("uniform", series(points, is_uniform))]
    {
        for (bits, (mean, deviation)) in series {
            println!("| {name} | {bits:.2} | {mean:.2} ± {deviation:.2} |");
        }
    }
    for (i, name) in ["weights", "weights and activations"].iter().enumerate() {
        let mut of_runs = BTreeMap::<&str, Vec<&Point>>::new();
        for point in points.iter().filter(|point| point.plan == "random") {
            of_runs.entry(&point.run).or_default().push(point);
        }
        let rank = |points: &Vec<&Point>| {
            spearman(points.iter().map(|p| (p.predicted[i], p.loss)).collect::<Vec<_>>())
        };
        let (mean, deviation) = spread(&of_runs.values().map(rank).collect::<Vec<_>>());
        println!(
            "rank correlation of predicted and measured loss over random plans, errors of {name}: {mean:.2} ± {deviation:.2}"
        );
    }
}

/// Spearman's rank correlation.
fn spearman(pairs: Vec<(f64, f64)>) -> f64 {
    let ranks = |values: Vec<f64>| {
        let below = |value: f64| values.iter().filter(|v| **v < value).count() as f64;
        let same = |value: f64| values.iter().filter(|v| **v == value).count() as f64;
        values.iter().map(|&value| below(value) + same(value) / 2.0).collect::<Vec<_>>()
    };
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    let (a, b) = (ranks(a), ranks(b));
    let ((mean_a, deviation_a), (mean_b, deviation_b)) = (spread(&a), spread(&b));
    let sum: f64 = a.iter().zip(&b).map(|(a, b)| (a - mean_a) * (b - mean_b)).sum();
    sum / ((a.len() as f64 - 1.0) * deviation_a * deviation_b)
}

/// Accuracy over average bits: a line through the best plans, one through the precisions, and random plans as points.
fn draw(points: &[Point], runs: usize) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (860, 520)).into_drawing_area();
        root.fill(&WHITE)?;
        let low = points.iter().map(|point| point.top1).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|point| point.top1).fold(f64::NEG_INFINITY, f64::max);
        let title = format!("Mixtures of supernets, mean of {runs} seeds");
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(46)
            .y_label_area_size(60)
            .build_cartesian_2d(1.8..8.2, low - 0.2..high + 0.2)?;
        chart
            .configure_mesh()
            .x_desc("Average bits of a weight, first and last layer left out")
            .y_desc("Top-1 on test images (%)")
            .light_line_style(TRANSPARENT)
            .draw()?;
        let random = points.iter().filter(|point| point.plan == "random");
        let grey = RGBColor(150, 150, 150);
        chart
            .draw_series(random.map(|p| Circle::new((p.average_bits, p.top1), 3, grey.filled())))?
            .label("random plans, each seed")
            .legend(move |at| Circle::new(at, 3, grey.filled()));
        for (name, colour, series) in [
            ("precisions", RGBColor(213, 94, 0), series(points, is_uniform)),
            ("best plans", RGBColor(0, 114, 178), series(points, |p| p.plan == "best")),
        ] {
            let line = series.into_iter().map(|(bits, (mean, _))| (bits, mean));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)).point_size(4))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x - 8, y), (x + 8, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE)
            .border_style(grey)
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

//! The table at the end of a run.

use super::{Measured, NumberFormat, Report};
use crate::config::TaskKind;
use std::fmt::Write;

impl Report {
    /// The results as aligned text: one row for each format, float first. With separately trained networks, if the
    /// report has them.
    #[must_use]
    pub fn table(&self) -> String {
        let quality = |measured: &Measured| measured.quality.unwrap_or(f64::NAN);
        match self.task {
            // Between how many equally likely tokens a language model is as unsure.
            TaskKind::Language => self.rows(
                &["perplexity", "vs. float (%)", "top-1 (%)"],
                |measured| format!("{:.3}", measured.loss.exp()),
                |a, b| 100.0 * ((a.loss - b.loss).exp() - 1.0),
            ),
            // What is said about every part of an image.
            TaskKind::Segment | TaskKind::Detect => self.rows(
                match self.task {
                    TaskKind::Segment => &["mIoU (%)", "vs. float", "pixels (%)"],
                    _ => &["mAP (%)", "vs. float", "classes (%)"],
                },
                |measured| format!("{:.2}", quality(measured)),
                |a, b| quality(a) - quality(b),
            ),
            TaskKind::Classify => self.rows(
                &["top-1 (%)", "vs. float"],
                |measured| format!("{:.2}", measured.top1),
                |a, b| a.top1 - b.top1,
            ),
        }
    }

    /// A row for each format: what `value` shows, how much better that is than in floats, `top1` if that is something else, and
    /// bytes; of classes separately trained networks, too, if there are some.
    fn rows(
        &self, columns: &[&str], value: impl Fn(&Measured) -> String,
        difference: impl Fn(&Measured, &Measured) -> f64,
    ) -> String {
        let classes = self.task == TaskKind::Classify;
        let separate = classes && !self.single.is_empty();
        let mut header = [&["precision"][..], columns, &["model bytes"]].concat();
        if separate {
            header.extend(["separate (%)", "vs. separate"]);
        }
        let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
        let float = self.float.map(|measured| (NumberFormat::Float, measured));
        let precisions = self.precisions.iter().map(|result| (result.precision, result.measured));
        for (format, measured) in float.into_iter().chain(precisions) {
            let float = self.float.filter(|_| format != NumberFormat::Float);
            let difference = float.map(|float| signed(difference(&measured, &float)));
            let mut row = vec![format.to_string(), value(&measured), or_none(difference)];
            if !classes {
                row.push(format!("{:.2}", measured.top1));
            }
            row.push(thousands(measured.model_bytes));
            if separate {
                let single = self.single_top1(format);
                row.push(or_none(single.map(|top1| format!("{top1:.2}"))));
                row.push(or_none(single.map(|top1| signed(measured.top1 - top1))));
            }
            rows.push(row);
        }
        aligned(&rows)
    }
}

fn or_none(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

/// The first column to the left, the others to the right; a rule below the first row.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string cannot fail.
            let _ =
                if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
        if i == 0 {
            let line = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
            text.push_str(&"-".repeat(line));
            text.push('\n');
        }
    }
    text
}

/// `+0.25`; what rounds to nothing has no minus sign.
fn signed(points: f64) -> String {
    let text = format!("{points:+.2}");
    if text == "-0.00" { "+0.00".to_owned() } else { text }
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: usize) -> String {
    match number {
        ..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}

//! The table at the end of a run.

use super::{Measured, NumberFormat, Report};
use crate::config::TaskKind;
use std::fmt::Write;

impl Report {
    /// The results as aligned text: one row for each format, float first. With separately trained networks, if the
    /// report has them.
    #[must_use]
    pub fn table(&self) -> String {
        match self.task {
            TaskKind::Language => return self.perplexities(),
            TaskKind::Segment => return self.qualities("mIoU (%)", "pixels (%)"),
            TaskKind::Detect => return self.qualities("mAP (%)", "classes (%)"),
            TaskKind::Classify => {}
        }
        let mut header = vec!["precision", "top-1 (%)", "vs. float", "model bytes"];
        if !self.single.is_empty() {
            header.extend(["separate (%)", "vs. separate"]);
        }
        let mut rows = vec![header.into_iter().map(str::to_owned).collect()];
        let float = self.float.map(|measured| (NumberFormat::Float, measured));
        let precisions = self.precisions.iter().map(|result| (result.precision, result.measured));
        for (format, measured) in float.into_iter().chain(precisions) {
            let difference = match (format, self.float) {
                (NumberFormat::Quantized(_) | NumberFormat::Mixed, Some(float)) => {
                    signed(measured.top1 - float.top1)
                }
                _ => "-".to_owned(),
            };
            let mut row = vec![
                format.to_string(),
                format!("{:.2}", measured.top1),
                difference,
                thousands(measured.model_bytes),
            ];
            if !self.single.is_empty() {
                let single = self.single_top1(format);
                row.push(single.map_or("-".to_owned(), |top1| format!("{top1:.2}")));
                row.push(single.map_or("-".to_owned(), |top1| signed(measured.top1 - top1)));
            }
            rows.push(row);
        }
        aligned(&rows)
    }
}

impl Report {
    /// The table of a language model: between how many equally likely tokens it is as unsure.
    fn perplexities(&self) -> String {
        let header = ["precision", "perplexity", "vs. float (%)", "top-1 (%)", "model bytes"];
        let difference = |a: &Measured, b: &Measured| 100.0 * ((a.loss - b.loss).exp() - 1.0);
        self.rows(header, |measured| format!("{:.3}", measured.loss.exp()), difference)
    }

    /// The table of a network that says something about every part of an image.
    fn qualities(&self, quality: &str, top1: &str) -> String {
        let of = |measured: &Measured| measured.quality.unwrap_or(f64::NAN);
        let header = ["precision", quality, "vs. float", top1, "model bytes"];
        self.rows(header, |measured| format!("{:.2}", of(measured)), |a, b| of(a) - of(b))
    }

    /// A row for each format: what `value` shows, how much better that is than in floats, `top1` and bytes.
    fn rows(
        &self, header: [&str; 5], value: impl Fn(&Measured) -> String,
        difference: impl Fn(&Measured, &Measured) -> f64,
    ) -> String {
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        let float = self.float.map(|measured| (NumberFormat::Float, measured));
        let precisions = self.precisions.iter().map(|result| (result.precision, result.measured));
        for (format, measured) in float.into_iter().chain(precisions) {
            let difference = match (format, &self.float) {
                (NumberFormat::Quantized(_) | NumberFormat::Mixed, Some(float)) => {
                    signed(difference(&measured, float))
                }
                _ => "-".to_owned(),
            };
            let (top1, bytes) = (format!("{:.2}", measured.top1), thousands(measured.model_bytes));
            rows.push(vec![format.to_string(), value(&measured), difference, top1, bytes]);
        }
        aligned(&rows)
    }
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
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

//! The table at the end of a run.

use super::{NumberFormat, Report};
use crate::config::DatasetKind;
use std::fmt::Write;

impl Report {
    /// The results as aligned text: one row for each format, float first. With separately trained networks, if the
    /// report has them.
    #[must_use]
    pub fn table(&self) -> String {
        if self.dataset == DatasetKind::Text {
            return self.perplexities();
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
    /// The table of a language model: how many tokens it is as unsure between as if it drew one of so many.
    fn perplexities(&self) -> String {
        let header = ["precision", "perplexity", "vs. float (%)", "top-1 (%)", "model bytes"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        let float = self.float.map(|measured| (NumberFormat::Float, measured));
        let precisions = self.precisions.iter().map(|result| (result.precision, result.measured));
        for (format, measured) in float.into_iter().chain(precisions) {
            let difference = match (format, self.float) {
                (NumberFormat::Quantized(_) | NumberFormat::Mixed, Some(float)) => {
                    signed(100.0 * ((measured.loss - float.loss).exp() - 1.0))
                }
                _ => "-".to_owned(),
            };
            rows.push(vec![
                format.to_string(),
                format!("{:.3}", measured.loss.exp()),
                difference,
                format!("{:.2}", measured.top1),
                thousands(measured.model_bytes),
            ]);
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

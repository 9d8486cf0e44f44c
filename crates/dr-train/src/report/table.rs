//! The table at the end of a run.

use super::{Measured, NumberFormat, Report, UNDEFINED, number};
use std::fmt::Write;

impl Report {
    /// The results of a classification as aligned text: one row for each format, float first. With separately trained networks, if the
    /// report has them.
    #[must_use]
    pub fn table(&self) -> String {
        let value = |measured: &Measured| number(measured.top1, 2);
        let mut rows = self.rows(["top-1 (%)", "vs. float"], value, |a, b| a.top1 - b.top1);
        if self.measured().any(|(_, measured)| measured.agreement.is_some()) {
            let header = ["divergence", "same top-1 (%)", "where sure (%)", "relative error (%)"];
            rows[0].extend(header.map(str::to_owned));
            for (row, (_, Measured { agreement, .. })) in rows[1..].iter_mut().zip(self.measured()) {
                row.push(or_none(agreement.map(|of| number(of.divergence, 5))));
                row.push(or_none(agreement.map(|of| number(of.same_top1, 2))));
                row.push(or_none(agreement.map(|of| number(of.same_top1_sure, 2))));
                row.push(or_none(agreement.map(|of| number(100.0 * of.relative_error, 2))));
            }
        }
        if !self.single.is_empty() {
            rows[0].extend(["separate (%)", "vs. separate"].map(str::to_owned));
            for (row, (format, measured)) in rows[1..].iter_mut().zip(self.measured()) {
                let single = self.single_top1(format);
                row.push(or_none(single.map(|top1| number(top1, 2))));
                row.push(or_none(single.map(|top1| signed(measured.top1 - top1))));
            }
        }
        aligned(&rows)
    }

    /// All formats, float first.
    fn measured(&self) -> impl Iterator<Item = (NumberFormat, Measured)> {
        let float = self.float.map(|measured| (NumberFormat::Float, measured));
        float.into_iter().chain(self.precisions.iter().map(|result| (result.precision, result.measured)))
    }

    /// The table of a language model: between how many equally likely tokens it is as unsure.
    pub(crate) fn perplexities(&self) -> String {
        let difference = |a: &Measured, b: &Measured| 100.0 * ((a.loss - b.loss).exp() - 1.0);
        let value = |measured: &Measured| number(measured.loss.exp(), 3);
        let mut rows = self.rows(["perplexity", "vs. float (%)"], value, difference);
        if self.measured().any(|(_, measured)| measured.agreement.is_some()) {
            rows[0].extend(["divergence", "of 99 %", "same top-1 (%)"].map(str::to_owned));
            for (row, (_, Measured { agreement, .. })) in rows[1..].iter_mut().zip(self.measured()) {
                row.push(or_none(agreement.map(|of| number(of.divergence, 6))));
                row.push(or_none(agreement.map(|of| number(of.divergence_99, 6))));
                row.push(or_none(agreement.map(|of| number(of.same_top1, 2))));
            }
        }
        self.with_top1("top-1 (%)", rows)
    }

    /// The table of a network that says something about every part of an image.
    pub(crate) fn qualities(&self, [quality, top1]: [&str; 2]) -> String {
        let of = |measured: &Measured| measured.quality.unwrap_or(f64::NAN);
        let value = |measured: &Measured| number(of(measured), 2);
        self.with_top1(top1, self.rows([quality, "vs. float"], value, |a, b| of(a) - of(b)))
    }

    /// A row for each format: what `value` shows, how much better that is than in floats, and bytes.
    fn rows(
        &self, header: [&str; 2], value: impl Fn(&Measured) -> String,
        difference: impl Fn(&Measured, &Measured) -> f64,
    ) -> Vec<Vec<String>> {
        let row = |(format, measured): (NumberFormat, Measured)| {
            let difference = match (format, &self.float) {
                (NumberFormat::Quantized(_) | NumberFormat::Mixed, Some(float)) => {
                    signed(difference(&measured, float))
                }
                _ => "-".to_owned(),
            };
            vec![format.to_string(), value(&measured), difference, thousands(measured.model_bytes)]
        };
        let header = ["precision", header[0], header[1], "model bytes"].map(str::to_owned).to_vec();
        std::iter::once(header).chain(self.measured().map(row)).collect()
    }

    /// The table with one more column before the last.
    fn with_top1(&self, name: &str, mut rows: Vec<Vec<String>>) -> String {
        let values = self.measured().map(|(_, measured)| number(measured.top1, 2));
        for (row, value) in rows.iter_mut().zip(std::iter::once(name.to_owned()).chain(values)) {
            row.insert(3, value);
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
    match format!("{points:+.2}") {
        _ if points.is_nan() => UNDEFINED.to_owned(),
        text if text == "-0.00" => "+0.00".to_owned(),
        text => text,
    }
}

/// The first few of some names, at most `most`, and how many there are besides.
pub(crate) fn few(names: &[impl AsRef<str>], most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let first: Vec<&str> = names[..names.len() - more].iter().map(AsRef::as_ref).collect();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    first.join(", ") + &more
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(number: usize) -> String {
    match number {
        ..1000 => number.to_string(),
        _ => format!("{},{:03}", thousands(number / 1000), number % 1000),
    }
}

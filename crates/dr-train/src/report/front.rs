//! A picture of what less loss costs: a line of best plans, and named points to compare them with.

use super::plot::{Area, COLOURS, FONT, INK, picture, styled};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;

/// A named point.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) name: String,
    pub(crate) at: (f64, f64),
}

const SIZE: (u32, u32) = (860, 520);

/// Draws losses over what is limited, as SVG. The losses' axis is logarithmic: a loss of 0 is drawn below all others. The
/// error is a message.
pub(crate) fn draw(title: &str, axis: &str, line: &[(f64, f64)], marks: &[Mark]) -> Result<String, String> {
    picture(SIZE, title, 20, |body| draw_on(body, axis, line, marks))
}

fn draw_on(body: &Area, axis: &str, line: &[(f64, f64)], marks: &[Mark]) -> Result<(), Box<dyn Error>> {
    let all = || line.iter().copied().chain(marks.iter().map(|mark| mark.at)).filter(|(x, _)| x.is_finite());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (left, right) = range(&mut all().map(|(x, _)| x));
    let logarithms = all().map(|(_, y)| y.log10()).filter(|y| y.is_finite());
    let (low, high) = range(&mut { logarithms });
    let (left, right) = if left < right { (left, right) } else { (0.0, left.max(1.0)) };
    let (low, high) = if low <= high { (low, high) } else { (-1.0, 0.0) };
    let (low, high) = ((low - 0.3).floor(), (high + 0.15).max(low + 0.5));
    let room = (right - left) * 0.06;
    let at = |(x, y): (f64, f64)| (x, if y > 0.0 { y.log10().max(low) } else { low });
    let mut chart = ChartBuilder::on(body)
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(70)
        .build_cartesian_2d(left - room..right + room, low..high)?;
    styled(&mut chart.configure_mesh())
        .x_labels(8)
        .y_labels((high - low).ceil() as usize + 1)
        .y_label_formatter(&|exponent| format!("{:.0e}", 10f64.powf(*exponent)))
        .x_desc(axis)
        .y_desc("Predicted loss")
        .draw()?;
    let best: Vec<(f64, f64)> = line.iter().copied().filter(|(x, _)| x.is_finite()).map(at).collect();
    chart.draw_series(LineSeries::new(best.iter().copied(), COLOURS[0].stroke_width(2)))?;
    chart.draw_series(best.into_iter().map(|point| Circle::new(point, 4, COLOURS[0].filled())))?;
    let name = (FONT, 14).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Bottom));
    for mark in marks.iter().filter(|mark| mark.at.0.is_finite()) {
        let label = EmptyElement::at(at(mark.at))
            + TriangleMarker::new((0, 0), 7, COLOURS[3].filled())
            + Text::new(mark.name.clone(), (7, -5), name.clone());
        chart.draw_series([label])?;
    }
    Ok(())
}

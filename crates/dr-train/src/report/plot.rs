//! `report.svg`: accuracy per precision on the left, training curves on the right.

use super::{NumberFormat, Report, TrainPhase, number};
use plotters::chart::MeshStyle;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeMap;
use std::error::Error;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const SIZE: (u32, u32) = (1240, 520);
/// Of the left panel.
const BARS_WIDTH: u32 = 560;
pub(super) const FONT: &str = "sans-serif";
pub(super) const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(225, 225, 225);
const FLOAT: RGBColor = RGBColor(90, 90, 90);
/// Of the precisions, highest first; distinguishable with any colour vision (Okabe and Ito's, less the yellow).
pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// What stands before a name in a legend.
enum Key {
    Line(ShapeStyle),
    Box(ShapeStyle),
}

/// A row of entries above a panel, where no data can be; returns what is left of the area.
fn legend<'a>(area: &Area<'a>, keys: &[(String, Key)]) -> Result<Area<'a>, Box<dyn Error>> {
    let (strip, rest) = area.split_vertically(30);
    let style = (FONT, 13).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    let (mut x, y) = (78, 18);
    for (label, key) in keys {
        match *key {
            Key::Line(style) => strip.draw(&PathElement::new([(x, y), (x + 18, y)], style))?,
            Key::Box(style) => strip.draw(&Rectangle::new([(x + 3, y - 6), (x + 15, y + 6)], style))?,
        }
        strip.draw(&Text::new(label.as_str(), (x + 24, y), style.clone()))?;
        // The width of a text is the viewer's business: about 7 pixels a letter, and some room.
        x += 24 + 7 * label.len() as i32 + 18;
    }
    Ok(rest)
}

/// A picture as SVG: a title in letters of this size, and below it what `draw` puts there. The error is a message.
pub(super) fn picture(
    size: (u32, u32), title: &str, letters: u32, draw: impl FnOnce(&Area) -> Result<(), Box<dyn Error>>,
) -> Result<String, String> {
    let mut svg = String::new();
    let draw_into = |svg: &mut String| -> Result<(), Box<dyn Error>> {
        let root = SVGBackend::with_string(svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root.titled(title, (FONT, letters).into_font().color(&INK))?)?;
        Ok(root.present()?)
    };
    draw_into(&mut svg).map_err(|error| error.to_string())?;
    Ok(svg)
}

/// The look of all axes and grids.
pub(super) fn styled<'m, 'a, 'b, 'c>(mesh: &'m mut Mesh<'a, 'b, 'c>) -> &'m mut Mesh<'a, 'b, 'c> {
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style((FONT, 14).into_font().color(&INK))
        .axis_desc_style((FONT, 15).into_font().color(&INK))
}

type Mesh<'a, 'b, 'c> = MeshStyle<'a, 'b, RangedCoordf64, RangedCoordf64, SVGBackend<'c>>;

/// Draws the report; the error is a message.
pub(super) fn draw(report: &Report) -> Result<String, String> {
    let title = format!("{} on {}, one network at every precision", report.model, report.dataset);
    picture(SIZE, &title, 22, |body| {
        let (left, right) = body.split_horizontally(BARS_WIDTH);
        bars(&left, report)?;
        curves(&right, report)
    })
}

fn colour(report: &Report, format: NumberFormat) -> RGBColor {
    let position = report.precisions.iter().position(|result| result.precision == format);
    position.map_or(FLOAT, |position| COLOURS[position % COLOURS.len()])
}

/// From the lowest value, with some room below, to at most 100 percent.
fn percent_range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let finite = values.filter(|value| value.is_finite());
    let low = finite.clone().fold(100.0, f64::min);
    let high = finite.fold(0.0, f64::max).max(low);
    let room = ((high - low) * 0.6).max(1.0);
    let low = (low - room).floor().clamp(0.0, 99.0);
    (low, (high + room * 0.35).max(low + 1.0))
}

fn bars(area: &Area, report: &Report) -> Result<(), Box<dyn Error>> {
    let separate = !report.single.is_empty();
    let shown = report.precisions.iter().map(|result| result.measured.top1);
    let shown =
        shown.chain(report.float.map(|m| m.top1)).chain(report.single.iter().map(|result| result.top1));
    let (low, high) = percent_range(shown);
    let count = report.precisions.len().max(1);

    let mut keys = Vec::new();
    if separate {
        keys.push(("one network".to_owned(), Key::Box(INK.filled())));
        keys.push(("separate networks".to_owned(), Key::Box(INK.mix(0.4).filled())));
    }
    if let Some(float) = report.float {
        keys.push((format!("float ({})", number(float.top1, 1)), Key::Line(FLOAT.stroke_width(2))));
    }
    let area = &legend(area, &keys)?;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(62)
        .build_cartesian_2d(-0.5..count as f64 - 0.5, low..high)?;
    styled(&mut chart.configure_mesh())
        .disable_x_mesh()
        .x_labels(0)
        .y_labels(7)
        .y_label_formatter(&|percent| tick(*percent))
        .y_desc("Top-1 on the test split (%)")
        .draw()?;

    let top_centre = Pos::new(HPos::Center, VPos::Top);
    let above = Pos::new(HPos::Center, VPos::Bottom);
    let value_style = (FONT, 13).into_font().color(&INK).pos(above);
    let name_style = (FONT, 15).into_font().color(&INK).pos(top_centre);
    let mut bar = |x0: f64, x1: f64, top1: f64, style: ShapeStyle| -> Result<(), Box<dyn Error>> {
        let top = if top1.is_finite() { top1.clamp(low, high) } else { low };
        chart.draw_series([Rectangle::new([(x0, low), (x1, top)], style)])?;
        let label = EmptyElement::at(((x0 + x1) / 2.0, top))
            + Text::new(number(top1, 1), (0, -5), value_style.clone());
        chart.draw_series([label])?;
        Ok(())
    };
    for (i, result) in report.precisions.iter().enumerate() {
        let x = i as f64;
        let fill = colour(report, result.precision);
        let single = report.single_top1(result.precision);
        let (x0, x1) = if single.is_some() { (x - 0.4, x - 0.02) } else { (x - 0.3, x + 0.3) };
        bar(x0, x1, result.measured.top1, fill.filled())?;
        if let Some(top1) = single {
            bar(x + 0.02, x + 0.4, top1, fill.mix(0.4).filled())?;
        }
    }
    for (i, result) in report.precisions.iter().enumerate() {
        let label = EmptyElement::at((i as f64, low))
            + Text::new(result.precision.to_string(), (0, 9), name_style.clone());
        chart.draw_series([label])?;
    }
    if let Some(float) = report.float.filter(|float| float.top1.is_finite()) {
        let ends = [(-0.5, float.top1), (count as f64 - 0.5, float.top1)];
        chart.draw_series(DashedLineSeries::new(ends, 7, 5, FLOAT.stroke_width(2)))?;
    }
    Ok(())
}

/// Training curves: x is the epoch over both phases.
type Lines = BTreeMap<NumberFormat, Vec<(f64, f64)>>;

fn lines(report: &Report) -> Lines {
    let mut lines = Lines::new();
    for (i, record) in report.history.iter().enumerate() {
        for (&format, point) in record.curves.iter().filter(|(_, point)| point.valid_top1.is_finite()) {
            lines.entry(format).or_default().push(((i + 1) as f64, point.valid_top1));
        }
    }
    lines
}

/// The lower end of the curves' axis: the first epochs may run out of it, so that the last ones can be told apart.
fn curve_range(lines: &Lines) -> (f64, f64) {
    let late = lines.values().flat_map(|points| points.iter().skip(points.len() / 4).map(|point| point.1));
    let (low, high) = (late.clone().fold(100.0, f64::min), late.fold(0.0, f64::max));
    let room = ((high - low) * 0.1).max(0.5);
    let low = (low - room).floor().clamp(0.0, 99.0);
    (low, (high + room).min(100.5).max(low + 1.0))
}

/// The parts of a line above `low`, cut where it crosses.
fn clip(points: &[(f64, f64)], low: f64) -> Vec<Vec<(f64, f64)>> {
    let mut parts = Vec::new();
    let mut part: Vec<(f64, f64)> = Vec::new();
    let mut last: Option<(f64, f64)> = None;
    for &(x, y) in points {
        if let Some((x0, y0)) = last
            && (y0 < low) != (y < low)
        {
            part.push((x0 + (x - x0) * (low - y0) / (y - y0), low));
        }
        if y >= low {
            part.push((x, y));
        } else if !part.is_empty() {
            parts.push(std::mem::take(&mut part));
        }
        last = Some((x, y));
    }
    parts.push(part);
    parts
}

fn curves(area: &Area, report: &Report) -> Result<(), Box<dyn Error>> {
    let lines = lines(report);
    if lines.is_empty() {
        return Ok(());
    }
    let (low, high) = curve_range(&lines);
    let epochs = report.history.len() as f64;
    let keys = lines.keys().map(|&format| {
        let style = colour(report, format).stroke_width(2);
        (format.to_string(), Key::Line(style))
    });
    let area = &legend(area, &keys.collect::<Vec<_>>())?;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .x_label_area_size(46)
        .y_label_area_size(62)
        .build_cartesian_2d(0.5..epochs + 0.5, low..high)?;
    styled(&mut chart.configure_mesh())
        .disable_x_mesh()
        .x_labels(10)
        .y_labels(8)
        .x_label_formatter(&|epoch| if epoch.fract() == 0.0 { format!("{epoch:.0}") } else { String::new() })
        .y_label_formatter(&|percent| tick(*percent))
        .x_desc("Epoch")
        .y_desc("Top-1 on the validation split (%)")
        .draw()?;

    let float_epochs = report.history.iter().filter(|record| record.phase == TrainPhase::Float).count();
    if float_epochs > 0 && float_epochs < report.history.len() {
        let x = float_epochs as f64 + 0.5;
        let line = DashedLineSeries::new([(x, low), (x, high)], 3, 4, FLOAT.stroke_width(1));
        chart.draw_series(line)?;
        for (text, side, shift) in [("float", HPos::Right, -7), ("joint", HPos::Left, 7)] {
            let style = (FONT, 13).into_font().color(&FLOAT).pos(Pos::new(side, VPos::Top));
            chart.draw_series([EmptyElement::at((x, high)) + Text::new(text, (shift, 4), style)])?;
        }
    }
    for (&format, points) in &lines {
        let style = colour(report, format).stroke_width(2);
        for part in clip(points, low) {
            chart.draw_series(LineSeries::new(part, style))?;
        }
        let dots: Vec<_> = points.iter().filter(|(_, y)| *y >= low).collect();
        if dots.len() <= 30 {
            chart.draw_series(dots.into_iter().map(|&point| Circle::new(point, 3, style.color.filled())))?;
        }
    }
    Ok(())
}

/// `97`, `97.5`.
fn tick(percent: f64) -> String {
    let tenths = format!("{percent:.1}");
    tenths.strip_suffix(".0").map(str::to_owned).unwrap_or(tenths)
}

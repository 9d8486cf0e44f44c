//! A picture of named values with their errors: one horizontal bar each.

use super::plot::{Area, COLOURS, FONT, INK, picture, styled};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::error::Error;

/// One bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// What it is of.
    pub(crate) name: String,
    /// Its length.
    pub(crate) value: f64,
    /// Half the length of the line through its end.
    pub(crate) error: f64,
}

const WIDTH: u32 = 900;
/// Of a bar with the room around it.
const ROW: u32 = 26;
/// Of everything above and below the bars.
const FRAME: u32 = 120;

/// Draws bars as SVG, from top to bottom. The axis is logarithmic if all values are positive. The error is a message.
pub(crate) fn draw(title: &str, axis: &str, bars: &[Bar]) -> Result<String, String> {
    let rows = bars.len().max(1) as u32;
    picture((WIDTH, FRAME + ROW * rows), title, 20, |body| draw_on(body, axis, bars))
}

/// From values to positions on the axis, and its ends.
struct Axis {
    logarithmic: bool,
    low: f64,
    high: f64,
}

impl Axis {
    fn of(bars: &[Bar]) -> Self {
        let ends = bars.iter().flat_map(|bar| [bar.value, bar.value - bar.error, bar.value + bar.error]);
        let logarithmic = bars.iter().all(|bar| bar.value > 0.0);
        let ends = ends.filter(|end| end.is_finite() && (!logarithmic || *end > 0.0));
        let (low, high) = ends.fold((f64::MAX, f64::MIN), |(low, high), end| (low.min(end), high.max(end)));
        let (low, high) = match (low <= high, logarithmic) {
            (false, _) => (0.0, 1.0),
            (true, true) => (low.log10().floor(), high.log10().ceil()),
            (true, false) => (low.min(0.0) * 1.1, high.max(0.0) * 1.1),
        };
        Self { logarithmic, low, high: if high > low { high } else { low + 1.0 } }
    }

    fn at(&self, value: f64) -> f64 {
        let position = match self.logarithmic {
            true => value.max(f64::MIN_POSITIVE).log10(),
            false => value,
        };
        if position.is_finite() { position.clamp(self.low, self.high) } else { self.low }
    }

    fn tick(&self, position: f64) -> String {
        match self.logarithmic {
            true if (position - position.round()).abs() < 1e-9 => format!("1e{:.0}", position.round()),
            true => String::new(),
            false => format!("{position:.3e}"),
        }
    }
}

fn draw_on(body: &Area, axis_name: &str, bars: &[Bar]) -> Result<(), Box<dyn Error>> {
    let count = bars.len().max(1);
    let axis = Axis::of(bars);
    let longest = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0) as u32;
    let mut chart = ChartBuilder::on(body)
        .margin(16)
        .margin_right(84)
        .x_label_area_size(46)
        .y_label_area_size(24 + 7 * longest)
        .build_cartesian_2d(axis.low..axis.high, -0.5..count as f64 - 0.5)?;
    styled(&mut chart.configure_mesh())
        .disable_y_mesh()
        .x_labels(8)
        .y_labels(0)
        .x_label_formatter(&|position| axis.tick(*position))
        .x_desc(axis_name)
        .draw()?;
    let style = |side| (FONT, 13).into_font().color(&INK).pos(Pos::new(side, VPos::Center));
    let zero = axis.at(0.0);
    for (i, bar) in bars.iter().enumerate() {
        let y = (count - 1 - i) as f64;
        let end = axis.at(bar.value);
        chart.draw_series([Rectangle::new([(zero, y - 0.33), (end, y + 0.33)], COLOURS[0].filled())])?;
        let (from, to) = (axis.at(bar.value - bar.error), axis.at(bar.value + bar.error));
        let line = |points: [(f64, f64); 2]| PathElement::new(points, INK.stroke_width(1));
        let tip = |x| line([(x, y - 0.15), (x, y + 0.15)]);
        chart.draw_series([line([(from, y), (to, y)]), tip(from), tip(to)])?;
        let name = Text::new(bar.name.clone(), (-8, 0), style(HPos::Right));
        chart.draw_series([EmptyElement::at((axis.low, y)) + name])?;
        let value = Text::new(format!("{:.2e}", bar.value), (7, 0), style(HPos::Left));
        chart.draw_series([EmptyElement::at((to.max(zero), y)) + value])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, value: f64, error: f64) -> Bar {
        Bar { name: name.to_owned(), value, error }
    }

    #[test]
    fn axes() {
        let axis = Axis::of(&[bar("a", 0.02, 0.001), bar("b", 3.0, 0.1)]);
        assert!(axis.logarithmic);
        assert_eq!((axis.low, axis.high), (-2.0, 1.0));
        assert_eq!(axis.at(0.1), -1.0);
        assert_eq!((axis.tick(-2.0), axis.tick(-1.5)), ("1e-2".to_owned(), String::new()));
        let axis = Axis::of(&[bar("a", -1.0, 0.0), bar("b", 3.0, 1.0)]);
        assert!(!axis.logarithmic && axis.low < -1.0 && axis.high > 4.0);
    }

    #[test]
    fn every_bar_is_drawn_whatever_its_value() {
        for bars in [
            vec![],
            vec![bar("zero", 0.0, 0.0)],
            vec![bar("one", 1.0, 0.0)],
            vec![bar("positive", 0.5, 0.7), bar("negative", -2.0, 0.1)],
            vec![bar("tiny", 1e-300, 1e-301), bar("large", 1e300, 1e299)],
            vec![bar("nan", f64::NAN, f64::INFINITY)],
        ] {
            let svg = draw("title", "values", &bars).expect("a picture");
            assert!(svg.starts_with("<svg"));
            for bar in &bars {
                assert!(svg.contains(&bar.name), "{svg}");
            }
        }
    }
}

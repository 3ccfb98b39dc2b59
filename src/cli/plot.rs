//! Charts of what a command measured, as SVG: text that needs no font of this machine, and a picture in every browser.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, ChartBuilder, Circle, DrawingArea, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor, Rectangle,
    SVGBackend, SeriesLabelPosition, TRANSPARENT, WHITE,
};
use plotters::style::Color;

use super::Failure;
use crate::disk::{Disk, FileSystem};

const WIDTH: u32 = 900;
/// Of one chart; several stand one below the other.
const HEIGHT: u32 = 320;
/// Told apart by the colour-blind too (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
const GREY: RGBColor = RGBColor(150, 150, 150);

/// One chart.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    pub(super) title: String,
    /// What the axes tell, with units.
    pub(super) across: String,
    pub(super) up: String,
    pub(super) series: Vec<Series>,
    /// Where something happened, as vertical lines.
    pub(super) marks: Vec<f64>,
}

/// How the points of a series are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drawn {
    /// As a line from each to the next.
    Line,
    /// A value holds until the next point.
    Steps,
    /// As points alone.
    Dots,
}

/// One line of a chart.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) drawn: Drawn,
}

impl Series {
    /// The line through its points, with the corners of its steps.
    fn line(&self) -> Vec<(f64, f64)> {
        let mut line: Vec<(f64, f64)> = Vec::with_capacity(2 * self.points.len());
        let last = self.points.len().saturating_sub(1);
        for (number, &(x, y)) in self.points.iter().enumerate() {
            if let (Drawn::Steps, Some(&(_, before))) = (self.drawn, line.last()) {
                // Between its corners a level needs no points.
                if before == y && number < last {
                    continue;
                }
                line.push((x, before));
            }
            line.push((x, y));
        }
        line
    }
}

/// Writes charts to a file, one below the other.
pub(super) fn write(file: &Path, charts: &[Chart]) -> Result<(), Failure> {
    let text = svg(charts)?;
    // With its folder, which is synced.
    let file = std::path::absolute(file)?;
    Ok(FileSystem.write_atomic(&file, &mut |out| out.write_all(text.as_bytes()))?)
}

fn svg(charts: &[Chart]) -> Result<String, Failure> {
    let mut text = String::new();
    {
        let backend = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT * charts.len() as u32));
        let area = backend.into_drawing_area();
        area.fill(&WHITE)?;
        // The same for all, so that what stands below each other belongs together.
        let across = || charts.iter().flat_map(|chart| &chart.series).flat_map(|series| &series.points).map(|&(x, _)| x);
        let (left, right) = (across().fold(f64::INFINITY, f64::min), across().fold(f64::NEG_INFINITY, f64::max));
        let margin = (right - left) * 0.02;
        for (chart, part) in charts.iter().zip(area.split_evenly((charts.len(), 1))) {
            draw(chart, left - margin..right + margin, &part)?;
        }
        area.present()?;
    }
    Ok(text)
}

fn draw(chart: &Chart, across: Range<f64>, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Failure> {
    let highest = chart.series.iter().flat_map(|series| &series.points).fold(0.0, |highest: f64, (_, y)| highest.max(*y));
    let width = across.end - across.start;
    if !width.is_finite() || width <= 0.0 || highest <= 0.0 {
        return Err(format!("there is nothing to draw for `{}`", chart.title).into());
    }
    // Several series need their names, which stand above the lines.
    let several = chart.series.len() > 1;
    let top = highest * if several { 1.0 + 0.18 * chart.series.len() as f64 } else { 1.08 };
    let mut context = ChartBuilder::on(area)
        .margin(10)
        .margin_right(20)
        .caption(&chart.title, ("sans-serif", 20))
        .x_label_area_size(45)
        .y_label_area_size(75)
        .build_cartesian_2d(across, 0.0..top)?;
    context
        .configure_mesh()
        .max_light_lines(1)
        .light_line_style(TRANSPARENT)
        .bold_line_style(GREY.mix(0.3))
        .x_desc(&chart.across)
        .y_desc(&chart.up)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| label(*y))
        .axis_desc_style(("sans-serif", 17))
        .label_style(("sans-serif", 15))
        .draw()?;
    context.draw_series(chart.marks.iter().map(|&x| PathElement::new([(x, 0.0), (x, top)], GREY)))?;
    for (number, (series, colour)) in chart.series.iter().zip(COLOURS.into_iter().cycle()).enumerate() {
        // The first one can be seen where another one covers it.
        let width = if several && number == 0 { 4 } else { 2 };
        let drawn = if series.drawn == Drawn::Dots {
            context.draw_series(series.points.iter().map(|&point| Circle::new(point, 5, colour.filled())))?
        } else {
            context.draw_series(LineSeries::new(series.line(), colour.stroke_width(width)))?
        };
        drawn.label(series.name).legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 16, y + 2)], colour.filled()));
    }
    if several {
        context
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperMiddle)
            .background_style(WHITE.mix(0.85))
            .border_style(GREY)
            .label_font(("sans-serif", 15).into_font().color(&BLACK))
            .draw()?;
    }
    Ok(())
}

/// A number at an axis, without the noise of its last bits.
fn label(value: f64) -> String {
    let rounded = (value * 1e6).round() / 1e6;
    // No minus before nothing.
    format!("{}", if rounded == 0.0 { 0.0 } else { rounded })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(title: &str) -> Chart {
        let points = || vec![(0.0, 1.0), (0.5, 1.0), (1.0, 3.0), (2.0, 2.0)];
        let series = |name, drawn| Series { name, points: points(), drawn };
        Chart {
            title: title.into(),
            across: "time (s)".into(),
            up: "rows/s".into(),
            series: vec![series("first", Drawn::Line), series("second", Drawn::Steps)],
            marks: vec![0.5],
        }
    }

    #[test]
    fn every_title_and_every_series_is_drawn() {
        let text = svg(&[chart("one & all"), chart("two")]).unwrap();
        for wanted in ["one &amp; all", "two", "time (s)", "rows/s", "first", "second"] {
            assert!(text.contains(wanted), "{wanted}");
        }
        for colour in ["#0072B2", "#D55E00"] {
            let lines = text.split("<polyline").filter(|element| element.split("/>").next().unwrap().contains(colour));
            assert_eq!(lines.count(), 2, "{colour}");
        }
    }

    #[test]
    fn steps_hold_until_the_next_point() {
        let series = chart("").series.remove(1);
        assert_eq!(series.line(), [(0.0, 1.0), (1.0, 1.0), (1.0, 3.0), (2.0, 3.0), (2.0, 2.0)]);
    }

    #[test]
    fn nothing_is_no_chart() {
        assert!(svg(&[Chart::default()]).is_err());
    }
}

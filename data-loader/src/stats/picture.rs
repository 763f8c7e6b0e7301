//! The numbers as a picture: histograms of lengths and sums, and cells by category.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Distribution, Stats};
use crate::{Error, Result};

const WIDTH: u32 = 1000;
const PANEL: u32 = 300;
/// Categories that are drawn of a column, the largest first.
const BARS: usize = 60;
const BLUE_INK: RGBColor = RGBColor(8, 81, 156);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws the numbers into an SVG file, which is replaced.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(stats: &Stats, path: &Path) -> Result<()> {
    let panels = 1 + stats.by.len() as u32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, PANEL * panels)).into_drawing_area();
        panel(&area, stats).map_err(|e| Error::internal(format!("picture: {e}")))?;
    }
    std::fs::write(path, svg).map_err(Error::io("write", path))
}

fn panel<'a>(area: &Area<'a>, stats: &Stats) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let rows = area.split_evenly((1 + stats.by.len(), 1));
    let (left, right) = rows[0].split_horizontally(WIDTH / 2);
    histogram(&left, "expressed genes per cell", &stats.genes_per_cell)?;
    histogram(&right, "sum of values per cell", &stats.sum_per_cell)?;
    for (row, (column, counts)) in rows[1..].iter().zip(&stats.by) {
        let sizes = counts.by_size();
        let title = match sizes.len() {
            n if n > BARS => format!("cells by {column}, the largest {BARS} of {n}"),
            _ => format!("cells by {column}"),
        };
        bars(row, &title, &sizes[..sizes.len().min(BARS)])?;
    }
    area.present()
}

fn histogram<'a>(area: &Area<'a>, title: &str, found: &Distribution) -> Drawn<'a> {
    let most = found.histogram.iter().map(|h| h.1).max().unwrap_or(0);
    let end = found.histogram.last().map_or(1.0, |h| h.0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..end, 0.0..most.max(1) as f64 * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_desc("cells")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let mut start = 0.0;
    let bins = found.histogram.iter().map(|&(bin_end, n)| {
        let bar = [(start, 0.0), (bin_end, n as f64)];
        start = bin_end;
        Rectangle::new(bar, BLUE_INK.mix(0.7).filled())
    });
    chart.draw_series(bins)?;
    Ok(())
}

fn bars<'a>(area: &Area<'a>, title: &str, sizes: &[(&str, u64)]) -> Drawn<'a> {
    let most = sizes.iter().map(|s| s.1).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(90)
        .y_label_area_size(60)
        .build_cartesian_2d(
            0.0..sizes.len().max(1) as f64,
            0.0..most.max(1) as f64 * 1.05,
        )?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc("cells")
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let drawn = sizes.iter().enumerate().map(|(place, &(_, n))| {
        let left = place as f64;
        let bar = [(left + 0.1, 0.0), (left + 0.9, n as f64)];
        Rectangle::new(bar, BLUE_INK.mix(0.7).filled())
    });
    chart.draw_series(drawn)?;
    let style = ("sans-serif", 10)
        .into_font()
        .color(&BLACK)
        .pos(Pos::new(HPos::Right, VPos::Center))
        .transform(FontTransform::Rotate270);
    for (place, (name, _)) in sizes.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(place as f64 + 0.5, 0.0));
        let (x0, y0) = area.get_base_pixel();
        let name: String = name.chars().take(16).collect();
        area.draw(&Text::new(name, (x - x0, y - y0 + 6), style.clone()))?;
    }
    Ok(())
}

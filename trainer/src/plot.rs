//! Pictures of results.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use scpeft_evaluation::identification::Confusion;

use crate::failure::{Failure, Result};

const CELL_PX: i32 = 46;
const TITLE_PX: i32 = 36;
const MARGIN_PX: i32 = 16;
/// Width of a character of the label font, about.
const CHAR_PX: i32 = 7;

/// Draws the row-normalised confusion matrix as SVG: rows are true types, columns predicted types,
/// both in class order; each field shows the share of its row, and its count below.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn confusion_matrix(path: &Path, confusion: &Confusion, names: &[String]) -> Result<()> {
    let label = names.iter().map(|n| n.chars().count()).max().unwrap_or(1) as i32 * CHAR_PX + 10;
    let size = confusion.classes() as i32 * CELL_PX;
    let (left, top) = (MARGIN_PX + 20 + label, TITLE_PX + MARGIN_PX);
    let width = left + size + MARGIN_PX;
    let height = top + size + label + 20 + MARGIN_PX;
    let mut svg = String::new();
    {
        let area =
            SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
        draw(&area, confusion, names, left, top).map_err(|e| {
            Failure::new(
                scpeft_protocol::exit::INTERNAL,
                format!("`{}`: {e}", path.display()),
            )
        })?;
    }
    scpeft_checkpoint::fsx::write_atomic(path, svg.as_bytes())?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(
    area: &Area<'a>,
    confusion: &Confusion,
    names: &[String],
    left: i32,
    top: i32,
) -> std::result::Result<(), DrawError<'a>> {
    area.fill(&WHITE)?;
    let n = confusion.classes();
    let size = n as i32 * CELL_PX;
    let text = |px: i32, h: HPos, v: VPos| {
        ("sans-serif", px)
            .into_font()
            .color(&BLACK)
            .pos(Pos::new(h, v))
    };
    let title = text(17, HPos::Center, VPos::Center);
    area.draw(&Text::new(
        "Share of each true type by predicted type",
        (left + size / 2, TITLE_PX / 2 + 4),
        title,
    ))?;
    for (i, name) in names.iter().enumerate() {
        let total: f64 = (0..n).map(|j| confusion.count(i, j)).sum();
        let y = top + i as i32 * CELL_PX;
        let style = text(12, HPos::Right, VPos::Center);
        area.draw(&Text::new(name.clone(), (left - 6, y + CELL_PX / 2), style))?;
        for j in 0..n {
            let x = left + j as i32 * CELL_PX;
            let count = confusion.count(i, j);
            let share = if total > 0.0 { count / total } else { 0.0 };
            // White to dark blue.
            let shade = |low: f64| (255.0 - share * (255.0 - low)) as u8;
            let color = RGBColor(shade(8.0), shade(48.0), shade(107.0));
            area.draw(&Rectangle::new(
                [(x, y), (x + CELL_PX - 1, y + CELL_PX - 1)],
                color.filled(),
            ))?;
            if count > 0.0 {
                let ink = if share > 0.5 { &WHITE } else { &BLACK };
                let style = |px: i32| {
                    ("sans-serif", px)
                        .into_font()
                        .color(ink)
                        .pos(Pos::new(HPos::Center, VPos::Center))
                };
                let center = x + CELL_PX / 2;
                area.draw(&Text::new(
                    format!("{share:.2}"),
                    (center, y + CELL_PX / 2 - 6),
                    style(13),
                ))?;
                area.draw(&Text::new(
                    format!("{count:.0}"),
                    (center, y + CELL_PX / 2 + 10),
                    style(10),
                ))?;
            }
        }
        let style = text(12, HPos::Right, VPos::Center).transform(FontTransform::Rotate270);
        let x = left + i as i32 * CELL_PX + CELL_PX / 2;
        area.draw(&Text::new(name.clone(), (x, top + size + 6), style))?;
    }
    let axis = text(14, HPos::Center, VPos::Center);
    let bottom = area.dim_in_pixel().1 as i32 - MARGIN_PX;
    area.draw(&Text::new(
        "predicted type",
        (left + size / 2, bottom),
        axis.clone(),
    ))?;
    let rotated = axis.transform(FontTransform::Rotate270);
    area.draw(&Text::new(
        "true type",
        (MARGIN_PX, top + size / 2),
        rotated,
    ))?;
    area.present()
}

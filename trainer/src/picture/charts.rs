//! Curves, matrices of shares and bars.

use super::colors::{GUIDE, INK};
use super::{Anchor, Color, Mark, Picture, group_color, shade, text_width};

const MARGIN: f32 = 16.0;
const HEAD: f32 = 34.0;
/// Half way from ink to white: on darker fields a text is white.
const BRIGHT: f32 = 0.56;
const WHITE: Color = Color(255, 255, 255);

/// A curve: its name and its points.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
    /// Dashed, and with a mark at each point: few values, as of evaluations.
    pub(crate) sparse: bool,
}

/// A number as it stands at an axis or in a table.
pub(crate) fn number(x: f64) -> String {
    if x == 0.0 {
        return "0".to_owned();
    }
    let size = x.abs();
    if !(1e-4..1e6).contains(&size) {
        return format!("{x:.2e}");
    }
    let digits = if size >= 1000.0 {
        0
    } else if size >= 10.0 {
        2
    } else {
        4
    };
    let text = format!("{x:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

/// Round values from `low` to `high`, about five.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = (high - low).max(f64::MIN_POSITIVE);
    let rough = span / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    let step = step.into_iter().find(|s| *s >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last.min(first + 20))
        .map(|i| i as f64 * step)
        .collect()
}

/// Draws curves over the same axis; values that are not finite are left out.
pub(crate) fn curves(title: &str, x_name: &str, curves: &[Curve]) -> Picture {
    const WIDTH: f32 = 420.0;
    const HEIGHT: f32 = 240.0;
    const LEFT: f32 = 62.0;
    let finite = |c: &Curve| -> Vec<(f64, f64)> {
        let points = c.points.iter().copied();
        points
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect()
    };
    let shown: Vec<Vec<(f64, f64)>> = curves.iter().map(finite).collect();
    let all = || shown.iter().flatten();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = all().map(of).fold(f64::INFINITY, f64::min);
        let high = all().map(of).fold(f64::NEG_INFINITY, f64::max);
        if low < high {
            (low, high)
        } else if low.is_finite() {
            (low - 0.5, low + 0.5)
        } else {
            (0.0, 1.0)
        }
    };
    let ((x0, x1), (y0, y1)) = (range(|p| p.0), range(|p| p.1));
    let pad = (y1 - y0) * 0.05;
    let (y0, y1) = (y0 - pad, y1 + pad);
    let legend = curves
        .iter()
        .map(|c| text_width(&c.name, 12.0))
        .fold(0.0, f32::max);
    let mut picture = Picture::new(
        LEFT + WIDTH + 40.0 + legend + MARGIN,
        HEAD + HEIGHT + 46.0,
        title,
    );
    picture.text([LEFT, 20.0], title, 15.0, Anchor::Start);
    let place = |x: f64, y: f64| {
        [
            LEFT + WIDTH * ((x - x0) / (x1 - x0)) as f32,
            HEAD + HEIGHT * (1.0 - ((y - y0) / (y1 - y0)) as f32),
        ]
    };
    for tick in ticks(y0, y1) {
        let y = place(x0, tick)[1];
        picture.line(vec![[LEFT, y], [LEFT + WIDTH, y]], GUIDE, 1.0);
        picture.text([LEFT - 6.0, y + 4.0], &number(tick), 11.0, Anchor::End);
    }
    let bottom = HEAD + HEIGHT;
    for tick in ticks(x0, x1) {
        let x = place(tick, y0)[0];
        picture.line(vec![[x, bottom], [x, bottom + 4.0]], INK, 1.0);
        picture.text([x, bottom + 17.0], &number(tick), 11.0, Anchor::Middle);
    }
    picture.line(
        vec![[LEFT, HEAD], [LEFT, bottom], [LEFT + WIDTH, bottom]],
        INK,
        1.0,
    );
    picture.text(
        [LEFT + WIDTH / 2.0, bottom + 36.0],
        x_name,
        12.0,
        Anchor::Middle,
    );
    for (i, (curve, points)) in curves.iter().zip(&shown).enumerate() {
        let (color, shape) = group_color(i);
        let line: Vec<[f32; 2]> = points.iter().map(|&(x, y)| place(x, y)).collect();
        let y = HEAD + 12.0 + 18.0 * i as f32;
        let sample = vec![[LEFT + WIDTH + 14.0, y], [LEFT + WIDTH + 34.0, y]];
        for points in [line.clone(), sample] {
            picture.marks.push(Mark::Line {
                points,
                stroke: color,
                width: 1.8,
                dashes: curve.sparse.then_some([5.0, 3.0]),
            });
        }
        if curve.sparse {
            picture.marks.push(Mark::Points {
                points: line,
                radius: 3.0,
                fill: color,
                shape,
            });
        }
        picture.text(
            [LEFT + WIDTH + 40.0, y + 4.0],
            &curve.name,
            12.0,
            Anchor::Start,
        );
    }
    picture
}

/// A matrix of numbers from 0 to 1 (or scaled to that), with names of its rows and columns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matrix<'a> {
    pub(crate) title: &'a str,
    pub(crate) rows: &'a [String],
    pub(crate) columns: &'a [String],
    pub(crate) row_name: &'a str,
    pub(crate) column_name: &'a str,
    /// Row by row: how dark a field is.
    pub(crate) shares: &'a [f64],
    /// What stands in a field, if anything.
    pub(crate) texts: &'a [Vec<String>],
    /// Size of a field.
    pub(crate) field: [f32; 2],
}

/// Draws a matrix: fields from white to dark, with their texts in ink that can be read on them.
pub(crate) fn matrix(matrix: &Matrix<'_>) -> Picture {
    let [fw, fh] = matrix.field;
    let label = |names: &[String]| {
        names
            .iter()
            .map(|n| text_width(n, 12.0))
            .fold(0.0, f32::max)
    };
    let left = MARGIN + 22.0 + label(matrix.rows);
    let (w, h) = (
        fw * matrix.columns.len() as f32,
        fh * matrix.rows.len() as f32,
    );
    let width = (left + w + MARGIN).max(left + text_width(matrix.title, 15.0) + MARGIN);
    let below = label(matrix.columns) + 12.0;
    let mut picture = Picture::new(width, HEAD + h + below + 24.0, matrix.title);
    picture.text([left, 20.0], matrix.title, 15.0, Anchor::Start);
    let k = matrix.columns.len();
    for (i, name) in matrix.rows.iter().enumerate() {
        let y = HEAD + fh * i as f32;
        picture.text([left - 6.0, y + fh / 2.0 + 4.0], name, 12.0, Anchor::End);
        for j in 0..k {
            let share = matrix.shares[i * k + j];
            let color = shade(share as f32);
            let x = left + fw * j as f32;
            picture.rect([x, y], [fw - 1.0, fh - 1.0], color);
            let ink = if color.brightness() < BRIGHT {
                WHITE
            } else {
                INK
            };
            let lines = matrix.texts.get(i * k + j).map_or(&[][..], Vec::as_slice);
            for (line, text) in lines.iter().enumerate() {
                let size = if line == 0 { 12.0 } else { 10.0 };
                let down = 14.0 * (line as f32 - (lines.len() as f32 - 1.0) / 2.0) + 4.0;
                picture.ink(
                    [x + fw / 2.0, y + fh / 2.0 + down],
                    text,
                    size,
                    Anchor::Middle,
                    ink,
                );
            }
        }
    }
    // Where fields are faint, a frame shows where the matrix ends.
    let (top, right, bottom) = (HEAD, left + w, HEAD + h);
    picture.line(
        vec![
            [left, top],
            [right, top],
            [right, bottom],
            [left, bottom],
            [left, top],
        ],
        GUIDE,
        1.0,
    );
    for (j, name) in matrix.columns.iter().enumerate() {
        let x = left + fw * (j as f32 + 0.5) + 4.0;
        picture.upright([x, bottom + 6.0], name, 12.0, Anchor::End);
    }
    picture.text(
        [left + w / 2.0, bottom + below + 14.0],
        matrix.column_name,
        12.0,
        Anchor::Middle,
    );
    picture.upright(
        [MARGIN, top + h / 2.0],
        matrix.row_name,
        12.0,
        Anchor::Middle,
    );
    picture
}

/// A bar: its name, its length, and whether it is a simple rule beside the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) floor: bool,
}

/// Draws bars from 0, one below the other; those of the floor are grey.
pub(crate) fn bars(title: &str, bars: &[Bar]) -> Picture {
    const WIDTH: f32 = 300.0;
    const ROW: f32 = 22.0;
    let left = MARGIN
        + bars
            .iter()
            .map(|b| text_width(&b.name, 12.0))
            .fold(0.0, f32::max)
        + 8.0;
    let high = bars.iter().map(|b| b.value).fold(1e-9, f64::max);
    let width = (left + WIDTH + 60.0).max(MARGIN + text_width(title, 15.0)) + MARGIN;
    let mut picture = Picture::new(width, HEAD + ROW * bars.len() as f32 + MARGIN, title);
    picture.text([MARGIN, 20.0], title, 15.0, Anchor::Start);
    for (i, bar) in bars.iter().enumerate() {
        let y = HEAD + ROW * i as f32;
        let length = WIDTH * (bar.value.max(0.0) / high) as f32;
        let color = if bar.floor {
            Color(150, 150, 150)
        } else {
            group_color(0).0
        };
        picture.rect([left, y], [length.max(1.0), ROW - 6.0], color);
        picture.text([left - 6.0, y + 12.0], &bar.name, 12.0, Anchor::End);
        picture.text(
            [left + length + 6.0, y + 12.0],
            &number(bar.value),
            12.0,
            Anchor::Start,
        );
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(picture: &Picture) -> Vec<&str> {
        let text = |mark: &'_ Mark| matches!(mark, Mark::Text { .. });
        let marks = picture.marks.iter().filter(|m| text(m));
        marks
            .filter_map(|m| match m {
                Mark::Text { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn axes_have_round_numbers() {
        let shown = |low, high| ticks(low, high).into_iter().map(number).collect::<Vec<_>>();
        assert_eq!(shown(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(shown(-3.0, 104.0), ["0", "50", "100"]);
        let written = [0.25, 12.5, 1234.0, 3.2e-7].map(number);
        assert_eq!(written, ["0.25", "12.5", "1234", "3.20e-7"]);
    }

    #[test]
    fn curves_leave_out_what_is_not_finite_and_stay_in_their_frame() {
        let curve = Curve {
            name: "loss".into(),
            points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)],
            sparse: true,
        };
        let picture = curves("Loss", "step", &[curve]);
        let lines: Vec<usize> = picture
            .marks
            .iter()
            .filter_map(|m| match m {
                Mark::Points { points, .. } => Some(points.len()),
                _ => None,
            })
            .collect();
        assert_eq!(lines, [2]);
        assert!(texts(&picture).contains(&"loss"));
        // One value, or none, has an axis too.
        let one = Curve {
            name: "x".into(),
            points: vec![(5.0, 2.0)],
            sparse: false,
        };
        for picture in [curves("t", "x", &[one]), curves("t", "x", &[])] {
            assert!(!picture.svg().contains("NaN"));
        }
    }

    #[test]
    fn ink_can_be_read_on_every_field() {
        let names = ["a".to_owned(), "b".to_owned()];
        let field = |t: &str| vec![t.to_owned()];
        let picture = matrix(&Matrix {
            title: "M",
            rows: &names,
            columns: &names,
            row_name: "true",
            column_name: "predicted",
            shares: &[1.0, 0.0, 0.4, 0.6],
            texts: &[field("1"), field("0"), field("2"), field("3")],
            field: [46.0, 46.0],
        });
        let mut below = WHITE;
        let mut seen = 0;
        for mark in &picture.marks {
            match mark {
                Mark::Rect { fill, .. } => below = *fill,
                Mark::Text { color, text, .. } if "0123".contains(text.as_str()) => {
                    seen += 1;
                    assert!(
                        (color.brightness() - below.brightness()).abs() > 0.4,
                        "{text}"
                    );
                }
                _ => {}
            }
        }
        assert_eq!(seen, 4);
    }
}

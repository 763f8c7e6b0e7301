//! Marks as SVG.

use std::fmt::Write;

use super::{Anchor, Mark, Picture, Shape};

/// Fonts that look like the one of PNG pictures.
const FONTS: &str = "Roboto,Helvetica,Arial,sans-serif";

/// Names of genes and types may hold anything.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML has no other control characters.
            c if c.is_control() && !"\t\n\r".contains(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A number with as many digits as can be seen.
fn n(x: f32) -> String {
    let text = format!("{x:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" {
        "0".to_owned()
    } else {
        text.to_owned()
    }
}

pub(super) fn document(picture: &Picture) -> String {
    let mut out = String::new();
    let (w, h) = (n(picture.width), n(picture.height));
    let title = escape(&picture.title);
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {w} {h}\" width=\"{w}\" height=\"{h}\" role=\"img\" font-family=\"{FONTS}\"><title>{title}</title><rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>"
    );
    for mark in &picture.marks {
        match mark {
            Mark::Rect { at, size, fill } => {
                let _ = write!(
                    out,
                    "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>",
                    n(at[0]),
                    n(at[1]),
                    n(size[0]),
                    n(size[1]),
                    fill.hex()
                );
            }
            Mark::Line {
                points,
                stroke,
                width,
                dashes,
            } => {
                let path: Vec<String> = points
                    .iter()
                    .map(|p| format!("{},{}", n(p[0]), n(p[1])))
                    .collect();
                let dashes = dashes.map_or(String::new(), |[on, off]| {
                    format!(" stroke-dasharray=\"{} {}\"", n(on), n(off))
                });
                let _ = write!(
                    out,
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"{dashes}/>",
                    path.join(" "),
                    stroke.hex(),
                    n(*width)
                );
            }
            Mark::Points {
                points,
                radius,
                fill,
                shape,
            } => {
                // One path for all: a tenth of the bytes of an element each.
                let _ = write!(out, "<path fill=\"{}\" d=\"", fill.hex());
                for &[x, y] in points {
                    point(&mut out, x, y, *radius, *shape);
                }
                out.push_str("\"/>");
            }
            Mark::Text {
                at,
                text,
                size,
                anchor,
                color,
                upright,
            } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let (x, y) = (n(at[0]), n(at[1]));
                let turn = if *upright {
                    format!(" transform=\"rotate(-90 {x} {y})\"")
                } else {
                    String::new()
                };
                let _ = write!(
                    out,
                    "<text x=\"{x}\" y=\"{y}\" font-size=\"{}\" text-anchor=\"{anchor}\" fill=\"{}\"{turn}>{}</text>",
                    n(*size),
                    color.hex(),
                    escape(text)
                );
            }
        }
    }
    out.push_str("</svg>\n");
    out
}

fn point(out: &mut String, x: f32, y: f32, r: f32, shape: Shape) {
    let _ = match shape {
        Shape::Circle => write!(
            out,
            "M{} {}a{r} {r} 0 1 0 {} 0a{r} {r} 0 1 0 {} 0",
            n(x - r),
            n(y),
            n(2.0 * r),
            n(-2.0 * r),
            r = n(r)
        ),
        Shape::Square => write!(
            out,
            "M{} {}h{d}v{d}h-{d}z",
            n(x - r),
            n(y - r),
            d = n(2.0 * r)
        ),
        Shape::Triangle => write!(
            out,
            "M{} {}l{} {}h-{}z",
            n(x),
            n(y - r),
            n(r),
            n(2.0 * r),
            n(2.0 * r)
        ),
        Shape::Diamond => write!(
            out,
            "M{} {}l{r} {r}l-{r} {r}l-{r} -{r}z",
            n(x),
            n(y - r),
            r = n(r)
        ),
    };
}

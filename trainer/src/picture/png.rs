//! Marks as pixels.

use scpeft_protocol::exit;
use tiny_skia::{
    FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash,
    Transform,
};
use ttf_parser::{Face, OutlineBuilder};

use super::{Anchor, Color, Mark, Picture, Shape};
use crate::failure::{Failure, Result};

/// Latin and Greek letters of Roboto Regular.
const FONT: &[u8] = include_bytes!("../../assets/roboto-latin-greek.ttf");

fn face() -> Face<'static> {
    Face::parse(FONT, 0).expect("the font that is built in is well formed")
}

fn failed(what: &str) -> Failure {
    Failure::new(exit::INTERNAL, format!("a picture cannot be drawn: {what}"))
}

pub(super) fn file(picture: &Picture, scale: f32) -> Result<Vec<u8>> {
    let (w, h) = (
        (picture.width * scale).ceil(),
        (picture.height * scale).ceil(),
    );
    let mut pixels =
        Pixmap::new(w as u32, h as u32).ok_or_else(|| failed(&format!("{w} x {h} pixels")))?;
    pixels.fill(tiny_skia::Color::WHITE);
    let face = face();
    let scaled = Transform::from_scale(scale, scale);
    for mark in &picture.marks {
        draw(&mut pixels, mark, &face, scaled);
    }
    pixels.encode_png().map_err(|e| failed(&e.to_string()))
}

fn paint(color: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(color.0, color.1, color.2, 255);
    paint.anti_alias = true;
    paint
}

/// Draws a mark; what has no extent leaves nothing.
fn draw(pixels: &mut Pixmap, mark: &Mark, face: &Face<'_>, scaled: Transform) {
    match mark {
        Mark::Rect { at, size, fill } => {
            if let Some(rect) = Rect::from_xywh(at[0], at[1], size[0], size[1]) {
                pixels.fill_rect(rect, &paint(*fill), scaled, None);
            }
        }
        Mark::Line {
            points,
            stroke,
            width,
            dashes,
        } => {
            let mut path = PathBuilder::new();
            for (i, &[x, y]) in points.iter().enumerate() {
                if i == 0 {
                    path.move_to(x, y);
                } else {
                    path.line_to(x, y);
                }
            }
            let style = Stroke {
                width: *width,
                line_cap: LineCap::Round,
                line_join: LineJoin::Round,
                dash: dashes.and_then(|d| StrokeDash::new(d.to_vec(), 0.0)),
                ..Stroke::default()
            };
            if let Some(path) = path.finish() {
                pixels.stroke_path(&path, &paint(*stroke), &style, scaled, None);
            }
        }
        Mark::Points {
            points,
            radius,
            fill,
            shape,
        } => {
            // Not one path for all: where points overlap a path would have holes.
            let paint = paint(*fill);
            if let Some(path) = look(*radius, *shape) {
                for &[x, y] in points {
                    let place = scaled.pre_translate(x, y);
                    pixels.fill_path(&path, &paint, FillRule::Winding, place, None);
                }
            }
        }
        Mark::Text {
            at,
            text,
            size,
            anchor,
            color,
            upright,
        } => {
            let turn = if *upright { -90.0 } else { 0.0 };
            let place = scaled.pre_translate(at[0], at[1]).pre_rotate(turn);
            if let Some(path) = letters(face, text, *size, *anchor) {
                pixels.fill_path(&path, &paint(*color), FillRule::Winding, place, None);
            }
        }
    }
}

/// A point of this look around the origin.
fn look(r: f32, shape: Shape) -> Option<Path> {
    let mut path = PathBuilder::new();
    match shape {
        Shape::Circle => path.push_circle(0.0, 0.0, r),
        Shape::Square => path.push_rect(Rect::from_xywh(-r, -r, 2.0 * r, 2.0 * r)?),
        Shape::Triangle => {
            path.move_to(0.0, -r);
            path.line_to(r, r);
            path.line_to(-r, r);
            path.close();
        }
        Shape::Diamond => {
            path.move_to(0.0, -r);
            path.line_to(r, 0.0);
            path.line_to(0.0, r);
            path.line_to(-r, 0.0);
            path.close();
        }
    }
    path.finish()
}

/// Outlines of letters, whose y grows upwards.
struct Pen {
    path: PathBuilder,
    x: f32,
    scale: f32,
}

impl Pen {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        (self.x + x * self.scale, -y * self.scale)
    }
}

impl OutlineBuilder for Pen {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }

    fn close(&mut self) {
        self.path.close();
    }
}

fn letters(face: &Face<'_>, text: &str, size: f32, anchor: Anchor) -> Option<Path> {
    let width = width_of(face, text, size);
    let scale = size / f32::from(face.units_per_em());
    let mut pen = Pen {
        path: PathBuilder::new(),
        x: match anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => -width / 2.0,
            Anchor::End => -width,
        },
        scale,
    };
    for c in text.chars() {
        let glyph = face.glyph_index(c).or_else(|| face.glyph_index('?'))?;
        face.outline_glyph(glyph, &mut pen);
        pen.x += f32::from(face.glyph_hor_advance(glyph).unwrap_or(0)) * scale;
    }
    pen.path.finish()
}

fn width_of(face: &Face<'_>, text: &str, size: f32) -> f32 {
    let scale = size / f32::from(face.units_per_em());
    let advance = |c| {
        let glyph = face.glyph_index(c).or_else(|| face.glyph_index('?'))?;
        face.glyph_hor_advance(glyph)
    };
    text.chars()
        .filter_map(advance)
        .map(|a| f32::from(a) * scale)
        .sum()
}

pub(super) fn text_width(text: &str, size: f32) -> f32 {
    width_of(&face(), text, size)
}

//! Pictures as a list of marks, written as SVG for print and as PNG for everything else.
//!
//! Colours are told apart by colour-blind readers and in grey print: groups by Okabe and Ito's palette
//! together with a shape, numbers by a scale that grows darker.

pub(crate) mod charts;
mod colors;
mod png;
mod scatter;
mod svg;

use std::path::Path;

use scpeft_checkpoint::fsx;

use crate::failure::Result;

pub(crate) use colors::{Color, group_color, shade};
pub(crate) use scatter::{Points, scatter};
pub(crate) use svg::escape;

/// Pixels of a PNG for each unit of a picture: enough for print at the usual width of a figure.
const PNG_SCALE: f32 = 2.0;

/// Where a text stands beside its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    /// The text begins at the point.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// What a group's points look like, besides their colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
}

/// One thing that is drawn. Coordinates grow to the right and downwards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Mark {
    Rect {
        at: [f32; 2],
        size: [f32; 2],
        fill: Color,
    },
    Line {
        points: Vec<[f32; 2]>,
        stroke: Color,
        width: f32,
        dashes: Option<[f32; 2]>,
    },
    /// Points of one look.
    Points {
        points: Vec<[f32; 2]>,
        radius: f32,
        fill: Color,
        shape: Shape,
    },
    Text {
        at: [f32; 2],
        text: String,
        size: f32,
        anchor: Anchor,
        color: Color,
        /// Turned to be read from the right.
        upright: bool,
    },
}

/// A picture: its size, what it shows in words, and its marks, the first at the bottom.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Picture {
    pub(crate) width: f32,
    pub(crate) height: f32,
    /// What a reader who cannot see it should know.
    pub(crate) title: String,
    pub(crate) marks: Vec<Mark>,
}

impl Picture {
    pub(crate) fn new(width: f32, height: f32, title: &str) -> Self {
        Self {
            width,
            height,
            title: title.to_owned(),
            marks: Vec::new(),
        }
    }

    pub(crate) fn rect(&mut self, at: [f32; 2], size: [f32; 2], fill: Color) {
        self.marks.push(Mark::Rect { at, size, fill });
    }

    pub(crate) fn line(&mut self, points: Vec<[f32; 2]>, stroke: Color, width: f32) {
        self.marks.push(Mark::Line {
            points,
            stroke,
            width,
            dashes: None,
        });
    }

    pub(crate) fn text(&mut self, at: [f32; 2], text: &str, size: f32, anchor: Anchor) {
        self.ink(at, text, size, anchor, colors::INK);
    }

    pub(crate) fn ink(
        &mut self,
        at: [f32; 2],
        text: &str,
        size: f32,
        anchor: Anchor,
        color: Color,
    ) {
        self.marks.push(Mark::Text {
            at,
            text: text.to_owned(),
            size,
            anchor,
            color,
            upright: false,
        });
    }

    pub(crate) fn upright(&mut self, at: [f32; 2], text: &str, size: f32, anchor: Anchor) {
        self.marks.push(Mark::Text {
            at,
            text: text.to_owned(),
            size,
            anchor,
            color: colors::INK,
            upright: true,
        });
    }

    /// The picture as an SVG document.
    pub(crate) fn svg(&self) -> String {
        svg::document(self)
    }

    /// The picture as a PNG file, on white.
    ///
    /// # Errors
    /// Only if it is too large for the memory.
    pub(crate) fn png(&self) -> Result<Vec<u8>> {
        png::file(self, PNG_SCALE)
    }

    /// Writes `STEM.svg` and `STEM.png` into a directory.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(crate) fn write(&self, dir: &Path, stem: &str) -> Result<()> {
        fsx::write_atomic(&dir.join(format!("{stem}.svg")), self.svg().as_bytes())?;
        fsx::write_atomic(&dir.join(format!("{stem}.png")), &self.png()?)?;
        Ok(())
    }
}

/// About how wide a text is, in units of the picture.
pub(crate) fn text_width(text: &str, size: f32) -> f32 {
    png::text_width(text, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let mut picture = Picture::new(40.0, 20.0, "a <test> & more");
        picture.rect([0.0, 0.0], [10.0, 20.0], Color(213, 94, 0));
        picture.text([12.0, 15.0], "B & <T>", 12.0, Anchor::Start);
        picture.marks.push(Mark::Points {
            points: vec![[30.0, 10.0]],
            radius: 4.0,
            fill: Color(0, 114, 178),
            shape: Shape::Square,
        });
        picture
    }

    #[test]
    fn the_same_marks_become_svg_and_png() {
        let svg = picture().svg();
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 40 20\""));
        assert!(
            svg.contains("B &amp; &lt;T&gt;") && svg.contains("#d55e00"),
            "{svg}"
        );
        assert!(svg.contains("<title>a &lt;test&gt; &amp; more</title>"));
        let png = picture().png().unwrap();
        let pixels = tiny_skia::Pixmap::decode_png(&png).unwrap();
        assert_eq!((pixels.width(), pixels.height()), (80, 40));
        let at = |x: u32, y: u32| {
            let p = pixels.pixel(x, y).unwrap();
            [p.red(), p.green(), p.blue(), p.alpha()]
        };
        assert_eq!(at(5, 20), [213, 94, 0, 255]);
        assert_eq!(at(60, 20), [0, 114, 178, 255]);
        assert_eq!(at(78, 2), [255; 4]);
        // The text left ink, above its line and not below.
        let dark = |rows: std::ops::Range<u32>| {
            rows.flat_map(|y| (24..50).map(move |x| (x, y)))
                .filter(|&(x, y)| at(x, y)[0] < 128)
                .count()
        };
        assert!(dark(12..31) > 20 && dark(34..40) == 0);
    }

    #[test]
    fn widths_of_texts_grow_with_them() {
        assert!(text_width("iii", 12.0) < text_width("MMM", 12.0));
        let (one, two) = (text_width("ab", 10.0), text_width("ab", 20.0));
        assert!((2.0 * one - two).abs() < 1e-3);
    }
}

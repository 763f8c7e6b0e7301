//! Colours that colour-blind readers and grey print tell apart.

use super::Shape;

/// Red, green and blue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Color(pub(crate) u8, pub(crate) u8, pub(crate) u8);

/// Texts and axes.
pub(super) const INK: Color = Color(34, 34, 34);
/// Lines that guide the eye.
pub(super) const GUIDE: Color = Color(221, 221, 221);
/// Cells without a value.
pub(super) const MISSING: Color = Color(200, 200, 200);

/// Okabe and Ito 2008, the yellow last: it is faint in print.
const GROUPS: [Color; 8] = [
    Color(0, 114, 178),
    Color(230, 159, 0),
    Color(0, 158, 115),
    Color(204, 121, 167),
    Color(86, 180, 233),
    Color(213, 94, 0),
    Color(0, 0, 0),
    Color(240, 228, 66),
];
const SHAPES: [Shape; 4] = [
    Shape::Circle,
    Shape::Triangle,
    Shape::Square,
    Shape::Diamond,
];

/// Colour and shape of the n-th group: 32 are different.
pub(crate) fn group_color(n: usize) -> (Color, Shape) {
    (
        GROUPS[n % GROUPS.len()],
        SHAPES[n / GROUPS.len() % SHAPES.len()],
    )
}

/// From white to dark blue, by how much of 1.
pub(crate) fn shade(share: f32) -> Color {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let part = |low: f32| (255.0 - share * (255.0 - low)).round() as u8;
    Color(part(8.0), part(48.0), part(107.0))
}

impl Color {
    /// How bright it looks, from 0 to 1 (ITU-R BT.709).
    pub(crate) fn brightness(self) -> f32 {
        (0.2126 * f32::from(self.0) + 0.7152 * f32::from(self.1) + 0.0722 * f32::from(self.2))
            / 255.0
    }

    /// As `#rrggbb`.
    pub(crate) fn hex(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_differ_and_shades_grow_darker() {
        let looks: Vec<_> = (0..32).map(group_color).collect();
        for (i, a) in looks.iter().enumerate() {
            assert!(!looks[..i].contains(a), "{i}");
        }
        let steps: Vec<f32> = (0..=10)
            .map(|i| shade(i as f32 / 10.0).brightness())
            .collect();
        assert!(steps.windows(2).all(|w| w[0] > w[1]), "{steps:?}");
        assert_eq!(shade(f32::NAN), Color(255, 255, 255));
        assert_eq!(Color(0, 158, 115).hex(), "#009e73");
    }
}

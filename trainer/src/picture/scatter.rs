//! Points in a plane, coloured by group: a UMAP.

use super::colors::{GUIDE, MISSING};
use super::{Anchor, Mark, Picture, Shape, group_color, text_width};

/// Side of the square with the points.
const SIDE: f32 = 360.0;
const MARGIN: f32 = 14.0;
const HEAD: f32 = 30.0;
const LINE: f32 = 18.0;
/// Groups with a colour of their own; the others are grey.
const COLORED: usize = 32;

/// Cells in a plane and the group of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Points<'a> {
    pub(crate) at: &'a [[f32; 2]],
    /// Place in `names`; `None` for a cell without a group.
    pub(crate) groups: &'a [Option<usize>],
    pub(crate) names: &'a [String],
}

/// Draws the points, every group with its own colour and shape, and a legend with the cells of each.
/// Points are drawn in an order that mixes groups, so that the last group does not cover the others.
pub(crate) fn scatter(title: &str, points: Points<'_>) -> Picture {
    let names = points.names;
    let mut counts = vec![0usize; names.len()];
    for group in points.groups.iter().flatten() {
        counts[*group] += 1;
    }
    let missing = points.groups.iter().filter(|g| g.is_none()).count();
    let shown = names.len().min(COLORED);
    let mut legend: Vec<String> = (0..shown)
        .map(|g| format!("{} ({})", names[g], counts[g]))
        .collect();
    if names.len() > shown {
        let rest: usize = counts[shown..].iter().sum();
        legend.push(format!("{} others ({rest})", names.len() - shown));
    }
    if missing > 0 {
        legend.push(format!("none ({missing})"));
    }
    let widest = legend
        .iter()
        .map(|t| text_width(t, 12.0))
        .fold(0.0, f32::max);
    let height = (HEAD + SIDE).max(HEAD + LINE * legend.len() as f32) + MARGIN;
    let width = (MARGIN + SIDE + 24.0 + widest).max(MARGIN + text_width(title, 15.0)) + MARGIN;
    let mut picture = Picture::new(width, height, title);
    picture.text([MARGIN, 20.0], title, 15.0, Anchor::Start);
    frame(&mut picture);
    cloud(&mut picture, points);
    for (line, text) in legend.iter().enumerate() {
        let y = HEAD + LINE * line as f32 + 9.0;
        let x = MARGIN + SIDE + 14.0;
        let (fill, shape) = if line < shown {
            group_color(line)
        } else {
            (MISSING, Shape::Circle)
        };
        picture.marks.push(Mark::Points {
            points: vec![[x, y]],
            radius: 4.5,
            fill,
            shape,
        });
        picture.text([x + 10.0, y + 4.0], text, 12.0, Anchor::Start);
    }
    picture
}

fn frame(picture: &mut Picture) {
    let (left, top) = (MARGIN, HEAD);
    picture.line(
        vec![
            [left, top],
            [left + SIDE, top],
            [left + SIDE, top + SIDE],
            [left, top + SIDE],
            [left, top],
        ],
        GUIDE,
        1.0,
    );
}

fn cloud(picture: &mut Picture, points: Points<'_>) {
    let n = points.at.len();
    let radius = (120.0 / (n.max(1) as f32).sqrt()).clamp(0.8, 4.0);
    let finite = || points.at.iter().filter(|p| p.iter().all(|x| x.is_finite()));
    let bound = |axis: usize, pick: fn(f32, f32) -> f32, start: f32| {
        finite().map(|p| p[axis]).fold(start, pick)
    };
    let low = [bound(0, f32::min, f32::MAX), bound(1, f32::min, f32::MAX)];
    let high = [bound(0, f32::max, f32::MIN), bound(1, f32::max, f32::MIN)];
    let span = (high[0] - low[0]).max(high[1] - low[1]).max(1e-6);
    let inner = SIDE - 16.0;
    let place = |p: &[f32; 2]| {
        let x = MARGIN + 8.0 + (p[0] - low[0] + (span - (high[0] - low[0])) / 2.0) / span * inner;
        let y = (p[1] - low[1] + (span - (high[1] - low[1])) / 2.0) / span * inner;
        [x, HEAD + SIDE - 8.0 - y]
    };
    // Layers of mixed cells: each has some of every group.
    let layers = 8.min(n.max(1));
    for layer in 0..layers {
        let mut of_group: Vec<Vec<[f32; 2]>> = vec![Vec::new(); COLORED + 1];
        for cell in (layer..n).step_by(layers) {
            let at = &points.at[cell];
            if at.iter().all(|x| x.is_finite()) {
                let group = points.groups[cell]
                    .filter(|&g| g < COLORED)
                    .unwrap_or(COLORED);
                of_group[group].push(place(at));
            }
        }
        // The grey ones first: below the others.
        let order = std::iter::once(COLORED).chain(0..COLORED);
        for group in order {
            let own = std::mem::take(&mut of_group[group]);
            if own.is_empty() {
                continue;
            }
            let (fill, shape) = if group == COLORED {
                (MISSING, Shape::Circle)
            } else {
                group_color(group)
            };
            picture.marks.push(Mark::Points {
                points: own,
                radius,
                fill,
                shape,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_point_is_drawn_inside_the_frame_in_its_colour() {
        let at = [[0.0, 0.0], [10.0, 5.0], [f32::NAN, 0.0], [5.0, 2.0]];
        let names = ["a".to_owned(), "b".to_owned()];
        let groups = [Some(0), Some(1), Some(1), None];
        let picture = scatter(
            "Cells",
            Points {
                at: &at,
                groups: &groups,
                names: &names,
            },
        );
        let mut drawn = Vec::new();
        for mark in &picture.marks {
            if let Mark::Points {
                points,
                fill,
                radius,
                ..
            } = mark
                && *radius < 4.5
            {
                drawn.extend(points.iter().map(|p| (*p, *fill)));
            }
        }
        assert_eq!(drawn.len(), 3);
        assert!(drawn.iter().all(|(p, _)| p[0] > MARGIN
            && p[0] < MARGIN + SIDE
            && p[1] > HEAD
            && p[1] < HEAD + SIDE));
        let colors: Vec<_> = drawn.iter().map(|(_, c)| *c).collect();
        assert!(
            colors.contains(&group_color(0).0)
                && colors.contains(&group_color(1).0)
                && colors.contains(&MISSING)
        );
        let texts: Vec<&str> = picture
            .marks
            .iter()
            .filter_map(|m| match m {
                Mark::Text { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(texts, ["Cells", "a (1)", "b (2)", "none (1)"]);
    }
}

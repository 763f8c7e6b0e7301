//! Which groups are compared, and what comes of it gene by gene.

use scpeft_data::Corpus;

use super::attention::Attention;
use super::expression::Expression;
use crate::args::MarkersArgs;
use crate::failure::{Failure, Result};

/// A group against another, or against all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contrast {
    pub(super) target: usize,
    /// `None` for all other groups.
    pub(super) background: Option<usize>,
    /// In words.
    pub(super) name: String,
}

impl Contrast {
    /// Whether a group is part of the background.
    pub(super) fn is_background(&self, group: usize) -> bool {
        self.background
            .map_or(group != self.target, |own| group == own)
    }
}

/// A gene of a contrast.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) symbol: String,
    /// Place by attention, from 1.
    pub(super) place: usize,
    /// Mean attention rank in the target minus that in the background.
    pub(super) score: f64,
    pub(super) target_rank: f64,
    pub(super) background_rank: f64,
    pub(super) expression: Expressed,
    /// Place by the test, from 1: genes that are higher in the target come first, by p value.
    pub(super) wilcoxon_place: usize,
    /// Whether it is on the user's list.
    pub(super) known: bool,
}

/// How a gene is expressed on both sides.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Expressed {
    /// Mean of log-normalised values.
    pub(super) target_mean: f64,
    pub(super) background_mean: f64,
    /// Share of cells that express it.
    pub(super) target_share: f64,
    pub(super) background_share: f64,
    /// Two-sided p value of the rank-sum test.
    pub(super) p_value: f64,
    /// The same, adjusted over genes.
    pub(super) fdr: f64,
}

/// A contrast with its genes, highest score first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) contrast: Contrast,
    pub(super) target_cells: u64,
    pub(super) background_cells: u64,
    pub(super) rows: Vec<Row>,
}

impl Found {
    /// How many of the first genes by attention are among the first by the test.
    pub(super) fn shared_with_wilcoxon(&self, top: usize) -> usize {
        let first = self.rows.iter().take(top);
        first.filter(|row| row.wilcoxon_place <= top).count()
    }

    /// How many genes of the user's list are among the first by attention, and by the test.
    pub(super) fn known_among(&self, top: usize) -> [usize; 2] {
        let known = || self.rows.iter().filter(|row| row.known);
        [
            known().filter(|row| row.place <= top).count(),
            known().filter(|row| row.wilcoxon_place <= top).count(),
        ]
    }
}

/// The contrasts that a user asks for.
///
/// # Errors
/// A group that does not exist or has no cells, a group against itself, nothing to compare with.
pub(super) fn choose(args: &MarkersArgs, names: &[String], sizes: &[u64]) -> Result<Vec<Contrast>> {
    let present: Vec<usize> = (0..names.len()).filter(|&g| sizes[g] > 0).collect();
    let find = |option: &str, wanted: &String| {
        let found = names.iter().position(|name| name == wanted);
        found.filter(|&g| sizes[g] > 0).ok_or_else(|| {
            let known: Vec<String> =
                present.iter().map(|&g| format!("`{}`", names[g])).collect();
            Failure::config(format!(
                "`{option} {wanted}`: no chosen cell has this value of obs column `{}`\nhelp: present are: {}",
                args.groups,
                known.join(", ")
            ))
        })
    };
    if present.len() < 2 {
        return Err(Failure::data(format!(
            "obs column `{}`: the chosen cells are of {} group(s), at least 2 are needed\n\
             help: choose another column with `--groups`, or other cells with `--split`",
            args.groups,
            present.len()
        )));
    }
    let background = args.background.as_ref().map(|b| find("--background", b));
    let background = background.transpose()?;
    let targets = if args.target.is_empty() {
        present
            .iter()
            .copied()
            .filter(|&g| Some(g) != background)
            .collect()
    } else {
        let targets = args.target.iter().map(|t| find("--target", t));
        targets.collect::<Result<Vec<usize>>>()?
    };
    targets
        .into_iter()
        .map(|target| {
            if background == Some(target) {
                return Err(Failure::config(format!(
                    "`--target {0}` and `--background {0}`: a group is not compared with itself",
                    names[target]
                )));
            }
            let other = background.map_or("the rest", |b| &names[b]);
            Ok(Contrast {
                target,
                background,
                name: format!("{} against {other}", names[target]),
            })
        })
        .collect()
}

/// Scores of every gene, highest first; equal ones in the order of the corpus.
pub(super) fn compare(
    contrast: &Contrast,
    attention: &Attention,
    expression: &Expression,
    tested: &[f64],
    known: &[String],
    corpus: &Corpus,
) -> Found {
    let groups = expression.groups();
    let background: Vec<usize> = (0..groups).filter(|&g| contrast.is_background(g)).collect();
    let [target_cells, background_cells] = [&[contrast.target][..], &background]
        .map(|side| side.iter().map(|&g| attention.size(g)).sum::<f64>());
    let fdr = scpeft_evaluation::de::benjamini_hochberg(tested);
    let mut rows: Vec<Row> = (attention.genes().iter().enumerate())
        .map(|(place, &gene)| {
            let sum = |side: &[usize]| side.iter().map(|&g| attention.sum(g, place)).sum::<f64>();
            let target_rank = sum(&[contrast.target]) / target_cells;
            let background_rank = sum(&background) / background_cells;
            let symbol = corpus.genes().symbols[gene as usize].clone();
            let [target_mean, background_mean] =
                [&[contrast.target][..], &background].map(|side| expression.mean(side, place));
            let [target_share, background_share] =
                [&[contrast.target][..], &background].map(|side| expression.share(side, place));
            Row {
                known: known.contains(&symbol),
                symbol,
                place: 0,
                score: target_rank - background_rank,
                target_rank,
                background_rank,
                expression: Expressed {
                    target_mean,
                    background_mean,
                    target_share,
                    background_share,
                    p_value: tested[place],
                    fdr: fdr[place],
                },
                wilcoxon_place: 0,
            }
        })
        .collect();
    number(&mut rows);
    Found {
        contrast: contrast.clone(),
        target_cells: target_cells as u64,
        background_cells: background_cells as u64,
        rows,
    }
}

/// Gives genes their places by the test and by attention, and sorts them by the latter.
fn number(rows: &mut [Row]) {
    let change = |row: &Row| row.expression.target_mean - row.expression.background_mean;
    rows.sort_by(|a, b| {
        let lower = |row: &Row| change(row) <= 0.0;
        let by_p = a.expression.p_value.total_cmp(&b.expression.p_value);
        lower(a)
            .cmp(&lower(b))
            .then(if lower(a) { by_p.reverse() } else { by_p })
            .then(change(b).total_cmp(&change(a)))
    });
    for (place, row) in (1..).zip(rows.iter_mut()) {
        row.wilcoxon_place = place;
    }
    rows.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.symbol.cmp(&b.symbol)));
    for (place, row) in (1..).zip(rows.iter_mut()) {
        row.place = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(symbol: &str, score: f64, change: f64, p_value: f64) -> Row {
        Row {
            symbol: symbol.into(),
            place: 0,
            score,
            target_rank: score,
            background_rank: 0.0,
            expression: Expressed {
                target_mean: change,
                background_mean: 0.0,
                target_share: 0.5,
                background_share: 0.5,
                p_value,
                fdr: p_value,
            },
            wilcoxon_place: 0,
            known: symbol == "up",
        }
    }

    #[test]
    fn places_are_by_score_and_by_what_is_higher_in_the_target() {
        let mut rows = vec![
            row("down", 0.3, -2.0, 1e-9),
            row("up", 0.1, 1.0, 1e-8),
            row("best", 0.2, 1.0, 1e-12),
            row("same", 0.2, 0.0, 1.0),
        ];
        number(&mut rows);
        let order: Vec<(&str, usize)> = rows
            .iter()
            .map(|r| (r.symbol.as_str(), r.wilcoxon_place))
            .collect();
        assert_eq!(order, [("down", 4), ("best", 1), ("same", 3), ("up", 2)]);
        let found = Found {
            contrast: Contrast {
                target: 0,
                background: None,
                name: String::new(),
            },
            target_cells: 1,
            background_cells: 1,
            rows,
        };
        assert_eq!(found.shared_with_wilcoxon(2), 1);
        assert_eq!(found.known_among(2), [0, 1]);
    }

    #[test]
    fn groups_without_cells_are_refused_by_name() {
        let names = ["a", "b", "empty"].map(String::from);
        let args = |target: &[&str], background: Option<&str>| {
            use clap::Parser;
            let mut line = vec![
                "scpeft-train",
                "markers",
                "--run",
                "r",
                "--groups",
                "kind",
                "--output",
                "o",
            ];
            line.extend(target.iter().flat_map(|t| ["--target", t]));
            line.extend(background.iter().flat_map(|b| ["--background", b]));
            match crate::args::Cli::parse_from(line).command {
                Some(crate::args::Command::Markers(args)) => args,
                _ => unreachable!("the line says markers"),
            }
        };
        let run =
            |target: &[&str], background| choose(&args(target, background), &names, &[3, 2, 0]);
        let found: Vec<String> = run(&[], None)
            .unwrap()
            .into_iter()
            .map(|c| c.name)
            .collect();
        assert_eq!(found, ["a against the rest", "b against the rest"]);
        assert_eq!(run(&["b"], Some("a")).unwrap()[0].name, "b against a");
        for (target, background, word) in [
            (&["empty"][..], None, "present are: `a`, `b`"),
            (&["a"][..], Some("nowhere"), "--background nowhere"),
            (&["a"][..], Some("a"), "not compared with itself"),
        ] {
            let message = run(target, background).unwrap_err().message;
            assert!(message.contains(word), "{message}");
        }
        assert!(choose(&args(&[], None), &names, &[3, 0, 0]).is_err());
    }
}

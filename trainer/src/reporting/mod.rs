//! One page for one or several runs: curves, scores beside what a simple rule reaches, pictures of the
//! cells, cost and settings. It opens without a network and prints.

mod cells;
mod facts;
mod page;

use std::path::{Path, PathBuf};

use scpeft_checkpoint::fsx::{self, Existing};

use crate::args::ReportArgs;
use crate::failure::{Failure, Result};
use crate::picture::Picture;
use crate::picture::charts::{Bar, bars};
use crate::sheet::Sheet;

use facts::Facts;

const PAGE: &str = "report.html";

/// A part of the page: pictures, a table, or words, under a heading.
enum Part {
    Heading(String),
    Text(String),
    /// With the name of its files.
    Picture(String, Box<Picture>),
    /// With the name of its files, and how many rows the page shows.
    Table(String, Sheet, usize),
    /// Folded away: a heading and text as it is.
    Folded(String, String),
}

/// Writes the report of `args`; the whole of `scpeft-train report`. Returns a line for the user.
///
/// # Errors
/// A run or table that cannot be read, or an output that exists or cannot be written.
pub fn report(args: &ReportArgs) -> Result<String> {
    let occupied = fsx::refuse_existing(&args.output).is_err();
    if occupied && !args.overwrite {
        return Err(Failure::config(format!(
            "`{}` exists\nhelp: choose another `--output`; `--overwrite` replaces an earlier report",
            args.output.display()
        )));
    }
    if occupied && !args.output.join(PAGE).is_file() {
        return Err(Failure::config(format!(
            "`{}` holds no `{PAGE}`, so `--overwrite` does not replace it\nhelp: choose another `--output`",
            args.output.display()
        )));
    }
    if args.predictions.len() > args.runs.len() {
        return Err(Failure::config(format!(
            "{} `--predictions` for {} run(s)\nhelp: the first belongs to the first run, and so on",
            args.predictions.len(),
            args.runs.len()
        )));
    }
    let mut runs = Vec::new();
    for (i, run) in args.runs.iter().enumerate() {
        runs.push(Facts::read(
            run,
            args.predictions.get(i).map(PathBuf::as_path),
        )?);
    }
    let parts = parts(args, &runs)?;
    let title = match runs.as_slice() {
        [one] => format!("Run {}", one.name),
        several => format!("{} runs", several.len()),
    };
    let existing = if args.overwrite {
        Existing::Replace
    } else {
        Existing::Refuse
    };
    fsx::publish_dir(&args.output, existing, |dir| write(dir, &title, &parts))?;
    Ok(format!("report in `{}`", args.output.join(PAGE).display()))
}

fn parts(args: &ReportArgs, runs: &[Facts]) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    if runs.len() > 1 {
        parts.push(Part::Heading("All runs".to_owned()));
        comparison(&mut parts, runs);
    }
    for (i, run) in runs.iter().enumerate() {
        let prefix = if runs.len() > 1 {
            format!("run-{}-", i + 1)
        } else {
            String::new()
        };
        parts.push(Part::Heading(format!("Run {}", run.name)));
        parts.push(Part::Table(
            format!("{prefix}facts"),
            run.sheet(),
            usize::MAX,
        ));
        for (stem, picture) in run.curves() {
            parts.push(Part::Picture(format!("{prefix}{stem}"), Box::new(picture)));
        }
        run.scores(&prefix, &mut parts)?;
        parts.push(Part::Folded("Settings".to_owned(), run.config.clone()));
    }
    cells::parts(args, runs, &mut parts)?;
    Ok(parts)
}

/// What the runs reach and cost, side by side; the floor is that of the cells that were predicted.
fn comparison(parts: &mut Vec<Part>, runs: &[Facts]) {
    parts.push(Part::Table(
        "runs".to_owned(),
        facts::side_by_side(runs),
        usize::MAX,
    ));
    for (key, title) in [
        ("macro_f1", "Macro F1"),
        ("balanced_accuracy", "Balanced accuracy"),
        ("accuracy", "Accuracy"),
    ] {
        let mut drawn: Vec<Bar> = Vec::new();
        for run in runs {
            if let Some(value) = run.score(key) {
                drawn.push(Bar {
                    name: run.name.clone(),
                    value,
                    floor: false,
                });
            }
        }
        if drawn.is_empty() {
            continue;
        }
        if key == "accuracy"
            && let Some(value) = runs.iter().find_map(|r| r.score("majority_accuracy"))
        {
            drawn.push(Bar {
                name: "most frequent type".to_owned(),
                value,
                floor: true,
            });
        }
        parts.push(Part::Picture(
            format!("runs-{key}"),
            Box::new(bars(title, &drawn)),
        ));
    }
}

fn write(dir: &Path, title: &str, parts: &[Part]) -> Result<()> {
    for (folder, needed) in [
        (
            "figures",
            parts.iter().any(|p| matches!(p, Part::Picture(..))),
        ),
        ("tables", parts.iter().any(|p| matches!(p, Part::Table(..)))),
    ] {
        if needed {
            fsx::create_dir_all(&dir.join(folder))?;
        }
    }
    for part in parts {
        match part {
            Part::Picture(stem, picture) => picture.write(&dir.join("figures"), stem)?,
            Part::Table(stem, sheet, _) => sheet.write(&dir.join("tables"), stem)?,
            Part::Heading(_) | Part::Text(_) | Part::Folded(..) => {}
        }
    }
    fsx::write_atomic(&dir.join(PAGE), page::html(title, parts)?.as_bytes())?;
    Ok(())
}

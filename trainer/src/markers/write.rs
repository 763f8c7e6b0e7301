//! Markers as tables and pictures.

use std::path::Path;

use scpeft_checkpoint::fsx;
use serde_json::{Value, json};

use super::Markers;
use super::attention::Attention;
use super::contrast::{Found, Row};
use super::expression::Expression;
use crate::failure::Result;
use crate::picture::charts::{Matrix, matrix};
use crate::sheet::Sheet;

/// Genes of each contrast in the heat maps.
const DRAWN: usize = 5;
/// Rows of a heat map at most.
const ROWS: usize = 60;

/// Writes `markers.parquet` and `.csv`, `top.csv`, `markers.json` and the heat maps.
pub(super) fn all(
    dir: &Path,
    markers: &Markers<'_>,
    attention: &Attention,
    expression: &Expression,
    tables: &[Found],
    seconds: f64,
) -> Result<()> {
    sheet(tables, usize::MAX).write(dir, "markers")?;
    sheet(tables, markers.args.top).write(dir, "top")?;
    let text = serde_json::to_string_pretty(&record(markers, attention, tables, seconds));
    let text = text.unwrap_or_default() + "\n";
    fsx::write_atomic(&dir.join("markers.json"), text.as_bytes())?;
    heat_map(
        dir,
        "attention_heatmap",
        "Mean attention rank",
        markers,
        tables,
        &|group, gene| attention.sum(group, gene) / attention.size(group).max(1.0),
        attention,
    )?;
    heat_map(
        dir,
        "expression_heatmap",
        "Mean expression",
        markers,
        tables,
        &|group, gene| expression.mean(&[group], gene),
        attention,
    )
}

fn sheet(tables: &[Found], top: usize) -> Sheet {
    let rows: Vec<(&Found, &Row)> = tables
        .iter()
        .flat_map(|t| t.rows.iter().take(top).map(move |r| (t, r)))
        .collect();
    let number = |of: fn(&Row) -> f64| rows.iter().map(|(_, r)| Some(of(r))).collect::<Vec<_>>();
    let count = |of: fn(&Row) -> usize| rows.iter().map(|(_, r)| of(r) as u64).collect::<Vec<_>>();
    let mut sheet = Sheet::default();
    sheet.texts(
        "contrast",
        rows.iter().map(|(t, _)| t.contrast.name.clone()).collect(),
    );
    sheet.texts("gene", rows.iter().map(|(_, r)| r.symbol.clone()).collect());
    sheet.counts("place", count(|r| r.place));
    sheet.numbers("score", number(|r| r.score));
    sheet.numbers("target_rank", number(|r| r.target_rank));
    sheet.numbers("background_rank", number(|r| r.background_rank));
    sheet.numbers("target_mean", number(|r| r.expression.target_mean));
    sheet.numbers("background_mean", number(|r| r.expression.background_mean));
    sheet.numbers("target_share", number(|r| r.expression.target_share));
    sheet.numbers(
        "background_share",
        number(|r| r.expression.background_share),
    );
    sheet.numbers("wilcoxon_p", number(|r| r.expression.p_value));
    sheet.numbers("wilcoxon_fdr", number(|r| r.expression.fdr));
    sheet.counts("wilcoxon_place", count(|r| r.wilcoxon_place));
    sheet.counts("on_list", count(|r| usize::from(r.known)));
    sheet
}

fn record(markers: &Markers<'_>, attention: &Attention, tables: &[Found], seconds: f64) -> Value {
    let top = markers.args.top;
    let contrasts: Vec<Value> = tables
        .iter()
        .map(|t| {
            let [by_attention, by_test] = t.known_among(top);
            json!({
                "contrast": t.contrast.name,
                "target_cells": t.target_cells,
                "background_cells": t.background_cells,
                "top": t.rows.iter().take(top).map(|r| r.symbol.as_str()).collect::<Vec<_>>(),
                "shared_with_wilcoxon": t.shared_with_wilcoxon(top),
                "list_by_attention": by_attention,
                "list_by_wilcoxon": by_test,
                "list_genes_ranked": t.rows.iter().filter(|r| r.known).count(),
            })
        })
        .collect();
    json!({
        "format_version": 1,
        "groups": markers.args.groups,
        "layer": markers.layer,
        "genes": attention.genes().len(),
        "cells": attention.cells(),
        "top": top,
        "seconds": seconds,
        "cells_per_second": attention.cells() as f64 / seconds.max(1e-9),
        "contrasts": contrasts,
    })
}

/// Top genes by group: each gene from its lowest to its highest group, so that genes can be compared.
fn heat_map(
    dir: &Path,
    stem: &str,
    what: &str,
    markers: &Markers<'_>,
    tables: &[Found],
    value: &dyn Fn(usize, usize) -> f64,
    attention: &Attention,
) -> Result<()> {
    let symbols = &markers.assembly.feed.corpus.genes().symbols;
    let mut genes: Vec<usize> = Vec::new();
    for row in tables.iter().flat_map(|t| t.rows.iter().take(DRAWN)) {
        let place = attention
            .genes()
            .iter()
            .position(|&g| symbols[g as usize] == row.symbol);
        if let Some(place) = place.filter(|p| !genes.contains(p)) {
            genes.push(place);
        }
    }
    genes.truncate(ROWS);
    let groups: Vec<usize> = (0..markers.names.len())
        .filter(|&g| attention.size(g) > 0.0)
        .collect();
    let mut shares = Vec::with_capacity(genes.len() * groups.len());
    for &gene in &genes {
        let row: Vec<f64> = groups.iter().map(|&g| value(g, gene)).collect();
        let low = row.iter().copied().fold(f64::INFINITY, f64::min);
        let high = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        shares.extend(row.iter().map(|v| (v - low) / (high - low).max(1e-12)));
    }
    let rows: Vec<String> = genes
        .iter()
        .map(|&g| symbols[attention.genes()[g] as usize].clone())
        .collect();
    let columns: Vec<String> = groups.iter().map(|&g| markers.names[g].clone()).collect();
    let title = format!("{what}, each gene from its lowest (white) to its highest group");
    matrix(&Matrix {
        title: &title,
        rows: &rows,
        columns: &columns,
        row_name: "gene",
        column_name: &markers.args.groups,
        shares: &shares,
        texts: &[],
        field: [30.0, 18.0],
    })
    .write(dir, stem)
}

/// What the user should know at once.
pub(super) fn summary(tables: &[Found], cells: u64, seconds: f64, top: usize) -> String {
    let mut lines = vec![format!(
        "{cells} cells in {seconds:.1} s ({:.1} cells/s)",
        cells as f64 / seconds.max(1e-9)
    )];
    for table in tables {
        let first: Vec<&str> = table
            .rows
            .iter()
            .take(8)
            .map(|r| r.symbol.as_str())
            .collect();
        lines.push(format!(
            "{}: {} ... ({} of the first {top} are among those of the Wilcoxon test)",
            table.contrast.name,
            first.join(", "),
            table.shared_with_wilcoxon(top)
        ));
    }
    lines.join("\n")
}

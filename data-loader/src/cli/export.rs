//! `scpeft-data export`.

use std::io::IsTerminal;
use std::path::PathBuf;

use scpeft_data::export::{self, ExportOptions, TableOption};
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  Predicted types, probabilities and embeddings beside the cells that were imported:
    scpeft-data export --input cells.h5ad --table predictions --output annotated.h5ad
  Embeddings of two models:
    scpeft-data export --input cells.h5ad --table frozen=emb-frozen --table lora=emb-lora --output both.h5ad
  Then, in Python:
    cells = scanpy.read_h5ad(\"annotated.h5ad\")
    scanpy.pp.neighbors(cells, use_rep=\"X_scpeft\")";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The .h5ad file that the cells came from; it stays as it is
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// A Parquet file with a column cell_id, or a folder of such files: what predict, embed, cluster and
    /// others write. Columns of labels and numbers become obs columns NAME_column, the embedding obsm
    /// X_NAME, other vectors X_NAME_column, probabilities X_NAME_probability, whose classes are in uns.
    /// NAME is `scpeft` unless given. May be repeated
    #[arg(long = "table", value_name = "[NAME=]PATH", required = true)]
    tables: Vec<String>,
    /// The copy to make
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let tables = args.tables.iter().map(|text| TableOption::parse(text));
    let options = ExportOptions {
        input: args.input.clone(),
        tables: tables.collect::<scpeft_data::Result<_>>()?,
        output: args.output.clone(),
        overwrite: args.overwrite,
    };
    let done = export::export(&options)?;
    for table in &done.tables {
        if table.elsewhere > 0 {
            tracing::warn!(
                "`{}`: {} of its cells are not in `{}` and are left out",
                table.path.display(),
                table.elsewhere,
                options.input.display()
            );
        }
    }
    if !std::io::stdout().is_terminal() {
        let tables: Vec<_> = done.tables.iter().map(|t| {
            json!({"table": t.path.display().to_string(), "cells": t.cells, "cells_elsewhere": t.elsewhere, "obs": t.obs, "obsm": t.obsm})
        }).collect();
        let output = options.output.display().to_string();
        println!(
            "{}",
            json!({"event": "exported", "output": output, "cells": done.cells, "tables": tables})
        );
        return Ok(());
    }
    for table in &done.tables {
        let added: Vec<String> = (table.obs.iter().map(|c| format!("obs `{c}`")))
            .chain(table.obsm.iter().map(|c| format!("obsm `{c}`")))
            .collect();
        println!(
            "{}: {} of {} cells: {}",
            table.path.display(),
            table.cells,
            done.cells,
            added.join(", ")
        );
    }
    Ok(())
}

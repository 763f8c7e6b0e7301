//! `scpeft-data inspect`.

use std::path::PathBuf;

use indexmap::IndexMap;
use scpeft_data::Corpus;
use scpeft_data::corpus::{ObsColumn, ObsKind};

/// Categories shown of each column in the text form.
const SHOWN: usize = 30;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The corpus folder
    #[arg(value_name = "DIR")]
    corpus: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

struct Counts {
    by_category: IndexMap<String, u64>,
    missing: u64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let corpus = Corpus::open(&args.corpus)?;
    let mut columns = Vec::new();
    for column in &corpus.manifest().obs {
        let counts = (column.kind == ObsKind::Category).then(|| count(&corpus, column));
        columns.push((column, counts.transpose()?));
    }
    if args.json {
        print_json(&corpus, &columns);
    } else {
        print_text(&corpus, &columns);
    }
    Ok(())
}

fn count(corpus: &Corpus, column: &ObsColumn) -> scpeft_data::Result<Counts> {
    let mut by_category: IndexMap<String, u64> =
        column.categories.iter().map(|c| (c.clone(), 0)).collect();
    let mut missing = 0;
    for code in corpus.obs_codes(&column.name)? {
        match usize::try_from(code)
            .ok()
            .and_then(|code| by_category.get_index_mut(code))
        {
            Some((_, n)) => *n += 1,
            None => missing += 1,
        }
    }
    Ok(Counts {
        by_category,
        missing,
    })
}

fn print_json(corpus: &Corpus, columns: &[(&ObsColumn, Option<Counts>)]) {
    let manifest = corpus.manifest();
    let obs: Vec<_> = columns
        .iter()
        .map(|(column, counts)| match counts {
            None => serde_json::json!({ "name": column.name, "kind": column.kind }),
            Some(counts) => serde_json::json!({
                "name": column.name, "kind": column.kind,
                "counts": counts.by_category, "missing": counts.missing,
            }),
        })
        .collect();
    let shown = serde_json::json!({
        "format_version": manifest.format_version,
        "fingerprint": corpus.fingerprint(),
        "cells": manifest.n_cells,
        "genes": manifest.genes.n,
        "genes_with_ensembl_id": corpus.genes().ensembl.iter().flatten().count(),
        "value_kind": manifest.value_kind,
        "label": manifest.label,
        "batch": manifest.batch,
        "obs": obs,
        "row_groups": corpus.row_groups().len(),
        "shards": manifest.shards,
        "provenance": manifest.provenance,
    });
    println!("{shown:#}");
}

fn print_text(corpus: &Corpus, columns: &[(&ObsColumn, Option<Counts>)]) {
    let manifest = corpus.manifest();
    let genes = corpus.genes();
    let with_id = genes.ensembl.iter().flatten().count();
    let first: Vec<&str> = genes.symbols.iter().take(4).map(String::as_str).collect();
    let bytes: u64 = manifest.shards.iter().map(|s| s.bytes).sum();
    println!("corpus       {}", corpus.path().display());
    println!("fingerprint  {}", corpus.fingerprint());
    println!("cells        {}", manifest.n_cells);
    println!(
        "genes        {} ({with_id} with Ensembl id; {}, ...)",
        manifest.genes.n,
        first.join(", ")
    );
    println!("values       {}", manifest.value_kind.name());
    println!(
        "shards       {} ({} row groups, {:.1} MB)",
        manifest.shards.len(),
        corpus.row_groups().len(),
        bytes as f64 / 1e6
    );
    for source in &manifest.provenance.sources {
        println!(
            "source       {} ({} bytes, blake3 {})",
            source.name,
            source.bytes,
            &source.blake3[..16.min(source.blake3.len())]
        );
    }
    print_choice(corpus);
    println!("obs columns");
    for (column, counts) in columns {
        let role = match &column.name {
            name if manifest.label.as_ref() == Some(name) => ", label",
            name if manifest.batch.as_ref() == Some(name) => ", batch",
            _ => "",
        };
        match counts {
            None => println!("  {} ({}{role})", column.name, column.kind.plural()),
            Some(counts) => {
                println!(
                    "  {} ({} categories{role})",
                    column.name,
                    counts.by_category.len()
                );
                print_counts(counts);
            }
        }
    }
}

/// How genes and cells were chosen on import, step by step.
fn print_choice(corpus: &Corpus) {
    const STEPS: [&str; 8] = [
        "genes_like",
        "vocab",
        "min_counts",
        "min_genes",
        "hvg",
        "keep_genes",
        "genes",
        "cells",
    ];
    let options = &corpus.manifest().provenance.options;
    let mut title = "chosen by";
    for step in STEPS {
        if let Some(value) = options.get(step) {
            println!("{title:<12} {step}: {value}");
            title = "";
        }
    }
}

fn print_counts(counts: &Counts) {
    for (name, n) in counts.by_category.iter().take(SHOWN) {
        println!("    {n:>9}  {name}");
    }
    if counts.by_category.len() > SHOWN {
        println!(
            "    ... and {} more categories",
            counts.by_category.len() - SHOWN
        );
    }
    if counts.missing > 0 {
        println!("    {:>9}  (missing)", counts.missing);
    }
}

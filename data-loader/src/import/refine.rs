//! Choosing genes and cells by what all cells hold: from a corpus of everything, which is temporary,
//! to the corpus that is asked for.
//!
//! The temporary corpus is read a few times, row group by row group: once for the gene totals, once for
//! the cells, once or twice for the variable genes, once for writing.

use std::collections::HashSet;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{take, take_record_batch};
use arrow::datatypes::{Float32Type, UInt16Type, UInt32Type};
use serde_json::json;

use super::filter::HvgOptions;
use super::{ImportOptions, ImportReport};
use crate::corpus::{CellBatch, CellValues, Corpus, CorpusWriter, ValueKind};
use crate::hvg::{Batches, CorpusCells, highly_variable};
use crate::order::{SelectedGroup, Selection};
use crate::preprocess::{filter_genes, gene_totals};
use crate::{Error, Result};

/// Cells rewritten at a time.
const WRITE_CELLS: usize = 1024;
/// Columns of a shard that are no obs columns.
const FIXED: [&str; 3] = ["cell_id", "genes", "values"];

/// Writes the chosen cells and genes of the corpus in `staged` to the output.
pub(super) fn refine(options: &ImportOptions, staged: &Path) -> Result<ImportReport> {
    let corpus = Corpus::open(staged)?;
    let chosen = Chosen::find(&corpus, options)?;
    let mut provenance = corpus.manifest().provenance.clone();
    let entries = [("genes", chosen.genes_found), ("cells", chosen.cells_found)];
    for (key, found) in entries {
        let entry = provenance.options.entry(key.to_owned());
        let entry = entry.or_insert_with(|| json!({}));
        for (name, count) in found {
            entry[name] = json!(count);
        }
    }
    let mut rewriting = Rewriting::begin(&corpus, options, &chosen.genes)?;
    for group in chosen.cells.groups() {
        rewriting.write(group)?;
    }
    let nonzeros = rewriting.nonzeros;
    let manifest =
        rewriting
            .writer
            .finish(options.label.clone(), options.batch.clone(), provenance)?;
    Ok(ImportReport {
        cells: manifest.n_cells,
        genes: manifest.genes.n,
        nonzeros,
        bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
        value_kind: manifest.value_kind,
    })
}

/// What is kept.
struct Chosen {
    /// Genes of the temporary corpus, ascending.
    genes: Vec<u32>,
    cells: Selection,
    /// How many genes and cells each step left, for the manifest.
    genes_found: Vec<(&'static str, u64)>,
    cells_found: Vec<(&'static str, u64)>,
}

impl Chosen {
    fn find(corpus: &Corpus, options: &ImportOptions) -> Result<Self> {
        let filter = &options.filter;
        let mut chosen = Self {
            genes: (0..corpus.genes().len() as u32).collect(),
            cells: Selection::all(corpus),
            genes_found: Vec::new(),
            cells_found: vec![("source", corpus.n_cells())],
        };
        if filter.vocab.is_none() && filter.genes_like.is_none() {
            chosen
                .genes_found
                .push(("source", chosen.genes.len() as u64));
        }
        if let Some(least) = filter.min_counts {
            let totals = gene_totals(corpus, &chosen.cells)?;
            chosen.genes = filter_genes(&totals, least as f64);
            if chosen.genes.is_empty() {
                let problem = format!("no gene has a sum of {least} over all cells");
                return Err(nothing_left(
                    options,
                    problem,
                    "choose a smaller --min-counts",
                ));
            }
            chosen
                .genes_found
                .push(("min_counts", chosen.genes.len() as u64));
        }
        if let Some(least) = filter.min_genes {
            chosen.cells = rich_cells(corpus, &chosen.genes, least)?;
            if chosen.cells.cells() == 0 {
                let problem = format!("no cell expresses {least} of the genes left");
                return Err(nothing_left(
                    options,
                    problem,
                    "choose a smaller --min-genes",
                ));
            }
            chosen.cells_found.push(("min_genes", chosen.cells.cells()));
        }
        if let Some(hvg) = &filter.hvg {
            chosen.keep_variable(corpus, hvg, filter.keep_genes.as_deref())?;
        }
        chosen.genes_found.push(("kept", chosen.genes.len() as u64));
        chosen.cells_found.push(("kept", chosen.cells.cells()));
        Ok(chosen)
    }

    fn keep_variable(
        &mut self,
        corpus: &Corpus,
        hvg: &HvgOptions,
        named: Option<&Path>,
    ) -> Result<()> {
        let batches = match &hvg.batch {
            Some(column) => batches(corpus, &self.cells, column)?,
            None => Batches::whole(),
        };
        let cells = CorpusCells::new(corpus, &self.cells, &self.genes);
        let table = highly_variable(&cells, &batches, hvg.flavor, hvg.n_top)?;
        let mut kept = table.selected;
        let variable = kept.iter().filter(|&&kept| kept).count() as u64;
        self.genes_found.push(("hvg", variable));
        if let Some(path) = named {
            let found = self.keep_named(corpus, path, &mut kept)?;
            self.genes_found.push(("named", found));
        }
        let mut kept = kept.into_iter();
        self.genes.retain(|_| kept.next() == Some(true));
        Ok(())
    }

    /// Also keeps the genes that a file names, by symbol or Ensembl id. Returns how many it names.
    fn keep_named(&self, corpus: &Corpus, path: &Path, kept: &mut [bool]) -> Result<u64> {
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        let names: HashSet<&str> = lines.collect();
        let table = corpus.genes();
        let mut found = 0;
        for (place, &gene) in self.genes.iter().enumerate() {
            let id = table.ensembl[gene as usize].as_deref();
            if names.contains(table.symbols[gene as usize].as_str())
                || id.is_some_and(|id| names.contains(id))
            {
                kept[place] = true;
                found += 1;
            }
        }
        if found == 0 {
            return Err(Error::Import {
                path: path.to_owned(),
                place: String::new(),
                problem: format!(
                    "none of its {} names is one of the {} genes left",
                    names.len(),
                    self.genes.len()
                ),
                help: "write one gene symbol or Ensembl id per line".to_owned(),
            });
        }
        tracing::info!(
            names = names.len(),
            genes = found,
            "genes of --keep-genes that are there"
        );
        Ok(found)
    }
}

fn nothing_left(options: &ImportOptions, problem: String, help: &str) -> Error {
    Error::Import {
        path: options.first_input().to_owned(),
        place: String::new(),
        problem,
        help: help.to_owned(),
    }
}

/// The cells that express at least `least` of some genes.
fn rich_cells(corpus: &Corpus, genes: &[u32], least: u32) -> Result<Selection> {
    let mut counted = vec![false; corpus.genes().len()];
    for &gene in genes {
        counted[gene as usize] = true;
    }
    let mut groups = Vec::new();
    for (row_group, group) in corpus.row_groups().iter().enumerate() {
        let block = corpus.read_block(row_group, None)?;
        let rich = |row: &u32| {
            let (genes, _) = block.cell(*row as usize);
            let expressed = genes.iter().filter(|&&g| counted[g as usize]).count();
            expressed >= least as usize
        };
        groups.push(SelectedGroup {
            row_group,
            first_cell: group.first_cell,
            rows: group.rows,
            chosen: Some((0..group.rows).filter(rich).collect()),
        });
    }
    Ok(Selection::from_groups(groups))
}

/// The batch of each selected cell.
fn batches(corpus: &Corpus, cells: &Selection, column: &str) -> Result<Batches> {
    let codes = corpus.obs_codes(column)?;
    let mut of_cells = Vec::with_capacity(cells.cells() as usize);
    let mut missing = Vec::new();
    for cell in cells.cell_indices() {
        match u32::try_from(codes[cell as usize]) {
            Ok(code) => of_cells.push(code),
            Err(_) => missing.push(cell),
        }
    }
    if let Some(&first) = missing.first() {
        let id = corpus.cell_ids(&[first])?.pop().unwrap_or_default();
        return Err(Error::hvg(
            format!(
                "{} cells have no value of obs column `{column}`, the first is `{id}`",
                missing.len()
            ),
            "fill the column or drop these cells in the source file, or choose another --hvg-batch",
        ));
    }
    Ok(Batches::new(&of_cells, corpus.categories(column)?))
}

/// From one corpus to another.
struct Rewriting<'a> {
    corpus: &'a Corpus,
    columns: Vec<&'a str>,
    /// The new index of each gene.
    places: Vec<Option<u32>>,
    writer: CorpusWriter,
    nonzeros: u64,
}

impl<'a> Rewriting<'a> {
    fn begin(corpus: &'a Corpus, options: &ImportOptions, genes: &[u32]) -> Result<Self> {
        let mut places = vec![None; corpus.genes().len()];
        for (place, &gene) in genes.iter().enumerate() {
            places[gene as usize] = Some(place as u32);
        }
        let table = corpus.genes().subset(genes.iter().map(|&g| g as usize));
        let obs = corpus.obs_types()?;
        let writer = CorpusWriter::create(
            &options.output,
            options.writer,
            corpus.value_kind(),
            &table,
            obs,
        )?;
        let obs = corpus.manifest().obs.iter().map(|c| c.name.as_str());
        Ok(Self {
            columns: FIXED.into_iter().chain(obs).collect(),
            corpus,
            places,
            writer,
            nonzeros: 0,
        })
    }

    fn write(&mut self, group: &SelectedGroup) -> Result<()> {
        let mut batches = Vec::new();
        self.corpus
            .scan(group.row_group, &self.columns, WRITE_CELLS, |batch| {
                batches.push(batch.clone());
                Ok(())
            })?;
        let mut first = 0;
        for batch in batches {
            let last = first + batch.num_rows() as u32;
            let rows: UInt32Array = match &group.chosen {
                None => (0..last - first).collect(),
                Some(rows) => {
                    let from = rows.partition_point(|&r| r < first);
                    let to = rows.partition_point(|&r| r < last);
                    rows[from..to].iter().map(|r| r - first).collect()
                }
            };
            first = last;
            if rows.is_empty() {
                continue;
            }
            let cells = take_record_batch(&batch, &rows)
                .map_err(|e| e.to_string())
                .and_then(|batch| self.cells(&batch))
                .map_err(|problem| self.corpus.shard_error(group.row_group, problem))?;
            self.nonzeros += cells.genes.len() as u64;
            self.writer.write(&cells)?;
        }
        Ok(())
    }

    /// The cells of a batch with the chosen genes alone.
    fn cells(&self, batch: &RecordBatch) -> Result<CellBatch, String> {
        let ids = batch.column(0).as_string_opt::<i32>();
        let ids = ids.ok_or("column `cell_id` is not a string")?;
        let lists = |column: usize| {
            let list = batch.column(column).as_list_opt::<i32>();
            list.ok_or_else(|| format!("column `{}` is not a list", FIXED[column]))
        };
        let (genes, values) = (lists(1)?, lists(2)?);
        if genes.value_offsets() != values.value_offsets() {
            return Err("`genes` and `values` of a cell differ in length".into());
        }
        let all = gene_indices(genes.values())?;
        let (mut offsets, mut kept, mut places) = (vec![0], Vec::new(), Vec::new());
        for ends in genes.value_offsets().windows(2) {
            for place in ends[0]..ends[1] {
                if let Some(gene) = self.places[all[place as usize] as usize] {
                    kept.push(gene);
                    places.push(place as u32);
                }
            }
            offsets.push(kept.len() as i32);
        }
        let values = take(values.values(), &UInt32Array::from(places), None);
        let values = values.map_err(|e| e.to_string())?;
        Ok(CellBatch {
            cell_ids: ids
                .iter()
                .map(|id| id.unwrap_or_default().to_owned())
                .collect(),
            offsets,
            genes: kept,
            values: cell_values(&values, self.corpus.value_kind())?,
            obs: batch.columns()[FIXED.len()..].to_vec(),
        })
    }
}

fn gene_indices(array: &ArrayRef) -> Result<Vec<u32>, String> {
    if let Some(narrow) = array.as_primitive_opt::<UInt16Type>() {
        return Ok(narrow.values().iter().map(|&g| u32::from(g)).collect());
    }
    let wide = array.as_primitive_opt::<UInt32Type>();
    let wide = wide.ok_or_else(|| format!("column `genes` lists {}", array.data_type()))?;
    Ok(wide.values().to_vec())
}

fn cell_values(array: &ArrayRef, kind: ValueKind) -> Result<CellValues, String> {
    let counts = array.as_primitive_opt::<UInt32Type>();
    let lognorm = array.as_primitive_opt::<Float32Type>();
    match (kind, counts, lognorm) {
        (ValueKind::Counts, Some(counts), _) => Ok(CellValues::Counts(counts.values().to_vec())),
        (ValueKind::Lognorm, _, Some(values)) => Ok(CellValues::Lognorm(values.values().to_vec())),
        _ => Err(format!("column `values` lists {}", array.data_type())),
    }
}

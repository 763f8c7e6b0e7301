//! The gene table of foreign files.

use std::collections::HashSet;
use std::path::Path;

use super::IndexOptions;
use super::table::{Table, Values};
use crate::corpus::SourceFile;
use crate::{Error, GeneTable, Result};

const ID_COLUMNS: [&str; 1] = ["token_id"];
const SYMBOL_COLUMNS: [&str; 5] = [
    "gene_symbol",
    "symbol",
    "gene_name",
    "feature_name",
    "gene_symbols",
];
const ENSEMBL_COLUMNS: [&str; 6] = [
    "ensembl_id",
    "gene_id",
    "gene_ids",
    "feature_id",
    "ensembl",
    "ensembl_ids",
];

/// The genes in the order of their ids.
#[derive(Debug)]
pub(super) struct Genes {
    pub(super) table: GeneTable,
    /// The id of each gene; `None` when ids are row numbers.
    pub(super) ids: Option<Vec<i64>>,
    pub(super) source: SourceFile,
}

impl Genes {
    /// Whether the table has this id.
    pub(super) fn has(&self, id: i64) -> bool {
        match &self.ids {
            Some(ids) => ids.binary_search(&id).is_ok(),
            None => usize::try_from(id).is_ok_and(|id| id < self.table.len()),
        }
    }

    /// The largest id.
    pub(super) fn last(&self) -> i64 {
        match &self.ids {
            Some(ids) => ids.last().copied().unwrap_or(-1),
            None => self.table.len() as i64 - 1,
        }
    }
}

pub(super) fn read(source: &Path, options: &IndexOptions) -> Result<Genes> {
    let table = match &options.gene_table {
        Some(path) => Table::read(path, &options.store)?
            .ok_or_else(|| Error::corpus(path, "gene table", "does not exist"))?,
        None => super::side::beside(source, "gene_metadata", &options.store)?.ok_or_else(|| {
            Error::options(
                format!(
                    "there is no metadata/gene_metadata.parquet beside `{}`, and no --gene-table",
                    source.display()
                ),
                "pass the Parquet file that says which gene each id stands for with --gene-table",
            )
        })?,
    };
    let ids = match &options.gene_id_column {
        Some(name) => Some((name.as_str(), table.column(name)?)),
        None => table
            .find(&ID_COLUMNS)
            .map(|(n, values)| (n.as_str(), values)),
    };
    let ids = ids
        .map(|(name, values)| whole_numbers(&table.path, name, values))
        .transpose()?;
    let ensembl: Option<Vec<Option<String>>> = table
        .find(&ENSEMBL_COLUMNS)
        .map(|(_, values)| values.texts().into_iter().map(ensembl_id).collect());
    let symbols = table
        .find(&SYMBOL_COLUMNS)
        .map(|(_, values)| values.texts());
    let n = symbols.as_ref().or(ensembl.as_ref()).map(Vec::len);
    let Some(n) = n.filter(|&n| n > 0) else {
        let present: Vec<String> = table.columns.iter().map(|(name, _)| name.clone()).collect();
        return Err(super::no_column(
            &table.path,
            "gene table",
            "gene_symbol",
            &present,
        ));
    };
    let ensembl = ensembl.unwrap_or_else(|| vec![None; n]);
    let symbols = symbols.unwrap_or_else(|| vec![None; n]);
    let mut order: Vec<usize> = (0..n).collect();
    if let Some(ids) = &ids {
        order.sort_by_key(|&row| ids[row]);
    }
    let mut genes = Genes {
        table: GeneTable::default(),
        ids: ids.map(|ids| order.iter().map(|&row| ids[row]).collect()),
        source: table.source.clone(),
    };
    for row in order {
        let symbol = symbols[row].clone().filter(|symbol| !symbol.is_empty());
        let name = symbol.or_else(|| ensembl[row].clone()).ok_or_else(|| {
            let place = format!("gene table, row {row}");
            Error::corpus(&table.path, place, "has neither a symbol nor an Ensembl id")
        })?;
        genes.table.symbols.push(name);
        genes.table.ensembl.push(ensembl[row].clone());
    }
    Ok(genes)
}

/// Ids: whole numbers, none twice.
fn whole_numbers(path: &Path, name: &str, values: &Values) -> Result<Vec<i64>> {
    let place = format!("gene table, column `{name}`");
    let Values::Number(numbers) = values else {
        return Err(Error::corpus(
            path,
            place,
            "holds text, expected whole numbers",
        ));
    };
    let mut seen = HashSet::new();
    let ids = numbers.iter().enumerate().map(|(row, number)| {
        let id = number.filter(|n| n.fract() == 0.0).map(|n| n as i64);
        match id {
            Some(id) if seen.insert(id) => Ok(id),
            Some(id) => Err(format!("row {row} has the id {id} for the second time")),
            None => Err(format!("row {row} has no whole number")),
        }
    });
    ids.collect::<Result<_, _>>()
        .map_err(|problem| Error::corpus(path, place, problem))
}

/// An Ensembl id without its version; other ids as they are.
fn ensembl_id(text: Option<String>) -> Option<String> {
    let text = text.filter(|text| !text.is_empty())?;
    match text.split_once('.') {
        Some((id, _)) if id.starts_with("ENS") => Some(id.to_owned()),
        _ => Some(text),
    }
}

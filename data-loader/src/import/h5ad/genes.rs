//! Finding symbols and Ensembl ids in `var`.

use super::frame::Frame;
use crate::Result;
use crate::genes::GeneTable;

const SYMBOL_COLUMNS: [&str; 6] = [
    "gene_symbol",
    "gene_symbols",
    "gene_name",
    "gene_names",
    "feature_name",
    "symbol",
];
const ENSEMBL_COLUMNS: [&str; 6] = [
    "gene_ids",
    "gene_id",
    "ensembl_id",
    "feature_id",
    "ensembl",
    "ensembl_ids",
];

/// The gene table of a file. The names of `var` are symbols or Ensembl ids; the other of the two may
/// be in a column.
pub(in crate::import) fn gene_table(var: &Frame) -> Result<GeneTable> {
    let names = var.names(0..var.rows())?;
    if mostly_ensembl(names.iter().map(String::as_str)) {
        let ensembl = names.iter().map(|n| ensembl_id(n)).collect();
        let symbols = match column(var, &SYMBOL_COLUMNS)? {
            Some(symbols) => symbols
                .into_iter()
                .zip(&names)
                .map(|(symbol, name)| {
                    symbol
                        .filter(|s| !s.is_empty())
                        .unwrap_or_else(|| name.clone())
                })
                .collect(),
            None => names,
        };
        return Ok(GeneTable { symbols, ensembl });
    }
    let ids = column(var, &ENSEMBL_COLUMNS)?
        .filter(|ids| mostly_ensembl(ids.iter().flatten().map(String::as_str)));
    let ensembl = match ids {
        Some(ids) => ids
            .iter()
            .map(|id| id.as_deref().and_then(ensembl_id))
            .collect(),
        None => vec![None; names.len()],
    };
    Ok(GeneTable {
        symbols: names,
        ensembl,
    })
}

/// The first of these columns that is there, whatever the case of its letters.
fn column(var: &Frame, names: &[&str]) -> Result<Option<Vec<Option<String>>>> {
    let found = names
        .iter()
        .find_map(|name| var.columns().iter().find(|c| c.eq_ignore_ascii_case(name)));
    match found {
        None => Ok(None),
        Some(name) => Ok(Some(var.texts(&var.column(name)?, 0..var.rows())?)),
    }
}

fn mostly_ensembl<'a>(names: impl Iterator<Item = &'a str>) -> bool {
    let (mut all, mut hits) = (0, 0);
    for name in names {
        all += 1;
        hits += usize::from(ensembl_id(name).is_some());
    }
    hits * 2 > all
}

/// An Ensembl gene id without its version: `ENSG00000141510.18`, `ENSMUSG00000059552`.
pub(in crate::import) fn ensembl_id(name: &str) -> Option<String> {
    let rest = name.strip_prefix("ENS")?;
    let digits = rest.trim_start_matches(|c: char| c.is_ascii_uppercase());
    let species = &rest[..rest.len() - digits.len()];
    let number = digits.split(['.', '_']).next().unwrap_or_default();
    let valid =
        species.ends_with('G') && number.len() == 11 && number.bytes().all(|b| b.is_ascii_digit());
    let id = name.find('.').map_or(name, |dot| &name[..dot]);
    valid.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ensembl_ids_lose_their_version() {
        assert_eq!(
            ensembl_id("ENSG00000141510.18").as_deref(),
            Some("ENSG00000141510")
        );
        assert_eq!(
            ensembl_id("ENSMUSG00000059552").as_deref(),
            Some("ENSMUSG00000059552")
        );
        assert_eq!(
            ensembl_id("ENSG00000002586_PAR_Y").as_deref(),
            Some("ENSG00000002586_PAR_Y")
        );
        for other in ["TP53", "ENSA", "ENST00000269305", "ENSG123", ""] {
            assert_eq!(ensembl_id(other), None, "{other}");
        }
    }
}

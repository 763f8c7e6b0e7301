//! Making one gene table, and unique cell ids, out of several sources.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::orthologues::Renamed;
use super::source::Source;
use super::texts;
use crate::genes::GeneTable;
use crate::{Error, Result};

/// Cells whose ids are read at a time.
const SCAN_CELLS: usize = 65_536;

/// Which genes of several sources are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Join {
    /// Genes of any source; a source without the gene counts as not expressing it.
    #[default]
    Union,
    /// Genes that every source has.
    Intersection,
}

/// By which name the genes of several sources are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum JoinKey {
    /// The Ensembl id when every gene of every source has one, otherwise the symbol.
    #[default]
    Auto,
    /// The symbol.
    Symbol,
    /// The Ensembl id.
    Ensembl,
}

impl Join {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Union => "union",
            Self::Intersection => "intersection",
        }
    }
}

/// The genes of all sources.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) table: GeneTable,
    /// For each source the joint gene of each of its genes; `None` when they are the same.
    pub(super) places: Vec<Option<Vec<Option<u32>>>>,
    /// What the manifest says about it; nothing for one source.
    pub(super) provenance: IndexMap<String, Value>,
}

impl Joined {
    /// Adds a further choice of genes to the places of each source.
    pub(super) fn then(&mut self, later: Option<&[Option<u32>]>) {
        let Some(later) = later else { return };
        for places in &mut self.places {
            *places = Some(match places.take() {
                None => later.to_vec(),
                Some(own) => own
                    .iter()
                    .map(|p| p.and_then(|p| later[p as usize]))
                    .collect(),
            });
        }
    }
}

impl Joined {
    /// Puts a renaming of the genes of each source before the places.
    pub(super) fn after(&mut self, renamed: &[Renamed]) {
        for (places, renamed) in self.places.iter_mut().zip(renamed) {
            let own = renamed.places.iter().copied();
            *places = Some(match places.take() {
                None => own.collect(),
                Some(later) => own.map(|p| p.and_then(|p| later[p as usize])).collect(),
            });
        }
        if !renamed.is_empty() {
            let entries: Vec<_> = renamed.iter().map(|r| r.provenance.clone()).collect();
            self.provenance
                .insert("orthologues".to_owned(), json!(entries));
        }
    }
}

/// Joins the gene tables.
pub(super) fn genes(tables: &[(&str, &GeneTable)], join: Join, key: JoinKey) -> Result<Joined> {
    if let [(_, only)] = tables {
        return Ok(Joined {
            table: (*only).clone(),
            places: vec![None],
            provenance: IndexMap::new(),
        });
    }
    let by_id = by_ensembl(tables, key)?;
    let mut table = GeneTable::default();
    let mut sources_with: Vec<usize> = Vec::new();
    let mut place_of: HashMap<(String, u32), u32> = HashMap::new();
    let mut places: Vec<Vec<u32>> = Vec::new();
    for (_, genes) in tables {
        // The second gene of a name goes to the second gene of this name in other sources.
        let mut times: HashMap<&str, u32> = HashMap::new();
        let mut own = Vec::with_capacity(genes.len());
        for gene in 0..genes.len() {
            let id = genes.ensembl[gene].as_deref();
            let name = id.filter(|_| by_id).unwrap_or(&genes.symbols[gene]);
            let nth = times.entry(name).or_default();
            let next = table.len() as u32;
            let place = *place_of.entry((name.to_owned(), *nth)).or_insert(next);
            *nth += 1;
            if place == next {
                table.symbols.push(genes.symbols[gene].clone());
                table.ensembl.push(id.map(str::to_owned));
                sources_with.push(0);
            } else if table.ensembl[place as usize].is_none() {
                table.ensembl[place as usize] = id.map(str::to_owned);
            }
            sources_with[place as usize] += 1;
            own.push(place);
        }
        places.push(own);
    }
    let kept = match join {
        Join::Union => None,
        Join::Intersection => {
            let mut next = 0;
            let kept = |&n: &usize| {
                (n == tables.len()).then(|| {
                    next += 1;
                    next - 1
                })
            };
            Some(sources_with.iter().map(kept).collect::<Vec<Option<u32>>>())
        }
    };
    let shared = sources_with.iter().filter(|&&n| n == tables.len()).count();
    let all = table.len();
    if shared == 0 {
        return Err(nothing_shared(tables, by_id));
    }
    if let Some(kept) = &kept {
        table = table.subset((0..all).filter(|&gene| kept[gene].is_some()));
    }
    let mut joined = Joined {
        table,
        places: places
            .into_iter()
            .map(|own| Some(own.into_iter().map(Some).collect()))
            .collect(),
        provenance: IndexMap::new(),
    };
    joined.then(kept.as_deref());
    let by = if by_id { "ensembl" } else { "symbol" };
    tracing::info!(
        join = join.name(),
        by,
        all,
        shared,
        "genes of {} sources",
        tables.len()
    );
    let entry = json!({ "kind": join.name(), "key": by, "union": all, "intersection": shared });
    joined.provenance.insert("join".to_owned(), entry);
    Ok(joined)
}

fn by_ensembl(tables: &[(&str, &GeneTable)], key: JoinKey) -> Result<bool> {
    let without = |table: &GeneTable| table.ensembl.iter().filter(|id| id.is_none()).count();
    let lacking = tables.iter().find(|(_, table)| without(table) > 0);
    match (key, lacking) {
        (JoinKey::Symbol, _) => Ok(false),
        (_, None) => Ok(true),
        (JoinKey::Auto, Some(_)) => {
            let any = tables.iter().any(|(_, t)| without(t) < t.len());
            if any {
                tracing::warn!("not every gene has an Ensembl id: genes are joined by symbol");
            }
            Ok(false)
        }
        (JoinKey::Ensembl, Some((name, table))) => Err(Error::options(
            format!(
                "--gene-key ensembl: {} of the {} genes of `{name}` have no Ensembl id",
                without(table),
                table.len()
            ),
            "join by --gene-key symbol",
        )),
    }
}

fn nothing_shared(tables: &[(&str, &GeneTable)], by_id: bool) -> Error {
    let some = |table: &GeneTable| {
        let names: Vec<String> = (0..table.len().min(3))
            .map(|gene| match &table.ensembl[gene] {
                Some(id) if by_id => id.clone(),
                _ => table.symbols[gene].clone(),
            })
            .collect();
        crate::error::listed(&names)
    };
    let each: Vec<String> = tables
        .iter()
        .map(|(name, t)| format!("`{name}`: {}", some(t)))
        .collect();
    Error::Options {
        problem: format!(
            "no gene is in all {} inputs ({})",
            tables.len(),
            each.join("; ")
        ),
        help: "give inputs of one species; choose the name that they share with --gene-key"
            .to_owned(),
    }
}

/// Gives each source a short name of its own: the file's, with the folder's where files are named alike.
pub(super) fn name_sources(sources: &mut [Source]) {
    let stem = |source: &Source| {
        let name = source
            .path
            .file_name()
            .or(source.path.parent().and_then(|p| p.file_name()));
        let name = name.unwrap_or_default().to_string_lossy().into_owned();
        let known = [".h5ad", ".h5", ".hdf5"];
        let cut = known.iter().find_map(|end| name.strip_suffix(end));
        cut.map_or_else(|| name.clone(), str::to_owned)
    };
    let names: Vec<String> = sources.iter().map(stem).collect();
    for (source, name) in sources.iter_mut().zip(&names) {
        let alike = names.iter().filter(|n| *n == name).count() > 1;
        let folder = source.path.parent().and_then(|p| p.file_name());
        source.name = match folder.filter(|_| alike) {
            Some(folder) => format!("{}-{name}", folder.to_string_lossy()),
            None => name.clone(),
        };
    }
    for at in 1..sources.len() {
        let base = sources[at].name.clone();
        let mut number = 2;
        while sources[..at].iter().any(|s| s.name == sources[at].name) {
            sources[at].name = format!("{base}-{number}");
            number += 1;
        }
    }
}

/// Whether a cell id occurs in more than one source. Ids are compared by hashes of 64 bits: a chance hit
/// makes ids longer, no more.
pub(super) fn ids_clash(sources: &[Source]) -> Result<bool> {
    if sources.len() < 2 {
        return Ok(false);
    }
    let mut seen: Vec<u64> = Vec::new();
    for source in sources {
        let mut own = Vec::with_capacity(source.cells);
        for first in (0..source.cells).step_by(SCAN_CELLS) {
            let last = (first + SCAN_CELLS).min(source.cells);
            own.extend(
                source
                    .cell_names(first..last)?
                    .iter()
                    .map(|n| texts::hash(n)),
            );
        }
        if own.iter().any(|id| seen.binary_search(id).is_ok()) {
            return Ok(true);
        }
        seen.extend(own);
        seen.sort_unstable();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(genes: &[(&str, &str)]) -> GeneTable {
        GeneTable {
            symbols: genes.iter().map(|(s, _)| (*s).to_owned()).collect(),
            ensembl: genes
                .iter()
                .map(|(_, id)| Some((*id).to_owned()).filter(|id| !id.is_empty()))
                .collect(),
        }
    }

    #[test]
    fn genes_meet_by_id_when_all_have_one() {
        let a = table(&[("A", "1"), ("B", "2"), ("C", "3")]);
        let b = table(&[("c", "3"), ("D", "4"), ("a", "1")]);
        let tables = [("a", &a), ("b", &b)];
        let union = genes(&tables, Join::Union, JoinKey::Auto).unwrap();
        assert_eq!(union.table.symbols, ["A", "B", "C", "D"]);
        assert_eq!(union.places[1], Some(vec![Some(2), Some(3), Some(0)]));
        let both = genes(&tables, Join::Intersection, JoinKey::Auto).unwrap();
        assert_eq!(both.table.symbols, ["A", "C"]);
        assert_eq!(both.places[0], Some(vec![Some(0), None, Some(1)]));
        assert_eq!(both.places[1], Some(vec![Some(1), None, Some(0)]));
        assert!(genes(&tables, Join::Union, JoinKey::Symbol).is_err());
    }

    #[test]
    fn genes_meet_by_symbol_otherwise_and_repeated_ones_in_order() {
        let a = table(&[("A", ""), ("B", ""), ("A", "")]);
        let b = table(&[("A", "9"), ("A", "8"), ("A", "7"), ("C", "6")]);
        let tables = [("a", &a), ("b", &b)];
        let union = genes(&tables, Join::Union, JoinKey::Auto).unwrap();
        assert_eq!(union.table.symbols, ["A", "B", "A", "A", "C"]);
        assert_eq!(union.table.ensembl[2].as_deref(), Some("8"));
        assert_eq!(
            union.places[1],
            Some(vec![Some(0), Some(2), Some(3), Some(4)])
        );
        assert!(genes(&tables, Join::Union, JoinKey::Ensembl).is_err());
    }
}

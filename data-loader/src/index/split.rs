//! Dealing whole groups of cells out to parts.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::columns::scan;
use super::shards::in_parallel;
use crate::corpus::{Lookup, ObsColumn, ObsKind};
use crate::import::{SPLIT_COLUMN, SplitOptions};
use crate::rng::{Purpose, Rng};
use crate::storage::{Footer, Listed, Storage};
use crate::{Error, Result};

/// The column `split`: the part of each group of the column `by`.
pub(super) fn column(
    storage: &Storage,
    files: &[Listed],
    parts: &SplitOptions,
    by: &str,
    obs: &[ObsColumn],
) -> Result<ObsColumn> {
    let present = || obs.iter().map(|c| c.name.clone()).collect();
    let group_by = obs
        .iter()
        .find(|c| c.name == by)
        .ok_or_else(|| Error::missing_column("--split-by: the index", by, present()))?;
    if group_by.kind != ObsKind::Category {
        return Err(Error::NotCategorical {
            column: by.to_owned(),
            kind: group_by.kind.plural(),
            present: present(),
        });
    }
    if obs.iter().any(|column| column.name == SPLIT_COLUMN) {
        return Err(Error::options(
            format!("the files have an obs column `{SPLIT_COLUMN}`, but --split makes one"),
            format!(
                "rename theirs, such as --obs their_split={SPLIT_COLUMN},..., or leave --split out"
            ),
        ));
    }
    let lookup = group_by.lookup.as_ref();
    let in_files = lookup.map_or_else(
        || group_by.source.as_deref().unwrap_or(by),
        |lookup| lookup.column.as_str(),
    );
    let counts = count(storage, files, in_files)?;
    // The group of each value in the files: itself, or what it stands for.
    let group_of = |value: &str| match lookup {
        None => Some(value.to_owned()),
        Some(lookup) => lookup
            .values
            .get(value)
            .and_then(Value::as_str)
            .map(str::to_owned),
    };
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    for (value, cells) in &counts {
        if let Some(group) = group_of(value) {
            *sizes.entry(group).or_default() += cells;
        }
    }
    let part_of = deal(parts, by, &sizes)?;
    let values: IndexMap<String, Value> = counts
        .keys()
        .filter_map(|value| Some((value.clone(), json!(part_of.get(&group_of(value)?)?))))
        .collect();
    let names = parts.parts.iter().map(|(name, _)| name.clone()).collect();
    let mut column = ObsColumn::new(SPLIT_COLUMN, ObsKind::Category, names);
    column.lookup = Some(Lookup {
        column: in_files.to_owned(),
        values,
    });
    Ok(column)
}

/// How many cells have each value.
fn count(storage: &Storage, files: &[Listed], source: &str) -> Result<BTreeMap<String, u64>> {
    let counts = in_parallel(files.len(), |number| {
        let file = &files[number];
        let footer = Footer::read(storage, &file.name, file.bytes)?;
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        scan(
            storage,
            file,
            &footer.metadata,
            source,
            &mut |value| match counts.get_mut(value) {
                Some(cells) => *cells += 1,
                None => {
                    counts.insert(value.to_owned(), 1);
                }
            },
        )?;
        Ok(counts)
    })?;
    let mut all = BTreeMap::new();
    for (value, cells) in counts.into_iter().flatten() {
        *all.entry(value).or_default() += cells;
    }
    Ok(all)
}

/// Gives each group, in an order drawn from the seed, to the part that lacks most cells. Every part with a
/// share gets a group.
fn deal(
    split: &SplitOptions,
    by: &str,
    sizes: &BTreeMap<String, u64>,
) -> Result<BTreeMap<String, String>> {
    let parts: Vec<&(String, f64)> = split
        .parts
        .iter()
        .filter(|(_, share)| *share > 0.0)
        .collect();
    if sizes.len() < parts.len() {
        return Err(Error::options(
            format!(
                "--split-by {by}: {} groups cannot fill {} parts",
                sizes.len(),
                parts.len()
            ),
            "choose a column with more groups, or fewer parts",
        ));
    }
    let total: u64 = sizes.values().sum();
    let mut lacking: Vec<f64> = parts
        .iter()
        .map(|(_, share)| share * total as f64)
        .collect();
    let mut filled = vec![false; parts.len()];
    let mut groups: Vec<(&String, &u64)> = sizes.iter().collect();
    Rng::new(split.seed, Purpose::Split, 0, 1).shuffle(&mut groups);
    let mut part_of = BTreeMap::new();
    for (place, &(group, &cells)) in groups.iter().enumerate() {
        let empty = filled.iter().filter(|filled| !**filled).count();
        let only_empty = groups.len() - place == empty;
        let part = (0..parts.len())
            .filter(|&part| !only_empty || !filled[part])
            .max_by(|&a, &b| lacking[a].total_cmp(&lacking[b]).then(b.cmp(&a)))
            .ok_or_else(|| Error::internal("no part is left for a group"))?;
        filled[part] = true;
        lacking[part] -= cells as f64;
        part_of.insert(group.clone(), parts[part].0.clone());
    }
    Ok(part_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(text: &str, sizes: &[u64], seed: u64) -> Vec<(String, u64)> {
        let split = SplitOptions::parse(text, seed).unwrap();
        let sizes: BTreeMap<String, u64> = sizes
            .iter()
            .enumerate()
            .map(|(group, &cells)| (format!("g{group:03}"), cells))
            .collect();
        let part_of = deal(&split, "donor", &sizes).unwrap();
        assert_eq!(part_of.len(), sizes.len());
        let cells = |part: &str| {
            let of = part_of.iter().filter(|(_, p)| *p == part);
            of.map(|(group, _)| sizes[group]).sum()
        };
        split
            .parts
            .iter()
            .map(|(n, _)| (n.clone(), cells(n)))
            .collect()
    }

    #[test]
    fn shares_are_close_when_groups_are_small() {
        let parts = dealt("train=0.8,valid=0.1,test=0.1", &[10; 200], 3);
        assert_eq!(
            parts,
            [
                ("train".into(), 1600),
                ("valid".into(), 200),
                ("test".into(), 200)
            ]
        );
        let sizes: Vec<u64> = (1..100).collect();
        for (part, cells) in dealt("a=0.5,b=0.5", &sizes, 3) {
            assert!(cells.abs_diff(2475) <= 100, "{part}: {cells}");
        }
    }

    #[test]
    fn every_part_gets_a_group() {
        for seed in 0..20 {
            let parts = dealt("train=0.8,valid=0.1,test=0.1", &[100, 100, 100], seed);
            assert!(parts.iter().all(|(_, cells)| *cells == 100), "{parts:?}");
        }
        let split = SplitOptions::parse("a=0.5,b=0.5", 0).unwrap();
        let one = BTreeMap::from([("only".to_owned(), 5)]);
        let message = deal(&split, "donor", &one).unwrap_err().to_string();
        assert!(
            message.contains("1 groups cannot fill 2 parts"),
            "{message}"
        );
    }
}

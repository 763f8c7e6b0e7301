//! Obs columns that are added to a finished corpus: they follow from others, so no shard is touched.

use std::collections::{HashMap, HashSet};

use super::{Corpus, Derived, MANIFEST, ObsColumn, ObsKind, temp_sibling};
use crate::{Error, Result};

/// Of a cell without a category in one of the columns.
const NONE: u64 = u64::MAX;

impl Corpus {
    /// The codes of a derived column for all cells, -1 where missing.
    pub(super) fn derived_codes(
        &self,
        column: &ObsColumn,
        derived: &Derived,
        code_of: &HashMap<&str, i32>,
    ) -> Result<Vec<i32>> {
        let wrong = |problem: String| {
            let place = format!("obs column `{}`", column.name);
            Error::corpus(&self.file(MANIFEST), place, problem)
        };
        let mut places: Vec<HashMap<&str, u64>> = Vec::new();
        let mut joint = vec![0u64; self.n_cells() as usize];
        for name in &derived.by {
            // Not only a matter of taste: two could follow from each other.
            if self.column(name)?.derived.is_some() {
                return Err(wrong(format!(
                    "follows from `{name}`, which is derived too"
                )));
            }
            let categories = self.categories(name)?;
            places.push(categories.iter().map(String::as_str).zip(0..).collect());
            let size = categories.len().max(1) as u64;
            for (joint, code) in joint.iter_mut().zip(self.obs_codes(name)?) {
                let next = u64::try_from(code)
                    .ok()
                    .and_then(|code| joint.checked_mul(size)?.checked_add(code));
                *joint = next.unwrap_or(NONE);
            }
        }
        let mut meaning: HashMap<u64, i32> = HashMap::new();
        for (keys, category) in &derived.values {
            let code = code_of.get(category.as_str());
            let code =
                code.ok_or_else(|| wrong(format!("`{category}` is none of its categories")))?;
            if keys.len() != places.len() {
                return Err(wrong(format!(
                    "{keys:?} are {} keys, expected {}",
                    keys.len(),
                    places.len()
                )));
            }
            let mut joint = 0u64;
            for (key, place) in keys.iter().zip(&places) {
                let own = place.get(key.as_str());
                let own = own.ok_or_else(|| wrong(format!("`{key}` is no category")))?;
                joint = joint.saturating_mul(place.len().max(1) as u64) + own;
            }
            meaning.insert(joint, *code);
        }
        let of = |joint: u64| meaning.get(&joint).copied().unwrap_or(-1);
        Ok(joint.into_iter().map(of).collect())
    }
}

/// Adds a derived column to the manifest of a local corpus, which gets another fingerprint by it. A derived
/// column of this name is replaced when `replace` says so.
///
/// # Errors
/// The corpus is in a store, the name is taken, the column does not follow from columns of categories, or
/// the manifest cannot be written.
pub fn add_column(corpus: &Corpus, column: &ObsColumn, replace: bool) -> Result<()> {
    if corpus.is_remote() {
        return Err(Error::options(
            "the corpus is in a store, where no column can be added",
            "add it to a local copy of the corpus",
        ));
    }
    let mut manifest = corpus.manifest().clone();
    let known = manifest.obs.iter().position(|c| c.name == column.name);
    match known.map(|at| (at, manifest.obs[at].derived.is_some())) {
        Some((_, true)) if !replace => {
            return Err(Error::options(
                format!("the corpus has an obs column `{}`", column.name),
                "choose another name, or replace it with --overwrite",
            ));
        }
        Some((_, false)) => {
            return Err(Error::options(
                format!(
                    "the corpus was made with an obs column `{}`, which stays as it is",
                    column.name
                ),
                "choose another name",
            ));
        }
        Some((at, true)) => manifest.obs[at] = column.clone(),
        None => manifest.obs.push(column.clone()),
    }
    let derived = column.derived.as_ref();
    let derived = derived.filter(|_| column.kind == ObsKind::Category);
    let derived = derived.ok_or_else(|| Error::internal("the column follows from no other"))?;
    let code_of = column.categories.iter().map(String::as_str).zip(0..);
    let code_of: HashMap<&str, i32> = code_of.collect();
    let codes = corpus.derived_codes(column, derived, &code_of)?;
    let used: HashSet<i32> = codes.into_iter().collect();
    let empty = column.categories.iter().zip(0..);
    let empty = empty
        .filter(|(_, code)| !used.contains(code))
        .map(|(name, _)| name);
    if let Some(name) = empty.min() {
        return Err(Error::internal(format!("no cell has `{name}`")));
    }
    let path = corpus.path().join(MANIFEST);
    let mut text = serde_json::to_string_pretty(&manifest)
        .map_err(|e| Error::internal(format!("manifest cannot be written as JSON: {e}")))?;
    text.push('\n');
    let temp = temp_sibling(&path, "new")?;
    let put = || {
        std::fs::write(&temp, text)?;
        std::fs::File::open(&temp)?.sync_all()?;
        std::fs::rename(&temp, &path)?;
        std::fs::File::open(corpus.path())?.sync_all()
    };
    put().map_err(|source| {
        // An error is already on its way.
        let _ = std::fs::remove_file(&temp);
        Error::io("write", &path)(source)
    })
}

//! 10x folders: `matrix.mtx`, `features.tsv` or `genes.tsv`, `barcodes.tsv`, each maybe with `.gz`.

use std::path::{Path, PathBuf};

use super::lines::{Lines, at_line};
use super::{Feature, Mtx, choose_genome, genes};
use crate::import::hdf5::import_error;
use crate::import::source::{CellNames, Entries, Source};
use crate::import::texts::{self, Texts};
use crate::{Error, Result};

const MATRIX: [&str; 2] = ["matrix.mtx", "matrix.mtx.gz"];

/// Opens a 10x folder. Older versions have a folder per genome in it.
pub(in crate::import) fn folder(path: &Path, genome: Option<&str>) -> Result<Source> {
    let names = entries(path)?;
    if let Some((prefix, matrix)) = find_matrix(path, &names)? {
        if genome.is_some() {
            return Err(Error::options(
                format!(
                    "--genome chooses among several, but `{}` names none",
                    path.display()
                ),
                "leave it out",
            ));
        }
        return open(path, &names, &prefix, &matrix);
    }
    let mut genomes = Vec::new();
    for name in names {
        let inner = path.join(&name);
        if inner.is_dir() && MATRIX.iter().any(|m| inner.join(m).exists()) {
            genomes.push(name);
        }
    }
    if genomes.is_empty() {
        return Err(import_error(
            path,
            "",
            "has no matrix.mtx or matrix.mtx.gz",
            "give an .h5ad file, a 10x .h5 file, or a 10x folder with matrix.mtx, features.tsv and barcodes.tsv",
        ));
    }
    let chosen = path.join(choose_genome(&genomes, genome, path)?);
    // The cells keep the name of what the user gave.
    Ok(Source {
        path: path.to_owned(),
        ..folder(&chosen, None)?
    })
}

fn entries(path: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in path.read_dir()? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    };
    read().map_err(Error::io("read", path))
}

/// The matrix file, and what comes before its usual name.
fn find_matrix(path: &Path, names: &[String]) -> Result<Option<(String, PathBuf)>> {
    let mut found: Vec<(&str, &String)> = Vec::new();
    for name in names {
        let prefix = MATRIX.iter().find_map(|m| name.strip_suffix(m));
        if let Some(prefix) = prefix.filter(|_| path.join(name).is_file()) {
            found.push((prefix, name));
        }
    }
    // A file and its compressed copy are the same matrix; the plain one sorts first.
    found.dedup_by_key(|(prefix, _)| *prefix);
    match found[..] {
        [] => Ok(None),
        [(prefix, name)] => Ok(Some((prefix.to_owned(), path.join(name)))),
        _ => Err(import_error(
            path,
            "",
            format!(
                "holds {} matrices, the first two `{}` and `{}`",
                found.len(),
                found[0].1,
                found[1].1
            ),
            "give each sample a folder of its own, and each folder its own --input",
        )),
    }
}

fn open(path: &Path, names: &[String], prefix: &str, matrix: &Path) -> Result<Source> {
    let beside = |wanted: &[&str]| {
        let found = wanted
            .iter()
            .flat_map(|name| [format!("{prefix}{name}"), format!("{prefix}{name}.gz")])
            .find(|name| names.contains(name));
        found.map(|name| path.join(name)).ok_or_else(|| {
            let tried: Vec<String> = wanted
                .iter()
                .map(|n| format!("`{prefix}{n}[.gz]`"))
                .collect();
            import_error(
                path,
                "",
                format!("has no {}", tried.join(" or ")),
                "the three files of a 10x matrix lie in one folder: copy the missing one there",
            )
        })
    };
    let feature_file = beside(&["features.tsv", "genes.tsv"])?;
    let barcode_file = beside(&["barcodes.tsv"])?;
    let features = read_features(&feature_file)?;
    let barcodes = read_barcodes(&barcode_file)?;
    let (genes, places) = genes(&features, path)?;
    let mtx = Mtx::open(
        matrix,
        (features.len(), &feature_file),
        (barcodes.len(), &barcode_file),
    )?;
    let place = matrix.file_name().unwrap_or_default().to_string_lossy();
    Ok(Source {
        path: path.to_owned(),
        name: String::new(),
        place: place.into_owned(),
        files: vec![matrix.to_owned(), feature_file, barcode_file],
        genes,
        cells: barcodes.len(),
        obs: None,
        names: CellNames::Read(barcodes),
        matrix: Entries::Mtx(mtx),
        others: "the folder has no other".to_owned(),
        features: places,
    })
}

fn read_features(path: &Path) -> Result<Vec<Feature>> {
    let mut lines = Lines::open(path)?;
    let mut features = Vec::new();
    while let Some(line) = lines.next()? {
        let text = String::from_utf8_lossy(line).into_owned();
        let columns: Vec<&str> = text.split('\t').collect();
        if columns.len() < 2 || columns[0].is_empty() {
            return Err(lines.error(
                format!("has {} columns (`{text}`), expected an id, a name and a type, with tabs between them", columns.len()),
                "take the file as Cell Ranger writes it",
            ));
        }
        features.push(Feature {
            id: columns[0].to_owned(),
            name: columns[1].to_owned(),
            kind: columns.get(2).map(|kind| (*kind).to_owned()),
            genome: None,
        });
    }
    Ok(features)
}

fn read_barcodes(path: &Path) -> Result<Texts> {
    let mut lines = Lines::open(path)?;
    let mut barcodes = Texts::default();
    let mut seen = Vec::new();
    while let Some(line) = lines.next()? {
        let text = String::from_utf8_lossy(line);
        let barcode = text.split('\t').next().unwrap_or_default();
        if barcode.is_empty() {
            return Err(lines.error("is empty, expected a barcode", "remove the line"));
        }
        barcodes.push(barcode);
        seen.push((texts::hash(barcode), barcodes.len()));
    }
    seen.sort_unstable();
    match seen.windows(2).find(|w| w[0].0 == w[1].0) {
        None => Ok(barcodes),
        Some(twice) => {
            let (first, second) = (twice[0].1, twice[1].1);
            let name = barcodes.get(first - 1);
            Err(at_line(
                path,
                second as u64,
                format!("repeats barcode `{name}` of line {first}"),
                "barcodes must be unique: import samples one by one, each as its own --input",
            ))
        }
    }
}

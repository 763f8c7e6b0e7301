//! Matrices of 10x Genomics: HDF5 files of Cell Ranger 3 and of older versions, and folders with a Matrix
//! Market file.

mod folder;
mod lines;
mod mtx;

use super::h5ad::genes::ensembl_id;
use super::hdf5::{self, Hdf5, Source as Stored};
use super::matrix::{Matrix, Sparse};
use super::source::{CellNames, Entries, Source};
use crate::error::{listed, nearest};
use crate::genes::GeneTable;
use crate::{Error, Result};

pub(super) use folder::folder;
pub(super) use mtx::Mtx;

/// The one kind of feature that is kept.
const GENE_EXPRESSION: &str = "Gene Expression";
/// Barcodes read at a time.
const SCAN_CELLS: usize = 65_536;

/// One row of the matrix, as the file describes it.
struct Feature {
    id: String,
    name: String,
    kind: Option<String>,
    genome: Option<String>,
}

/// Genes among features: the table, and the gene of each feature when some are none.
fn genes(
    features: &[Feature],
    path: &std::path::Path,
) -> Result<(GeneTable, Option<Vec<Option<u32>>>)> {
    let mut table = GeneTable::default();
    let mut places = Vec::with_capacity(features.len());
    for feature in features {
        if feature
            .kind
            .as_deref()
            .is_some_and(|k| k != GENE_EXPRESSION)
        {
            places.push(None);
            continue;
        }
        places.push(Some(table.len() as u32));
        let name = Some(&feature.name).filter(|n| !n.is_empty());
        table.symbols.push(name.unwrap_or(&feature.id).clone());
        table.ensembl.push(ensembl_id(&feature.id));
    }
    let others = features.len() - table.len();
    if table.is_empty() && others > 0 {
        return Err(hdf5::import_error(
            path,
            "",
            format!("none of its {others} features is of type `{GENE_EXPRESSION}`"),
            "take the file with the counts of genes",
        ));
    }
    if others > 0 {
        tracing::warn!(
            features = others,
            genes = table.len(),
            "`{}`: features of other types than {GENE_EXPRESSION} left out",
            path.display()
        );
    }
    Ok((table, (others > 0).then_some(places)))
}

/// Opens a 10x HDF5 file; `None` when it is none.
pub(super) fn hdf5(file: &Hdf5, genome: Option<&str>) -> Result<Option<Source>> {
    let root = file.root();
    let matrix = hdf5::group(root, "matrix").filter(|group| group.link_exists("barcodes"));
    if let Some(group) = matrix {
        return open_group(file, &group, genome, true).map(Some);
    }
    let mut genomes = root.member_names().unwrap_or_default();
    genomes.retain(|name| {
        hdf5::group(root, name).is_some_and(|g| g.link_exists("barcodes") && g.link_exists("genes"))
    });
    if genomes.is_empty() {
        return Ok(None);
    }
    let name = choose_genome(&genomes, genome, file.path())?;
    let group = hdf5::group(root, name).ok_or_else(|| file.error(name, "is missing", ""))?;
    open_group(file, &group, None, false).map(Some)
}

/// The genome asked for, or the only one.
fn choose_genome<'a>(
    present: &'a [String],
    asked: Option<&str>,
    path: &std::path::Path,
) -> Result<&'a str> {
    let listed = listed(present);
    match asked {
        Some(name) => present
            .iter()
            .find(|g| *g == name)
            .map(String::as_str)
            .ok_or_else(|| {
                let meant = nearest(name, present)
                    .map_or_else(String::new, |n| format!(", did you mean `{n}`?"));
                Error::options(
                    format!("`{}` has no genome `{name}`{meant}", path.display()),
                    format!("present are: {listed}"),
                )
            }),
        None => match present {
            [only] => Ok(only),
            _ => Err(Error::options(
                format!(
                    "`{}` holds {} genomes, and one corpus takes one of them",
                    path.display(),
                    present.len()
                ),
                format!("choose with --genome: {listed}"),
            )),
        },
    }
}

fn open_group(
    file: &Hdf5,
    group: &hdf5_metno::Group,
    genome: Option<&str>,
    with_types: bool,
) -> Result<Source> {
    let place = group.name().trim_start_matches('/').to_owned();
    let array = |name: &str| file.needed(group, name).map(Stored::whole);
    let shape: Vec<i64> = file.rows(&array("shape")?, 0..2)?;
    let [n_features, n_cells] = shape[..] else {
        return Err(file.error(&place, "has no shape of two numbers", ""));
    };
    let (n_features, n_cells) = (n_features.max(0) as usize, n_cells.max(0) as usize);
    let sparse = Sparse {
        data: array("data")?,
        indices: array("indices")?,
        indptr: array("indptr")?,
    };
    let matrix = Matrix::by_cells(file, (n_cells, n_features), place, sparse)?;
    let barcodes = array("barcodes")?;
    let texts = |name: &str| -> Result<Vec<String>> {
        let source = array(name)?;
        if source.len() != n_features {
            let problem = format!("has {} entries, expected {n_features}", source.len());
            return Err(file.error(&source.name(), problem, "the file is damaged"));
        }
        file.strings(&source, 0..n_features)
    };
    if barcodes.len() != n_cells {
        let problem = format!("has {} entries, expected {n_cells}", barcodes.len());
        return Err(file.error(&barcodes.name(), problem, "the file is damaged"));
    }
    let features = if with_types {
        let types = texts("features/feature_type")?;
        let genomes = if group.link_exists("features/genome") {
            texts("features/genome")?
        } else {
            vec![String::new(); n_features]
        };
        zip_features(
            texts("features/id")?,
            texts("features/name")?,
            Some((types, genomes)),
        )
    } else {
        zip_features(texts("genes")?, texts("gene_names")?, None)
    };
    let features = of_genome(features, genome, file.path())?;
    let (genes, places) = genes(&features, file.path())?;
    check_barcodes(file, &barcodes)?;
    Ok(Source {
        path: file.path().to_owned(),
        name: String::new(),
        files: vec![file.path().to_owned()],
        genes,
        cells: n_cells,
        obs: None,
        names: CellNames::Stored(file.clone(), barcodes),
        place: matrix.place.clone(),
        others: "the file has no other".to_owned(),
        features: places,
        matrix: Entries::Hdf5(file.clone(), matrix),
    })
}

fn zip_features(
    ids: Vec<String>,
    names: Vec<String>,
    more: Option<(Vec<String>, Vec<String>)>,
) -> Vec<Feature> {
    let (types, genomes) = more.map_or((None, None), |(t, g)| (Some(t), Some(g)));
    let mut types = types.into_iter().flatten();
    let mut genomes = genomes.into_iter().flatten();
    ids.into_iter()
        .zip(names)
        .map(|(id, name)| Feature {
            id,
            name,
            kind: types.next(),
            genome: genomes.next(),
        })
        .collect()
}

/// Marks genes of other genomes than the one asked for as something else. Without a question all are
/// kept, and said.
fn of_genome(
    mut features: Vec<Feature>,
    asked: Option<&str>,
    path: &std::path::Path,
) -> Result<Vec<Feature>> {
    let is_gene = |f: &Feature| f.kind.as_deref() == Some(GENE_EXPRESSION);
    let mut genomes: Vec<String> = features
        .iter()
        .filter(|f| is_gene(f))
        .filter_map(|f| f.genome.clone().filter(|g| !g.is_empty()))
        .collect();
    genomes.sort();
    genomes.dedup();
    if asked.is_none() && genomes.len() > 1 {
        tracing::warn!(
            "`{}` holds genes of {}: all are kept (choose with --genome)",
            path.display(),
            listed(&genomes)
        );
    }
    if let Some(asked) = asked {
        let chosen = choose_genome(&genomes, Some(asked), path)?;
        for feature in features
            .iter_mut()
            .filter(|f| f.genome.as_deref() != Some(chosen))
        {
            feature.kind = Some("of another genome".to_owned());
        }
    }
    Ok(features)
}

fn check_barcodes(file: &Hdf5, barcodes: &Stored) -> Result<()> {
    let mut seen = Vec::with_capacity(barcodes.len());
    for first in (0..barcodes.len()).step_by(SCAN_CELLS) {
        let last = (first + SCAN_CELLS).min(barcodes.len());
        let names = file.strings(barcodes, first..last)?;
        seen.extend(names.iter().map(|n| super::texts::hash(n)).zip(first..));
    }
    seen.sort_unstable();
    match seen.windows(2).find(|w| w[0].0 == w[1].0) {
        None => Ok(()),
        Some(twice) => {
            let name = file.strings(barcodes, twice[0].1..twice[0].1 + 1)?.concat();
            let problem = format!(
                "has barcode `{name}` twice, as entries {} and {}",
                twice[0].1, twice[1].1
            );
            Err(file.error(
                &barcodes.name(),
                problem,
                "barcodes must be unique: repair the file",
            ))
        }
    }
}

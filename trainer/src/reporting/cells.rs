//! Pictures of the cells: where a table has a plane (`umap`), coloured by what is known of them.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_data::Corpus;

use super::Part;
use super::facts::Facts;
use crate::args::ReportArgs;
use crate::failure::{Failure, Result};
use crate::picture::{Points, scatter};

/// The column with the plane.
const PLANE: &str = "umap";
const INDEX: &str = "cell_index";

/// What the tables say about the cells, by their number in the corpus.
#[derive(Default)]
struct Cells {
    plane: Vec<(u64, [f32; 2])>,
    /// Columns of labels: name, and the label of each cell.
    labels: Vec<(String, HashMap<u64, String>)>,
}

/// Adds the pictures of the cells.
///
/// # Errors
/// A table that cannot be read, or an obs column that the corpus does not have.
pub(super) fn parts(args: &ReportArgs, runs: &[Facts], parts: &mut Vec<Part>) -> Result<()> {
    let mut cells = Cells::default();
    for path in args.cells.iter().chain(&args.predictions) {
        for file in files(path)? {
            cells.read(&file)?;
        }
    }
    if cells.plane.is_empty() {
        return Ok(());
    }
    let mut known: Vec<(String, HashMap<u64, String>)> = Vec::new();
    if let Some(settings) = runs.first().map(|r| &r.settings) {
        let path = args.corpus.as_ref().unwrap_or(&settings.data.corpus);
        let mut columns = args.color_by.clone();
        if columns.is_empty() {
            columns.extend(
                [&settings.data.label, &settings.data.batch]
                    .into_iter()
                    .flatten()
                    .cloned(),
            );
        }
        if !columns.is_empty() {
            let corpus = Corpus::open(path)?;
            for column in columns {
                known.push((column.clone(), of_corpus(&corpus, &column, &cells)?));
            }
        }
    }
    known.append(&mut cells.labels);
    parts.push(Part::Heading("Cells".to_owned()));
    for (i, (name, labels)) in known.iter().enumerate() {
        let mut names: Vec<String> = labels.values().cloned().collect();
        // Numbers of clusters by size, not by their digits.
        names.sort_unstable_by_key(|name| (name.parse::<u64>().unwrap_or(u64::MAX), name.clone()));
        names.dedup();
        let place: HashMap<&str, usize> = names.iter().map(String::as_str).zip(0..).collect();
        let at: Vec<[f32; 2]> = cells.plane.iter().map(|(_, at)| *at).collect();
        let groups: Vec<Option<usize>> = (cells.plane.iter())
            .map(|(cell, _)| labels.get(cell).map(|label| place[label.as_str()]))
            .collect();
        let title = format!("UMAP by {}", name.replace('_', " "));
        let picture = scatter(
            &title,
            Points {
                at: &at,
                groups: &groups,
                names: &names,
            },
        );
        parts.push(Part::Picture(format!("umap-{}", i + 1), Box::new(picture)));
    }
    Ok(())
}

/// The obs values of the cells in the plane.
fn of_corpus(corpus: &Corpus, column: &str, cells: &Cells) -> Result<HashMap<u64, String>> {
    let categories = corpus.categories(column)?;
    let codes = corpus.obs_codes(column)?;
    let label = |cell: u64| -> Option<(u64, String)> {
        let code = usize::try_from(*codes.get(cell as usize)?).ok()?;
        Some((cell, categories.get(code)?.clone()))
    };
    Ok(cells
        .plane
        .iter()
        .filter_map(|(cell, _)| label(*cell))
        .collect())
}

fn files(path: &Path) -> Result<Vec<std::path::PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let listed = scpeft_checkpoint::fsx::files_below(path)?;
    let tables = listed.into_iter().map(|(file, _)| path.join(file));
    Ok(tables
        .filter(|f| f.extension().is_some_and(|e| e == "parquet"))
        .collect())
}

impl Cells {
    fn read(&mut self, path: &Path) -> Result<()> {
        let wrong = |e: &dyn std::fmt::Display| Failure::data(format!("`{}`: {e}", path.display()));
        let file = File::open(path).map_err(|e| wrong(&e))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
        let schema = builder.schema().clone();
        if schema.column_with_name(INDEX).is_none() {
            return Ok(());
        }
        let labels: Vec<String> = schema
            .fields()
            .iter()
            .filter(|f| matches!(f.data_type(), DataType::Dictionary(..) | DataType::Utf8))
            .map(|f| f.name().clone())
            .filter(|name| name != "cell_id" && name != "true_type")
            .collect();
        let plane = schema.column_with_name(PLANE).is_some();
        if labels.is_empty() && !plane {
            return Ok(());
        }
        let own = self.labels.len();
        self.labels
            .extend(labels.iter().map(|name| (name.clone(), HashMap::new())));
        let item = Field::new("item", DataType::Float32, true);
        let pair = DataType::FixedSizeList(item.into(), 2);
        for batch in builder.build().map_err(|e| wrong(&e))? {
            let batch = batch.map_err(|e| wrong(&e))?;
            let column = |name: &str, wanted: &DataType| {
                let found = batch.column_by_name(name).map(|c| cast(c, wanted));
                found
                    .transpose()
                    .map_err(|e| wrong(&e))?
                    .ok_or_else(|| wrong(&format!("has no column `{name}`")))
            };
            let index = column(INDEX, &DataType::UInt64)?;
            let index = index.as_primitive::<UInt64Type>();
            if plane {
                let lists = column(PLANE, &pair)?;
                let lists = lists.as_fixed_size_list();
                for row in 0..batch.num_rows() {
                    let at = lists.value(row);
                    let at = at.as_primitive::<Float32Type>();
                    self.plane
                        .push((index.value(row), [at.value(0), at.value(1)]));
                }
            }
            for (i, name) in labels.iter().enumerate() {
                let texts = column(name, &DataType::Utf8)?;
                let texts = texts.as_string::<i32>();
                let named = (0..batch.num_rows()).filter(|&row| texts.is_valid(row));
                self.labels[own + i]
                    .1
                    .extend(named.map(|row| (index.value(row), texts.value(row).to_owned())));
            }
        }
        Ok(())
    }
}

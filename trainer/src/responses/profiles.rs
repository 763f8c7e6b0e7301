//! Mean profiles as Parquet: a row a condition, a column a gene. pandas and, through it, AnnData
//! read them as they are.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use scpeft_evaluation::splits::Condition;
use scpeft_evaluation::study::{Labelled, Predicted, Study};

use crate::args::EvaluateArgs;
use crate::failure::{Failure, Result, io};
use crate::perturbation::labels::ONE_CONTEXT;

/// Reads the profiles of one model, which is named like the file.
///
/// # Errors
/// A file that cannot be read, or lacks a column, or has a condition twice.
pub(super) fn read(path: &Path, labelled: &Labelled, args: &EvaluateArgs) -> Result<Predicted> {
    let model = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut predicted = Predicted {
        model: model.into_owned(),
        profiles: BTreeMap::new(),
    };
    let file = File::open(path)
        .map_err(|e| Failure::data(format!("cannot open `{}`: {e}", path.display())))?;
    let wrong = |e: &dyn std::fmt::Display| bad(path, &e.to_string());
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| wrong(&e))?;
    let reader = reader.build().map_err(|e| wrong(&e))?;
    for batch in reader {
        let batch = batch.map_err(|e| wrong(&e))?;
        add(path, &batch, labelled, args, &mut predicted)?;
    }
    Ok(predicted)
}

fn bad(path: &Path, problem: &str) -> Failure {
    Failure::data(format!("`{}`: {problem}", path.display()))
}

fn add(
    path: &Path,
    batch: &RecordBatch,
    labelled: &Labelled,
    args: &EvaluateArgs,
    predicted: &mut Predicted,
) -> Result<()> {
    let column = |name: &str| {
        batch.column_by_name(name).ok_or_else(|| {
            bad(path, &format!("has no column `{name}`\nhelp: a prediction has a row for each condition and a column for each of its labels and of the {} genes that are scored", labelled.genes.len()))
        })
    };
    let text = |name: &str| -> Result<ArrayRef> {
        cast(column(name)?, &DataType::Utf8)
            .map_err(|e| bad(path, &format!("column `{name}` holds no text: {e}")))
    };
    let perturbation = text("perturbation")?;
    let context = args.context.as_ref().map(|_| text("context")).transpose()?;
    let dose = args.dose.as_ref().map(|_| text("dose")).transpose()?;
    let mut genes = Vec::with_capacity(labelled.genes.len());
    for gene in &labelled.genes {
        let values = cast(column(gene)?, &DataType::Float64)
            .map_err(|e| bad(path, &format!("column `{gene}` holds no numbers: {e}")))?;
        if values.null_count() > 0 {
            return Err(bad(path, &format!("column `{gene}` lacks a value")));
        }
        genes.push(values);
    }
    let get = |column: &ArrayRef, row: usize| {
        let texts = column.as_string::<i32>();
        texts.is_valid(row).then(|| texts.value(row).to_owned())
    };
    for row in 0..batch.num_rows() {
        let label = |name: &str, found: Option<String>| {
            found.ok_or_else(|| bad(path, &format!("row {row} has no `{name}`")))
        };
        let condition = Condition {
            perturbation: label("perturbation", get(&perturbation, row))?,
            context: match &context {
                Some(column) => label("context", get(column, row))?,
                None => ONE_CONTEXT.into(),
            },
            dose: dose.as_ref().and_then(|column| get(column, row)),
        };
        let value = |column: &ArrayRef| column.as_primitive::<Float64Type>().value(row);
        let profile = genes.iter().map(value).collect();
        let name = scpeft_evaluation::study::name_of(&condition);
        if predicted.profiles.insert(condition, profile).is_some() {
            return Err(bad(path, &format!("has the condition `{name}` twice")));
        }
    }
    Ok(())
}

/// Model, condition and profile.
pub(crate) type Row<'a> = (&'a str, &'a Condition, &'a Vec<f64>);

/// Writes the profiles of all models and baselines, with a column `model`.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn write(path: &Path, study: &Study, genes: &[String]) -> Result<()> {
    let rows: Vec<Row<'_>> = (study.profiles.iter())
        .flat_map(|p| p.profiles.iter().map(|(c, v)| (p.model.as_str(), c, v)))
        .collect();
    write_rows(path, &rows, genes)
}

/// Writes profiles over `genes`, a row each.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write_rows(path: &Path, rows: &[Row<'_>], genes: &[String]) -> Result<()> {
    let text = |of: fn(&Row<'_>) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("model", text(|r| Some(r.0.to_owned()))),
        ("perturbation", text(|r| Some(r.1.perturbation.clone()))),
        ("context", text(|r| Some(r.1.context.clone()))),
        ("dose", text(|r| r.1.dose.clone())),
    ];
    for (g, gene) in genes.iter().enumerate() {
        let values = rows.iter().map(|r| r.2[g]).collect::<Float64Array>();
        columns.push((gene, Arc::new(values)));
    }
    let nullable = columns
        .into_iter()
        .map(|(name, column)| (name, column, true));
    let wrong = |e: &dyn std::fmt::Display| bad(path, &e.to_string());
    let batch = RecordBatch::try_from_iter_with_nullable(nullable).map_err(|e| wrong(&e))?;
    let file = File::create(path).map_err(io(path))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).map_err(|e| wrong(&e))?;
    writer.write(&batch).map_err(|e| wrong(&e))?;
    writer.close().map_err(|e| wrong(&e))?;
    Ok(())
}

//! Synthetic cells as a corpus.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::datatypes::Int32Type;
use serde_json::json;

use super::names::{self, Column};
use super::{Cells, Plan, SynthReport};
use crate::corpus::{
    CorpusWriter, Manifest, ObsColumn, ObsKind, Profile, Provenance, ValueKind, WriterOptions,
    obs_array_type,
};
use crate::parallel::in_order;
use crate::{Error, Result};

pub(super) fn write(plan: &Plan<'_>, profile: Profile) -> Result<SynthReport> {
    let options = plan.options;
    let writer_options = WriterOptions {
        profile,
        row_group_cells: options
            .row_group_cells
            .unwrap_or(WriterOptions::default().row_group_cells),
        shard_cells: options.shard_cells,
        overwrite: options.overwrite,
    };
    let columns = names::columns();
    let genes = names::gene_table(options.genes);
    let obs: Vec<_> = columns
        .iter()
        .map(|column| {
            let obs = ObsColumn::new(column.name, ObsKind::Category, column.categories.clone());
            (obs, obs_array_type(ObsKind::Category, false))
        })
        .collect();
    let create = |output: &std::path::Path| {
        CorpusWriter::create(
            output,
            writer_options,
            ValueKind::Counts,
            &genes,
            obs.clone(),
        )
    };
    let names: Vec<Arc<StringArray>> = columns
        .iter()
        .map(|c| Arc::new(StringArray::from_iter_values(&c.categories)))
        .collect();
    let mut writer = create(&options.output)?;
    let part = |shard: usize| writer.part(shard);
    let folders: Vec<_> = (0..plan.shards()).map(part).collect();
    let mut nonzeros = 0;
    in_order(
        options.threads,
        plan.shards(),
        |shard| {
            let mut writer = create(&folders[shard])?;
            let mut nonzeros = 0;
            for cells in plan.chunks(shard) {
                let (rows, obs) = (cells.rows(), obs_arrays(&cells, &columns, &names)?);
                nonzeros += cells.genes.len() as u64;
                writer.write(&cells.into_batch(obs))?;
                plan.advance(rows);
            }
            Ok((nonzeros, writer.finish(None, None, Provenance::default())?))
        },
        |shard, (values, part): (u64, Manifest)| {
            nonzeros += values;
            writer.adopt(&folders[shard], &part)
        },
    )?;
    let manifest = writer.finish(
        Some("cell_line_id".into()),
        Some("plate".into()),
        provenance(plan),
    )?;
    Ok(SynthReport {
        cells: manifest.n_cells,
        nonzeros,
        shards: manifest.shards.len(),
        bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
    })
}

fn obs_arrays(
    cells: &Cells,
    columns: &[Column],
    names: &[Arc<StringArray>],
) -> Result<Vec<ArrayRef>> {
    let arrays = columns.iter().zip(names).map(|(column, names)| {
        let codes = cells.meta.iter().map(|meta| (column.code)(meta) as i32);
        let codes = Int32Array::from_iter_values(codes);
        let array = DictionaryArray::<Int32Type>::try_new(codes, names.clone())
            .map_err(|e| Error::internal(format!("column `{}`: {e}", column.name)))?;
        Ok(Arc::new(array) as ArrayRef)
    });
    arrays.collect()
}

fn provenance(plan: &Plan<'_>) -> Provenance {
    let options = plan.options;
    let entries = [
        ("synthetic", json!(true)),
        ("cells", json!(options.cells)),
        ("genes", json!(options.genes)),
        ("nonzeros", json!(options.nonzeros)),
        ("seed", json!(options.seed)),
    ];
    Provenance {
        tool: "scpeft-data synth".into(),
        tool_version: env!("CARGO_PKG_VERSION").into(),
        sources: Vec::new(),
        options: entries
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect(),
    }
}

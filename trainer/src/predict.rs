//! Prediction: the type of every cell, with probabilities and the cell embedding.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float32Array, Int32Array, StringArray, UInt64Array};
use arrow::datatypes::Int32Type;
use scpeft_checkpoint::fsx;
use scpeft_collective::Collective;
use scpeft_config::{Config, TaskKind};
use scpeft_data::StepBatches;
use scpeft_evaluation::identification::Confusion;
use scpeft_model::exec::Pass;
use scpeft_model::shard::Gather;
use scpeft_protocol::exit;
use serde_json::json;
use tch::Kind;

use crate::Outcome;
use crate::adapter_file;
use crate::args::PredictArgs;
use crate::assembly::Assembly;
use crate::consensus::agree;
use crate::failure::{Failure, Result};
use crate::feed::Share;
use crate::perturbation;
use crate::shard;
use crate::table::{self, Column, Table, arrow_failure};
use crate::task::Identification;
use crate::trained::{self, Output, host_values};

/// Predicts as `args` say; the whole of `scpeft-train predict`.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// Whatever is wrong with run, corpus or output directory.
pub fn predict(world: &dyn Collective, args: &PredictArgs) -> Result<Outcome> {
    let output = Output {
        path: &args.output,
        overwrite: args.overwrite,
        table: TABLE,
    };
    let checkpoint = trained::choose(world, &args.run, &args.checkpoint, &output)?;
    let config = agree(world, trained::configuration(&args.run, &args.overrides))?;
    if config.task.kind == TaskKind::Perturbation {
        return perturbation::predict::predict(world, args, config, &checkpoint);
    }
    if args.conditions.is_some() {
        return Err(Failure::config(format!(
            "`--conditions` is for responses to perturbations, and `{}` was trained for `{}`\n\
             help: leave it out",
            args.run.display(),
            config.task.kind
        )));
    }
    let gather = shard::gather(world, config.backbone.shard)?;
    let predictor = Predictor::load(world, args, config, gather, &checkpoint);
    let mut predictor = agree(world, predictor)?;
    match predictor.run(world, &output) {
        Err(failure) if world.topology().world_size > 1 => {
            tracing::error!("rank {}: {failure}", world.topology().rank);
            world.abort(failure.code)
        }
        result => result.map(|()| Outcome::Done),
    }
}

/// The table of predictions in the output directory.
pub(crate) const TABLE: &str = "predictions.parquet";

/// A trained classifier with the cells to predict.
struct Predictor {
    config: Config,
    assembly: Assembly,
    task: Identification,
    classes: Vec<String>,
    loader: scpeft_data::Loader,
}

/// What a rank found for its cells, in the order of the corpus.
#[derive(Debug, Default, PartialEq)]
struct Found {
    cells: Vec<u64>,
    labels: Vec<i64>,
    probabilities: Vec<f32>,
    embeddings: Vec<f32>,
}

impl Predictor {
    fn load(
        world: &dyn Collective,
        args: &PredictArgs,
        mut config: Config,
        gather: Option<Rc<dyn Gather>>,
        checkpoint: &Path,
    ) -> Result<Self> {
        if config.task.kind != TaskKind::Identification {
            return Err(Failure::config(format!(
                "`{}` was trained for `{}`, which predicts no cell types",
                args.run.display(),
                config.task.kind
            )));
        }
        if let Some(corpus) = &args.corpus {
            config.data.corpus.clone_from(corpus);
        }
        let record = adapter_file::read_record(checkpoint)?;
        if args.no_labels {
            config.data.label = None;
        }
        let (assembly, task) =
            Assembly::for_prediction(&config, world.topology(), gather, &args.run, &record)?;
        let classes = record.categories.clone();
        trained::restore(&assembly, &config, &record, checkpoint)?;
        let split = args
            .split
            .clone()
            .unwrap_or_else(|| config.data.test.clone());
        let selection = assembly.feed.split(&config, &split)?;
        if let Some(label) = &config.data.label {
            require_known_labels(label, &assembly, &task, &selection)?;
        }
        let share = Share {
            rank: world.topology().rank,
            world_size: world.topology().world_size,
        };
        let loader = assembly.feed.evaluation_loader(&config, selection, share)?;
        Ok(Self {
            config,
            assembly,
            task,
            classes,
            loader,
        })
    }

    /// Predicts every cell and, on rank 0, publishes the output directory as a whole.
    fn run(&mut self, world: &dyn Collective, output: &Output<'_>) -> Result<()> {
        output.publish(world, |dir| self.write(world, dir))
    }

    /// What every rank does; rank 0, which is given a directory, writes what all found.
    fn write(&mut self, world: &dyn Collective, dir: Option<&Path>) -> Result<String> {
        let mut confusion = Confusion::new(self.classes.len());
        let mut labelled = 0u64;
        let mut table = dir.map(|dir| Table::new(dir.join(TABLE)));
        let mut total = 0;
        for step in self.loader.epoch(0, 0) {
            let own = self.predict_step(world, &step?)?;
            let parts = world.gather(&own.encode())?.unwrap_or_default();
            let Some(table) = &mut table else { continue };
            let mut found = Found::default();
            for part in &parts {
                found.append(Found::decode(part, self.classes.len())?);
            }
            total += found.cells.len();
            for (row, &code) in found.labels.iter().enumerate() {
                if let Some(truth) = self.task.class(code) {
                    confusion.add(truth, found.predicted(row, self.classes.len()));
                    labelled += 1;
                }
            }
            table.append(self.columns(found)?)?;
        }
        let (Some(table), Some(dir)) = (table, dir) else {
            return Ok(String::new());
        };
        table.close()?;
        self.write_scores(dir, &confusion, labelled, total as u64)
    }

    /// Scores and picture, when cells are labelled; returns the summary for the user.
    fn write_scores(
        &self,
        dir: &Path,
        confusion: &Confusion,
        labelled: u64,
        total: u64,
    ) -> Result<String> {
        if labelled == 0 {
            return Ok(format!("{total} cells predicted, none of them labelled"));
        }
        let scores = confusion.scores(&self.classes);
        let rows: Vec<&[f64]> = confusion.counts().chunks(self.classes.len()).collect();
        let mut metrics = json!(scores);
        metrics["unlabelled_cells"] = (total - labelled).into();
        metrics["classes"] = json!(self.classes);
        metrics["confusion"] = json!(rows);
        let text = serde_json::to_string_pretty(&metrics).unwrap_or_default() + "\n";
        fsx::write_atomic(&dir.join("metrics.json"), text.as_bytes())?;
        crate::plot::confusion_matrix(dir, confusion, &self.classes)?;
        Ok(format!(
            "{total} cells predicted, {labelled} of them labelled: accuracy {:.4}, balanced accuracy {:.4}, macro F1 {:.4} \
             (always the most frequent type: accuracy {:.4})",
            scores.accuracy, scores.balanced_accuracy, scores.macro_f1, scores.majority_accuracy
        ))
    }

    fn predict_step(&self, world: &dyn Collective, step: &StepBatches) -> Result<Found> {
        let mut found = Found::default();
        let model = self.assembly.model.as_ref();
        let passes = shard::passes(world, model, step.micro.len())?;
        for micro in &step.micro {
            let batch = self.assembly.staging.stage(micro)?;
            let (logits, encoded) =
                tch::no_grad(|| self.task.logits(model, &batch, Pass::EVALUATION))?;
            found.cells.extend(&micro.cells);
            if micro.labels.is_empty() {
                found.labels.extend(std::iter::repeat_n(-1, micro.rows));
            } else {
                found.labels.extend(&micro.labels);
            }
            let probabilities = host_values(&logits.f_softmax(1, Kind::Float)?)?;
            let per_cell = probabilities.chunks(self.classes.len());
            if let Some(bad) = per_cell
                .into_iter()
                .position(|p| p.iter().any(|x| !x.is_finite()))
            {
                return Err(Failure::new(
                    exit::NON_FINITE,
                    format!(
                        "cell {}: its prediction is not finite\n\
                         help: the run diverged, or the cell's values are extreme; try another `--checkpoint`, and `scpeft-data verify`",
                        micro.cells[bad]
                    ),
                ));
            }
            found.probabilities.extend(probabilities);
            found.embeddings.extend(host_values(&encoded.cell)?);
        }
        shard::join_evaluation(passes, model, step.micro.len())?;
        Ok(found)
    }

    fn columns(&self, found: Found) -> Result<Vec<Column>> {
        let rows = found.cells.len();
        let k = self.classes.len();
        let width = found.embeddings.len().checked_div(rows).unwrap_or(0);
        let ids = self.assembly.feed.corpus.cell_ids(&found.cells)?;
        let predicted: Vec<i32> = (0..rows)
            .map(|row| found.predicted(row, k) as i32)
            .collect();
        let mut columns: Vec<Column> = vec![
            ("cell_id".into(), Arc::new(StringArray::from(ids)), false),
            (
                "cell_index".into(),
                Arc::new(UInt64Array::from(found.cells)),
                false,
            ),
            (
                "predicted_type".into(),
                self.types(Int32Array::from(predicted))?,
                false,
            ),
        ];
        if self.config.data.label.is_some() {
            let truth: Int32Array = found
                .labels
                .iter()
                .map(|&c| self.task.class(c).map(|c| c as i32))
                .collect();
            columns.push(("true_type".into(), self.types(truth)?, true));
        }
        for (class, name) in self.classes.iter().enumerate() {
            let values: Float32Array = (0..rows)
                .map(|row| Some(found.probabilities[row * k + class]))
                .collect();
            columns.push((format!("probability:{name}"), Arc::new(values), false));
        }
        let embedding = table::vectors(found.embeddings, width)?;
        columns.push(("embedding".into(), embedding, false));
        Ok(columns)
    }

    /// Class indices as a categorical column.
    fn types(&self, keys: Int32Array) -> Result<ArrayRef> {
        let names = Arc::new(StringArray::from(self.classes.clone()));
        Ok(Arc::new(
            DictionaryArray::<Int32Type>::try_new(keys, names).map_err(|e| arrow_failure(&e))?,
        ))
    }
}

/// A label that the classifier was not trained on cannot be scored: refuse it by name.
fn require_known_labels(
    label: &str,
    assembly: &Assembly,
    task: &Identification,
    selection: &scpeft_data::Selection,
) -> Result<()> {
    let categories = assembly.feed.corpus.categories(label)?;
    let codes = assembly.feed.corpus.obs_codes(label)?;
    let mut unseen = vec![0u64; categories.len()];
    for cell in selection.cell_indices() {
        let code = i64::from(codes[cell as usize]);
        if code >= 0 && task.class(code).is_none() {
            unseen[code as usize] += 1;
        }
    }
    let named: Vec<String> = (0..categories.len())
        .filter(|&c| unseen[c] > 0)
        .map(|c| format!("`{}` ({} cells)", categories[c], unseen[c]))
        .collect();
    if named.is_empty() {
        return Ok(());
    }
    Err(Failure::data(format!(
        "obs column `{label}` has types unseen in training: {}\n\
         help: `--no-labels` predicts these cells without scoring them",
        named.join(", ")
    )))
}

impl Found {
    fn predicted(&self, row: usize, classes: usize) -> usize {
        let p = &self.probabilities[row * classes..(row + 1) * classes];
        // The first of equals, as argmax does.
        (0..classes)
            .rev()
            .max_by(|&a, &b| p[a].total_cmp(&p[b]))
            .unwrap_or(0)
    }

    fn append(&mut self, other: Self) {
        self.cells.extend(other.cells);
        self.labels.extend(other.labels);
        self.probabilities.extend(other.probabilities);
        self.embeddings.extend(other.embeddings);
    }

    /// Little-endian: rows, then each column.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.cells.len() as u64).to_le_bytes().to_vec();
        bytes.extend(self.cells.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(self.labels.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(self.probabilities.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(self.embeddings.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    fn decode(bytes: &[u8], classes: usize) -> Result<Self> {
        let broken = || Failure::new(exit::INTERNAL, "a rank sent malformed predictions");
        let (rows, rest) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
        let rows = u64::from_le_bytes(*rows) as usize;
        let fixed = rows * (16 + 4 * classes);
        let (columns, embeddings) = rest.split_at_checked(fixed).ok_or_else(broken)?;
        let (cells, columns) = columns.split_at(8 * rows);
        let (labels, probabilities) = columns.split_at(8 * rows);
        let words = |bytes: &[u8]| -> Vec<[u8; 8]> { bytes.as_chunks::<8>().0.to_vec() };
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect()
        };
        Ok(Self {
            cells: words(cells).into_iter().map(u64::from_le_bytes).collect(),
            labels: words(labels).into_iter().map(i64::from_le_bytes).collect(),
            probabilities: floats(probabilities),
            embeddings: floats(embeddings),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_survive_the_way_to_rank_0() {
        let found = Found {
            cells: vec![3, 900_000_000_000],
            labels: vec![-1, 2],
            probabilities: vec![0.1, 0.6, 0.3, 0.25, 0.25, 0.5],
            embeddings: vec![1.0, -2.0, 3.5, f32::MIN_POSITIVE],
        };
        assert_eq!(Found::decode(&found.encode(), 3).unwrap(), found);
        assert_eq!([found.predicted(0, 3), found.predicted(1, 3)], [1, 2]);
        assert!(Found::decode(&found.encode()[..20], 3).is_err());
        assert_eq!(
            Found::decode(&Found::default().encode(), 3).unwrap(),
            Found::default()
        );
    }
}

//! Embedding: the vector of every cell by a trained model of any task, or by a backbone as it is.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{StringArray, UInt64Array};
use scpeft_checkpoint::fsx;
use scpeft_collective::Collective;
use scpeft_data::StepBatches;
use scpeft_model::exec::Pass;
use scpeft_protocol::exit;
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::EmbedArgs;
use crate::assembly::Assembly;
use crate::consensus::agree;
use crate::encoder::Encoder;
use crate::failure::{Failure, Result};
use crate::feed::Share;
use crate::shard;
use crate::table::{self, Table};
use crate::trained::{Output, host_values};

/// The table of embeddings in the output directory.
const TABLE: &str = "embeddings.parquet";
/// Beside it: what the vectors are.
const ABOUT: &str = "embedding.json";
/// Embeds cells as `args` say; the whole of `scpeft-train embed`.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// Whatever is wrong with run or backbone, corpus or output directory.
pub fn embed(world: &dyn Collective, args: &EmbedArgs) -> Result<Outcome> {
    let output = Output {
        path: &args.output,
        overwrite: args.overwrite,
        table: TABLE,
    };
    let encoder = Encoder::open(world, &args.encoder, &output, |_| Ok(()))?;
    let embedder = Embedder::load(world, args, encoder);
    let mut embedder = agree(world, embedder)?;
    match output.publish(world, |dir| embedder.write(world, dir)) {
        Err(failure) if world.topology().world_size > 1 => {
            tracing::error!("rank {}: {failure}", world.topology().rank);
            world.abort(failure.code)
        }
        result => result.map(|()| Outcome::Done),
    }
}

/// A model with the cells to embed.
struct Embedder {
    assembly: Assembly,
    loader: scpeft_data::Loader,
    unit_length: bool,
    about: Value,
}

/// What a rank found for its cells.
#[derive(Debug, Default, PartialEq)]
struct Found {
    /// Numbers of a vector; 0 before the first.
    width: usize,
    cells: Vec<u64>,
    vectors: Vec<f32>,
}

impl Embedder {
    fn load(world: &dyn Collective, args: &EmbedArgs, encoder: Encoder) -> Result<Self> {
        let Encoder {
            assembly,
            config,
            checkpoint,
        } = encoder;
        let cells = &args.encoder;
        let selection = assembly.feed.split(&config, &cells.split)?;
        let overlap = &assembly.feed.overlap;
        let about = json!({
            "format_version": 1,
            "run": cells.run,
            "checkpoint": checkpoint.as_deref().and_then(Path::file_name).map(|n| n.to_string_lossy()),
            "architecture": config.backbone.architecture,
            "backbone": assembly.backbone.origin,
            "backbone_fingerprint": assembly.backbone.fingerprint,
            "corpus_fingerprint": assembly.feed.corpus.fingerprint(),
            "split": cells.split,
            "unit_length": args.unit_length,
            "genes": overlap.corpus_genes,
            "genes_with_token": overlap.matched,
        });
        let share = Share {
            rank: world.topology().rank,
            world_size: world.topology().world_size,
        };
        let loader = assembly.feed.evaluation_loader(&config, selection, share)?;
        Ok(Self {
            assembly,
            loader,
            unit_length: args.unit_length,
            about,
        })
    }

    /// What every rank does; rank 0, which is given a directory, writes what all found.
    fn write(&mut self, world: &dyn Collective, dir: Option<&Path>) -> Result<String> {
        let mut width = 0;
        let mut table = dir.map(|dir| Table::new(dir.join(TABLE)));
        let mut cells = 0;
        for step in self.loader.epoch(0, 0) {
            let own = self.embed_step(world, &step?)?;
            let parts = world.gather(&own.encode())?.unwrap_or_default();
            let Some(table) = &mut table else { continue };
            let mut found = Found::default();
            for part in &parts {
                found.append(part)?;
            }
            width = found.width;
            cells += found.cells.len();
            let ids = self.assembly.feed.corpus.cell_ids(&found.cells)?;
            table.append(vec![
                ("cell_id".into(), Arc::new(StringArray::from(ids)), false),
                (
                    "cell_index".into(),
                    Arc::new(UInt64Array::from(found.cells)),
                    false,
                ),
                (
                    "embedding".into(),
                    table::vectors(found.vectors, width)?,
                    false,
                ),
            ])?;
        }
        let (Some(table), Some(dir)) = (table, dir) else {
            return Ok(String::new());
        };
        table.close()?;
        self.about["cells"] = cells.into();
        self.about["width"] = width.into();
        let text = serde_json::to_string_pretty(&self.about).unwrap_or_default() + "\n";
        fsx::write_atomic(&dir.join(ABOUT), text.as_bytes())?;
        let overlap = &self.assembly.feed.overlap;
        Ok(format!(
            "{cells} cells embedded in {width} dimensions; {} of {} genes have a token",
            overlap.matched, overlap.corpus_genes
        ))
    }

    fn embed_step(&self, world: &dyn Collective, step: &StepBatches) -> Result<Found> {
        let mut found = Found::default();
        let model = self.assembly.model.as_ref();
        let passes = shard::passes(world, model, step.micro.len())?;
        for micro in &step.micro {
            let batch = self.assembly.staging.stage(micro)?;
            let cell = tch::no_grad(|| -> Result<_> {
                let cell = model.encode(&batch.inputs, Pass::EVALUATION)?.cell;
                if self.unit_length {
                    Ok(scpeft_model::loss::normalize(&cell)?)
                } else {
                    Ok(cell)
                }
            })?;
            let vectors = host_values(&cell)?;
            let width = vectors.len() / micro.rows.max(1);
            let mut rows = vectors.chunks(width.max(1));
            if let Some(bad) = rows.position(|row| row.iter().any(|x| !x.is_finite())) {
                return Err(Failure::new(
                    exit::NON_FINITE,
                    format!(
                        "cell {}: its embedding is not finite\n\
                         help: the run diverged, or the cell's values are extreme; try another `--checkpoint`, and `scpeft-data verify`",
                        micro.cells[bad]
                    ),
                ));
            }
            found.width = width;
            found.cells.extend(&micro.cells);
            found.vectors.extend(vectors);
        }
        shard::join_evaluation(passes, model, step.micro.len())?;
        Ok(found)
    }
}

impl Found {
    /// Little-endian: width, cells, vectors.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.width as u64).to_le_bytes().to_vec();
        bytes.extend(self.cells.iter().flat_map(|x| x.to_le_bytes()));
        bytes.extend(self.vectors.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    /// Adds what a rank sent.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let broken = || Failure::new(exit::INTERNAL, "a rank sent malformed embeddings");
        let (width, rest) = bytes.split_first_chunk::<8>().ok_or_else(broken)?;
        let width = u64::from_le_bytes(*width) as usize;
        let row = 8 + 4 * width;
        if !rest.len().is_multiple_of(row) {
            return Err(broken());
        }
        self.width = self.width.max(width);
        let (cells, vectors) = rest.split_at(rest.len() / row * 8);
        let cells = cells.as_chunks::<8>().0.iter();
        self.cells.extend(cells.map(|b| u64::from_le_bytes(*b)));
        let vectors = vectors.as_chunks::<4>().0.iter();
        self.vectors.extend(vectors.map(|b| f32::from_le_bytes(*b)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_survive_the_way_to_rank_0() {
        let found = Found {
            width: 3,
            cells: vec![3, 900_000_000_000],
            vectors: vec![0.5, -1.0, f32::MIN_POSITIVE, 7.0, 8.0, -0.0],
        };
        let mut back = Found::default();
        back.append(&found.encode()).unwrap();
        back.append(&Found::default().encode()).unwrap();
        assert_eq!(back, found);
        assert!(back.append(&found.encode()[..40]).is_err());
    }
}

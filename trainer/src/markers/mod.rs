//! Marker genes: which genes `<cls>` attends to in one group of cells more than in another, beside a
//! plain test of their expression.

mod attention;
mod contrast;
mod expression;
mod write;

use std::path::Path;
use std::time::Instant;

use scpeft_collective::Collective;
use scpeft_config::Config;
use scpeft_data::{Corpus, Selection};

use crate::Outcome;
use crate::args::MarkersArgs;
use crate::assembly::Assembly;
use crate::consensus::agree;
use crate::encoder::Encoder;
use crate::failure::{Failure, Result};
use crate::trained::Output;

use attention::Attention;
use contrast::Contrast;
use expression::Expression;

/// The table of markers in the output directory.
const TABLE: &str = "markers.parquet";
/// What products of queries and keys may take, with what is needed to rank them.
const MEMORY_BYTES: u64 = 1 << 30;

/// Finds markers as `args` say; the whole of `scpeft-train markers`.
///
/// # Collective
/// Must be called by all ranks.
///
/// # Errors
/// Whatever is wrong with run, corpus, groups or output directory; a backbone without such a statistic;
/// more genes than fit into memory.
pub fn markers(world: &dyn Collective, args: &MarkersArgs) -> Result<Outcome> {
    let output = Output {
        path: &args.output,
        overwrite: args.overwrite,
        table: TABLE,
    };
    let known = agree(world, expression::gene_list(args.gene_list.as_deref()))?;
    let encoder = Encoder::open(world, &args.encoder, &output, whole_cells)?;
    let markers = Markers::new(args, encoder);
    let mut markers = agree(world, markers)?;
    let done = output.publish(world, |dir| markers.run(world, dir, &known));
    match done {
        Err(failure) if world.topology().world_size > 1 => {
            tracing::error!("rank {}: {failure}", world.topology().rank);
            world.abort(failure.code)
        }
        result => result.map(|()| Outcome::Done),
    }
}

/// All genes of every cell, expressed or not, a cell at a time: as published, and so that every cell has
/// the same genes to rank.
fn whole_cells(config: &mut Config) -> Result<()> {
    let genes = Corpus::open(&config.data.corpus)?.genes().len();
    config.data.include_zero_genes = true;
    config.data.max_len = genes + 1;
    config.train.micro_batch_tokens = None;
    config.train.micro_batch_cells = Some(1);
    Ok(())
}

/// Cells, groups and the contrasts between them.
struct Markers<'a> {
    args: &'a MarkersArgs,
    assembly: Assembly,
    config: Config,
    layer: usize,
    /// The group of each cell of the corpus, -1 for none.
    groups: Vec<i32>,
    names: Vec<String>,
    contrasts: Vec<Contrast>,
    selection: Selection,
}

impl<'a> Markers<'a> {
    fn new(args: &'a MarkersArgs, encoder: Encoder) -> Result<Self> {
        let Encoder {
            assembly, config, ..
        } = encoder;
        let corpus = &assembly.feed.corpus;
        let names = corpus.categories(&args.groups)?.to_vec();
        let groups = corpus.obs_codes(&args.groups)?;
        let selection = assembly.feed.split(&config, &args.encoder.split)?;
        let mut sizes = vec![0u64; names.len()];
        for cell in selection.cell_indices() {
            if let Ok(group) = usize::try_from(groups[cell as usize]) {
                sizes[group] += 1;
            }
        }
        let contrasts = contrast::choose(args, &names, &sizes)?;
        let selection = selection.and(|cell| groups[cell as usize] >= 0);
        let shape = assembly.backbone.shape;
        let layer = args.layer.unwrap_or(shape.n_layers - 1);
        if layer >= shape.n_layers {
            return Err(Failure::config(format!(
                "`--layer {layer}`: the backbone has layers 0 to {}",
                shape.n_layers - 1
            )));
        }
        require_room(
            assembly.feed.overlap.matched as u64 + 1,
            shape.n_heads as u64,
        )?;
        Ok(Self {
            args,
            assembly,
            config,
            layer,
            groups,
            names,
            contrasts,
            selection,
        })
    }

    fn run(
        &mut self,
        world: &dyn Collective,
        dir: Option<&Path>,
        known: &[String],
    ) -> Result<String> {
        let begun = Instant::now();
        let attention = Attention::collect(world, self)?;
        let seconds = begun.elapsed().as_secs_f64();
        let Some(dir) = dir else {
            return Ok(String::new());
        };
        let corpus = &self.assembly.feed.corpus;
        let genes = attention.genes();
        let expression = Expression::collect(
            corpus,
            &self.selection,
            (&self.groups, self.names.len()),
            genes,
            &self.contrasts,
        )?;
        let tables: Vec<contrast::Found> = (self.contrasts.iter().zip(&expression.p_values))
            .map(|(c, p)| contrast::compare(c, &attention, &expression, p, known, corpus))
            .collect();
        write::all(dir, self, &attention, &expression, &tables, seconds)?;
        Ok(write::summary(
            &tables,
            attention.cells(),
            seconds,
            self.args.top,
        ))
    }
}

/// Refuses lengths whose products do not fit.
fn require_room(len: u64, heads: u64) -> Result<()> {
    // f32 products of all heads; for one head at a time order (i64), places, ranks and what is sorted.
    let needed = len * len * (4 * heads + 24);
    if needed <= MEMORY_BYTES {
        return Ok(());
    }
    let fits = (MEMORY_BYTES as f64 / (4 * heads + 24) as f64).sqrt() as u64 - 1;
    Err(Failure::config(format!(
        "{} genes: the attention of a cell is {len} x {len} products for each of {heads} heads, {:.1} GiB with what it takes to rank them, more than {:.1}\n\
         help: at most {fits} genes fit; `scpeft-data import --hvg 2000` keeps the most variable ones",
        len - 1,
        needed as f64 / f64::from(1 << 30),
        MEMORY_BYTES as f64 / f64::from(1 << 30),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_number_of_genes_fits_and_all_of_them_do_not() {
        require_room(1850, 8).unwrap();
        let message = require_room(30_001, 8).unwrap_err().message;
        assert!(
            message.contains("30000 genes") && message.contains("at most 4377 genes"),
            "{message}"
        );
    }
}

//! Sums of attention ranks by group and gene, over all cells and ranks.

use scpeft_collective::Collective;
use scpeft_protocol::exit;

use super::Markers;
use crate::failure::{Failure, Result};
use crate::feed::Share;
use crate::shard;
use crate::trained::host_values;

/// Mean attention rank of each gene in each group.
pub(super) struct Attention {
    /// Genes of the corpus that have a token, ascending.
    genes: Vec<u32>,
    /// Cells of each group.
    sizes: Vec<f64>,
    /// Group by group, in the order of `genes`.
    sums: Vec<f64>,
}

impl Attention {
    /// Runs every cell of the selection through the model.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the backbone has no such statistic, a value is not finite, or a cell cannot be read.
    pub(super) fn collect(world: &dyn Collective, markers: &Markers<'_>) -> Result<Self> {
        let feed = &markers.assembly.feed;
        let corpus = &feed.corpus;
        let tokens = feed.gene_tokens();
        let mut place_of = vec![None; markers.assembly.backbone.shape.vocab as usize];
        let mut genes = Vec::new();
        for (gene, token) in (0..corpus.genes().len() as u32).zip(&tokens) {
            if let Some(token) = token {
                place_of[*token as usize] = Some(genes.len());
                genes.push(gene);
            }
        }
        let share = Share {
            rank: world.topology().rank,
            world_size: world.topology().world_size,
        };
        let loader = feed.evaluation_loader(&markers.config, markers.selection.clone(), share)?;
        let n = genes.len();
        let groups = markers.names.len();
        // Sums of each group, then cells of each group.
        let mut sums = vec![0.0f64; groups * n + groups];
        let model = markers.assembly.model.as_ref();
        for step in loader.epoch(0, 0) {
            let step = step?;
            let passes = shard::passes(world, model, step.micro.len())?;
            for micro in &step.micro {
                let batch = markers.assembly.staging.stage(micro)?;
                let ranks = model.attention_ranks(&batch.inputs, markers.layer)?;
                let ranks = host_values(&ranks)?;
                let width = micro.len - 1;
                for (row, &cell) in micro.cells.iter().enumerate() {
                    let group = markers.groups[cell as usize] as usize;
                    let tokens = &micro.gene_ids[row * micro.len + 1..(row + 1) * micro.len];
                    for (token, &rank) in tokens.iter().zip(&ranks[row * width..]) {
                        if !rank.is_finite() {
                            return Err(not_finite(cell));
                        }
                        if let Some(gene) = place_of[*token as usize] {
                            sums[group * n + gene] += f64::from(rank);
                        }
                    }
                    sums[groups * n + group] += 1.0;
                }
            }
            shard::join_evaluation(passes, model, step.micro.len())?;
        }
        world.all_reduce_sum_f64(&mut sums)?;
        let sizes = sums.split_off(groups * n);
        Ok(Self { genes, sizes, sums })
    }

    /// Genes of the corpus that were ranked, ascending.
    pub(super) fn genes(&self) -> &[u32] {
        &self.genes
    }

    /// Cells that were ranked.
    pub(super) fn cells(&self) -> u64 {
        self.sizes.iter().sum::<f64>() as u64
    }

    /// Cells of a group.
    pub(super) fn size(&self, group: usize) -> f64 {
        self.sizes[group]
    }

    /// Sum of the ranks of a gene, by its place in [`Attention::genes`], over the cells of a group.
    pub(super) fn sum(&self, group: usize, gene: usize) -> f64 {
        self.sums[group * self.genes.len() + gene]
    }
}

fn not_finite(cell: u64) -> Failure {
    Failure::new(
        exit::NON_FINITE,
        format!(
            "cell {cell}: its attention is not finite\n\
             help: the run diverged, or the cell's values are extreme; try another `--checkpoint`, and `scpeft-data verify`"
        ),
    )
}

//! A treated cell as a row: a control profile in, its own profile out.

use std::sync::Arc;

use super::{Normal, Panel, Pool};
use crate::rng::{Purpose, Rng};
use crate::tokenize::{Cell, CellKey, CellTokenizer, Tokenizer, Tokens};

/// Where the control profiles of a group come from.
#[derive(Debug, Clone)]
pub enum Controls {
    /// One profile a group, laid end to end.
    Means(Vec<f32>),
    /// A cell of the group's pool, drawn by (seed, epoch, treated cell): whichever rank draws.
    Pools(Vec<Pool>),
}

/// Makes rows of treated cells. Every row has the tokens of the whole panel.
#[derive(Debug, Clone)]
pub struct PairTokenizer {
    /// The genes.
    pub panel: Arc<Panel>,
    /// How values become expression.
    pub normal: Normal,
    /// Control profiles.
    pub controls: Controls,
    /// The control group of each cell of the corpus; a group without cells gives zeros, so it is to
    /// be refused before.
    pub group_of: Vec<u32>,
    /// Seed of the draws.
    pub seed: u64,
    /// Id of `<pad>`; rows have none.
    pub pad_id: i32,
}

impl PairTokenizer {
    fn write_control(&self, key: CellKey, row: &mut [f32]) {
        let group = self.group_of[key.cell as usize] as usize;
        match &self.controls {
            Controls::Means(means) => {
                let width = self.panel.len();
                row.copy_from_slice(&means[group * width..(group + 1) * width]);
            }
            Controls::Pools(pools) => {
                let pool = &pools[group];
                if !pool.is_empty() {
                    let mut rng = Rng::new(self.seed, Purpose::Control, key.mask_epoch, key.cell);
                    pool.write(rng.below(pool.len() as u32) as usize, row);
                }
            }
        }
    }
}

impl Tokenizer for PairTokenizer {
    fn worker(&self) -> Box<dyn CellTokenizer + '_> {
        Box::new(Worker {
            owner: self,
            values: Vec::new(),
        })
    }

    fn pad_id(&self) -> i32 {
        self.pad_id
    }

    fn pad_value(&self) -> f32 {
        0.0
    }

    fn max_len(&self) -> usize {
        self.panel.len()
    }

    fn most_tokens(&self, _values: usize) -> usize {
        self.panel.len()
    }
}

struct Worker<'a> {
    owner: &'a PairTokenizer,
    values: Vec<f32>,
}

impl CellTokenizer for Worker<'_> {
    fn tokenize(&mut self, cell: Cell<'_>, key: CellKey, out: &mut Tokens) -> bool {
        let owner = self.owner;
        let panel = owner.panel.as_ref();
        let begin = out.ids.len();
        out.ids.extend_from_slice(panel.tokens());
        out.values.resize(begin + panel.len(), 0.0);
        owner.write_control(key, &mut out.values[begin..]);
        self.values.clear();
        self.values.extend_from_slice(cell.values);
        owner.normal.apply(&mut self.values);
        out.targets.resize(begin + panel.len(), 0.0);
        panel.spread(cell.genes, &self.values, &mut out.targets[begin..]);
        out.end_row();
        cell.genes.iter().any(|&gene| panel.column(gene).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(controls: Controls) -> PairTokenizer {
        let known = [(0, 10), (2, 12), (3, 13)].into_iter();
        PairTokenizer {
            panel: Arc::new(Panel::of(4, known)),
            normal: Normal {
                total: Some(8.0),
                log1p: false,
            },
            controls,
            group_of: vec![0, 1, 1],
            seed: 5,
            pad_id: 0,
        }
    }

    fn row(tokenizer: &PairTokenizer, cell: u64, epoch: u64) -> Tokens {
        let mut out = Tokens::default();
        let own = Cell {
            genes: &[1, 2],
            values: &[1.0, 3.0],
        };
        let key = CellKey::new(cell, epoch, 0);
        assert!(tokenizer.worker().tokenize(own, key, &mut out));
        out
    }

    #[test]
    fn a_row_holds_the_control_mean_and_the_cell_scaled_over_all_its_genes() {
        let means = tokenizer(Controls::Means(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
        let out = row(&means, 2, 0);
        assert_eq!(out.ids, [10, 12, 13]);
        assert_eq!(out.values, [4.0, 5.0, 6.0]);
        // 3 of 4 counts, scaled to 8; gene 1 has no token.
        assert_eq!(out.targets, [0.0, 6.0, 0.0]);
        assert_eq!(out.rows(), 1);
    }

    #[test]
    fn control_cells_are_drawn_by_cell_and_epoch_alone_and_evenly() {
        let mut pool = Pool::default();
        let panel = Panel::of(4, [(0, 10), (2, 12), (3, 13)].into_iter());
        for cell in 0..4 {
            pool.push(&panel, &[2], &[cell as f32 + 1.0]);
        }
        let pools = tokenizer(Controls::Pools(vec![Pool::default(), pool]));
        let drawn = |epoch: u64| row(&pools, 1, epoch).values[1];
        assert_eq!(drawn(3), drawn(3));
        let mut counts = [0; 4];
        for epoch in 0..400 {
            counts[drawn(epoch) as usize - 1] += 1;
        }
        // 100 expected each; 5 standard deviations are 43.
        assert!(
            counts.iter().all(|n: &i32| (n - 100).abs() < 43),
            "{counts:?}"
        );
    }
}

//! Prepending the class token, and cutting sequences that are too long.

use super::Tokens;
use crate::preprocess::Draws;

/// How genes and values become a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceOptions {
    /// Longest sequence, the class token included.
    pub max_len: usize,
    /// Whether genes with value 0 are part of the sequence.
    pub include_zero_genes: bool,
    /// The class token that heads the sequence, if any.
    pub cls_id: Option<i32>,
}

/// Makes a sequence of genes and their values. Keeps its buffers between cells.
#[derive(Debug)]
pub struct Sequencer {
    options: SequenceOptions,
    kept: Vec<u32>,
    drawn: Vec<u32>,
}

impl Sequencer {
    /// A sequencer with these options.
    pub fn new(options: SequenceOptions) -> Self {
        Self {
            options,
            kept: Vec::new(),
            drawn: Vec::new(),
        }
    }

    /// Adds a sequence to `out`. When there are too many genes, as many as fit are drawn without
    /// replacement, and stand in the order drawn.
    pub fn push<D: Draws + ?Sized>(
        &mut self,
        ids: &[i32],
        values: &[f32],
        draws: &mut D,
        out: &mut Tokens,
    ) {
        self.kept.clear();
        let zeros = self.options.include_zero_genes;
        self.kept
            .extend((0..ids.len() as u32).filter(|&place| zeros || values[place as usize] != 0.0));
        let room = self.options.max_len - usize::from(self.options.cls_id.is_some());
        if let Some(cls) = self.options.cls_id {
            out.ids.push(cls);
            out.values.push(0.0);
        }
        if self.kept.len() > room {
            draws.sample(self.kept.len(), room, &mut self.drawn);
            let kept = &self.kept;
            let places = self.drawn.iter().map(|&d| kept[d as usize] as usize);
            out.ids.extend(places.clone().map(|p| ids[p]));
            out.values.extend(places.map(|p| values[p]));
        } else if self.kept.len() == ids.len() {
            out.ids.extend_from_slice(ids);
            out.values.extend_from_slice(values);
        } else {
            out.ids.extend(self.kept.iter().map(|&p| ids[p as usize]));
            out.values
                .extend(self.kept.iter().map(|&p| values[p as usize]));
        }
        out.end_row();
    }
}

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
        let mut kept = std::mem::take(&mut self.kept);
        kept.clear();
        let zeros = self.options.include_zero_genes;
        kept.extend((0..ids.len() as u32).filter(|&place| zeros || values[place as usize] != 0.0));
        self.push_places(kept.len(), draws, out, |place| {
            let place = kept[place] as usize;
            (ids[place], values[place])
        });
        self.kept = kept;
    }

    /// Adds a sequence of `n` genes, of which `token` gives id and value. It is asked only for those
    /// that fit.
    pub(super) fn push_places<D: Draws + ?Sized>(
        &mut self,
        n: usize,
        draws: &mut D,
        out: &mut Tokens,
        token: impl Fn(usize) -> (i32, f32),
    ) {
        let room = self.options.max_len - usize::from(self.options.cls_id.is_some());
        if let Some(cls) = self.options.cls_id {
            out.ids.push(cls);
            out.values.push(0.0);
        }
        let begin = out.ids.len();
        let length = n.min(room);
        out.ids.resize(begin + length, 0);
        out.values.resize(begin + length, 0.0);
        let places = out.ids[begin..].iter_mut().zip(&mut out.values[begin..]);
        if n > room {
            draws.sample(n, room, &mut self.drawn);
            for ((id, value), &place) in places.zip(&self.drawn) {
                (*id, *value) = token(place as usize);
            }
        } else {
            for (place, (id, value)) in places.enumerate() {
                (*id, *value) = token(place);
            }
        }
        out.end_row();
    }
}

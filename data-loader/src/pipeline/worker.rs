//! What a background thread does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender};

use super::Shared;
use super::window::{Carried, Part, Window};
use crate::batch::MicroBatch;
use crate::corpus::CellBuffer;
use crate::tokenize::{Cell, CellKey, CellTokenizer, Tokens};
use crate::{Error, Result};

/// Something to do.
pub(super) enum Job {
    /// Decode a row group ahead.
    Decode { window: Arc<Window>, member: usize },
    /// Copy cells out of their window, so that it can be let go.
    Carry(Arc<Carried>),
    /// Make a micro-batch.
    Micro {
        batch: u64,
        index: usize,
        domain: Option<u32>,
        parts: Vec<Part>,
    },
}

pub(super) type Done = Result<(u64, MicroBatch)>;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) queue: Receiver<Job>,
    pub(super) results: Sender<Done>,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) empty: Arc<AtomicU64>,
    pub(super) mask_epoch: u64,
}

impl Worker {
    pub(super) fn run(self) {
        let tokenizer = self.shared.tokenizer.clone();
        let mut cells = tokenizer.worker();
        let mut tokens = Tokens::default();
        let mut buffer = CellBuffer::default();
        while let Ok(job) = self.queue.recv() {
            if self.cancelled.load(Ordering::Relaxed) {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(|| {
                self.work(job, cells.as_mut(), &mut tokens, &mut buffer)
            }));
            let done = done.unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Err(Error::internal(format!(
                    "a thread of the loader panicked: {}",
                    text.unwrap_or_default()
                )))
            });
            let sent = match done {
                Ok(None) => Ok(()),
                Ok(Some(done)) => self.results.send(Ok(done)),
                Err(error) => self.results.send(Err(error)),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn work(
        &self,
        job: Job,
        cells: &mut dyn CellTokenizer,
        tokens: &mut Tokens,
        buffer: &mut CellBuffer,
    ) -> Result<Option<(u64, MicroBatch)>> {
        match job {
            // An error of a hint is met again by the job that needs the cells.
            Job::Decode { window, member } => {
                let _ = window.block(&self.shared.source, member);
                Ok(None)
            }
            Job::Carry(carried) => {
                let _ = carried.copy(&self.shared.source);
                Ok(None)
            }
            Job::Micro {
                batch,
                index,
                domain,
                parts,
            } => {
                let micro = self.micro_batch(&parts, cells, tokens, buffer)?;
                let micro = MicroBatch {
                    index,
                    domain,
                    ..micro
                };
                Ok(Some((batch, micro)))
            }
        }
    }

    fn micro_batch(
        &self,
        parts: &[Part],
        tokenizer: &mut dyn CellTokenizer,
        tokens: &mut Tokens,
        buffer: &mut CellBuffer,
    ) -> Result<MicroBatch> {
        tokens.clear();
        let mut ids = Vec::with_capacity(parts.iter().map(Part::len).sum());
        let mut empty = 0;
        for part in parts {
            for place in part.places() {
                let at = part.cell(place);
                if !part.unpack(place, &self.shared.source, buffer)? {
                    continue;
                }
                let cell = Cell {
                    genes: &buffer.genes,
                    values: &buffer.values,
                };
                let key = CellKey::new(at.cell, self.mask_epoch, at.occurrence);
                empty += u64::from(!tokenizer.tokenize(cell, key, tokens));
                ids.push(at.cell);
            }
        }
        self.empty.fetch_add(empty, Ordering::Relaxed);
        let codes = |codes: &Option<Vec<i32>>| {
            codes.as_ref().map_or_else(Vec::new, |codes| {
                ids.iter().map(|&c| i64::from(codes[c as usize])).collect()
            })
        };
        let labels = codes(&self.shared.labels);
        let batch_labels = codes(&self.shared.batch_labels);
        let tokenizer = &self.shared.tokenizer;
        let padding = (tokenizer.pad_id(), tokenizer.pad_value());
        Ok(MicroBatch {
            labels,
            batch_labels,
            ..MicroBatch::pad(ids, tokens, padding.0, padding.1)
        })
    }
}

//! Saving as the loop sees it: copy, hand over, and learn later what came of it.

use std::path::{Path, PathBuf};

use scpeft_checkpoint::{CheckpointStore, Policy, fsx};
use scpeft_config::Config;

use super::mirroring::Mirroring;
use super::snapshot::{Shapes, Snapshot};
use super::writer::{Done, Evaluated, Job, Plan, Writer};
use super::{EmaState, Progress, RunDir, STATE_VERSION, State};
use crate::adapter_file::{self, AdapterForm};
use crate::assembly::Assembly;
use crate::failure::{Failure, Result};
use crate::identity::Identity;
use crate::optim::{Adam, Ema};

/// A save that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// The step that it is of.
    pub(crate) step: u64,
    /// Seconds from hand-over to the end, while the loop went on.
    pub(crate) write_seconds: f64,
    /// Bytes written, or why it failed. The checkpoints before it are untouched then.
    pub(crate) outcome: Result<u64>,
}

/// Saves checkpoints in the background, one at a time; rank 0 only.
#[derive(Debug)]
pub(crate) struct Saver {
    store: CheckpointStore,
    writer: Writer,
    mirroring: Option<Mirroring>,
    /// Memory of the next copy; away while a checkpoint is being written.
    spare: Option<Snapshot>,
    failures: u64,
    max_failures: u64,
    last: Option<PathBuf>,
}

impl Saver {
    /// `from` is the checkpoint that the run continues from, `best` the step that its state calls
    /// best: a run that was killed between writing a checkpoint and marking it is put right here.
    ///
    /// # Errors
    /// When leftovers of a killed run cannot be removed, `BEST` cannot be written, or the system
    /// refuses a thread.
    pub(crate) fn new(
        run_dir: &RunDir,
        from: Option<&Path>,
        best: Option<u64>,
        config: &Config,
        assembly: &Assembly,
    ) -> Result<Self> {
        let store = run_dir.store.clone();
        store.remove_leftovers()?;
        if let Some(step) = best.filter(|&step| store.path(step).is_dir()) {
            store.mark_best(step)?;
        }
        let shapes = Shapes::of(&assembly.params);
        let averaged = config.train.ema_decay > 0.0;
        let spare = Some(Snapshot::reserve(&shapes, averaged));
        let keep = &config.checkpoint;
        let policy = Policy {
            keep_last: keep.keep_last,
            keep_best: keep.keep_best,
            keep_every_steps: keep.keep_every_steps,
        };
        let mirroring = Mirroring::start(config, &store, policy)?;
        if let (Some(mirroring), Some(_)) = (&mirroring, from) {
            // The run may have been killed before the mirror had its last checkpoint.
            mirroring.announce();
        }
        let plan = Plan {
            store: store.clone(),
            form: AdapterForm::of(config, assembly)?,
            shapes,
            policy,
        };
        Ok(Self {
            store,
            writer: Writer::start(plan)?,
            mirroring,
            spare,
            failures: 0,
            max_failures: keep.max_failures,
            last: from.map(Path::to_owned),
        })
    }

    /// Copies the state of the run and has it written. The save before must have ended: see
    /// [`Saver::wait`].
    ///
    /// # Errors
    /// When libtorch fails or the thread has ended.
    pub(crate) fn start(
        &mut self,
        config: &Config,
        assembly: &Assembly,
        adam: &Adam,
        ema: Option<&Ema>,
        progress: &Progress<'_>,
        evaluated: Option<Evaluated>,
    ) -> Result<()> {
        let Some(mut snapshot) = self.spare.take() else {
            let message = "a checkpoint was begun before the one before it had ended";
            return Err(Failure::new(scpeft_protocol::exit::INTERNAL, message));
        };
        snapshot.take(&assembly.params, adam, ema)?;
        let state = State {
            format_version: STATE_VERSION,
            cursor: *progress.cursor,
            updates: adam.state().2,
            ema: ema.map(|ema| EmaState {
                updates: ema.state().1,
                in_adapter: config.train.ema_evaluate && ema.is_known(),
            }),
            selection: progress.selection.clone(),
            world_size: progress.world_size,
            identity: Identity::of(config, assembly),
        };
        self.writer.submit(Job {
            snapshot,
            state,
            evaluated,
        })
    }

    /// What came of the save under way, if it has ended meanwhile.
    ///
    /// # Errors
    /// When too many saves in a row failed, or the thread has ended.
    pub(crate) fn poll(&mut self) -> Result<Option<Finished>> {
        if self.spare.is_some() {
            return Ok(None);
        }
        match self.writer.poll()? {
            Some(done) => self.settle(done).map(Some),
            None => Ok(None),
        }
    }

    /// Waits for the save under way; `None` when there is none.
    ///
    /// # Errors
    /// As [`Saver::poll`]; also when it takes forever.
    pub(crate) fn wait(&mut self) -> Result<Option<Finished>> {
        if self.spare.is_some() {
            return Ok(None);
        }
        let done = self.writer.wait()?;
        self.settle(done).map(Some)
    }

    fn settle(&mut self, done: Done) -> Result<Finished> {
        self.spare = Some(done.snapshot);
        match &done.outcome {
            Ok(_) => {
                self.failures = 0;
                if let Some(mirroring) = &self.mirroring {
                    mirroring.announce();
                }
                self.last = Some(self.store.path(done.step));
            }
            Err(failure) => {
                self.failures += 1;
                let said = format!(
                    "the checkpoint of step {} was not saved: {failure}",
                    done.step
                );
                if self.failures >= self.max_failures {
                    return Err(Failure::new(
                        failure.code,
                        format!(
                            "{said}\n{} saves in a row failed, and `checkpoint.max_failures` is {}; earlier checkpoints are untouched\n\
                             help: make room or give access, then `--resume`",
                            self.failures, self.max_failures
                        ),
                    ));
                }
                tracing::warn!(
                    "{said}; earlier checkpoints are untouched and the run goes on (failure {} of at most {})",
                    self.failures,
                    self.max_failures
                );
            }
        }
        Ok(Finished {
            step: done.step,
            write_seconds: done.seconds,
            outcome: done.outcome,
        })
    }

    /// Tries to bring the mirror up to date that failed since the last call.
    pub(crate) fn mirror_failures(&mut self) -> u64 {
        let mirroring = self.mirroring.as_mut();
        mirroring.map_or(0, Mirroring::new_failures)
    }

    /// Waits until the mirror, if there is one, has the last checkpoint.
    ///
    /// # Errors
    /// When the store does not take it in time.
    pub(crate) fn settle_mirror(&self) -> Result<()> {
        self.mirroring.as_ref().map_or(Ok(()), Mirroring::settle)
    }

    /// Bytes of the adapter directory last written.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn adapter_bytes(&self) -> Result<u64> {
        let Some(path) = &self.last else { return Ok(0) };
        Ok(fsx::files_below(&adapter_file::directory(path))?
            .iter()
            .map(|(_, bytes)| bytes)
            .sum())
    }
}

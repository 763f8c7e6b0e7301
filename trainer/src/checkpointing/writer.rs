//! The thread that writes checkpoints: one at a time, each from a copy of the run's state.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use scpeft_checkpoint::{CheckpointStore, HostTensor, Policy, Score, fsx, write_safetensors};
use scpeft_protocol::exit;

use super::snapshot::{Shapes, Snapshot};
use super::{EMA_MEAN, FIRST_MOMENT, PARAMETERS, SECOND_MOMENT, STATE, State, TRAINER};
use crate::adapter_file::AdapterForm;
use crate::failure::{Failure, Result};

/// No disk that still works takes longer for one checkpoint.
const PATIENCE: Duration = Duration::from_mins(10);

/// How an evaluation at the step of a checkpoint came out.
#[derive(Debug, Clone)]
pub(crate) struct Evaluated {
    pub(crate) score: Score,
    /// It is the best so far.
    pub(crate) is_best: bool,
}

/// One checkpoint to write.
pub(super) struct Job {
    pub(super) snapshot: Snapshot,
    pub(super) state: State,
    pub(super) evaluated: Option<Evaluated>,
}

/// What became of it.
pub(super) struct Done {
    pub(super) snapshot: Snapshot,
    pub(super) step: u64,
    /// Bytes of all its files.
    pub(super) outcome: Result<u64>,
    pub(super) seconds: f64,
}

/// What is the same at every checkpoint of a run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) store: CheckpointStore,
    pub(super) form: AdapterForm,
    pub(super) shapes: Shapes,
    pub(super) policy: Policy,
}

impl Plan {
    fn write(&self, job: &Job) -> Result<u64> {
        let step = job.state.cursor.step;
        let score = job.evaluated.as_ref().map(|e| e.score.clone());
        let saved = self.store.save(step, score, |dir| self.fill(dir, job))?;
        if job.evaluated.as_ref().is_some_and(|e| e.is_best) {
            self.store.mark_best(step)?;
        }
        // Only now, with the new one in its place, may an old one go.
        self.store.prune(self.policy)?;
        Ok(saved.bytes)
    }

    fn fill(&self, dir: &Path, job: &Job) -> Result<()> {
        let snapshot = &job.snapshot;
        let averaged = job.state.ema.is_some_and(|ema| ema.in_adapter);
        self.form
            .write(dir, &snapshot.tensors(&self.shapes, averaged))?;
        let flat = |name: &str, values| {
            let shape = vec![<[f32]>::len(values)];
            (name.to_owned(), HostTensor::borrow_f32(shape, values))
        };
        let mut tensors = vec![
            flat(FIRST_MOMENT, &snapshot.first),
            flat(SECOND_MOMENT, &snapshot.second),
        ];
        if job.state.ema.is_some() {
            tensors.push(flat(EMA_MEAN, &snapshot.mean));
        }
        if averaged {
            tensors.push(flat(PARAMETERS, &snapshot.flat));
        }
        write_safetensors(&dir.join(TRAINER), &tensors)?;
        let text = serde_json::to_string_pretty(&job.state)
            .map_err(|e| Failure::new(exit::INTERNAL, format!("{STATE}: {e}")))?;
        Ok(fsx::write_atomic(&dir.join(STATE), text.as_bytes())?)
    }
}

/// The loop's end of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: SyncSender<Job>,
    done: Receiver<Done>,
}

impl Writer {
    /// Starts the thread. It ends when this is dropped.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(plan: Plan) -> Result<Self> {
        let (jobs, work) = sync_channel::<Job>(1);
        let (report, done) = sync_channel(1);
        let body = move || {
            for job in work {
                let begun = Instant::now();
                let outcome = plan.write(&job);
                let done = Done {
                    step: job.state.cursor.step,
                    snapshot: job.snapshot,
                    outcome,
                    seconds: begun.elapsed().as_secs_f64(),
                };
                if report.send(done).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("scpeft-checkpoint".into())
            .spawn(body)
            .map_err(|e| Failure::new(exit::INTERNAL, format!("checkpoint thread: {e}")))?;
        Ok(Self { jobs, done })
    }

    /// Hands a job over. The caller waits for the one before first.
    pub(super) fn submit(&self, job: Job) -> Result<()> {
        self.jobs.send(job).map_err(|_| gone())
    }

    /// What came of the job, if it is known already.
    pub(super) fn poll(&self) -> Result<Option<Done>> {
        match self.done.try_recv() {
            Ok(done) => Ok(Some(done)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone()),
        }
    }

    /// What came of the job.
    pub(super) fn wait(&self) -> Result<Done> {
        self.done.recv_timeout(PATIENCE).map_err(|e| match e {
            RecvTimeoutError::Timeout => Failure::new(
                exit::HANG,
                format!(
                    "a checkpoint is not written after {} s\nhelp: the disk or file server of `run.dir` does not answer",
                    PATIENCE.as_secs()
                ),
            ),
            RecvTimeoutError::Disconnected => gone(),
        })
    }
}

fn gone() -> Failure {
    Failure::new(
        exit::INTERNAL,
        "the thread that writes checkpoints has ended",
    )
}

//! The training loop: step, optimizer, schedule, evaluation, prediction, metrics.
//!
//! [`run::run`] is the loop, on one page; [`step::Stepper`] is one optimizer step;
//! [`assembly::Assembly`] puts corpus, backbone, adapters and task together. Whatever branches
//! (stop, skip, early stop, best) branches on values reduced over the ranks, so that every rank
//! takes the same branch.

mod adapter_file;
pub mod args;
pub mod assembly;
pub mod backbone;
mod checkpointing;
pub mod consensus;
mod determinism;
pub mod embed;
mod encoder;
pub mod evaluate;
pub mod exporter;
mod failure;
pub mod feed;
mod identity;
pub mod ledger;
mod loading;
pub mod markers;
mod movement;
mod non_finite;
mod normalized;
pub mod optim;
pub mod perturbation;
mod picture;
pub mod plan;
mod plot;
pub mod predict;
pub mod record;
pub mod report;
pub mod reporting;
pub mod responses;
pub mod run;
pub mod selection;
mod settings;
pub mod shard;
mod sheet;
mod sinks;
mod startup;
pub mod step;
mod stop;
mod straggler;
mod table;
pub mod task;
mod trained;
mod transport;
pub mod watch;

pub use failure::{Failure, Result, exit_code};
pub use stop::StopFlag;
pub use watch::Watch;

/// How a command ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything asked for was done.
    Done,
    /// Asked to stop; the state is saved and the run can be resumed.
    Preempted,
}

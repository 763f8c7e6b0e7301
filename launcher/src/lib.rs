//! Starts the ranks of a run on this machine and relays what became of them.
//!
//! Three parts: [`command`] turns what was asked for into one command line, without side effects;
//! [`supervise`] starts it, passes stop requests on and bounds how long they may take; [`relay`]
//! turns its end into an exit code and one line of explanation. Nothing here links MPI or libtorch,
//! so the launcher starts in milliseconds.

pub mod command;
pub mod cores;
pub mod relay;
pub mod supervise;

//! Starts the ranks of a run, watches over them and relays what became of them.
//!
//! [`command`] turns what was asked for into one command line, without side effects; [`hosts`] and
//! [`training`] read parts of it. [`session`] is a run from its first start to its last end:
//! [`supervise`] starts a command line, passes stop requests on and bounds how long they may take;
//! [`policy`] decides whether to start again; [`relay`] and [`diagnosis`] explain an end, [`lost`] finds
//! hosts that fell silent. [`guard`] stands around each rank and tells [`server`], which keeps the
//! [`board`]. [`state`] is what is known of a run as one structure, and [`page`] serves it. [`render`]
//! writes files for schedulers instead of starting anything. Nothing here links MPI or libtorch, so the
//! launcher starts in milliseconds.

pub mod board;
pub mod checkpoints;
pub mod command;
pub mod cores;
pub mod diagnosis;
pub mod events;
pub mod guard;
pub mod hosts;
pub mod lost;
pub mod page;
pub mod policy;
pub mod relay;
pub mod render;
pub mod server;
pub mod session;
pub mod state;
pub mod supervise;
pub mod training;
pub mod view;

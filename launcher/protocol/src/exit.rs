//! The exit codes of all four binaries, in one table.
//!
//! Schedulers and the launcher act on them: [`HANG`] and [`PREEMPTED`] are worth a retry, the others
//! are not.

/// Everything asked for was done.
pub const OK: i32 = 0;
/// A failure of the program itself or of its surroundings that no other code describes.
pub const INTERNAL: i32 = 1;
/// The configuration or the command line is wrong: retrying cannot help.
pub const CONFIG: i32 = 2;
/// The corpus or an input file is missing, malformed or disagrees with what the run needs.
pub const DATA: i32 = 3;
/// Backbone weights or adapter files are missing, malformed or do not fit.
pub const WEIGHTS: i32 = 4;
/// A wait ran out: a hang or a communication failure. A retry may succeed.
pub const HANG: i32 = 75;
/// The run was asked to stop, saved its state and can be resumed.
pub const PREEMPTED: i32 = 85;
/// Too many consecutive steps had non-finite gradients.
pub const NON_FINITE: i32 = 86;
/// A panic: a defect of the program, please report it.
pub const PANIC: i32 = 101;

/// The table in the form that `--help` prints.
pub const HELP: &str = "Exit codes:
  0   done
  1   unexpected failure of the program or the machine
  2   configuration or command line
  3   data: corpus or input file
  4   weights: backbone or adapter files
  75  hang or communication failure (a retry may succeed)
  85  preempted, state saved (resume continues)
  86  too many non-finite steps
  101 internal error (please report)";

//! Gathering equal parts of all ranks of a group, without waiting for them at once.

use crate::Result;

/// The ranks among which something is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// All ranks of the run.
    World,
    /// The ranks on this rank's host.
    Node,
}

/// Host memory of one gather: this rank's part, and where the parts of all ranks go.
///
/// # Safety
/// Both pointers stay valid and the same for as long as the value lives, even when it is moved;
/// `part` can be read and is not written to, `whole` can be written and is touched by nobody else;
/// they do not overlap.
pub unsafe trait GatherBuffer: std::fmt::Debug {
    /// `part_bytes` bytes.
    fn part(&self) -> *const u8;

    /// `part_bytes` bytes per rank of the group, in rank order.
    fn whole(&mut self) -> *mut u8;

    /// Size of a part.
    fn part_bytes(&self) -> usize;
}

/// A group of ranks that gather parts again and again, beside the collectives of the run.
pub trait AllGather: std::fmt::Debug {
    /// This rank's place in the group.
    fn rank(&self) -> usize;

    /// Ranks in the group.
    fn ranks(&self) -> usize;

    /// Starts to gather. The parts are there when [`Gathering::wait`] returns.
    ///
    /// # Collective
    /// Must be called by all ranks of the group, in the same order and with parts of the same size,
    /// and waited for. Other collectives may be issued meanwhile.
    ///
    /// # Errors
    /// When a part exceeds what one message can carry, or the transport fails.
    fn start(&self, buffer: Box<dyn GatherBuffer>) -> Result<Box<dyn Gathering>>;
}

/// A gather that was started. Dropping it waits too: the memory is in use until then.
pub trait Gathering: std::fmt::Debug {
    /// Waits until the parts of all ranks are there, and lets go of the memory.
    ///
    /// # Errors
    /// When the transport fails.
    fn wait(self: Box<Self>) -> Result<()>;
}

//! What the ranks of a host know of each other without MPI: one page of memory that they share.
//!
//! Each rank writes its own slot and reads the others'. The file behind it is removed as soon as
//! every rank has mapped it, so that nothing is left behind however a run ends.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use scpeft_collective::Collective;
use scpeft_protocol::heartbeat::Section;

use crate::failure::Result;

/// What one rank shows of itself. Times are nanoseconds of the host's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) rank: usize,
    pub(super) pid: u64,
    pub(super) section: Section,
    pub(super) step: u64,
    /// When it entered the section.
    pub(super) since: u64,
    /// Its last sign of progress.
    pub(super) beat: u64,
    /// Collectives entered.
    pub(super) entered: u64,
}

/// A slot in shared memory: eight words, so that ranks do not share cache lines.
#[repr(C, align(64))]
pub(super) struct Slot {
    pid: AtomicU64,
    section: AtomicU64,
    step: AtomicU64,
    since: AtomicU64,
    beat: AtomicU64,
    entered: AtomicU64,
    spare: [AtomicU64; 2],
}

impl Slot {
    pub(super) fn enter(&self, section: Section, now: u64) {
        self.section.store(section as u64, Ordering::Relaxed);
        self.since.store(now, Ordering::Relaxed);
        self.beat.store(now, Ordering::Release);
    }

    pub(super) fn beat(&self, now: u64) {
        self.beat.store(now, Ordering::Release);
    }

    pub(super) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Counts a collective; returns its number, from 1.
    pub(super) fn count(&self) -> u64 {
        self.entered.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// `None` for a rank that does not run on this host.
    fn read(&self, rank: usize) -> Option<State> {
        let beat = self.beat.load(Ordering::Acquire);
        let pid = self.pid.load(Ordering::Relaxed);
        (pid != 0).then_some(State {
            rank,
            pid,
            section: section_at(self.section.load(Ordering::Relaxed)),
            step: self.step.load(Ordering::Relaxed),
            since: self.since.load(Ordering::Relaxed),
            beat,
            entered: self.entered.load(Ordering::Relaxed),
        })
    }
}

/// The slots of all ranks, those of other hosts empty. The first slot holds the alarm.
pub(super) struct Board {
    memory: MmapRaw,
    rank: usize,
    world_size: usize,
}

impl Board {
    /// # Collective
    /// Must be called by all ranks.
    pub(super) fn open(world: &dyn Collective, now: u64) -> Result<Self> {
        let (rank, world_size) = (world.topology().rank, world.topology().world_size);
        let key = format!("scpeft-{}-{now}", std::process::id());
        let key = String::from_utf8_lossy(&world.broadcast(key.into_bytes())?).into_owned();
        let bytes = (world_size + 1) * size_of::<Slot>();
        let path = folder().join(key);
        let memory = map(&path, bytes).or_else(|error| {
            tracing::warn!(
                "rank {rank}: `{}`: {error}; the watchdog cannot tell which rank is behind",
                path.display()
            );
            MmapOptions::new().len(bytes).map_anon().map(MmapRaw::from)
        });
        world.barrier()?;
        // The first rank of a host that gets here removes it.
        let _ = std::fs::remove_file(&path);
        let memory = memory.map_err(crate::failure::io(&path))?;
        let board = Self {
            memory,
            rank,
            world_size,
        };
        let own = board.own();
        own.enter(Section::Setup, now);
        own.pid
            .store(u64::from(std::process::id()), Ordering::Release);
        Ok(board)
    }

    #[expect(
        clippy::cast_ptr_alignment,
        reason = "mapped memory begins on a page, which is aligned for everything"
    )]
    fn slot(&self, index: usize) -> &Slot {
        debug_assert!(index <= self.world_size);
        // SAFETY: the mapping holds `world_size + 1` slots, starts at a page and is zeroed; a slot is
        // nothing but atomics, valid for any bits and for writes of other processes.
        unsafe { &*self.memory.as_mut_ptr().cast::<Slot>().add(index) }
    }

    /// This rank's slot.
    pub(super) fn own(&self) -> &Slot {
        self.slot(self.rank + 1)
    }

    /// What this rank shows.
    pub(super) fn own_state(&self) -> State {
        let state = self.own().read(self.rank);
        state.expect("a rank writes its slot when it opens the board")
    }

    /// What the other ranks of this host show.
    pub(super) fn others(&self) -> Vec<State> {
        (0..self.world_size)
            .filter(|&rank| rank != self.rank)
            .filter_map(|rank| self.slot(rank + 1).read(rank))
            .collect()
    }

    /// Ranks of the run.
    pub(super) fn world_size(&self) -> usize {
        self.world_size
    }

    /// Raises the alarm; true for the first rank that does, which is to speak for the host.
    pub(super) fn raise_alarm(&self) -> bool {
        self.slot(0).pid.swap(1, Ordering::AcqRel) == 0
    }

    /// Whether a rank of this host has raised the alarm.
    pub(super) fn is_alarmed(&self) -> bool {
        self.slot(0).pid.load(Ordering::Acquire) != 0
    }
}

/// The section with this number. Only numbers of sections are ever stored.
pub(super) fn section_at(number: u64) -> Section {
    let found = Section::ALL.into_iter().find(|&s| s as u64 == number);
    found.unwrap_or(Section::Setup)
}

/// Memory that needs no disk, where the host has such a folder.
fn folder() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() {
        shared.to_owned()
    } else {
        std::env::temp_dir()
    }
}

fn map(path: &Path, bytes: usize) -> std::io::Result<MmapRaw> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    file.set_len(bytes as u64)?;
    MmapOptions::new().len(bytes).map_raw(&file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_collective::Single;

    #[test]
    fn a_rank_reads_what_it_wrote_and_the_file_is_gone() {
        let board = Board::open(&Single, 7).unwrap();
        assert_eq!(board.own_state().section, Section::Setup);
        board.own().set_step(3);
        board.own().enter(Section::Forward, 9);
        assert_eq!(board.own().count(), 1);
        let state = board.own_state();
        assert_eq!((state.step, state.since, state.beat), (3, 9, 9));
        assert_eq!((state.section, state.entered), (Section::Forward, 1));
        assert!(board.others().is_empty() && !board.is_alarmed());
        assert!(board.raise_alarm() && !board.raise_alarm());
        let name = format!("scpeft-{}-7", std::process::id());
        assert!(!folder().join(name).exists());
    }
}

//! What is decoded: windows of row groups, and cells that outlive their window.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::source::Source;
use super::worker::Job;
use crate::corpus::{CellBuffer, PackedBlock};
use crate::order::{CellRef, EpochOrder, SelectedGroup};
use crate::{Error, Result};

/// A window of the order, with the blocks of its row groups as they are decoded.
pub(super) struct Window {
    pub(super) cells: Vec<CellRef>,
    members: Vec<(SelectedGroup, Slot)>,
}

type Slot = OnceLock<Result<PackedBlock, Arc<Error>>>;

impl Window {
    pub(super) fn block(&self, source: &Source, member: usize) -> Result<&PackedBlock> {
        let (group, slot) = &self.members[member];
        slot.get_or_init(|| source.read(group).map_err(Arc::new))
            .as_ref()
            .map_err(|e| Error::Shared(e.clone()))
    }
}

/// The windows that are open, in order.
pub(super) struct Windows {
    pub(super) order: EpochOrder,
    /// Number, window, and how many of its row groups were hinted at.
    open: VecDeque<(usize, Arc<Window>, usize)>,
}

impl Windows {
    pub(super) fn new(order: EpochOrder) -> Self {
        Self {
            order,
            open: VecDeque::new(),
        }
    }

    /// The window of this number; windows before it are let go.
    pub(super) fn open(&mut self, number: usize) -> Arc<Window> {
        while self.open.front().is_some_and(|(n, ..)| *n < number) {
            self.open.pop_front();
        }
        self.ahead(number)
    }

    /// The window of this number, while those before it stay open.
    fn ahead(&mut self, number: usize) -> Arc<Window> {
        if let Some((_, window, _)) = self.open.iter().find(|(n, ..)| *n == number) {
            return window.clone();
        }
        let window = Arc::new(Window {
            cells: self.order.window_cells(number),
            members: self
                .order
                .members(number)
                .map(|g| (g.clone(), Slot::new()))
                .collect(),
        });
        self.open.push_back((number, window.clone(), 0));
        window
    }

    /// Has the next window decoded little by little, in step with the use of the current one, so that
    /// no step waits for a whole window. `position` is how many cells of the order were dealt out.
    pub(super) fn hints(&mut self, position: u64) -> Vec<Job> {
        let number = self.order.window_at(position.saturating_sub(1));
        if number + 1 >= self.order.windows() {
            return Vec::new();
        }
        let current = self.order.window_range(number);
        let share = (position - current.start) as f64 / (current.end - current.start) as f64;
        let window = self.ahead(number + 1);
        let wanted = (window.members.len() as f64 * share).ceil() as usize;
        let mut first = wanted;
        for (n, _, hinted) in &mut self.open {
            if *n == number + 1 {
                first = *hinted;
                *hinted = wanted.max(*hinted);
            }
        }
        (first..wanted)
            .map(|member| Job::Decode {
                window: window.clone(),
                member,
            })
            .collect()
    }
}

/// Some cells of a window that wait for others of their domain. They are copied out of the window as
/// soon as a thread comes to it, so that they do not keep its blocks in memory.
pub(super) struct Carried {
    cells: Vec<CellRef>,
    window: Mutex<Option<Arc<Window>>>,
    copies: OnceLock<Result<PackedBlock, Arc<Error>>>,
}

impl Carried {
    pub(super) fn new(window: Arc<Window>, cells: Vec<CellRef>) -> Self {
        Self {
            cells,
            window: Mutex::new(Some(window)),
            copies: OnceLock::new(),
        }
    }

    /// Copies the cells, once. An error is met again by the job that needs them.
    pub(super) fn copy(&self, source: &Source) -> Result<&PackedBlock> {
        let copies = self.copies.get_or_init(|| {
            let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            let window = window
                .take()
                .ok_or_else(|| Error::internal("cells were copied out of their window twice"))?;
            let mut copies = PackedBlock::default();
            for at in &self.cells {
                let block = window.block(source, at.member as usize)?;
                copies.push_from(block, at.place as usize);
            }
            Ok(copies)
        });
        copies.as_ref().map_err(|e| Error::Shared(e.clone()))
    }
}

/// Some cells of one window.
pub(super) enum Part {
    /// Consecutive ones.
    Range(Arc<Window>, Range<usize>),
    /// Ones at these places.
    Places(Arc<Window>, Vec<u32>),
    /// Ones that were carried over from an earlier window.
    Carried(Arc<Carried>, Vec<u32>),
}

impl Part {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Range(_, range) => range.len(),
            Self::Places(_, places) | Self::Carried(_, places) => places.len(),
        }
    }

    pub(super) fn places(&self) -> Box<dyn Iterator<Item = usize> + '_> {
        match self {
            Self::Range(_, range) => Box::new(range.clone()),
            Self::Places(_, places) | Self::Carried(_, places) => {
                Box::new(places.iter().map(|&p| p as usize))
            }
        }
    }

    pub(super) fn cell(&self, place: usize) -> CellRef {
        match self {
            Self::Range(window, _) | Self::Places(window, _) => window.cells[place],
            Self::Carried(carried, _) => carried.cells[place],
        }
    }

    /// Unpacks a cell into `buffer`. Returns whether it can be used.
    pub(super) fn unpack(
        &self,
        place: usize,
        source: &Source,
        buffer: &mut CellBuffer,
    ) -> Result<bool> {
        let (block, row, cell) = match self {
            Self::Range(window, _) | Self::Places(window, _) => {
                let at = window.cells[place];
                let block = window.block(source, at.member as usize)?;
                (block, at.place as usize, at.cell)
            }
            Self::Carried(carried, _) => (carried.copy(source)?, place, carried.cells[place].cell),
        };
        source.unpack(block, row, cell, buffer)
    }
}

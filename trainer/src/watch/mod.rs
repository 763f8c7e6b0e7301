//! Sections, the watchdog and the flight record.
//!
//! The loop says which section it is in and when it makes progress; a thread watches that none lasts
//! longer than its deadline. It looks at memory only: it needs neither MPI nor the device, which may
//! be what hangs. When a deadline passes it says which rank is behind, writes what the last
//! collectives were, and ends the process with exit code 75, which brings the job down.
//!
//! Where a launcher listens, a thread of `scpeft_protocol::heartbeat` tells it the same.

mod board;
mod record;
pub(crate) mod trace;
mod verdict;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use scpeft_collective::{Collective, Observer};
use scpeft_config::WatchdogSection;
use scpeft_protocol::exit;
use scpeft_protocol::heartbeat::{Beat, Beater, Bye, Command, Hello, Section};

use crate::failure::{Failure, Result};
use board::Board;
use record::Flight;
use trace::{Part, Trace};
use verdict::{Deadlines, Expired, judge};

/// How often the thread looks.
const PERIOD: Duration = Duration::from_millis(100);
/// A thread that looks this much later was stopped itself, with the whole process: clocks start anew.
const SUSPENDED: Duration = Duration::from_secs(5);
/// What the disk has for the flight record. It may be the disk that hangs.
const WRITING: Duration = Duration::from_secs(2);
/// What the other ranks of the host have for theirs before the job is brought down.
const OTHERS: Duration = Duration::from_millis(300);

/// A rank's place in its run, for itself and for those that watch it. Cheap to clone.
#[derive(Clone)]
pub struct Watch(Arc<Shared>);

struct Shared {
    board: Board,
    /// The section around a collective.
    outer: AtomicU64,
    flight: Mutex<Flight>,
    trace: Mutex<Trace>,
    settings: Mutex<Settings>,
    /// Tells the launcher, if there is one.
    beater: Mutex<Beater>,
}

#[derive(Debug, Clone)]
struct Settings {
    deadlines: Deadlines,
    /// Where the flight record goes, once there is a run directory.
    directory: Option<PathBuf>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Watch")
            .field(&self.0.board.own_state())
            .finish()
    }
}

impl Watch {
    /// Starts watching, in the section `setup` and with the default deadlines.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the transport fails, or the system refuses memory or a thread.
    pub fn start(world: &dyn Collective) -> Result<Self> {
        let watch = Self::unattended(world)?;
        let topology = world.topology();
        let told = Beater::from_environment(Hello {
            rank: topology.rank as u32,
            world_size: topology.world_size as u32,
            local_rank: topology.local_rank as u32,
            host: crate::record::hostname(),
            pid: std::process::id(),
            ..Hello::default()
        });
        match told {
            Ok(beater) => *lock(&watch.0.beater) = beater,
            // Training goes on without being watched.
            Err(error) => {
                tracing::warn!("rank {}: no heartbeats, {error}", topology.rank);
            }
        }
        let watched = watch.clone();
        std::thread::Builder::new()
            .name("scpeft-watchdog".into())
            .spawn(move || watched.0.guard())
            .map_err(|e| Failure::new(exit::INTERNAL, format!("watchdog thread: {e}")))?;
        Ok(watch)
    }

    /// Keeps account without a thread that acts on it: for benches of a step.
    ///
    /// # Collective
    /// Must be called by all ranks.
    ///
    /// # Errors
    /// When the transport fails, or the system refuses memory.
    pub fn unattended(world: &dyn Collective) -> Result<Self> {
        Ok(Self(Arc::new(Shared {
            board: Board::open(world, now())?,
            outer: AtomicU64::new(Section::Setup as u64),
            flight: Mutex::new(Flight::default()),
            trace: Mutex::new(Trace::default()),
            settings: Mutex::new(Settings {
                deadlines: Deadlines::of(&WatchdogSection::default()),
                directory: None,
            }),
            beater: Mutex::new(Beater::disabled()),
        })))
    }

    /// Sets the deadlines and the directory of flight records.
    pub fn configure(&self, deadlines: &WatchdogSection, directory: &Path) {
        *lock(&self.0.settings) = Settings {
            deadlines: Deadlines::of(deadlines),
            directory: Some(directory.to_owned()),
        };
    }

    /// The rank is in `section` from now on.
    pub fn enter(&self, section: Section) {
        self.0.outer.store(section as u64, Ordering::Relaxed);
        self.0.enter(section, now());
    }

    /// Tells the launcher where the rank is, besides its section.
    pub fn tell(&self, change: impl FnOnce(&mut Beat)) {
        lock(&self.0.beater).update(change);
    }

    /// Tells the launcher who the rank is.
    pub fn describe(&self, change: impl FnOnce(&mut Hello)) {
        lock(&self.0.beater).describe(change);
    }

    /// What the launcher has asked for since the last call.
    pub fn take_command(&self) -> Option<Command> {
        lock(&self.0.beater).take_command()
    }

    /// Tells the launcher that the rank ends with this exit code, and says nothing more. Takes half a
    /// second at most, and no time where nobody listens.
    pub fn say_goodbye(&self, code: i32) {
        self.enter(Section::Done);
        let beater = std::mem::replace(&mut *lock(&self.0.beater), Beater::disabled());
        beater.finish(Bye {
            code,
            ..Bye::default()
        });
    }

    /// The rank has made progress in its section, whose deadline starts anew.
    pub fn beat(&self) {
        self.0.board.own().beat(now());
    }

    /// The number of the step in hand, from 1.
    pub fn set_step(&self, step: u64) {
        self.0.board.own().set_step(step);
    }
}

impl Observer for Watch {
    fn begin(&self, op: &'static str, bytes: usize) {
        let begun = now();
        let number = self.0.board.own().count();
        self.0.enter(Section::Collective, begun);
        lock(&self.0.flight).begin(number, op, bytes as u64, begun);
    }

    fn end(&self) {
        let ended = now();
        if let Some((op, bytes, begun)) = lock(&self.0.flight).end(ended) {
            lock(&self.0.trace).record(Part::Collective(op, bytes), begun, ended);
        }
        self.0.enter(self.0.outer(), ended);
    }
}

impl Shared {
    fn enter(&self, section: Section, now: u64) {
        self.board.own().enter(section, now);
        lock(&self.beater).section(section);
    }

    fn outer(&self) -> Section {
        board::section_at(self.outer.load(Ordering::Relaxed))
    }

    /// The watchdog thread.
    fn guard(&self) {
        let (mut looked, mut not_before) = (now(), 0);
        loop {
            std::thread::sleep(PERIOD);
            let now = now();
            if Duration::from_nanos(now.saturating_sub(looked)) > SUSPENDED {
                not_before = now;
            }
            looked = now;
            let settings = lock(&self.settings).clone();
            let own = self.board.own_state();
            let others = self.board.others();
            let outer = self.outer();
            let expired = judge(&own, outer, &others, &settings.deadlines, now, not_before)
                .map(|expired| expired.or_stopped(&others, record::is_stopped));
            if expired.is_some() || self.board.is_alarmed() {
                self.give_up(expired, settings.directory, now);
            }
        }
    }

    /// Says what hangs, writes the flight record and ends the process. One rank of a host speaks;
    /// the others write their records and wait for the end that it brings.
    fn give_up(&self, expired: Option<Expired>, directory: Option<PathBuf>, now: u64) -> ! {
        let speaks = expired.is_some() && self.board.raise_alarm();
        let own = self.board.own_state();
        let flight = lock(&self.flight).clone();
        let report = record::Report {
            own,
            others: self.board.others(),
            world_size: self.board.world_size(),
            expired,
            flight,
            now,
        };
        // On a thread of its own: standard error and the disk may be what hangs.
        let (done, written) = mpsc::sync_channel(1);
        let _ = std::thread::Builder::new()
            .name("scpeft-flight".into())
            .spawn(move || {
                report.publish(directory.as_deref(), speaks);
                let _ = done.send(());
            });
        let _ = written.recv_timeout(WRITING);
        // A rank that only writes its record leaves the end to the rank that speaks.
        std::thread::sleep(if speaks { OTHERS } else { WRITING });
        // SAFETY: _exit takes no pointers and does not return. Without destructors: MPI's would wait
        // for the other ranks.
        unsafe { libc::_exit(exit::HANG) }
    }
}

/// A panic of another thread leaves the numbers behind the lock as good as they were.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds of the monotonic clock: the same for all processes of a host, and blind to changes of
/// the time of day.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid timespec that lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

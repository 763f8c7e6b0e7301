//! The side of the rank: a thread that sends the latest state, and a handle that never waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{
    ADDRESS_VARIABLE, Address, Beat, Bye, Command, Connection, HeartbeatError, Hello, Lines,
    Message, Section, TOKEN_VARIABLE, VERSION, decode, encode,
};

/// Changes are sent no more often than this.
pub const INTERVAL_MIN: Duration = Duration::from_millis(200);

/// Without a change something is sent this often, so that the age of a beat means liveness.
pub const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// Patience with a launcher that does not answer, for each connection attempt and write.
const PATIENCE: Duration = Duration::from_secs(1);

/// The longest pause between two attempts to connect.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// How long an ending rank waits for its last message to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// A rank's voice. Dropping it ends the connection without a [`Bye`].
///
/// Every method takes a lock that the sending thread holds only to copy the state: tens of
/// nanoseconds, and never the time of a write.
#[derive(Debug)]
pub struct Beater {
    shared: Option<Arc<Shared>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    woken: Condvar,
}

/// How far the end of the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The rank has nothing more to say.
    Closing,
    /// The thread is at its end.
    Closed,
}

/// The connection to the launcher.
#[derive(Debug, Clone, Copy)]
enum Link {
    /// There has been none yet.
    Never,
    Up,
    /// Gone since then.
    Lost(Instant),
}

#[derive(Debug)]
struct State {
    hello: Hello,
    beat: Beat,
    section_since: Instant,
    hello_changed: bool,
    beat_changed: bool,
    bye: Option<Bye>,
    phase: Phase,
    link: Link,
    command: Option<Command>,
}

impl State {
    fn has_to_talk(&self) -> bool {
        self.phase == Phase::Open || self.bye.is_some()
    }

    fn enter(&mut self, section: Section, now: Instant) {
        let spent = now.saturating_duration_since(self.section_since);
        self.beat.section_seconds[self.beat.section.index()] += spent.as_secs_f64();
        self.section_since = now;
        self.beat_changed |= self.beat.section != section;
        self.beat.section = section;
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain data: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Beater {
    /// One that tells nobody.
    pub fn disabled() -> Self {
        Self {
            shared: None,
            thread: None,
        }
    }

    /// Starts telling the launcher that the environment names; tells nobody when it names none.
    /// Version and token of `hello` are filled in here.
    ///
    /// # Errors
    /// When the variables are malformed or no thread can be started. Worth a warning, no more.
    pub fn from_environment(hello: Hello) -> Result<Self, HeartbeatError> {
        let Ok(address) = std::env::var(ADDRESS_VARIABLE) else {
            return Ok(Self::disabled());
        };
        let token = std::env::var(TOKEN_VARIABLE).map_err(|_| HeartbeatError::NoToken)?;
        Self::start(address.parse()?, token, hello)
    }

    /// Starts telling the launcher at `address`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(address: Address, token: String, hello: Hello) -> Result<Self, HeartbeatError> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                hello: Hello {
                    version: VERSION,
                    token,
                    ..hello
                },
                beat: Beat::default(),
                section_since: now,
                hello_changed: false,
                beat_changed: true,
                bye: None,
                phase: Phase::Open,
                link: Link::Never,
                command: None,
            }),
            woken: Condvar::new(),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("scpeft-heartbeat".into())
            .spawn(move || {
                talk(&own, &address);
                own.lock().phase = Phase::Closed;
                own.woken.notify_all();
            })?;
        Ok(Self {
            shared: Some(shared),
            thread: Some(thread),
        })
    }

    /// Whether there is somebody to tell.
    pub fn is_enabled(&self) -> bool {
        self.shared.is_some()
    }

    /// Enters a section; the time since the last call counts for the section that was left.
    pub fn section(&self, section: Section) {
        if let Some(shared) = &self.shared {
            shared.lock().enter(section, Instant::now());
        }
    }

    /// Changes what the next beat says. Section and section times are set by [`Beater::section`].
    pub fn update(&self, change: impl FnOnce(&mut Beat)) {
        if let Some(shared) = &self.shared {
            let mut state = shared.lock();
            let (section, seconds) = (state.beat.section, state.beat.section_seconds);
            change(&mut state.beat);
            state.beat.section = section;
            state.beat.section_seconds = seconds;
            state.beat_changed = true;
        }
    }

    /// Changes who the rank says it is: its device, run directory, or the port of its metrics.
    /// Version and token stay.
    pub fn describe(&self, change: impl FnOnce(&mut Hello)) {
        if let Some(shared) = &self.shared {
            let mut state = shared.lock();
            let token = state.hello.token.clone();
            change(&mut state.hello);
            state.hello.version = VERSION;
            state.hello.token = token;
            state.hello_changed = true;
        }
    }

    /// Takes the command that has arrived, if any. A drain is never replaced by a save.
    pub fn take_command(&self) -> Option<Command> {
        self.shared.as_ref()?.lock().command.take()
    }

    /// How long there has been no connection after there was one; `None` while there is one, or
    /// before the first.
    pub fn lost_for(&self) -> Option<Duration> {
        match self.shared.as_ref()?.lock().link {
            Link::Lost(since) => Some(since.elapsed()),
            Link::Never | Link::Up => None,
        }
    }

    /// Says how the rank ended and waits, at most half a second, for the message to leave.
    pub fn finish(mut self, bye: Bye) {
        if let Some(shared) = &self.shared {
            shared.lock().bye = Some(bye);
        }
        self.close();
    }

    fn close(&mut self) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        let mut state = shared.lock();
        state.phase = Phase::Closing;
        shared.woken.notify_all();
        let deadline = Instant::now() + FAREWELL;
        while state.phase != Phase::Closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The thread ends by itself within its patience, or with the process.
                return;
            }
            state = shared
                .woken
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        drop(state);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Beater {
    fn drop(&mut self) {
        self.close();
    }
}

/// Connects, tells, connects again, until asked to close.
fn talk(shared: &Shared, address: &Address) {
    let mut pause = INTERVAL_MIN / 2;
    while shared.lock().has_to_talk() {
        if let Ok(connection) = Connection::open(address, PATIENCE) {
            shared.lock().link = Link::Up;
            pause = INTERVAL_MIN / 2;
            // A launcher that went away is no concern of the run: it may come back.
            let _ = tell(shared, connection);
        }
        let mut state = shared.lock();
        if matches!(state.link, Link::Up) {
            state.link = Link::Lost(Instant::now());
        }
        if state.phase != Phase::Open {
            // One attempt has been made to say goodbye.
            return;
        }
        let _ = shared
            .woken
            .wait_timeout_while(state, pause, |state| state.phase == Phase::Open);
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

/// Sends the state over one connection until it breaks or the rank closes.
fn tell(shared: &Shared, mut connection: Connection) -> Result<(), HeartbeatError> {
    let mut lines = Lines::default();
    connection.send(&encode(&Message::Hello(shared.lock().hello.clone())))?;
    let mut last_sent: Option<Instant> = None;
    loop {
        let (hello, beat, bye) = {
            let mut state = shared.lock();
            let due = state.beat_changed
                || state.phase != Phase::Open
                || last_sent.is_none_or(|sent| sent.elapsed() >= INTERVAL_MAX);
            if due {
                let section = state.beat.section;
                state.enter(section, Instant::now());
                state.beat_changed = false;
            }
            let hello = std::mem::take(&mut state.hello_changed).then(|| state.hello.clone());
            (
                hello,
                due.then(|| state.beat.clone()),
                (state.phase != Phase::Open).then(|| state.bye.take()),
            )
        };
        if let Some(hello) = hello {
            connection.send(&encode(&Message::Hello(hello)))?;
        }
        if let Some(beat) = beat {
            connection.send(&encode(&Message::Beat(beat)))?;
            last_sent = Some(Instant::now());
        }
        if let Some(bye) = bye {
            if let Some(bye) = bye {
                connection.send(&encode(&Message::Bye(bye)))?;
            }
            return Ok(());
        }
        listen(shared, &mut connection, &mut lines)?;
        // A closing rank wakes us at once; everything else waits for its turn.
        let _ = shared
            .woken
            .wait_timeout_while(shared.lock(), INTERVAL_MIN, |state| {
                state.phase == Phase::Open
            });
    }
}

/// Takes in the commands that have arrived. A launcher that talks nonsense is left.
fn listen(
    shared: &Shared,
    connection: &mut Connection,
    lines: &mut Lines,
) -> Result<(), HeartbeatError> {
    let mut buffer = [0; 1024];
    let got = connection.receive(&mut buffer)?;
    lines.push(&buffer[..got]);
    while let Some(line) = lines.next_line()? {
        let command: Command = decode(line)?;
        let mut state = shared.lock();
        if state.command != Some(Command::Drain) {
            state.command = Some(command);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::{UnixListener, UnixStream};

    const SOON: Duration = Duration::from_secs(10);

    struct Side {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        listener: UnixListener,
    }

    impl Side {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let listener = UnixListener::bind(&path).unwrap();
            Self {
                _folder: folder,
                path,
                listener,
            }
        }

        fn beater(&self) -> Beater {
            let hello = Hello {
                rank: 3,
                ..Hello::default()
            };
            Beater::start(Address::Unix(self.path.clone()), "t".into(), hello).unwrap()
        }

        fn accept(&self) -> BufReader<UnixStream> {
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            BufReader::new(stream)
        }
    }

    fn read(stream: &mut BufReader<UnixStream>) -> Message {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        decode(line.trim_end().as_bytes()).unwrap()
    }

    /// Reads on until a beat is as wanted.
    fn beat(stream: &mut BufReader<UnixStream>, wanted: impl Fn(&Beat) -> bool) -> Beat {
        loop {
            match read(stream) {
                Message::Beat(beat) if wanted(&beat) => return beat,
                Message::Bye(bye) => panic!("{bye:?}"),
                _ => {}
            }
        }
    }

    #[test]
    fn the_launcher_hears_hello_the_latest_state_and_the_end() {
        let side = Side::new();
        let beater = side.beater();
        let mut stream = side.accept();
        let Message::Hello(hello) = read(&mut stream) else {
            panic!("hello comes first");
        };
        assert_eq!(
            (hello.version, hello.token.as_str(), hello.rank),
            (VERSION, "t", 3)
        );
        for step in 1..=1000 {
            beater.section(Section::Forward);
            beater.update(|beat| beat.step = step);
        }
        assert_eq!(
            beat(&mut stream, |b| b.step == 1000).section,
            Section::Forward
        );
        beater.describe(|hello| {
            hello.metrics_port = Some(9);
            hello.token.clear();
        });
        let again = loop {
            if let Message::Hello(hello) = read(&mut stream) {
                break hello;
            }
        };
        assert_eq!((again.metrics_port, again.token.as_str()), (Some(9), "t"));
        beater.finish(Bye {
            code: 85,
            ..Bye::default()
        });
        let bye = loop {
            if let Message::Bye(bye) = read(&mut stream) {
                break bye;
            }
        };
        assert_eq!(bye.code, 85);
    }

    #[test]
    fn an_idle_rank_beats_once_a_second_and_a_busy_one_five_times_at_most() {
        let side = Side::new();
        let beater = side.beater();
        let mut stream = side.accept();
        beat(&mut stream, |_| true);
        let begun = Instant::now();
        beat(&mut stream, |_| true);
        let idle = begun.elapsed();
        assert!((0.7..2.0).contains(&idle.as_secs_f64()), "{idle:?}");
        let begun = Instant::now();
        let mut beats = 0;
        while begun.elapsed() < Duration::from_secs(1) {
            beater.update(|beat| beat.step += 1);
            stream
                .get_ref()
                .set_read_timeout(Some(Duration::from_millis(5)))
                .unwrap();
            let mut line = String::new();
            beats += u32::from(stream.read_line(&mut line).is_ok());
        }
        assert!((2..=6).contains(&beats), "{beats}");
    }

    #[test]
    fn time_counts_for_the_section_that_was_left() {
        let state_time = |sections: &[(Section, u64)]| {
            let start = Instant::now();
            let side = Side::new();
            let beater = side.beater();
            let shared = beater.shared.as_ref().unwrap();
            let mut state = shared.lock();
            state.section_since = start;
            state.beat.section = Section::Setup;
            state.beat.section_seconds = [0.0; 8];
            for (section, at) in sections {
                state.enter(*section, start + Duration::from_secs(*at));
            }
            state.beat.section_seconds
        };
        let spent = state_time(&[
            (Section::Data, 2),
            (Section::Forward, 3),
            (Section::Data, 7),
            (Section::Done, 8),
        ]);
        assert_eq!(spent, [2.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn commands_arrive_and_a_drain_stays() {
        let side = Side::new();
        let beater = side.beater();
        let mut stream = side.accept();
        assert_eq!(beater.take_command(), None);
        let lines = [
            encode(&Command::Save),
            encode(&Command::Drain),
            encode(&Command::Save),
        ];
        stream
            .get_mut()
            .write_all(lines.concat().as_bytes())
            .unwrap();
        let begun = Instant::now();
        let command = loop {
            if let Some(command) = beater.take_command() {
                break command;
            }
            assert!(begun.elapsed() < SOON);
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(command, Command::Drain);
        assert_eq!(beater.take_command(), None);
    }

    #[test]
    fn a_launcher_that_comes_back_is_found_again() {
        let side = Side::new();
        let beater = side.beater();
        drop(side.accept());
        let mut stream = side.accept();
        assert!(matches!(read(&mut stream), Message::Hello(_)));
        beater.update(|beat| beat.step = 5);
        assert_eq!(beat(&mut stream, |b| b.step == 5).step, 5);
        assert_eq!(beater.lost_for(), None);
    }

    #[test]
    fn nobody_listening_or_reading_costs_the_run_nothing() {
        let gone = Address::Unix("/nonexistent/socket".into());
        let side = Side::new();
        for beater in [
            Beater::disabled(),
            Beater::start(gone, "t".into(), Hello::default()).unwrap(),
            side.beater(),
        ] {
            let begun = Instant::now();
            for step in 0..10_000 {
                beater.section(Section::Data);
                beater.update(|beat| beat.step = step);
            }
            assert_eq!(beater.take_command(), None);
            assert_eq!(beater.lost_for(), None);
            beater.finish(Bye::default());
            assert!(
                begun.elapsed() < Duration::from_secs(3),
                "{:?}",
                begun.elapsed()
            );
        }
    }
}

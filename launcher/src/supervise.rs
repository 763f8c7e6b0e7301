//! Runs a command line to its end, passing stop requests on and bounding how long they may take.
//!
//! The first SIGTERM, SIGINT, SIGHUP or SIGUSR1 reaches the ranks as SIGUSR1: "save and leave".
//! SIGTERM would not do: `mpirun` answers it by killing the ranks a second later, and raising that
//! limit delays the report of *every* failure, since `mpirun` sleeps through it twice. A second
//! SIGTERM or SIGINT a second or more later, or the end of the grace period, is a hard stop.

use crate::command::CommandLine;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// How long a hard stop may take before the processes are killed outright. `mpirun` itself needs
/// two seconds to put its ranks away.
const HARD_STOP: Duration = Duration::from_secs(10);

/// Whoever stops us may send one request twice, to the group and to its leader, as `timeout` does.
/// Only a second one that comes later than this is meant: do not wait for the save.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// How far a stop has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// The ranks have been asked to save and leave.
    Asked,
    /// They have been told to go.
    Told,
    /// They have been killed.
    Killed,
}

/// What may move a stop on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// SIGTERM, SIGINT or SIGHUP arrived.
    Stop,
    /// SIGUSR1 arrived: the scheduler's notice that the time is nearly up.
    Notice,
    /// A part of the ranks is out of reach: the others can neither go on nor save.
    Lost,
    /// The present phase has lasted as long as it may.
    Deadline,
}

/// The signal to send and how long to wait for it to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Action {
    signal: i32,
    wait: Option<Duration>,
}

/// The whole policy. Pure: time comes in as [`Event::Deadline`].
fn advance(phase: Phase, event: Event, grace: Duration) -> (Phase, Option<Action>) {
    let ask = Action {
        signal: libc::SIGUSR1,
        wait: Some(grace),
    };
    let tell = Action {
        signal: libc::SIGTERM,
        wait: Some(HARD_STOP),
    };
    let kill = Action {
        signal: libc::SIGKILL,
        wait: None,
    };
    match (phase, event) {
        (Phase::Running, Event::Stop | Event::Notice) => (Phase::Asked, Some(ask)),
        (Phase::Asked, Event::Stop | Event::Deadline) => (Phase::Told, Some(tell)),
        // When some are lost, `mpirun` would wait for their answer.
        (Phase::Told, Event::Stop | Event::Deadline)
        | (Phase::Running | Phase::Asked | Phase::Told, Event::Lost) => (Phase::Killed, Some(kill)),
        (phase, _) => (phase, None),
    }
}

/// What an event means when the ranks were asked `asked` ago: the echo of a request is a mere notice.
fn meant(event: Event, asked: Option<Duration>) -> Event {
    match (event, asked) {
        (Event::Stop, Some(asked)) if asked < IMPATIENCE => Event::Notice,
        (event, _) => event,
    }
}

/// Signal streams, opened before the child starts so that no request is lost in between.
#[derive(Debug)]
pub struct Requests {
    term: Signal,
    int: Signal,
    hup: Signal,
    usr1: Signal,
    asked: mpsc::Receiver<()>,
    asker: Asker,
}

/// Asks the run to save and leave, as SIGUSR1 does, from elsewhere in this process.
#[derive(Debug, Clone)]
pub struct Asker {
    sender: mpsc::Sender<()>,
    requested: Arc<AtomicBool>,
}

impl Asker {
    /// Asks; asking again changes nothing.
    pub fn ask(&self) {
        // A full channel holds a request already.
        let _ = self.sender.try_send(());
    }

    /// Whether the run has been asked to stop, in whatever way.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}

impl Requests {
    /// Starts listening for the signals of this process.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn open() -> io::Result<Self> {
        let (sender, asked) = mpsc::channel(1);
        Ok(Self {
            asked,
            asker: Asker {
                sender,
                requested: Arc::default(),
            },
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
            usr1: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for any request.
    pub async fn any(&mut self) {
        self.next().await;
    }

    /// What else may ask.
    pub fn asker(&self) -> Asker {
        self.asker.clone()
    }

    async fn next(&mut self) -> Event {
        let event = tokio::select! {
            _ = self.term.recv() => Event::Stop,
            _ = self.int.recv() => Event::Stop,
            _ = self.hup.recv() => Event::Stop,
            _ = self.usr1.recv() => Event::Notice,
            _ = self.asked.recv() => Event::Notice,
        };
        self.asker.requested.store(true, Ordering::Relaxed);
        event
    }
}

/// How a command line ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// Its end as the system reports it.
    pub status: ExitStatus,
    /// Whether a stop was asked for meanwhile.
    pub stop_requested: bool,
}

/// Starts `line` with `environment` added to ours and waits for its end, giving the ranks `grace`
/// to save after a stop request. When `lost` comes to pass, the ranks are stopped at once. `say` receives
/// one line for each step of a stop.
///
/// # Errors
/// When the process cannot be started or waited for.
pub async fn run(
    line: &CommandLine,
    environment: &[(&str, String)],
    grace: Duration,
    requests: &mut Requests,
    lost: impl Future<Output = ()>,
    mut say: impl FnMut(&str),
) -> io::Result<Ended> {
    let mut command = prepare(line);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn()?;
    let pid = child
        .id()
        .expect("a child that was not waited for has a process id");
    let pid = i32::try_from(pid).expect("process ids fit a pid_t");

    let mut phase = Phase::Running;
    let mut deadline: Option<Instant> = None;
    let mut asked: Option<Instant> = None;
    let mut stop_requested = false;
    let mut lost = std::pin::pin!(lost);
    let mut is_lost = false;
    loop {
        let event = tokio::select! {
            status = child.wait() => {
                return status.map(|status| Ended { status, stop_requested });
            }
            () = &mut lost, if !is_lost => {
                is_lost = true;
                Event::Lost
            }
            event = requests.next() => event,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                Event::Deadline
            }
        };
        stop_requested |= matches!(event, Event::Stop | Event::Notice);
        let event = meant(event, asked.map(|asked| asked.elapsed()));
        let (next, action) = advance(phase, event, grace);
        phase = next;
        if let Some(Action { signal, wait }) = action {
            asked.get_or_insert_with(Instant::now);
            say(&announce(phase, grace));
            deadline = wait.map(|wait| Instant::now() + wait);
            // To the child's process group, as `mpirun` itself does with each rank: a wrapper script
            // must not keep the signal from the program that it started.
            // SAFETY: kill only takes numbers. The child has not been waited for, so `pid` still
            // names it and the group that it leads.
            unsafe { libc::kill(-pid, signal) };
        }
    }
}

fn announce(phase: Phase, grace: Duration) -> String {
    match phase {
        Phase::Running => String::new(),
        Phase::Asked => format!(
            "stop requested: the ranks have {} s to save; a second request stops them at once",
            grace.as_secs()
        ),
        Phase::Told => "stopping the ranks without waiting for them to save".into(),
        Phase::Killed => "ending what is left of the run".into(),
    }
}

fn prepare(line: &CommandLine) -> Command {
    let mut command = Command::new(&line.program);
    command
        .args(&line.arguments)
        .stdin(Stdio::null())
        // Its own group: a Ctrl-C in the terminal must reach the ranks through us alone, or
        // `mpirun` would kill them while they save.
        .process_group(0)
        .kill_on_drop(true);
    // SAFETY: prctl with PR_SET_PDEATHSIG is a plain system call, safe between fork and exec; it
    // allocates nothing and takes no lock. The runtime has one thread, so "the parent" is the
    // launcher as a whole.
    unsafe {
        command.pre_exec(
            || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        );
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_mins(2);

    fn signals(events: &[Event]) -> Vec<i32> {
        let mut phase = Phase::Running;
        let mut sent = Vec::new();
        for event in events {
            let (next, action) = advance(phase, *event, GRACE);
            phase = next;
            sent.extend(action.map(|action| action.signal));
        }
        sent
    }

    #[test]
    fn the_first_request_asks_whichever_signal_it_was() {
        for event in [Event::Stop, Event::Notice] {
            let (phase, action) = advance(Phase::Running, event, GRACE);
            assert_eq!(phase, Phase::Asked);
            assert_eq!(
                action,
                Some(Action {
                    signal: libc::SIGUSR1,
                    wait: Some(GRACE)
                })
            );
        }
    }

    #[test]
    fn asking_again_or_waiting_too_long_gets_harder_and_ends() {
        let ladder = [libc::SIGUSR1, libc::SIGTERM, libc::SIGKILL];
        assert_eq!(signals(&[Event::Stop; 5]), ladder);
        assert_eq!(
            signals(&[Event::Notice, Event::Deadline, Event::Deadline]),
            ladder
        );
    }

    #[test]
    fn the_echo_of_a_request_is_no_second_one() {
        let millis = |n| Some(Duration::from_millis(n));
        assert_eq!(meant(Event::Stop, None), Event::Stop);
        assert_eq!(meant(Event::Stop, millis(0)), Event::Notice);
        assert_eq!(meant(Event::Stop, millis(999)), Event::Notice);
        assert_eq!(meant(Event::Stop, millis(1000)), Event::Stop);
        assert_eq!(meant(Event::Deadline, millis(0)), Event::Deadline);
    }

    #[test]
    fn when_some_are_lost_the_others_are_not_asked_to_save() {
        assert_eq!(signals(&[Event::Lost, Event::Stop]), [libc::SIGKILL]);
        assert_eq!(
            signals(&[Event::Notice, Event::Lost, Event::Deadline]),
            [libc::SIGUSR1, libc::SIGKILL]
        );
    }

    #[test]
    fn a_repeated_notice_does_not_cut_the_grace_short() {
        assert_eq!(signals(&[Event::Notice; 3]), [libc::SIGUSR1]);
        assert_eq!(signals(&[Event::Stop, Event::Notice]), [libc::SIGUSR1]);
    }
}

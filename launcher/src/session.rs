//! A run from its first start to its last end: attempts, their reports, and the pauses in between.

use crate::board::Board;
use crate::checkpoints;
use crate::command::{CommandLine, Request, Surroundings};
use crate::diagnosis::likely_cause;
use crate::events::Events;
use crate::guard::log_name;
use crate::lost::{self, Silent};
use crate::page::{Live, Page, Planner};
use crate::policy::{Decision, Ending, Reached, Restarts};
use crate::relay::Outcome;
use crate::server::{Reach, Server};
use crate::supervise::{self, Ended, Requests};
use crate::training::{Training, resumed};
use anyhow::Context as _;
use scpeft_protocol::exit;
use scpeft_protocol::heartbeat::{ADDRESS_VARIABLE, TOKEN_VARIABLE};
use serde_json::Value;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the last words of guards may take to arrive after everything has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long the ranks within reach may take to end when others were cut off.
const LAST_PROCESSES: Duration = Duration::from_secs(15);

/// What to run and how far to go for it.
#[derive(Debug)]
pub struct Session {
    /// What to start.
    pub request: Request,
    /// What it depends on.
    pub around: Surroundings,
    /// The training run, if it is one.
    pub training: Option<Training>,
    /// Restarts without progress before giving up.
    pub max_restarts: u32,
    /// Time to save after a stop request.
    pub grace: Duration,
    /// Whether ranks may be on other hosts.
    pub reach: Reach,
    /// Where ranks on other hosts find us, instead of our host name.
    pub advertise: Option<String>,
    /// How long a host may be silent before it counts as cut off.
    pub host_timeout: Duration,
    /// Whether a run may go on without the hosts that were cut off.
    pub allow_shrink: bool,
    /// Whether a scheduler starts a preempted run again itself.
    pub scheduled: bool,
    /// Where to serve the page of a training run, if at all.
    pub listen: Option<SocketAddr>,
}

impl Session {
    /// Runs it to its end and returns the exit code. `say` receives what the user should know.
    ///
    /// # Errors
    /// When nothing can be started or listened to, for reasons other than the run's.
    pub async fn run(mut self, say: fn(&str)) -> anyhow::Result<i32> {
        let mut requests = Requests::open().context("cannot listen for signals")?;
        let mut server = Server::open(self.reach, self.request.ranks)
            .await
            .context("cannot listen for the heartbeats of the ranks")?;
        if let Some(host) = &self.advertise {
            server.advertise(host);
        }
        let run_dir = self
            .training
            .as_ref()
            .map(|training| training.run_dir.clone());
        let log = Log {
            events: Events::of(run_dir.as_deref()),
            say,
        };
        let _page = run_dir
            .as_deref()
            .and_then(|run_dir| self.page(run_dir, &server, &requests, say));
        let mut restarts = Restarts::new(self.max_restarts, self.reached(&Board::default()));
        if self.scheduled {
            restarts = restarts.under_scheduler();
        }
        loop {
            let line = CommandLine::new(&self.request, &self.around)?;
            log.event("start", &[("ranks", self.request.ranks.into())]);
            let (ended, cut_off) = self.attempt(&line, &server, &mut requests, say).await?;
            let ending = {
                let board = server.board();
                let code = if cut_off.is_empty() {
                    log.ended(ended, &board)
                } else {
                    log.cut_off(&cut_off)
                };
                Ending {
                    code,
                    stop_requested: ended.stop_requested,
                    started: board.has_started(),
                    reached: self.reached(&board),
                }
            };
            let code = ending.code;
            match restarts.decide(ending) {
                Decision::End => return Ok(code),
                Decision::GiveUp { restarts } => {
                    log.give_up(restarts);
                    return Ok(code);
                }
                Decision::Restart { after } => {
                    if self.allow_shrink && !cut_off.is_empty() && !self.shrink(&cut_off, &log) {
                        return Ok(code);
                    }
                    log.restart(after, ending.reached);
                    tokio::select! {
                        () = tokio::time::sleep(after) => {}
                        () = requests.any() => {
                            log.event("stop", &[]);
                            say("stop requested: not started again");
                            return Ok(code);
                        }
                    }
                }
            }
            if self.training.is_some() {
                self.request.command = resumed(&self.request.command);
            }
        }
    }

    async fn attempt(
        &self,
        line: &CommandLine,
        server: &Server,
        requests: &mut Requests,
        say: fn(&str),
    ) -> anyhow::Result<(Ended, Vec<Silent>)> {
        let token = server
            .begin_attempt()
            .context("cannot make a token for the ranks")?;
        let mut cut_off = Vec::new();
        let watch = async {
            match self.reach {
                Reach::Machine => std::future::pending().await,
                Reach::Network => {
                    cut_off = lost::watch(server, &self.request, self.host_timeout).await;
                    for silent in &cut_off {
                        say(&silent.tell());
                    }
                }
            }
        };
        let environment = [
            (ADDRESS_VARIABLE, server.address.to_string()),
            (TOKEN_VARIABLE, token),
        ];
        let ended = supervise::run(line, &environment, self.grace, requests, watch, say)
            .await
            .with_context(|| format!("cannot run `{}`", line.program.display()))?;
        if !cut_off.is_empty() {
            see_off(server, &cut_off, say).await;
        }
        // What guards said last may still be in their sockets.
        let deadline = Instant::now() + LAST_WORDS;
        while !ended.status.success()
            && cut_off.is_empty()
            && server.board().first_failure().is_none()
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok((ended, cut_off))
    }

    /// Leaves the hosts out that were cut off, if the run can go on without them.
    fn shrink(&mut self, cut_off: &[Silent], log: &Log) -> bool {
        let Some(training) = &self.training else {
            return false;
        };
        let request = &mut self.request;
        match lost::shrink(&request.hosts, cut_off, request.ranks, training.batch) {
            Ok((hosts, ranks)) => {
                (log.say)(&format!(
                    "going on without {}, with {ranks} of {} ranks",
                    names(cut_off),
                    request.ranks
                ));
                log.event("shrink", &[("ranks", ranks.into())]);
                (request.hosts, request.ranks) = (hosts, ranks);
                true
            }
            Err(reason) => {
                (log.say)(&format!(
                    "cannot go on without {}: {reason}",
                    names(cut_off)
                ));
                false
            }
        }
    }

    /// Serves the page. A run does not depend on being looked at: without a page it goes on.
    fn page(
        &self,
        run_dir: &Path,
        server: &Server,
        requests: &Requests,
        say: fn(&str),
    ) -> Option<Page> {
        let live = Live {
            ranks: server.ranks(),
            world_size: self.request.ranks,
            asker: requests.asker(),
            planner: Planner::of(&self.request, &self.around),
        };
        match Page::of_run(self.listen?, run_dir, live) {
            // The token is for the one who sits there; what is not a terminal may be a file that
            // others read.
            Ok(page) if std::io::stderr().is_terminal() => {
                say(&format!("page: {}", page.link()));
                Some(page)
            }
            Ok(page) => {
                say(&format!("page: {}", page.url));
                Some(page)
            }
            Err(error) => {
                say(&format!("no page: {error}"));
                None
            }
        }
    }

    fn reached(&self, board: &Board) -> Reached {
        let on_disk = self.training.as_ref().map_or(0, |training| {
            checkpoints::newest_complete(&training.run_dir)
        });
        let told = board.reached();
        Reached {
            checkpoint_step: told.checkpoint_step.max(on_disk),
            step: told.step.max(on_disk),
        }
    }
}

/// Waits for the ranks within reach to end after `mpirun` was killed, which its daemons notice by
/// themselves: another start beside them would write the same run directory.
async fn see_off(server: &Server, cut_off: &[Silent], say: fn(&str)) {
    let lost: Vec<u32> = cut_off.iter().flat_map(|s| s.ranks.clone()).collect();
    let deadline = Instant::now() + LAST_PROCESSES;
    loop {
        let left = server.still_there(&lost);
        if left.is_empty() {
            return;
        }
        if Instant::now() >= deadline {
            let ranks: Vec<String> = left.iter().map(u32::to_string).collect();
            let waited = LAST_PROCESSES.as_secs();
            say(&format!(
                "ranks {} have not ended in {waited} s",
                ranks.join(", ")
            ));
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where what happens is told: to the user and in `events.jsonl`.
struct Log {
    events: Events,
    say: fn(&str),
}

impl Log {
    fn event(&self, kind: &str, fields: &[(&str, Value)]) {
        // The record is for later; a full disk must not end the run that is watched.
        if let Err(error) = self.events.add(kind, fields) {
            (self.say)(&format!("cannot write `events.jsonl`: {error}"));
        }
    }

    /// Tells how an attempt ended, and returns the exit code: that of the first rank that failed.
    fn ended(&self, ended: Ended, board: &Board) -> i32 {
        let relayed = Outcome::of(ended.status);
        let Some((rank, bye)) = board.first_failure() else {
            if let Some(message) = &relayed.message {
                (self.say)(message);
            }
            let kind = if relayed.code == 0 { "done" } else { "failure" };
            self.event(kind, &[("code", relayed.code.into())]);
            return relayed.code;
        };
        let outcome = Outcome::with(bye.code);
        if let Some(message) = &outcome.message {
            (self.say)(message);
        }
        if ended.stop_requested {
            self.event("stop", &[("code", bye.code.into())]);
            return bye.code;
        }
        let hello = &rank.hello;
        (self.say)(&failed_rank(hello.rank, &hello.host, bye));
        self.event(
            "failure",
            &[
                ("code", bye.code.into()),
                ("rank", hello.rank.into()),
                ("host", hello.host.as_str().into()),
                ("signal", bye.signal.into()),
                ("cause", likely_cause(bye).into()),
                ("log", log_name(hello.rank).into()),
            ],
        );
        bye.code
    }

    /// Records which hosts were cut off, and returns the exit code for that.
    fn cut_off(&self, cut_off: &[Silent]) -> i32 {
        for silent in cut_off {
            let fields = [
                ("host", silent.host.as_str().into()),
                ("ranks", silent.ranks.as_slice().into()),
                ("silent_seconds", silent.silence.as_secs().into()),
                ("code", exit::HANG.into()),
            ];
            self.event("cut-off", &fields);
        }
        exit::HANG
    }

    fn give_up(&self, restarts: u32) {
        (self.say)(&format!(
            "given up: started again {restarts} times without coming any further"
        ));
        self.event("give-up", &[("restarts", restarts.into())]);
    }

    fn restart(&self, after: Duration, reached: Reached) {
        (self.say)(&format!(
            "starting again in {} s, from the checkpoint of step {}",
            after.as_secs(),
            reached.checkpoint_step
        ));
        let fields = [
            ("after_seconds", after.as_secs().into()),
            ("checkpoint_step", reached.checkpoint_step.into()),
            ("step", reached.step.into()),
        ];
        self.event("restart", &fields);
    }
}

fn names(cut_off: &[Silent]) -> String {
    let names: Vec<&str> = cut_off.iter().map(|silent| silent.host.as_str()).collect();
    names.join(", ")
}

/// The first rank that failed, its likely cause and its last lines.
fn failed_rank(rank: u32, host: &str, bye: &scpeft_protocol::heartbeat::Bye) -> String {
    let mut text = format!("rank {rank} on {host} failed first");
    if let Some(cause) = likely_cause(bye) {
        text.push_str("; likely cause: ");
        text.push_str(cause);
    }
    if !bye.last_lines.is_empty() {
        text.push_str("\n  its last lines:");
        for line in &bye.last_lines {
            text.push_str("\n  | ");
            text.push_str(line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_protocol::heartbeat::Bye;

    #[test]
    fn a_failed_rank_is_named_with_cause_and_last_lines() {
        let bye = Bye {
            code: 3,
            last_lines: vec!["reading".into(), "error: no corpus".into()],
            ..Bye::default()
        };
        let expected = "rank 1 on n2 failed first; likely cause: the corpus or an input file\n  \
                        its last lines:\n  | reading\n  | error: no corpus";
        assert_eq!(failed_rank(1, "n2", &bye), expected);
    }
}

//! What listening to many ranks costs the launcher, and how soon it knows of a rank's end.
//!
//! `cargo bench -p scpeft-launcher --bench heartbeats` prints a table. The ear of the launcher runs in a
//! process of its own, whose CPU time and memory the kernel reports; each fake rank is a rank and its guard,
//! which beat as real ones do. Also: how long `scpeft-launch` takes to start.

use scpeft_launcher::board::Rank;
use scpeft_launcher::server::{Reach, Server};
use scpeft_protocol::heartbeat::{Address, Beater, Bye, Hello, Role};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long each number of ranks is watched.
const WATCHED: Duration = Duration::from_secs(10);
/// Ends whose report is timed.
const ENDS: u32 = 20;
/// Starts that are timed.
const STARTS: usize = 50;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, role, ranks] = &arguments[..]
        && role == "listen"
    {
        return listen(ranks.parse()?);
    }
    println!(
        "| ranks | CPU of the launcher | memory | a rank's end is known after, median | at most |"
    );
    println!("|---|---|---|---|---|");
    for ranks in [1, 100, 1000] {
        measure(ranks)?;
    }
    println!();
    println!("| command | median | at most |");
    println!("|---|---|---|");
    for words in [&["--help"][..], &["-n", "2", "--dry-run", "--", "true"]] {
        start(words)?;
    }
    Ok(())
}

/// The launcher's part: listens, reports the first failure as soon as it is known, and what it has used
/// when it is asked to.
fn listen(ranks: u32) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = Server::open(Reach::Machine, ranks).await?;
        let token = server.begin_attempt()?;
        println!("{} {token}", server.address);
        let (lines, mut asked) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let _ = lines.send(line);
            }
        });
        while let Some(line) = asked.recv().await {
            match line.as_str() {
                "known" => println!("{}", server.board().ranks().count()),
                "used" => println!("{} {}", cpu_seconds(), resident_kib()?),
                line => {
                    let Some(rank) = line.strip_prefix("end of ") else {
                        break;
                    };
                    let rank: u32 = rank.parse()?;
                    println!("ready");
                    let ended = |r: &Rank| r.hello.rank == rank && r.bye.is_some();
                    while !server.board().ranks().any(ended) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    println!("seen");
                }
            }
        }
        Ok(())
    })
}

/// A listening process and how to talk to it.
struct Listener {
    child: Child,
    answers: BufReader<ChildStdout>,
    address: Address,
    token: String,
}

impl Listener {
    fn start(ranks: u32) -> Result<Self, Failure> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["listen", &ranks.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut answers = BufReader::new(child.stdout.take().ok_or("no stdout")?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let (address, token) = line.trim().split_once(' ').ok_or("no address")?;
        Ok(Self {
            address: address.parse()?,
            token: token.to_owned(),
            child,
            answers,
        })
    }

    fn say(&mut self, line: &str) -> Result<(), Failure> {
        let stdin = self.child.stdin.as_mut().ok_or("no stdin")?;
        writeln!(stdin, "{line}")?;
        Ok(())
    }

    fn hear(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, line: &str) -> Result<String, Failure> {
        self.say(line)?;
        self.hear()
    }

    /// CPU seconds so far, and KiB of memory.
    fn used(&mut self) -> Result<(f64, u64), Failure> {
        let answer = self.ask("used")?;
        let (seconds, kib) = answer.split_once(' ').ok_or("no figures")?;
        Ok((seconds.parse()?, kib.parse()?))
    }

    fn beater(&self, rank: u32, role: Role) -> Result<Beater, Failure> {
        let hello = Hello {
            role,
            rank,
            host: "bench".into(),
            ..Hello::default()
        };
        Ok(Beater::start(
            self.address.clone(),
            self.token.clone(),
            hello,
        )?)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn measure(ranks: u32) -> Result<(), Failure> {
    let mut listener = Listener::start(ranks)?;
    let mut beaters = Vec::new();
    for rank in 0..ranks {
        for role in [Role::Rank, Role::Guard] {
            beaters.push(listener.beater(rank, role)?);
        }
    }
    while listener.ask("known")?.parse::<u32>()? < ranks {
        std::thread::sleep(Duration::from_millis(20));
    }
    let (before, begun) = (listener.used()?.0, Instant::now());
    while begun.elapsed() < WATCHED {
        std::thread::sleep(Duration::from_millis(500));
        for (step, beater) in beaters.iter().step_by(2).enumerate() {
            beater.update(|beat| beat.step += 1 + step as u64 % 2);
        }
    }
    let (after, kib) = listener.used()?;
    let share = (after - before) / begun.elapsed().as_secs_f64();

    let mut delays = Vec::new();
    for end in 0..ENDS {
        let guard = listener.beater(ranks + end, Role::Guard)?;
        std::thread::sleep(Duration::from_millis(300));
        listener.ask(&format!("end of {}", ranks + end))?;
        let bye = Bye {
            code: 137,
            ..Bye::default()
        };
        let begun = Instant::now();
        guard.finish(bye);
        listener.hear()?;
        delays.push(begun.elapsed());
    }
    delays.sort_unstable();
    println!(
        "| {ranks} | {:.2} % of a core | {:.1} MiB | {:.1} ms | {:.1} ms |",
        100.0 * share,
        kib as f64 / 1024.0,
        1e3 * delays[delays.len() / 2].as_secs_f64(),
        1e3 * delays[delays.len() - 1].as_secs_f64()
    );
    Ok(())
}

fn start(words: &[&str]) -> Result<(), Failure> {
    let mut delays = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_scpeft-launch"))
            .args(words)
            .output()?;
        delays.push(begun.elapsed());
        assert!(output.status.success(), "{words:?}");
    }
    delays.sort_unstable();
    println!(
        "| `scpeft-launch {}` | {:.1} ms | {:.1} ms |",
        words.join(" "),
        1e3 * delays[delays.len() / 2].as_secs_f64(),
        1e3 * delays[delays.len() - 1].as_secs_f64()
    );
    Ok(())
}

/// CPU time of this process, user and system.
fn cpu_seconds() -> f64 {
    // SAFETY: an all-zero rusage is a valid one, and the call writes into it alone.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Memory of this process that is in RAM.
fn resident_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line
        .and_then(|line| line.split_whitespace().next())
        .ok_or("no VmRSS")?;
    Ok(number.parse()?)
}

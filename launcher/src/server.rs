//! The launcher's ear: accepts heartbeat connections and keeps the [`Board`].
//!
//! Whoever does not say a proper hello with the token within [`PATIENCE`], sends a line that is too
//! long or malformed, or falls silent, is cut off. Nothing that arrives here touches the run.

use crate::board::{Board, Rank};
use crate::guard::hostname;
use scpeft_protocol::heartbeat::{
    Address, Command, HeartbeatError, Hello, Lines, Message, Role, decode, encode,
};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::DirBuilder;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// How long a connection may be silent: ranks and guards speak every second.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a connection may take to say hello.
const HELLO: Duration = Duration::from_secs(5);
/// Connections beyond two for each rank, for those that come again and for strangers.
const SPARE: usize = 64;

/// Who the launcher listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Ranks of this machine.
    Machine,
    /// Ranks of other hosts too.
    Network,
}

/// An open ear; it listens until it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where ranks find it.
    pub address: Address,
    shared: Shared,
    listening: tokio::task::JoinHandle<()>,
    folder: Option<PathBuf>,
}

/// One start of the ranks. Each has a token of its own, so that what is left of an earlier start is
/// not taken for it.
#[derive(Debug)]
struct Attempt {
    token: String,
    board: Board,
    /// Connections of each rank and its guard; they end with the processes.
    open: BTreeMap<u32, usize>,
}

impl Attempt {
    fn new() -> io::Result<Self> {
        Ok(Self {
            token: secret()?,
            board: Board::default(),
            open: BTreeMap::new(),
        })
    }
}

#[derive(Debug, Clone)]
struct Shared {
    attempt: Arc<Mutex<Attempt>>,
    places: Arc<Semaphore>,
    saves: Arc<watch::Sender<u64>>,
}

/// The ranks as somebody beside the session sees and reaches them.
#[derive(Debug, Clone)]
pub struct Ranks(Shared);

impl Ranks {
    /// What is known of them.
    pub fn board(&self) -> Board {
        self.0.lock().board.clone()
    }

    /// Asks for a checkpoint after the present step; false when rank 0 is not there to hear it.
    pub fn save(&self) -> bool {
        let listens =
            |rank: &Rank| rank.hello.rank == 0 && rank.spoke.is_some() && rank.bye.is_none();
        let there = self.0.lock().board.ranks().any(listens);
        if there {
            self.0.saves.send_modify(|number| *number += 1);
        }
        there
    }
}

impl Server {
    /// Starts listening for `ranks` ranks. Must be called within a runtime.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub async fn open(reach: Reach, ranks: u32) -> io::Result<Self> {
        let shared = Shared {
            attempt: Arc::new(Mutex::new(Attempt::new()?)),
            places: Arc::new(Semaphore::new(2 * ranks as usize + SPARE)),
            saves: Arc::default(),
        };
        let own = shared.clone();
        let (address, folder, listening) = match reach {
            Reach::Machine => {
                let folder = private_folder()?;
                let path = folder.join("heartbeat");
                let listener = UnixListener::bind(&path)?;
                let listening = tokio::spawn(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => own.admit(stream),
                            Err(_) => breathe().await,
                        }
                    }
                });
                (Address::Unix(path), Some(folder), listening)
            }
            Reach::Network => {
                let listener = TcpListener::bind(("0.0.0.0", 0)).await?;
                let port = listener.local_addr()?.port();
                let listening = tokio::spawn(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => own.admit(stream),
                            Err(_) => breathe().await,
                        }
                    }
                });
                (
                    Address::Tcp(format!("{}:{port}", hostname())),
                    None,
                    listening,
                )
            }
        };
        Ok(Self {
            address,
            shared,
            listening,
            folder,
        })
    }

    /// Names another host than our own name to ranks elsewhere: one that they can resolve.
    pub fn advertise(&mut self, host: &str) {
        if let Address::Tcp(address) = &mut self.address
            && let Some((_, port)) = address.rsplit_once(':')
        {
            // An IPv6 address has colons of its own.
            *address = if host.contains(':') {
                format!("[{host}]:{port}")
            } else {
                format!("{host}:{port}")
            };
        }
    }

    /// What is known of the ranks.
    pub fn board(&self) -> Board {
        self.shared.lock().board.clone()
    }

    /// Ranks of this attempt, without those of `lost`, whose processes have not all ended.
    pub fn still_there(&self, lost: &[u32]) -> Vec<u32> {
        let attempt = self.shared.lock();
        let ranks = attempt.open.keys().copied();
        ranks.filter(|rank| !lost.contains(rank)).collect()
    }

    /// The ranks, for somebody beside the session.
    pub fn ranks(&self) -> Ranks {
        Ranks(self.shared.clone())
    }

    /// Forgets the ranks of the last attempt, and returns what those of the next one must know.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn begin_attempt(&self) -> io::Result<String> {
        let attempt = Attempt::new()?;
        let token = attempt.token.clone();
        *self.shared.lock() = attempt;
        Ok(token)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listening.abort();
        if let Some(folder) = &self.folder {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a connection on a task of its own, unless there are too many.
    fn admit(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return;
        };
        let shared = self.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut hello = None;
            // A connection that ends, in whatever way, concerns nobody else.
            let _ = shared.serve(stream, &mut hello).await;
            if let Some(hello) = hello {
                shared.forget(&hello);
            }
        });
    }

    /// Takes in a message on a connection that said `hello` before, if it has: the first message must
    /// be one that this attempt admits.
    fn hear(&self, hello: &mut Option<Hello>, message: Message) -> Result<(), HeartbeatError> {
        let mut attempt = self.lock();
        if let Message::Hello(said) = &message {
            said.admit(&attempt.token)?;
            match hello {
                // Another rank or role would be another connection.
                Some(first) if (first.rank, first.role) != (said.rank, said.role) => {
                    return Err(HeartbeatError::Token);
                }
                Some(first) => first.clone_from(said),
                None => {
                    *attempt.open.entry(said.rank).or_default() += 1;
                    *hello = Some(said.clone());
                }
            }
        }
        let hello = hello.as_ref().ok_or(HeartbeatError::Token)?;
        hello.admit(&attempt.token)?;
        attempt.board.hear(hello, message, Instant::now());
        Ok(())
    }

    /// A connection has ended that said `hello`, maybe to an earlier attempt.
    fn forget(&self, hello: &Hello) {
        let mut attempt = self.lock();
        if hello.admit(&attempt.token).is_err() {
            return;
        }
        if let Entry::Occupied(mut open) = attempt.open.entry(hello.rank) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }

    async fn serve(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        hello: &mut Option<Hello>,
    ) -> Result<(), HeartbeatError> {
        let mut saves = self.saves.subscribe();
        let mut lines = Lines::default();
        let mut buffer = [0; 4096];
        let begun = Instant::now();
        loop {
            while let Some(line) = lines.next_line()? {
                self.hear(hello, decode(line)?)?;
            }
            let patience = match hello {
                Some(_) => PATIENCE,
                None => HELLO.saturating_sub(begun.elapsed()),
            };
            // One rank is asked and takes the others along: they agree on the step.
            let asked = hello
                .as_ref()
                .is_some_and(|hello| (hello.rank, hello.role) == (0, Role::Rank));
            tokio::select! {
                read = timeout(patience, stream.read(&mut buffer)) => match read {
                    Ok(Ok(got)) if got > 0 => lines.push(&buffer[..got]),
                    _ => return Ok(()),
                },
                Ok(()) = saves.changed(), if asked => {
                    let line = encode(&Command::Save);
                    match timeout(HELLO, stream.write_all(line.as_bytes())).await {
                        Ok(written) => written?,
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }
}

/// A pause after a failed accept: out of file descriptors is no reason to spin.
async fn breathe() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// 128 random bits in hexadecimal.
pub(crate) fn secret() -> io::Result<String> {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// A folder that only this user can enter. Socket paths are short, so it is not in the run directory.
fn private_folder() -> io::Result<PathBuf> {
    let name = format!("scpeft-{}-{}", std::process::id(), &secret()?[..8]);
    let folder = std::env::temp_dir().join(name);
    DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use scpeft_protocol::heartbeat::{Beat, Beater, Bye, LINE_BYTES_MAX};
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    fn within_runtime(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                timeout(Duration::from_secs(20), test)
                    .await
                    .expect("no wait is that long");
            });
    }

    async fn until(mut done: impl FnMut() -> bool) {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn raw(server: &Server) -> UnixStream {
        let Address::Unix(path) = &server.address else {
            panic!("{}", server.address);
        };
        let stream = UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    #[test]
    fn ranks_and_guards_are_heard_over_both_kinds_of_connection() {
        within_runtime(async {
            for reach in [Reach::Machine, Reach::Network] {
                let server = Server::open(reach, 1).await.unwrap();
                let address = match &server.address {
                    Address::Tcp(host) => {
                        let port = host.rsplit_once(':').unwrap().1;
                        Address::Tcp(format!("127.0.0.1:{port}"))
                    }
                    unix @ Address::Unix(_) => unix.clone(),
                };
                let hello = Hello {
                    role: Role::Guard,
                    ..Hello::default()
                };
                let token = server.begin_attempt().unwrap();
                let start = |hello| Beater::start(address.clone(), token.clone(), hello);
                let (rank, guard) = (start(Hello::default()).unwrap(), start(hello).unwrap());
                rank.update(|beat| beat.step = 9);
                until(|| server.board().reached().step == 9).await;
                let end = Bye {
                    code: 3,
                    ..Bye::default()
                };
                let saying = std::thread::spawn(move || guard.finish(end));
                until(|| server.board().first_failure().is_some()).await;
                saying.join().unwrap();
                assert_eq!(server.still_there(&[]), [0], "the rank itself is there");
                assert!(server.still_there(&[0]).is_empty());
                drop(rank);
                until(|| server.still_there(&[]).is_empty()).await;
                server.begin_attempt().unwrap();
                assert!(!server.board().has_started());
            }
        });
    }

    #[test]
    fn what_is_left_of_an_earlier_start_is_not_heard() {
        within_runtime(async {
            let server = Server::open(Reach::Machine, 1).await.unwrap();
            let token = server.begin_attempt().unwrap();
            let start = |token: &str| {
                Beater::start(server.address.clone(), token.into(), Hello::default()).unwrap()
            };
            let old = start(&token);
            until(|| server.board().has_started()).await;
            let token = server.begin_attempt().unwrap();
            let new = start(&token);
            until(|| server.board().has_started()).await;
            old.update(|beat| beat.step = 9);
            new.update(|beat| beat.step = 2);
            until(|| server.board().reached().step == 2).await;
            let leaving = std::thread::spawn(move || drop(old));
            until(|| leaving.is_finished()).await;
            assert_eq!(server.still_there(&[]), [0]);
            assert_eq!(server.board().reached().step, 2);
        });
    }

    #[test]
    fn a_save_is_asked_of_rank_0_alone() {
        within_runtime(async {
            let server = Server::open(Reach::Machine, 2).await.unwrap();
            let token = server.begin_attempt().unwrap();
            let ranks = server.ranks();
            assert!(!ranks.save(), "nobody is there");
            let start = |rank| {
                let hello = Hello {
                    rank,
                    ..Hello::default()
                };
                Beater::start(server.address.clone(), token.clone(), hello).unwrap()
            };
            let (first, second) = (start(0), start(1));
            until(|| server.board().ranks().filter(|r| r.spoke.is_some()).count() == 2).await;
            assert!(ranks.save());
            let mut asked = None;
            until(|| {
                asked = asked.or(first.take_command());
                asked.is_some()
            })
            .await;
            assert_eq!(asked, Some(Command::Save));
            assert_eq!((first.take_command(), second.take_command()), (None, None));
            let leaving = std::thread::spawn(move || drop((first, second)));
            until(|| leaving.is_finished()).await;
        });
    }

    #[test]
    fn whoever_breaks_the_rules_is_cut_off_and_changes_nothing() {
        within_runtime(async {
            let server = Server::open(Reach::Machine, 1).await.unwrap();
            let token = server.begin_attempt().unwrap();
            let hello = |token: &str, rank| {
                encode(&Message::Hello(Hello {
                    version: scpeft_protocol::heartbeat::VERSION,
                    token: token.into(),
                    rank,
                    ..Hello::default()
                }))
            };
            let beat = encode(&Message::Beat(Beat {
                step: 5,
                ..Beat::default()
            }));
            let good = hello(&token, 0);
            for lines in [
                hello("wrong", 0) + &beat,
                hello("", 0) + &beat,
                beat.clone(),
                "GET / HTTP/1.1\r\n\r\n".to_owned(),
                "x".repeat(2 * LINE_BYTES_MAX),
            ] {
                assert!(is_cut_off(raw(&server), &lines).await, "{lines}");
                assert!(!server.board().has_started(), "{lines}");
            }
            assert!(is_cut_off(raw(&server), &(good.clone() + "{\"kind\":\"beat\"}\n")).await);
            assert!(is_cut_off(raw(&server), &(good + &hello(&token, 1))).await);
            assert_eq!(server.board().reached().step, 0);
            assert_eq!(server.board().ranks().count(), 1);
        });
    }

    async fn is_cut_off(mut stream: UnixStream, lines: &str) -> bool {
        use std::io::Read as _;
        // The other end may be gone before everything is written.
        let _ = stream.write_all(lines.as_bytes());
        for _ in 0..200 {
            match stream.read(&mut [0; 16]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return true,
                Ok(_) => return false,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }

    #[test]
    fn another_name_is_told_to_ranks_elsewhere_alone() {
        within_runtime(async {
            let mut server = Server::open(Reach::Network, 1).await.unwrap();
            let port = server
                .address
                .to_string()
                .rsplit_once(':')
                .unwrap()
                .1
                .to_owned();
            server.advertise("10.0.0.7");
            assert_eq!(server.address.to_string(), format!("tcp:10.0.0.7:{port}"));
            server.advertise("fd00::7");
            assert_eq!(server.address.to_string(), format!("tcp:[fd00::7]:{port}"));
            let mut local = Server::open(Reach::Machine, 1).await.unwrap();
            let before = local.address.to_string();
            local.advertise("10.0.0.7");
            assert_eq!(local.address.to_string(), before);
        });
    }

    #[test]
    fn the_socket_is_private_and_goes_with_the_server() {
        within_runtime(async {
            use std::os::unix::fs::PermissionsExt as _;
            let server = Server::open(Reach::Machine, 1).await.unwrap();
            let folder = server.folder.clone().unwrap();
            assert_eq!(
                folder.metadata().unwrap().permissions().mode() & 0o777,
                0o700
            );
            assert_eq!(server.begin_attempt().unwrap().len(), 32);
            drop(server);
            assert!(!folder.exists());
        });
    }
}

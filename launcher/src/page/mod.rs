//! The live page: one HTML page, the state of the run as JSON, the ends of the logs, targets for
//! Prometheus, and two requests, save and drain, behind a token.
//!
//! It runs on a thread and a runtime of its own, so that a slow disk or a flood of requests never
//! reaches the session that watches over the ranks. It reads; the only way from here to the run are
//! [`Ranks::save`] and [`Asker::ask`].

mod access;
mod assets;
mod discovery;
mod files;
mod logs;
mod plan;
mod serve;
mod watch;

pub use plan::Planner;

use crate::guard::hostname;
use crate::server::{Ranks, secret};
use crate::supervise::Asker;
use serve::Site;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use tokio::sync::oneshot;
use watch::Watcher;

/// Where the page is unless told otherwise.
pub const LISTEN: &str = "127.0.0.1:8717";
/// Ports that are tried one after the other before any free one.
const PORTS_TRIED: u16 = 20;
/// How often the files of the run directory that others read are written.
const TICK: Duration = Duration::from_secs(2);
/// How long a page that somebody looks at outlives the run, so that it shows the end.
const AFTERGLOW: Duration = Duration::from_millis(1500);
/// How long the launcher waits for the page to end.
const FAREWELL: Duration = Duration::from_secs(3);

/// The run behind a page.
#[derive(Debug, Clone)]
pub struct Live {
    /// Its ranks.
    pub ranks: Ranks,
    /// How many there are.
    pub world_size: u32,
    /// Asks it to save and leave.
    pub asker: Asker,
    /// Says what it is expected to need.
    pub planner: Option<Planner>,
}

/// A page that is being served until it is dropped.
#[derive(Debug)]
pub struct Page {
    /// Where it is.
    pub url: String,
    /// What a request to save or drain must bring; nothing for a run that has ended.
    pub token: Option<String>,
    closing: Option<oneshot::Sender<()>>,
    /// Closes when the thread has ended.
    ended: Receiver<()>,
    published: Option<PathBuf>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// The address is not understood.
    #[error("`--listen {value}`: {reason}, expected `HOST:PORT`, as in `{LISTEN}`")]
    Address {
        /// As it was given.
        value: String,
        /// What the system says.
        reason: String,
    },
    /// Nothing can be bound there.
    #[error("cannot serve the page on `{address}`: {reason}")]
    Bind {
        /// Where it was tried.
        address: SocketAddr,
        /// What the system says.
        reason: io::Error,
    },
    /// The thread, or the files that say where the page is.
    #[error("cannot serve the page: {0}")]
    Io(#[from] io::Error),
}

/// Looks an address up.
///
/// # Errors
/// When it is not `HOST:PORT` or the host has no address.
pub fn resolve(listen: &str) -> Result<SocketAddr, PageError> {
    let refuse = |reason: String| PageError::Address {
        value: listen.to_owned(),
        reason,
    };
    let mut found = listen
        .to_socket_addrs()
        .map_err(|error| refuse(error.to_string()))?;
    found.next().ok_or_else(|| refuse("no such host".into()))
}

impl Page {
    /// Serves the page of a run that a launcher watches, and publishes in the run directory where it
    /// is.
    ///
    /// # Errors
    /// When no port can be bound, or the run directory cannot be written.
    pub fn of_run(listen: SocketAddr, run_dir: &Path, live: Live) -> Result<Self, PageError> {
        let token = secret()?;
        let mut page = Self::open(listen, run_dir, Some(live), Some(token))?;
        // From here on the files are removed with the page.
        page.published = Some(run_dir.to_owned());
        files::publish(
            run_dir,
            &page.url,
            page.token.as_deref().unwrap_or_default(),
        )?;
        Ok(page)
    }

    /// Serves the page of a run directory alone.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn of_directory(listen: SocketAddr, run_dir: &Path) -> Result<Self, PageError> {
        Self::open(listen, run_dir, None, None)
    }

    fn open(
        listen: SocketAddr,
        run_dir: &Path,
        live: Option<Live>,
        token: Option<String>,
    ) -> Result<Self, PageError> {
        let listener = bind(listen)?;
        listener.set_nonblocking(true)?;
        let url = url_of(listener.local_addr()?);
        let watcher = Watcher::new(run_dir, live.clone(), token.as_deref());
        let planning = live.as_ref().and_then(|live| live.planner.clone());
        let planning = planning.map(|planner| planner.keep(run_dir.to_owned()));
        let site = Arc::new(Site::new(watcher, live, token.clone(), run_dir));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (closing, closed) = oneshot::channel();
        let (ending, ended) = channel();
        std::thread::Builder::new()
            .name("scpeft-page".into())
            .spawn(move || {
                runtime.block_on(async {
                    if let Some(planning) = planning {
                        tokio::spawn(planning);
                    }
                    run(listener, site, closed).await;
                });
                drop(ending);
            })?;
        Ok(Self {
            url,
            token,
            closing: Some(closing),
            ended,
            published: None,
        })
    }

    /// The address with the token behind it, for the one who may ask.
    pub fn link(&self) -> String {
        match &self.token {
            Some(token) => format!("{}#token={token}", self.url),
            None => self.url.clone(),
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        drop(self.closing.take());
        // A disk that does not answer keeps the thread, but not the launcher.
        let _ = self.ended.recv_timeout(FAREWELL);
        if let Some(run_dir) = &self.published {
            files::withdraw(run_dir);
        }
    }
}

/// The address as one would type it: every address of this machine goes by its name.
fn url_of(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("http://{}:{}/", hostname(), address.port())
    } else {
        format!("http://{address}/")
    }
}

/// Binds an address; a port that is taken is replaced by one of the next, or by any free one.
fn bind(listen: SocketAddr) -> Result<TcpListener, PageError> {
    let port = listen.port();
    let next = (0..PORTS_TRIED).filter_map(|offset| port.checked_add(offset));
    let mut last = None;
    for port in next.chain([0]) {
        let address = SocketAddr::new(listen.ip(), port);
        match TcpListener::bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(PageError::Bind {
        address: listen,
        reason: last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()),
    })
}

/// The thread: serves, and keeps the files of the run directory fresh, until the run is over.
async fn run(listener: TcpListener, site: Arc<Site>, mut closed: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let serving = tokio::spawn(serve::accept(listener, Arc::clone(&site)));
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => site.write_files(),
            _ = &mut closed => break,
        }
    }
    site.write_last_files();
    if site.is_watched() {
        tokio::time::sleep(AFTERGLOW).await;
    }
    serving.abort();
}

#[cfg(test)]
mod tests;

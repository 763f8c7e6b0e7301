//! The HTTP side: connections with limits, routes, and answers with their headers.

use super::access::{Gate, Refusal, check_host};
use super::watch::Watcher;
use super::{Live, assets, logs};
use crate::events::Events;
use crate::guard::hostname;
use crate::server::secret;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at a time; a browser takes up to six.
const CONNECTIONS: usize = 64;
/// What a client has to send the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// What a connection has in all: a client that reads slowly comes again.
const CONNECTION: Duration = Duration::from_mins(1);
/// Bytes of the head of a request.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Somebody who looked this lately will look again.
const WATCHED: Duration = Duration::from_secs(3);

type Answer = Response<Full<Bytes>>;

/// What is served.
pub(super) struct Site {
    watcher: Mutex<Watcher>,
    live: Option<Live>,
    gate: Option<Mutex<Gate>>,
    run_dir: PathBuf,
    own_name: String,
    looked: Mutex<Option<Instant>>,
}

/// A panic of another request leaves what is behind the lock as good as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Site {
    pub(super) fn new(
        watcher: Watcher,
        live: Option<Live>,
        token: Option<String>,
        run_dir: &Path,
    ) -> Self {
        Self {
            watcher: Mutex::new(watcher),
            live,
            gate: token.map(|token| Mutex::new(Gate::new(token, Instant::now()))),
            run_dir: run_dir.to_owned(),
            own_name: hostname(),
            looked: Mutex::default(),
        }
    }

    pub(super) fn write_files(&self) {
        lock(&self.watcher).write_files();
    }

    pub(super) fn write_last_files(&self) {
        lock(&self.watcher).write_last_files();
    }

    /// Whether somebody has looked lately.
    pub(super) fn is_watched(&self) -> bool {
        lock(&self.looked).is_some_and(|at| at.elapsed() < WATCHED)
    }

    fn answer(&self, request: &Request<Incoming>) -> Answer {
        if let Err(refusal) = check_host(request.headers(), &self.own_name) {
            return refused(refusal);
        }
        let path = request.uri().path();
        let reads = [Method::GET, Method::HEAD].contains(request.method());
        match path {
            "/" | "/api/state" | "/api/log" | "/sd" | "/healthz" if !reads => wrong_method("GET"),
            "/" => page(),
            "/api/state" => {
                *lock(&self.looked) = Some(Instant::now());
                json(StatusCode::OK, lock(&self.watcher).json())
            }
            "/api/log" => self.log(request.uri().query()),
            "/sd" => json(StatusCode::OK, lock(&self.watcher).targets()),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/api/save" | "/api/drain" if request.method() != Method::POST => wrong_method("POST"),
            "/api/save" | "/api/drain" => self.ask(request, path),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are `/`, `/api/state`, `/api/log?rank=N`, `/sd` and `/healthz`\n",
            ),
        }
    }

    fn log(&self, query: Option<&str>) -> Answer {
        let rank = query
            .and_then(|query| query.strip_prefix("rank="))
            .filter(|rank| rank.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|rank| rank.parse().ok());
        let Some(rank) = rank else {
            return text(
                StatusCode::BAD_REQUEST,
                "expected the number of a rank, as in `/api/log?rank=0`\n",
            );
        };
        let redactor = lock(&self.watcher).redactor().clone();
        match logs::tail(&self.run_dir, rank, &redactor) {
            Ok(tail) => text(StatusCode::OK, tail),
            Err(_) => text(
                StatusCode::NOT_FOUND,
                format!(
                    "rank {rank} has no log here; without a shared file system it is on its host\n"
                ),
            ),
        }
    }

    fn ask(&self, request: &Request<Incoming>, path: &str) -> Answer {
        let (Some(live), Some(gate)) = (&self.live, &self.gate) else {
            return json_error(StatusCode::CONFLICT, "nothing is running here");
        };
        if let Err(refusal) = lock(gate).pass(request.headers(), Instant::now()) {
            return refused(refusal);
        }
        if path == "/api/drain" {
            live.asker.ask();
            self.note("drain");
            return asked("asked to save and stop");
        }
        if live.asker.is_requested() {
            return json_error(
                StatusCode::CONFLICT,
                "it is stopping, and saves before it does",
            );
        }
        if live.ranks.save() {
            self.note("save");
            asked("a checkpoint follows the present step")
        } else {
            json_error(
                StatusCode::CONFLICT,
                "rank 0 is not listening yet: it still starts, or it does not send heartbeats",
            )
        }
    }

    /// Notes what was asked for. That the disk is full is no reason not to do it.
    fn note(&self, what: &str) {
        let _ = Events::of(Some(&self.run_dir)).add("ask", &[("what", what.into())]);
    }
}

/// Accepts connections for as long as it is polled.
pub(super) async fn accept(listener: TcpListener, site: Arc<Site>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors is no reason to spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            let _place = place;
            // A connection that ends, in whatever way, concerns nobody else.
            let _ = timeout(CONNECTION, connection(stream, site)).await;
        });
    }
}

async fn connection(stream: TcpStream, site: Arc<Site>) -> hyper::Result<()> {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(guarded(site.answer(&request))) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// Adds what every answer carries: nothing of it is kept, framed, guessed or passed on.
fn guarded(mut answer: Answer) -> Answer {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        answer
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    answer
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "application/json", body)
}

fn json_error(status: StatusCode, error: &str) -> Answer {
    json(status, serde_json::json!({ "error": error }).to_string())
}

fn asked(said: &str) -> Answer {
    json(
        StatusCode::ACCEPTED,
        serde_json::json!({ "said": said }).to_string(),
    )
}

fn refused(refusal: Refusal) -> Answer {
    let (status, said) = refusal.answer();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
    let mut answer = json_error(status, said);
    if refusal == Refusal::TooMany {
        let headers = answer.headers_mut();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    }
    answer
}

fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = json_error(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
    let headers = answer.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

fn page() -> Answer {
    let Ok(nonce) = secret() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "no random numbers\n");
    };
    let mut answer = answer(
        StatusCode::OK,
        "text/html; charset=utf-8",
        assets::page(&nonce),
    );
    if let Ok(policy) = HeaderValue::from_str(&assets::policy(&nonce)) {
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

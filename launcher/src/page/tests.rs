//! A page that is really served, asked over real connections, by friends and others.

use super::*;
use crate::server::{Reach, Server};
use crate::supervise::Requests;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Instant;

/// A page over a run directory, with a server behind it that hears no rank.
struct Stage {
    runtime: tokio::runtime::Runtime,
    run: tempfile::TempDir,
    page: Option<Page>,
    server: Server,
    requests: Requests,
}

impl Stage {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let run = tempfile::tempdir().unwrap();
        let inside = runtime.enter();
        let server = runtime.block_on(Server::open(Reach::Machine, 2)).unwrap();
        let requests = Requests::open().unwrap();
        drop(inside);
        let live = Live {
            ranks: server.ranks(),
            world_size: 2,
            asker: requests.asker(),
            planner: None,
        };
        let listen = "127.0.0.1:0".parse().unwrap();
        let page = Page::of_run(listen, run.path(), live).unwrap();
        Self {
            runtime,
            run,
            page: Some(page),
            server,
            requests,
        }
    }

    fn address(&self) -> SocketAddr {
        let url = &self.page.as_ref().unwrap().url;
        url.trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .unwrap()
    }

    fn token(&self) -> &str {
        self.page.as_ref().unwrap().token.as_deref().unwrap()
    }

    /// Sends a request and returns status and the whole answer.
    fn send(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        // A server that cuts a connection may do so with what it has not read.
        let _ = stream.read_to_string(&mut answer);
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        (status.unwrap_or(0), answer)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.address()
        ))
    }

    fn post(&self, path: &str, headers: &str) -> u16 {
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n{headers}Connection: close\r\n\r\n",
            self.address()
        ))
        .0
    }

    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.token())
    }

    fn is_asked_to_stop(&mut self) -> bool {
        let requests = &mut self.requests;
        self.runtime.block_on(async {
            let waiting = tokio::time::timeout(Duration::from_millis(50), requests.any());
            waiting.await.is_ok()
        })
    }
}

#[test]
fn the_page_and_its_state_are_served_with_their_guards() {
    let stage = Stage::new();
    let (status, page) = stage.get("/");
    assert_eq!(status, 200);
    let head = page.split("\r\n\r\n").next().unwrap().to_lowercase();
    for header in [
        "content-security-policy: default-src 'none'; script-src 'nonce-",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
    assert!(!page.contains(stage.token()));
    let (status, state) = stage.get("/api/state");
    assert_eq!(status, 200);
    let body = state.split("\r\n\r\n").nth(1).unwrap();
    let state: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(
        (&state["phase"], &state["live"]),
        (&"starting".into(), &true.into())
    );
    assert_eq!(state["ranks"].as_array().unwrap().len(), 2);
    assert!(!body.contains(stage.token()));
    assert_eq!(stage.get("/healthz").0, 200);
    let (status, targets) = stage.get("/sd");
    assert_eq!(status, 200);
    assert!(
        targets.contains("application/json") && targets.ends_with("\r\n\r\n[]"),
        "{targets}"
    );
}

#[test]
fn the_run_directory_says_where_the_page_is_and_keeps_the_token_for_its_owner() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut stage = Stage::new();
    let path = |name: &str| stage.run.path().join(name);
    let (published, token) = (path(files::PAGE), path(files::TOKEN));
    let page: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&published).unwrap()).unwrap();
    assert_eq!(page["page"], stage.page.as_ref().unwrap().url.as_str());
    assert_eq!(
        std::fs::read_to_string(&token).unwrap().trim(),
        stage.token()
    );
    assert_eq!(
        token.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(
        !std::fs::read_to_string(&published)
            .unwrap()
            .contains(stage.token())
    );
    let begun = Instant::now();
    while !path(files::RANKS).exists() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    }
    stage.page = None;
    assert!(!published.exists() && !token.exists());
    assert_eq!(
        std::fs::read_to_string(stage.run.path().join(files::TARGETS)).unwrap(),
        "[]"
    );
    assert_eq!(stage.server.board().ranks().count(), 0);
}

#[test]
fn whoever_may_not_ask_is_refused_and_the_run_unharmed() {
    let mut stage = Stage::new();
    let bearer = stage.bearer();
    let cases = [
        (401, String::new()),
        (
            403,
            "Authorization: Bearer 00000000000000000000000000000000\r\n".into(),
        ),
        (401, format!("Authorization: Basic {}\r\n", stage.token())),
        (401, format!("Cookie: token={}\r\n", stage.token())),
        (403, format!("{bearer}Origin: http://evil.example\r\n")),
        (403, format!("{bearer}Origin: null\r\n")),
        (403, format!("{bearer}Sec-Fetch-Site: cross-site\r\n")),
    ];
    for (expected, headers) in &cases {
        for path in ["/api/drain", "/api/save"] {
            assert_eq!(stage.post(path, headers), *expected, "{path} {headers}");
        }
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let request = format!(
            "{method} /api/drain HTTP/1.1\r\nHost: localhost\r\n{bearer}Connection: close\r\n\r\n"
        );
        assert_eq!(stage.send(&request).0, 405, "{method}");
    }
    let rebound = |path: &str, method: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: evil.example:8717\r\n{bearer}Connection: close\r\n\r\n"
        )
    };
    for (path, method) in [
        ("/", "GET"),
        ("/api/state", "GET"),
        ("/api/log?rank=0", "GET"),
        ("/sd", "GET"),
        ("/api/drain", "POST"),
    ] {
        assert_eq!(stage.send(&rebound(path, method)).0, 421, "{path}");
    }
    assert!(!stage.is_asked_to_stop());
    // Guessing gets slower, and does not keep the owner out.
    let wrong = "Authorization: Bearer 1\r\n";
    assert!((0..20).any(|_| stage.post("/api/drain", wrong) == 429));
    assert_eq!(stage.post("/api/save", &bearer), 409, "rank 0 is not there");
    assert_eq!(stage.post("/api/drain", &bearer), 202);
    let events = std::fs::read_to_string(stage.run.path().join("events.jsonl")).unwrap();
    assert!(
        events.ends_with("\"kind\":\"ask\",\"what\":\"drain\"}\n"),
        "{events}"
    );
    assert_eq!(
        events.lines().count(),
        1,
        "what was refused is no event: {events}"
    );
    assert!(stage.is_asked_to_stop());
    assert_eq!(stage.post("/api/save", &bearer), 409, "it is stopping");
    assert_eq!(stage.post("/api/drain", &bearer), 429);
}

#[test]
fn no_request_for_a_log_reaches_another_file() {
    let stage = Stage::new();
    std::fs::create_dir(stage.run.path().join("logs")).unwrap();
    std::fs::write(stage.run.path().join("logs/rank-00000.log"), "hello\n").unwrap();
    std::fs::write(stage.run.path().join("secret"), "swordfish").unwrap();
    assert!(stage.get("/api/log?rank=0").1.ends_with("\r\n\r\nhello"));
    for (path, expected) in [
        ("/api/log?rank=../secret", 400),
        ("/api/log?rank=..%2fsecret", 400),
        ("/api/log?rank=0/../../secret", 400),
        ("/api/log?rank=", 400),
        ("/api/log?rank=-1", 400),
        ("/api/log?rank=99999999999", 400),
        ("/api/log?rank=0&rank=../secret", 400),
        ("/api/log?file=secret", 400),
        ("/api/log", 400),
        ("/api/log?rank=7", 404),
        ("/secret", 404),
        ("/../secret", 404),
        ("/%2e%2e/secret", 404),
        ("//secret", 404),
        ("/logs/rank-00000.log", 404),
        ("/page-token", 404),
    ] {
        let (status, answer) = stage.get(path);
        assert_eq!(status, expected, "{path}: {answer}");
        assert!(
            !answer.contains("swordfish") && !answer.contains("hello"),
            "{path}"
        );
    }
}

#[test]
fn malformed_and_oversized_requests_are_cut_off() {
    let stage = Stage::new();
    let long = "x".repeat(64 << 10);
    for request in [
        "\r\n\r\n\r\nnonsense\r\n\r\n".to_owned(),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
            .to_owned(),
    ] {
        let (status, answer) = stage.send(&request);
        assert!(
            [0, 400, 414, 421, 431].contains(&status),
            "{status} {}",
            &answer[..answer.len().min(200)]
        );
    }
    assert_eq!(stage.get("/healthz").0, 200);
}

#[test]
fn slow_clients_keep_nobody_waiting_and_are_cut_off() {
    let stage = Stage::new();
    let begun = Instant::now();
    let slow: Vec<TcpStream> = (0..30)
        .map(|_| {
            let mut stream = TcpStream::connect(stage.address()).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localh").unwrap();
            stream
        })
        .collect();
    assert_eq!(stage.get("/api/state").0, 200);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    for mut stream in slow {
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // Cut off: an end or an error, but not the timeout of this side.
        let end = stream.read(&mut [0; 512]);
        assert!(
            !matches!(&end, Err(e) if e.kind() == io::ErrorKind::WouldBlock),
            "{end:?}"
        );
    }
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
}

#[test]
fn a_taken_port_is_replaced_by_the_next_free_one() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let listener = bind(address).unwrap();
    assert_ne!(listener.local_addr().unwrap().port(), address.port());
    assert!(matches!(
        bind("192.0.2.1:80".parse().unwrap()),
        Err(PageError::Bind { .. })
    ));
    let everywhere = url_of("0.0.0.0:80".parse().unwrap());
    assert_eq!(
        everywhere,
        format!("http://{}:80/", crate::guard::hostname())
    );
    assert_eq!(url_of("[::1]:80".parse().unwrap()), "http://[::1]:80/");
    for (listen, expected) in [
        ("nonsense", "`--listen nonsense`: "),
        ("127.0.0.1", "expected `HOST:PORT`"),
        ("127.0.0.1:99999", "expected `HOST:PORT`"),
    ] {
        let error = resolve(listen).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

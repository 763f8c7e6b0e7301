//! A proxy that hands requests on and spoils some of the answers.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use scpeft_data::rng::{Purpose, Rng};

/// How often what goes wrong, each as a probability.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// The answer is 503 SlowDown.
    pub slow_down: f64,
    /// The connection ends in the middle of the body.
    pub cut: f64,
    /// The body comes in small pieces.
    pub slow: f64,
    /// Nothing comes, and the connection stays.
    pub stall: f64,
}

pub struct Proxy {
    pub address: String,
    state: Arc<State>,
}

struct State {
    upstream: String,
    faults: Mutex<Faults>,
    requests: AtomicU64,
    spoiled: AtomicU64,
    log: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Proxy {
    pub fn start(upstream: &str, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State {
            upstream: upstream.to_owned(),
            faults: Mutex::new(faults),
            requests: AtomicU64::new(0),
            spoiled: AtomicU64::new(0),
            log: Mutex::default(),
            over: AtomicBool::new(false),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.over.load(SeqCst) {
                    return;
                }
                let (stream, shared) = (stream.unwrap(), shared.clone());
                // A client that hangs up ends its connection, not the test.
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { address, state }
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(SeqCst)
    }

    /// Answers that had to be asked for again: 503, cut off, stalled.
    pub fn spoiled(&self) -> u64 {
        self.state.spoiled.load(SeqCst)
    }

    /// First lines of the requests so far.
    pub fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap().clone()
    }

    pub fn set(&self, faults: Faults) {
        *self.state.faults.lock().unwrap() = faults;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.over.store(true, SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(&self.address);
    }
}

impl State {
    fn serve(&self, mut client: TcpStream) -> Option<()> {
        let head = read_head(&mut client)?;
        let number = self.requests.fetch_add(1, SeqCst);
        let line = head.lines().next()?.to_owned();
        self.log.lock().unwrap().push(line);
        let faults = *self.faults.lock().unwrap();
        let mut draw = Rng::new(1, Purpose::Sampling, 0, number).uniform();
        let mut happens = |probability: f64| {
            draw -= probability;
            draw < 0.0
        };
        if happens(faults.slow_down) {
            self.spoiled.fetch_add(1, SeqCst);
            let body =
                "<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
            let answer = format!(
                "HTTP/1.1 503 Slow Down\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            return client.write_all(answer.as_bytes()).ok();
        }
        if happens(faults.stall) {
            self.spoiled.fetch_add(1, SeqCst);
            while !self.over.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
            return None;
        }
        let answer = self.answer(&head)?;
        let body = answer.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        if happens(faults.cut) && answer.len() > body + 1 {
            self.spoiled.fetch_add(1, SeqCst);
            return client
                .write_all(&answer[..body.midpoint(answer.len())])
                .ok();
        }
        if happens(faults.slow) {
            for piece in answer.chunks(answer.len() / 20 + 1) {
                client.write_all(piece).ok()?;
                std::thread::sleep(Duration::from_millis(5));
            }
            return Some(());
        }
        client.write_all(&answer).ok()
    }

    /// The server's answer to the same request on a connection of its own.
    fn answer(&self, head: &str) -> Option<Vec<u8>> {
        let mut server = TcpStream::connect(&self.upstream).ok()?;
        let head = head.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        server.write_all(head.as_bytes()).ok()?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer).ok()?;
        Some(answer)
    }
}

/// A request without a body.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0; 1024];
    while !head.ends_with(b"\r\n\r\n") {
        let n = stream.read(&mut byte).ok().filter(|&n| n > 0)?;
        head.extend_from_slice(&byte[..n]);
    }
    String::from_utf8(head).ok()
}

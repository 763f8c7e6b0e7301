//! The server: moto, on a free port, for one test.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scpeft_data::StoreOptions;

pub const BUCKET: &str = "cells";

pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    /// Starts the server and makes the bucket [`BUCKET`].
    pub fn start() -> Self {
        let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
        assert!(
            python.exists(),
            "no `{}`: run `make setup-test` first",
            python.display()
        );
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new(python)
            .args(["-m", "moto.server", "-H", "127.0.0.1", "-p"])
            .arg(port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            address: format!("127.0.0.1:{port}"),
        };
        let begun = Instant::now();
        while TcpStream::connect(&server.address).is_err() {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "moto ended: run `make setup-test`");
            assert!(
                begun.elapsed() < Duration::from_mins(1),
                "moto does not answer"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        server.put("", b"");
        server
    }

    /// Writes an object of the bucket.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        // Replacing an object needs a signature, of whatever content.
        let head = format!(
            "PUT /{BUCKET}/{key} HTTP/1.1\r\nHost: {}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            bytes.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{key}: {answer}");
    }

    /// Writes all files of a folder below `prefix`.
    pub fn upload(&self, folder: &Path, prefix: &str) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let key = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
            if path.is_dir() {
                self.upload(&path, &key);
            } else {
                self.put(&key, &std::fs::read(&path).unwrap());
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What reaches the server through an address.
pub fn settings(address: &str) -> Vec<(String, String)> {
    [
        ("aws_endpoint_url", format!("http://{address}")),
        ("aws_allow_http", "true".into()),
        ("aws_access_key_id", "key".into()),
        ("aws_secret_access_key", "secret".into()),
        ("aws_region", "us-east-1".into()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

pub fn options(address: &str) -> StoreOptions {
    StoreOptions {
        settings: settings(address),
        ..StoreOptions::default()
    }
}

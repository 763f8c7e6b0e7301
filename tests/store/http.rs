//! A corpus on a plain web server that answers range requests.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use scpeft_data::index::index;
use scpeft_data::{Corpus, StoreOptions};

use crate::s3::assert_same;
use crate::{common, proxy, tahoe};

/// Serves the files of a folder until the test ends.
fn serve(folder: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(stream.unwrap(), &folder));
        }
    });
    address
}

fn answer(mut client: TcpStream, folder: &Path) -> Option<()> {
    let head = proxy::read_head(&mut client)?;
    let path = head.split(' ').nth(1)?.trim_start_matches('/');
    let range = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let bounds = value.strip_prefix("bytes=")?.split_once('-')?;
        name.eq_ignore_ascii_case("range").then_some(bounds)
    });
    let (status, extra, body) = match (std::fs::read(folder.join(path)), range) {
        _ if !head.starts_with("GET ") => ("405 Method Not Allowed", String::new(), Vec::new()),
        (Err(_), _) => ("404 Not Found", String::new(), Vec::new()),
        (Ok(bytes), None) => ("200 OK", String::new(), bytes),
        (Ok(bytes), Some((from, to))) => {
            let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
            let range = format!("Content-Range: bytes {from}-{to}/{}\r\n", bytes.len());
            ("206 Partial Content", range, bytes[from..=to].to_vec())
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{extra}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(&body).ok()
}

#[test]
fn a_corpus_is_read_from_a_web_server() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let address = serve(dir.path());
    let url = PathBuf::from(format!("http://{address}/corpus"));
    let remote = Corpus::open_with(&url, &StoreOptions::default()).unwrap();
    assert_same(&local, &Arc::new(remote));
    let nothing = PathBuf::from(format!("http://{address}/elsewhere"));
    let error = Corpus::open_with(&nothing, &StoreOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("has no manifest.json"),
        "{error}"
    );
}

#[test]
fn a_web_server_that_lists_nothing_is_no_source_of_an_index() {
    let dir = tempfile::tempdir().unwrap();
    tahoe::folder(dir.path());
    let url = PathBuf::from(format!("http://{}/tahoe", serve(dir.path())));
    let options = crate::index::options(&url, dir.path().join("corpus"));
    let message = index(&options, &|_, _| {}).unwrap_err().to_string();
    assert!(message.contains("cannot list its files"), "{message}");
}

//! A corpus read from the server is the local one, whatever goes wrong on the way; what cannot go well is
//! an error in time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scpeft_data::pipeline::Corrupt;
use scpeft_data::{Corpus, LoaderOptions, StoreOptions};

use crate::common;
use crate::proxy::{Faults, Proxy};
use crate::server::{BUCKET, Server, options};

pub fn url(name: &str) -> PathBuf {
    PathBuf::from(format!("s3://{BUCKET}/{name}"))
}

/// The loader of these tests: one cell of the corpus is empty.
pub fn loader_options() -> LoaderOptions {
    LoaderOptions {
        corrupt: Corrupt::Skip,
        ..common::options()
    }
}

pub fn assert_same(local: &Arc<Corpus>, remote: &Arc<Corpus>) {
    assert_eq!(remote.manifest(), local.manifest());
    assert_eq!(remote.genes(), local.genes());
    assert_eq!(remote.fingerprint(), local.fingerprint());
    for group in 0..local.row_groups().len() {
        let of = |corpus: &Corpus| corpus.read_block(group, None).unwrap();
        assert_eq!(of(remote), of(local), "row group {group}");
    }
    for column in ["label", "domain"] {
        let of = |corpus: &Corpus| corpus.obs_codes(column).unwrap();
        assert_eq!(of(remote), of(local), "{column}");
    }
    let cells = [102, 0, 57, 58];
    let ids = remote.cell_ids(&cells).unwrap();
    assert_eq!(ids, ["cell-102", "cell-0", "cell-57", "cell-58"]);
}

fn refused<T>(result: scpeft_data::Result<T>) -> String {
    let error = result.err().expect("an error");
    assert_eq!(error.exit_code(), 3, "{error}");
    error.to_string()
}

#[test]
fn a_corpus_is_the_same_through_faults() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let server = Server::start();
    server.upload(local.path(), "a/corpus");
    let faults = Faults {
        slow_down: 0.15,
        cut: 0.15,
        slow: 0.15,
        stall: 0.0,
    };
    let proxy = Proxy::start(&server.address, faults);
    let open = || Corpus::open_with(&url("a/corpus"), &options(&proxy.address)).unwrap();
    let remote = Arc::new(open());
    assert_same(&local, &remote);
    let traffic = remote.traffic().snapshot();
    assert!(traffic.retries >= 10, "{traffic:?}");
    assert_eq!(traffic.retries, proxy.spoiled());
    assert_eq!(traffic.requests, proxy.requests());
    // Batches of an epoch, on the threads of a loader, and all hashes.
    let batches = |corpus| common::epoch(corpus, &loader_options(), 1, 0);
    assert_eq!(batches(&Arc::new(open())), batches(&local));
    let checked = scpeft_data::verify::verify(
        &remote,
        scpeft_data::verify::VerifyOptions::default(),
        &|_, _| {},
    )
    .unwrap();
    assert!(checked.faults.is_empty(), "{:?}", checked.faults);
    assert_eq!(checked.cells, common::CELLS as u64);
}

#[test]
fn giving_up_is_an_error_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let server = Server::start();
    server.upload(local.path(), "corpus");
    let proxy = Proxy::start(&server.address, Faults::default());
    let open = |retries, seconds| {
        let options = StoreOptions {
            retries,
            timeout: Duration::from_secs(seconds),
            ..options(&proxy.address)
        };
        Corpus::open_with(&url("corpus"), &options).unwrap()
    };
    let (few, short) = (open(3, 60), open(1000, 2));
    proxy.set(Faults {
        slow_down: 1.0,
        ..Faults::default()
    });
    let before = proxy.requests();
    let message = refused(few.read_block(0, None));
    assert!(
        message.contains("given up after 4 tries")
            && message.contains("503 SlowDown: Reduce your request rate.")
            && message.contains("s3://cells/corpus/shards/part-00000.parquet"),
        "{message}"
    );
    assert_eq!(proxy.requests() - before, 4);
    assert_eq!(few.traffic().snapshot().retries, 3);
    proxy.set(Faults {
        stall: 1.0,
        ..Faults::default()
    });
    let begun = Instant::now();
    let message = refused(short.read_block(0, None));
    assert!(message.contains("no complete answer in time"), "{message}");
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}

/// A store that is out of reach is not a damaged cell, which a loader may be told to leave out.
#[test]
fn an_outage_is_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let server = Server::start();
    server.upload(local.path(), "corpus");
    let proxy = Proxy::start(&server.address, Faults::default());
    let options = StoreOptions {
        retries: 1,
        ..options(&proxy.address)
    };
    let corpus = Arc::new(Corpus::open_with(&url("corpus"), &options).unwrap());
    let loader = common::loader(&corpus, loader_options());
    proxy.set(Faults {
        slow_down: 1.0,
        ..Faults::default()
    });
    let message = refused(loader.epoch(0, 0).next().unwrap());
    assert!(message.contains("given up after 2 tries"), "{message}");
}

#[test]
fn what_is_not_there_is_said_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let server = Server::start();
    server.upload(local.path(), "corpus");
    let proxy = Proxy::start(&server.address, Faults::default());
    let open = |url: &str| Corpus::open_with(Path::new(url), &options(&proxy.address));
    let message = refused(open("s3://no-such-bucket/corpus"));
    assert!(
        message.contains("s3://no-such-bucket/corpus") && message.contains("bucket does not exist"),
        "{message}"
    );
    let message = refused(open("s3://cells/elsewhere"));
    assert!(
        message.contains("`s3://cells/elsewhere`") && message.contains("has no manifest.json"),
        "{message}"
    );
    assert_eq!(proxy.requests(), 2);
    let text = std::fs::read_to_string(local.path().join("manifest.json")).unwrap();
    let lost = text.replace("part-00001", "part-00009");
    server.put("corpus/manifest.json", lost.as_bytes());
    let corpus = open("s3://cells/corpus").unwrap();
    let last_read = (0..corpus.row_groups().len()).find_map(|g| corpus.read_block(g, None).err());
    let message = last_read.unwrap().to_string();
    assert!(
        message.contains("part-00009.parquet") && message.contains("does not exist in the store"),
        "{message}"
    );
    assert_eq!(corpus.traffic().snapshot().retries, 0);
}

#[test]
fn a_thousand_shards_are_opened_with_two_requests() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let mut manifest = local.manifest().clone();
    let shard = manifest.shards[0].clone();
    manifest.shards = (0..1000)
        .map(|number| {
            let mut shard = shard.clone();
            shard.path = format!("shards/part-{number:05}.parquet");
            shard
        })
        .collect();
    manifest.n_cells = 1000 * shard.rows;
    let server = Server::start();
    server.upload(local.path(), "corpus");
    let text = serde_json::to_vec(&manifest).unwrap();
    server.put("corpus/manifest.json", &text);
    let proxy = Proxy::start(&server.address, Faults::default());
    let begun = Instant::now();
    let corpus = Corpus::open_with(&url("corpus"), &options(&proxy.address)).unwrap();
    let took = begun.elapsed();
    assert_eq!(corpus.row_groups().len(), 5000);
    assert_eq!(proxy.requests(), 2, "{:?}", proxy.log());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_shard_that_changes_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let local = common::write_corpus(dir.path());
    let server = Server::start();
    server.upload(local.path(), "corpus");
    let open = || Corpus::open_with(&url("corpus"), &options(&server.address)).unwrap();
    let corpus = open();
    corpus.read_block(0, None).unwrap();
    let name = &local.manifest().shards[0].path;
    let mut bytes = std::fs::read(local.path().join(name)).unwrap();
    // Another version of the same size.
    bytes[0] ^= 1;
    server.put(&format!("corpus/{name}"), &bytes);
    let message = refused(corpus.read_block(1, None));
    assert!(
        message.contains(name) && message.contains("changed while the corpus was open"),
        "{message}"
    );
    server.put(&format!("corpus/{name}"), &bytes[1..]);
    let message = refused(open().read_block(0, None));
    let expected = format!(
        "has {} bytes, the manifest says {}",
        bytes.len() - 1,
        bytes.len()
    );
    assert!(
        message.contains(name) && message.contains(&expected),
        "{message}"
    );
}

#[test]
fn an_endpoint_without_encryption_needs_leave() {
    let mut options = options("127.0.0.1:1");
    options.settings.retain(|(key, _)| key != "aws_allow_http");
    let error = Corpus::open_with(&url("corpus"), &options).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("AWS_ALLOW_HTTP=true"), "{error}");
}

//! `scpeft-data verify` and `inspect` as a user meets them.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use scpeft_data::Corpus;
use tempfile::TempDir;

fn run(args: &[&str]) -> Output {
    Command::new(scpeft_tests::binary("scpeft-data"))
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn verify_finds_damage() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("corpus");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/h5ad/csr.h5ad");
    let (source, output) = (source.to_str().unwrap(), path.to_str().unwrap());
    let imported = run(&["import", "--input", source, "--output", output]);
    assert!(imported.status.success());
    let corpus = Corpus::open(&path).unwrap();
    let shard = path.join(&corpus.manifest().shards[0].path);
    let whole = std::fs::read(&shard).unwrap();
    let verify = || {
        let output = run(&["verify", output]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    std::fs::write(&shard, flipped).unwrap();
    let (code, text) = verify();
    assert_eq!(code, Some(3));
    assert!(
        text.contains("part-00000.parquet") && text.contains("blake3") && text.contains("help:"),
        "{text}"
    );
    std::fs::write(&shard, &whole[..whole.len() - 7]).unwrap();
    let (code, text) = verify();
    assert_eq!(code, Some(3));
    assert!(
        text.contains("part-00000.parquet") && text.contains("bytes"),
        "{text}"
    );
    std::fs::remove_file(&shard).unwrap();
    assert_eq!(verify().0, Some(3));
    let nowhere = run(&["inspect", dir.path().join("nowhere").to_str().unwrap()]);
    assert_eq!(nowhere.status.code(), Some(3));
}

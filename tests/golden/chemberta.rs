//! RoBERTa encoders of SMILES against transformers: tokens, states and pooled vectors of two small
//! checkpoints in the published forms; and the command that embeds a table of drugs.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use scpeft_data::molecules::Molecules;
use scpeft_protocol::exit;
use scpeft_tests::{case, fixture};
use scpeft_trainer::Failure;
use scpeft_trainer::args::{MoleculesArgs, Pooling};
use scpeft_trainer::molecules::{self, Encoder};
use tch::{Kind, Tensor};

const FORMS: [&str; 2] = ["bpe", "characters"];

struct Golden {
    dir: PathBuf,
    smiles: Vec<String>,
    expected: HashMap<String, Tensor>,
    tolerance: f64,
}

impl Golden {
    fn load(form: &str) -> Self {
        let dir = fixture("chemberta", form);
        let case = case(&dir);
        let smiles = case["smiles"].as_array().unwrap().iter();
        Self {
            smiles: smiles.map(|s| s.as_str().unwrap().to_owned()).collect(),
            expected: Tensor::read_safetensors(dir.join("expected.safetensors"))
                .unwrap()
                .into_iter()
                .collect(),
            tolerance: case["tolerance"]["abs"].as_f64().unwrap(),
            dir,
        }
    }

    fn encoder(&self, pooling: Pooling) -> Encoder {
        Encoder::open(&self.dir, pooling).unwrap()
    }

    fn require(&self, name: &str, found: &Tensor) {
        let expected = &self.expected[name];
        assert_eq!(found.size(), expected.size(), "{name}");
        let off = (found - expected).abs().max().double_value(&[]);
        let size = expected.abs().max().double_value(&[]);
        assert!(
            off <= self.tolerance * (1.0 + size),
            "{name} is off by {off}"
        );
    }
}

#[test]
fn tokens_and_states_are_those_of_the_reference() {
    for form in FORMS {
        let golden = Golden::load(form);
        let encoder = golden.encoder(Pooling::Mean);
        for (i, smiles) in golden.smiles.iter().enumerate() {
            let ids = encoder.tokens(smiles).unwrap();
            let expected = Vec::<i64>::try_from(&golden.expected[&format!("ids.{i}")]).unwrap();
            assert_eq!(ids, expected, "{form}: {smiles}");
            golden.require(&format!("hidden.{i}"), &encoder.states(&ids).unwrap());
        }
    }
}

/// All molecules in one batch, most of them padded.
#[test]
fn pooled_vectors_are_those_of_the_reference_whatever_the_padding() {
    for form in FORMS {
        let golden = Golden::load(form);
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let encoder = golden.encoder(pooling);
            let ids: Vec<Vec<i64>> = golden
                .smiles
                .iter()
                .map(|smiles| encoder.tokens(smiles).unwrap())
                .collect();
            let ids: Vec<&[i64]> = ids.iter().map(Vec::as_slice).collect();
            for (i, row) in encoder.embed(&ids).unwrap().into_iter().enumerate() {
                let name = format!("{}.{i}", pooling.name());
                golden.require(&name, &Tensor::from_slice(&row).to_kind(Kind::Float));
            }
        }
    }
}

fn embed(encoder: &Path, table: &str, dir: &Path) -> Result<String, Failure> {
    let path = dir.join("drugs.csv");
    std::fs::write(&path, table).unwrap();
    molecules::embed(&MoleculesArgs {
        table: path,
        encoder: encoder.to_owned(),
        pooling: Pooling::Mean,
        name: None,
        smiles: None,
        inchikey: None,
        no_header: false,
        batch: 2,
        output: dir.join("table.parquet"),
        overwrite: false,
    })
}

#[test]
fn a_table_of_drugs_becomes_a_table_of_embeddings() {
    let golden = Golden::load("bpe");
    let dir = tempfile::tempdir().unwrap();
    let table = "name,smiles\nDMSO,CS(=O)C\naspirin,OC(=O)c1ccccc1OC(C)=O\nmethane,C\n";
    let said = embed(&golden.dir, table, dir.path()).unwrap();
    assert!(said.starts_with("3 molecules, 16 numbers each"), "{said}");
    let found = Molecules::read(&dir.path().join("table.parquet")).unwrap();
    for (name, key) in [
        ("DMSO", "mean.0"),
        ("aspirin", "mean.1"),
        ("methane", "mean.5"),
    ] {
        golden.require(key, &Tensor::from_slice(found.get(name).unwrap()));
    }
    // The output is there: refused, and so is what the vocabulary does not have, by name.
    assert_eq!(
        embed(&golden.dir, table, dir.path()).unwrap_err().code,
        exit::CONFIG
    );
    let odd = embed(&golden.dir, "name,smiles\nX-1,CCI\nX-2,C\n", dir.path()).unwrap_err();
    assert_eq!(odd.code, exit::DATA);
    let expected = "X-1: `CCI` has characters that the vocabulary lacks";
    assert!(odd.message.contains(expected), "{odd}");
    assert!(!odd.message.contains("X-2"), "{odd}");
    let long = format!("name,smiles\nlong,{}\n", "C".repeat(200));
    let long = embed(&fixture("chemberta", "characters"), &long, dir.path()).unwrap_err();
    let expected = "has 202 tokens, the encoder has 64 positions";
    assert!(long.message.contains(expected), "{long}");
}

#[test]
fn files_that_do_not_make_an_encoder_are_named() {
    let golden = Golden::load("bpe");
    let dir = tempfile::tempdir().unwrap();
    let copy = |leave_out: &str, config: Option<(&str, &str)>| {
        for entry in std::fs::read_dir(&golden.dir).unwrap() {
            let name = entry.unwrap().file_name();
            let (from, to) = (golden.dir.join(&name), dir.path().join(&name));
            let _ = std::fs::remove_file(&to);
            if name != leave_out {
                std::fs::copy(from, &to).unwrap();
            }
        }
        if let Some((from, to)) = config {
            let path = dir.path().join("config.json");
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            std::fs::write(&path, text.replace(from, to)).unwrap();
        }
        Encoder::open(dir.path(), Pooling::Mean)
            .unwrap_err()
            .message
    };
    for (file, expected) in [
        ("config.json", "config.json"),
        (
            "pytorch_model.bin",
            "model.safetensors or pytorch_model.bin",
        ),
        ("merges.txt", "merges.txt"),
    ] {
        let error = copy(file, None);
        assert!(error.contains(expected), "{error}");
    }
    let bert = copy("", Some(("\"roberta\"", "\"bert\"")));
    assert!(
        bert.contains("`model_type` is `bert`, expected `roberta`"),
        "{bert}"
    );
    let deeper = copy(
        "",
        Some(("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3")),
    );
    assert!(deeper.contains("encoder.layer.2"), "{deeper}");
    let narrow = copy(
        "",
        Some((
            "\"max_position_embeddings\": 66",
            "\"max_position_embeddings\": 70",
        )),
    );
    assert!(
        narrow.contains("[68, 16] in the model, [64, 16] in the file"),
        "{narrow}"
    );
}

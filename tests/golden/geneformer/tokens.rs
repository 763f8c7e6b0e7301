//! The tokeniser against the reference's, through its pickled dictionaries.

use std::collections::HashMap;

use scpeft_checkpoint::published::geneformer::GeneDictionaries;
use scpeft_checkpoint::published::geneformer::genes::Pickles;
use scpeft_data::tokenize::{Cell, CellKey, Tokens};
use scpeft_data::{GeneKey, GeneTable, RankDictionary, RankTokenizer, Tokenizer, ValueKind};
use scpeft_tests::{case, fixture};

use crate::golden::read;

fn dictionary(name: &str) -> RankDictionary {
    let dir = fixture("geneformer", name);
    let pickles = Pickles::find(&dir, None, None, None).unwrap();
    let genes = GeneDictionaries::from_pickles(&pickles).unwrap();
    let tokens = genes.tokens().iter().map(|(t, &id)| (t.clone(), id as i32));
    RankDictionary::new(
        tokens.collect(),
        genes
            .medians()
            .iter()
            .map(|(g, &m)| (g.clone(), m))
            .collect(),
        HashMap::new(),
    )
    .unwrap()
}

fn check(name: &str) {
    let dir = fixture("geneformer", name);
    let case = case(&dir);
    let expected = read(&dir.join("expected.safetensors"));
    let counts = &read(&dir.join("inputs.safetensors"))["counts"];
    let ids: Vec<&str> = case["ensembl_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_str().unwrap())
        .collect();
    let genes = GeneTable {
        symbols: (0..ids.len()).map(|g| format!("gene-{g}")).collect(),
        ensembl: ids
            .iter()
            .map(|id| (!id.is_empty()).then(|| (*id).to_owned()))
            .collect(),
    };
    let max_len = case["max_len"].as_u64().unwrap() as usize;
    let tokenizer = RankTokenizer::new(
        &dictionary(name),
        &genes,
        GeneKey::Auto,
        ValueKind::Counts,
        max_len,
    )
    .unwrap();
    let kept = expected["kept_columns"].size()[0];
    assert_eq!(tokenizer.overlap().matched as i64, kept);
    let mut worker = tokenizer.worker();
    let (cells, _) = counts.size2().unwrap();
    for cell in 0..cells {
        let row = Vec::<f32>::try_from(counts.get(cell)).unwrap();
        let expressed: Vec<u32> = (0..row.len() as u32)
            .filter(|&g| row[g as usize] > 0.0)
            .collect();
        let values: Vec<f32> = expressed.iter().map(|&g| row[g as usize]).collect();
        let mut out = Tokens::default();
        let input = Cell {
            genes: &expressed,
            values: &values,
        };
        let some = worker.tokenize(input, CellKey::new(cell as u64, 0, 0), &mut out);
        let length = expected["length"].int64_value(&[cell]);
        assert_eq!(some, length > 0, "cell {cell}");
        if length == 0 {
            continue;
        }
        let wanted = expected["input_ids"].get(cell).narrow(0, 0, length);
        let wanted = Vec::<i64>::try_from(wanted).unwrap();
        let found: Vec<i64> = out.ids.iter().map(|&id| i64::from(id)).collect();
        assert_eq!(found, wanted, "cell {cell}");
    }
}

#[test]
fn tokenizer_small() {
    check("tokenizer_small");
}

#[test]
fn tokenizer_truncate() {
    check("tokenizer_truncate");
}

/// The published files, in both of their formats, hold the tensors of the case, and those alone.
#[test]
fn published_weights_are_those_of_the_case() {
    use scpeft_checkpoint::published::geneformer::{GeneformerConfig, GeneformerWeights};
    let dir = fixture("geneformer", "backbone_mlm");
    let weights = read(&dir.join("weights.safetensors"));
    for published in ["published_v1", "published_v2"] {
        let dir = dir.join(published);
        let config = GeneformerConfig::read(&dir.join("config.json")).unwrap();
        let opened = GeneformerWeights::open(&dir).unwrap();
        opened.require_complete(&config).unwrap();
        let mut compared = 0;
        for (name, tensor) in opened.tensors() {
            let found = scpeft_trainer::backbone::to_tensor(&tensor).unwrap();
            assert!(found.equal(&weights[name]), "{published}: {name}");
            compared += 1;
        }
        let tied = weights.keys().filter(|k| k.contains("decoder"));
        assert_eq!(compared, weights.len() - tied.count(), "{published}");
    }
}

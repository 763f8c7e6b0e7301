//! Bins against those of the reference, with each of its ways to scale.

use scpeft_data::tokenize::{Cell, CellKey, Tokens};
use scpeft_data::{BinScale, GeneKey, GeneTable, PanelTokenizer, Tokenizer, ValueKind};
use scpeft_tests::{case, fixture};
use serde_json::Value;

use crate::golden::read;

fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn bins_of_all_scales() {
    let dir = fixture("scbert", "binning");
    let case = case(&dir);
    let expected = read(&dir.join("expected.safetensors"));
    let counts = &read(&dir.join("inputs.safetensors"))["counts"];
    let panel = names(&case["panglao_genes"]);
    let symbols = names(&case["query_genes"]);
    let genes = GeneTable {
        ensembl: vec![None; symbols.len()],
        symbols,
    };
    let tokens = case["clip"].as_u64().unwrap() as usize + 2;
    let (cells, _) = counts.size2().unwrap();
    for (scale, name, scaled) in [
        (BinScale::Log2, "tokens_log", "log_norm"),
        (BinScale::Scaled, "tokens_norm", "norm"),
        (BinScale::AsTheyAre, "tokens_unnormalised", "aligned"),
    ] {
        let kind = ValueKind::Counts;
        let key = GeneKey::Symbol;
        let tokenizer = PanelTokenizer::new(&panel, tokens, &genes, key, kind, scale).unwrap();
        let matched: i64 = expected["gene_mask"].sum(tch::Kind::Int64).int64_value(&[]);
        assert_eq!(tokenizer.overlap().matched as i64, matched);
        let mut worker = tokenizer.worker();
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
            worker.tokenize(input, CellKey::new(cell as u64, 0, 0), &mut out);
            let wanted = Vec::<i64>::try_from(expected[name].get(cell)).unwrap();
            let exact = Vec::<f32>::try_from(expected[scaled].get(cell)).unwrap();
            assert_eq!(out.ids.len(), wanted.len());
            for (place, (&found, &wanted)) in out.ids.iter().zip(&wanted).enumerate() {
                // Next to a whole number the last bit of a logarithm decides.
                let near = exact
                    .get(place)
                    .is_some_and(|x| (x - x.round()).abs() < 1e-5);
                let same = i64::from(found) == wanted;
                assert!(
                    same || near,
                    "{name}: cell {cell}, place {place}: {found}, {wanted}"
                );
            }
        }
    }
}

//! Attention scores of marker genes: raw products, ranks along rows and columns, the row of
//! `<cls>`, enrichment of one cell type over another.

use scpeft_model::backbone::scgpt::{Blueprint, Heads, InputOptions, Scgpt};
use scpeft_model::exec::ExecutorKind;
use scpeft_model::{Layout, ranks};
use tch::{Kind, Tensor};

use crate::golden::{Golden, adapters, assert_close};

fn model(golden: &Golden) -> Scgpt {
    let blueprint = Blueprint {
        shape: golden.shape(),
        inputs: InputOptions::default(),
        heads: Heads::default(),
        adapters: adapters(&golden.case["adapter_config"]),
    };
    let params = golden.params(&blueprint, |_| false, Layout::cpu(0));
    Scgpt::bind(&blueprint, &params, ExecutorKind::Plain).unwrap()
}

fn layer(golden: &Golden) -> usize {
    golden.case["attention_layer"].as_u64().unwrap() as usize
}

#[test]
fn attention_scores_from_given_products_are_exact() {
    let golden = Golden::load("attention_scores");
    let raw = &golden.expected["raw_qk"];
    let rows = ranks::stable_ranks(raw, -1).unwrap();
    assert!(rows.equal(&golden.expected["row_rank"]), "row ranks");
    let columns = ranks::stable_ranks(&rows, -2).unwrap();
    assert!(columns.equal(&golden.expected["col_rank"]), "column ranks");
    let cells = ranks::cls_ranks(raw).unwrap();
    let expected = &golden.expected["cell_gene"];
    assert_close("cell_gene", &cells, expected, 1e-7, 0.0);
}

#[test]
fn attention_scores_from_the_model() {
    let golden = Golden::load("attention_scores");
    let (model, inputs, layer) = (model(&golden), golden.batch(), layer(&golden));
    let raw = model.raw_scores(&inputs, layer).unwrap();
    let tolerance = |key: &str| golden.case["tolerances"][key].as_f64().unwrap();
    let expected = &golden.expected["raw_qk"];
    assert_close(
        "raw_qk",
        &raw,
        expected,
        tolerance("atol"),
        tolerance("rtol"),
    );

    // Ranks jump where products nearly tie: compare the statistic where it is continuous, on the
    // model's own products, and the enrichment with the reference's.
    let cells = model.attention_ranks(&inputs, layer).unwrap();
    assert!(cells.equal(&ranks::cls_ranks(&raw).unwrap()));
    let types = &golden.inputs["celltype"];
    let mean = |kind: i64| {
        let chosen = types.eq(kind).nonzero().squeeze_dim(1);
        assert!(chosen.size()[0] > 0);
        let cells = golden.expected["cell_gene"].index_select(0, &chosen);
        cells.mean_dim(0, false, Kind::Float)
    };
    let enrichment: Tensor = mean(0) - mean(1);
    assert_close(
        "enrichment",
        &enrichment,
        &golden.expected["enrichment"],
        1e-6,
        0.0,
    );
    let difference = (&cells - &golden.expected["cell_gene"]).abs().max();
    assert!(difference.double_value(&[]) < 1e-6, "{difference:?}");
    assert!(model.raw_scores(&inputs, 99).is_err());
}

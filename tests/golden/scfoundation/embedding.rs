//! Cell embeddings of counts with read depths, and the encoder on cells one by one.

use scpeft_data::TargetDepth;
use scpeft_model::backbone::Model;
use scpeft_model::backbone::scfoundation::PoolStyle;
use scpeft_model::exec::{ExecutorKind, Pass};
use tch::Tensor;

use crate::golden::{Golden, TOLERANCE, assert_close};

#[test]
fn embeddings_of_counts_with_read_depths() {
    let golden = Golden::load("embed_cell_T_S");
    let counts = &golden.inputs["counts"];
    let tokens = golden.tokens(counts, Some(1e4), Some(TargetDepth::Fixed(4.0)));
    let batch = golden.batch(&tokens, 1);
    let dense = Tensor::zeros(
        [counts.size()[0], golden.genes() + 3],
        (tch::Kind::Float, tch::Device::Cpu),
    );
    let dense = dense.scatter(1, &batch.gene_ids.to_kind(tch::Kind::Int64), &batch.values);
    golden.close("tokens_with_T_S", &dense.narrow(1, 0, golden.genes() + 2));
    for (style, name) in [
        (PoolStyle::All, "cell_embedding_all"),
        (PoolStyle::Max, "cell_embedding_max"),
    ] {
        let mut blueprint = golden.blueprint();
        blueprint.pool.style = style;
        blueprint.pool.padded = false;
        blueprint.pad_position = blueprint.shape.pad_id;
        let (_, model) = golden.model(&blueprint, ExecutorKind::Plain);
        // The reference embeds cells one at a time: what stands beside them must not matter.
        let encoded = tch::no_grad(|| model.encode(&batch, Pass::EVALUATION)).unwrap();
        golden.close(name, &encoded.cell);
        for row in 0..tokens.rows() {
            let length = tokens.range(row).len() as i64;
            let found = encoded.hidden.get(row as i64).narrow(0, 0, length);
            let name = format!("encoder_output.{row}");
            let [atol, rtol] = TOLERANCE;
            assert_close(&name, &found, &golden.expected[&name], atol, rtol);
        }
    }
}
